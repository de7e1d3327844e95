"""Every kind of source in every command that reads speech, with its texts."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.corpora import CLIPS, LAYOUTS, RATE, SPOKEN

from modeling_taae import TaaeFeatureExtractor, cli
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


def test_results_tell_texts_speakers_and_languages(tmp_path):
    """From a mixture, and from columns under names of their own; the command line, to the end."""
    LAYOUTS["mixture"](tmp_path / "source")
    LAYOUTS["common_voice"](tmp_path / "source/more")
    command = ["evaluate", str(tmp_path / "source"), "--metrics", "si_sdr", "--workers", "1", "--no-speed"]
    assert cli.main([*command, "--samples", "0", "-o", str(tmp_path / "results")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "results/rows.jsonl").read_text().splitlines()]
    assert sorted(row["text"] for row in rows) == sorted([*SPOKEN, *SPOKEN])
    assert {(row["speaker"], row["language"]) for row in rows if "speaker" in row} == {("s1", "fr")}


@pytest.mark.parametrize("column", [None, "sentence", "translation"])
def test_texts_by_the_name_of_their_column(tmp_path, column):
    rows = [{"audio": CLIPS["a"], "sentence": "said", "translation": "meant"}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    settings = CTCConfig([CorpusConfig(str(tmp_path / "x.parquet"))], text_column=column)
    (corpus,) = TranscribedSpeech(settings, TaaeFeatureExtractor(), 0).corpora
    assert corpus.texts == ["meant" if column == "translation" else "said"]
