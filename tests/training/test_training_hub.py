"""A run that is to be published on the Hub: what it needs is asked for at once, and what fails costs no model."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from datasets import Dataset, DatasetBuilder
from huggingface_hub import ModelCard
from support.hub_server import OWNER, logged_in_hub
from support.training_runs import ADVERSARIAL, encoded_tone, make_trainer, train

from modeling_taae.codec import model_name
from modeling_taae.files import read_json
from training.provenance import TRAINING_DATA, TrainingData
from training.publish import HubError, card, evaluate, publish
from training.recipe import RecipeError, parse_recipe


@pytest.fixture
def options(recipe_file, tmp_path) -> list[object]:
    """A short run with a discriminator, to be published."""
    place = ["--hub.repo", f"{OWNER}/tiny", "--hub.license", "cc0-1.0"]
    (tmp_path / "licence.txt").write_text("Do what you like.\n")
    place += ["--hub.license_file", tmp_path / "licence.txt"]
    return [*place, *ADVERSARIAL, "--max_steps", 2, "--validation.samples", 0, "--output_dir", tmp_path / "run"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with logged_in_hub(monkeypatch, tmp_path) as server:
        yield server


def test_the_card_is_of_the_subset_that_validates(recipe_file, options, monkeypatch):
    corpus = '{"source": "facebook/voxpopuli", "subset": "nl", "split": "validation"}'
    recipe, loaded = parse_recipe([recipe_file, *map(str, options), "--validation.corpus", corpus]), []

    def load(name: str, subset: str) -> DatasetBuilder:
        builder = create_autospec(DatasetBuilder, instance=True)
        builder.config = builder.name = None

        def stream(split: str) -> None:
            loaded.append((name, subset, split))
            raise OSError("no network")

        builder.as_streaming_dataset.side_effect = stream
        return builder

    monkeypatch.setattr("modeling_taae.data.streams.check_there", lambda name: None)
    monkeypatch.setattr("modeling_taae.data.streams.load_dataset_builder", load)
    with pytest.raises(HubError, match="could not be evaluated"):
        evaluate(recipe, Path("hub_cards/taae-speech-16k-nano"))
    assert loaded == [("facebook/voxpopuli", "nl", "validation")]


def test_a_run_publishes_its_model_with_a_card_that_shows_its_figures(recipe_file, options, hub, tmp_path):
    """Privately; and a Hub that refuses at first costs nothing but a second start."""
    hub.refusals["POST /api/repos/create"] = 403
    with pytest.raises(HubError, match=rf"may not write there.* `taae push .*run/hub/tiny {OWNER}/tiny` publishes it"):
        train(recipe_file, *options)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    hub.refusals.clear()
    recipe = train(recipe_file, *options).recipe
    repository = hub.repository(f"{OWNER}/tiny")
    files = repository.files()
    assert repository.private
    assert {"model.safetensors", "discriminator.safetensors", "preprocessor_config.json", "LICENSE"} <= files.keys()
    content = ModelCard(files["README.md"].decode())
    assert content.data.license == "cc0-1.0" and "## Quality" in content.text
    assert "`discriminator.safetensors`" in content.text and "2 optimiser steps on crops of 0.64 s" in content.text
    (tmp_path / "again.yaml").write_bytes(files["recipe.yaml"])
    again = parse_recipe([str(tmp_path / "again.yaml")])
    assert replace(again, output_dir=recipe.output_dir, hub=recipe.hub) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--validation.corpus", "null"), "name validation.corpus"),
        (("--hub.license_file", "nowhere.txt"), "'nowhere.txt' is no file"),
    ],
)
def test_what_publishing_needs_is_asked_for_before_the_run(change, message, recipe_file, options):
    with pytest.raises(RecipeError, match=message):
        make_trainer(recipe_file, *options, *change)


def test_a_card_names_languages_sources_and_the_parent(recipe_file, tmp_path):
    """A model tuned on Dutch, from one whose recordings ask for attribution."""
    train(recipe_file, "--max_steps", 1, "--output_dir", tmp_path / "first", "--validation.corpus", "null")
    parent, dutch = tmp_path / "taae-parent", tmp_path / "dutch"
    publish(tmp_path / "first" / "model", parent)
    (parent / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n# Parent\n")
    told = {"name": "LibriSpeech", "license": "CC-BY-4.0", "languages": ["en"], "attribution": "Panayotov et al."}
    (parent / TRAINING_DATA).write_text(json.dumps({"languages": {"en": 1.0}, "sources": [told]}))
    dutch.mkdir()
    rows = [
        {"audio": {"bytes": encoded_tone(300 + 50 * n, 1.0), "path": None}, "id": str(n), "language": language}
        | {"speaker_id": "maria", "source": "Sprekers", "license": "CC0-1.0"}
        for n, language in enumerate(["nl", "nl", "zxx"])
    ]
    Dataset.from_list(rows).to_parquet(dutch / "train.parquet")
    (dutch / "sprekers.json").write_text(json.dumps({"source": "Sprekers", "attribution": "De sprekers, CC0"}))
    options = ("--size", parent, "--config", "{}", "--max_steps", 1, "--data.corpora", dutch, "--validation.samples", 0)
    recipe = train(recipe_file, *options, "--output_dir", tmp_path / "runs").recipe
    publish(tmp_path / "runs" / "model", tmp_path / "taae-dutch")
    evaluate(recipe, tmp_path / "taae-dutch")
    content = ModelCard(card(recipe, "cc-by-sa-4.0", tmp_path / "taae-dutch"))
    assert (content.data.language, content.data.base_model) == (["nl"], "taae-parent")
    assert "| Sprekers | nl | 0.00 | 1 | CC0-1.0 | De sprekers, CC0 |" in content.text
    assert "from `taae-parent`, whose weights are under cc-by-sa-4.0" in content.text
    assert "| LibriSpeech | en | unknown | unknown | CC-BY-4.0 | Panayotov et al. |" in content.text
    assert (
        "computed in float32." in content.text
        and "fine-tuned from `taae-parent`" in content.text
        and "| taae-dutch" in content.text
    )
    assert [
        base.name for base in TrainingData.from_json(read_json(tmp_path / "taae-dutch" / TRAINING_DATA)).bases()
    ] == ["taae-parent"]
    assert model_name(str(tmp_path / "runs" / "model")) == "runs", "not every model of a run is called model"
