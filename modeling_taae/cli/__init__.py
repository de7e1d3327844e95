"""The command `taae`: speech files to tokens in `.taae` files and back.

What only one command needs, that command imports.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..audio_io import AUDIO_SUFFIXES, audio_format, read_audio, write_audio
from ..codec import Codec, chosen_bottleneck, load_codec
from ..errors import TaaeInputError, one_line
from ..files import display_name, is_standard_stream, read_bytes
from ..taae_file import CodedDescription, TaaeFile, format_bottleneck, naming, read_description
from .files import Job, plan_jobs
from .options import build_parser

TAAE_SUFFIX = ".taae"
# How commands go on that were interrupted; for the others that is a way to end like any other.
REST = "files that are there are whole; the same command with --skip-existing makes the others"
GOES_ON = "the same command goes on from here"
INTERRUPTED = {"encode": REST, "decode": REST, "reconstruct": REST, "tokenize": GOES_ON, "evaluate": GOES_ON}


class Failures:
    """What went wrong with which of several files, to be told at the end; with a single file it is raised at once."""

    def __init__(self, jobs: list[Job], debug: bool):
        self.jobs, self.debug = jobs, debug
        self.messages: list[str] = []

    def add(self, job: Job, error: Exception) -> None:
        """Takes down that a job failed."""
        if len(self.jobs) == 1:
            raise error
        if self.debug:
            traceback.print_exception(error)
        foreseen = isinstance(error, TaaeInputError)
        self.messages.append(one_line(error) if foreseen else f"{job.source}: {describe(error)}")

    @contextmanager
    def of(self, job: Job) -> Iterator[None]:
        """Takes down what is raised within."""
        try:
            yield
        except Exception as error:
            self.add(job, error)

    def report(self) -> int:
        """Says on standard error which files failed, and returns the exit status."""
        if self.messages:
            print(*(f"taae: error: {message}" for message in self.messages), sep="\n", file=sys.stderr)
            print(f"taae: {len(self.messages)} of {len(self.jobs)} files failed", file=sys.stderr)
        return 1 if self.messages else 0


def progress(items: Iterable, jobs: list[Job]) -> Iterable:
    """The items with a progress bar, if there are several files."""
    return tqdm(items, total=len(jobs), unit="file", disable=None) if len(jobs) > 1 else items


def plan(args: argparse.Namespace, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    """What the arguments of `taae encode` and its like name (see [`plan_jobs`]); where asked, what is left of it."""
    jobs = plan_jobs(args.inputs, args.output, suffixes, target_suffix)
    left = [job for job in jobs if not (args.skip_existing and job.target.exists())]
    if len(left) < len(jobs):
        print(f"taae: {len(jobs) - len(left)} of {len(jobs)} targets are there already", file=sys.stderr)
    return left


def run_jobs(jobs: list[Job], work: Callable[[Job], None], debug: bool) -> int:
    """Works through the jobs one by one. Returns the exit status."""
    failures = Failures(jobs, debug)
    for job in progress(jobs, jobs):
        with failures.of(job):
            work(job)
    return failures.report()


def encode(args: argparse.Namespace) -> int:
    """`taae encode`."""
    from ..batching import encode_clips, read_ahead

    jobs = plan(args, AUDIO_SUFFIXES, TAAE_SUFFIX)
    for job in jobs:
        if job.target.suffix.lower() in AUDIO_SUFFIXES:
            raise TaaeInputError(f"{job.target}: is a name for audio; expected one that ends in .taae, so change -o")
    codec = load_codec(args.model, args.device, args.loudness)
    bottleneck, prior = chosen_bottleneck(codec, args.bottleneck), codec.prior
    failures = Failures(jobs, args.debug)

    def clips() -> Iterator[tuple[Job, np.ndarray]]:
        for job in jobs:
            with failures.of(job):
                yield job, read_audio(job.source, codec.model.config.sampling_rate)

    for job, encoded in progress(encode_clips(codec, read_ahead(clips()), bottleneck, failures.add), jobs):
        with failures.of(job):
            encoded.save(job.target, prior)
    return failures.report()


def decode(args: argparse.Namespace) -> int:
    """`taae decode`."""
    jobs = plan(args, frozenset([TAAE_SUFFIX]), ".wav")
    for job in jobs:
        audio_format(job.target)
    codec = load_codec(args.model, args.device)
    prior = load_codec(args.prior, "cpu").prior if args.prior else codec.prior

    def work(job: Job) -> None:
        encoded = TaaeFile.load(job.source, prior)
        if not args.force:
            codec.check_identity(display_name(job.source), encoded.model_identity)
        write_audio(job.target, codec.decode(encoded), codec.model.config.sampling_rate)

    return run_jobs(jobs, work, args.debug)


def reconstruct(args: argparse.Namespace) -> int:
    """`taae reconstruct`."""
    jobs = plan(args, AUDIO_SUFFIXES, ".wav")
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
        rows = file_facts(args.subject)
    else:
        if Path(args.subject).suffix.lower() in AUDIO_SUFFIXES:
            raise TaaeInputError(f"{args.subject}: is no file; expected a .taae file, or a model's folder or Hub name")
        rows = model_facts(load_codec(args.subject, device="cpu"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def file_facts(source: str) -> list[tuple[str, str]]:
    """What `taae info` tells about a file, as names and values; of version 2, what it tells without its model."""
    data = read_bytes(source)
    with naming(source):
        _, description = read_description(data)
        encoded = None if isinstance(description, CodedDescription) else TaaeFile.from_bytes(data)
    samples, rate = description.num_samples, description.sampling_rate
    rows = [
        ("duration", f"{samples / rate:.2f} s ({samples:,} samples at {rate:,} Hz)"),
        ("bottleneck", format_bottleneck(description.bottleneck)),
        ("file", f"{len(data):,} bytes, {8 * len(data) * rate / samples:.1f} bit/s with header and checksum"),
    ]
    if encoded is None:
        return [*rows, ("version", "2, entropy-coded"), ("entropy prior", description.prior_identity)]
    return [
        *rows,
        ("version", "1, packed"),
        ("frames", f"{encoded.frames:,} at {rate / encoded.hop_length:g} Hz"),
        ("vocabulary", " + ".join(f"{size:,}" for size in encoded.vocabulary_sizes)),
        ("bit rate", f"{encoded.bit_rate:.1f} bit/s"),
        ("model identity", encoded.model_identity),
    ]


def model_facts(codec: Codec) -> list[tuple[str, str]]:
    """What `taae info` tells about a model, as names and values."""
    from ..quantization_taae import BOTTLENECK_PRESETS, NATIVE

    config = codec.model.config
    rows = [
        ("parameters", f"{codec.model.num_parameters():,}"),
        ("frame rate", f"{config.frame_rate:g} Hz ({config.hop_length:,} samples at {config.sampling_rate:,} Hz)"),
        ("causal", "yes" if config.causal else "no"),
        ("loudness", "as it is" if (target := codec.extractor.target_loudness) is None else f"{target:g} LUFS"),
        ("model identity", codec.identity),
        ("entropy prior", "none" if codec.prior is None else codec.prior.identity),
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
    from ..hub.convert import convert_checkpoint

    convert_checkpoint(Path(args.source), Path(args.target))
    return 0


# What has to be installed for a command, beside what always is.
EXTRAS = {"tokenize": "data"}
COMMANDS = {run.__name__: run for run in (encode, decode, reconstruct, info, convert)}


def run_command(args: argparse.Namespace) -> int:
    """Runs the command of the arguments: one of those above, or the module that is named after it."""
    try:
        run = COMMANDS.get(args.command) or import_module(f".{args.command}", __package__).run
    except ModuleNotFoundError as error:
        if args.command not in EXTRAS:
            raise
        raise TaaeInputError(
            f"taae {args.command}: needs the package {error.name}, which is not installed; "
            f"pip install 'modeling_taae[{EXTRAS[args.command]}]'"
        ) from error
    return run(args)


def describe(error: Exception) -> str:
    """An error that no one foresaw, in one line."""
    return f"{type(error).__name__}: {one_line(error)}; run again with --debug for the traceback"


def abandon_output() -> None:
    """Lets go of a standard output that fails: Python flushes it once more at exit, which would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        abandon_output()
        return 141
    except KeyboardInterrupt:
        if advice := INTERRUPTED.get(args.command):
            print(f"taae: interrupted; {advice}", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError):
            abandon_output()
        if args.debug:
            traceback.print_exc()
        foreseen = isinstance(error, TaaeInputError)
        print(f"taae: error: {one_line(error) if foreseen else describe(error)}", file=sys.stderr)
        return 2 if foreseen else 1
