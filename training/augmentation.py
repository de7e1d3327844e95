"""Augmentation of training crops: one function per change, and one class that draws them.

The changed crop is both the codec's input and its target, noise included. The draws depend only on the crop's random
generator; a change that is switched off draws nothing, so that other draws stay the same.
"""

from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from modeling_taae.audio_io import read_audio
from modeling_taae.errors import TaaeInputError
from training.recipe import AugmentationConfig, RecipeError

# Frequencies at which the equaliser's gain is drawn, in Hz; between them it is interpolated over the log frequency.
EQUALIZER_BANDS = (60.0, 150.0, 400.0, 1_000.0, 2_500.0, 6_000.0)
CHANGES = ("level", "speed", "polarity", "equalization", "noise", "room")
INT16_FULL_SCALE = 32768
SILENCE = 1e-6  # mean square, about -60 dB of full scale


class AugmentationError(RecipeError):
    """An empty folder of noises or rooms, or a probability for an unknown change."""


class Augmenter:
    """Draws crops from recordings and changes them.

    Args:
        settings: the changes and their sizes.
        sampling_rate: samples per second.

    Raises:
        AugmentationError: if a folder holds no audio, or a probability is for an unknown change.
    """

    def __init__(self, settings: AugmentationConfig, sampling_rate: int):
        self.settings, self.sampling_rate = settings, sampling_rate
        if unknown := sorted(settings.probabilities.keys() - set(CHANGES)):
            raise AugmentationError(
                f"augmentation.probabilities has {unknown[0]!r}; the changes are {', '.join(CHANGES)}."
            )
        self.noises = find_audio(settings.noise) if settings.noise else []
        self.rooms = find_audio(settings.room) if settings.room else []

    def draw(self, recording: np.ndarray, generator: np.random.Generator, length: int) -> torch.Tensor:
        """Draws a random crop from a recording (samples,) int16, and changes it: (1, length) float32."""
        settings, speed = self.settings, 1.0
        if settings.speed > 0 and self._drawn("speed", generator):
            speed = (1 + settings.speed) ** generator.uniform(-1, 1)
        crop = random_crop(recording, generator, round(length * speed)).astype(np.float32) / INT16_FULL_SCALE
        if speed != 1:
            crop = change_speed(crop, length)
        if settings.polarity and self._drawn("polarity", generator):
            crop = -crop
        if settings.equalization > 0 and self._drawn("equalization", generator):
            extent = settings.equalization
            crop = equalize(crop, generator.uniform(-extent, extent, len(EQUALIZER_BANDS)), self.sampling_rate)
        if self.rooms and self._drawn("room", generator):
            crop = add_room(crop, read_or_silence(self._one_of(self.rooms, generator), self.sampling_rate))
        if self.noises and self._drawn("noise", generator):
            noise = read_or_silence(self._one_of(self.noises, generator), self.sampling_rate)
            crop = add_noise(crop, random_crop(noise, generator, length), generator.uniform(*settings.noise_snr))
        if settings.probabilities.get("level", 1) == 1 or self._drawn("level", generator):
            crop = change_level(crop, 10 ** (generator.uniform(-settings.level, settings.level) / 20))
        return torch.from_numpy(crop)[None]

    def _drawn(self, change: str, generator: np.random.Generator) -> bool:
        return generator.random() < self.settings.probabilities.get(change, self.settings.probability)

    @staticmethod
    def _one_of(files: list[Path], generator: np.random.Generator) -> Path:
        return files[generator.integers(len(files))]


def random_crop(recording: np.ndarray, generator: np.random.Generator, length: int) -> np.ndarray:
    """Returns (length,) samples from a random position of a recording, zero-padded if the recording is shorter."""
    start = generator.integers(max(len(recording) - length, 0) + 1)
    crop = recording[start : start + length]
    return np.pad(crop, (0, length - len(crop)))


def change_level(samples: np.ndarray, gain: float) -> np.ndarray:
    """Scales (samples,) float32 by a gain, limited so that nothing clips."""
    peak = np.abs(samples).max()
    return samples * np.float32(min(gain, 1 / max(peak, 1e-6)))


def change_speed(samples: np.ndarray, length: int) -> np.ndarray:
    """Resamples (samples,) to (length,), which changes pitch and formants too."""
    resampled = soxr.resample(samples, len(samples), length)[:length]
    return np.pad(resampled, (0, length - len(resampled)))


def equalize(samples: np.ndarray, gains: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Filters (samples,) float32 with the given gains in dB at `EQUALIZER_BANDS`, without changing phases."""
    frequencies = np.fft.rfftfreq(len(samples), 1 / sampling_rate)
    decibels = np.interp(np.log(frequencies.clip(1)), np.log(EQUALIZER_BANDS), gains)
    return np.fft.irfft(np.fft.rfft(samples) * 10 ** (decibels / 20), len(samples)).astype(np.float32)


def add_noise(samples: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Adds noise of the same length at a signal-to-noise ratio in dB, unless either of them is silent."""
    signal_power, noise_power = np.mean(np.square(samples)), np.mean(np.square(noise))
    if min(signal_power, noise_power) < SILENCE:
        return samples
    return samples + noise * np.float32(np.sqrt(signal_power / noise_power) * 10 ** (-snr / 20))


def add_room(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolves (samples,) with a room's impulse response from its peak on, keeping the power and the timing.

    A silent response leaves the samples as they are.
    """
    if not response.any():
        return samples
    response = response[np.abs(response).argmax() :]
    size = len(samples) + len(response) - 1
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples)]
    power, wet_power = np.mean(np.square(samples)), np.mean(np.square(wet))
    return (wet * np.sqrt(power / max(wet_power, 1e-12))).astype(np.float32)


def find_audio(folder: str) -> list[Path]:
    """Returns the files in a folder, at any depth, that soundfile can read.

    Raises:
        AugmentationError: if there are none.
    """
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and is_audio(path)]
    if not files:
        raise AugmentationError(f"There is no audio in the folder {folder!r}, which the recipe augments with.")
    return files


def is_audio(path: Path) -> bool:
    """Returns whether soundfile can open a file and finds samples in it."""
    try:
        return soundfile.info(path).frames > 0
    except (OSError, RuntimeError):
        return False


def read_or_silence(path: Path, sampling_rate: int) -> np.ndarray:
    """Reads a file as mono (samples,) float32 at a rate in Hz; returns silence if it cannot be read."""
    try:
        return read_audio(path, sampling_rate)
    except TaaeInputError:
        return np.zeros(1, np.float32)
