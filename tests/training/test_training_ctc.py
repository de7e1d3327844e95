"""The CTC head: its loss, its texts, and a run that makes the latents readable."""

import json

import pytest
import torch
from datasets import Dataset
from support.training_runs import (
    assert_equal,
    encoded_tone,
    make_trainer,
    published,
    train,
)

from modeling_taae import TaaeFeatureExtractor
from training.ctc import CTCHead, error_rate
from training.data import CorpusError
from training.publish import publish
from training.recipe import CorpusConfig, CTCConfig
from training.transcribed import TranscribedSpeech, split_units


def make_head(**options: object) -> CTCHead:
    torch.manual_seed(0)
    return CTCHead(**{"symbols": list("abc"), "units": "characters", "latent_dim": 6, "hidden_size": 8, **options})


def test_texts_are_split_into_characters_or_symbols():
    assert split_units(" Ab c ", "characters") == ["a", "b", " ", "c"]
    assert split_units("HH AH0  | L", "symbols", ignored=["|"]) == ["HH", "AH0", "L"]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "distance"),
    [("kitten", "sitting", 3), ("", "ab", 2), ("abc", "", 3), ("same", "same", 0), (["a", "b"], ["b"], 1)],
)
def test_edit_distances(reference, hypothesis, distance):
    assert error_rate([(reference, hypothesis)]) * max(len(reference), 1) == pytest.approx(distance)


def test_error_rates_are_per_symbol_of_all_references():
    assert error_rate([("abcd", "abxd"), ("ab", "ab")]) == pytest.approx(1 / 6)


def test_what_is_read_merges_repetitions_and_leaves_out_blanks(monkeypatch):
    head = make_head()
    best = torch.tensor([[0, 1, 1, 0, 1, 3, 3, 2, 0]])
    monkeypatch.setattr(head, "forward", lambda latents: torch.nn.functional.one_hot(best, 4).float())
    assert head.read(torch.zeros(1, 6, 9)) == ["a", "a", "c", "b"]


def test_the_loss_looks_at_real_frames_alone():
    head, latents = make_head(), torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))
    frames, texts = torch.tensor([20, 11]), ["abcab", "cc"]
    loss = head.loss(latents, frames, texts)
    latents[1, :, 11:] = 100.0
    assert head.loss(latents, frames, texts) == loss > 0


def test_an_utterance_with_more_symbols_than_frames_counts_as_zero():
    assert make_head().loss(torch.zeros(1, 6, 3), torch.tensor([3]), ["abcabc"]) == 0


def test_a_published_head_is_found_again(tmp_path):
    head, latents = make_head(symbols=["ə", "HH"], units="symbols"), torch.randn(1, 6, 9)
    head.save_pretrained(tmp_path)
    found = CTCHead.from_pretrained(tmp_path)
    assert torch.equal(found(latents), head(latents))
    assert found.encode("HH xx ə") == [2, 1]
    assert found.encode("HH xx ə", ignored=["ə"]) == [2]
    assert CTCHead.from_pretrained(tmp_path.parent) is None


def test_utterances_are_whole_have_texts_and_follow_from_seed_and_number(corpus):
    settings, extractor = CTCConfig([CorpusConfig(corpus)], max_seconds=1.2), TaaeFeatureExtractor()
    speech, again = (TranscribedSpeech(settings, extractor, seed=1) for _ in range(2))
    assert speech.symbols() == [" ", "a", "b", "c"]
    batch, same = (one.collate([one[number] for number in range(8)]) for one in (speech, again))
    assert torch.equal(batch["input_values"], same["input_values"])
    assert batch["texts"] == ["Ab c"] * 8
    assert batch["input_values"].shape[-1] % 640 == 0
    lengths = batch["padding_mask"].sum(1)
    assert lengths.max() <= 1.2 * 16_000 and len(lengths.unique()) > 2
    for item, length in zip(batch["input_values"], lengths, strict=True):
        assert item[0, :length].any() and not item[0, length:].any()


def test_texts_may_stand_in_a_file_of_their_own(corpus, tmp_path):
    Dataset.from_dict({"id": [1, 5], "phonemes": ["HH | AH", None]}).to_parquet(tmp_path / "texts.parquet")
    settings = CTCConfig([CorpusConfig(corpus)], "phonemes", str(tmp_path / "texts.parquet"), "symbols", ["|"])
    speech = TranscribedSpeech(settings, TaaeFeatureExtractor(), seed=0)
    assert speech.corpora[0].texts == ["HH | AH"] and speech.symbols() == ["AH", "HH"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "words"}, "has no column 'words'; it has id, text"),
        ({"transcripts": "nowhere.parquet"}, "Cannot read the columns 'id' and 'text' of 'nowhere.parquet'"),
        ({"transcripts": "{corpus}", "text_column": "words"}, "Cannot read the columns 'id' and 'words'"),
        ({"max_seconds": 0.1}, "longer than ctc.max_seconds, 0.1"),
    ],
)
def test_texts_that_cannot_be_used_are_named(corpus, options, message):
    options = {name: value.format(corpus=corpus) if name == "transcripts" else value for name, value in options.items()}
    with pytest.raises(CorpusError, match=message):
        TranscribedSpeech(CTCConfig([CorpusConfig(corpus)], **options), TaaeFeatureExtractor(), 0)[0]


@pytest.fixture(scope="module")
def reading(recipe_file, tmp_path_factory) -> tuple[str, ...]:
    """A recipe with a CTC head on tones that are named after their pitch."""
    folder = tmp_path_factory.mktemp("reading")
    tones = [(pitch, name) for pitch, name in zip((200, 700, 1_500, 3_000), "abcd", strict=True)]
    audio = [{"bytes": encoded_tone(pitch, 0.6), "path": None} for pitch, _ in tones]
    Dataset.from_dict({"audio": audio, "name": [name for _, name in tones]}).to_parquet(folder / "tones.parquet")
    spoken = {"source": str(folder / "tones.parquet")}
    ctc = {"corpora": [spoken], "text_column": "name", "learning_rate": 1e-2, "validation": spoken}
    return recipe_file, "--ctc", json.dumps(ctc), "--validation.utterances", "4"


@pytest.mark.slow
def test_a_run_makes_the_latents_readable_and_publishes_the_head(reading, tmp_path, capfd):
    alone = [option for name in ("log_mel", "magnitude", "waveform") for option in (f"--losses.{name}", 0)]
    options = (*alone, "--max_steps", 80, "--data.crop_frames", 4, "--optimizer.learning_rate", 1e-2)
    options = (*options, "--checkpoint_every", 100, "--validation.every", 100)
    train(*reading, *options, "--output_dir", tmp_path / "run")
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith('{"step"')]
    assert json.loads(line)["validation/symbol_error_rate"] <= 0.5, "a head that reads nothing has 1"
    publish(tmp_path / "run" / "model", tmp_path / "published")
    tuned = make_trainer(*reading, "--size", tmp_path / "published", "--config", "{}", "--output_dir", tmp_path / "t")
    assert_equal(tuned.reader.module.state_dict(), CTCHead.from_pretrained(tmp_path / "run" / "model").state_dict())


def test_the_head_reaches_the_encoder_and_a_frozen_encoder_is_only_read(reading, tmp_path):
    for frozen in (False, True):
        trainer = make_trainer(*reading, "--freeze_encoder", str(frozen).lower(), "--output_dir", tmp_path)
        trainer.reader.loss(trainer.model, next(iter(trainer.utterances()))).backward()
        assert all(parameter.grad.any() for parameter in trainer.reader.module.parameters())
        reached = [parameter.grad is not None for parameter in trainer.model.encoder.parameters()]
        assert not any(reached) if frozen else all(reached)


@pytest.mark.slow
def test_a_run_with_a_head_resumes_exactly(reading, tmp_path, monkeypatch):
    train(*reading, "--output_dir", tmp_path / "whole")
    broken = make_trainer(*reading, "--output_dir", tmp_path / "broken")
    save = broken.save

    def save_and_break() -> None:
        save()
        if broken.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(broken, "save", save_and_break)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    train(*reading, "--output_dir", tmp_path / "broken")
    assert_equal(published(tmp_path / "whole"), published(tmp_path / "broken"))
