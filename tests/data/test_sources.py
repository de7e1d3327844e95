"""Every kind of source in every command that reads speech, with its texts."""

from pathlib import Path

import datasets
import pytest
from support.corpora import LAYOUTS, RATE, SPOKEN

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.data.row import known_columns
from modeling_taae.data.utterances import Utterances
from modeling_taae.tokenize import tokenize_corpus
from training.data import StreamedCrops, TrainingCrops, validation_clips
from training.recipe import CorpusConfig, CTCConfig, DataConfig
from training.transcribed import TranscribedSpeech, first_utterances


@pytest.fixture(autouse=True)
def workplace(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def tokenized(source: str, place: Path) -> dict[str, float]:
    tokenize_corpus(source, place / "tokens", device="cpu")
    assert (place / "tokens/rejects.jsonl").read_text() == ""
    rows = datasets.load_dataset(str(place / "tokens"), split="train")
    return {known_columns(row)["text"]: row["duration"] for row in rows}


def evaluated(source: str, place: Path) -> dict[str, float]:
    utterances = list(Utterances([source], split="train"))
    assert not [utterance.problem for utterance in utterances if utterance.problem]
    return {utterance.facts["text"]: len(utterance.audio) / RATE for utterance in utterances}


def cropped(source: str, place: Path) -> dict[str, float]:
    data, extractor = DataConfig(corpora=[CorpusConfig(source)], crop_frames=8), TaaeFeatureExtractor()
    crops = TrainingCrops(data, extractor, 0)
    assert crops.skipped == 0 and crops[0].abs().sum() > 0
    streamed = list(zip(range(3), StreamedCrops(data, extractor, 0, 0, 1, 0), strict=False))
    assert all(crop.abs().sum() > 0 for _, crop in streamed)
    lengths = [len(clip) / RATE for clip in validation_clips(data.corpora[0], extractor, 5)]
    assert crops.corpora[0].samples == RATE * sum(lengths)
    return dict(zip(sorted(SPOKEN, key=SPOKEN.get), sorted(lengths), strict=True))


def transcribed(source: str, place: Path) -> dict[str, float]:
    settings, extractor = CTCConfig([CorpusConfig(source)]), TaaeFeatureExtractor()
    (corpus,) = TranscribedSpeech(settings, extractor, 0).corpora
    found = dict(map(reversed, map(corpus.utterance, range(len(corpus.texts)))))
    first = dict(map(reversed, first_utterances(settings.corpora[0], settings, extractor, 9)))
    assert {text: len(audio) for text, audio in first.items()} == {text: len(audio) for text, audio in found.items()}
    return {text: len(audio) / RATE for text, audio in found.items()}


@pytest.mark.parametrize("read", [tokenized, evaluated, cropped, transcribed])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_source_in_every_command(layout, read, tmp_path):
    source = LAYOUTS[layout](tmp_path / "source")
    assert read(str(source), tmp_path) == SPOKEN
