"""What the stages bring: models are trained once and compared on the same utterances, as `taae evaluate` does."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from support.training_runs import CHECKOUT, train

from modeling_taae import cli
from modeling_taae.evaluation.results import Row
from training.ctc import CTCHead
from training.experiments import stages as run_stages
from training.experiments.stages import EXPERIMENTS, MARKERS, PUBLISHED, Experiment, Stage, compared, main, markdown
from training.recipe import parse_recipe

pytestmark = pytest.mark.slow

RATE, PRESET = 16_000, run_stages.PRESET
README = CHECKOUT / "training" / "README.md"
RESULTS = README.parent / "experiments" / "results" / "stages.json"
STAGES = {stage for experiment in EXPERIMENTS.values() for stage in experiment.stages if stage.recipe is not None}


def write_speech(folder: Path) -> None:
    """Bursts of noise in every file that a stage may ask for, the last of four in Russian, and their phonemes."""
    folder.mkdir(parents=True)
    names = ("train-00000-of-1", "test-0", "finetune_nl-0", "finetune_nl_test-0", "validation-0")
    for name in names:
        rows = []
        for number in range(4):
            time, file = np.arange(RATE) / RATE, io.BytesIO()
            noise = np.random.default_rng(number).normal(0, 0.1, RATE) * np.sin(np.pi * 3 * time) ** 2
            soundfile.write(file, noise, RATE, format="FLAC")
            audio, language = {"bytes": file.getvalue(), "path": None}, "en" if number < 3 else "ru"
            rows.append({"id": f"u{number}", "audio": audio, "language": language})
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    texts = [{"id": f"u{number}", "phonemes": "AH0 B | S"} for number in range(4)]
    pa.parquet.write_table(pa.Table.from_pylist(texts), folder / "transcripts.parquet")


@pytest.mark.parametrize("stage", sorted(STAGES, key=lambda stage: stage.name), ids=lambda stage: stage.name)
def test_every_stage_is_a_run(stage):
    recipe = parse_recipe(stage.arguments(Path("published"), 80))
    if "--max_steps" not in stage.options:
        assert (recipe.size, recipe.max_steps, recipe.optimizer.decay_steps) == ("published", 80, 50)
    else:
        assert (recipe.size, recipe.batch_size) == ("nano", 8)
        assert recipe.max_steps > 2 * recipe.optimizer.decay_steps
    if stage.start is not None:
        start = parse_recipe(stage.start.arguments(Path("published"), 80))
        assert (start.size, start.batch_size) == (recipe.size, recipe.batch_size)
        assert recipe.discriminator is None or recipe.discriminator.start_step == start.max_steps
    assert recipe.freeze_encoder == stage.name.endswith("_frozen")


def test_what_is_trained_is_compared_and_not_trained_again(tiny_model_folder, tmp_path, monkeypatch, capsys):
    """As a user does it; the recipes find their speech, which is bursts of noise, beside the working directory."""
    write_speech(tmp_path / "shared" / "speech")
    (tmp_path / "main").mkdir()
    monkeypatch.chdir(tmp_path / "main")
    quick = ("--size", str(tiny_model_folder), "--freeze_encoder", "true", "--batch_size", "1")
    start = Stage("start", "", "finetune_language", (*quick, "--max_steps", "1"))
    train(*start.arguments(tiny_model_folder, 0), "--output_dir", "runs/stages/start")
    after = Stage("after", "two steps", "finetune_language", (*quick, "--max_steps", "3"), start)
    speech = {"all": ("test", None), "English": ("test", "en")}
    tones = Experiment("Noise", (PUBLISHED, after), speech, run_stages.phoneme_errors, picture=True)
    Path("README.md").write_text(f"Before.\n{MARKERS[0]}old\n{MARKERS[1]}\nAfter.\n")
    command = ["--published", str(tiny_model_folder), "--json", "results/stages.json", "--readme", "README.md"]
    assert main(command, {"noise": tones}) == 0
    results = json.loads(Path("results/stages.json").read_text())
    published, trained = results["noise"]["models"]
    assert (published["steps"], trained["steps"]) == (0, 2) and Path("runs/stages/after/checkpoint-1").exists()
    assert (
        Path("README.md").read_text()
        == f"Before.\n{MARKERS[0]}{markdown(results, {'noise': tones})}\n{MARKERS[1]}\nAfter.\n"
    )
    assert Path("results/noise.png").stat().st_size > 0

    for model, folder in ((published, tiny_model_folder), (trained, Path("runs/stages/after/model"))):
        options = ["--metrics", "stoi", "--workers", "1", "--samples", "0", "--no-speed", "-o", "evaluated"]
        options += ["--bottleneck", PRESET, "--model", str(folder)]
        assert cli.main(["evaluate", "../shared/speech/test-0.parquet", *options]) == 0
        system = json.loads(Path("evaluated/results.json").read_text())["systems"][0]
        stoi = [model["figures"][f"{name}: STOI ↑"]["mean"] for name in speech]
        of_english = system["by"]["language"]["en"]["metrics"]["stoi"]["mean"]
        assert stoi == pytest.approx([system["metrics"]["stoi"]["mean"], of_english], abs=1e-6)
        assert model["figures"]["tokens as in the first column"]["mean"] == 1, "the encoder was frozen"
        assert 0 <= model["figures"]["phoneme errors, probe on the tokens ↓"]["mean"] <= 1
        assert model["figures"]["phoneme errors, CTC head on the latents ↓"]["mean"] is None
    assert "low" not in published["figures"]["all: STOI ↑"] and "low" in trained["figures"]["all: STOI ↑"]

    weights = Path("runs/stages/after/model/model.safetensors")
    trained_at = weights.stat().st_mtime_ns
    assert main(command, {"noise": tones}) == 0 and weights.stat().st_mtime_ns == trained_at, "it was trained again"
    assert json.loads(Path("results/stages.json").read_text()) == results
    with pytest.raises(SystemExit):
        main(command, {"noise": Experiment("", (Stage("after", "", "nano"),), speech)})
    assert "after is a run with other settings" in capsys.readouterr().err


def test_changes_are_those_of_each_utterance():
    """A change that every utterance shares is certain, however much they differ."""

    def rows(change: float) -> list[Row]:
        values = [
            (name, language, value + change) for name, language, value in zip("abc", "xxy", (1, 2, 9), strict=True)
        ]
        return [
            Row(name, "codec", 1.0, {"language": language}, dict.fromkeys(run_stages.METRICS, value))
            for name, language, value in values
        ]

    first = rows(0.0)
    figure = compared("X", rows(0.5), first, "x")["X: STOI ↑"]
    assert figure == {"mean": 2.0, "low": 0.5, "high": 0.5, "utterances": 2}
    assert compared("X", first, first, None)["X: STOI ↑"] == {"mean": 4.0, "utterances": 3}


def test_the_head_is_measured_where_there_is_one(tiny_model_folder, tiny_model, tmp_path):
    """A head that says nothing has left out every phoneme."""
    write_speech(tmp_path / "speech")
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model_folder.iterdir():
        os.link(file, folder / file.name)
    head = CTCHead(["AH0", "B", "S"], "symbols", tiny_model.config.latent_dim, 8)
    head.layers[-1].bias.data[0] = 1e3  # the blank
    head.save_pretrained(folder)
    assert run_stages.phoneme_errors(folder, tmp_path / "speech")["phoneme errors, CTC head on the latents ↓"] == {
        "mean": 1.0
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["dutchh"], "there is no dutchh; choose from dutch"), (["--show", "--readme", "none.md"], "none.md")],
)
def test_mistakes_are_told_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(not RESULTS.exists(), reason="no results are kept in training/experiments/results/stages.json")
def test_the_tables_of_the_readme_are_those_of_the_results():
    assert f"{MARKERS[0]}{markdown(json.loads(RESULTS.read_text()))}\n{MARKERS[1]}" in README.read_text()
