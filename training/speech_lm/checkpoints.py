"""Checkpoints of Transformers' Trainer, and folders that are written in one step."""

import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from modeling_taae.errors import TaaeInputError, one_line

RANDOM_STATES = "rng_state*.pth"


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint: one with the Trainer's state, which is written last."""
    complete = [state.parent for state in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(complete, key=lambda checkpoint: int(checkpoint.name.split("-")[1])) if complete else None


def check_checkpoint(checkpoint: Path, processes: int) -> str:
    """Checks the files of a checkpoint, without unpickling anything.

    The Trainer ignores missing random states, so that the run would continue with other ones.

    Args:
        checkpoint: the folder.
        processes: the number of processes that resume from it.

    Returns:
        A line about random states that differ; empty if there are none.

    Raises:
        TaaeInputError: if a file is damaged or missing.
    """
    random_states = sorted(checkpoint.glob(RANDOM_STATES))
    expected = [checkpoint / name for name in (SAFE_WEIGHTS_NAME, OPTIMIZER_NAME, SCHEDULER_NAME)]
    for file in [*expected, *(random_states or [checkpoint / RANDOM_STATES])]:
        if problem := file_problem(file):
            raise TaaeInputError(
                f"{file}: is damaged ({problem}); remove {checkpoint}, and the run resumes from the checkpoint before, "
                "or starts again"
            )
    if len(random_states) == processes:
        return ""
    return (
        f"{checkpoint}: was written by {len(random_states)} processes, this run has {processes}: random states differ"
    )


def file_problem(file: Path) -> str:
    """Returns the damage of a file of safetensors or of `torch.save`; empty if there is none."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # compares the header with the file's size
                return ""
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        return f"its part {damaged}" if damaged else ""
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        return getattr(error, "strerror", None) or one_line(error)


def write_folder(target: Path, writers: Iterable[Callable[[Path], object]]) -> None:
    """Writes a folder in one step: it gets its name when it is complete, and an older one is kept until then.

    Args:
        target: the folder.
        writers: functions that write into a given folder.

    Raises:
        TaaeInputError: if it cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for write in writers:
            write(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TaaeInputError(f"{target}: cannot be written ({one_line(error)}); make room, and run again") from error
