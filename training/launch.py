"""Starts and sets up the processes of a run: on a CPU as many as speed it up, with the settings of the recipe."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import IO

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list

from modeling_taae.errors import one_line
from training.precision import PrecisionChoice, choose_precision, choose_processes, usable_cores
from training.recipe import Recipe, RecipeError

SHARED = "TAAE_BATCH_SHARED_BY"  # environment variable of processes started here: their number
GRACE = 5.0  # seconds in which the main process may report the error itself


def make_accelerator(recipe: Recipe) -> tuple[Accelerator, PrecisionChoice]:
    """Sets up the processes and devices of a run, and chooses the precision of its activations.

    Raises:
        RecipeError: if there is no such tracker, its package is not installed, the machine does not support a setting,
            or launcher and recipe disagree.
    """
    # Long, because the other processes wait while one decodes a corpus or validates.
    group = InitProcessGroupKwargs(timeout=timedelta(days=1))
    cpu = not torch.accelerator.is_available()  # left to itself, Accelerate ignores other processes on a CPU
    try:
        state = PartialState(cpu=cpu, **group.to_kwargs())
        choice = agreed_precision(recipe, state.device)
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=choice.precision,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            log_with=recipe.tracker,
            project_config=ProjectConfiguration(project_dir=recipe.output_dir),
            kwargs_handlers=[group],
        )
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"Accelerate cannot set up this run: {one_line(error)}") from error
    if not accelerator.log_with:
        raise RecipeError(f"--tracker {recipe.tracker}: is not installed; install it, or choose another.")
    check_launch(recipe, accelerator, choice)
    return accelerator, choice


def agreed_precision(recipe: Recipe, device: torch.device) -> PrecisionChoice:
    """Chooses the precision in the main process, for all processes.

    Raises:
        RecipeError: if launcher and recipe disagree. A launcher's "no" counts as its default.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    wanted = recipe.mixed_precision
    if launched != "no" and launched != ("bf16" if wanted == "auto" else wanted):
        raise RecipeError(
            f"The launcher asks for mixed_precision {launched}, the recipe for {wanted}. Launch without "
            "--mixed_precision, and set --mixed_precision of the recipe: auto, bf16 or no."
        )
    asked = launched if launched != "no" else wanted
    chosen = [choose_precision(asked, device) if PartialState().is_main_process else None]
    return broadcast_object_list(chosen)[0]


def check_launch(recipe: Recipe, accelerator: Accelerator, choice: PrecisionChoice) -> None:
    """Checks that Accelerate's settings equal those of the recipe.

    Raises:
        RecipeError: if they differ.
    """
    accumulated = recipe.gradient_accumulation_steps
    if accelerator.gradient_accumulation_steps != accumulated:
        raise RecipeError(
            f"The launcher sets gradient_accumulation_steps {accelerator.gradient_accumulation_steps}, the recipe "
            f"{accumulated}. Launch without it (it may be in ACCELERATE_GRADIENT_ACCUMULATION_STEPS), and set "
            "--gradient_accumulation_steps of the recipe."
        )
    if accelerator.mixed_precision != choice.precision:
        raise RecipeError(
            f"The launcher sets mixed_precision {accelerator.mixed_precision}, the recipe {recipe.mixed_precision}. "
            "Launch without it."
        )


def own_processes(recipe: Recipe) -> int:
    """Returns the number of processes of this run: one, or on a CPU without a launcher as many as speed it up."""
    launched = "WORLD_SIZE" in os.environ or any(name.startswith("ACCELERATE_") for name in os.environ)
    if launched or torch.accelerator.is_available():
        return 1
    sizes = [int(recipe.batch_size)] + ([] if recipe.ctc is None else [int(recipe.ctc.batch_size)])
    if recipe.processes is None:
        return choose_processes(sizes)
    if indivisible := [size for size in sizes if size % recipe.processes]:
        raise RecipeError(f"--processes {recipe.processes}: cannot share a batch of {indivisible[0]} equally.")
    return int(recipe.processes)


def batch_share(size: int) -> int:
    """Returns this process's share of a batch: all of it, unless processes started here share it."""
    return size // int(os.environ.get(SHARED, 1))


@contextmanager
def helpers(command: Sequence[str], processes: int) -> Iterator[None]:
    """Starts the other processes of a run, with this one as the main process, and ends them at the end.

    Args:
        command: the program and its arguments, the same in every process.
        processes: the number of processes, including this one.
    """
    if processes == 1:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(usable_cores() // processes, 1)
    place = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place |= {"OMP_NUM_THREADS": threads, SHARED: processes}
    own = {name: str(value) for name, value in place.items()}
    before = {name: os.environ.get(name) for name in (*own, "RANK", "LOCAL_RANK")}
    started: list[tuple[subprocess.Popen, IO[str]]] = []
    over = threading.Event()
    try:
        for rank in range(1, processes):
            output: IO[str] = tempfile.TemporaryFile("w+")
            environment = os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append((subprocess.Popen(command, env=environment, stdout=output, stderr=output), output))
        for process, told in started:
            threading.Thread(target=watch, args=(process, told, over), daemon=True).start()
        os.environ.update(own | {"RANK": "0", "LOCAL_RANK": "0"})
        torch.set_num_threads(threads)
        yield
    finally:
        over.set()
        for process, _ in started:
            process.terminate()
        for process, _ in started:
            process.wait()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def watch(process: subprocess.Popen, output: IO[str], over: threading.Event) -> None:
    """Ends this process if a helper fails, after some time in which it can report the error itself."""
    status = process.wait()
    if status == 0 or over.is_set():
        return
    time.sleep(GRACE)
    if not over.is_set():
        output.seek(0)
        print(output.read(), file=sys.stderr, flush=True)
        os._exit(status if status > 0 else 1)
