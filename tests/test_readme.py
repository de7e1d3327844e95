"""The README's snippets, run as a reader would run them, on the model that this checkout publishes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from tiny_language_models import byte_tokenizer, language_model

from modeling_taae.cli import main as taae
from training import speak, train_speech_lm

CHECKOUT = Path(__file__).resolve().parent.parent
SNIPPETS = re.findall(r"```(\w+)\n(.*?)```", (CHECKOUT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [
    line.split(" #")[0].strip()
    for language, code in SNIPPETS
    if language == "bash"
    for line in code.splitlines()
    if line.strip()
]


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with what the snippets read: speech.wav, recordings/, my_speech/, my_voices/, my_language_model/, and
    the checkout's hub_cards/ and training/."""
    generator = np.random.default_rng(0)
    speech = generator.normal(size=32_000) * np.sin(np.arange(32_000) / 800) ** 2 * 0.1
    (tmp_path / "recordings").mkdir()
    (tmp_path / "my_speech").mkdir()
    for file in (tmp_path / "speech.wav", *(tmp_path / "recordings" / name for name in ("a.flac", "b.ogg"))):
        soundfile.write(file, speech, 16_000)
    for part in ("train", "validation"):
        shutil.copytree(tmp_path / "recordings", tmp_path / "my_voices" / part)
        (tmp_path / "my_voices" / part / "metadata.csv").write_text("file_name,text\na.flac,Good\nb.ogg,morning.\n")
    audio = {"bytes": (tmp_path / "speech.wav").read_bytes(), "path": "speech.wav"}
    Dataset.from_dict({"audio": [audio] * 3}).to_parquet(tmp_path / "my_speech" / "train.parquet")
    tokenizer = byte_tokenizer()
    for part in (tokenizer, language_model(len(tokenizer))):
        part.save_pretrained(tmp_path / "my_language_model")
    for name in ("hub_cards", "training"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PYTHON = [code for language, code in SNIPPETS if language == "python"]
PRINTED = ["torch.Size([2, 1, 50])", "torch.Size([2, 50])", "recordings/a.flac (2, 50)"]


@pytest.mark.parametrize("code, printed", list(zip(PYTHON, PRINTED, strict=True)))
def test_python_snippets_run(workplace, code, printed, capsys):
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert printed in capsys.readouterr().out


def test_shell_commands_run(workplace):
    # What is pushed is pushed to a Hub of its own, in test_push.py.
    commands = [c for c in COMMANDS if c.startswith("taae ") and not c.startswith("taae push ")]
    assert len(commands) >= 5
    for command in commands:
        assert taae(shlex.split(command)[1:]) == 0, command
    assert len(soundfile.read("again.wav")[0]) == 32_000
    assert sorted(path.name for path in Path("encoded").iterdir()) == ["a.taae", "b.taae"]


def test_the_training_command_runs(workplace):
    (command,) = [command for command in COMMANDS if command.startswith("accelerate launch")]
    brief = "--max_steps 1 --batch_size 1 --validation.utterances 1 --validation.corpus.source my_speech/train.parquet"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    subprocess.run(
        [*launcher, *shlex.split(command)[2:], *brief.split()], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )
    assert Path("runs/mine/model/model.safetensors").is_file()


def test_a_language_model_is_trained_and_speaks(workplace):
    commands = [shlex.split(c) for c in COMMANDS if "my_voices" in c or c.startswith("python training/")]
    assert [command[1] for command in commands[-3:]] == ["training/train_speech_lm.py", *["training/speak.py"] * 2]
    brief = {
        "training/train_speech_lm.py": "--budget.max_steps 1 --budget.layers 1 --budget.hidden_size 16 --samples 0",
        "training/speak.py": "--seconds 1",
    }
    mains = {"training/train_speech_lm.py": train_speech_lm.main, "training/speak.py": speak.main}
    for program, first, *rest in commands:
        status = taae([first, *rest]) if program == "taae" else mains[first]([*rest, *brief[first].split()])
        assert status == 0, (first, *rest)
    assert 0 < len(soundfile.read("said.wav")[0]) <= 16_000
    assert 32_000 <= len(soundfile.read("continued.wav")[0]) <= 48_000


def test_make_commands_exist():
    targets = re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), flags=re.MULTILINE)
    named = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert named and named <= set(targets)


def test_files_that_documents_link_to_exist():
    for document in (CHECKOUT / "README.md", CHECKOUT / "training" / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
