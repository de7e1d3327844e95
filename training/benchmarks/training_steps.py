"""The benchmark's sections on training."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from modeling_taae.audio_io import sound_file
from training.benchmarks.tools import BFLOAT16, FLOAT32, Bench, count_operations, name_of, random_model
from training.discriminator import Adversary
from training.losses import weighted_sum
from training.model import compile_layers
from training.optimization import trainable_parameters
from training.precision import Precision, choose_attention, usable_cores
from training.recipe import parse_recipe
from training.trainer import Trainer

# Sizes with the crops of a batch and their seconds, by type of device.
BATCHES = {
    "cpu": (("nano", 4, 1.28), ("nano", 16, 1.28), ("240m", 1, 5.12)),
    "cuda": (("nano", 64, 1.28), ("240m", 8, 5.12), ("950m", 8, 5.12)),
}
BATCH_SIZES, RUN_STEPS = (8, 32), (4, 34)  # of the runs in which processes share the cores
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "nano_adversarial.yaml"
# Kinds of kernels, with parts of the kernels' names; the first match counts.
KINDS = {
    "attention": ("scaled_dot_product", "softmax", "flash"),
    "matrix products and convolutions": ("mm", "convolution", "gemm", "conv"),
    "copies and casts": ("copy_", "cat", "clone", "_to_copy", "fill_", "zero_"),
    "norms": ("layer_norm", "weight_norm"),
}


def gradient_rows(bench: Bench) -> Iterator[dict]:
    """Forward and backward of the codec in training mode, with weight norm and dither, without losses."""
    for size, crops, seconds in BATCHES[bench.device.type]:
        model = random_model(size, FLOAT32, bench.device).train().apply_weight_norm()
        audio = bench.audio(crops, seconds)
        gradient = torch.randn_like(audio)
        precisions = [dtype for dtype in (FLOAT32, BFLOAT16) if bench.has(size, dtype)]
        operations: dict[torch.dtype, int] = {}
        for layers in ("as they are", "compiled"):
            if layers == "compiled":
                torch.compiler.reset()  # graphs of other sizes would count towards the limit
                compile_layers(model)
            for dtype in precisions:
                precision: Precision = "bf16" if dtype == BFLOAT16 else "no"
                attention = choose_attention("auto", bench.device, precision, layers == "compiled")
                model.set_attn_implementation(attention)
                call = partial(pass_through, model, audio, gradient, dtype)
                if dtype not in operations:  # operations of compiled layers cannot be counted
                    operations[dtype] = count_operations(call)
                what = {"size": size, "precision": name_of(dtype), "attention": attention, "layers": layers}
                effort = bench.effort(call, dtype, operations[dtype])
                yield {**what, "crops": f"{crops} of {seconds:g} s", **effort}


def pass_through(model: torch.nn.Module, audio: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype) -> None:
    """One forward and one backward pass, with activations in `dtype` and weights in float32."""
    with nullcontext() if dtype == FLOAT32 else torch.autocast(audio.device.type, dtype):
        decoded = model(audio).audio_values
    decoded.backward(gradient.to(decoded.dtype))
    model.zero_grad(set_to_none=True)


def step_rows(bench: Bench) -> Iterator[dict]:
    """The time of each part of a step of the adversarial nano recipe, and of the codec's kernels."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder))
        parts = {name: bench.seconds(part) for name, part in step_parts(trainer).items()}
        parts["average"] /= trainer.recipe.optimizer.ema_every
        codec = profile_kinds(step_parts(trainer)["codec"], bench.device)
    whole = sum(parts.values())
    for name, seconds in parts.items():
        yield {"part": name, "milliseconds": 1000 * seconds, "share": seconds / whole}
        if name == "codec":
            for kind, share in codec.items():
                yield {"part": f"— {kind}", "milliseconds": 1000 * share * seconds, "share": share * seconds / whole}


def process_rows(bench: Bench) -> Iterator[dict]:
    """Steps of the training command, with increasing numbers of processes that share the cores of a CPU.

    The time of a step is the difference between a longer and a shorter run, divided by the difference in steps.
    """
    if bench.device.type != "cpu":
        return
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as name:
        corpus = noise_corpus(Path(name))
        for crops, processes in ((size, number) for size in BATCH_SIZES for number in range(1, cores + 1)):
            if crops % processes:
                continue
            times = {steps: run_seconds(corpus, crops, processes, steps) for steps in RUN_STEPS}
            fewer, more = RUN_STEPS
            seconds = (times[more] - times[fewer]) / (more - fewer)
            threads = f"{max(cores // processes, 1)} each"
            yield {"size": "nano", "crops": crops, "processes": processes, "threads": threads, "seconds": seconds}


def run_seconds(corpus: Path, crops: int, processes: int, steps: int) -> float:
    """Returns the seconds of a training run from the command line, including start and end."""
    with tempfile.TemporaryDirectory() as output:
        options = {
            "output_dir": output,
            "data.corpora": json.dumps([{"source": str(corpus)}]),
            "validation.corpus": "null",
            "batch_size": crops,
            "max_steps": steps,
            "optimizer.decay_steps": 1,
            "checkpoint_every": 10 * steps,
            "processes": processes,
        }
        command = [sys.executable, str(RECIPE.parents[1] / "train.py"), str(RECIPE.with_name("nano.yaml"))]
        start = time.perf_counter()
        pairs = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        subprocess.run([*command, *pairs], check=True, capture_output=True)
        return time.perf_counter() - start


def make_trainer(folder: Path) -> Trainer:
    """A trainer of the recipe on a minute of noise."""
    corpus = json.dumps([{"source": str(noise_corpus(folder))}])
    return Trainer(parse_recipe([str(RECIPE), "--data.corpora", corpus, "--validation.corpus", "null"]))


def noise_corpus(folder: Path) -> Path:
    """Writes a minute of noise as a Parquet file, and returns it."""
    rows, generator = [], np.random.default_rng(0)
    for number in range(12):
        noise = sound_file(generator.normal(0, 0.1, 5 * 16_000), 16_000, "FLAC")
        rows.append({"bytes": noise, "path": f"{number}.flac"})
    corpus = folder / "noise.parquet"
    Dataset.from_dict({"audio": rows}).to_parquet(corpus)
    return corpus


def step_parts(trainer: Trainer) -> dict[str, Callable[[], object]]:
    """Returns the parts of a step as functions. Each call draws a resolution of the discriminator."""
    batches = iter(trainer.batches())
    audio = next(batches).to(trainer.accelerator.device)
    gradient = torch.randn_like(audio)
    with torch.no_grad():
        decoded = trainer.model(audio).audio_values
    parameters = [parameter for part in networks(trainer) for parameter in trainable_parameters(part)]
    gradients = [1e-3 * torch.randn_like(parameter) for parameter in parameters]

    def codec() -> None:
        trainer.model(audio).audio_values.backward(gradient)
        trainer.model.zero_grad(set_to_none=True)

    def reconstruction() -> None:
        leaf = decoded.clone().requires_grad_()
        weighted_sum(trainer.reconstruction(leaf, audio), trainer.recipe.losses, 0).backward()

    def discriminator() -> None:
        leaf = decoded.clone().requires_grad_()
        adversary = cast(Adversary, trainer.adversary)
        terms, _ = adversary.losses(leaf, audio, trainer.step)
        weighted_sum(terms, trainer.recipe.losses, 0).backward()
        adversary.module.zero_grad(set_to_none=True)
        trainer.step += 1

    def optimizer() -> None:
        for parameter, own in zip(parameters, gradients, strict=True):
            parameter.grad = own
        trainer.update()

    return {
        "data": lambda: next(batches),
        "codec": codec,
        "reconstruction losses": reconstruction,
        "discriminator and its losses": discriminator,
        "optimisers": optimizer,
        "average": lambda: trainer.average.update_parameters(trainer.accelerator.unwrap_model(trainer.model)),
    }


def networks(trainer: Trainer) -> list[torch.nn.Module]:
    """The networks that are trained."""
    return [trainer.model, *(auxiliary.module for auxiliary in trainer.auxiliaries)]


def profile_kinds(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Shares of the time of a call by kind of kernel."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        function()
    times = dict.fromkeys([*KINDS, "all else"], 0.0)
    for event in profiled.key_averages():
        times[kind_of(event)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {kind: time / sum(times.values()) for kind, time in times.items()}


def kind_of(event: FunctionEventAvg) -> str:
    """The kind of a kernel."""
    name = event.key.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "all else")
