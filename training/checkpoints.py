"""Checkpoints: folders that take their name when they are complete, of which the newest stay."""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.constants import FSDP_MODEL_NAME

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
SHARDS = f"{FSDP_MODEL_NAME}_0"  # what Accelerate calls the folder of a sharded model


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and why."""


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-N` of a run, oldest first."""
    folders = [folder for folder in output_dir.glob("checkpoint-*") if CHECKPOINT.fullmatch(folder.name)]
    return sorted(folders, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The number of optimiser steps after which a checkpoint was written."""
    return int(CHECKPOINT.fullmatch(checkpoint.name)[1])


def save_checkpoint(
    accelerator: Accelerator, target: Path, keep: int, writers: Iterable[Callable[[Path], None]] = ()
) -> None:
    """Writes what Accelerate has prepared, its random state, and more; then removes all but the newest checkpoints.

    Args:
        accelerator: of the run; every process calls this.
        target: folder `checkpoint-N` in the run's folder.
        keep: how many checkpoints stay.
        writers: write what Accelerate does not know of into a folder; called in the main process.

    Raises:
        CheckpointError: if the disk is full or fails. The checkpoints before this one are left as they are.
    """
    partial = target.with_suffix(".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            for write in writers:
                write(partial)
    except Exception as error:  # torch, safetensors and the file system each have their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"Could not write {target}: {error}. Make room and run again: it goes on from the checkpoint before."
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in complete_checkpoints(target.parent)[:-keep]:
            shutil.rmtree(old)


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, readers: Iterable[Callable[[Path], None]] = ()) -> None:
    """Restores what `save_checkpoint` wrote.

    Raises:
        CheckpointError: if it is damaged, of a model of another shape, or sharded where this run is not.
    """
    sharded, wanted = (checkpoint / SHARDS).is_dir(), accelerator.distributed_type == DistributedType.FSDP
    if sharded != wanted:
        kinds = {True: "sharded over GPUs", False: "not sharded"}
        raise CheckpointError(
            f"Cannot go on from {checkpoint}, of a run that is {kinds[sharded]}, because this one is {kinds[wanted]}. "
            "Launch this run as that one, or choose another output_dir."
        )
    try:
        accelerator.load_state(str(checkpoint))
        for read in readers:
            read(checkpoint)
    except Exception as error:  # as above
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"Cannot go on from {checkpoint}: {reason} It is damaged, or of another recipe: remove it to go on from "
            "the checkpoint before, or choose another output_dir."
        ) from error
