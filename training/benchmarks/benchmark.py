"""Measures the speed of training and inference: `python training/benchmark.py [SECTION ...] [--json FILE]`.

Each table names the machine's peak rate, measured in the same run: that of large matrix products in the same precision
on as many threads. Weights are random and audio is noise, because speed does not depend on them. Prints Markdown. Each
run updates only its sections in the JSON file, so sections can be measured one by one.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's training/ is not installed

from modeling_taae.evaluation.report import table
from modeling_taae.evaluation.results import rounded
from modeling_taae.files import as_json, write_bytes
from training.benchmarks.corpus import corpus_rows
from training.benchmarks.inference import eight_bit_rows, latency_rows, long_audio_rows, speed_rows, startup_rows
from training.benchmarks.peers import peer_rows
from training.benchmarks.runner import machine, markers, processor_text, with_tables
from training.benchmarks.tools import SECONDS, Bench
from training.benchmarks.training_steps import gradient_rows, process_rows, step_rows

Rows = Callable[[Bench], Iterator[dict]]
SECTIONS: dict[str, tuple[str, Rows]] = {
    "gradients": ("Forward and backward of the codec itself", gradient_rows),
    "processes": ("Processes that share the cores of a CPU in training", process_rows),
    "step": ("Where the time of a training step goes", step_rows),
    "speed": ("Encoding and decoding", speed_rows),
    "corpus": ("Tokens of a corpus, clip by clip on a CPU, in blocks on a GPU", corpus_rows),
    "peers": ("Beside other codecs of Transformers, at random weights", peer_rows),
    "int8": ("Encoding and decoding with weights and activations in 8 bits, in onnxruntime", eight_bit_rows),
    "long": ("Long recordings", long_audio_rows),
    "startup": ("Starting the command line", startup_rows),
    "latency": ("A frame of a stream through a causal model", latency_rows),
}
SCRIPT = "benchmarks/benchmark.py"
MARKERS, AVX2_MARKERS, GPU_MARKERS = (
    markers(tag, SCRIPT) for tag in ("benchmark", "benchmark held to AVX2", "benchmark on a GPU")
)
# Environment variables that restrict PyTorch and its libraries to AVX2.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# Sections left out with --avx2: onnxruntime ignores the restriction, and an hour with the large model takes hours.
NOT_HELD = {"int8", "long"}


def measure(bench: Bench, name: str) -> dict:
    """Measures a section, and returns its rows, the machine and its peak rates."""
    start, rows = time.perf_counter(), list(SECTIONS[name][1](bench))
    peaks = {str(dtype).removeprefix("torch."): peak / 1e9 for dtype, peak in bench.peaks.items()}
    took = time.perf_counter() - start
    return rounded({"environment": machine(), "gflops_at_peak": peaks, "took_seconds": took, "rows": rows})


def markdown(results: dict[str, dict]) -> str:
    """The tables, each below the description of its machine."""
    parts = []
    for name in filter(results.get, SECTIONS):
        section, told = results[name], results[name]["environment"]
        peaks = ", ".join(f"{peak:,.0f} in {dtype}" for dtype, peak in section["gflops_at_peak"].items())
        where = told["accelerator"] or f"{processor_text(told)}, {told['threads']} of {told['cores']} cores"
        at_most = f"; matrix products of at most {peaks} GFLOP/s" if peaks else ""
        heading = list(section["rows"][0])
        rows = [[cell(row[column]) for column in heading] for row in section["rows"]]
        packages = f"torch {told['packages']['torch']}"
        parts.append(f"**{SECTIONS[name][0]}** ({where}, {packages}{at_most})\n\n{table(heading, rows)}")
    return "\n\n".join(parts)


def cell(value: str | float | None) -> str:
    """A value as text, numbers with three significant digits."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def place_of(results: dict[str, dict]) -> tuple[str, str]:
    """Returns the markers of the tables' place, which differs for results on a GPU and with AVX2."""
    environments = [section["environment"] for section in results.values()]
    if any(environment["accelerator"] for environment in environments):
        return GPU_MARKERS
    return AVX2_MARKERS if any("held to AVX2" in told.get("features", ()) for told in environments) else MARKERS


def hold_to_avx2(arguments: list[str]) -> None:
    """Restarts this command without AVX-512, AMX and bfloat16, unless it already runs so."""
    if os.environ.items() >= AVX2.items():
        return
    os.execve(sys.executable, [sys.executable, __file__, *arguments], {**os.environ, **AVX2})


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__.splitlines()[0])
    listed = "; ".join(f"{name}: {title[0].lower()}{title[1:]}" for name, (title, _) in SECTIONS.items())
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"sections to measure (default: all). {listed}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the results")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="text whose tables the results replace")
    parser.add_argument("--show", action="store_true", help="measure nothing, and print the results in --json")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help="seconds to repeat each measurement (default: %(default)s)",
    )
    parser.add_argument("--hour", action="store_true", help="also measure an hour of audio, which takes about an hour")
    parser.add_argument("--avx2", action="store_true", help="do without AVX-512, AMX and bfloat16, like most laptops")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.avx2:
        hold_to_avx2(arguments)
    sections = [name for name in SECTIONS if not options.avx2 or name not in NOT_HELD]
    if unknown := sorted(set(options.sections) - set(sections)):
        held = " under --avx2" if options.avx2 else ""
        parser.error(f"there is no section {unknown[0]}{held}; choose from {', '.join(sections)}")
    try:
        results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
        if options.readme:
            with_tables(options.readme, "", MARKERS)  # fails now if the markers are missing
        wanted = [] if options.show else options.sections or sections
        torch.set_num_threads(options.threads)
        for name in tqdm(wanted, disable=None, unit="section"):
            results[name] = measure(Bench(options.hour, options.seconds), name)
            if options.json:
                write_bytes(options.json, as_json(results))
        print(markdown(results))
        if options.readme:
            write_bytes(options.readme, with_tables(options.readme, markdown(results), place_of(results)).encode())
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
