"""The command `taae`: speech files to tokens in `.taae` files and back.

What only one command needs, that command imports.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from .arguments import build_parser
from .audio_io import (
    AUDIO_SUFFIXES,
    Job,
    TaaeInputError,
    audio_format,
    display_name,
    is_standard_stream,
    one_line,
    plan_jobs,
    read_audio,
    write_audio,
)
from .codec import Codec, chosen_bottleneck, load_codec
from .taae_file import TaaeFile, format_bottleneck

TAAE_SUFFIX = ".taae"


def run_jobs(jobs: list[Job], work: Callable[[Job], None], debug: bool) -> int:
    """Works through the jobs; a failing one among several is reported at the end. Returns the exit status."""
    if len(jobs) == 1:
        work(jobs[0])
        return 0
    failures = []
    for job in tqdm(jobs, unit="file", disable=None):
        try:
            work(job)
        except Exception as error:
            if debug:
                traceback.print_exc()
            failures.append(
                one_line(error) if isinstance(error, TaaeInputError) else f"{job.source}: {describe(error)}"
            )
    if failures:
        print(*(f"taae: error: {failure}" for failure in failures), sep="\n", file=sys.stderr)
        print(f"taae: {len(failures)} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failures else 0


def encode(args: argparse.Namespace) -> int:
    """`taae encode`."""
    jobs = plan_jobs(args.inputs, args.output, AUDIO_SUFFIXES, TAAE_SUFFIX)
    codec = load_codec(args.model, args.device, args.loudness)
    bottleneck = chosen_bottleneck(codec, args.bottleneck)

    def work(job: Job) -> None:
        codec.encode(read_audio(job.source, codec.model.config.sampling_rate), bottleneck).save(job.target)

    return run_jobs(jobs, work, args.debug)


def decode(args: argparse.Namespace) -> int:
    """`taae decode`."""
    jobs = plan_jobs(args.inputs, args.output, frozenset([TAAE_SUFFIX]), ".wav")
    for job in jobs:
        audio_format(job.target)
    codec = load_codec(args.model, args.device)

    def work(job: Job) -> None:
        encoded = TaaeFile.load(job.source)
        if not args.force:
            codec.check_identity(display_name(job.source), encoded.model_identity)
        write_audio(job.target, codec.decode(encoded), codec.model.config.sampling_rate)

    return run_jobs(jobs, work, args.debug)


def reconstruct(args: argparse.Namespace) -> int:
    """`taae reconstruct`."""
    jobs = plan_jobs(args.inputs, args.output, AUDIO_SUFFIXES, ".wav")
    for job in jobs:
        audio_format(job.target)
    codec = load_codec(args.model, args.device, args.loudness)
    bottleneck = chosen_bottleneck(codec, args.bottleneck)

    def work(job: Job) -> None:
        audio = read_audio(job.source, codec.model.config.sampling_rate)
        decoded = codec.decode(codec.encode(audio, bottleneck))
        write_audio(job.target, decoded, codec.model.config.sampling_rate)

    return run_jobs(jobs, work, args.debug)


def info(args: argparse.Namespace) -> int:
    """`taae info`."""
    if is_standard_stream(args.subject) or os.path.isfile(args.subject) or args.subject.endswith(TAAE_SUFFIX):
        rows = file_facts(TaaeFile.load(args.subject))
    else:
        rows = model_facts(load_codec(args.subject, device="cpu"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def file_facts(encoded: TaaeFile) -> list[tuple[str, str]]:
    """What `taae info` tells about a file, as names and values."""
    size = len(encoded.to_bytes())
    return [
        ("duration", f"{encoded.duration:.2f} s ({encoded.num_samples:,} samples at {encoded.sampling_rate:,} Hz)"),
        ("frames", f"{encoded.frames:,} at {encoded.sampling_rate / encoded.hop_length:g} Hz"),
        ("bottleneck", format_bottleneck(encoded.bottleneck)),
        ("vocabulary", " + ".join(f"{size:,}" for size in encoded.vocabulary_sizes)),
        ("bit rate", f"{encoded.bit_rate:.1f} bit/s"),
        ("file", f"{size:,} bytes, {8 * size / encoded.duration:.1f} bit/s with header and checksum"),
        ("model identity", encoded.model_identity),
    ]


def model_facts(codec: Codec) -> list[tuple[str, str]]:
    """What `taae info` tells about a model, as names and values."""
    from .quantization_taae import BOTTLENECK_PRESETS, NATIVE

    config = codec.model.config
    rows = [
        ("parameters", f"{codec.model.num_parameters():,}"),
        ("frame rate", f"{config.frame_rate:g} Hz ({config.hop_length:,} samples at {config.sampling_rate:,} Hz)"),
        ("causal", "yes" if config.causal else "no"),
        ("loudness", "as it is" if (target := codec.extractor.target_loudness) is None else f"{target:g} LUFS"),
        ("model identity", codec.identity),
        ("default bottleneck", format_bottleneck(config.bottleneck)),
    ]
    for name in [*BOTTLENECK_PRESETS, NATIVE]:
        try:
            bits = codec.model.bottleneck(name).bits_per_frame
        except ValueError:  # a preset for another number of latent dimensions
            continue
        rows.append((name, f"{bits * config.frame_rate:.1f} bit/s"))
    return rows


def convert(args: argparse.Namespace) -> int:
    """`taae convert`."""
    from .convert import convert_checkpoint

    convert_checkpoint(Path(args.source), Path(args.target))
    return 0


COMMANDS = {run.__name__: run for run in (encode, decode, reconstruct, info, convert)}


def run_command(args: argparse.Namespace) -> int:
    """Runs the command of the arguments: one of those above, or the module that is named after it."""
    run = COMMANDS.get(args.command) or import_module(f".{args.command}_command", __package__).run
    return run(args)


def describe(error: Exception) -> str:
    """An error that no one foresaw, in one line."""
    return f"{type(error).__name__}: {one_line(error)}; run again with --debug for the traceback"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        The exit status: 0, 1 for a failure, 2 for bad input, 130 after Ctrl-C, 141 after a broken pipe. Bad usage and
        help leave through SystemExit, with 2 and 0.
    """
    args = build_parser().parse_args(argv)
    try:
        status = run_command(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        foreseen = isinstance(error, TaaeInputError)
        print(f"taae: error: {one_line(error) if foreseen else describe(error)}", file=sys.stderr)
        return 2 if foreseen else 1
