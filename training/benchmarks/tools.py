"""Tools that the benchmark's sections share: peak rates, timing, counted operations, and models of random weights."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from modeling_taae import TaaeConfig, TaaeModel
from training.precision import BFLOAT16_FEATURES, processor_features

REPEATS, SECONDS = 3, 3.0  # minimum repetitions of each measurement, and minimum seconds
PEAK_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16_384)}  # of square matrices
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
Result = TypeVar("Result")


def name_of(dtype: torch.dtype) -> str:
    """The name of a precision as users write it."""
    return str(dtype).removeprefix("torch.")


def used_features() -> list[str]:
    """Returns the processor features that matrix products use; --avx2 allows only some of them."""
    features = list(processor_features())
    held = "avx512" in features and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return ["avx2", "held to AVX2"] if held else features


@dataclass
class Bench:
    """The machine under test, and the peak rates measured so far.

    Args:
        hour: whether to measure an hour of audio.
        repeat_for: seconds to repeat each measurement.
        device: device that computes.
        clock: function that returns seconds.
        peaks: floating-point operations per second in products of large matrices, by precision.
    """

    hour: bool = False
    repeat_for: float = field(default_factory=lambda: SECONDS)
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    clock: Callable[[], float] = time.perf_counter
    peaks: dict[torch.dtype, float] = field(default_factory=dict)

    def peak(self, dtype: torch.dtype) -> float:
        """The highest rate of a product of two large square matrices."""
        if dtype not in self.peaks:
            self.peaks[dtype] = max(self._matrix_rate(size, dtype) for size in PEAK_SIZES[self.device.type])
        return self.peaks[dtype]

    def _matrix_rate(self, size: int, dtype: torch.dtype) -> float:
        left, right = torch.randn(2, size, size, device=self.device).to(dtype)
        return 2 * size**3 / min(self.times(lambda: left @ right))

    def has(self, size: str, dtype: torch.dtype) -> bool:
        """Returns whether to measure a size in a precision; an emulated one takes minutes for a clip."""
        native = self.device.type != "cpu" or BFLOAT16_FEATURES & set(used_features())
        return bool(dtype != BFLOAT16 or native or size == "nano")

    def seconds(self, function: Callable[[], object]) -> float:
        """Median seconds of a call, after a warm-up call."""
        return median(self.times(function))

    def times(self, function: Callable[[], object]) -> list[float]:
        """Seconds of each of several calls, after a warm-up call."""
        function()
        times: list[float] = []
        while len(times) < REPEATS or sum(times) < self.repeat_for:
            times.append(self.timed(function)[1])
        return times

    def timed(self, function: Callable[[], Result]) -> tuple[Result, float]:
        """Returns a call's result and its seconds."""
        self._wait()
        start = self.clock()
        result = function()
        self._wait()
        return result, self.clock() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def effort(
        self, function: Callable[[], object], dtype: torch.dtype, operations: int | None = None
    ) -> dict[str, float]:
        """Returns columns of a table: operations of a call, its time, and the share of the peak that it reaches.

        Args:
            function: the call.
            dtype: the precision of its matrix products.
            operations: the operations of a call; None counts them.
        """
        operations = count_operations(function) if operations is None else operations
        seconds = self.seconds(function)
        return {"GFLOP": operations / 1e9, "seconds": seconds, "share of peak": operations / seconds / self.peak(dtype)}

    def audio(self, clips: int, seconds: float) -> torch.Tensor:
        """Noise, (clips, 1, samples)."""
        return 0.1 * torch.randn(clips, 1, round(seconds * 16_000), device=self.device)


def count_operations(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call.

    Attention in a fused CPU kernel is not counted; it is a few percent.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Calls a function in a process of its own, with as many threads, so that the memory in use is the call's."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as process:
        return process.submit(function, *arguments).result()


def random_model(size: str, dtype: torch.dtype, device: torch.device, **fields) -> TaaeModel:
    """A model of a named size, in evaluation mode."""
    with device:
        return AutoModel.from_config(TaaeConfig.named(size, **fields), dtype=dtype).eval()
