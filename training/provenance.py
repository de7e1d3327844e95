"""A model's training data: hours, speakers and licences by source, including those of the model that it started from.

They are written beside the model as `training_data.json`, and shown in its card.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard
from transformers.utils import cached_file

from modeling_taae.codec import model_name
from modeling_taae.configuration_taae import NAMED_SIZES
from modeling_taae.data.row import known_columns
from modeling_taae.data.sources import matching_paths
from modeling_taae.records import read_fields
from training.data import TrainingCrops
from training.model import start_of
from training.recipe import CorpusConfig, Recipe

TRAINING_DATA = "training_data.json"
NO_LANGUAGE = "zxx"  # ISO 639: no linguistic content


@dataclass
class SpeechSource:
    """A source of recordings.

    Args:
        name: its name in its rows, else its corpus.
        license: its licence in its rows; empty if they have none.
        languages: language codes, the most spoken first.
        utterances: number of recordings.
        hours: total duration in hours.
        speakers: number of known speakers.
        attribution: the text that its licence requires; empty if it is not known.
    """

    name: str
    license: str = ""
    languages: list[str] = field(default_factory=list)
    utterances: int = 0
    hours: float = 0.0
    speakers: int = 0
    attribution: str = ""


@dataclass
class BaseModel:
    """The model that a training started from.

    Args:
        name: its name on the Hub, or that of its folder.
        license: its weights' licence, as an identifier of the Hub; empty if it is not known.
        data: its training data, if they are known.
    """

    name: str
    license: str = ""
    data: "TrainingData | None" = None


@dataclass
class TrainingData:
    """All speech that a model was trained on.

    Args:
        languages: hours by language.
        sources: sources of the model's own training, the longest first.
        base: the model that it started from; None if it was trained from scratch.
        computed_in: precision of the training's activations, with the reason; empty if it is not known.
    """

    languages: dict[str, float] = field(default_factory=dict)
    sources: list[SpeechSource] = field(default_factory=list)
    base: BaseModel | None = None
    computed_in: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Reads plain values, also those of `make provenance`, which have no base."""
        return cls(**read_fields(cls, values))

    def bases(self) -> Iterator[BaseModel]:
        """Yields the model that this one started from, then that model's own base, and so on."""
        base = self.base
        while base is not None:
            yield base
            base = base.data.base if base.data is not None else None


def training_data(recipe: Recipe, crops: TrainingCrops | None, sampling_rate: int, computed_in: str) -> TrainingData:
    """Collects the training data of a run.

    Args:
        recipe: the run's recipe.
        crops: the run's decoded corpora; None for streams, of which only the names are known.
        sampling_rate: rate of the decoded corpora, in Hz.
        computed_in: precision of activations, with the reason.
    """
    found: dict[str, SpeechSource] = {}
    speakers: dict[str, set[str]] = defaultdict(set)
    spoken: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for corpus, columns, seconds in told_rows(recipe.data.corpora, crops, sampling_rate):
        facts, hours = known_columns(columns), seconds / 3600
        name = facts.get("source", corpus.source)
        source = found.setdefault(name, SpeechSource(name, str(columns.get("license") or "")))
        source.utterances, source.hours = source.utterances + 1, source.hours + hours
        if speaker := facts.get("speaker"):
            speakers[name].add(speaker)
        if (language := facts.get("language")) and language != NO_LANGUAGE:
            spoken[name][language] += hours
    attributions = dict(attributions_beside(recipe.data.corpora))
    for name, source in found.items():
        source.languages = longest_first(spoken[name])
        source.speakers, source.hours = len(speakers[name]), round(source.hours, 4)
        source.attribution = attributions.get(name, "")
    unseen = [SpeechSource(corpus.source) for corpus in recipe.data.corpora] if crops is None else []
    sources = sorted(found.values(), key=lambda source: -source.hours) + unseen
    languages = {language for by_language in spoken.values() for language in by_language}
    hours_of = {each: round(sum(hours.get(each, 0.0) for hours in spoken.values()), 4) for each in languages}
    return TrainingData(
        {language: hours_of[language] for language in longest_first(hours_of)}, sources, base_model(recipe), computed_in
    )


def longest_first(hours: dict[str, float]) -> list[str]:
    """Returns names sorted by hours, the longest first."""
    return sorted(hours, key=lambda name: (-hours[name], name))


def told_rows(
    corpora: list[CorpusConfig], crops: TrainingCrops | None, sampling_rate: int
) -> Iterator[tuple[CorpusConfig, dict[str, Any], float]]:
    """Yields the corpus, the columns and the seconds of each training recording."""
    for corpus, decoded in zip(corpora, crops.corpora if crops is not None else [], strict=False):
        samples = [0, *decoded.ends.tolist()]
        for row, columns in enumerate(decoded.decoded["columns"]):
            if samples[row + 1] > samples[row]:
                yield corpus, json.loads(columns), (samples[row + 1] - samples[row]) / sampling_rate


def attributions_beside(corpora: Iterable[CorpusConfig]) -> Iterator[tuple[str, str]]:
    """Yields names and attributions of sources, which `corpora/prepare.py` writes beside its shards."""
    folders = {path if path.is_dir() else path.parent for corpus in corpora for path in matching_paths(corpus.source)}
    for file in sorted(file for folder in folders for file in folder.glob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(told, dict) and {"source", "attribution"} <= told.keys():
            yield str(told["source"]), str(told["attribution"])


def base_model(recipe: Recipe) -> BaseModel | None:
    """Describes the model that a run starts from; None for a run from scratch."""
    start = start_of(recipe)
    if start in NAMED_SIZES:
        return None
    found = {
        name: cached_file(start, name, _raise_exceptions_for_missing_entries=False)
        for name in ("README.md", TRAINING_DATA)
    }
    data = found[TRAINING_DATA] and json.loads(Path(found[TRAINING_DATA]).read_text(encoding="utf-8"))
    license_name = ModelCard.load(found["README.md"]).data.get("license") if found["README.md"] else None
    return BaseModel(
        model_name(start) if Path(start).is_dir() else start, license_name or "", data and TrainingData.from_json(data)
    )
