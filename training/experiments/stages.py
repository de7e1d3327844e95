"""Shows what the stages of training bring: `python training/experiments/stages.py [EXPERIMENT ...]`.

An experiment trains the published nano codec further in several ways, or goes on from one checkpoint in two, and
compares the models as `taae evaluate` does, utterance by utterance. What is trained is not trained again, and what was
interrupted goes on. Prints Markdown. A JSON file keeps those of its experiments that are not run anew.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's training/ is not installed

from modeling_taae.codec import Codec, load_codec
from modeling_taae.data.utterances import Utterance, Utterances, read_transcripts
from modeling_taae.entropy.statistics import token_statistics
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.codecs import TaaeSystem
from modeling_taae.evaluation.metrics import ALL_METRICS, SAMPLING_RATE
from modeling_taae.evaluation.probes import digit_features, phoneme_error_rate
from modeling_taae.evaluation.report import NOTHING, metric_heading, number, table
from modeling_taae.evaluation.results import Row, rounded
from modeling_taae.evaluation.run import evaluate_codecs
from modeling_taae.evaluation.tables import environment, mean_with_interval, metric_facts
from modeling_taae.files import write_bytes
from training.benchmarks.benchmark import with_tables
from training.checkpoints import complete_checkpoints
from training.ctc import CTCHead, error_rate, split_units
from training.recipe import RecipeError, parse_recipe
from training.validation import PICTURE_RANGE, spectrogram

ROOT = Path(__file__).resolve().parents[1]
MARKERS = ("<!-- stages: written by training/experiments/stages.py -->\n", "<!-- /stages -->")
PRESET = "1x46656_400bps"
METRICS = ("pesq_wb", "stoi", "mel_distance")
UTTERANCES = 150  # from the start of each file
STRESS = "012"  # marks at the end of vowels, no part of a phoneme


@dataclass(frozen=True)
class Stage:
    """A model, and how it is trained.

    Args:
        name: its run's name.
        title: its column's title.
        recipe: its name; None for the published model.
        options: the trainer's options. Without a number of steps, it is a short run from the published model.
        start: the run from whose last checkpoint this one goes on; None starts from what the recipe names.
    """

    name: str
    title: str
    recipe: str | None = None
    options: tuple[str, ...] = ()
    start: "Stage | None" = None

    def arguments(self, published: Path, steps: int) -> list[str]:
        """The trainer's, but for the folder; a short run has so many steps."""
        schedule = {
            "size": published,
            "max_steps": steps,
            "optimizer.warmup_steps": steps // 10,
            "optimizer.decay_steps": 5 * steps // 8,
            "optimizer.ema_decay": 0.9,  # looks back 80 steps
        }
        short = [] if "--max_steps" in self.options else [f"--{name}={value}" for name, value in schedule.items()]
        return [str(RECIPES / f"{self.recipe}.yaml"), *short, *self.options]


@dataclass(frozen=True)
class Experiment:
    """Models that are compared.

    Args:
        title: what the stage is.
        stages: the models; the others are compared with the first.
        speech: what to score them on: the name of a split of the shared speech, and the language of those that count,
            or None, by what the table calls it.
        measure: further figures of a model, from its folder and that of the speech.
        picture: whether to draw what becomes of an utterance.
    """

    title: str
    stages: tuple[Stage, ...]
    speech: dict[str, tuple[str, str | None]]
    measure: Callable[[Path, Path], dict[str, dict]] | None = None
    picture: bool = False


def phoneme_errors(folder: Path, speech: Path) -> dict[str, dict]:
    """Phoneme error rates on `test`, in English: of the CTC head beside a model, and of a probe of the tokens."""
    codec, head = load_codec(str(folder), device="cpu"), CTCHead.from_pretrained(folder)
    texts = read_transcripts(str(speech / "transcripts.parquet"), "phonemes")
    known, unknown, read = [], [], []
    for utterance, phonemes in spoken(speech / "train-00000-*.parquet", texts):
        known.append((features_of(codec, utterance), phonemes))
    for utterance, phonemes in spoken(speech / "test-*.parquet", texts):
        unknown.append((features_of(codec, utterance), phonemes))
        if head is not None:
            read.append((phonemes, [symbol.rstrip(STRESS) for symbol in head.read(latents_of(codec, utterance))]))
    probed = phoneme_error_rate(known, unknown)
    return {
        "phoneme errors, CTC head on the latents ↓": {"mean": error_rate(read) if read else None},
        "phoneme errors, probe on the tokens ↓": {"mean": probed["phoneme_error_rate"]},
    }


def spoken(files: Path, texts: dict[str, str]) -> list[tuple[Utterance, list[str]]]:
    """English utterances that have phonemes, with these."""
    found = []
    for utterance in tqdm(Utterances([str(files)], SAMPLING_RATE), desc="Reading", disable=None):
        text = texts.get(utterance.id)
        if text and utterance.audio is not None and utterance.facts["language"] == "en":
            found.append((utterance, [symbol.rstrip(STRESS) for symbol in split_units(text, "symbols", ["|"])]))
    return found


def features_of(codec: Codec, utterance: Utterance) -> np.ndarray:
    """Digits of an utterance's tokens, (frames, features), at the preset."""
    return digit_features(
        codec.encode(cast(np.ndarray, utterance.audio), PRESET).audio_codes, codec.model.bottleneck(PRESET)
    )


@torch.no_grad()
def latents_of(codec: Codec, utterance: Utterance) -> torch.Tensor:
    """An utterance before the bottleneck, (1, latent_dim, frames)."""
    inputs = codec.extractor(utterance.audio, sampling_rate=SAMPLING_RATE)["input_values"]
    return codec.model.encode(inputs).latents


RECIPES = ROOT / "recipes"
PUBLISHED = Stage("published", "published model")
WARM_UP = Stage("warm_up", "", "nano", ("--max_steps", "13000", "--optimizer.decay_steps", "0", "--batch_size", "8"))


def from_scratch(name: str, title: str, steps: int, *config: str) -> Stage:
    """A short run of the nano recipe, perhaps of another width, in batches of eight."""
    schedule = ("--max_steps", str(steps), "--optimizer.decay_steps", str(2 * steps // 5), "--batch_size", "8")
    return Stage(name, title, "nano", (*schedule, *config))


# A step beside a discriminator takes 1.6 times as long, so five of them are worth eight.
BESIDE_A_DISCRIMINATOR = (
    *("--max_steps", "18000", "--optimizer.decay_steps", "1900", "--batch_size", "8"),
    *("--discriminator.start_step", "13000"),
)
EXPERIMENTS = {
    "dutch": Experiment(
        "Another language: an hour of Dutch",
        (
            PUBLISHED,
            Stage("dutch_free", "encoder and decoder", "finetune_language"),
            Stage("dutch_frozen", "decoder alone", "finetune_language", ("--freeze_encoder", "true")),
        ),
        {"Dutch": ("finetune_nl_test", None), "English": ("test", "en")},
    ),
    "semantic": Experiment(
        "A CTC head over phonemes",
        (
            PUBLISHED,
            Stage(
                "semantic_frozen",
                "head and decoder",
                "semantic",
                ("--discriminator", "null", "--freeze_encoder", "true"),
            ),
            Stage("semantic", "head, encoder and decoder", "semantic", ("--discriminator", "null")),
        ),
        {"English": ("test", "en")},
        measure=phoneme_errors,
    ),
    "adversarial": Experiment(
        "A discriminator, or as much time for reconstruction",
        (
            Stage(
                "reconstruction",
                "reconstruction",
                "nano",
                ("--max_steps", "21000", "--optimizer.decay_steps", "3000", "--batch_size", "8"),
                WARM_UP,
            ),
            Stage(
                "adversarial",
                "a discriminator, weights 1 and 10",
                "nano_adversarial",
                (*BESIDE_A_DISCRIMINATOR, "--losses.adversarial", "1", "--losses.feature_matching", "10"),
                WARM_UP,
            ),
            Stage(
                "adversarial_gentle",
                "a discriminator, weights 0.1 and 2",
                "nano_adversarial",
                (*BESIDE_A_DISCRIMINATOR, "--losses.adversarial", "0.1", "--losses.feature_matching", "2"),
                WARM_UP,
            ),
        ),
        {"validation": ("validation", None), "test": ("test", None)},
        picture=True,
    ),
    # On the CPU, steps of the three take 0.25, 0.19 and 0.39 s (`train.py --dry_run`).
    "capacity": Experiment(
        "Half and twice the parameters, from scratch, each for the same time",
        (
            from_scratch("nano", "13.2 M parameters", 3000),
            from_scratch(
                "half", "7.0 M parameters", 4000, "--config", '{"hidden_sizes": [184, 184, 184], "head_dim": 92}'
            ),
            from_scratch(
                "twice", "25.8 M parameters", 2000, "--config", '{"hidden_sizes": [360, 360, 360], "head_dim": 120}'
            ),
        ),
        {"validation": ("validation", None)},
    ),
}


class Laboratory:
    """Where experiments run.

    Args:
        folder: parent of runs, and of what evaluation leaves behind.
        speech: the folder of the shared speech.
        published: the folder of the published model.
        steps: number of steps where a stage names none.
    """

    def __init__(self, folder: Path, speech: Path, published: Path, steps: int):
        self.folder, self.speech, self.published, self.steps = folder, speech, published, steps

    def model(self, stage: Stage) -> Path:
        """The folder of a stage's model."""
        return self.published if stage.recipe is None else self.folder / stage.name / "model"

    def arguments(self, stage: Stage) -> list[str]:
        """The trainer's for a stage, but for the folder."""
        return stage.arguments(self.published, self.steps)

    def train(self, stage: Stage) -> None:
        """Trains a stage, unless it is trained already.

        Raises:
            RecipeError: if it was trained with other settings.
            subprocess.CalledProcessError: if the trainer fails.
        """
        if stage.recipe is None:
            return
        own, arguments = self.folder / stage.name, self.arguments(stage)
        settings, wanted = own / "arguments.json", json.dumps(self.facts(stage)["arguments"]) + "\n"
        if settings.exists() and settings.read_text() != wanted:
            raise RecipeError(f"{own} is of a run with other settings; choose another --output_dir.")
        if self.model(stage).exists():
            return
        if stage.start is not None and not complete_checkpoints(own):
            self.train(stage.start)
            newest = complete_checkpoints(self.folder / stage.start.name)[-1]
            shutil.copytree(newest, own / "copied", dirs_exist_ok=True)
            (own / "copied").rename(own / newest.name)  # a checkpoint is there when it is complete
        write_bytes(settings, wanted.encode())
        command = [sys.executable, str(ROOT / "train.py"), *arguments, "--output_dir", str(own)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def score(self, stage: Stage, split: str) -> list[Row]:
        """Returns a row of `taae evaluate` for each utterance."""
        codec = load_codec(str(self.model(stage)), device="cpu")
        loudness = codec.extractor.target_loudness
        utterances = Utterances([str(self.speech / f"{split}-*.parquet")], SAMPLING_RATE, UTTERANCES)
        system, place = TaaeSystem(codec, PRESET, stage.name), self.folder / stage.name / "scores" / split
        results = evaluate_codecs(utterances, [system], METRICS, folder=place, target_loudness=loudness)
        return results.rows[system.name]

    def run(self, experiment: Experiment) -> dict:
        """Trains and compares; returns the content of results/stages.json for it."""
        for stage in experiment.stages:
            self.train(stage)
        models, first = [], None
        for stage in experiment.stages:
            rows = {split: self.score(stage, split) for split, _ in experiment.speech.values()}
            first = first or rows
            figures: dict[str, Any] = {}
            for name, (split, language) in experiment.speech.items():
                figures |= compared(name, rows[split], first[split], language)
            split = next(iter(rows))
            figures |= token_use(self.model(stage), rows[split], first[split])
            if experiment.measure is not None:
                figures |= experiment.measure(self.model(stage), self.speech)
            models.append({"name": stage.name, "title": stage.title, **self.facts(stage), "figures": figures})
        return rounded({"environment": environment(), "models": models})

    def facts(self, stage: Stage) -> dict:
        """Returns a stage's own steps and the trainer's arguments."""
        if stage.recipe is None:
            return {"steps": 0}
        recipe, *options = self.arguments(stage)
        before = 0 if stage.start is None else parse_recipe(self.arguments(stage.start)).max_steps
        steps = parse_recipe([recipe, *options]).max_steps - before
        return {"steps": steps, "arguments": [Path(recipe).name, *options]}

    def draw(self, experiment: Experiment, target: Path) -> None:
        """Draws the spectrograms of the first utterance, and of what the models make of it, one above the other."""
        from matplotlib.figure import Figure

        split = next(iter(experiment.speech.values()))[0]
        utterances = Utterances([str(self.speech / f"{split}-*.parquet")], SAMPLING_RATE)
        audio = next(utterance.audio for utterance in utterances if utterance.audio is not None)
        codecs = {stage.title: load_codec(str(self.model(stage)), device="cpu") for stage in experiment.stages}
        extractor = next(iter(codecs.values())).extractor
        heard = extractor(audio, sampling_rate=SAMPLING_RATE)["input_values"][0, 0, : len(audio)].numpy()
        pictures = {"original": heard} | {
            title: codec.decode(codec.encode(audio, PRESET)) for title, codec in codecs.items()
        }
        figure = Figure(figsize=(9, 2.2 * len(pictures)), layout="constrained")
        axes = figure.subplots(len(pictures), 1, sharex=True)
        extent = (0, len(audio) / SAMPLING_RATE, 0, SAMPLING_RATE / 2000)
        for axis, (title, clip) in zip(axes, pictures.items(), strict=True):
            axis.imshow(spectrogram(clip), aspect="auto", extent=extent, cmap="magma", vmin=0, vmax=255)
            axis.set(title=title, ylabel="kHz")
        axes[-1].set(xlabel=f"seconds; colours span {PICTURE_RANGE:g} dB")
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=80)


def compared(name: str, rows: list[Row], first: list[Row], language: str | None) -> dict[str, dict]:
    """Means of the metrics, and of their change from the first model, over the utterances of a language."""
    figures: dict[str, Any] = {}
    for metric in METRICS:
        values, before = (
            {
                row.id: cast(float | None, row.metrics[metric])
                for row in every
                if language in (None, row.facts.get("language"))
            }
            for every in (rows, first)
        )
        changes = [
            None if value is None or (earlier := before[key]) is None else value - earlier
            for key, value in values.items()
        ]
        interval = mean_with_interval(changes)
        mean = mean_with_interval(list(values.values()))
        change = {} if rows is first else {"low": interval.low, "high": interval.high}
        heading = metric_heading(metric_facts(ALL_METRICS[metric]))
        figures[f"{name}: {heading}"] = {"mean": mean.mean, **change, "utterances": mean.n}
    return figures


def token_use(folder: Path, rows: list[Row], first: list[Row]) -> dict[str, dict]:
    """Entropy of the digits as a share of its maximum, and the share of tokens that are those of the first model."""
    codec = load_codec(str(folder), device="cpu")
    codes, before = ([np.array(row.codes) for row in every] for every in (rows, first))
    statistics = token_statistics(codes, codec.model.bottleneck(PRESET), codec.model.config.frame_rate)
    same = np.concatenate([(clip == other).ravel() for clip, other in zip(codes, before, strict=True)])
    entropies = [entropy for entry in statistics["stages"] for entropy in entry["digit_entropy"]]
    return {
        "digit entropy, of its maximum": {"mean": float(np.mean(entropies))},
        "tokens as in the first column": {"mean": float(same.mean())},
    }


def markdown(results: dict[str, dict]) -> str:
    """A table for each experiment, with a column for each model."""
    parts = []
    for name in filter(results.get, EXPERIMENTS):
        models, machine = results[name]["models"], results[name]["environment"]
        rows = [["steps", *(f"{model['steps']:,}" for model in models)]]
        rows += [[figure, *(cell(model["figures"][figure]) for model in models)] for figure in models[0]["figures"]]
        place = f"{machine['processor']}, float32, torch {machine['packages']['torch']}"
        heading = ["", *(model["title"] for model in models)]
        parts.append(f"**{EXPERIMENTS[name].title}** (scored on: {place})\n\n{table(heading, rows)}")
    return "\n\n".join(parts)


def cell(figure: dict) -> str:
    """A mean, with the interval of its change."""
    if figure["mean"] is None:
        return NOTHING
    text = number(figure["mean"], 3)
    return f"{text} ({figure['low']:+.3f} to {figure['high']:+.3f})" if "low" in figure else text


def read_results(file: Path) -> dict[str, dict]:
    """The experiments that are kept in a file, none if there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def main(arguments: list[str] | None = None) -> int:
    """Runs experiments, writes down what they show, and returns the exit status: 1 where a training run failed."""
    parser = argparse.ArgumentParser(prog="stages.py", description=__doc__.splitlines()[0])
    listed = "; ".join(f"{name}: {experiment.title}" for name, experiment in EXPERIMENTS.items())
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"which (default: all). {listed}")
    parser.add_argument("--steps", type=int, default=800, metavar="N", help="of short runs (default: 800)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/stages"), metavar="DIR", help="for all runs")
    parser.add_argument("--speech", type=Path, default=Path("../shared/speech"), metavar="DIR", help="of the recipes")
    published = Path("hub_cards/taae-speech-16k-nano")
    parser.add_argument("--published", type=Path, default=published, metavar="DIR", help="the model to start from")
    kept = "where to keep the results, with pictures beside it (default: stages.json in --output_dir)"
    parser.add_argument("--json", type=Path, metavar="FILE", help=kept)
    parser.add_argument("--readme", type=Path, metavar="FILE", help="a text whose tables to replace by the results")
    parser.add_argument("--show", action="store_true", help="run nothing, and show the results kept")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.experiments) - EXPERIMENTS.keys()):
        parser.error(f"there is no experiment {unknown[0]}; choose from {', '.join(EXPERIMENTS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends the trainer too
    laboratory = Laboratory(options.output_dir, options.speech, options.published, options.steps)
    kept = options.json or options.output_dir / "stages.json"
    try:
        if options.readme:
            with_tables(options.readme, "", MARKERS)  # finds out now whether it will do
        for name in [] if options.show else options.experiments or EXPERIMENTS:
            result = laboratory.run(EXPERIMENTS[name])
            content = json.dumps(read_results(kept) | {name: result}, indent=1, ensure_ascii=False)
            write_bytes(kept, f"{content}\n".encode())
            if EXPERIMENTS[name].picture:
                laboratory.draw(EXPERIMENTS[name], kept.parent / f"{name}.png")
        tables = markdown(read_results(kept))
        print(tables)
        if options.readme:
            write_bytes(options.readme, with_tables(options.readme, tables, MARKERS).encode())
    except (OSError, ValueError, TaaeInputError) as error:
        parser.error(str(error))
    except subprocess.CalledProcessError as error:
        print(f"stages.py: training ended with status {error.returncode}; see above", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stages.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
