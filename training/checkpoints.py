"""Checkpoints: folders that get their name when they are complete; only the newest are kept.

A checkpoint's manifest lists the sizes and hashes of its files and the number of processes that wrote it. A checkpoint
that does not match its manifest is rejected before anything else is read.
"""

import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.constants import FSDP_MODEL_NAME, RNG_STATE_NAME
from accelerate.utils.other import load as load_plain
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeling_taae.errors import one_line
from modeling_taae.files import sha256, write_bytes

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
SHARDS = f"{FSDP_MODEL_NAME}_0"  # Accelerate's name of the folder of a sharded model
MANIFEST = "checkpoint.json"
AVERAGE = "average.safetensors"
OLD_AVERAGE = "custom_checkpoint_0.pkl"  # in checkpoints without a manifest

Writer = Callable[[Path], None]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and why."""


@dataclass(frozen=True)
class CheckpointManifest:
    """The content of a checkpoint.

    Args:
        processes: number of processes that wrote it, each with its own random state.
        mixed_precision: precision of activations.
        files: size in bytes and SHA-256 of each file, by its path in the folder.
    """

    processes: int
    mixed_precision: str
    files: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, folder: Path, processes: int, mixed_precision: str) -> Self:
        """Lists the files of a folder."""
        files = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files_below(folder)}
        return cls(processes, mixed_precision, files)

    def save(self, folder: Path) -> None:
        """Writes the list into the folder."""
        write_bytes(folder / MANIFEST, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Reads a checkpoint's list; None if it has none, like checkpoints of earlier versions.

        Raises:
            CheckpointError: if the list is damaged.
        """
        try:
            return cls(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise damaged(folder, f"{MANIFEST}: {one_line(error)}.") from error

    def check(self, folder: Path) -> None:
        """Compares a folder with the list.

        Raises:
            CheckpointError: if a file is missing, changed or not listed; names the first one.
        """
        found = dict(files_below(folder))
        for name, expected in self.files.items():
            if name not in found:
                raise damaged(folder, f"{name} is missing.")
            size = found[name].stat().st_size
            if size != expected["bytes"]:
                raise damaged(folder, f"{name} has {size:,} bytes, and was written with {expected['bytes']:,}.")
            if sha256(found[name]) != expected["sha256"]:
                raise damaged(folder, f"{name} has changed since it was written.")
        if foreign := sorted(found.keys() - self.files.keys()):
            raise damaged(folder, f"{foreign[0]} was not written with it.")


def damaged(checkpoint: Path, reason: str) -> CheckpointError:
    """Returns the error for a checkpoint that cannot be used."""
    return CheckpointError(
        f"Cannot resume from {checkpoint}: {reason} It is damaged, or of another recipe: remove it to resume from the "
        "checkpoint before, or choose another output_dir."
    )


def files_below(folder: Path) -> Iterable[tuple[str, Path]]:
    """Lists the files of a folder with their paths in it, except the manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != MANIFEST:
            yield name, path


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Lists the folders `checkpoint-N` of a run, oldest first."""
    folders = [folder for folder in output_dir.glob("checkpoint-*") if CHECKPOINT.fullmatch(folder.name)]
    return sorted(folders, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """Returns the number of optimiser steps after which a checkpoint was written."""
    found = CHECKPOINT.fullmatch(checkpoint.name)
    if found is None:
        raise ValueError(f"{checkpoint} is no checkpoint; expected a folder checkpoint-N")
    return int(found[1])


def save_checkpoint(accelerator: Accelerator, target: Path, keep: int, writers: Iterable[Writer] = ()) -> None:
    """Writes a checkpoint, then removes all but the newest ones.

    Args:
        accelerator: the run's accelerator; every process calls this.
        target: the folder `checkpoint-N` in the run's folder.
        keep: number of checkpoints to keep.
        writers: functions that write state unknown to Accelerate into a folder. Every process calls them; only the
            main one writes.

    Raises:
        CheckpointError: if the disk is full or fails. Earlier checkpoints are not touched.
    """
    partial = target.with_suffix(".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        for write in writers:
            write(partial)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            processes, precision = accelerator.num_processes, str(accelerator.mixed_precision)
            CheckpointManifest.of(partial, processes, precision).save(partial)
    except Exception as error:  # torch, safetensors and the file system raise different errors for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"Could not write {target}: {error}. Make room and run again: it resumes from the checkpoint before."
        ) from error
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in complete_checkpoints(target.parent)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, readers: Iterable[Writer] = ()) -> None:
    """Restores the state that `save_checkpoint` wrote.

    Raises:
        CheckpointError: if it is damaged, of a model of another shape, or sharded while this run is not or vice versa.
    """
    sharded, wanted = (checkpoint / SHARDS).is_dir(), accelerator.distributed_type == DistributedType.FSDP
    if sharded != wanted:
        kinds = {True: "sharded over GPUs", False: "not sharded"}
        raise CheckpointError(
            f"Cannot resume from {checkpoint}: its run is {kinds[sharded]}, and this one is {kinds[wanted]}. Launch "
            "this run in the same way, or choose another output_dir."
        )
    manifest = check_checkpoint(accelerator, checkpoint)
    try:
        with without_old_average(checkpoint) as folder:
            accelerator.load_state(str(folder))
        for read in readers:
            read(checkpoint)
        restore_random_state(accelerator, checkpoint, manifest)
    except CheckpointError:
        raise
    except Exception as error:  # as above
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise damaged(checkpoint, reason) from error


def check_checkpoint(accelerator: Accelerator, checkpoint: Path) -> CheckpointManifest | None:
    """Compares a checkpoint with its manifest, and reports differences from this run. Every process reads all of it.

    Raises:
        CheckpointError: if they do not match.
    """
    manifest = CheckpointManifest.load(checkpoint)
    if manifest is None:
        accelerator.print(
            f"{checkpoint} is of an earlier version, which wrote no hashes: its files are not checked for changes."
        )
        return None
    manifest.check(checkpoint)
    if manifest.mixed_precision != accelerator.mixed_precision:
        accelerator.print(
            f"The run used mixed_precision {manifest.mixed_precision} up to here, and continues with "
            f"{accelerator.mixed_precision}."
        )
    return manifest


@contextmanager
def without_old_average(checkpoint: Path) -> Iterator[Path]:
    """Returns a folder with the same files except the pickled average, which Accelerate would unpickle unchecked."""
    if not (checkpoint / OLD_AVERAGE).exists():
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix=".") as temporary:
        folder = Path(temporary) / checkpoint.name
        shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(OLD_AVERAGE), copy_function=os.link)
        yield folder


def restore_random_state(accelerator: Accelerator, checkpoint: Path, manifest: CheckpointManifest | None) -> None:
    """Restores this process's random state, because Accelerate ignores failures to do so.

    Raises:
        CheckpointError: if the state is missing although this process wrote one, or it cannot be read.
    """
    found = len(list(checkpoint.glob(f"{RNG_STATE_NAME}_*.pkl")))
    written = found if manifest is None else manifest.processes
    if (process := accelerator.process_index) >= written > 0:
        print(f"{checkpoint} has random states of {written} processes: process {process} begins with a new one.")
        return
    file = checkpoint / f"{RNG_STATE_NAME}_{process}.pkl"
    if not file.exists():
        raise damaged(checkpoint, f"{file.name} is missing.")
    states = load_plain(file)
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    if torch.cuda.is_available() and "torch_cuda_manual_seed" in states:
        torch.cuda.set_rng_state_all(states["torch_cuda_manual_seed"])


def load_average(average: nn.Module, checkpoint: Path) -> None:
    """Reads the averaged weights, also from checkpoints of earlier versions, which pickled them.

    Args:
        average: the module to load them into.
        checkpoint: a folder.
    """
    if (checkpoint / AVERAGE).exists():
        state: dict[str, Tensor] = load_file(checkpoint / AVERAGE)
    else:
        # Only tensors: anything else in the pickle is rejected.
        state = torch.load(checkpoint / OLD_AVERAGE, map_location="cpu", weights_only=True)
    average.load_state_dict(state)


def save_average(average: nn.Module, main: bool, checkpoint: Path) -> None:
    """Writes the averaged weights. Every process calls this, because shards are gathered.

    Args:
        average: the module with the weights.
        main: whether this process writes.
        checkpoint: a folder.
    """
    state = average.state_dict()
    if main:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, checkpoint / AVERAGE)
