"""Converts the samples of a file, block by block, to one channel, one part and one sampling rate."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import soxr

from ..errors import TaaeInputError

LEAST_RATE, GREATEST_RATE = 1_000, 1_000_000  # in Hz
# Samples of the longest recording, 37 hours at 16 kHz. A small crafted file could expand to any length.
MOST_SAMPLES = 1 << 31
# Channels cancel each other out, because one is inverted, if their mean has less than this share of their power.
CANCELLED = 1e-3
# Channels count as equal, apart from lossy compression, if their mean has more than this share of their power.
SAME = 1 - 1e-4
# Seconds by which the end of a part may lie behind the recording's, because lengths in lists are rounded.
TOLERANCE = 0.2

NOTHING = np.zeros(0, dtype=np.float32)
Blocks = Iterator[tuple[np.ndarray, int]]


@dataclass(frozen=True, order=True)
class Span:
    """A part of a recording, from start to end in seconds; an infinite end means the recording's end."""

    start: float
    end: float

    def __str__(self) -> str:
        return "-".join(f"{seconds:.6f}".rstrip("0").rstrip(".") for seconds in (self.start, self.end))


def cut(blocks: Blocks, span: Span, name: str) -> Blocks:
    """Yields the samples of a part: from index `round(start * rate)` up to, but without, `round(end * rate)`.

    Args:
        blocks: blocks (samples, channels) float32, each with its sampling rate in Hz.
        span: the part.
        name: name of the recording in error messages.

    Raises:
        TaaeInputError: if the recording ends before the part does.
    """
    began, position, rate = 0.0, 0, 1  # seconds at an earlier rate, then samples at this one
    for block, block_rate in blocks:
        if block_rate != rate:
            began, position, rate = began + position / rate, 0, block_rate
        first = max(round((span.start - began) * rate) - position, 0)
        last = len(block) if span.end == np.inf else round((span.end - began) * rate) - position
        if first < min(last, len(block)):
            yield block[first:last], rate
        position += len(block)
        if last < len(block):
            return
    seconds = began + position / rate
    if seconds <= span.start or np.inf > span.end > seconds + TOLERANCE:
        raise TaaeInputError(
            f"{name}: ends after {seconds:.2f} s, before the part from {span} s that a list names; correct the list, "
            "or leave offsets out if the files are already cut"
        )


class Mixer:
    """Averages channels, and detects channels that cancel each other out."""

    def __init__(self):
        self.mixed_power, self.powers = 0.0, np.zeros(1)

    def mix(self, blocks: Blocks) -> Blocks:
        """Yields the mean of each block's channels, (samples,) float32, with its sampling rate."""
        for block, rate in blocks:
            mono = block.mean(axis=1)
            if block.shape[1] > 1:
                powers = np.square(block, dtype=np.float64).sum(axis=0)
                self.powers = np.pad(self.powers, (0, max(len(powers) - len(self.powers), 0)))
                self.powers[: len(powers)] += powers
                self.mixed_power += float(np.square(mono, dtype=np.float64).sum())
            yield mono, rate

    @property
    def averaged(self) -> bool:
        """Whether channels that differ were averaged."""
        return self.mixed_power < SAME * float(self.powers.mean())

    @property
    def cancelled(self) -> bool:
        """Whether the channels almost cancel each other out in their mean."""
        return self.mixed_power < CANCELLED * float(self.powers.mean())

    @property
    def loudest(self) -> int:
        """The channel with the greatest power, from 1."""
        return 1 + int(self.powers.argmax())


def one_channel(blocks: Blocks, channel: int, name: str) -> Blocks:
    """Yields one channel of each block, (samples,) float32, with its sampling rate.

    Args:
        blocks: blocks (samples, channels) float32, each with its sampling rate.
        channel: number of the channel, from 1.
        name: name of the recording in error messages.

    Raises:
        TaaeInputError: if there are fewer channels.
    """
    for block, rate in blocks:
        if channel > block.shape[1]:
            channels = f"{block.shape[1]} channel{'s' if block.shape[1] > 1 else ''}"
            raise TaaeInputError(f"{name}: has {channels}; expected at least {channel}, so choose another channel")
        yield block[:, channel - 1], rate


def resample(blocks: Blocks, name: str, sampling_rate: int, most_samples: int = MOST_SAMPLES) -> np.ndarray:
    """Resamples blocks of samples to one rate and joins them.

    Args:
        blocks: blocks (samples,) float32, each with its sampling rate in Hz.
        name: name of the recording in error messages.
        sampling_rate: sampling rate of the result, in Hz.
        most_samples: maximum number of samples of the result.

    Returns:
        (samples,) float32.

    Raises:
        TaaeInputError: if a sampling rate is out of range, or there are more samples.
    """
    parts, length = [NOTHING], 0
    for rate, group in groupby(blocks, key=lambda block: block[1]):
        if not LEAST_RATE <= rate <= GREATEST_RATE:
            raise TaaeInputError(
                f"{name}: has a sampling rate of {rate:,} Hz; expected {LEAST_RATE:,} to {GREATEST_RATE:,} Hz, so "
                "check how it was made"
            )
        for part in _resampled((block for block, _ in group), rate, sampling_rate):
            parts.append(part)
            length += len(part)
            if length > most_samples:
                seconds = most_samples / sampling_rate
                raise TaaeInputError(f"{name}: is longer than {seconds:,.0f} s; cut it into shorter recordings")
    return np.concatenate(parts)


def _resampled(blocks: Iterator[np.ndarray], rate: int, sampling_rate: int) -> Iterator[np.ndarray]:
    """Resamples blocks of one rate as one signal."""
    if rate == sampling_rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32")
    yield from map(resampler.resample_chunk, blocks)
    yield resampler.resample_chunk(NOTHING, last=True)
