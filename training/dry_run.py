"""Estimates the memory and time of a run from a few steps on noise: `train.py RECIPE --dry_run true`.

No corpus is read except that of a CTC head, and nothing is written.
"""

import os
import statistics
import sys
import threading
import time

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.model import load_model, prepare_model
from training.recipe import Recipe, RecipeError
from training.sharding import sharding_asked
from training.trainer import Trainer

FLOAT = 4  # bytes of a weight, a gradient, and each of the optimiser's two averages
TIMED_STEPS = 6  # the same in every process, because they wait for each other
DEVICES = (2, 4, 8)  # numbers of GPUs for which the memory of a sharded run is estimated
HOUR, DAY = 3600, 24 * 3600


class PeakMemory:
    """Measures the rise of the memory in use, on a CUDA GPU or else in this process.

    Args:
        device: the run's device.
    """

    def __init__(self, device: torch.device):
        self.cuda, self.process, self.over = device.type == "cuda", psutil.Process(), threading.Event()

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = self._in_use()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self.watcher = threading.Thread(target=self._watch, daemon=True)
            self.watcher.start()
        return self

    def __exit__(self, *_) -> None:
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated()
        else:
            self.over.set()
            self.watcher.join()

    @property
    def rise(self) -> int:
        """Bytes at the peak minus those at the start."""
        return self.peak - self.start

    def _in_use(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else self.process.memory_info().rss

    def _watch(self) -> None:
        while not self.over.wait(0.002):
            self.peak = max(self.peak, self._in_use())


def check_room(recipe: Recipe) -> None:
    """Rejects a codec whose weights and optimiser alone need more memory than is free.

    Raises:
        RecipeError: if they do, or there is no such codec.
    """
    if sharding_asked():
        return
    needed = fixed_memory(prepare_model(load_model(recipe, empty=True), recipe), [])
    gpu = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else None
    free = psutil.virtual_memory().available if gpu is None else torch.cuda.mem_get_info(gpu)[0]
    if sum(needed.values()) > free:
        raise RecipeError(
            f"The codec takes {memory_text(needed)}, without activations, and {gigabytes(free)} GB are free here: take "
            "a larger machine, or shard it over several GPUs with training/configs/fsdp.yaml."
        )


def dry_run(trainer: Trainer) -> str:
    """Returns an estimate of a run's memory and time, from a few of its steps, as text. Every process calls this."""
    recipe, processes, codec = trainer.recipe, trainer.accelerator.num_processes, trainer.average.module
    others = [auxiliary.module for auxiliary in trainer.auxiliaries]
    listeners = [] if trainer.perceptual is None else [trainer.perceptual]
    trainer.accelerator.print(
        f"Taking {len(starts_of_phases(recipe)) * (1 + TIMED_STEPS) + 1} steps on noise …", file=sys.stderr
    )
    activations = measure_activations(trainer, [codec, *others])
    phases = {step: time_steps(trainer, step) for step in starts_of_phases(recipe)}
    fixed = fixed_memory(codec, [*others, *listeners])
    frames = trainer.batch_size * recipe.gradient_accumulation_steps * processes * recipe.data.crop_frames
    audio = frames * trainer.extractor.hop_length / trainer.extractor.sampling_rate
    last = phases[max(phases)]
    cores = torch.get_num_threads() if trainer.accelerator.device.type == "cpu" else 0
    place = f"{processes} process{'es' * (processes > 1)}" + (f" of {cores} thread{'s' * (cores > 1)}" if cores else "")
    lines = {
        "parameters": ", ".join(parameter_texts(trainer)),
        "memory": f"{memory_text(fixed | {'activations': activations})}, in each process",
        "precision": str(trainer.precision),
        "a step": f"{frames:,} token frames, {audio:,.1f} s of audio, in {place}",
        "its time": ", ".join(
            f"{seconds:.3g} s" + f" from step {step:,} on" * (len(phases) > 1) for step, seconds in phases.items()
        ),
        "a day": f"{DAY / last * audio / HOUR:,.1f} hours of audio",
        "the run": f"{duration(run_seconds(recipe, phases))} for {recipe.max_steps:,} steps, validations not counted",
    }
    if not sharding_asked():
        rest = sum(fixed_memory(None, [*others, *listeners]).values()) + activations
        sharded = ((devices, (sum(fixed.values()) + activations - rest) / devices + rest) for devices in DEVICES)
        texts = (f"{gigabytes(size)} GB on each of {devices} GPUs" for devices, size in sharded)
        lines["if sharded"] = f"about {', '.join(texts)}"
    return "\n".join(f"{name:<11} {text}" for name, text in lines.items())


def parameter_texts(trainer: Trainer) -> list[str]:
    """Returns the number of parameters of each network."""
    codec = trainer.average.module
    networks = {"codec": codec, "its encoder": codec.encoder, "its decoder": codec.decoder}
    networks |= {auxiliary.name.replace("_", " "): auxiliary.module for auxiliary in trainer.auxiliaries}
    networks |= {} if trainer.perceptual is None else {"perceptual network": trainer.perceptual}
    return [f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in networks.items()]


def fixed_memory(codec: nn.Module | None, others: list[nn.Module]) -> dict[str, int]:
    """Returns the bytes on a device of weights, optimiser, average and gradients, by name.

    Args:
        codec: the model whose weights are averaged; may be sharded.
        others: the auxiliary networks.
    """
    own = [] if codec is None else local_parameters(codec)
    every = own + [parameter for module in others for parameter in local_parameters(module)]
    weights, trained = sum(size for size, _ in every), sum(size for size, trains in every if trains)
    return {
        "weights": FLOAT * weights,
        "gradients": FLOAT * trained,
        "optimiser": 2 * FLOAT * trained,
        "average": FLOAT * sum(size for size, _ in own),
    }


def local_parameters(module: nn.Module) -> list[tuple[int, bool]]:
    """Returns for each parameter its number of elements on this device, and whether it trains."""

    def local(parameter: Tensor) -> Tensor:
        return parameter.to_local() if isinstance(parameter, DTensor) else parameter

    return [(local(parameter).numel(), parameter.requires_grad) for parameter in module.parameters()]


def starts_of_phases(recipe: Recipe) -> list[int]:
    """Returns the first steps of the run's phases, which differ in speed: step 0, and the discriminator's start."""
    start = 0 if recipe.discriminator is None else recipe.discriminator.start_step
    return [0] if start >= recipe.max_steps else sorted({0, start})


def run_seconds(recipe: Recipe, phases: dict[int, float]) -> float:
    """Returns the seconds of all steps, from the seconds of a step in each phase, by the phase's first step."""
    bounds = [*phases, recipe.max_steps]
    return sum((end - start) * phases[start] for start, end in zip(bounds, bounds[1:], strict=False))


def measure_activations(trainer: Trainer, trained: list[nn.Module]) -> int:
    """Measures the peak bytes of a step's forward and backward passes beyond gradients; call it for the first step.

    Args:
        trainer: the run's trainer.
        trained: the modules that get gradients.
    """
    trainer.step = max(starts_of_phases(trainer.recipe))
    with PeakMemory(trainer.accelerator.device) as memory:
        forward_and_backward(trainer)
    trainer.update()
    gradients = FLOAT * sum(size for module in trained for size, trains in local_parameters(module) if trains)
    return max(memory.rise - gradients, 0)


def time_steps(trainer: Trainer, step: int) -> float:
    """Measures the median seconds of a step at a point of the run, without the first step, which initialises things."""
    trainer.step, times = step, []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        forward_and_backward(trainer)
        trainer.update()
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def forward_and_backward(trainer: Trainer) -> None:
    """Runs all batches of one optimiser step on noise."""
    recipe, device = trainer.recipe, trainer.accelerator.device
    shape = (trainer.batch_size, 1, recipe.data.crop_frames * trainer.extractor.hop_length)
    utterances = next(iter(trainer.utterances()))
    for _ in range(recipe.gradient_accumulation_steps):
        with trainer.accelerator.accumulate(trainer.model):
            trainer.forward_and_backward(0.1 * torch.randn(shape, device=device), utterances)


def memory_text(rows: dict[str, int]) -> str:
    """Returns the sum of some bytes and their uses as text."""
    return (
        f"{gigabytes(sum(rows.values()))} GB ({', '.join(f'{name} {gigabytes(size)}' for name, size in rows.items())})"
    )


def gigabytes(size: float) -> str:
    """Formats bytes in gigabytes."""
    return f"{size / 1e9:.2f}"


def duration(seconds: float) -> str:
    """Formats seconds in a suitable unit."""
    for unit, size in (("days", DAY), ("hours", HOUR), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
