"""Language models of speech on what goes wrong: damaged tokens and checkpoints, several folders, processes, kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from support.processes import Process, finish, two_processes
from support.token_folders import clip, flac
from support.training_runs import untrained
from transformers import AutoModelForCausalLM

from modeling_taae.errors import TaaeInputError
from modeling_taae.files import as_json
from modeling_taae.tokenize import tokenize_corpus, verification
from training import train_speech_lm
from training.speech_lm.checkpoints import check_checkpoint, write_folder
from training.speech_lm.corpora import TokenCorpus
from training.speech_lm.results import Budget, Result, Settings
from training.speech_lm.train import run

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
TINY = Budget(layers=1, hidden_size=16, heads=2, crop_frames=16, batch_size=2, max_steps=4, checkpoint_every=2)
OPTIONS = {"layers": 1, "hidden_size": 16, "heads": 2, "crop_frames": 16, "batch_size": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def finished(tiny_model_folder, tmp_path_factory) -> Path:
    """Folders of tokens, `[one]` and `two`, of two and three clips."""
    place = tmp_path_factory.mktemp("tokens")
    for name, numbers in {"[one]": range(2), "two": range(2, 5)}.items():
        rows = [
            {"id": f"c{n}", "audio": {"bytes": flac(clip(0.5 + 0.2 * n, n)), "path": None}, "sentence": f"Text {n}"}
            for n in numbers
        ]
        if name == "two":
            rows = [row | {"sentence": number, "more": 1.5} for number, row in enumerate(rows)]
        pa.parquet.write_table(pa.Table.from_pylist(rows), place / f"{name}.parquet")
        model, preset = str(tiny_model_folder), "4x729_1000bps"
        tokenize_corpus(place / f"{name}.parquet", place / name, model, bottleneck=preset, device="cpu")
    return place


@pytest.fixture
def tokens(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "tokens")
    return tmp_path / "tokens"


@pytest.fixture
def settings(tokens, tmp_path) -> Settings:
    return Settings([str(tokens / "[one]")], [str(tokens / "two")], str(tmp_path / "run"), samples=0, budget=TINY)


def arguments(settings: Settings, **budget: object) -> list[str]:
    """The command line of a run."""
    sizes = [part for name, value in (OPTIONS | budget).items() for part in (f"--budget.{name}", str(value))]
    corpora = ["--train", *settings.train, "--validation", *settings.validation]
    return [*corpora, "--output_dir", settings.output_dir, "--samples", "0", *sizes]


def refusal(capsys, settings: Settings) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    assert train_speech_lm.main(arguments(settings, max_steps=4)) == 2
    message = capsys.readouterr().err
    assert message.startswith("train_speech_lm.py: error: ") and message.count("\n") == 1
    return message


def shard(folder: Path) -> Path:
    return next((folder / "data").iterdir())


class TestCorpora:
    def test_several_folders_are_one_corpus(self, tokens):
        corpus = TokenCorpus([tokens / "[one]", tokens / "two"], texts="sentence")
        assert corpus.rows["id"] == [f"c{n}" for n in range(5)]
        assert corpus.text_of_rows() == ["Text 0", "Text 1", "0", "1", "2"]
        assert len(corpus.shards) == 2

    def test_from_the_hub(self, tokens, monkeypatch):
        """The Hub's cache holds links to its blobs."""
        cache = tokens / "datasets--me--mine"
        snapshot = cache / "snapshots" / "0123"
        shutil.copytree(tokens / "two", snapshot)
        (cache / "blobs").mkdir()
        file = shard(snapshot)
        file.rename(cache / "blobs" / "abc")
        file.symlink_to(cache / "blobs" / "abc")

        def download(name: str, **options: object) -> str:
            if name != "me/mine":
                raise OSError("no connection")
            return str(snapshot)

        monkeypatch.setattr(verification, "snapshot_download", download)
        assert TokenCorpus(["me/mine", tokens / "[one]"]).rows["id"][0] == "c2"
        with pytest.raises(TaaeInputError, match="me/other: is no folder, and cannot be downloaded from the Hub"):
            TokenCorpus(["me/other"])
        with pytest.raises(TaaeInputError, match="nowhere: is no folder"):
            TokenCorpus(["nowhere"])

    def test_a_corpus_that_grew(self, settings, tokens):
        run(settings)
        settings.train.append(str(tokens / "two"))
        with pytest.raises(TaaeInputError, match="was begun with other tokens .*; a corpus that grew"):
            run(settings)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda file: file.unlink(), "is missing"),
            (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
            (lambda file: os.truncate(file, 50), "has 50 bytes"),
            (lambda file: file.write_bytes(bytes(file.stat().st_size)), "another content"),
        ],
    )
    def test_damaged_shards(self, settings, tokens, capsys, damage, message):
        damage(shard(tokens / "two"))
        assert message in refusal(capsys, settings)

    def test_columns_that_are_no_texts(self, settings, tokens, capsys):
        with pytest.raises(TaaeInputError, match="column codes holds no texts"):
            TokenCorpus([tokens / "two"], texts="codes").text_of_rows()


class TestCheckpoints:
    @pytest.fixture
    def checkpoint(self, settings) -> Path:
        run(settings)
        Path(settings.output_dir, "result.json").unlink()
        return Path(settings.output_dir, "checkpoint-4")

    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
    def test_damaged(self, settings, checkpoint, capsys, name):
        whole = (checkpoint / name).read_bytes()
        for content in (whole[: len(whole) // 2], b""):
            (checkpoint / name).write_bytes(content)
            assert f"{name}: is damaged" in refusal(capsys, settings)
        (checkpoint / name).unlink()
        assert "is damaged (No such file" in refusal(capsys, settings)

    def test_of_other_processes(self, checkpoint):
        assert check_checkpoint(checkpoint, 1) == ""
        assert "was written by 1 processes, this run has 2" in check_checkpoint(checkpoint, 2)

    def test_a_run_begun_in_another_precision_goes_on(self, settings, checkpoint, capsys):
        """As those from before precision was chosen."""
        plan = json.loads(Path(settings.output_dir, "settings.json").read_text())
        plan["budget"]["bf16"] = True
        Path(settings.output_dir, "settings.json").write_text(json.dumps(plan))
        assert run(settings).bit_rate.seconds > 0

    def test_results_of_before_are_read(self, settings):
        content = run(settings).to_json()
        del content["precision"]
        content["budget"]["bf16"] = True
        again = Result.from_json(content)
        assert again.budget.bf16 is True and again.precision == ""
        assert json.loads(as_json(again.to_json())) == content | {"precision": ""}


def test_a_folder_is_written_in_one_step(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")

    def full(folder: Path) -> None:
        (folder / "new").write_text("new")
        assert (target / "old").is_file()
        raise OSError(28, "No space left on device")

    with pytest.raises(TaaeInputError, match="No space left"):
        write_folder(target, [full])
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]
    write_folder(target, [lambda folder: (folder / "new").write_text("new")])
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "new"]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def test_nobody_reads_what_is_printed(settings):
    """As in `train_speech_lm.py … | head -0`: the run ends without a traceback, and goes on at the next start."""
    command = [sys.executable, str(CHECKOUT / "training/train_speech_lm.py"), *arguments(settings, max_steps=1)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read().decode() and process.wait() == 141
    settings.budget = replace(TINY, max_steps=1)
    assert run(settings).bit_rate.seconds > 0


def main_of(settings: Settings, **budget: int) -> Callable[[], int]:
    """The command, for a process of its own."""
    return partial(untrained, train_speech_lm.main, arguments(settings, **budget))


def weights(folder: str) -> list[torch.Tensor]:
    return list(AutoModelForCausalLM.from_pretrained(Path(folder, "model")).parameters())


def test_two_processes(settings):
    """Both train, one of them speaks and writes; a second start says the same."""
    for _ in range(2):
        said = finish(*two_processes(main_of(settings, max_steps=2)))
        assert said.count("bits per second of speech") == 1, said
    assert len(list(Path(settings.output_dir, "checkpoint-2").glob("rng_state_*.pth"))) == 2
    assert weights(settings.output_dir)


def test_killed_at_random_moments(settings, tmp_path):
    """A run that is killed again and again ends with the weights of one that is left alone."""
    run(settings)
    undisturbed, settings.output_dir = settings.output_dir, str(tmp_path / "killed")
    for kill in range(10):
        process = Process(main_of(settings, max_steps=4))
        marks = ["settings.json", "checkpoint-2", "checkpoint-4", "model"]
        while kill < len(marks) and process.poll() is None and not Path(settings.output_dir, marks[kill]).exists():
            time.sleep(0.005)
        if kill < len(marks):
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
    assert process.returncode == 0
    assert all(torch.equal(a, b) for a, b in zip(weights(undisturbed), weights(settings.output_dir), strict=True))
