"""Which files a command reads and writes."""

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import TaaeInputError
from ..files import STANDARD_STREAM, search_directory


class Job(NamedTuple):
    """One file to make of another."""

    source: Path
    target: Path


def plan_jobs(inputs: list[str], output: str | None, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    """Says which file becomes which.

    Args:
        inputs: files, directories (searched to any depth for files with one of `suffixes`), or `-` alone.
        output: the target of a single file, the directory of several, `-`, or None for a place beside each input.
        suffixes: what counts as an input inside a directory, in lower case.
        target_suffix: suffix of targets whose name is not given.

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
