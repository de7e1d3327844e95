"""Augmentation: each change does what it says, and what is drawn follows from the crop alone."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from training.augmentation import (
    EQUALIZER_BANDS,
    AugmentationError,
    Augmenter,
    add_noise,
    add_room,
    change_level,
    change_speed,
    equalize,
)
from training.recipe import AugmentationConfig

RATE = 16_000


def tone(frequency: float, seconds: float = 1.0) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def white_noise(samples: int = RATE) -> np.ndarray:
    return (0.1 * np.random.default_rng(1).standard_normal(samples)).astype(np.float32)


def pitch(samples: np.ndarray) -> float:
    return np.fft.rfftfreq(len(samples), 1 / RATE)[np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax()]


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples)))


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    """Noises, one of them at another rate and in stereo, beside a text file; and one room."""
    for name in ("noise/below", "room"):
        (tmp_path / name).mkdir(parents=True)
    soundfile.write(tmp_path / "noise" / "a.wav", white_noise(), RATE)
    soundfile.write(tmp_path / "noise" / "below" / "b.flac", np.stack([white_noise(8_000)] * 2, axis=1), 8_000)
    (tmp_path / "noise" / "readme.txt").write_text("no audio")
    soundfile.write(tmp_path / "room" / "hall.wav", white_noise(4_000) * np.exp(-np.arange(4_000) / 800), RATE)
    return {"noise": str(tmp_path / "noise"), "room": str(tmp_path / "room")}


def test_speed_moves_the_pitch():
    assert pitch(change_speed(tone(400, 1.1), RATE)) == pytest.approx(440, abs=2)
    assert [len(change_speed(tone(400), length)) for length in (15_999, 17_601)] == [15_999, 17_601]


@pytest.mark.parametrize(("frequency", "gain"), [(30, -6.0), (1_000, 3.0), (7_000, 9.0)])
def test_the_equaliser_has_the_gains_asked_for(frequency, gain):
    gains = np.interp(EQUALIZER_BANDS, [60, 1_000, 6_000], [-6, 3, 9])
    change = 10 * np.log10(power(equalize(tone(frequency), gains, RATE)) / power(tone(frequency)))
    assert change == pytest.approx(gain, abs=0.05)


def test_noise_is_added_at_its_ratio_and_never_to_silence():
    noisy = add_noise(tone(300), white_noise(), snr=10.0)
    assert 10 * np.log10(power(tone(300)) / power(noisy - tone(300))) == pytest.approx(10, abs=0.01)
    assert not add_noise(np.zeros(RATE, np.float32), white_noise(), snr=10.0).any()
    assert np.array_equal(add_noise(tone(300), np.zeros(RATE, np.float32), snr=10.0), tone(300))


def test_a_room_keeps_power_and_timing():
    click = np.zeros(1_000, np.float32)
    click[100] = 0.5
    response = np.array([0.0, 0.1, 1.0, 0.0, 0.5], np.float32)
    wet = add_room(click, response)
    assert power(wet) == pytest.approx(power(click))
    assert wet[102] / wet[100] == pytest.approx(0.5)
    assert np.abs(wet[:100]).max() < 1e-6
    assert np.array_equal(add_room(click, np.zeros(5, np.float32)), click)


def test_levels_stop_short_of_clipping():
    assert np.abs(change_level(tone(300), 2.0)).max() == pytest.approx(0.4, rel=1e-3)
    assert np.abs(change_level(tone(300), 10.0)).max() == pytest.approx(1.0)


def test_all_changes_together_follow_from_the_generator(folders):
    settings = AugmentationConfig(probability=0.7, speed=0.1, polarity=True, equalization=6.0, **folders)
    recording = (32_000 * tone(300, 2.0)).astype(np.int16)

    def draw(seed: int) -> torch.Tensor:
        return Augmenter(settings, RATE).draw(recording, np.random.default_rng(seed), 5_120)

    crops = [draw(seed) for seed in range(20)]
    assert all(torch.equal(crop, draw(seed)) for seed, crop in enumerate(crops))
    assert {(crop.shape, crop.dtype) for crop in crops} == {((1, 5_120), torch.float32)}
    assert all(crop.isfinite().all() and 0 < crop.abs().max() <= 1 for crop in crops)
    assert len({crop.sum().item() for crop in crops}) == 20


def test_what_is_switched_off_draws_nothing():
    """So that switching one change on or off leaves the crops' places and levels as they are."""
    recording = np.random.default_rng(0).integers(-9_000, 9_000, 40_000).astype(np.int16)
    plain = Augmenter(AugmentationConfig(), RATE).draw(recording, np.random.default_rng(3), 5_120)
    generator = np.random.default_rng(3)
    start, gain = generator.integers(40_000 - 5_120 + 1), 10 ** (generator.uniform(-5, 5) / 20)
    expected = recording[start : start + 5_120].astype(np.float32) / 32768 * np.float32(gain)
    assert np.array_equal(plain[0].numpy(), expected)


def test_each_change_spares_its_share_of_the_crops():
    recording = (32_000 * np.abs(tone(300, 2.0))).astype(np.int16)
    for settings in ({"probability": 0.25}, {"probability": 1.0, "probabilities": {"polarity": 0.25, "speed": 0.9}}):
        augmenter = Augmenter(AugmentationConfig(polarity=True, **settings), RATE)
        turned = [augmenter.draw(recording, np.random.default_rng(seed), 640).sum() < 0 for seed in range(400)]
        assert np.mean(turned) == pytest.approx(0.25, abs=0.06)


def test_levels_may_be_spared_too():
    """And what a probability of 1 draws is what was drawn before levels had one."""
    recording, generator = (9_000 * tone(300, 2.0)).astype(np.int16), np.random.default_rng
    plain, always, never = (
        Augmenter(AugmentationConfig(probabilities=probabilities), RATE).draw(recording, generator(1), 640)
        for probabilities in ({}, {"level": 1.0}, {"level": 0.0})
    )
    assert torch.equal(plain, always) and not torch.equal(plain, never)
    assert (never / plain).nanmedian() == pytest.approx(float((never / plain)[0, 100]), rel=1e-3)


def test_a_probability_of_no_change_is_refused():
    with pytest.raises(AugmentationError, match="has 'pitch'; the changes are level, speed, polarity"):
        Augmenter(AugmentationConfig(probabilities={"pitch": 0.5}), RATE)


def test_a_noise_that_has_gone_is_silence(folders):
    augmenter = Augmenter(AugmentationConfig(level=0.0, probability=1.0, noise=folders["noise"]), RATE)
    for file in augmenter.noises:
        Path(file).unlink()
    recording = (32_000 * tone(300)).astype(np.int16)
    crop = augmenter.draw(recording, np.random.default_rng(0), RATE)
    assert np.array_equal(crop[0].numpy(), recording / np.float32(32768))


def test_a_folder_without_audio_is_refused(tmp_path):
    with pytest.raises(AugmentationError, match="no audio in the folder"):
        Augmenter(AugmentationConfig(noise=str(tmp_path)), RATE)
