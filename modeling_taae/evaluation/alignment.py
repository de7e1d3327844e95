"""Estimates and removes the delay of a codec's output against its input."""

from collections.abc import Iterable

import numpy as np

SAMPLING_RATE = 16_000
# The longest delay that is searched for, in seconds, and the step of the search on levels, in samples.
LONGEST_DELAY = 0.15
ENVELOPE_STEP = SAMPLING_RATE // 1000
# Below KEPT_PHASE (correlation of waveforms) a codec does not keep the phase; below KEPT_LEVEL its output is noise.
KEPT_PHASE, KEPT_LEVEL = 0.5, 0.5


def estimate_delay(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """Estimates the delay of decoded clips against their references in samples, one figure for all clips.

    The normalised cross-correlations of the waveforms are averaged over the clips. If their peak is low, as with
    vocoders, the log energy in windows of 10 ms is correlated instead, to the millisecond. If that peak is low too, the
    delay is 0.

    Args:
        pairs: reference and decoded clip, each (samples,) at 16 kHz.
    """
    pairs = list(pairs)
    if not pairs:
        return 0
    longest = int(LONGEST_DELAY * SAMPLING_RATE)
    correlation = np.mean([cross_correlation(*pair, longest) for pair in pairs], axis=0)
    if correlation.max() >= KEPT_PHASE:
        return int(correlation.argmax()) - longest
    longest //= ENVELOPE_STEP
    levels = ((log_energy(reference), log_energy(decoded)) for reference, decoded in pairs)
    correlation = np.mean([cross_correlation(*pair, longest) for pair in levels], axis=0)
    if correlation.max() < KEPT_LEVEL:
        return 0
    return (int(correlation.argmax()) - longest) * ENVELOPE_STEP


def cross_correlation(reference: np.ndarray, decoded: np.ndarray, longest: int) -> np.ndarray:
    """Returns correlation coefficients at delays from -longest to +longest: (2 * longest + 1,)."""
    from scipy.signal import correlate

    reference, decoded = reference - reference.mean(), decoded - decoded.mean()
    scale = np.sqrt(np.square(reference).sum() * np.square(decoded).sum())
    # Padded so that every delay exists; delay 0 then lies at the end of the padded reference.
    padded = np.pad(decoded, (longest, max(longest + len(reference) - len(decoded), 0)))
    correlation = correlate(padded, reference, mode="valid", method="fft")[: 2 * longest + 1]
    return correlation / max(scale, 1e-12)


def log_energy(audio: np.ndarray) -> np.ndarray:
    """Returns the natural log of the energy in Hann windows of 10 ms, a millisecond apart: (samples,) -> (steps,)."""
    window = np.hanning(10 * ENVELOPE_STEP)
    return np.log(np.convolve(np.square(audio), window / window.sum(), mode="same")[::ENVELOPE_STEP] + 1e-5)


def align(decoded: np.ndarray, delay: int, samples: int) -> np.ndarray:
    """Drops a delay and cuts or zero-pads to a number of samples."""
    decoded = decoded[delay:] if delay >= 0 else np.pad(decoded, (-delay, 0))
    return np.pad(decoded[:samples], (0, max(samples - len(decoded), 0)))
