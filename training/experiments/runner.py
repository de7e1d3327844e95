"""Runs experiments: trains in processes of one thread, goes on where it was interrupted, and shows what was found."""

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
            raise RecipeError(f"{begun.parent} is of a run with other settings; choose another --output_dir.")

    def train(self, name: str, settings: list[str], arguments: list[str], log: Path | None = None) -> float:
        """Trains, from the newest checkpoint if there is one.

        Args:
            name: the run's name, and that of its folder.
            settings: what the run is known by when it goes on.
            arguments: the trainer's.
            log: a file that gets what the trainer says; None for the terminal.

        Returns:
            processor seconds.

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
        """Ends what is running, and lets nothing more begin."""
        self.stopped = True
        for process in list(self.processes):
            process.terminate()
            process.wait()


def experiment_parser(name: str, description: str, known: Iterable[str], explained: str) -> argparse.ArgumentParser:
    """Makes the parser of the options that experiments have in common.

    Args:
        name: the experiment's name.
        description: what it does, in a line.
        known: the names of its parts, which choose some.
        explained: the help about them.
    """
    parser = argparse.ArgumentParser(prog=f"experiment.py {name}", description=description)
    parser.set_defaults(known=list(known))
    parser.add_argument("names", nargs="*", metavar="NAME", help=explained)
    runs = Path("runs") / name
    parser.add_argument("--output_dir", type=Path, default=runs, metavar="DIR", help="for all runs")
    kept = "where to keep the results (default: in --output_dir)"
    parser.add_argument("--json", type=Path, metavar="FILE", help=kept)
    parser.add_argument("--readme", type=Path, metavar="FILE", help="a text whose tables to replace by the results")
    parser.add_argument("--show", "--table", action="store_true", help="run nothing, and show the results kept")
    return parser


def run_experiment(
    parser: argparse.ArgumentParser, arguments: list[str] | None, work: Work, markers: tuple[str, str]
) -> int:
    """Runs an experiment, prints its tables and returns the exit status: 1 where a training run failed.

    Args:
        parser: the parser of its options.
        arguments: the command line's; None takes those of the process.
        work: the experiment.
        markers: the lines around its tables in a text.
    """
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(options.known)):
        parser.error(f"there is no {unknown[0]}; choose from {', '.join(options.known)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends the trainers too
    try:
        if options.readme:
            with_tables(options.readme, "", markers)  # finds out now whether it will do
        tables, failures = work(options)
        print(tables)
        if options.readme:
            write_bytes(options.readme, with_tables(options.readme, tables, markers).encode())
    except TrainingFailedError as error:
        failures = [str(error)]
    except (OSError, ValueError, TaaeInputError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    for failure in failures:
        print(f"{parser.prog}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes results that people can read, in one step."""
    write_bytes(file, as_json(content))
