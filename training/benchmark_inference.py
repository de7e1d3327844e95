"""The sections of the benchmark about inference."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import soundfile
import torch

from modeling_taae import TaaeFeatureExtractor
from training.benchmark_tools import BFLOAT16, FLOAT32, Bench, name_of, random_model
from training.dry_run import PeakMemory

CLIP_SECONDS = 10.0
CLIPS = {"cpu": 1, "cuda": 16}  # in a batch
SPEEDS = (("nano", FLOAT32), ("nano", BFLOAT16), ("240m", FLOAT32), ("950m", FLOAT32), ("950m", BFLOAT16))
# Sizes, precisions and seconds of long recordings.
LENGTHS = (("nano", FLOAT32, 600),)
HOURS = (("nano", FLOAT32, 3600), ("950m", FLOAT32, 3600))
STREAMED = {"cpu": (("nano", FLOAT32),), "cuda": (("nano", FLOAT32), ("950m", BFLOAT16))}
FRAMES, WARM_UP = 250, 25  # of a stream, of which the first do not count
STARTS = 3


def speed_rows(bench: Bench) -> Iterator[dict]:
    """Encoding and decoding a clip, or a batch of them on a GPU."""
    clips = CLIPS[bench.device.type]
    for size, dtype in SPEEDS:
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
    """Long recordings in one go, each in a process of its own, whose memory is all that it takes."""
    for size, dtype, seconds in (*LENGTHS, *(HOURS if bench.hour else ())):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            yield process.submit(long_audio_row, size, dtype, seconds, torch.get_num_threads()).result()


def long_audio_row(size: str, dtype: torch.dtype, seconds: int, threads: int) -> dict:
    """One of these rows: real-time factors of a long recording and, beside them, those of ten seconds."""
    torch.set_num_threads(threads)
    bench = Bench()
    with torch.inference_mode(), PeakMemory(bench.device) as memory:
        model, factors = random_model(size, dtype, bench.device), {}
        for length in (CLIP_SECONDS, seconds):
            audio = bench.audio(1, length)
            if length == CLIP_SECONDS:
                codes = model.encode(audio).audio_codes
                times = (bench.seconds(lambda: model.encode(audio)), bench.seconds(lambda: model.decode(codes)))  # noqa: B023
            else:
                start = time.perf_counter()
                codes = model.encode(audio).audio_codes.cpu()
                middle = time.perf_counter()
                model.decode(codes.to(bench.device)).audio_values.cpu()
                times = (middle - start, time.perf_counter() - middle)
            factors[length] = [took / length for took in times]
    row = {"size": size, "precision": name_of(dtype), "minutes": seconds / 60}
    for direction, factor, short in zip(("encode", "decode"), factors[seconds], factors[CLIP_SECONDS], strict=True):
        row |= {f"{direction}: real-time factor": factor, f"{direction}: times that of 10 s": factor / short}
    return row | {"memory in GB, all told": memory.peak / 1e9}


def startup_rows(bench: Bench) -> Iterator[dict]:
    """`taae encode` of a clip, from the shell's side, beside the imports that it, and any model, cannot do without."""
    with tempfile.TemporaryDirectory() as folder:
        random_model("nano", FLOAT32, torch.device("cpu")).save_pretrained(folder)
        TaaeFeatureExtractor().save_pretrained(folder)
        clip = Path(folder) / "clip.wav"
        soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, int(CLIP_SECONDS * 16_000)), 16_000)
        encode = ["-m", "modeling_taae", "encode", str(clip), "--model", folder, "-o", str(clip.with_suffix(".taae"))]
        imports = ("import torch, transformers", "import torch; from transformers import PreTrainedModel")
        commands = {code: ["-c", code] for code in imports}
        commands |= {"taae --help": ["-m", "modeling_taae", "--help"], "taae encode, 10 s": encode}
        seconds = {name: shell_seconds(arguments) for name, arguments in commands.items()}
        for name, took in seconds.items():
            yield {"command": f"`{name}`", "seconds": took, "more than the first": took - seconds[imports[0]]}


def shell_seconds(arguments: list[str]) -> float:
    """Median seconds of a Python process, after one that does not count."""
    times, checkout = [], Path(__file__).resolve().parent.parent
    for _ in range(1 + STARTS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, cwd=checkout, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def latency_rows(bench: Bench) -> Iterator[dict]:
    """The time from the last sample of a frame to its token, and from the token to the audio."""
    for size, dtype in STREAMED[bench.device.type]:
        model = random_model(size, dtype, bench.device, causal=True)
        chunk, codes = bench.audio(1, model.config.hop_length / 16_000), None
        encoder = decoder = model.streaming_state()
        times = {"encode": [], "decode": []}
        for _ in range(WARM_UP + FRAMES):
            start = time.perf_counter()
            encoded = model.encode(chunk, state=encoder)
            codes, encoder = encoded.audio_codes.cpu(), encoded.state
            middle = time.perf_counter()
            decoded = model.decode(codes.to(bench.device), state=decoder)
            decoder, _ = decoded.state, decoded.audio_values.cpu()
            times["encode"].append(middle - start)
            times["decode"].append(time.perf_counter() - middle)
        for direction, seconds in times.items():
            kept = sorted(1000 * second for second in seconds[WARM_UP:])
            what = {"size": size, "precision": name_of(dtype), "direction": direction}
            yield {**what, "milliseconds, median": median(kept), "one in a hundred takes": quantiles(kept, n=100)[-1]}
