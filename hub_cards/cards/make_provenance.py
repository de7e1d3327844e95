"""Writes a model's provenance: `python hub_cards/cards/make_provenance.py FOLDER --run RUN --data FILES …`.

From a run's TensorBoard log it makes curves.csv (a line for each logged step) and training.json (steps, hours, batches,
recipe, and the identity of the weights in the folder). From the Parquet files of training data it makes
training_data.json (hours, speakers and licences by source). If the run continued a published model, `--after` names
that model's folder: its stages and curves come first. The model card is made from these files, which stay beside it.
"""

import argparse
import bisect
import csv
import glob
import io
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's hub_cards/ is not installed

from hub_cards.cards.card_sections import read_curves as read_csv
from hub_cards.cards.card_sections import read_json
from modeling_taae.codec import load_codec
from modeling_taae.files import as_json, write_bytes

# Assumed, not measured: power of a busy server core, with its share of memory, power supply and cooling.
WATTS = 10
# A run that logs nothing for longer, in seconds, was interrupted.
LONGEST_PAUSE = 600
# Earlier names of recipe fields in logs, and the present ones.
RENAMED_FIELDS = {"data.level_jitter": "data.augmentation.level"}
COLUMNS = ("source", "license", "language", "duration", "speaker_id")
# The folders of an absolute path, which tell other people nothing.
FOLDERS = re.compile(r"(^|['\"])/(?:[^'\"]*/)?")

Curves = dict[str, dict[int, tuple[float, float]]]


class ProvenanceError(ValueError):
    """A run or data without the facts needed."""


def read_curves(run: Path, until: int | None = None) -> Curves:
    """Curves of a run: wall time in seconds and value, by name and step.

    A run that was killed and resumed from a checkpoint has logged some steps twice; the lost ones are left out.

    Args:
        run: folder of the run.
        until: last step to read; None for all.

    Raises:
        ProvenanceError: if there is no log.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS
    from tensorboard.util.tensor_util import make_ndarray

    events = []
    for file in sorted((run / "log").glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name != SCALARS:  # decoded samples and pictures
                    continue
                events.append((event.wall_time, event.step, value.tag, float(make_ndarray(value.tensor))))
    kept = []
    for event in sorted(events):
        while kept and kept[-1][1] > event[1]:
            kept.pop()
        kept.append(event)
    curves: Curves = defaultdict(dict)
    for wall_time, step, name, value in kept:
        if until is None or step <= until:
            curves[name][step] = wall_time, value
    if not curves:
        raise ProvenanceError(f"{run / 'log'}: holds no TensorBoard log with a step in it")
    return dict(sorted(curves.items()))


def curves_as_csv(curves: Curves) -> str:
    """The curves as CSV, a line for each step; a curve without a value there has an empty cell."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["step", *curves])
    for step in sorted(set().union(*curves.values())):
        values = (curve[step][1] if step in curve else None for curve in curves.values())
        writer.writerow([step, *("" if value is None else f"{value:.6g}" for value in values)])
    return content.getvalue()


def after_stages(before: list[dict], earlier: Path, curves: Curves) -> Curves:
    """The curves of a run appended to those of the earlier stages, with steps counted on.

    Args:
        before: facts of the earlier stages.
        earlier: curves.csv of the earlier stages, which has no times.
        curves: curves of the run.
    """
    taken = sum(stage["steps"] for stage in before)
    joined = {name: {step: (math.nan, value) for step, value in curve} for name, curve in read_csv(earlier).items()}
    for name, curve in curves.items():
        joined[name] = joined.get(name, {}) | {step + taken: point for step, point in curve.items()}
    return dict(sorted(joined.items()))


def stages(training: dict) -> list[dict]:
    """The stages that led to a model, first to last, from the content of its training.json."""
    last = {name: value for name, value in training.items() if name not in ("model_identity", "before")}
    return [*training.get("before", []), last]


def training_facts(run: Path, curves: Curves, trained_on: str, watts: float) -> dict:
    """Returns the card's facts about a run: steps, hours, batches, machine, power, and the recipe.

    Returns:
        `steps`; `hours` of work and `process_hours`, hours times processes; `batches`, the number of `crops` in a step
        until a step; `frames`, the total number in crops; `trained_on`; `watts`; and `recipe`, the one logged last.

    Raises:
        ProvenanceError: if the log lacks the recipe of a start.
    """
    starts = read_starts(run)
    began = [time for time, _ in starts]

    def recipe_at(time: float) -> dict:
        return starts[max(bisect.bisect(began, time) - 1, 0)][1]

    times = sorted(time for curve in curves.values() for time, _ in curve.values())
    spans = zip(times, times[1:], strict=False)
    worked = [(later - earlier, later) for earlier, later in spans if later - earlier < LONGEST_PAUSE]
    batches, frames, last = [], 0, 0
    for step, time in sorted({step: time for curve in curves.values() for step, (time, _) in curve.items()}.items()):
        recipe = recipe_at(time)
        crops = recipe["batch_size"] * recipe["gradient_accumulation_steps"] * recipe["processes"]
        if not batches or batches[-1]["crops"] != crops:
            batches.append({"crops": crops})
        batches[-1]["until_step"] = step
        frames, last = frames + (step - last) * crops * recipe["data.crop_frames"], step
    return {
        "steps": last,
        "hours": round(sum(seconds for seconds, _ in worked) / 3600, 2),
        "process_hours": round(sum(seconds * recipe_at(time)["processes"] for seconds, time in worked) / 3600, 2),
        "batches": batches,
        "frames": frames,
        "trained_on": trained_on,
        "watts": watts,
        "recipe": {name: value for name, value in recipe_at(times[-1]).items() if name != "processes"},
    }


class LogLoader(yaml.SafeLoader):
    """Reads logs whose numbers may have the recipe's restricted number types."""


LogLoader.add_multi_constructor(
    "tag:yaml.org,2002:python/object/new:jsonargparse.typing.",
    lambda loader, name, node: loader.construct_sequence(node)[0],
)


def read_starts(run: Path) -> list[tuple[float, dict]]:
    """The times at which a run was started or resumed, in seconds, each with the recipe and number of `processes`.

    A recipe's values are by dotted name, with the present names of fields, and without the folders of paths.

    Raises:
        ProvenanceError: if there is no recipe, or one lacks the number of processes.
    """
    starts = []
    for file in (run / "log").glob("*/hparams.yml"):
        recipe = yaml.load(file.read_text(encoding="utf-8"), LogLoader)
        if "processes" not in recipe:
            raise ProvenanceError(
                f"{file}: lacks the number of processes, as with older trainers; add a line such as `processes: 1`"
            )
        recipe.pop("output_dir", None)
        recipe = {RENAMED_FIELDS.get(name, name): without_folders(value) for name, value in recipe.items()}
        starts.append((float(file.parent.name), recipe))
    if not starts:
        raise ProvenanceError(f"{run / 'log'}: holds no hparams.yml with the recipe")
    return sorted(starts, key=lambda start: start[0])


def without_folders(value: object) -> object:
    """A field of a recipe, with absolute paths reduced to file names."""
    return FOLDERS.sub(r"\1", value) if isinstance(value, str) else value


def training_data(files: list[str]) -> dict:
    """Hours by source and by language of Parquet files with the columns of `COLUMNS`.

    A recording that several files have, by its `id` if they give one, counts once.

    Raises:
        ProvenanceError: if there is no row.
    """
    from pyarrow import parquet

    rows, counted = [], set[str]()
    for file in files:
        named = "id" in parquet.read_schema(file).names
        found = parquet.read_table(file, columns=[*COLUMNS, *(["id"] if named else [])]).to_pylist()
        rows += [row for row in found if row.get("id") not in counted]
        counted |= {row["id"] for row in found} if named else set()
    if not rows:
        raise ProvenanceError("the training data hold no row; check --data")
    sources, languages = defaultdict(list), defaultdict(float)
    for row in rows:
        sources[row["source"], row["license"]].append(row)
        languages[row["language"]] += row["duration"] / 3600
    described = [
        {
            "name": name,
            "license": license_name,
            "languages": sorted({row["language"] for row in members}),
            "utterances": len(members),
            "hours": round(sum(row["duration"] for row in members) / 3600, 4),
            "speakers": count_speakers(row["speaker_id"] for row in members),
            "attribution": attribution(name),
        }
        for (name, license_name), members in sources.items()
    ]
    return {
        "files": sorted(Path(file).name for file in files),
        "languages": {language: round(hours, 4) for language, hours in sorted(languages.items())},
        "sources": sorted(described, key=lambda source: -source["hours"]),
    }


def attribution(source: str) -> str:
    """Returns the makers and the address of a source, for cards of fine-tuned models; empty if they are not known."""
    credits = yaml.safe_load((Path(__file__).parent / "templates" / "sources.yaml").read_text(encoding="utf-8"))
    return "{credit}, {link}".format(**credits[source]) if source in credits else ""


def count_speakers(names: Iterable[str | None]) -> int:
    """Returns the number of known speakers."""
    return len({name for name in names if name and not name.endswith("unknown")})


def main(arguments: list[str] | None = None) -> int:
    """Writes the files that the options ask for, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make_provenance.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the model")
    parser.add_argument("--run", type=Path, help="folder of the training run")
    parser.add_argument("--after", type=Path, metavar="FOLDER", help="folder of the published model that it continued")
    parser.add_argument(
        "--averaged", metavar="TEXT", help="what the weights were averaged with, such as 'those that it started from'"
    )
    parser.add_argument("--until", type=int, metavar="STEP", help="step of the weights, if the run continued after it")
    parser.add_argument("--trained-on", default="one machine", metavar="TEXT", help="such as 'two cores of an EPYC'")
    parser.add_argument("--watts", type=float, default=WATTS, help="assumed power per process (default: %(default)s)")
    parser.add_argument("--data", nargs="+", default=[], metavar="FILES", help="Parquet files of training data")
    options = parser.parse_args(arguments)
    try:
        if options.run:
            curves = read_curves(options.run, options.until)
            facts = training_facts(options.run, curves, options.trained_on, options.watts)
            if options.averaged:
                facts["averaged"] = options.averaged
            if options.after:
                remedy = "this folder has no facts of its model's training, so name another with --after"
                facts["before"] = stages(read_json(options.after / "training.json", remedy))
                curves = after_stages(facts["before"], options.after / "curves.csv", curves)
            facts = {"model_identity": load_codec(str(options.folder), device="cpu").identity, **facts}
            write_bytes(options.folder / "curves.csv", curves_as_csv(curves).encode())
            write_bytes(options.folder / "training.json", as_json(facts))
        if options.data:
            files = sorted({file for pattern in options.data for file in glob.glob(pattern)})
            write_bytes(options.folder / "training_data.json", as_json(training_data(files)))
    except ValueError as error:
        print(f"make_provenance.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
