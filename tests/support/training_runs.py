"""What the tests of the trainer share: a corpus of tones, a recipe of a tiny model, and ways to run it."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import load_file
from support.processes import Process

from training.recipe import parse_recipe
from training.train import main
from training.trainer import Trainer

# datasets waits this many seconds for its readers at the end of a stream: long for files of a few kilobytes.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0

CHECKOUT = Path(__file__).resolve().parents[2]
TINY = {
    "patch_size": 160,
    "hidden_sizes": [16, 16],
    "strides": [2, 2],
    "encoder_depths": [0, 1],
    "decoder_depths": [0, 1],
    "head_dim": 16,
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# Options that switch on a discriminator.
ADVERSARIAL = ("--discriminator.channels", 4, "--discriminator.fft_sizes", "[78, 206, 542]")


def encoded_tone(frequency: float, seconds: float, sampling_rate: int = 16_000) -> bytes:
    time_axis = np.arange(int(seconds * sampling_rate)) / sampling_rate
    file = io.BytesIO()
    tone = 0.2 * np.sin(2 * np.pi * frequency * time_axis) * np.sin(2 * np.pi * 3 * time_axis)
    soundfile.write(file, tone, sampling_rate, format="FLAC")
    return file.getvalue()


def write_corpus(folder: Path) -> str:
    """Twelve tones of up to two seconds, one of them at 24 kHz, and two rows that are no audio; most have a text."""
    rows = [encoded_tone(200 + 50 * n, 0.5 + n / 8) for n in range(11)] + [encoded_tone(900, 1.0, 24_000)]
    rows[3:3] = [b"not audio", rows[0][:60]]
    audio = [{"bytes": row, "path": f"{n}.flac"} for n, row in enumerate(rows)]
    columns = {"audio": audio, "id": list(range(len(rows))), "text": ["Ab c"] * (len(rows) - 2) + [None, " "]}
    Dataset.from_dict(columns).to_parquet(folder / "train.parquet")
    return str(folder / "train.parquet")


def write_recipe(folder: Path, corpus: str) -> str:
    recipe = {
        "config": TINY,
        "data": {"corpora": [{"source": corpus}], "crop_frames": 16},
        "validation": {"corpus": {"source": corpus}, "every": 100, "utterances": 2, "samples": 1},
        "optimizer": {"warmup_steps": 2, "decay_steps": 4, "ema_every": 1, "ema_decay": 0.5, "learning_rate": 3e-3},
        "max_steps": 8,
        # Not what this machine does best: tests are the same on all.
        "processes": 1,
        "mixed_precision": "no",
        "attn_implementation": "sdpa",
        "batch_size": 2,
        "log_every": 1,
        "checkpoint_every": 2,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return str(folder / "recipe.yaml")


def make_trainer(recipe_file: str, *overrides: object) -> Trainer:
    """A trainer in this process, where Accelerate keeps one state for all; in one thread, as `start_training`."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    return Trainer(parse_recipe([recipe_file, *map(str, overrides)]))


def train(recipe_file: str, *overrides: object) -> Trainer:
    trainer = make_trainer(recipe_file, *overrides)
    trainer.train()
    return trainer


def untrained(command: Callable[[list[str]], int | None], arguments: list[str]) -> int | None:
    """Runs a command where nothing has trained yet."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    return command(arguments)


def train_as(arguments: list[str]) -> None:
    """The trainer's entry point."""
    sys.argv = ["train.py", *arguments]
    main()


def start_training(*arguments: object) -> Process:
    """The same as a process of its own."""
    return Process(partial(untrained, train_as, [str(argument) for argument in arguments]))


def start_script(script: str, *arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """A script of the checkout, as its user starts it."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, *launcher, str(CHECKOUT / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def published(output_dir: Path) -> dict[str, torch.Tensor]:
    """All weights that a run has published."""
    return {k: v for file in (output_dir / "model").glob("*.safetensors") for k, v in load_file(file).items()}


def assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
