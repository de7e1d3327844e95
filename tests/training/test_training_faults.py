"""What goes wrong in a run is noticed: changed checkpoints, wrong rates, an early end, two runs in a folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from support.training_runs import (
    ADVERSARIAL,
    assert_equal,
    make_trainer,
    published,
    start_training,
    train,
)

from training.checkpoints import AVERAGE, MANIFEST, OLD_AVERAGE, CheckpointError, CheckpointManifest
from training.model import start_of
from training.optimization import DivergenceError, DivergenceWatch, tell_schedule
from training.recipe import OptimizerConfig, Recipe, RecipeError, parse_recipe
from training.trainer import LOCK_NAME, IncompleteRunError


@pytest.fixture
def run(recipe_file, tmp_path) -> Path:
    """A run of four steps, of whose last checkpoint a test spoils a file."""
    options = ("--max_steps", 4, "--optimizer.decay_steps", 4, "--output_dir", tmp_path / "run")
    train(recipe_file, *ADVERSARIAL, *options, "--validation.corpus", "null")
    return tmp_path / "run"


def go_on(recipe_file: str, run: Path) -> None:
    train(recipe_file, *ADVERSARIAL, "--max_steps", 6, "--output_dir", run, "--validation.corpus", "null")


class Trap:
    """A pickle that touches a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.file),)


def test_every_file_of_a_checkpoint_is_checked(recipe_file, run, tmp_path):
    """Cut, emptied, changed in one byte, or gone: whichever file it is, the run stops in one line that names it."""
    checkpoint, kept = run / "checkpoint-4", tmp_path / "kept"
    manifest = CheckpointManifest.load(checkpoint)
    assert manifest.processes == 1 and {AVERAGE, "model.safetensors", "random_states_0.pkl"} <= manifest.files.keys()
    assert not list(checkpoint.glob("custom_checkpoint*")), "nothing is pickled that need not be"
    shutil.copytree(checkpoint, kept)
    spoilers = {
        "cut": lambda file: file.write_bytes(file.read_bytes()[:-10]),
        "empty": lambda file: file.write_bytes(b""),
        "changed": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"),
        "gone": lambda file: file.unlink(),
    }
    trainer = make_trainer(recipe_file, *ADVERSARIAL, "--output_dir", run, "--validation.corpus", "null")
    for name in manifest.files:
        for spoil in spoilers.values():
            spoil(checkpoint / name)
            with pytest.raises(CheckpointError, match=f"Cannot resume from .*checkpoint-4: {name} "):
                trainer.resume()
            shutil.copy(kept / name, checkpoint / name)
    (checkpoint / "scheduler.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="scheduler.bin was not written with it"):
        trainer.resume()
    (checkpoint / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match=MANIFEST):
        trainer.resume()


def make_old(checkpoint: Path, average: object) -> None:
    """Makes a checkpoint one of an earlier version, which pickled the average and listed nothing."""
    (checkpoint / MANIFEST).unlink()
    (checkpoint / AVERAGE).unlink()
    torch.save(average, checkpoint / OLD_AVERAGE)


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_resumes_exactly(recipe_file, tmp_path, capfd):
    options = ("--validation.corpus", "null", *ADVERSARIAL)
    first = make_trainer(recipe_file, *options, "--output_dir", tmp_path / "new", "--keep_checkpoints", 9)
    first.train()
    for name in ("model", "checkpoint-6", "checkpoint-8"):
        shutil.rmtree(tmp_path / "new" / name)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    new = make_trainer(recipe_file, *options, "--output_dir", tmp_path / "new")
    new.resume()
    make_old(tmp_path / "old" / "checkpoint-4", new.average.state_dict())
    train(recipe_file, *options, "--output_dir", tmp_path / "old")
    assert "is of an earlier version, which wrote no hashes" in capfd.readouterr().out
    train(recipe_file, *options, "--output_dir", tmp_path / "new")
    assert_equal(published(tmp_path / "old"), published(tmp_path / "new"))


@pytest.mark.parametrize("file", [OLD_AVERAGE, "random_states_0.pkl", "optimizer.bin", "discriminator.pt"])
def test_a_crafted_pickle_of_an_earlier_version_runs_nothing(file, recipe_file, run, tmp_path):
    make_old(run / "checkpoint-4", {})
    torch.save(Trap(tmp_path / "trapped"), run / "checkpoint-4" / file)
    with pytest.raises(CheckpointError, match="Cannot resume from"):
        go_on(recipe_file, run)
    assert not (tmp_path / "trapped").exists()


def test_a_missing_random_state_of_an_earlier_version_is_refused(recipe_file, run):
    make_old(run / "checkpoint-4", {})
    trainer = make_trainer(recipe_file, *ADVERSARIAL, "--output_dir", run, "--validation.corpus", "null")
    torch.save(trainer.average.state_dict(), run / "checkpoint-4" / OLD_AVERAGE)
    (run / "checkpoint-4" / "random_states_0.pkl").unlink()
    with pytest.raises(CheckpointError, match="random_states_0.pkl is missing"):
        trainer.resume()


def test_a_folder_has_one_trainer(recipe_file, tmp_path):
    with FileLock(tmp_path / LOCK_NAME):
        process = start_training(recipe_file, "--output_dir", tmp_path, "--validation.corpus", "null")
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in output
    assert f"train.py: error: Another run is training in {tmp_path}: wait for its end" in output
    assert {path.name for path in tmp_path.iterdir()} <= {LOCK_NAME}


def test_a_run_that_ends_early_is_an_error(recipe_file, tmp_path, monkeypatch):
    trainer = make_trainer(recipe_file, "--output_dir", tmp_path, "--validation.corpus", "null")
    batches = list(trainer.batches())[:3]
    monkeypatch.setattr(trainer, "batches", lambda: iter(batches))
    with pytest.raises(IncompleteRunError, match="ended after 3 of 8 steps"):
        trainer.train()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("losses", "diverges"),
    [
        ([3.3] + [19.6] * 9, True),  # a rate of 1 without warm-up
        ([1.0] + [57.0] * 5, True),
        ([1.0] + [2.8] * 120, True),  # less, but for good
        ([3.0, 2.0, 4.0, 2.5, 3.5] * 40, False),
        ([1.0, 1.6, 0.8, 1.9, 1.2] * 40, False),
        ([4.0 * 0.99**step for step in range(200)], False),
    ],
)
def test_the_watch_sees_the_first_step(losses, diverges):
    watch = DivergenceWatch(ratio=2.0)
    for loss in losses:
        watch.note(torch.tensor(loss), torch.tensor(1.0))
    if diverges:
        with pytest.raises(DivergenceError, match="times its lowest value"):
            watch.look()
    else:
        watch.look()


def test_a_wrong_learning_rate_leaves_no_model(recipe_file, tmp_path):
    options = ("--optimizer.learning_rate", 30, "--optimizer.warmup_steps", 0, "--optimizer.decay_steps", 0)
    with pytest.raises(DivergenceError):
        train(recipe_file, *options, "--max_steps", 20, "--output_dir", tmp_path, "--validation.corpus", "null")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("warmup", "decay", "blamed"),
    [
        (200, 20, "--optimizer.warmup_steps."),
        (0, 80, "--optimizer.decay_steps."),
        (30, 30, "--optimizer.warmup_steps or --optimizer.decay_steps."),
        (90, 90, "--optimizer.warmup_steps and --optimizer.decay_steps."),
        (20, 20, None),
        (0, 0, None),
    ],
)
def test_the_setting_to_blame_is_named(warmup, decay, blamed):
    lines = []
    optimizer = OptimizerConfig(warmup_steps=warmup, decay_steps=decay)
    tell_schedule(Recipe(max_steps=40, optimizer=optimizer), 0, lines.append)
    assert [line.partition("lower ")[2] for line in lines] == ([] if blamed is None else [blamed])


def test_nothing_is_said_of_recordings_that_were_all_decoded(recipe_file, tmp_path, capfd):
    make_trainer(recipe_file, "--output_dir", tmp_path)
    assert "2 recordings could not be decoded" in capfd.readouterr().out
    corpus = json.loads(Path(recipe_file).read_text())["data"]["corpora"][0]["source"]
    from datasets import Dataset

    rows = [row for row in Dataset.from_parquet(corpus).to_list() if len(row["audio"]["bytes"]) > 100]
    Dataset.from_list(rows).to_parquet(tmp_path / "whole.parquet")
    make_trainer(recipe_file, "--data.corpora", tmp_path / "whole.parquet", "--output_dir", tmp_path)
    assert "could not be decoded" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--data.corpora", "speech/"),
        ("--data.corpora", '["speech/"]'),
        ("--data.corpora", '[{"source": "speech/"}]'),
        ("--recipe", "FOLDER/short.yaml"),
    ],
)
def test_a_corpus_may_be_its_source_alone(arguments, tmp_path):
    (tmp_path / "short.yaml").write_text("data:\n  corpora: [speech/]\n")
    given = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    recipe = parse_recipe([*given, "--validation.corpus", "test.parquet"])
    assert [corpus.source for corpus in recipe.data.corpora] == ["speech/"]
    assert recipe.validation.corpus.source == "test.parquet"
    assert parse_recipe([*given, "--validation.corpus.source", "other"]).validation.corpus.source == "other"


@pytest.mark.parametrize("value", ['[{"sourc": "x"}]', '[{"source": "x", "weight": "much"}]'])
def test_a_corpus_that_is_none_is_one_line(value, capfd):
    with pytest.raises(SystemExit) as exit_info:
        parse_recipe(["--data.corpora", value])
    lines = capfd.readouterr().err.splitlines()
    assert exit_info.value.code == 2 and len(lines) == 1 and lines[0].startswith("train.py: error: ")


def test_a_start_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(start_of(Recipe(size="hub_cards/taae-speech-16k-nano"))).is_absolute()
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert start_of(Recipe(size="models/mine")) == "models/mine"
    assert [start_of(Recipe(size=name)) for name in ("nano", "owner/name")] == ["nano", "owner/name"]


@pytest.mark.parametrize("size", ["runs/missing", "runs/missing/model", "./model", "/nowhere/model", "models/other"])
def test_a_missing_start_is_no_name_on_the_hub(size, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(RecipeError, match=f"There is no folder '{size}' in"):
        start_of(Recipe(size=size))
