"""Chooses the fastest precision, attention, processes and workers for a machine, if the recipe leaves them open.

No choice was tuned on one machine: it depends on the processor's features and on the measured time of matrix products.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import psutil
import torch

from training.recipe import RecipeError

Precision = Literal["no", "bf16"]  # Accelerate's names

# PyTorch's names of processor features, by their common names.
FEATURES = {"avx2": "avx2", "avx512": "avx512_f", "avx512_bf16": "avx512_bf16", "amx": "amx_bf16"}
# Features for matrix products in bfloat16; without one PyTorch emulates them, many times slower than float32.
BFLOAT16_FEATURES = {"avx512_bf16", "amx", "bf16"}
SIZE, REPEATS = 1024, 3
MOST_WORKERS = 16  # more workers cost open files and memory without a gain


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision, and the reason for it.

    Args:
        precision: "no" (float32) or "bf16", Accelerate's names.
        reason: a clause for the log.
    """

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{'bfloat16' if self.precision == 'bf16' else 'float32'} ({self.reason})"


@lru_cache
def processor_features() -> tuple[str, ...]:
    """Returns this processor's features for matrix products, such as `amx`."""
    if hasattr(torch.cpu, "get_capabilities"):  # since PyTorch 2.10
        found = torch.cpu.get_capabilities()
        known = [name for name, key in FEATURES.items() if found.get(key)]
        return tuple(known) + (("bf16",) if found.get("bf16") else ())
    told = {"avx2": "_is_avx2_supported", "avx512": "_is_avx512_supported"}
    told |= {"avx512_bf16": "_is_avx512_bf16_supported", "amx": "_is_amx_tile_supported"}
    return tuple(name for name, function in told.items() if getattr(torch.cpu, function, lambda: False)())


def choose_precision(
    wanted: str,
    device: torch.device,
    features: tuple[str, ...] | None = None,
    seconds: Callable[[torch.dtype, torch.device], float] | None = None,
) -> PrecisionChoice:
    """Chooses the precision of activations on a device.

    Args:
        wanted: "no" or "bf16", which are returned unchanged, or "auto".
        device: the run's device.
        features: the processor's features; None detects them.
        seconds: a function that returns the time of a matrix product; None measures it.
    """
    if wanted in ("no", "bf16"):
        return PrecisionChoice("bf16" if wanted == "bf16" else "no", "as asked")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return PrecisionChoice("bf16", "this GPU has it")
        return PrecisionChoice("no", "this GPU has no bfloat16")
    if device.type != "cpu":
        return PrecisionChoice("no", f"bfloat16 has not been tried on {device.type}")
    features = processor_features() if features is None else features
    if not (having := BFLOAT16_FEATURES & set(features)):
        return PrecisionChoice("no", "this processor has no bfloat16")
    measure = seconds or product_seconds
    full, half = measure(torch.float32, device), measure(torch.bfloat16, device)
    ratio = f"{max(full, half) / min(full, half):.1f} times as fast here"
    if half < full:
        return PrecisionChoice("bf16", f"{' and '.join(sorted(having))}: {ratio}")
    return PrecisionChoice("no", ratio)


def product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Measures the shortest time of a product of two square matrices, in seconds."""
    left, right = torch.ones(2, SIZE, SIZE, device=device).to(dtype)
    times = []
    for _ in range(1 + REPEATS):  # the first one initialises libraries
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times[1:])


def choose_attention(
    wanted: str, device: torch.device, precision: Precision, compiled: bool = False, threads: int | None = None
) -> str:
    """Chooses the attention implementation of training if it is `auto`.

    On the CPU that was tried, bfloat16 is up to 8 % faster with eager attention. Float32 and GPUs are faster with SDPA.
    Eager attention that PyTorch 2.13 compiles for several threads of a CPU corrupts memory in its backward pass.

    Args:
        wanted: an implementation, or `"auto"`.
        device: where the run computes.
        precision: the precision of its activations.
        compiled: whether layers are compiled.
        threads: the threads of this process; None asks PyTorch.

    Raises:
        RecipeError: if the one wanted would corrupt memory.
    """
    threads = torch.get_num_threads() if threads is None else threads
    corrupts = device.type == "cpu" and compiled and threads > 1
    if wanted == "eager" and corrupts:
        raise RecipeError(
            "attn_implementation: eager cannot be compiled for several threads of a CPU. Leave it out, or give each "
            "process one thread (OMP_NUM_THREADS=1)."
        )
    if wanted != "auto":
        return wanted
    return "eager" if device.type == "cpu" and precision == "bf16" and not corrupts else "sdpa"


def choose_processes(batch_sizes: list[int], cores: int | None = None) -> int:
    """Chooses the number of processes that share a run's batches on a CPU: one per core, as far as batches divide.

    Args:
        batch_sizes: items in each kind of batch; each process gets an equal share of each.
        cores: cores to use; None uses all that this process may use, without hyper-threads.
    """
    cores = usable_cores() if cores is None else cores
    return max(
        number
        for number in range(1, max(cores, 1) + 1)
        if number == 1 or all(size % number == 0 for size in batch_sizes)
    )


def choose_workers(wanted: int | None, device: torch.device, processes: int, cores: int | None = None) -> int:
    """Chooses the number of workers that prepare batches in each process: the cores that training leaves free.

    Args:
        wanted: a number, returned unchanged; None chooses one.
        device: the run's device.
        processes: training processes on this machine.
        cores: cores to use; None uses all that this process may use.
    """
    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return 0
    cores = usable_cores() if cores is None else cores
    return min(max(cores // max(processes, 1) - 1, 1), MOST_WORKERS)


def usable_cores() -> int:
    """Returns the number of cores that this process may use, without hyper-threads."""
    logical, physical = os.cpu_count() or 1, psutil.cpu_count(logical=False) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    if "OMP_NUM_THREADS" in os.environ:
        allowed = min(allowed, max(int(os.environ["OMP_NUM_THREADS"] or 1), 1))
    return max(1, min(allowed, physical))
