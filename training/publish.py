"""Publishes a trained model: `python training/publish.py runs/nano/model DESTINATION` makes the folder to publish.

Weights are stored in bfloat16, half the size; the config says float32, so they are loaded as float32. With `--demo
speech.wav`, the folder also gets `demo.taae`, that recording in the model's tokens; `--demo FILE ID` takes the
utterance with this id from Parquet. `make release` begins with this command, then remakes everything that depends on
the weights.

A run whose recipe has `hub` ends with `publish_on_hub`: it makes the same folder with results on the validation speech
and a card that shows them, and pushes it to the Hub.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub import ModelCardData
from transformers.utils import CONFIG_NAME

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel
from modeling_taae.codec import load_codec
from modeling_taae.data.utterances import Utterances
from modeling_taae.entropy.prior import PRIOR_FILE, find_prior
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation import Results, evaluate_codecs, report, taae_systems, write_results
from modeling_taae.files import completed
from modeling_taae.hub.cards import TAGS, model_facts, write_card
from modeling_taae.hub.push import PushError, push_folder
from modeling_taae.taae_file import format_bottleneck
from training.ctc import CTCHead
from training.discriminator import MultiResolutionDiscriminator
from training.provenance import TRAINING_DATA, TrainingData
from training.recipe import HubConfig, Recipe, RecipeError

TEMPLATE = Path(__file__).with_name("model_card.md")
METRICS = ("pesq_wb", "pesq_nb", "stoi", "si_sdr", "mel_distance")


class HubError(RuntimeError):
    """A trained model that could not be published; the message gives the reason and the model's folder."""


def check_hub(recipe: Recipe) -> None:
    """Checks before the run that publishing will have what it needs after it.

    Raises:
        RecipeError: if something is missing.
    """
    if recipe.hub is None:
        return
    if recipe.validation.corpus is None:
        raise RecipeError("To publish on the Hub, name validation.corpus: its figures stand in the card.")
    if not Path(recipe.hub.license_file).is_file():
        raise RecipeError(f"hub.license_file {recipe.hub.license_file!r} is no file; name the text of the licence.")


def publish_on_hub(recipe: Recipe, hub: HubConfig, run: Path) -> None:
    """Makes `run/hub/NAME` of the model in `run/model`, and pushes it.

    Args:
        recipe: the run's recipe.
        hub: the repository's settings.
        run: the run's folder.

    Raises:
        HubError: if it cannot be evaluated, or the Hub refuses or cannot be reached.
    """
    folder = run / "hub" / hub.repo.split("/")[-1]
    publish(run / "model", folder)
    shutil.copyfile(hub.license_file, folder / "LICENSE")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(published_recipe(recipe), sort_keys=False), encoding="utf-8")
    evaluate(recipe, folder)
    (folder / "README.md").write_text(card(recipe, hub.license, folder), encoding="utf-8")
    try:
        push_folder(folder, hub.repo, hub.private, report=print)
    except (PushError, TaaeInputError) as error:
        raise HubError(
            f"Not published: {error}. The model is in {folder}: `taae push {folder} {hub.repo}` publishes it."
        ) from error


def published_recipe(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe without its output folder and repository, so that others can use it."""
    settings = asdict(recipe)
    del settings["output_dir"], settings["hub"]
    return json.loads(json.dumps(settings))  # tuples as lists, for YAML


def evaluate(recipe: Recipe, folder: Path) -> None:
    """Evaluates a model on the validation speech, as `taae evaluate` does, into `folder/results`.

    Raises:
        HubError: if it fails.
    """
    corpus, settings = recipe.validation.corpus, recipe.validation
    if corpus is None:
        raise HubError("Without validation.corpus there are no figures for the card.")
    own = format_bottleneck(TaaeConfig.from_pretrained(folder).bottleneck)
    results = folder / "results"
    try:
        codec = load_codec(str(folder))
        data = Utterances(
            [corpus.source],
            codec.model.config.sampling_rate,
            settings.utterances,
            corpus.split,
            corpus.subset,
            corpus.audio_column,
            audio_root=corpus.audio_root,
            channel=corpus.channel,
        )
        systems = taae_systems(codec, [own, settings.bottleneck], folder.name)
        loudness = codec.extractor.target_loudness
        found = evaluate_codecs(
            data, systems, METRICS, folder=results, target_loudness=loudness, sources=[corpus.source]
        )
        write_results(results, found)
    except TaaeInputError as error:
        raise HubError(f"The model could not be evaluated for its card ({error}). It is in {folder}.") from error


def card(recipe: Recipe, license_name: str, folder: Path) -> str:
    """Returns the text of a model's card, made from its folder."""
    results = Results.read(folder / "results" / "results.json")
    ours = [system.metrics for system in results.systems]
    shown = [name for name in results.metrics if all(metrics[name].mean is not None for metrics in ours)]
    model = TaaeModel.from_pretrained(folder)
    config = model.config
    data = TrainingData.from_json(json.loads((folder / TRAINING_DATA).read_text(encoding="utf-8")))
    return write_card(
        TEMPLATE,
        ModelCardData(
            language=list(data.languages) or None,
            license=license_name,
            base_model=data.base.name if data.base is not None else None,
            library_name="transformers",
            pipeline_tag="audio-to-audio",
            tags=list(TAGS),
        ),
        **model_facts(folder.name, model),
        origin="trained from scratch" if data.base is None else f"fine-tuned from `{data.base.name}`",
        steps=f"{recipe.max_steps:,}",
        crop_seconds=f"{recipe.data.crop_frames / config.frame_rate:g}",
        speech=data,
        bases=list(data.bases()),
        computed_in=data.computed_in.partition(" (")[0],  # the reason in brackets is the machine's
        auxiliaries=[name for name in ("discriminator", "ctc_head") if (folder / f"{name}.safetensors").is_file()],
        setting=report.setting(results),
        quality=report.quality_table(results, shown),
        footnote=report.footnote(results),
        license=license_name,
    )


def publish(source: Path, destination: Path, demo: Sequence[str] = ()) -> None:
    """Writes config, code, preprocessor config, bfloat16 weights and, from a recording, a demo to a folder.

    A discriminator and a CTC head that were trained with the model are copied too, because fine-tuning needs them.

    Args:
        source: folder of a trained model.
        destination: folder to write; its other files are kept, except an entropy prior of other weights.
        demo: a recording to encode into `demo.taae`: a file and, if that is Parquet, the utterance's id.

    Raises:
        OSError: if the model cannot be read, or the folder cannot be written.
        TaaeInputError: if there is no such recording.
    """
    model = TaaeModel.from_pretrained(source)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in model.fused_state_dict().items()}
    with completed(destination, CONFIG_NAME) as folder:
        model.save_pretrained(folder, state_dict=half)
        TaaeFeatureExtractor.from_pretrained(source).save_pretrained(folder)
        for kind in (MultiResolutionDiscriminator, CTCHead):
            if (auxiliary := kind.from_pretrained(source)) is not None:
                auxiliary.save_pretrained(folder)
        if (source / TRAINING_DATA).is_file():
            shutil.copyfile(source / TRAINING_DATA, folder / TRAINING_DATA)
        codec = load_codec(str(folder), device="cpu")
        if demo:
            codec.encode(read_utterance(*demo, sampling_rate=model.config.sampling_rate)).save(folder / "demo.taae")
        prior = find_prior(destination)
        if prior is not None and prior.model_identity not in codec.ancestors:
            (destination / PRIOR_FILE).unlink()


def read_utterance(source: str, name: str | None = None, *, sampling_rate: int) -> np.ndarray:
    """Reads a recording, or the utterance with this id among several: (samples,) float32.

    Raises:
        TaaeInputError: if there is no such recording.
    """
    for utterance in Utterances([source], sampling_rate):
        if name in (None, utterance.id) and utterance.audio is not None:
            return utterance.audio
    raise TaaeInputError(f"{source}: holds no utterance {name or ''} that can be heard; check --demo")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a trained model, such as runs/nano/model")
    parser.add_argument("destination", type=Path, help="folder to publish, such as hub_cards/taae-speech-16k-nano")
    parser.add_argument(
        "--demo", nargs="+", default=(), metavar=("FILE", "ID"), help="a recording to encode into demo.taae"
    )
    options = parser.parse_args()
    if len(options.demo) > 2:
        parser.error(f"--demo takes a file and perhaps an id, not {len(options.demo)} values; put a pattern in quotes")
    try:
        publish(options.source, options.destination, options.demo)
    except (TaaeInputError, OSError) as error:
        sys.exit(f"publish.py: error: {error}")


if __name__ == "__main__":
    main()
