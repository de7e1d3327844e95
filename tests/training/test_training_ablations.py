"""Ablations: each is run once, what fails is told and stops no other, and the table has what was measured."""

import json
from pathlib import Path

import pytest
from support.training_runs import CHECKOUT

from training.experiments.ablations import (
    ADVERSARIAL,
    COLUMNS,
    MARKERS,
    Ablation,
    all_ablations,
    last_validation,
    main,
    markdown,
)
from training.recipe import parse_recipe

pytestmark = pytest.mark.slow

RESULTS, README = (
    CHECKOUT / "training" / "experiments" / "results" / "ablations.json",
    CHECKOUT / "training" / "README.md",
)


@pytest.mark.parametrize("ablation", all_ablations(), ids=lambda ablation: ablation.name)
def test_every_ablation_is_a_run_of_the_given_length(ablation, tmp_path):
    recipe = parse_recipe(ablation.arguments(600, tmp_path, ["--batch_size", "3"]))
    assert (recipe.max_steps, recipe.optimizer.decay_steps, recipe.validation.every) == (600, 200, 600)
    looks_back = recipe.optimizer.ema_every / (1 - recipe.optimizer.ema_decay)
    assert recipe.optimizer.warmup_steps == 50 and looks_back == pytest.approx(30, rel=0.01)
    assert (recipe.output_dir, recipe.batch_size) == (str(tmp_path / ablation.name), 3)
    assert (ablation.base == ADVERSARIAL) == (recipe.discriminator is not None)
    assert recipe.discriminator is None or recipe.discriminator.start_step == 300
    assert ablation.description


def test_each_is_run_once_and_a_failure_is_told(recipe_file, tmp_path, capfd):
    folder = tmp_path / "runs"
    bad = tmp_path / "bad.yaml"
    bad.write_text("# No such corpus.\ndata: {corpora: [{source: nowhere}]}\n")
    known = [Ablation("plain", Path(recipe_file)), Ablation("bad", Path(recipe_file), bad)]
    text = tmp_path / "README.md"
    text.write_text(f"Before.\n{MARKERS[0]}old\n{MARKERS[1]}\nAfter.\n")
    command = ["--steps", "2", "--output_dir", str(folder), "--readme", str(text)]
    assert main(["bad", "plain", *command, "--jobs", "2"], known) == 1
    out, err = capfd.readouterr()
    assert f"bad: ended with status 2; see {folder / 'bad.log'}" in err
    assert "nowhere" in (folder / "bad.log").read_text()
    result, log = json.loads((folder / "plain.json").read_text()), (folder / "plain.log").read_text()
    figures = f"0.0 | {result['cpu_seconds_per_step']:.3f} | {result['loss']:.3f}"  # a tiny model: 0.0 million
    assert f"| plain | `recipe.yaml` as it is | {figures} |" in out
    summary = json.loads((folder / "results.json").read_text())
    assert "| bad |" not in out and out == f"{markdown(summary)}\n"
    assert text.read_text() == f"Before.\n{MARKERS[0]}{out}{MARKERS[1]}\nAfter.\n"
    assert [run["name"] for run in summary["runs"]] == ["plain"] and str(tmp_path) not in json.dumps(summary)
    assert (folder / "plain" / "model" / "model.safetensors").exists()
    assert not list((folder / "plain").glob("checkpoint-*"))
    assert main(["plain", *command], known) == 0
    assert (folder / "plain.log").read_text() == log, "it was run again"
    with pytest.raises(SystemExit) as exit_info:
        main(["plain", *command, "--options", "--batch_size", "1"], known)
    assert exit_info.value.code == 2 and "is a run with other settings" in capfd.readouterr().err
    (folder / "plain.json").unlink()  # as if it had been interrupted
    with pytest.raises(SystemExit):
        main(["plain", *command, "--options", "--batch_size", "1"], known)
    assert "is a run with other settings" in capfd.readouterr().err


def test_results_are_those_of_the_last_step_however_often_it_was_reached(tmp_path):
    lines = [
        '{"step": 5, "validation/stoi": 0.1}',
        "Resuming",
        '10%|#\r20%|##{"step": 5, "validation/stoi": 0.2}',
        "end",
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    assert last_validation(tmp_path / "log", 5) == {"step": 5, "stoi": 0.2}
    assert last_validation(tmp_path / "log", 6) is None


def test_the_table_tells_what_two_seeds_differ_by():
    facts = {"what": "", "parameters": 10, "cpu_seconds_per_step": 0.1}
    scores = {"plain": 0.5, "plain_again": 0.53, "other": 0.9}
    runs = [{"name": name, **facts, **{column: score for column, _, _ in COLUMNS}} for name, score in scores.items()]
    summary = {"steps": 600, "environment": {"processor": "abacus"}, "runs": runs}
    last = markdown(summary).splitlines()[-1]
    assert "differ by 0.030 in loss" in last and last.count("0.030") == len(COLUMNS)
    del runs[1]
    assert "differ" not in markdown(summary)


@pytest.mark.skipif(not RESULTS.exists(), reason="no results are kept in training/experiments/results/ablations.json")
def test_the_table_of_the_readme_is_that_of_the_results():
    assert f"{MARKERS[0]}{markdown(json.loads(RESULTS.read_text()))}\n{MARKERS[1]}" in README.read_text()


def test_an_unknown_name_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["plane", "--steps", "2", "--output_dir", str(tmp_path / "runs")])
    assert "there is no plane; choose from plain," in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
