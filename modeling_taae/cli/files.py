"""The files that a command reads and writes, and what becomes of each."""

import argparse
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from ..errors import TaaeInputError, describe, one_line
from ..files import STANDARD_STREAM, search_directory
from ..transcode import Job


class Failures:
    """Failures of single files among several, reported at the end; with a single file the error is raised at once."""

    def __init__(self, jobs: list[Job], debug: bool):
        self.jobs, self.debug = jobs, debug
        self.messages: list[str] = []

    def add(self, job: Job, error: Exception) -> None:
        """Notes that a job failed."""
        if len(self.jobs) == 1:
            raise error
        if self.debug:
            traceback.print_exception(error)
        foreseen = isinstance(error, TaaeInputError)
        self.messages.append(one_line(error) if foreseen else f"{job.source}: {describe(error)}")

    def report(self) -> int:
        """Says on standard error which files failed, and returns the exit status."""
        if self.messages:
            print(*(f"taae: error: {message}" for message in self.messages), sep="\n", file=sys.stderr)
            print(f"taae: {len(self.messages)} of {len(self.jobs)} files failed", file=sys.stderr)
        return 1 if self.messages else 0


def progress(done: Iterable[Job], jobs: list[Job]) -> None:
    """Works through the jobs, with a progress bar if there are several."""
    for _ in tqdm(done, total=len(jobs), unit="file", disable=None if len(jobs) > 1 else True):
        pass


def plan(args: argparse.Namespace, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    """Plans the jobs that the arguments name (see [`plan_jobs`]), without those that are done already if so asked."""
    jobs = plan_jobs(args.inputs, args.output, suffixes, target_suffix)
    left = [job for job in jobs if not (args.skip_existing and job.target.exists())]
    if len(left) < len(jobs):
        print(f"taae: {len(jobs) - len(left)} of {len(jobs)} targets are there already", file=sys.stderr)
    return left


def plan_jobs(inputs: list[str], output: str | None, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    """Plans which file becomes which.

    Args:
        inputs: files, directories (searched to any depth for files with one of `suffixes`), or `-` alone.
        output: the target of a single file, the directory of several, `-`, or None for a place beside each input.
        suffixes: suffixes of the inputs inside a directory, in lower case.
        target_suffix: the suffix of targets whose name is not given.

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


def _plan_directory(inputs: list[str], output: str | None, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    if output and (output == STANDARD_STREAM or os.path.exists(output) and not os.path.isdir(output)):
        raise TaaeInputError(f"-o {output}: is one target for several inputs; expected a directory")
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
                f"{targets[place]} and {source} would both become {target}; rename one or treat them one by one"
            )
        targets[place] = source
