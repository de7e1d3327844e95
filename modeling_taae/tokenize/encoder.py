"""Encodes a corpus unit by unit, in this process and in each worker of a Ray cluster.

A unit becomes a [`Part`], which does not depend on the units that are encoded together.
"""

import copy
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch

from ..batching import encode_clips, mapped_ahead, read_ahead
from ..codec import Codec
from ..data.decode import decode_row, fault
from ..data.row import Row
from ..data.sources import Corpus
from ..errors import TaaeInputError, one_line
from ..feature_extraction_taae import normalize_loudness
from .parts import part_bytes
from .units import Clip, Place, UnitQueue

Item = TypeVar("Item")

# Units that are encoded as one stream of clips, by type of device. More units fill GPU blocks better, but a killed run
# loses all unfinished ones.
UNITS_TOGETHER = {"cpu": 1}
DEFAULT_UNITS_TOGETHER = 64


@dataclass(frozen=True)
class Encoding:
    """The settings of an encoding: those that a clip's tokens depend on, and those that only change its speed.

    Args:
        bottleneck: a preset's name, `"native"`, or stages.
        dtype: the model's dtype, as torch spells it.
        shortest: minimum duration in seconds; shorter clips are rejected.
        readers: the number of threads that read and decode audio.
        units_together: the number of units encoded as one stream of clips; None for 1 on a CPU, else 64.
        compile: whether the model's layers are compiled.
        block_seconds: see [`encode_clips`].
    """

    bottleneck: str | list | tuple
    dtype: str
    shortest: float
    readers: int
    units_together: int | None = None
    compile: bool = False
    block_seconds: float | None = None

    def stream_units(self, device: str) -> int:
        """Returns the number of units in a stream of clips on a type of device."""
        return self.units_together or UNITS_TOGETHER.get(device, DEFAULT_UNITS_TOGETHER)


@dataclass(frozen=True)
class Part:
    """An encoded unit.

    Args:
        unit: the unit's number.
        content: a Parquet file, as [`part_bytes`] makes it.
        seconds: the encoded audio, in seconds.
        worked: the time that this part took, in seconds.
        waited: the part of that time in which the model waited for audio, in seconds.
    """

    unit: int
    content: bytes
    seconds: float
    worked: float
    waited: float


class Stopwatch:
    """Measures the time since the last part, and how much of it was spent waiting, in seconds."""

    def __init__(self) -> None:
        self.start, self.waited = time.perf_counter(), 0.0

    def lap(self) -> tuple[float, float]:
        """Returns the time and the waiting time since the last lap, and begins the next lap."""
        worked, waited = time.perf_counter() - self.start, self.waited
        self.start, self.waited = time.perf_counter(), 0.0
        return worked, waited

    def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """Passes items on, and counts the time until each one arrives as waiting."""
        end = cast(Item, object())
        while True:
            start = time.perf_counter()
            item = next(items, end)
            self.waited += time.perf_counter() - start
            if item is end:
                return
            yield item


class CorpusEncoder:
    """Encodes units of a corpus.

    Args:
        corpus: the corpus.
        encoding: the settings.
        codec: model and feature extractor; they are not changed.
    """

    def __init__(self, corpus: Corpus, encoding: Encoding, codec: Codec):
        self.corpus, self.encoding = corpus, encoding
        self.loudness = codec.extractor.target_loudness
        self.codec = in_dtype(codec, encoding.dtype).without_loudness()
        if encoding.compile:
            self.codec = self.codec.compiled()
        self.sampling_rate = codec.model.config.sampling_rate
        self.tokens_per_frame = len(codec.model.bottleneck(encoding.bottleneck).codebook_sizes)

    def parts(self, units: list[int]) -> Iterator[Part]:
        """Yields the units as parts, each as soon as it is complete.

        Raises:
            TaaeInputError: if a source can no longer be read, or the machine cannot encode a clip.
        """
        together = self.encoding.stream_units(self.codec.model.device.type)
        for first in range(0, len(units), together):
            yield from self._stream(units[first : first + together])

    def _stream(self, units: list[int]) -> Iterator[Part]:
        queue, watch, encoding = UnitQueue(), Stopwatch(), self.encoding

        def reject(place: Place, error: Exception) -> None:
            queue.reject(place, self._reason(queue.clip(place).row, error))

        clips = self._clips(units, queue, watch)
        for place, encoded in encode_clips(self.codec, clips, encoding.bottleneck, reject, encoding.block_seconds):
            queue.resolve(place, encoded.audio_codes)
            yield from self._finished(queue, watch)
        yield from self._finished(queue, watch)

    def _clips(self, units: list[int], queue: UnitQueue, watch: Stopwatch) -> Iterator[tuple[Place, np.ndarray]]:
        """Puts the clips of the units into the queue, and yields the place and the audio of those that have audio."""
        for unit, clip in watch.waiting(read_ahead(self._read_units(units))):
            if clip is None:
                queue.close(unit)
                continue
            place = queue.add(unit, clip)
            if clip.audio is not None:
                audio, clip.audio = clip.audio, None
                yield place, audio

    def _read_units(self, units: list[int]) -> Iterator[tuple[int, Clip | None]]:
        """Yields the clips of the units, decoded in threads, each with its unit; None follows a unit's last clip."""

        def rows() -> Iterator[tuple[int, Row | None]]:
            for unit in units:
                yield from ((unit, row) for row in self.corpus.rows(unit))
                yield unit, None

        def read(item: tuple[int, Row | None]) -> tuple[int, Clip | None]:
            unit, row = item
            return unit, None if row is None else self._read(row)

        with ThreadPoolExecutor(self.encoding.readers) as pool:
            yield from mapped_ahead(pool, read, rows(), 2 * self.encoding.readers)

    def _read(self, row: Row) -> Clip:
        """Returns a row as a clip, with audio of normalised loudness or with the reason why there is none.

        Loudness is normalised in the reading threads, so that the model does not wait for it.
        """
        if row.problem:
            return Clip(row, problem=row.problem)
        try:
            recording, row.audio = decode_row(row, self.sampling_rate), None
        except (TaaeInputError, PermissionError) as error:
            # An error rather than a reject, as in the reader: the file existed a moment ago.
            if isinstance(row.audio, Path) and not os.path.lexists(row.audio):
                raise TaaeInputError(
                    f"{row.audio}: is gone since the run began; restore it, then run the same command again"
                ) from error
            reason = one_line(error).removeprefix(f"{row.id}: ")
            told = reason.startswith(("missing: ", "outside: "))
            return Clip(row, problem=reason if told else f"bad audio: {reason}")
        except OSError as error:  # a reject would be permanent, and the disk may be away only for a moment
            raise TaaeInputError(
                f"{row.id}: cannot be read ({error.strerror or error}); fix that, then run the same command again"
            ) from error
        audio = recording.audio
        if problem := fault(audio, self.sampling_rate, self.encoding.shortest):
            return Clip(row, problem=problem)
        if self.loudness is not None:
            audio = normalize_loudness(audio, self.sampling_rate, self.loudness)
        return Clip(row, audio, len(audio), averaged=recording.averaged)

    def _reason(self, row: Row, error: Exception) -> str:
        """Returns why the model rejected a clip; raises if the machine is the cause, as with too little memory."""
        if not isinstance(error, ValueError):
            raise TaaeInputError(
                f"{row.id}: cannot be encoded ({one_line(error)}); fix that, then run the same command again"
            ) from error
        return f"bad audio: {one_line(error)}"

    def _finished(self, queue: UnitQueue, watch: Stopwatch) -> Iterator[Part]:
        for unit, clips in queue.take_complete():
            content = part_bytes(clips, self.corpus.schema(unit), self.tokens_per_frame, self.sampling_rate)
            seconds = sum(clip.samples for clip in clips) / self.sampling_rate
            yield Part(unit, content, seconds, *watch.lap())


def in_dtype(codec: Codec, dtype: str) -> Codec:
    """Returns a codec whose model computes in a dtype: the given one if it does already, else a copy."""
    wanted = getattr(torch, dtype)
    return codec if codec.model.dtype == wanted else replace(codec, model=copy.deepcopy(codec.model).to(wanted))
