"""The results of an evaluation as typed values, with their form in results.json and rows.jsonl."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import TaaeInputError, one_line
from ..records import read_fields

FORMAT = 1
# Significant digits of written figures, more than any figure is accurate to.
SIGNIFICANT_DIGITS = 7

# A number; a count and its reference, such as errors and words; None if a metric is not defined.
Score = float | list[int] | None


@dataclass(frozen=True)
class Mean:
    """A mean over utterances with its interval.

    Args:
        mean: the mean; None if no utterance has a value.
        low, high: bounds of the interval; None for fewer than two values.
        n: number of values.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0


@dataclass(frozen=True)
class MetricFacts:
    """Facts about a metric for readers; `better` is "higher" or "lower"."""

    label: str
    unit: str
    better: str
    decimals: int
    definition: str


@dataclass(frozen=True)
class Group:
    """Means over the utterances that have one value of a fact, such as one language."""

    utterances: int
    metrics: dict[str, Mean]


@dataclass(frozen=True)
class Speed:
    """Seconds of work per second of speech, and the seconds of the clip that was measured."""

    encode_rtf: float
    decode_rtf: float
    seconds: float


@dataclass(frozen=True)
class SystemSummary:
    """One codec's figures.

    Args:
        name: the codec's name.
        nominal_bit_rate: the bit rate that its authors state, in bit/s.
        payload_bit_rate, file_bit_rate: all bits over all seconds, in bit/s; None if no clip was encoded.
        delay_samples: the delay that was removed.
        metrics: means by the metric's name, over utterances as they were recorded.
        silence_level: level of its output for digital silence, in dB of full scale; None if it rejects silence.
        by: groups of utterances by fact and value.
        facts: the codec's facts, including `kind` (see [`System`]).
        tokens: statistics of its tokens, if it has tokens (see [`token_statistics`]).
        speed: its speed, if that was measured.
    """

    name: str
    nominal_bit_rate: float
    payload_bit_rate: float | None
    file_bit_rate: float | None
    delay_samples: int
    metrics: dict[str, Mean]
    silence_level: float | None = None
    by: dict[str, dict[str, Group]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] | None = None
    speed: Speed | None = None

    @property
    def kind(self) -> str:
        """The family of codecs: TAAE, Opus, …"""
        return self.facts["kind"]

    @property
    def bottleneck(self) -> str | None:
        """The bottleneck of a TAAE model, as text."""
        return self.facts.get("bottleneck")

    def groups(self, fact: str) -> dict[str, Group]:
        """Returns the groups of a fact, empty if the data do not give it."""
        return self.by.get(fact, {})

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of results.json, which merges the codec's facts with its figures."""
        content = asdict(self)
        facts = content.pop("facts")
        if self.tokens is None:
            del content["tokens"]
        if self.speed is None:
            del content["speed"]
        return {"name": content.pop("name"), **facts, **content}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads an entry of results.json."""
        known = {each.name for each in fields(cls)} - {"facts"}
        # Earlier releases did not write these.
        figures = {"payload_bit_rate": None, "file_bit_rate": None, "delay_samples": 0}
        figures |= {name: value for name, value in content.items() if name in known}
        facts = {name: value for name, value in content.items() if name not in known}
        return cls(**read_fields(cls, figures), facts=facts)


@dataclass(frozen=True)
class Originals:
    """Scores of the recordings themselves, for comparison with codecs.

    Args:
        metrics: means of the metrics without a reference.
        same_speaker, other_speakers: similarity of two recordings of one person, and of two people, with the number of
            pairs; None if speakers are unknown or not judged.
    """

    metrics: dict[str, Mean]
    same_speaker: Mean | None = None
    other_speakers: Mean | None = None


@dataclass(frozen=True)
class Share:
    """A part of the test set: its utterances, seconds and speakers; `speakers` is 0 if they are unknown."""

    utterances: int
    seconds: float
    speakers: int


@dataclass(frozen=True)
class DataSummary:
    """The data of an evaluation.

    Args:
        sources: the data as the user named them.
        utterances: number of utterances, scored or not.
        scored: number of scored utterances as recorded.
        seconds: their total duration.
        added: sounds that were mixed in under conditions, with the names of their files.
        parts: scored parts of the data, by fact (`source`, `language`, `gender`, `condition`) and value.
        speakers: number of speakers, 0 if they are unknown.
    """

    sources: list[str]
    utterances: int
    scored: int
    seconds: float
    added: dict[str, list[str]] = field(default_factory=dict)
    parts: dict[str, dict[str, Share]] = field(default_factory=dict)
    speakers: int = 0


@dataclass(frozen=True)
class Reference:
    """The reference of decoded clips: its rate in Hz and its loudness in LUFS, None for each clip's own."""

    sampling_rate: int
    target_loudness: float | None


@dataclass(frozen=True)
class Intervals:
    """The method of the intervals of means."""

    method: str
    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Problem:
    """An utterance that was not scored, or with a reservation; `system` is the codec concerned, if any."""

    id: str
    problem: str
    system: str | None = None

    def to_json(self) -> dict[str, str]:
        """Returns the entry of results.json."""
        system = {} if self.system is None else {"system": self.system}
        return {"id": self.id, **system, "problem": self.problem}


@dataclass
class Row:
    """One utterance through one codec.

    Args:
        id: the utterance's id.
        system: the codec's name.
        seconds: the clip's length.
        facts: the utterance's language, source, speaker, text, …, as far as they are known.
        metrics: scores by the metric's name.
        payload_bytes, file_bytes: sizes of the encoded clip; None if the codec failed.
        codes: tokens, (tokens_per_frame, frames), if the codec has them.
        error: the reason why the codec failed; empty if it did not.
        embedding: the speaker embedding of an original, if a speaker judge scored it.
        key: a hash of everything that the row depends on.
    """

    id: str
    system: str
    seconds: float
    facts: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Score] = field(default_factory=dict)
    payload_bytes: int | None = None
    file_bytes: int | None = None
    codes: list[list[int]] | None = None
    error: str = ""
    embedding: list[float] | None = None
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the line of rows.jsonl, which merges the utterance's facts with the figures."""
        content: dict[str, Any] = {"key": self.key, "id": self.id, "system": self.system}
        content |= {**self.facts, "seconds": self.seconds}
        known = {name: getattr(self, name) for name in ("payload_bytes", "file_bytes", "codes", "embedding")}
        content |= {name: value for name, value in known.items() if value is not None}
        return content | {"metrics": self.metrics} | ({"error": self.error} if self.error else {})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads a line of rows.jsonl.

        Raises:
            TypeError: if it lacks a value.
        """
        known = {each.name for each in fields(cls)} - {"facts"}
        facts = {name: value for name, value in content.items() if name not in known}
        return cls(**{name: value for name, value in content.items() if name in known}, facts=facts)


@dataclass(frozen=True)
class Sample:
    """One utterance to listen to.

    Args:
        id: the utterance's id.
        facts: its language, source, speaker and text, as far as they are known.
        clips: (samples,) float32 at 16 kHz by codec, the reference first; without codecs that failed.
    """

    id: str
    facts: dict[str, str]
    clips: dict[str, np.ndarray]


@dataclass
class Results:
    """The results of an evaluation.

    Args:
        data: the test set.
        reference: the reference of decoded clips.
        metrics: facts of the metrics by name, in the order of the tables.
        judges: facts about the networks that judged.
        intervals: the method of the intervals.
        systems: figures of the codecs, in order.
        problems: utterances that were not scored, or with a reservation.
        environment: the machine and the versions of packages.
        originals: scores of the recordings themselves, if a metric needs no reference.
        rows: one row per utterance and codec, by the codec's name; not in results.json.
        samples: utterances to listen to; not in results.json.
    """

    data: DataSummary
    reference: Reference
    metrics: dict[str, MetricFacts]
    judges: dict[str, Any]
    intervals: Intervals
    systems: list[SystemSummary]
    problems: list[Problem]
    environment: dict[str, Any]
    originals: Originals | None = None
    rows: dict[str, list[Row]] = field(default_factory=dict, repr=False)
    samples: list[Sample] = field(default_factory=list, repr=False)

    @property
    def model_identities(self) -> set[str]:
        """The identities of the evaluated TAAE models."""
        return {system.facts["model_identity"] for system in self.systems if "model_identity" in system.facts}

    def to_json(self) -> dict[str, Any]:
        """Returns the content of results.json."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "data": asdict(self.data),
            "reference": asdict(self.reference),
            "metrics": {name: asdict(facts) for name, facts in self.metrics.items()},
            "judges": self.judges,
            "intervals": asdict(self.intervals),
            "systems": [system.to_json() for system in self.systems],
            **({} if self.originals is None else {"originals": asdict(self.originals)}),
            "problems": [problem.to_json() for problem in self.problems],
            "environment": self.environment,
        }
        return rounded(content)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads the content of results.json, of this release or an earlier one.

        Raises:
            KeyError, TypeError: if it has another structure.
        """
        return cls(**read_fields(cls, {"judges": {}, "problems": [], "environment": {}, **content}))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a results.json.

        Raises:
            TaaeInputError: if it is missing, damaged, or no results.json.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise TaaeInputError(f"{path}: cannot be read ({error.strerror}); make it with `taae evaluate`") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TaaeInputError(
                f"{path}: is not what `taae evaluate` writes ({one_line(error)}); evaluate again"
            ) from error


def rounded(tree: Any) -> Any:
    """Rounds every float in a JSON value to a fixed number of significant digits."""
    if isinstance(tree, dict):
        return {name: rounded(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [rounded(value) for value in tree]
    return float(f"{tree:.{SIGNIFICANT_DIGITS}g}") if isinstance(tree, float) else tree


def iterate_rows(path: Path) -> Iterator[Row]:
    """Reads the rows of a rows.jsonl that can be read; a line that an interruption cut short is left out."""
    for line in path.read_bytes().split(b"\n"):
        try:
            yield Row.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def finite(value: float) -> float | None:
    """Returns a score as JSON can hold it: None in place of what is not a finite number."""
    return value if math.isfinite(value) else None
