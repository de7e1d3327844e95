"""A corpus to tokens, unit by unit: here, and in each worker of a Ray cluster.

A unit becomes a part: a small Parquet file of the unit's rows in their order, with tokens, or with the reason why there
are none. Which units are encoded together makes no difference to it.
"""

import io
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from ..batching import encode_clips, read_ahead
from ..codec import Codec
from ..data.readers import Row
from ..data.sources import Corpus
from ..data.utterances import decode_cell, fault
from ..errors import TaaeInputError, one_line
from ..feature_extraction_taae import normalize_loudness

# Columns of a part that the corpus does not get: what the row was read from, and why it has no tokens.
SOURCE, PROBLEM = "__source__", "__problem__"
OUR_COLUMNS = ("id", "codes", "frames", "duration")
# Units that are encoded as one stream of clips, by type of device. On a GPU a clip may wait for others of its length
# until the stream is at its end, and with it its unit, which would be lost if the run was killed meanwhile.
UNITS_TOGETHER = {"cpu": 1}
DEFAULT_UNITS_TOGETHER = 64


@dataclass(frozen=True)
class Encoding:
    """How to encode.

    Args:
        bottleneck: a preset's name, `"native"`, or stages.
        dtype: of the model, as torch spells it.
        shortest: clips below so many seconds are rejected.
        readers: threads that read and decode audio.
    """

    bottleneck: str | list
    dtype: str
    shortest: float
    readers: int


@dataclass(frozen=True)
class Part:
    """A unit, encoded.

    Args:
        unit: its number.
        content: a Parquet file (see [`part_table`]).
        seconds: of audio that was encoded.
        worked: seconds that this part took.
        waited: how many of them the model waited for audio.
    """

    unit: int
    content: bytes
    seconds: float
    worked: float
    waited: float


@dataclass
class Clip:
    """A row on its way: first with audio or a problem, then with tokens.

    Args:
        row: the row.
        audio: (samples,) float32, until it is encoded.
        samples: its length.
        problem: why there is none.
        codes: (tokens_per_frame, frames) int64, as soon as there are any.
    """

    row: Row
    audio: np.ndarray | None = None
    samples: int = 0
    problem: str = ""
    codes: np.ndarray | None = None


@dataclass
class UnitInWork:
    """The clips of a unit so far, how many of them wait for tokens, and whether there are more to come."""

    clips: list[Clip] = field(default_factory=list)
    waiting: int = 0
    complete: bool = False


class CorpusEncoder:
    """Encodes units of a corpus.

    Args:
        corpus: what to encode.
        encoding: how.
        codec: model and feature extractor, for nobody else to use.
    """

    def __init__(self, corpus: Corpus, encoding: Encoding, codec: Codec):
        self.corpus, self.encoding, self.codec = corpus, encoding, codec
        codec.model.to(getattr(torch, encoding.dtype))
        # The threads that read normalise as well, so that the model does not wait for it.
        self.loudness, codec.extractor.target_loudness = codec.extractor.target_loudness, None
        self.sampling_rate = codec.model.config.sampling_rate
        self.tokens_per_frame = len(codec.model.bottleneck(encoding.bottleneck).codebook_sizes)
        self.waited = 0.0

    def parts(self, units: list[int]) -> Iterator[Part]:
        """The units as parts, each as soon as it is complete.

        Raises:
            TaaeInputError: if a source cannot be read any more, or the machine cannot encode a clip.
        """
        together = units_together(self.codec.model.device.type)
        for first in range(0, len(units), together):
            yield from self._stream(units[first : first + together])

    def _stream(self, units: list[int]) -> Iterator[Part]:
        at_work: dict[int, UnitInWork] = {}
        start, self.waited = time.perf_counter(), 0.0

        def reject(place: tuple[int, int], error: Exception) -> None:
            unit, number = place
            clip = at_work[unit].clips[number]
            if not isinstance(error, ValueError):  # the machine is to blame, such as for too little memory
                raise TaaeInputError(
                    f"{clip.row.id}: cannot be encoded ({one_line(error)}); see to it, then run the same command again"
                ) from error
            clip.problem, clip.samples = f"bad audio: {one_line(error)}", 0
            at_work[unit].waiting -= 1

        audio = self._audio(units, at_work)
        for (unit, number), encoded in encode_clips(self.codec, audio, self.encoding.bottleneck, reject):
            at_work[unit].clips[number].codes = encoded.audio_codes
            at_work[unit].waiting -= 1
            for done in [unit for unit, work in at_work.items() if work.complete and not work.waiting]:
                yield self._part(done, at_work.pop(done).clips, start)
                start, self.waited = time.perf_counter(), 0.0
        for unit, work in at_work.items():
            yield self._part(unit, work.clips, start)
            start, self.waited = time.perf_counter(), 0.0

    def _audio(self, units: Iterable[int], at_work: dict[int, UnitInWork]) -> Iterator[tuple]:
        """The audio of all units, each clip with its unit and its place in it; `at_work` is kept up to date."""
        clips = read_ahead(in_threads(self._prepare, self._rows(units), self.encoding.readers))
        while True:
            start = time.perf_counter()
            unit, clip = next(clips, (None, None))
            self.waited += time.perf_counter() - start
            if unit is None:
                return
            work = at_work.setdefault(unit, UnitInWork())
            if clip is None:
                work.complete = True
                continue
            work.clips.append(clip)
            if clip.audio is not None:
                work.waiting += 1
                audio, clip.audio = clip.audio, None
                yield (unit, len(work.clips) - 1), audio

    def _rows(self, units: Iterable[int]) -> Iterator[tuple[int, Row | None]]:
        for unit in units:
            for row in self.corpus.rows(unit):
                yield unit, row
            yield unit, None

    def _prepare(self, item: tuple[int, Row | None]) -> tuple[int, Clip | None]:
        unit, row = item
        return unit, None if row is None else self._read(row)

    def _read(self, row: Row) -> Clip:
        if row.problem:
            return Clip(row, problem=row.problem)
        try:
            audio, row.audio = decode_cell(row.audio, row.id, self.sampling_rate, row.origin), None
        except (TaaeInputError, PermissionError) as error:
            reason = one_line(error).removeprefix(f"{row.id}: ")
            told = reason.startswith(("missing: ", "outside: "))
            return Clip(row, problem=reason if told else f"bad audio: {reason}")
        except OSError as error:  # a reject for good, perhaps for a disk that is away for a moment
            raise TaaeInputError(
                f"{row.id}: cannot be read ({error.strerror or error}); see to it, then run the same command again"
            ) from error
        if problem := fault(audio, self.sampling_rate, self.encoding.shortest):
            return Clip(row, problem=problem)
        if self.loudness is not None:
            audio = normalize_loudness(audio, self.sampling_rate, self.loudness)
        return Clip(row, audio, len(audio))

    def _part(self, unit: int, clips: list[Clip], start: float) -> Part:
        table = part_table(clips, self.corpus.schema(unit), self.tokens_per_frame, self.sampling_rate)
        content = io.BytesIO()
        parquet.write_table(table, content, compression="zstd")
        seconds = sum(clip.samples for clip in clips) / self.sampling_rate
        return Part(unit, content.getvalue(), seconds, time.perf_counter() - start, self.waited)


def units_together(device: str) -> int:
    """How many units are encoded as one stream of clips, on a type of device."""
    return UNITS_TOGETHER.get(device, DEFAULT_UNITS_TOGETHER)


def in_threads(function: Callable[[Any], Any], items: Iterable, threads: int) -> Iterator:
    """As `map`, with a few items at work in threads."""
    with ThreadPoolExecutor(threads) as pool:
        at_work = deque()
        for item in items:
            at_work.append(pool.submit(function, item))
            if len(at_work) > 2 * threads:
                yield at_work.popleft().result()
        while at_work:
            yield at_work.popleft().result()


def part_table(clips: list[Clip], schema: pa.Schema, tokens_per_frame: int, sampling_rate: int) -> pa.Table:
    """A part: the tokens, what the rows were read from, why there are none, and the source's own columns.

    Args:
        clips: of the unit, in order.
        schema: types of columns, where they are known.
        tokens_per_frame: how many tokens a frame has.
        sampling_rate: in Hz.
    """
    names = dict.fromkeys([*schema.names, *(name for clip in clips for name in clip.row.columns)])
    columns = {
        SOURCE: pa.array([clip.row.source for clip in clips], pa.string()),
        PROBLEM: pa.array([clip.problem for clip in clips], pa.string()),
        "id": pa.array([clip.row.id for clip in clips], pa.string()),
        "codes": codes_array([clip.codes for clip in clips], tokens_per_frame),
        "frames": pa.array([0 if clip.codes is None else clip.codes.shape[1] for clip in clips], pa.int64()),
        "duration": pa.array([clip.samples / sampling_rate for clip in clips], pa.float64()),
    }
    for name in names:
        if name not in columns:
            known = schema.field(name).type if name in schema.names else None
            columns[name] = column_array([clip.row.columns.get(name) for clip in clips], known)
    return pa.table(columns)


def codes_array(codes: list[np.ndarray | None], tokens_per_frame: int) -> pa.Array:
    """Tokens of clips, each (tokens_per_frame, frames) int64 or None, as lists of frames of tokens."""
    frames = [np.zeros((0, tokens_per_frame), np.int64) if clip is None else clip.T for clip in codes]
    tokens = pa.array(np.concatenate([*frames, np.zeros((0, tokens_per_frame), np.int64)]).ravel())
    offsets = np.cumsum([0, *map(len, frames)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(tokens, tokens_per_frame))


def column_array(values: list, known: pa.DataType | None) -> pa.Array:
    """A column of the source. What has no common type becomes text."""
    try:
        return pa.array(values, known)
    except (pa.ArrowException, OverflowError):
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(texts, pa.string())
