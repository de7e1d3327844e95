"""Trains every ablation for equally many steps: `python training/experiment.py ablations --steps 6000`.

Each file in recipes/ablations is trained on top of the recipe that it changes, in a process with one thread. The
recipes themselves are trained too, the plain one also with a second seed: a difference as small as that between two
seeds shows no effect. Finished runs are kept, and interrupted ones are resumed. Prints Markdown, and writes the same
figures to a JSON file.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from modeling_taae.evaluation.report import number, table
from modeling_taae.evaluation.results import rounded
from modeling_taae.evaluation.tables import environment
from training.benchmarks.runner import markers
from training.checkpoints import checkpoint_step, complete_checkpoints
from training.experiments.runner import (
    RECIPES,
    TrainingFailedError,
    TrainingRuns,
    experiment_parser,
    run_experiment,
    write_json,
)
from training.model import load_model
from training.recipe import RecipeError, parse_recipe

PLAIN, ADVERSARIAL = RECIPES / "nano.yaml", RECIPES / "nano_adversarial.yaml"
MARKERS = markers("ablations", "experiments/ablations.py")
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
        overlay: file of changes to the recipe; None for the recipe itself.
        options: further options of the trainer.
    """

    name: str
    base: Path
    overlay: Path | None = None
    options: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The change to the recipe, from the comment at the start of its file."""
        if self.overlay is None:
            return " ".join([f"`{self.base.stem}.yaml` as it is", *self.options])
        return self.overlay.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")

    def arguments(self, steps: int, folder: Path, options: list[str]) -> list[str]:
        """Returns the trainer's arguments."""
        overlay = [] if self.overlay is None else ["--recipe", str(self.overlay)]
        # A run of any length warms up in its first twelfth and decays in its last third. Its weight average spans a
        # twentieth and is updated every eighth step. A discriminator starts half-way.
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
    """The recipes themselves, and their ablations."""
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


class AblationRuns(TrainingRuns):
    """Ablations of one length, in one folder.

    Args:
        steps: number of steps of each.
        folder: parent of their folders, logs and results.
        options: further options of the trainer, for all.
    """

    def __init__(self, steps: int, folder: Path, options: list[str]):
        super().__init__(folder)
        self.steps, self.options = steps, options

    def arguments(self, ablation: Ablation) -> list[str]:
        """Returns the trainer's arguments for an ablation."""
        return ablation.arguments(self.steps, self.folder, self.options)

    def result(self, ablation: Ablation) -> dict | None:
        """Returns the results of a finished run.

        Raises:
            RecipeError: if the run has other settings.
        """
        arguments = self.arguments(ablation)
        self.check(ablation.name, arguments)
        file = self.folder / f"{ablation.name}.json"
        result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if result is not None and result["arguments"] != arguments:
            raise RecipeError(f"{file} is of a run with other settings; choose another --output_dir.")
        return result

    def run(self, ablation: Ablation) -> str | None:
        """Runs an ablation unless it is finished, and returns a line about its failure, or None."""
        if self.stopped or self.result(ablation) is not None:
            return None
        arguments, log = self.arguments(ablation), self.folder / f"{ablation.name}.log"
        own = self.folder / ablation.name
        started_from = max(map(checkpoint_step, complete_checkpoints(own)), default=0)
        try:
            seconds = self.train(ablation.name, arguments, arguments, log)
        except TrainingFailedError as error:
            return str(error)
        if (values := last_validation(log, self.steps)) is None:
            return f"{ablation.name}: ended without a validation; see {log}"
        parameters = load_model(parse_recipe(arguments), empty=True).num_parameters()
        per_step = seconds / max(self.steps - started_from, 1)
        result = {"arguments": arguments, "parameters": parameters, "cpu_seconds_per_step": per_step, **values}
        write_json(self.folder / f"{ablation.name}.json", result)
        for checkpoint in complete_checkpoints(own):
            shutil.rmtree(checkpoint)
        return None

    def run_all(self, ablations: list[Ablation], jobs: int) -> list[str]:
        """Runs ablations, some at a time, and returns a line for each that failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                ended = list(tqdm(pool.map(self.run, ablations), total=len(ablations), unit="run", disable=None))
            except KeyboardInterrupt:
                self.stop()
                raise
        return [failure for failure in ended if failure is not None]


def last_validation(log: Path, step: int) -> dict[str, float] | None:
    """The validation results that the trainer printed at a step, by name; None if it did not reach the step."""
    found = None
    for line in log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines():
        start = line.find('{"step"')
        if start >= 0 and (values := json.loads(line[start:]))["step"] == step:
            found = {name.removeprefix("validation/"): value for name, value in values.items()}
    return found


def summarize(ablations: list[Ablation], runs: AblationRuns) -> dict:
    """Returns the results of the runs that are finished."""
    rows = []
    for ablation in ablations:
        if (result := runs.result(ablation)) is not None:
            facts = {name: result[name] for name in ("parameters", "cpu_seconds_per_step")}
            values = {name: result.get(name) for name, _, _ in COLUMNS}
            rows.append({"name": ablation.name, "what": ablation.description, **facts, **values})
    return rounded({"steps": runs.steps, "environment": environment(), "runs": rows})


def markdown(summary: dict) -> str:
    """The runs as a table, followed by the differences between two seeds."""
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


def main(arguments: list[str] | None = None, ablations: Sequence[Ablation] | None = None) -> int:
    """Runs the unfinished ablations, writes the table, and returns the exit status: 1 if a run failed.

    Args:
        arguments: command line; None takes that of the process.
        ablations: runs to choose from; None for those of all recipes.
    """
    known = {ablation.name: ablation for ablation in ablations or all_ablations()}
    explained = f"ablations to run (default: all): {', '.join(known)}"
    parser = experiment_parser("ablations", "Trains every ablation for equally many steps.", known, explained)
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="number of steps of each run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="number of simultaneous runs (default: 1)")
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="further options for every training run; must come last"
    )

    def work(options: argparse.Namespace) -> tuple[str, list[str]]:
        chosen = [known[name] for name in options.names] or list(known.values())
        runs = AblationRuns(options.steps, options.output_dir, options.options)
        for ablation in chosen:  # stops at a mistake before anything is trained
            parse_recipe(runs.arguments(ablation))
            runs.result(ablation)
        failures = [] if options.show else runs.run_all(chosen, options.jobs)
        summary = summarize(list(known.values()), runs)
        write_json(options.json or options.output_dir / "results.json", summary)
        return markdown(summary), failures

    return run_experiment(parser, arguments, work, MARKERS)
