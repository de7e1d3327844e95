"""The benchmark's sections on inference."""

import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import soundfile
import torch

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from modeling_taae.codec import Codec
from modeling_taae.export.export import write_sides
from modeling_taae.export.runtime import ExportedCodec
from modeling_taae.identity import model_identity
from training.benchmarks.tools import BFLOAT16, FLOAT32, Bench, in_own_process, name_of, random_model
from training.dry_run import PeakMemory

CLIP_SECONDS = 10.0
CLIPS = {"cpu": 1, "cuda": 64}  # in a batch
SPEEDS = (("nano", FLOAT32), ("nano", BFLOAT16), ("240m", FLOAT32), ("950m", FLOAT32), ("950m", BFLOAT16))
# Sizes, precisions and seconds of long recordings.
LENGTHS = (("nano", FLOAT32, 600),)
HOURS = (("nano", FLOAT32, 3600), ("950m", FLOAT32, 3600))
IN_EIGHT_BITS = ("950m",)
STREAMED = {"cpu": (("nano", FLOAT32),), "cuda": (("nano", FLOAT32), ("950m", BFLOAT16))}
FRAMES, WARM_UP = 250, 25  # frames of a stream, and how many of the first do not count
STARTS = 3


def speed_rows(bench: Bench) -> Iterator[dict]:
    """Encoding and decoding a clip, or a batch of clips on a GPU."""
    clips = CLIPS[bench.device.type]
    for size, dtype in (row for row in SPEEDS if bench.has(*row)):
        model, audio = random_model(size, dtype, bench.device), bench.audio(clips, CLIP_SECONDS)
        with torch.inference_mode():
            codes = model.encode(audio).audio_codes
            directions = {"encode": lambda: model.encode(audio), "decode": lambda: model.decode(codes)}  # noqa: B023
            for direction, function in directions.items():
                effort = bench.effort(function, dtype)
                factor = effort["seconds"] / (clips * CLIP_SECONDS)
                batch = f"{clips} of {CLIP_SECONDS:g} s"
                what = {"size": size, "precision": name_of(dtype), "direction": direction, "clips": batch}
                yield {**what, **effort, "real-time factor": factor}


def long_audio_rows(bench: Bench) -> Iterator[dict]:
    """Long recordings in one call, each in its own process, so that the process's memory is the recording's."""
    for size, dtype, seconds in (*LENGTHS, *(HOURS if bench.hour else ())):
        yield in_own_process(long_audio_row, size, dtype, seconds)


def long_audio_row(size: str, dtype: torch.dtype, seconds: int) -> dict:
    """A row of long audio: the time per second of a long recording, and of its first ten seconds.

    On a CPU this is CPU time, on which other work on the machine has little influence.
    """
    device = Bench().device
    clock, unit = (time.perf_counter, "time") if device.type == "cuda" else (time.process_time, "processor time")
    bench, row = Bench(device=device, clock=clock), {"size": size, "precision": name_of(dtype), "minutes": seconds / 60}
    with torch.inference_mode():
        model, recording = random_model(size, dtype, device), bench.audio(1, seconds)
        for direction, process in (("encode", model.encode), ("decode", model.decode)):
            clip = recording[..., : round(CLIP_SECONDS / seconds * recording.shape[-1])]
            short = bench.seconds(lambda: process(clip)) / CLIP_SECONDS  # noqa: B023
            with PeakMemory(device) as memory:
                outputs, took = bench.timed(lambda: process(recording))  # noqa: B023
            recording = outputs[0]  # decode the tokens next, and free the audio
            row[f"{direction}: {unit} per second"] = took / seconds
            row[f"{direction}: times that of 10 s"] = took / seconds / short
            row[f"{direction}: memory in GB, all told"] = memory.peak / 1e9
    return row


def eight_bit_rows(bench: Bench) -> Iterator[dict]:
    """Encoding and decoding a clip with weights and activations in 8 bits, and the changes to tokens and audio.

    Runs in onnxruntime, on the CPU.
    """
    for size in IN_EIGHT_BITS:
        # With the initial layer scale of 1e-5, a layer adds almost nothing, and 8 bits would change nothing.
        model = random_model(size, FLOAT32, torch.device("cpu"), layer_scale_initial_scale=1.0)
        audio = Bench(device=model.device).audio(1, CLIP_SECONDS)
        with torch.inference_mode():
            codes = model.encode(audio).audio_codes
            decoded = model.decode(codes).audio_values
        identity = model_identity(model)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_sides(Codec(model, TaaeFeatureExtractor(), identity, folder), folder, "onnx-int8", None, identity)
            del model
            codec = ExportedCodec.load(folder, torch.get_num_threads(), fast=True)
        equal = float(np.mean(codec.encode(audio.numpy()).audio_codes == codes.numpy()))
        error = decoded - torch.from_numpy(codec.decode(codes.numpy()))
        changes = {"equal tokens": equal, "audio: signal to error in dB": decibels(decoded, error)}
        seconds = {
            "encode": bench.seconds(lambda: codec.encode(audio.numpy())),  # noqa: B023
            "decode": bench.seconds(lambda: codec.decode(codes.numpy())),  # noqa: B023
        }
        for (direction, took), change in zip(seconds.items(), changes, strict=True):
            what = {"size": size, "direction": direction, "clips": f"1 of {CLIP_SECONDS:g} s", "seconds": took}
            what |= {"real-time factor": took / CLIP_SECONDS} | dict.fromkeys(changes)
            yield what | {change: changes[change]}


def decibels(signal: torch.Tensor, error: torch.Tensor) -> float:
    """Returns the ratio of signal to error in dB."""
    return 10 * torch.log10(signal.square().sum() / error.square().sum()).item()


def startup_rows(bench: Bench) -> Iterator[dict]:
    """The time of `taae encode` for a clip as a shell command, and of the imports that any model needs."""
    with tempfile.TemporaryDirectory() as folder:
        random_model("nano", FLOAT32, torch.device("cpu")).save_pretrained(folder)
        TaaeFeatureExtractor().save_pretrained(folder)
        clip = Path(folder) / "clip.wav"
        soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, int(CLIP_SECONDS * 16_000)), 16_000)
        encode = ["-m", "modeling_taae", "encode", str(clip), "--model", folder, "-o", str(clip.with_suffix(".taae"))]
        imports = ("import torch, transformers", "import torch; from transformers import PreTrainedModel")
        commands = {code: ["-c", code] for code in imports}
        commands |= {"taae --help": ["-m", "modeling_taae", "--help"], "taae encode, 10 s": encode}
        times = {name: shell_times(arguments) for name, arguments in commands.items()}
        for name, (took, processor) in times.items():
            beyond = {"more than the second": took - times[imports[1]][0]}
            yield {"command": f"`{name}`", "seconds": took, **beyond, "processor seconds": processor}


def shell_times(arguments: list[str]) -> tuple[float, float]:
    """Shortest elapsed time of a Python process in several runs, and shortest CPU time, after a warm-up run."""
    checkout = Path(__file__).resolve().parents[2]
    # Compiled to bytecode once, as when installed, even if this process does not write bytecode.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times = []
    for _ in range(1 + STARTS):
        start = processor_seconds_of_children(), time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments], check=True, cwd=checkout, env=environment, stdout=subprocess.DEVNULL
        )
        times.append((time.perf_counter() - start[1], processor_seconds_of_children() - start[0]))
    seconds, processor_seconds = zip(*times[1:], strict=True)
    return min(seconds), min(processor_seconds)


def processor_seconds_of_children() -> float:
    """CPU time of all ended child processes, in seconds."""
    return os.times().children_user + os.times().children_system


def latency_rows(bench: Bench) -> Iterator[dict]:
    """The time from the last sample of a frame to its token, and from the token to the audio."""
    for size, dtype in STREAMED[bench.device.type]:
        model = random_model(size, dtype, bench.device, causal=True)
        encode, decode = frame_functions(model)
        chunk = bench.audio(1, model.config.hop_length / 16_000)
        encoder = decoder = model.streaming_state()
        times: dict[str, list[float]] = {"encode": [], "decode": []}
        for _ in range(WARM_UP + FRAMES):
            start = time.perf_counter()
            encoded = encode(chunk, state=encoder)
            # A copy of the state, because the next replay of a CUDA graph overwrites what the last one returned.
            codes, encoder = encoded.audio_codes.cpu(), copy.deepcopy(encoded.state)
            middle = time.perf_counter()
            decoded = decode(codes.to(bench.device), state=decoder)
            decoder, _ = copy.deepcopy(decoded.state), decoded.audio_values.cpu()
            times["encode"].append(middle - start)
            times["decode"].append(time.perf_counter() - middle)
        for direction, seconds in times.items():
            kept = sorted(1000 * second for second in seconds[WARM_UP:])
            what = {"size": size, "precision": name_of(dtype), "direction": direction}
            yield {**what, "milliseconds, median": median(kept), "one in a hundred takes": quantiles(kept, n=100)[-1]}


def frame_functions(model: TaaeModel) -> tuple[Callable, Callable]:
    """`encode` and `decode` of a causal model, on a GPU as CUDA graphs."""
    if model.device.type != "cuda":
        return model.encode, model.decode
    compiled = partial(torch.compile, mode="reduce-overhead", fullgraph=True, dynamic=False)
    return compiled(model.encode), compiled(model.decode)
