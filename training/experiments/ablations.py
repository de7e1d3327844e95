"""Trains every ablation for equally many steps and tabulates: `python training/experiments/ablations.py --steps 6000`.

Each file in recipes/ablations runs on top of the recipe that it changes, in a process with one thread, and so do these
recipes themselves, the plain one with a second seed too: what two seeds differ by is no effect. A run that is finished
is not run again, and one that was interrupted goes on. Prints Markdown, and keeps the same figures in a JSON file.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's training/ is not installed

from modeling_taae.evaluation.report import number, table
from modeling_taae.evaluation.results import rounded
from modeling_taae.evaluation.tables import environment
from modeling_taae.files import write_bytes
from training.benchmarks.benchmark import with_tables
from training.checkpoints import checkpoint_step, complete_checkpoints
from training.model import load_model
from training.recipe import RecipeError, parse_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
PLAIN, ADVERSARIAL = RECIPES / "nano.yaml", RECIPES / "nano_adversarial.yaml"
MARKERS = ("<!-- ablations: written by training/experiments/ablations.py -->\n", "<!-- /ablations -->")
# Columns of the table: the name of a validation result, its heading, and its decimals.
COLUMNS = (
    ("loss", "loss ↓", 3),
    ("gap", "gap to training speech", 3),
    ("mel_distance", "mel distance ↓", 3),
    ("stoi", "STOI ↑", 3),
    ("pesq_wb", "PESQ-wb ↑", 3),
    ("digit_entropy", "digit entropy", 3),
)


@dataclass(frozen=True)
class Ablation:
    """One run.

    Args:
        name: name of the run and its folder.
        base: the recipe.
        overlay: what is changed in it; None for the recipe itself.
        options: further options of the trainer.
    """

    name: str
    base: Path
    overlay: Path | None = None
    options: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What is unlike the recipe, from the comment that its file begins with."""
        if self.overlay is None:
            return " ".join([f"`{self.base.stem}.yaml` as it is", *self.options])
        return self.overlay.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")

    def arguments(self, steps: int, folder: Path, options: list[str]) -> list[str]:
        """The trainer's."""
        overlay = [] if self.overlay is None else ["--recipe", str(self.overlay)]
        # A run of any length warms up in its first twelfth, decays in its last third, looks back a twentieth for its
        # average, which is updated every eighth step, and brings a discriminator in half-way.
        schedule = {
            "max_steps": steps,
            "optimizer.warmup_steps": steps // 12,
            "optimizer.decay_steps": -(-steps // 3),
            "optimizer.ema_decay": max(0.0, round(1 - 8 * 20 / steps, 4)),
            "validation.every": steps,
        }
        if self.base == ADVERSARIAL:
            schedule["discriminator.start_step"] = steps // 2
        settings = [text for name, value in schedule.items() for text in (f"--{name}", str(value))]
        place = ["--output_dir", str(folder / self.name), "--keep_checkpoints", "1"]
        return [str(self.base), *overlay, *settings, *place, *self.options, *options]


def all_ablations() -> list[Ablation]:
    """The recipes themselves, and what changes them."""
    changed = [
        Ablation(file.stem, ADVERSARIAL if file.stem.startswith("discriminator") else PLAIN, file)
        for file in sorted((RECIPES / "ablations").glob("*.yaml"))
    ]
    unchanged = [
        Ablation("plain", PLAIN),
        Ablation("plain_again", PLAIN, options=("--seed", "1")),
        Ablation("adversarial", ADVERSARIAL),
    ]
    return unchanged + changed


class Runner:
    """Runs ablations as processes.

    Args:
        steps: number of steps of each.
        folder: parent of their folders, logs and results.
        options: further ones of the trainer, for all.
    """

    def __init__(self, steps: int, folder: Path, options: list[str]):
        self.steps, self.folder, self.options = steps, folder, options
        self.processes: set[subprocess.Popen] = set()
        self.stopped = False

    def result(self, ablation: Ablation) -> dict | None:
        """Returns the results of a finished run.

        Raises:
            RecipeError: if it was run, or begun, with other settings.
        """
        file = self.folder / f"{ablation.name}.json"
        result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        begun = self.folder / ablation.name / "arguments.json"
        settings = [] if result is None else [result["arguments"]]
        settings += [json.loads(begun.read_text(encoding="utf-8"))] if begun.exists() else []
        if any(each != ablation.arguments(self.steps, self.folder, self.options) for each in settings):
            raise RecipeError(f"{file} is of a run with other settings; choose another --output_dir.")
        return result

    def run(self, ablation: Ablation) -> str | None:
        """Runs an ablation that is not finished; returns what went wrong, in a line."""
        if self.stopped or self.result(ablation) is not None:
            return None
        arguments = ablation.arguments(self.steps, self.folder, self.options)
        own, log = self.folder / ablation.name, self.folder / f"{ablation.name}.log"
        write_bytes(own / "arguments.json", (json.dumps(arguments) + "\n").encode())
        started_from = max(map(checkpoint_step, complete_checkpoints(own)), default=0)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        with open(log, "a", encoding="utf-8") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            self.processes.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.processes.remove(process)
        values = last_validation(log, self.steps)
        if process.returncode or values is None:
            return f"{ablation.name}: ended with status {process.returncode}; see {log}"
        seconds = (usage.ru_utime + usage.ru_stime) / max(self.steps - started_from, 1)
        parameters = load_model(parse_recipe(arguments), empty=True).num_parameters()
        result = {"arguments": arguments, "parameters": parameters, "cpu_seconds_per_step": seconds, **values}
        write_bytes(self.folder / f"{ablation.name}.json", (json.dumps(result, indent=1) + "\n").encode())
        for checkpoint in complete_checkpoints(own):
            shutil.rmtree(checkpoint)
        return None

    def stop(self) -> None:
        """Ends what is running, and starts nothing more."""
        self.stopped = True
        for process in list(self.processes):
            process.terminate()


def last_validation(log: Path, step: int) -> dict[str, float] | None:
    """The validation results that the trainer printed at a step, by their names; None if it did not come so far."""
    found = None
    for line in log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines():
        start = line.find('{"step"')
        if start >= 0 and (values := json.loads(line[start:]))["step"] == step:
            found = {name.removeprefix("validation/"): value for name, value in values.items()}
    return found


def summarize(ablations: list[Ablation], runner: Runner) -> dict:
    """Returns the results of the runs that are finished."""
    runs = []
    for ablation in ablations:
        if (result := runner.result(ablation)) is not None:
            facts = {name: result[name] for name in ("parameters", "cpu_seconds_per_step")}
            values = {name: result.get(name) for name, _, _ in COLUMNS}
            runs.append({"name": ablation.name, "what": ablation.description, **facts, **values})
    return rounded({"steps": runner.steps, "environment": environment(), "runs": runs})


def markdown(summary: dict) -> str:
    """The runs as a table, below it what two seeds differ by."""
    heading = ["ablation", "what", "M parameters", "CPU s per step", *(heading for _, heading, _ in COLUMNS)]
    runs = {run["name"]: run for run in summary["runs"]}
    rows = []
    for name, run in runs.items():
        facts = [number(run["parameters"] / 1e6, 1), number(run["cpu_seconds_per_step"], 3)]
        rows.append([name, run["what"], *facts, *(number(run[column], digits) for column, _, digits in COLUMNS)])
    parts = [
        f"Runs of {summary['steps']:,} steps from scratch, one thread each ({summary['environment']['processor']}), "
        "validated with averaged weights at the preset that the recipe names.",
        table(heading, rows),
    ]
    if {"plain", "plain_again"} <= runs.keys():
        one, other = runs["plain"], runs["plain_again"]
        gaps = [
            f"{number(abs(one[column] - other[column]), digits)} in {heading.rstrip(' ↑↓')}"
            for column, heading, digits in COLUMNS
            if one[column] is not None and other[column] is not None
        ]
        parts.append(f"Two seeds of the same recipe differ by {', '.join(gaps)}: smaller differences say nothing.")
    return "\n\n".join(parts)


def run_all(runner: Runner, ablations: list[Ablation], jobs: int) -> list[str]:
    """Runs ablations, some at a time; returns what went wrong, a line for each that failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends the trainers too
    with ThreadPoolExecutor(jobs) as pool:
        try:
            ended = list(tqdm(pool.map(runner.run, ablations), total=len(ablations), unit="run", disable=None))
        except KeyboardInterrupt:
            runner.stop()
            raise
    return [failure for failure in ended if failure is not None]


def main(arguments: list[str] | None = None) -> int:
    """Runs what is not finished, writes the table, and returns the exit status: 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="ablations.py", description=__doc__.splitlines()[0])
    names = {ablation.name: ablation for ablation in all_ablations()}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(names)}")
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="of each run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many run at a time (default: 1)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablations"), metavar="DIR", help="for all runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for results (default: results.json in --output_dir)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="a text whose table to replace by the results")
    parser.add_argument("--table", action="store_true", help="run nothing, and tabulate what is finished")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="the rest goes to every training run")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - names.keys()):
        parser.error(f"there is no ablation {unknown[0]}; choose from {', '.join(names)}")
    chosen = [names[name] for name in options.names] or list(names.values())
    runner = Runner(options.steps, options.output_dir, options.options)
    try:
        if options.readme:
            with_tables(options.readme, "", MARKERS)  # finds out now whether it will do
        for ablation in chosen:  # a mistake ends it here
            parse_recipe(ablation.arguments(runner.steps, runner.folder, runner.options))
            runner.result(ablation)
        options.output_dir.mkdir(parents=True, exist_ok=True)
        failures = [] if options.table else run_all(runner, chosen, options.jobs)
        summary = summarize(list(names.values()), runner)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("ablations.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    content = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_bytes(options.json or options.output_dir / "results.json", content.encode())
    print(markdown(summary))
    if options.readme:
        write_bytes(options.readme, with_tables(options.readme, markdown(summary), MARKERS).encode())
    for failure in failures:
        print(f"ablations.py: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
