"""Cards are made from what they are of, and say what it says."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hub_cards import make_card
from hub_cards.cards import make_pictures, make_provenance
from hub_cards.cards.readme_tables import COMPARISON, MODELS
from modeling_taae import TaaeConfig, TaaeModel, cli
from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.hub.cards import PROJECT_URL
from modeling_taae.hub.checks import inspect

ROOT = Path(__file__).parents[2]
HUB_CARDS = ROOT / "hub_cards"
CARDS = sorted(path.parents[1] for path in HUB_CARDS.glob("*/results/results.json"))
RATE = 16_000


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
    options = ["--run", str(folder.parent / "run"), "--trained-on", "an abacus"]
    assert make_provenance.main([str(folder), *options, "--data", str(folder.parent / "*.parquet")]) == 0
    return folder


def write_log(run: Path) -> None:
    """A run on one process that was killed at step 300 and went on from a checkpoint at step 200, on three."""
    from torch.utils.tensorboard import SummaryWriter

    for start, (first, last, loss, processes) in ((1000, (50, 300, 2.0, 1)), (5000, (250, 400, 1.0, 3))):
        writer = SummaryWriter(run / "log", filename_suffix=str(start))
        for step in range(first, last + 1, 50):
            writer.add_scalar("train/log_mel", loss, step, walltime=start + step)
        writer.add_scalar("validation/stoi", 0.1 * loss, last, walltime=start + last)
        writer.add_audio("validation/sample", torch.zeros(1, 100), last, sample_rate=RATE, walltime=start + last)
        writer.close()
        hparams = run / "log" / f"{start}.5" / "hparams.yml"
        hparams.parent.mkdir()
        recipe = {"data.crop_frames": 32, "data.level_jitter": 5.0, "losses.log_mel": loss, "processes": processes}
        recipe |= {"optimizer.learning_rate": 6e-4, "mixed_precision": "bf16", "gradient_accumulation_steps": 2}
        recipe |= {"data.corpora": "[{'source': '/home/me/speech/train-*.parquet'}, {'source': '../more.parquet'}]"}
        # As older trainers logged it.
        batch_size = "batch_size: !!python/object/new:jsonargparse.typing.PositiveInt\n- 2\n"
        hparams.write_text(yaml.safe_dump({**recipe, "size": "/home/me/runs/nano/model"}) + batch_size)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to be changed, with a project README that has a place for its results."""
    start, end = COMPARISON
    (tmp_path / "README.md").write_text(f"before\n{start.format(name=made.name)}old\n{end}\nafter\n")
    return Path(shutil.copytree(made, tmp_path / "hub_cards" / made.name))


FURTHER = {
    "judged": [],
    "presets": ["--bottleneck", "1x46656_400bps", "native", "2x15625_700bps"],
    "robustness": ["--noise", "NOISE", "--snr", "10", "--lengths", "2", "--music"],
    "transmission": ["--tandem", "2", "--packet-loss", "0.1"],
    "multilingual": [],
}


@pytest.fixture(scope="module")
def made_further(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with further results."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("further") / made.name))
    noise = made.parent / "noise.wav"
    soundfile.write(noise, clip(9), RATE)
    shared = [
        str(made.parent / "speech"),
        "--model",
        str(folder),
        "--peers",
        "pcm16",
        "--metrics",
        "stoi",
        "mel_distance",
    ]
    shared += ["--limit", "2", "--workers", "1", "--samples", "0", "--no-speed"]
    for name, options in FURTHER.items():
        options = [str(noise) if option == "NOISE" else option for option in options]
        assert cli.main(["evaluate", *shared, *options, "-o", str(folder / "results" / name)]) == 0
    probes, generator = importlib.import_module("training.benchmarks.probes"), np.random.default_rng(0)
    rows = [
        {"id": str(n), "speaker": f"s{n // 4}", "gender": "fm"[n // 4 % 2]}
        | {kind: generator.normal(size=(5, 3)).astype(np.float32) for kind in ("tokens", "log-mel")}
        for n in range(40)
    ]
    identity = load_codec(str(folder)).identity
    facts = {"model_identity": identity, "bottleneck": "1x46656_400bps", "speech": ["test.parquet"]}
    (folder / "results" / "probes.json").write_text(json.dumps(facts | probes.probe_utterances(rows)))
    assert make_pictures.main([str(folder)]) == 0
    return folder


class TestSections:
    def test_a_card_without_further_results_has_none_of_them(self, folder):
        make_card.main([str(folder)])
        text = (folder / "README.md").read_text()
        for heading in ("### Quality against bit rate", "### Under harder conditions", "## Information in the tokens"):
            assert heading not in text
        assert "women and men, for different ages and accents was not measured" in text and "shown above" not in text

    def test_they_say_what_the_results_say(self, made_further):
        assert make_card.main([str(made_further)]) == 0
        text = (made_further / "README.md").read_text()
        results = {name: json.loads((made_further / "results" / name / "results.json").read_text()) for name in FURTHER}
        assert "![Quality against bit rate" in text and (made_further / "rates.png").is_file()
        assert "![Words, naturalness and voice" in text and (made_further / "quality.png").is_file()
        assert "\n2 utterances of `speech`, judged by networks:" in text
        assert "`native` and `2x15625_700bps` give the same audio" in text
        table = {
            line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in text.splitlines() if line[:1] == "|"
        }
        stoi, peer = (
            {name: f"{group['metrics']['stoi']['mean']:.3f}" for name, group in system["by"]["condition"].items()}
            for system in results["robustness"]["systems"]
        )
        for trial, clips in (("as recorded", "2"), ("noise at 10 dB", "2"), ("2 s long", "1")):
            assert table[trial] == [clips, stoi[trial], f"{peer[trial]} |"]
        twice, _, lost = (f"{s['metrics']['stoi']['mean']:.3f}" for s in results["transmission"]["systems"][2:])
        assert table["2 times in a row"][1] == twice and table["10% of frames lost"] == ["2", lost, "– |"]
        music = results["robustness"]["systems"][0]["by"]["condition"]["music"]["metrics"]["mel_distance"]["mean"]
        assert "Noise is from `noise.wav`." in text
        assert f"music end up at a mel distance of {music:.2f}" in text and "| music |" not in text
        probes = json.loads((made_further / "results" / "probes.json").read_text())
        share = 100 * probes["gender"]["tokens"]["balanced_accuracy"]
        assert table["gender, accuracy ↑"][:3] == ["2", "40", f"{share:.0f} %"] and "language, accuracy" not in text
        assert "{{" not in text and "None" not in text.replace("None of", "")
        (made_further / "README.md").write_text(text.replace(PROJECT_URL, "https://github.com/a-team/taae"))
        assert "under cc-by-sa-4.0" in inspect(made_further).summary

    @pytest.mark.parametrize("name", ["presets/results.json", "transmission/results.json", "probes.json"])
    def test_of_other_weights_they_are_refused(self, made_further, tmp_path, capsys, name):
        folder = Path(shutil.copytree(made_further, tmp_path / "model"))
        path = folder / "results" / name
        identity = load_codec(str(folder)).identity
        path.write_text(path.read_text().replace(identity, "0123456789abcdef"))
        assert make_card.main([str(folder), "--check"]) == 2
        assert f"{path}: holds results of other weights" in capsys.readouterr().err

    def test_a_language_counts_once_however_many_clips_it_has(self, folder):
        results = json.loads((folder / "results" / "results.json").read_text())

        def groups(means: dict[str, tuple[int, float]]) -> dict:
            return {
                name: {"utterances": count, "metrics": dict.fromkeys(results["metrics"], {"mean": mean, "n": count})}
                for name, (count, mean) in means.items()
            }

        others = {f"x{n:02}": (1, 0.7 + 0.01 * n) for n in range(11)}
        ours, peer = results["systems"]
        ours["by"] = {"language": groups({"en": (1, 0.9), "de": (99, 0.6), **others})}
        peer["by"] = {"language": groups({"en": (1, 1.0), "de": (99, 1.0), **dict.fromkeys(others, (1, 1.0))})}
        (folder / "results" / "languages").mkdir()
        (folder / "results" / "languages" / "results.json").write_text(json.dumps(results))
        make_card.main([str(folder)])
        text = (folder / "README.md").read_text()
        rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:4] for line in text.splitlines() if line[:2] == "| "}
        assert "3 clips in 13 languages" in text
        assert rows["in the training data"] == ["2", "100", "0.750"]  # English and German, of 0.9 and 0.6
        assert rows["not in the training data"] == ["11", "11", "0.750"] and rows["English"] == ["1", "1", "0.900"]
        assert "lowest for de (0.600), x00 (0.700), x01 (0.710)" in text
        assert "highest for en (0.900), x10 (0.800)" in text

    def test_speakers_of_each_gender(self, folder):
        path = folder / "results" / "results.json"
        results = json.loads(path.read_text())
        stoi = dict.fromkeys(("mean", "low", "high"), 0.5)
        results["systems"][0]["by"]["gender"] = {
            name: {"utterances": count, "metrics": {"stoi": stoi}} for name, count in (("f", 7), ("m", 8))
        }
        path.write_text(json.dumps(results))
        make_card.main([str(folder)])
        text = (folder / "README.md").read_text()
        assert "for 7 of female speakers; STOI 0.500 (0.500 to 0.500) for 8 of male speakers" in text
        assert "accents was not measured" not in text


@pytest.fixture
def causal_folder(folder: Path) -> Path:
    """A causal model's folder, with results of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": (32, 32), "encoder_depths": (1, 1), "decoder_depths": (1, 1), "head_dim": 32}
    model = TaaeModel(TaaeConfig(causal=True, **sizes))
    identity = load_codec(str(folder)).identity
    model.save_pretrained(folder)
    for name in ("results/results.json", "training.json"):
        text = (folder / name).read_text().replace(identity, load_codec(str(folder)).identity)
        (folder / name).write_text(text)
    return folder


class TestUse:
    """The card's Python, run as it stands there."""

    @staticmethod
    def blocks(folder: Path) -> list[str]:
        return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)

    @pytest.mark.slow
    def test_clips(self, folder, monkeypatch):
        make_card.main([str(folder)])
        (code,) = self.blocks(folder)
        stereo_at_44_khz = np.stack([clip(0).repeat(3)[:44_100]] * 2, axis=1)
        soundfile.write(folder.parent / "speech.wav", stereo_at_44_khz, 44_100)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        run = [sys.executable, "-c", f"import sys; sys.modules['modeling_taae'] = None\n{code}"]
        subprocess.run(run, cwd=folder.parent, env=environment, check=True)
        assert soundfile.info(folder.parent / "decoded.wav").frames == RATE

    def test_a_stream(self, causal_folder, monkeypatch):
        assert make_card.main([str(causal_folder)]) == 0
        assert "in frames of 40 ms" in (causal_folder / "README.md").read_text()
        clips, stream = self.blocks(causal_folder)
        monkeypatch.chdir(causal_folder.parent)
        soundfile.write("speech.wav", clip(0), RATE)
        audio = torch.from_numpy(clip(0))[None, None, :-100]
        chunks, heard = audio.split(1_000, dim=-1), []
        names = {"chunks": (chunk for chunk in chunks), "heard": heard}
        exec(clips, names)
        exec(stream.replace("\nlast", "\n    heard.append(decoded.audio_values)\nlast"), names)
        model, last = names["model"], names["last"]
        heard.append(model.decode(last.audio_codes, state=names["decoder_state"]).audio_values)
        assert last.audio_codes.shape[-1] == 1
        with torch.no_grad():
            whole = model.decode(model.encode(audio).audio_codes).audio_values
            assert torch.allclose(torch.cat(heard, dim=-1), whole, atol=1e-4)


class TestCard:
    def test_says_what_the_results_say(self, folder):
        assert make_card.main([str(folder)]) == 0
        results = json.loads((folder / "results" / "results.json").read_text())
        stoi = results["systems"][0]["metrics"]["stoi"]
        text = (folder / "README.md").read_text()
        assert f"| {stoi['mean']:.3f} ({stoi['low']:.3f} to {stoi['high']:.3f}) |" in text
        assert "trained further from `model` on 3 hours" in text and "67 % of the hours in English" in text
        assert "400 optimiser steps" in text and "an abacus" in text
        assert "4 crops until step 200, then 12 crops of 1.28 s" in text and "1 hours in all" in text
        assert "| [kerstin](https://github.com/rhasspy/dataset-voice-kerstin) | de | 1.00 | unknown | CC0-1.0 |" in text
        card = ModelCard(text)
        assert (card.data.license, card.data.language) == ("cc-by-sa-4.0", ["en", "de"])
        assert "Attribution-ShareAlike 4.0 International" in (folder / "LICENSE").read_text()
        assert "{{" not in text and "None" not in text.replace("None of", "")

    def test_the_test_set_is_told_by_source(self, folder):
        path = folder / "results" / "results.json"
        results = json.loads(path.read_text())
        share = {"utterances": 3, "seconds": 90.0, "speakers": 2}
        results["data"]["parts"] = {"source": {"LibriSpeech": share, "mine": share | {"speakers": 0}}}
        path.write_text(json.dumps(results))
        make_card.main([str(folder)])
        text = (folder / "README.md").read_text()
        assert "| [LibriSpeech](https://www.openslr.org/12) | 3 | 1.5 | 2 | audiobooks, read by volunteers" in text
        assert "| mine | 3 | 1.5 | – | – |" in text

    def test_hub_results(self, folder):
        make_card.main([str(folder)])
        entries = ModelCard.load(folder / "README.md").data.eval_results
        results = json.loads((folder / "results" / "results.json").read_text())
        values = {name: value["mean"] for name, value in results["systems"][0]["metrics"].items()}
        assert {entry.metric_type: entry.metric_value for entry in entries} == values
        # Recordings in a folder: there is no data set on the Hub that they could be taken for.
        assert {(entry.dataset_type, entry.dataset_name) for entry in entries} == {
            ("audiofolder", "speech, 3 utterances (not on the Hub)")
        }

    def test_cost_is_told_with_its_assumption(self, folder):
        facts = json.loads((folder / "training.json").read_text()) | {"process_hours": 6.0, "watts": 500}
        (folder / "training.json").write_text(json.dumps(facts))
        make_card.main([str(folder)])
        text = (folder / "README.md").read_text()
        assert "6.0 hours of a process at an assumed 500 W, memory and cooling included, which is 3 kWh" in text

    def test_stages_before_the_last_are_told_first(self, folder, made):
        """A run that goes on from a published model: its steps go on counting, and what it cost comes on top."""
        before = Path(shutil.copytree(folder, folder.parent / "before"))
        facts = json.loads((before / "training.json").read_text())
        facts["recipe"] |= {"size": "nano", "config.causal": True, "data.augmentation.speed": 0.1}
        facts["recipe"] |= {"perceptual.model": "wavlm-large", "losses.perceptual": 3.0}
        (before / "training.json").write_text(json.dumps(facts | {"process_hours": 2.0, "watts": 500}))
        options = ["--run", str(made.parent / "run"), "--trained-on", "a slide rule", "--after", str(before)]
        for folder_of_last in (folder, before):  # the stages of stages come along
            assert make_provenance.main([str(folder_of_last), *options, "--averaged", "its start"]) == 0
        curves = [line.split(",")[:2] for line in (folder / "curves.csv").read_text().splitlines()]
        steps = [*range(50, 401, 50)]
        assert [int(step) for step, _ in curves[1:]] == [*steps, *(400 + step for step in steps)]
        assert [loss for _, loss in curves[1:]] == 2 * ["2", "2", "2", "2", "1", "1", "1", "1"]
        assert make_card.main([str(folder)]) == 0
        text = (folder / "README.md").read_text()
        first, second = (text.index(f"**Stage {number}.** 400 optimiser steps") for number in (1, 2))
        assert (
            first
            < text.index("an abacus. Changed in the configuration: causal True. Each step had")
            < second
            < text.index("a slide rule")
        )
        assert "Each of these changes is made to 50% of the crops: speed by up to 10%." in text
        assert text.count("At its end, on validation speech: STOI 0.100.") == 2
        assert "perceptual 3. The perceptual loss compares hidden states of wavlm-large. At its end" in text
        assert "parameters, trained from scratch on 3 hours" in text
        assert "2.0 hours of a process at an assumed 500 W and" in text
        assert second < text.index("Its weights were then averaged with its start.")
        assert len(json.loads((before / "training.json").read_text())["before"]) == 1
        assert make_pictures.main([str(folder)]) == 0

    def test_a_recording_in_two_files_counts_once(self, folder, tmp_path):
        row = {"source": "kerstin", "license": "CC0-1.0", "language": "de", "duration": 3600.0, "speaker_id": "k"}
        for name, ids in (("first", "ab"), ("second", "bc")):
            rows = [row | {"id": each} for each in ids]
            pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        assert make_provenance.main([str(folder), "--data", str(tmp_path / "*.parquet")]) == 0
        data = json.loads((folder / "training_data.json").read_text())
        assert data["languages"] == {"de": 3.0} and data["sources"][0]["utterances"] == 3

    def test_a_folder_before_that_does_not_tell(self, folder, made, tmp_path, capsys):
        options = ["--run", str(made.parent / "run"), "--after", str(tmp_path)]
        assert make_provenance.main([str(folder), *options]) == 2
        assert "has no facts of its model's training" in capsys.readouterr().err

    def test_what_training_started_from(self, folder):
        facts = json.loads((folder / "training.json").read_text())
        facts["recipe"]["size"] = "hub_cards/taae-speech-16k-nano"
        (folder / "training.json").write_text(json.dumps(facts))
        make_card.main([str(folder)])
        assert "trained further from `taae-speech-16k-nano` on 3 hours" in (folder / "README.md").read_text()

    def test_it_can_be_published(self, folder):
        make_card.main([str(folder)])
        card = folder / "README.md"
        with pytest.raises(TaaeInputError, match="the placeholder of the project's address"):
            inspect(folder)
        card.write_text(card.read_text().replace(PROJECT_URL, "https://github.com/a-team/taae"))
        assert "under cc-by-sa-4.0" in inspect(folder).summary
        card.write_text(
            card.read_text().replace("    - type: stoi\n      value: 0", "    - type: stoi\n      value: 1")
        )
        with pytest.raises(TaaeInputError, match="header of README.md has another figure for stoi"):
            inspect(folder)

    def test_project_readme_keeps_the_rest(self, folder):
        make_card.main([str(folder)])
        text = (folder.parents[1] / "README.md").read_text()
        assert text.startswith("before\n<!-- comparison") and text.endswith("<!-- /comparison -->\nafter\n")
        assert "| pcm16 |" in text and "old" not in text.replace("LUFS", "")

    def test_several_models_fill_their_parts_of_one_readme(self, folder):
        readme, other = folder.parents[1] / "README.md", folder.with_name("taae-other")
        shutil.copytree(folder, other)
        start, end = MODELS
        assert make_card.main([str(other)]) == 0  # the table of models lists those with a card
        readme.write_text(f"{readme.read_text()}{start}old\n{end}\n")
        assert make_card.main([str(folder), str(other)]) == 0
        text = readme.read_text()
        assert "| pcm16 |" in text and "[taae-other](hub_cards/taae-other/README.md)" in text and "old" not in text
        assert make_card.main([str(other), str(folder), "--check"]) == 0

    def test_check_fails_when_results_and_card_disagree(self, folder, capsys):
        assert make_card.main([str(folder), "--check"]) == 1
        assert make_card.main([str(folder)]) == 0
        assert make_card.main([str(folder), "--check"]) == 0
        path = folder / "results" / "results.json"
        results = json.loads(path.read_text())
        results["systems"][0]["metrics"]["stoi"]["mean"] += 0.01
        path.write_text(json.dumps(results))
        assert make_card.main([str(folder), "--check"]) == 1
        assert "README.md is out of date" in capsys.readouterr().err

    def test_results_of_other_weights_are_refused(self, folder, make_tiny_model, capsys):
        make_tiny_model(seed=1).save_pretrained(folder)
        assert make_card.main([str(folder)]) == 2
        assert "results of other weights" in capsys.readouterr().err

    @pytest.mark.parametrize("missing", ["results/results.json", "training.json", "training_data.json"])
    def test_what_is_missing_is_told(self, folder, capsys, missing):
        (folder / missing).unlink()
        assert make_card.main([str(folder)]) == 2
        assert f"{folder / missing}: is missing; run `make" in capsys.readouterr().err

    def test_sources_without_credit_are_refused(self, folder, capsys):
        path = folder / "training_data.json"
        path.write_text(path.read_text().replace("kerstin", "someone"))
        assert make_card.main([str(folder)]) == 2
        assert "no credit for someone" in capsys.readouterr().err


@pytest.mark.parametrize(("gap", "verdict"), [("0.01", True), ("0.4", False)])
def test_what_limits_a_model_follows_from_its_curves(tmp_path, gap, verdict):
    sections = importlib.import_module("hub_cards.cards.card_sections")
    file = tmp_path / "curves.csv"
    assert sections.gap_text(sections.read_curves(file)) == ""
    header = "step,validation/gap,validation/loss\n"
    file.write_text(f"{header}50,,\n100,9,9\n200,{gap},2.5\n250,,\n")
    text = sections.gap_text(sections.read_curves(file))
    assert f"Final loss: 2.50 on validation speech, {2.5 - float(gap):.2f} on training speech." in text
    assert ("does not overfit" in text, "is starting to overfit" in text) == (verdict, not verdict)


class TestProvenance:
    def test_says_who_made_the_recordings(self, made):
        """Cards of models that are fine-tuned from this one have to name them."""
        first, second = json.loads((made / "training_data.json").read_text())["sources"]
        assert first["attribution"] == "Linda Johnson, Keith Ito, https://keithito.com/LJ-Speech-Dataset/"
        assert second["attribution"].startswith("Kerstin and Michael Hansen")

    @pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
    def test_published_models_say_who_made_their_recordings(self, folder):
        for source in json.loads((folder / "training_data.json").read_text())["sources"]:
            assert source["attribution"] == make_provenance.attribution(source["name"]) != ""

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
        assert facts["model_identity"] == load_codec(str(made)).identity

    def test_processes_that_changed(self, made):
        facts = json.loads((made / "training.json").read_text())
        assert facts["process_hours"] == pytest.approx((150 + 3 * 150) / 3600, abs=0.005)
        # Two accumulated batches of two crops a process.
        assert facts["batches"] == [{"crops": 4, "until_step": 200}, {"crops": 12, "until_step": 400}]
        assert facts["frames"] == 32 * (200 * 4 + 200 * 12)

    def test_folders_are_nobody_s_business(self, made):
        text = (made / "training.json").read_text()
        assert "/home" not in text
        recipe = json.loads(text)["recipe"]
        assert recipe["data.corpora"] == "[{'source': 'train-*.parquet'}, {'source': '../more.parquet'}]"
        assert recipe["size"] == "model"

    def test_a_log_that_does_not_tell_of_how_many_processes(self, made, tmp_path, capsys):
        run = Path(shutil.copytree(made.parent / "run", tmp_path / "run"))
        log = next(run.glob("log/*/hparams.yml"))
        log.write_text(log.read_text().replace("processes:", "threads:"))
        assert make_provenance.main([str(tmp_path), "--run", str(run)]) == 2
        assert f"{log}: lacks the number of processes" in capsys.readouterr().err
        assert not (tmp_path / "training.json").exists()

    def test_earlier_weights(self, made, tmp_path):
        folder = Path(shutil.copytree(made, tmp_path / "model"))
        make_provenance.main([str(folder), "--run", str(made.parent / "run"), "--until", "300"])
        facts = json.loads((folder / "training.json").read_text())
        assert (facts["steps"], facts["batches"][-1]["until_step"]) == (300, 300)

    def test_nothing_to_read(self, tmp_path, capsys):
        assert make_provenance.main([str(tmp_path), "--run", str(tmp_path)]) == 2
        assert "no TensorBoard log" in capsys.readouterr().err


def test_pictures(made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "model"))
    speech = str(made.parent / "speech")
    assert make_pictures.main([str(folder), "--speech", speech, "--id", "1.wav"]) == 0
    for name in ("curves.png", "spectrogram.png"):
        assert Image.open(folder / name).text["model_identity"] == load_codec(str(folder)).identity


class TestMetricCards:
    @pytest.mark.parametrize("name", ["stoi", "word_error_rate"])
    def test_says_what_the_module_says(self, tmp_path, name):
        folder = Path(shutil.copytree(HUB_CARDS / "metrics" / name, tmp_path / name))
        (folder / "README.md").unlink()
        assert make_card.main([str(folder)]) == 0
        description = evaluate.load(str(folder)).description.strip()
        card = ModelCard.load(folder / "README.md")
        assert description in card.text and {"evaluate", "metric"} <= set(card.data.tags)
        assert inspect(folder).repo_type == "space" and not inspect(folder).with_package

    def test_published_ones_are_up_to_date(self):
        folders = [path.parent for path in sorted((HUB_CARDS / "metrics").glob("*/*.py"))]
        assert len(folders) >= 8
        assert make_card.main([*map(str, folders), "--check"]) == 0


class TestSpaceCard:
    def test_says_what_the_limits_are(self, tmp_path):
        for name in ("app.py", "limits.py"):
            shutil.copy(HUB_CARDS / "space" / name, tmp_path)
        text = (tmp_path / "limits.py").read_text()
        (tmp_path / "limits.py").write_text(text + "\nCLIPS, LONGEST_CLIP = 7, 44\n")
        assert make_card.main([str(tmp_path)]) == 0
        assert "7\nclips of up to 44 seconds" in (tmp_path / "README.md").read_text()
        assert inspect(tmp_path).sdk == "gradio"

    def test_the_published_one_is_up_to_date(self):
        assert make_card.main([str(HUB_CARDS / "space"), "--check"]) == 0


def test_a_converted_model_has_a_card_of_its_own(folder):
    source = {"name": "theirs", "weights": "model.ckpt", "sha256": "0", "description": "model_config.json"}
    conversion = {"modeling_taae": "0.1.0", "source": source, "license": {"license": "mit"}, "license_files": []}
    (folder / "conversion.json").write_text(json.dumps(conversion))
    assert make_card.main([str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert "The weights of `theirs`" in text and "| pcm16 |" in text


def test_other_folders_have_no_card(tmp_path, capsys):
    assert make_card.main([str(tmp_path)]) == 2
    assert "contains nothing to make a card of" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not CARDS, reason="no model with results is in this checkout yet")
@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_published_cards_agree_with_their_results(folder):
    assert make_card.main([str(folder), "--check"]) == 0
