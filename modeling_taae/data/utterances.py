"""Decodes the rows of a corpus to utterances, for evaluation and benchmarks.

An utterance that cannot be used is yielded too, with its problem.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from pyarrow import ArrowException, parquet

from ..errors import TaaeInputError, one_line
from ..feature_extraction_taae import GATING_BLOCK
from .decode import decode_row, fault
from .row import Row
from .sources import Corpus

# Seconds by which a duration column may be off before the file counts as mismatched.
DURATION_TOLERANCE = 0.1


@dataclass
class Utterance:
    """One recording.

    Args:
        id: the recording's name, unique within the data.
        audio: (samples,) float32, or None if it cannot be scored.
        problem: a problem of the recording, empty if there is none; if there is audio, it can be scored nevertheless.
        facts: language, source, speaker and text, as far as the data give them.
    """

    id: str
    audio: np.ndarray | None
    problem: str = ""
    facts: dict[str, str] = field(default_factory=dict)


class Utterances:
    """The utterances of one or more sources, in order; can be iterated more than once.

    Args:
        sources: see [`Corpus`].
        sampling_rate: the rate to decode to, in Hz.
        limit: the number of utterances to take from the start; None for all.
        split: the split of Hub data sets, and of what `save_to_disk` wrote.
        subset: the subset of Hub data sets that have several.
        audio_column: the column with the audio, of tables and Hub data sets.
        transcripts: a Parquet file with columns `id` and `text`, for utterances without a text in the data.
        strict: whether recordings that are silent or too short to score are yielded without their audio.
        audio_root, channel: see [`Corpus`].

    Attributes:
        averaged: recordings whose channels were averaged, as far as they were gone through last.

    Raises:
        TaaeInputError: if a source is empty.
    """

    def __init__(
        self,
        sources: list[str],
        sampling_rate: int = 16_000,
        limit: int | None = None,
        split: str = "test",
        subset: str | None = None,
        audio_column: str = "audio",
        transcripts: str | None = None,
        strict: bool = True,
        audio_root: str | None = None,
        channel: int | None = None,
    ):
        self.sampling_rate, self.limit, self.strict, self.averaged = sampling_rate, limit, strict, 0
        self.texts = {} if transcripts is None else read_transcripts(transcripts)
        self.corpus = Corpus(
            sources,
            audio_column,
            subset=subset,
            hub_split=split,
            audio_root=audio_root,
            channel=channel,
            names_by_source=True,
        )

    @property
    def notes(self) -> list[str]:
        """Lines about files of the sources that are not read."""
        return self.corpus.notes

    def __len__(self) -> int:
        """Returns the number of utterances, 0 if it is not known before reading."""
        total = self.corpus.known_rows or 0
        return total if self.limit is None else min(total, self.limit)

    def __iter__(self) -> Iterator[Utterance]:
        seen: Counter[str] = Counter()
        self.averaged = 0
        for number, row in enumerate(islice(self.corpus, self.limit)):
            facts = row.facts
            facts.pop("id", None)
            name = f"{number:06d}" if row.is_numbered else row.id
            if name in self.texts:
                facts.setdefault("text", self.texts[name])
            seen[name] += 1
            yield self._utterance(name if seen[name] == 1 else f"{name}#{seen[name]}", row, facts)

    def _utterance(self, name: str, row: Row, facts: dict[str, str]) -> Utterance:
        try:
            recording = decode_row(row, self.sampling_rate)
        except (TaaeInputError, OSError) as error:
            return Utterance(name, None, one_line(error).removeprefix(f"{row.id}: "), facts)
        audio, self.averaged = recording.audio, self.averaged + recording.averaged
        if not self.strict:
            return Utterance(name, audio, "", facts)
        if problem := fault(audio, self.sampling_rate, GATING_BLOCK):
            return Utterance(name, None, problem, facts)
        seconds, promised, problem = len(audio) / self.sampling_rate, row.columns.get("duration"), ""
        if isinstance(promised, float | int) and abs(promised - seconds) > DURATION_TOLERANCE:
            problem = f"mismatched: {seconds:.2f} s long, but its duration column says {promised:.2f} s; scored"
        return Utterance(name, audio, problem, facts)


def read_transcripts(table: str, text_column: str = "text") -> dict[str, str]:
    """Reads texts by id from a Parquet file.

    Raises:
        TaaeInputError: if the file is no Parquet file with these columns.
    """
    try:
        content = parquet.read_table(table, columns=["id", text_column])
        pairs = zip(*(content[name].to_pylist() for name in ("id", text_column)), strict=True)
        return {str(name): str(text) for name, text in pairs if text}
    except (OSError, KeyError, ArrowException) as error:
        raise TaaeInputError(
            f"{table}: cannot be read ({one_line(error)}); expected a Parquet file with columns id and {text_column}"
        ) from error
