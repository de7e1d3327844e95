"""Draws spectrograms for reports, the demo, the Space and training."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# Samples of a window, samples between windows, and the range of levels: 32 ms and 8 ms at 16 kHz, and 80 dB.
WINDOW, HOP, RANGE_DB = 512, 128, 80
FULL_SCALE_DB = 20 * np.log10(WINDOW / 4)  # the level of a sine of full scale


def spectrum(clip: np.ndarray) -> np.ndarray:
    """Returns levels in dB: (samples,) -> (frequencies, frames)."""
    from transformers.audio_utils import spectrogram, window_function

    padded = np.pad(clip, (0, max(WINDOW - len(clip), 0)))
    magnitudes = spectrogram(padded, window_function(WINDOW, "hann"), WINDOW, HOP, power=1.0)
    return 20 * np.log10(magnitudes + 1e-6)


def draw_spectrum(axes: "Axes", clip: np.ndarray, sampling_rate: int, loudest: float) -> "AxesImage":
    """Draws a clip's spectrogram over seconds and kHz, low frequencies at the bottom.

    Args:
        axes: the place of the picture.
        clip: (samples,) float.
        sampling_rate: samples per second, in Hz.
        loudest: the level in dB that is drawn brightest.
    """
    options: dict[str, Any] = {"origin": "lower", "aspect": "auto", "cmap": "magma"}
    options["extent"] = (0.0, len(clip) / sampling_rate, 0.0, sampling_rate / 2000)
    return axes.imshow(spectrum(clip), vmin=loudest - RANGE_DB, vmax=loudest, **options)
