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
from modeling_taae.codec import load_codec
from modeling_taae.taae_file import TaaeFile

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
    """A model's folder with its sample in it."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = TaaeConfig(
        patch_size=80, hidden_sizes=[16, 16], strides=[1, 2], encoder_depths=[0, 1], decoder_depths=[1, 0], head_dim=8
    )
    TaaeModel(config).save_pretrained(folder)
    TaaeFeatureExtractor(hop_length=config.hop_length).save_pretrained(folder)
    load_codec(str(folder)).encode(recording).save(folder / "demo.taae")
    return folder


def test_sample_is_decoded_and_encoded_again(demo, model, tmp_path, capsys):
    assert demo.main(["--model", str(model), "-o", str(tmp_path)]) == 0
    again = TaaeFile.load(tmp_path / "demo_again.taae")
    sample = TaaeFile.load(model / "demo.taae")
    agreeing = int((again.audio_codes == sample.audio_codes).sum())
    report = capsys.readouterr().out
    assert f"{agreeing} of {sample.audio_codes.size} tokens" in report
    assert f"{SECONDS:.2f} s of speech in {len(sample.to_bytes()):,} bytes" in report
    for name in ("demo.wav", "demo_again.wav"):
        assert str(tmp_path / name) in report
        assert soundfile.info(tmp_path / name).frames == SECONDS * RATE


def test_own_recording_gives_sounds_tokens_and_a_picture(demo, model, recording, tmp_path, capsys):
    stereo_at_48_khz = np.stack([recording.repeat(3)] * 2, axis=1)
    soundfile.write(tmp_path / "my voice.flac", stereo_at_48_khz, 3 * RATE)
    output = tmp_path / "out"
    assert demo.main([str(tmp_path / "my voice.flac"), "--model", str(model), "-o", str(output)]) == 0
    assert TaaeFile.load(output / "my voice.taae").num_samples == SECONDS * RATE
    assert (output / "my voice.png").read_bytes().startswith(b"\x89PNG")
    heard, decoded = (read_audio(output / f"my voice_{end}.wav") for end in ("in", "out"))
    assert len(heard) == len(decoded) == SECONDS * RATE
    assert np.corrcoef(heard, read_audio(tmp_path / "my voice.flac"))[0, 1] > 0.999
    assert str(output / "my voice.png") in capsys.readouterr().out


def test_silence_can_be_drawn(demo, model, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(100), RATE)
    assert demo.main([str(tmp_path / "silence.wav"), "--model", str(model), "-o", str(tmp_path / "out")]) == 0


def test_errors_are_one_line(demo, model, tmp_path, capsys):
    assert demo.main([str(tmp_path / "missing.wav"), "--model", str(model), "-o", str(tmp_path)]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("demo: error: ") and captured.count("\n") == 1 and "missing.wav" in captured


def test_sample_of_another_model_is_refused(demo, model, tmp_path, capsys):
    torch.manual_seed(1)
    stranger = TaaeModel(TaaeModel.from_pretrained(model).config)
    stranger.save_pretrained(tmp_path)
    TaaeFeatureExtractor.from_pretrained(model).save_pretrained(tmp_path)
    (tmp_path / "demo.taae").write_bytes((model / "demo.taae").read_bytes())
    assert demo.main(["--model", str(tmp_path), "-o", str(tmp_path)]) == 2
    assert "another model" in capsys.readouterr().err
    assert not (tmp_path / "demo.wav").exists()
