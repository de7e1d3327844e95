"""Runs experiments: trains in processes of one thread, resumes interrupted runs, and prints the results."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from modeling_taae.errors import TaaeInputError
from modeling_taae.files import as_json, write_bytes
from training.benchmarks.runner import with_tables
from training.recipe import RecipeError

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
# Takes the parsed options; returns the tables as Markdown, and a line for each run that failed.
Work = Callable[[argparse.Namespace], tuple[str, list[str]]]


class TrainingFailedError(Exception):
    """A training run that ended with an error."""


class TrainingRuns:
    """Training runs in one folder, each a process with one thread.

    Args:
        folder: the parent of their folders.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.processes: set[subprocess.Popen] = set()
        self.stopped = False

    def check(self, name: str, settings: list[str]) -> None:
        """Checks that a run, if it has begun, has these settings.

        Raises:
            RecipeError: if it has others.
        """
        begun = self.folder / name / "arguments.json"
        if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != settings:
            raise RecipeError(f"{begun.parent} is a run with other settings; choose another --output_dir.")

    def train(self, name: str, settings: list[str], arguments: list[str], log: Path | None = None) -> float:
        """Trains, from the newest checkpoint if there is one.

        Args:
            name: the run's name, and that of its folder.
            settings: settings that must be the same when the run is resumed.
            arguments: arguments of the trainer.
            log: file for the trainer's output; None for the terminal.

        Returns:
            CPU seconds.

        Raises:
            RecipeError: if the run began with other settings.
            TrainingFailedError: if the trainer fails.
        """
        self.check(name, settings)
        write_bytes(self.folder / name / "arguments.json", (json.dumps(settings) + "\n").encode())
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        output = None if log is None else open(log, "a", encoding="utf-8")
        try:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *arguments],
                env=environment,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
            )
        finally:
            if output is not None:
                output.close()
        self.processes.add(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.processes.remove(process)
        if process.returncode:
            place = "above" if log is None else log
            raise TrainingFailedError(f"{name}: ended with status {process.returncode}; see {place}")
        return usage.ru_utime + usage.ru_stime

    def stop(self) -> None:
        """Ends the running processes, and prevents new ones."""
        self.stopped = True
        for process in list(self.processes):
            process.terminate()
            process.wait()


def experiment_parser(name: str, description: str, known: Iterable[str], explained: str) -> argparse.ArgumentParser:
    """Makes a parser with the options that experiments have in common.

    Args:
        name: name of the experiment.
        description: description in a line.
        known: names of its parts, from which the user chooses.
        explained: help about the parts.
    """
    parser = argparse.ArgumentParser(prog=f"experiment.py {name}", description=description)
    parser.set_defaults(known=list(known))
    parser.add_argument("names", nargs="*", metavar="NAME", help=explained)
    runs = Path("runs") / name
    parser.add_argument("--output_dir", type=Path, default=runs, metavar="DIR", help="folder for all runs")
    kept = "file for the results (default: in --output_dir)"
    parser.add_argument("--json", type=Path, metavar="FILE", help=kept)
    parser.add_argument("--readme", type=Path, metavar="FILE", help="text whose tables the results replace")
    parser.add_argument("--show", "--table", action="store_true", help="run nothing, and print earlier results")
    return parser


def run_experiment(
    parser: argparse.ArgumentParser, arguments: list[str] | None, work: Work, markers: tuple[str, str]
) -> int:
    """Runs an experiment, prints its tables and returns the exit status: 1 if a training run failed.

    Args:
        parser: parser of its options.
        arguments: command line; None takes that of the process.
        work: the experiment.
        markers: lines around its tables in a text.
    """
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(options.known)):
        parser.error(f"there is no {unknown[0]}; choose from {', '.join(options.known)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends the trainers too
    try:
        if options.readme:
            with_tables(options.readme, "", markers)  # fails now if the markers are missing
        tables, failures = work(options)
        print(tables)
        if options.readme:
            write_bytes(options.readme, with_tables(options.readme, tables, markers).encode())
    except TrainingFailedError as error:
        failures = [str(error)]
    except (OSError, ValueError, TaaeInputError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command resumes from here", file=sys.stderr)
        return 130
    for failure in failures:
        print(f"{parser.prog}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes results that people can read, in one step."""
    write_bytes(file, as_json(content))
