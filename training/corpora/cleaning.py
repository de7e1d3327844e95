"""Cleans recordings for training: resamples, trims silence, cuts long recordings, and leaves out broken ones.

All samples are float32 and mono, and at 16 kHz after `resampled`.
"""

from collections.abc import Iterator

import numpy as np
import soxr

RATE = 16_000
FRAME = 320  # samples of a level frame, 20 ms
LARGEST_OFFSET, LARGEST_PEAK = 0.003, 0.985
EDGE = int(0.15 * RATE)  # samples that stay before and after speech
SILENT, LONGEST_SILENCE = 1e-5, int(0.1 * RATE)  # level of digital silence, and samples of a run of it that stay
LONGEST, TARGET = int(19.5 * RATE), int(12 * RATE)  # a longer recording is cut, at a pause after the target
CLIPPED_AT, CLIPPED_SHARE = 0.9985, 1e-3
QUIETEST_DB = -45.0


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resamples (samples,) to 16 kHz, subtracts an offset, and scales samples down if they would clip."""
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE, quality="VHQ")
    if len(samples) == 0:
        return samples
    if abs(offset := samples.mean()) > LARGEST_OFFSET:
        samples = samples - offset
    peak = np.abs(samples).max()
    return np.ascontiguousarray(samples * (LARGEST_PEAK / peak) if peak > LARGEST_PEAK else samples, np.float32)


def levels(samples: np.ndarray) -> np.ndarray:
    """Returns the level of each whole frame of (samples,), in dB of full scale."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    return 10 * np.log10(np.square(frames).mean(axis=1) + 1e-10)


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Cuts off silence before and after speech, and shortens digital silence within it."""
    level = levels(samples)
    if len(level) < 5:
        return samples[:0]
    quiet, loud = np.percentile(level, [5, 95])
    spoken = np.flatnonzero(level > max(loud - 35, quiet + 8, -65))
    if len(spoken) == 0:
        return samples[:0]
    samples = samples[max(0, spoken[0] * FRAME - EDGE) : (spoken[-1] + 1) * FRAME + EDGE]
    silent = np.concatenate(([0], (np.abs(samples) < SILENT).astype(np.int8), [0]))
    edges = np.flatnonzero(np.diff(silent))
    kept = np.ones(len(samples), bool)
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        kept[start + LONGEST_SILENCE : max(stop, start + LONGEST_SILENCE)] = False
    return samples[kept]


def parts(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts a long recording into parts, each cut at the quietest moment, and yields them."""
    while len(samples) > LONGEST:
        level = np.convolve(levels(samples[:LONGEST]), np.ones(10) / 10, "same")
        first = TARGET // FRAME
        cut = (first + int(np.argmin(level[first:-10]))) * FRAME
        yield samples[:cut]
        samples = samples[cut:]
    yield samples


def band_level(samples: np.ndarray) -> float:
    """Returns the level at 6 to 7 kHz relative to that at 0.1 to 4 kHz, over the louder frames, in dB."""
    if len(samples) < 4 * 512:
        return -99.0
    frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::256]
    power = np.abs(np.fft.rfft(frames * np.hanning(512), axis=1)) ** 2
    total = power.sum(axis=1)
    mean = power[total >= np.percentile(total, 60)].mean(axis=0) + 1e-12
    bin_width = RATE / 512
    high, low = (mean[int(a / bin_width) : int(b / bin_width)].mean() for a, b in ((6_000, 7_000), (94, 4_000)))
    return float(10 * np.log10(high / low))


def clipped_share(samples: np.ndarray) -> float:
    """Returns the share of samples at full scale."""
    return float((np.abs(samples) > CLIPPED_AT).mean()) if len(samples) else 0.0


def fault(
    samples: np.ndarray, clipped: float, min_range_db: float, min_band_db: float, min_seconds: float
) -> str | None:
    """Returns why a recording is left out; None if it is kept.

    Args:
        samples: (samples,) after cleaning.
        clipped: share of clipped samples in the original.
        min_range_db: smallest level difference between loud and quiet frames, in dB.
        min_band_db: lowest level of the high band, see `band_level`.
        min_seconds: shortest duration.
    """
    if len(samples) < RATE * min_seconds:
        return "short"
    if clipped > CLIPPED_SHARE:
        return "clipped"
    quiet, loud = np.percentile(levels(samples), [5, 95])
    if loud < QUIETEST_DB:
        return "quiet"
    if loud - quiet < min_range_db:
        return "noisy"
    if band_level(samples) < min_band_db:
        return "narrow band"
    return None
