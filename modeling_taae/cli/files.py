"""Plans the files that a command reads and writes, and reports those that fail."""

import argparse
import os
import sys
import traceback
from pathlib import Path

from ..errors import TaaeInputError, describe, one_line
from ..files import STANDARD_STREAM, is_standard_stream, search_directory
from ..transcode.job import Job


class Failures:
    """Collects the failures of files and reports them at the end; with a single file, raises the error at once."""

    def __init__(self, jobs: list[Job], debug: bool):
        self.jobs, self.debug = jobs, debug
        self.messages: dict[Job, str] = {}

    def add(self, job: Job, error: Exception) -> None:
        """Records a failed job."""
        if len(self.jobs) == 1:
            raise error
        if self.debug:
            traceback.print_exception(error)
        foreseen = isinstance(error, TaaeInputError)
        self.messages[job] = one_line(error) if foreseen else f"{job.source}: {describe(error)}"

    def without_missing(self) -> list[Job]:
        """Returns the jobs whose input exists, and records the others as failures, before anything slow begins.

        Raises:
            TaaeInputError: if no input exists.
        """
        for job in self.jobs:
            if not (is_standard_stream(job.source) or os.path.exists(job.source)):
                reason = "No such file or directory"
                message = f"{job.source}: cannot be read ({reason}); expected a file; check the path"
                self.add(job, TaaeInputError(message))
        return [job for job in self.jobs if job not in self.messages]

    def report(self) -> int:
        """Prints the failed files on standard error, and returns the exit status."""
        if self.messages:
            messages = (self.messages[job] for job in self.jobs if job in self.messages)
            print(*(f"taae: error: {message}" for message in messages), sep="\n", file=sys.stderr)
            print(f"taae: {len(self.messages)} of {len(self.jobs)} files failed", file=sys.stderr)
        return 1 if self.messages else 0


def plan(args: argparse.Namespace, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    """Plans the jobs of the arguments (see [`plan_jobs`]); with --skip-existing, without those that are done."""
    jobs = plan_jobs(args.inputs, args.output, suffixes, target_suffix)
    tell_unreadable(args.inputs, suffixes, args.output)
    left = [job for job in jobs if not (args.skip_existing and job.target.exists())]
    if len(left) < len(jobs):
        print(f"taae: {len(jobs) - len(left)} of {len(jobs)} targets are there already", file=sys.stderr)
    return left


def tell_unreadable(inputs: list[str], suffixes: frozenset[str], output: str | None) -> None:
    """Prints the number and the kinds of audio and video files in folders that are not read, on standard error."""
    if ".wav" not in suffixes:
        return
    from ..audio_io import unread_sound

    for root in map(Path, inputs):
        if root.is_dir() and (line := unread_sound(search_directory(root, None, output), suffixes)):
            print(f"taae: {root}: {line}", file=sys.stderr)


def plan_jobs(inputs: list[str], output: str | None, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    """Plans the target of each input.

    Args:
        inputs: files, directories (searched to any depth for files with one of `suffixes`), or `-` alone.
        output: the target of a single file, the directory of several, `-`, or None for targets beside the inputs.
        suffixes: suffixes of inputs inside a directory, in lower case.
        target_suffix: the suffix of targets that are not named.

    Raises:
        TaaeInputError: if nothing is found, or targets are ambiguous, clash or would overwrite an input.
    """
    if STANDARD_STREAM in inputs:
        if len(inputs) > 1:
            raise TaaeInputError("- (standard input) was given among other inputs; give it alone")
        return [Job(Path(STANDARD_STREAM), Path(output or STANDARD_STREAM))]
    if len(inputs) == 1 and output and not os.path.isdir(inputs[0]) and not _names_directory(output):
        jobs = [Job(Path(inputs[0]), Path(output))]
    else:
        jobs = _plan_directory(inputs, output, suffixes, target_suffix)
    _check_targets(jobs)
    return jobs


def _names_directory(output: str) -> bool:
    return os.path.isdir(output) or output.endswith(("/", os.sep))


def _names_file(output: str, target_suffix: str) -> bool:
    """Returns whether a target that does not exist can only be meant as a file."""
    return Path(output).suffix.lower() in {target_suffix, ".taae", ".wav", ".flac"} and not _names_directory(output)


def _plan_directory(inputs: list[str], output: str | None, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    is_file = output and os.path.exists(output) and not os.path.isdir(output)
    if output and (output == STANDARD_STREAM or is_file or _names_file(output, target_suffix)):
        raise TaaeInputError(
            f"-o {output}: is one target for several inputs; expected a directory, whose name may end in /"
        )
    jobs = []
    for root in map(Path, inputs):
        sources = sorted(search_directory(root, suffixes, output)) if root.is_dir() else [root]
        if not sources:
            raise TaaeInputError(f"{root}: holds no file to read; expected files named {', '.join(sorted(suffixes))}")
        for source in sources:
            inside = source.relative_to(root) if root.is_dir() else Path(source.name)
            target = Path(output) / inside if output else source
            jobs.append(Job(source, target.with_suffix(target_suffix)))
    return jobs


def _check_targets(jobs: list[Job]) -> None:
    sources = {os.path.realpath(job.source): job.source for job in jobs}
    targets: dict[str, Path] = {}
    for source, target in jobs:
        place = os.path.realpath(target)
        if place in sources:
            raise TaaeInputError(f"{target}: is an input and would be overwritten; choose another target with -o")
        if place in targets:
            raise TaaeInputError(
                f"{targets[place]} and {source} would both become {target}; rename one, or give them one by one"
            )
        targets[place] = source
