"""Cards are made from what they are of, and say what it says."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import evaluate
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
import yaml
from huggingface_hub import ModelCard

from modeling_taae import cli
from modeling_taae.audio_io import TaaeInputError
from modeling_taae.publication import inspect

ROOT = Path(__file__).parents[1]
HUB_CARDS = ROOT / "hub_cards"
CARDS = sorted(path.parents[1] for path in HUB_CARDS.glob("*/results/results.json"))
RATE = 16_000

pytestmark = pytest.mark.skipif(not HUB_CARDS.is_dir(), reason="the cards are in a checkout of the project only")


def script(name: str) -> ModuleType:
    """A script of hub_cards, as a module."""
    sys.path.insert(0, str(HUB_CARDS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(HUB_CARDS))


@pytest.fixture(scope="module")
def make_card() -> ModuleType:
    return script("make_card")


@pytest.fixture(scope="module")
def model_card() -> ModuleType:
    return script("model_card")


def clip(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, RATE).astype(np.float32)


@pytest.fixture(scope="module")
def made(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder with results and provenance."""
    folder = tmp_path_factory.mktemp("card") / "taae-tiny"
    shutil.copytree(tiny_model_folder, folder)
    speech = folder.parent / "speech"
    for number in range(3):
        (speech / "deep").mkdir(parents=True, exist_ok=True)
        soundfile.write(speech / f"{number}.wav", clip(number), RATE)
    command = ["evaluate", str(speech), "--model", str(folder), "-o", str(folder / "results"), "--peers", "pcm16"]
    assert cli.main([*command, "--metrics", "stoi", "si_sdr", "--workers", "1", "--samples", "0", "--no-speed"]) == 0
    rows = [
        {"source": "LJSpeech", "license": "Public-Domain", "language": "en", "duration": 7200.0, "speaker_id": "lj"},
        {"source": "kerstin", "license": "CC0-1.0", "language": "de", "duration": 3600.0, "speaker_id": "x-unknown"},
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), folder.parent / "train.parquet")
    write_log(folder.parent / "run")
    provenance = script("make_provenance")
    options = ["--run", str(folder.parent / "run"), "--trained-on", "an abacus", "--processes", "3"]
    assert provenance.main([str(folder), *options, "--data", str(folder.parent / "*.parquet")]) == 0
    return folder


def write_log(run: Path) -> None:
    """A run that was killed at step 300 and went on from a checkpoint at step 200."""
    from torch.utils.tensorboard import SummaryWriter

    for start, (first, last, loss) in ((1000, (50, 300, 2.0)), (5000, (250, 400, 1.0))):
        writer = SummaryWriter(run / "log", filename_suffix=str(start))
        for step in range(first, last + 1, 50):
            writer.add_scalar("train/log_mel", loss, step, walltime=start + step)
        writer.add_scalar("validation/stoi", 0.1 * loss, last, walltime=start + last)
        writer.close()
        hparams = run / "log" / f"{start}.5" / "hparams.yml"
        hparams.parent.mkdir()
        recipe = {"batch_size": 4, "data.crop_frames": 32, "data.level_jitter": 5.0, "losses.log_mel": loss}
        hparams.write_text(yaml.safe_dump({**recipe, "optimizer.learning_rate": 6e-4, "mixed_precision": "bf16"}))


@pytest.fixture
def folder(made: Path, tmp_path: Path, model_card: ModuleType, monkeypatch) -> Path:
    """A copy to be changed, with a project README that has a place for its results."""
    start, end = model_card.COMPARISON
    (tmp_path / "README.md").write_text(f"before\n{start.format(name=made.name)}old\n{end}\nafter\n")
    monkeypatch.setattr(model_card, "README", tmp_path / "README.md")
    return Path(shutil.copytree(made, tmp_path / made.name))


class TestCard:
    def test_says_what_the_results_say(self, folder, make_card):
        assert make_card.main([str(folder)]) == 0
        results = json.loads((folder / "results" / "results.json").read_text())
        stoi = results["systems"][0]["metrics"]["stoi"]
        text = (folder / "README.md").read_text()
        assert f"| {stoi['mean']:.3f} ({stoi['low']:.3f} to {stoi['high']:.3f}) |" in text
        assert "trained from scratch on 3 hours" in text and "67 % of the hours in English" in text
        assert "400 optimiser steps" in text and "12 crops of 1.28 s" in text and "an abacus" in text
        assert (
            "| [kerstin](https://github.com/rhasspy/dataset-voice-kerstin) | de | 1.00 | not told | CC0-1.0 |" in text
        )
        card = ModelCard(text)
        assert (card.data.license, card.data.language) == ("cc-by-sa-4.0", ["en", "de"])
        assert "Attribution-ShareAlike 4.0 International" in (folder / "LICENSE").read_text()
        assert "{{" not in text and "None" not in text.replace("None of", "")

    def test_hub_results(self, folder, make_card):
        make_card.main([str(folder)])
        entries = ModelCard.load(folder / "README.md").data.eval_results
        results = json.loads((folder / "results" / "results.json").read_text())
        values = {name: value["mean"] for name, value in results["systems"][0]["metrics"].items()}
        assert {entry.metric_type: entry.metric_value for entry in entries} == values
        # Recordings in a folder: there is no data set on the Hub that they could be taken for.
        assert {(entry.dataset_type, entry.dataset_name) for entry in entries} == {
            ("audiofolder", "speech, 3 utterances (not on the Hub)")
        }

    def test_cost_is_told_with_its_assumption(self, folder, make_card):
        facts = json.loads((folder / "training.json").read_text()) | {"hours": 2.0, "processes": 3, "watts": 500}
        (folder / "training.json").write_text(json.dumps(facts))
        make_card.main([str(folder)])
        text = (folder / "README.md").read_text()
        assert "6.0 hours of a process (2.0 hours of 3), which at an assumed 500 W each" in text and "is 3 kWh" in text

    def test_what_training_started_from(self, folder, make_card):
        facts = json.loads((folder / "training.json").read_text())
        facts["recipe"]["size"] = "hub_cards/taae-speech-16k-nano"
        (folder / "training.json").write_text(json.dumps(facts))
        make_card.main([str(folder)])
        assert "trained on from `taae-speech-16k-nano` on 3 hours" in (folder / "README.md").read_text()

    def test_it_can_be_published(self, folder, make_card):
        make_card.main([str(folder)])
        assert "under cc-by-sa-4.0" in inspect(folder).summary
        card = folder / "README.md"
        card.write_text(
            card.read_text().replace("    - type: stoi\n      value: 0", "    - type: stoi\n      value: 1")
        )
        with pytest.raises(TaaeInputError, match="header of README.md has another figure for stoi"):
            inspect(folder)

    def test_project_readme_keeps_the_rest(self, folder, make_card, model_card):
        make_card.main([str(folder)])
        text = model_card.README.read_text()
        assert text.startswith("before\n<!-- comparison") and text.endswith("<!-- /comparison -->\nafter\n")
        assert "| pcm16 |" in text and "old" not in text.replace("LUFS", "")

    def test_check_fails_when_results_and_card_disagree(self, folder, make_card, capsys):
        assert make_card.main([str(folder), "--check"]) == 1
        assert make_card.main([str(folder)]) == 0
        assert make_card.main([str(folder), "--check"]) == 0
        path = folder / "results" / "results.json"
        results = json.loads(path.read_text())
        results["systems"][0]["metrics"]["stoi"]["mean"] += 0.01
        path.write_text(json.dumps(results))
        assert make_card.main([str(folder), "--check"]) == 1
        assert "README.md does not say what it is made of" in capsys.readouterr().err

    def test_results_of_other_weights_are_refused(self, folder, make_card, make_tiny_model, capsys):
        make_tiny_model(seed=1).save_pretrained(folder)
        assert make_card.main([str(folder)]) == 2
        assert "results of other weights" in capsys.readouterr().err

    @pytest.mark.parametrize("missing", ["results/results.json", "training.json", "training_data.json"])
    def test_what_is_missing_is_told(self, folder, make_card, capsys, missing):
        (folder / missing).unlink()
        assert make_card.main([str(folder)]) == 2
        assert f"{folder / missing}: is missing; run `make" in capsys.readouterr().err

    def test_sources_without_credit_are_refused(self, folder, make_card, capsys):
        path = folder / "training_data.json"
        path.write_text(path.read_text().replace("kerstin", "someone"))
        assert make_card.main([str(folder)]) == 2
        assert "no credit for someone" in capsys.readouterr().err


class TestProvenance:
    def test_steps_that_were_lost_are_left_out(self, made):
        lines = (made / "curves.csv").read_text().splitlines()
        assert lines[0] == "step,train/log_mel,validation/stoi"
        losses = {int(line.split(",")[0]): line.split(",")[1] for line in lines[1:]}
        assert losses == {50: "2", 100: "2", 150: "2", 200: "2", 250: "1", 300: "1", 350: "1", 400: "1"}

    def test_facts(self, made):
        facts = json.loads((made / "training.json").read_text())
        assert (facts["steps"], facts["recipe"]["losses.log_mel"]) == (400, 1.0)
        # 150 seconds up to step 200, 150 from step 250 on; the pause between them was none of the run's.
        assert facts["hours"] == pytest.approx(300 / 3600, abs=0.005)

    def test_earlier_weights(self, made, tmp_path):
        script("make_provenance").main([str(tmp_path), "--run", str(made.parent / "run"), "--until", "300"])
        assert json.loads((tmp_path / "training.json").read_text())["steps"] == 300

    def test_nothing_to_read(self, tmp_path, capsys):
        assert script("make_provenance").main([str(tmp_path), "--run", str(tmp_path)]) == 2
        assert "no TensorBoard log" in capsys.readouterr().err


def test_pictures(made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "model"))
    assert script("make_pictures").main([str(folder), "--speech", str(made.parent / "speech"), "--id", "1.wav"]) == 0
    for name in ("curves.png", "spectrogram.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


class TestMetricCards:
    @pytest.mark.parametrize("name", ["stoi", "word_error_rate"])
    def test_says_what_the_module_says(self, make_card, tmp_path, name):
        folder = Path(shutil.copytree(HUB_CARDS / "metrics" / name, tmp_path / name))
        (folder / "README.md").unlink()
        assert make_card.main([str(folder)]) == 0
        description = evaluate.load(str(folder)).description.strip()
        card = ModelCard.load(folder / "README.md")
        assert description in card.text and {"evaluate", "metric"} <= set(card.data.tags)
        assert inspect(folder).repo_type == "space" and not inspect(folder).with_package

    def test_published_ones_are_up_to_date(self, make_card):
        folders = [path.parent for path in sorted((HUB_CARDS / "metrics").glob("*/*.py"))]
        assert len(folders) >= 8
        assert make_card.main([*map(str, folders), "--check"]) == 0


class TestSpaceCard:
    def test_says_what_the_limits_are(self, make_card, tmp_path):
        for name in ("app.py", "limits.py"):
            shutil.copy(HUB_CARDS / "space" / name, tmp_path)
        text = (tmp_path / "limits.py").read_text()
        (tmp_path / "limits.py").write_text(text + "\nCLIPS, LONGEST_CLIP = 7, 44\n")
        assert make_card.main([str(tmp_path)]) == 0
        assert "7\nclips of up to 44 seconds" in (tmp_path / "README.md").read_text()
        assert inspect(tmp_path).sdk == "gradio"

    def test_the_published_one_is_up_to_date(self, make_card):
        assert make_card.main([str(HUB_CARDS / "space"), "--check"]) == 0


def test_a_converted_model_has_a_card_of_its_own(folder, make_card):
    source = {"name": "theirs", "weights": "model.ckpt", "sha256": "0", "description": "model_config.json"}
    conversion = {"modeling_taae": "0.1.0", "source": source, "license": {"license": "mit"}, "license_files": []}
    (folder / "conversion.json").write_text(json.dumps(conversion))
    assert make_card.main([str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert "The weights of `theirs`" in text and "| pcm16 |" in text


def test_other_folders_have_no_card(make_card, tmp_path, capsys):
    assert make_card.main([str(tmp_path)]) == 2
    assert "holds nothing that a card can be made of" in capsys.readouterr().err


@pytest.mark.skipif(not CARDS, reason="no model with results is in this checkout yet")
@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_published_cards_agree_with_their_results(folder, make_card):
    assert make_card.main([str(folder), "--check"]) == 0
