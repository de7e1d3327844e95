"""The exported listening test: complete, level, hidden, randomised."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from modeling_taae.feature_extraction_taae import integrated_loudness
from modeling_taae.listening_test import write_listening_test
from modeling_taae.samples import REFERENCE, Sample

RATE = 16_000


def noise(seed: int, gain: float = 0.1) -> np.ndarray:
    return (gain * np.random.default_rng(seed).normal(0, 1, 2 * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mushra") / "nano"
    clips = {REFERENCE: noise(0), "nano 5,5@1.0/5,5@0.25": noise(1, 0.01), "codec2-700C": noise(2, 0.05)}
    write_listening_test(folder, [Sample(f"u{number}", {}, clips) for number in range(3)])
    return folder


@pytest.fixture(scope="module")
def pages(folder) -> list:
    return yaml.safe_load((folder / "mushra.yaml").read_text())["pages"]


def test_pages_come_in_order(pages):
    assert [page[0] if isinstance(page, list) else page["type"] for page in pages] == [
        *("generic", "volume", "likert_single_stimulus", "random", "finish")
    ]
    assert "agree" in pages[0]["content"] and pages[-1]["writeResults"]


def test_every_trial_has_anchor_and_codecs_at_one_loudness(folder, pages):
    trials = pages[3][1:]
    assert len(trials) == 3
    for trial in trials:
        assert trial["randomize"] and set(trial["stimuli"]) == {"anchor35", "nano_5_5_1_0_5_5_0_25", "codec2-700C"}
        files = [folder / path.split("/nano/")[1] for path in [trial["reference"], *trial["stimuli"].values()]]
        levels = [integrated_loudness(soundfile.read(file)[0], RATE) for file in files]
        assert np.ptp(levels) < 0.1


def test_anchor_ends_at_3500_hz(folder):
    anchor, _ = soundfile.read(folder / "trial_00" / "anchor35.wav")
    spectrum = np.abs(np.fft.rfft(anchor))
    frequencies = np.fft.rfftfreq(len(anchor), 1 / RATE)
    inside, outside = (
        spectrum[(frequencies > low) & (frequencies < high)] for low, high in ((100, 3200), (3700, 8000))
    )
    assert 20 * np.log10(outside.mean() / inside.mean()) < -60


def test_headphone_tones(folder):
    tones, _ = soundfile.read(folder / "headphones.wav")
    levels = [np.sqrt(np.mean(tones[int(start * RATE) : int((start + 1) * RATE), 0] ** 2)) for start in (0, 1.5, 3)]
    assert 20 * np.log10(levels[1] / levels[0]) == pytest.approx(-6, abs=0.1)
    # On loudspeakers the third one cancels out.
    assert np.abs(tones[3 * RATE :].sum(axis=1)).max() < 1e-4 < np.abs(tones[: 2 * RATE].sum(axis=1)).max()
