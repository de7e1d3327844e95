"""The demo, on a model of random weights and a made-up recording."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel
from modeling_taae.audio_io import read_audio
from modeling_taae.taae_file import TaaeFile

pytestmark = pytest.mark.slow

RATE = 16_000
SECONDS = 1.5


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    path = Path(__file__).parents[2] / "hub_cards" / "demo.py"
    specification = importlib.util.spec_from_file_location("demo", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """A chirp in noise, (samples,) float32: loud enough to have a loudness."""
    time = np.arange(int(SECONDS * RATE)) / RATE
    noise = np.random.default_rng(0).normal(scale=0.01, size=len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 400 * time) * time) + noise).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, recording: np.ndarray) -> Path:
    """A model's folder with its recording in it."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = TaaeConfig(
        patch_size=80, hidden_sizes=[16, 16], strides=[1, 2], encoder_depths=[0, 1], decoder_depths=[1, 0], head_dim=8
    )
    TaaeModel(config).save_pretrained(folder)
    TaaeFeatureExtractor(hop_length=config.hop_length).save_pretrained(folder)
    (folder / "samples").mkdir()
    soundfile.write(folder / "samples" / "english-woman-original.flac", recording, RATE)
    return folder


def test_it_begins_with_the_recording_that_comes_along(demo, model, recording, tmp_path, capsys):
    assert demo.main(["--model", str(model), "-o", str(tmp_path)]) == 0
    report = capsys.readouterr().out.splitlines()
    size = (tmp_path / "english-woman.taae").stat().st_size
    assert report[1].startswith(f"{SECONDS:.1f} seconds of speech became {size:,} bytes")
    before, after = (tmp_path / f"english-woman_{end}.wav" for end in ("original", "decoded"))
    assert report[2].split() == ["recording", str(before)] and report[3].split() == ["decoded", str(after)]
    assert np.corrcoef(read_audio(before), recording)[0, 1] > 0.999
    assert soundfile.info(after).frames == SECONDS * RATE


def test_own_recording_gives_sounds_tokens_and_a_picture(demo, model, recording, tmp_path, capsys):
    stereo_at_48_khz = np.stack([recording.repeat(3)] * 2, axis=1)
    soundfile.write(tmp_path / "my voice.flac", stereo_at_48_khz, 3 * RATE)
    output = tmp_path / "out"
    assert demo.main([str(tmp_path / "my voice.flac"), "--model", str(model), "-o", str(output)]) == 0
    assert TaaeFile.load(output / "my voice.taae").num_samples == SECONDS * RATE
    assert (output / "my voice.png").read_bytes().startswith(b"\x89PNG")
    heard, decoded = (read_audio(output / f"my voice_{end}.wav") for end in ("original", "decoded"))
    assert len(heard) == len(decoded) == SECONDS * RATE
    assert np.corrcoef(heard, read_audio(tmp_path / "my voice.flac"))[0, 1] > 0.999
    assert str(output / "my voice.png") in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "words"), [(0.5, "0.50 s (4.0 times faster"), (3.0, "3.00 s (1.5 times slower")])
def test_speed_is_told_in_either_direction(demo, seconds, words):
    assert demo.speed(2.0, seconds) == f"{words} than real time)"


def test_silence_can_be_drawn(demo, model, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(100), RATE)
    assert demo.main([str(tmp_path / "silence.wav"), "--model", str(model), "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("content", [None, b"words"])
def test_a_file_that_cannot_be_used_is_told_before_the_model_loads(demo, tmp_path, capsys, content):
    if content:
        (tmp_path / "speech.wav").write_bytes(content)
    assert demo.main([str(tmp_path / "speech.wav"), "--model", str(tmp_path / "no model")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("demo: error: ") and captured.err.count("\n") == 1 and "speech.wav" in captured.err
    assert "Loading" not in captured.out


def test_a_model_without_a_recording_asks_for_one(demo, tmp_path, capsys):
    assert demo.main(["--model", str(tmp_path)]) == 2
    assert "english-woman-original.flac" in capsys.readouterr().err
