"""Measures the effect of training stages: `python training/experiment.py stages [NAME ...]`.

An experiment trains the published nano codec further in several ways, or continues one checkpoint in two ways. It
compares the models as `taae evaluate` does, utterance by utterance. Finished runs are kept, and interrupted ones are
resumed. Prints Markdown, and updates the results of these experiments in a JSON file.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from modeling_taae.audio.spectrum import FULL_SCALE_DB, RANGE_DB, draw_spectrum
from modeling_taae.codec import Codec, load_codec
from modeling_taae.data.utterances import Utterance, Utterances
from modeling_taae.evaluation.codecs import TaaeSystem
from modeling_taae.evaluation.metrics import ALL_METRICS, SAMPLING_RATE
from modeling_taae.evaluation.probes import digit_features, phoneme_error_rate
from modeling_taae.evaluation.report import NOTHING, metric_heading, number, table
from modeling_taae.evaluation.results import Results, Row, rounded
from modeling_taae.evaluation.run import evaluate_codecs
from modeling_taae.evaluation.tables import environment, mean_with_interval, metric_facts
from training.benchmarks.probes import STRESS, read_phonemes
from training.benchmarks.runner import markers
from training.checkpoints import complete_checkpoints
from training.ctc import CTCHead, error_rate
from training.experiments.runner import RECIPES, TrainingRuns, experiment_parser, run_experiment, write_json
from training.recipe import parse_recipe

MARKERS = markers("stages", "experiments/stages.py")
PRESET = "1x46656_400bps"
METRICS = ("pesq_wb", "stoi", "mel_distance")
UTTERANCES = 150  # from the start of each file


@dataclass(frozen=True)
class Stage:
    """A model and its training.

    Args:
        name: name of the run.
        title: title of the table's column.
        recipe: name of the recipe; None for the published model.
        options: options of the trainer. If they set no number of steps, it is a short run from the published model.
        start: run whose last checkpoint this one continues; None starts as the recipe says.
    """

    name: str
    title: str
    recipe: str | None = None
    options: tuple[str, ...] = ()
    start: "Stage | None" = None

    def arguments(self, published: Path, steps: int) -> list[str]:
        """Returns the trainer's arguments without the folder; `steps` is the length of a short run."""
        schedule = {
            "size": published,
            "max_steps": steps,
            "optimizer.warmup_steps": steps // 10,
            "optimizer.decay_steps": 5 * steps // 8,
            "optimizer.ema_decay": 0.9,  # spans 80 steps
        }
        short = [] if "--max_steps" in self.options else [f"--{name}={value}" for name, value in schedule.items()]
        return [str(RECIPES / f"{self.recipe}.yaml"), *short, *self.options]


@dataclass(frozen=True)
class Experiment:
    """A comparison of models.

    Args:
        title: description of the stage.
        stages: models; the others are compared with the first.
        speech: speech for scoring, by its name in the table: a split of the shared speech, and the language of the
            utterances that count, None for all.
        measure: function that returns further figures of a model, from its folder and that of the speech.
        picture: whether to draw the spectrograms of an utterance.
    """

    title: str
    stages: tuple[Stage, ...]
    speech: dict[str, tuple[str, str | None]]
    measure: Callable[[Path, Path], dict[str, dict]] | None = None
    picture: bool = False


def phoneme_errors(folder: Path, speech: Path) -> dict[str, dict]:
    """Phoneme error rates on the English part of `test`, by a model's CTC head and by a probe of the tokens."""
    codec, head = load_codec(str(folder), device="cpu"), CTCHead.from_pretrained(folder)
    texts = read_phonemes(str(speech / "transcripts.parquet"))
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


def spoken(files: Path, texts: dict[str, list[str]]) -> Iterator[tuple[Utterance, list[str]]]:
    """Yields the English utterances that have phonemes, and the phonemes."""
    for utterance in tqdm(Utterances([str(files)], SAMPLING_RATE), desc="Reading", disable=None):
        if utterance.id in texts and utterance.audio is not None and utterance.facts["language"] == "en":
            yield utterance, texts[utterance.id]


def features_of(codec: Codec, utterance: Utterance) -> np.ndarray:
    """Digits of an utterance's tokens at the preset, (frames, features)."""
    return digit_features(
        codec.encode(cast(np.ndarray, utterance.audio), PRESET).audio_codes, codec.model.bottleneck(PRESET)
    )


@torch.no_grad()
def latents_of(codec: Codec, utterance: Utterance) -> torch.Tensor:
    """Latents of an utterance before the bottleneck, (1, latent_dim, frames)."""
    inputs = codec.extractor(utterance.audio, sampling_rate=SAMPLING_RATE)["input_values"]
    return codec.model.encode(inputs).latents


PUBLISHED = Stage("published", "published model")
WARM_UP = Stage("warm_up", "", "nano", ("--max_steps", "13000", "--optimizer.decay_steps", "0", "--batch_size", "8"))


def from_scratch(name: str, title: str, steps: int, *config: str) -> Stage:
    """A short run of the nano recipe in batches of eight, with `config` as options."""
    schedule = ("--max_steps", str(steps), "--optimizer.decay_steps", str(2 * steps // 5), "--batch_size", "8")
    return Stage(name, title, "nano", (*schedule, *config))


# A step with a discriminator takes 1.6 times as long, so five of them take as long as eight without.
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
    """The place where experiments run.

    Args:
        folder: parent of the runs and of the evaluations' results.
        speech: folder of the shared speech.
        published: folder of the published model.
        steps: number of steps of stages that name none.
    """

    def __init__(self, folder: Path, speech: Path, published: Path, steps: int):
        self.folder, self.speech, self.published, self.steps = folder, speech, published, steps
        self.runs = TrainingRuns(folder)

    def model(self, stage: Stage) -> Path:
        """Returns the folder of a stage's model."""
        return self.published if stage.recipe is None else self.folder / stage.name / "model"

    def train(self, stage: Stage) -> None:
        """Trains a stage unless it is already trained.

        Raises:
            RecipeError: if it was trained with other settings.
            TrainingFailedError: if the trainer fails.
        """
        if stage.recipe is None:
            return
        own, settings = self.folder / stage.name, self.facts(stage)["arguments"]
        self.runs.check(stage.name, settings)
        if self.model(stage).exists():
            return
        if stage.start is not None and not complete_checkpoints(own):
            self.train(stage.start)
            newest = complete_checkpoints(self.folder / stage.start.name)[-1]
            shutil.copytree(newest, own / "copied", dirs_exist_ok=True)
            (own / "copied").rename(own / newest.name)  # so that the checkpoint appears only when complete
        arguments = stage.arguments(self.published, self.steps)
        self.runs.train(stage.name, settings, [*arguments, "--output_dir", str(own)])

    def score(self, stage: Stage, split: str) -> Results:
        """Evaluates a stage's model as `taae evaluate` does."""
        codec = load_codec(str(self.model(stage)), device="cpu")
        loudness = codec.extractor.target_loudness
        utterances = Utterances([str(self.speech / f"{split}-*.parquet")], SAMPLING_RATE, UTTERANCES)
        system, place = TaaeSystem(codec, PRESET, stage.name), self.folder / stage.name / "scores" / split
        return evaluate_codecs(utterances, [system], METRICS, folder=place, target_loudness=loudness)

    def run(self, experiment: Experiment) -> dict:
        """Trains and compares the models, and returns their part of results/stages.json."""
        try:
            for stage in experiment.stages:
                self.train(stage)
        except KeyboardInterrupt:
            self.runs.stop()
            raise
        models, first = [], None
        for stage in experiment.stages:
            results = {split: self.score(stage, split) for split, _ in experiment.speech.values()}
            rows = {split: found.rows[found.systems[0].name] for split, found in results.items()}
            first = first or rows
            figures: dict[str, Any] = {}
            for name, (split, language) in experiment.speech.items():
                figures |= compared(name, rows[split], first[split], language)
            split = next(iter(rows))
            figures |= token_use(results[split], rows[split], first[split])
            if experiment.measure is not None:
                figures |= experiment.measure(self.model(stage), self.speech)
            models.append({"name": stage.name, "title": stage.title, **self.facts(stage), "figures": figures})
        return rounded({"environment": environment(), "models": models})

    def facts(self, stage: Stage) -> dict:
        """Returns a stage's own steps and the trainer's arguments."""
        if stage.recipe is None:
            return {"steps": 0}
        recipe, *options = stage.arguments(self.published, self.steps)
        before = 0 if stage.start is None else parse_recipe(stage.start.arguments(self.published, self.steps)).max_steps
        steps = parse_recipe([recipe, *options]).max_steps - before
        return {"steps": steps, "arguments": [Path(recipe).name, *options]}

    def draw(self, experiment: Experiment, target: Path) -> None:
        """Draws the spectrograms of the first utterance and of its reconstructions, one above the other."""
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
        for axis, (title, clip) in zip(axes, pictures.items(), strict=True):
            draw_spectrum(axis, clip, SAMPLING_RATE, FULL_SCALE_DB)
            axis.set(title=title, ylabel="kHz")
        axes[-1].set(xlabel=f"seconds; colours span {RANGE_DB} dB")
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=80)


def compared(name: str, rows: list[Row], first: list[Row], language: str | None) -> dict[str, dict]:
    """Means over a language's utterances, of the metrics and of their differences from the first model."""
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


def token_use(results: Results, rows: list[Row], first: list[Row]) -> dict[str, dict]:
    """Entropy of the digits as a share of its maximum, and the share of tokens equal to the first model's."""
    pairs = [(np.array(row.codes), np.array(before.codes)) for row, before in zip(rows, first, strict=True)]
    same = np.concatenate([(codes == before).ravel() for codes, before in pairs])
    statistics = cast(dict[str, Any], results.systems[0].tokens)
    entropies = [entropy for entry in statistics["stages"] for entropy in entry["digit_entropy"]]
    return {
        "digit entropy, of its maximum": {"mean": float(np.mean(entropies))},
        "tokens as in the first column": {"mean": float(same.mean())},
    }


def markdown(results: dict[str, dict], experiments: Mapping[str, Experiment] = EXPERIMENTS) -> str:
    """Makes a table for each experiment, with a column for each model."""
    parts = []
    for name in filter(results.get, experiments):
        models, machine = results[name]["models"], results[name]["environment"]
        rows = [["steps", *(f"{model['steps']:,}" for model in models)]]
        rows += [[figure, *(cell(model["figures"][figure]) for model in models)] for figure in models[0]["figures"]]
        place = f"{machine['processor']}, float32, torch {machine['packages']['torch']}"
        heading = ["", *(model["title"] for model in models)]
        parts.append(f"**{experiments[name].title}** (scored on: {place})\n\n{table(heading, rows)}")
    return "\n\n".join(parts)


def cell(figure: dict) -> str:
    """A mean with the confidence interval of its difference."""
    if figure["mean"] is None:
        return NOTHING
    text = number(figure["mean"], 3)
    return f"{text} ({figure['low']:+.3f} to {figure['high']:+.3f})" if "low" in figure else text


def main(arguments: list[str] | None = None, experiments: Mapping[str, Experiment] = EXPERIMENTS) -> int:
    """Runs experiments, writes their results, and returns the exit status: 1 if a training run failed.

    Args:
        arguments: command line; None takes that of the process.
        experiments: experiments to choose from.
    """
    listed = "; ".join(f"{name}: {experiment.title}" for name, experiment in experiments.items())
    explained = f"experiments to run (default: all). {listed}"
    parser = experiment_parser("stages", "Measures the effect of training stages.", experiments, explained)
    parser.add_argument("--steps", type=int, default=800, metavar="N", help="steps of short runs (default: 800)")
    parser.add_argument(
        "--speech", type=Path, default=Path("../shared/speech"), metavar="DIR", help="the shared speech"
    )
    published = Path("hub_cards/taae-speech-16k-nano")
    parser.add_argument("--published", type=Path, default=published, metavar="DIR", help="the model to start from")

    def work(options: argparse.Namespace) -> tuple[str, list[str]]:
        laboratory = Laboratory(options.output_dir, options.speech, options.published, options.steps)
        kept = options.json or options.output_dir / "stages.json"
        results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        for name in [] if options.show else options.names or experiments:
            results[name] = laboratory.run(experiments[name])
            write_json(kept, results)
            if experiments[name].picture:
                laboratory.draw(experiments[name], kept.parent / f"{name}.png")
        return markdown(results, experiments), []

    return run_experiment(parser, arguments, work, MARKERS)
