"""Publishes what a run has trained: a folder with weights, results, card and licence, and the folder on the Hub.

The card shows how good the model is on the speech that the run was validated with, in the words of `taae evaluate`.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData

from modeling_taae import TaaeConfig, TaaeModel, cli
from modeling_taae.configuration_taae import NAMED_SIZES
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation import report
from modeling_taae.hub.cards import TAGS, model_facts, write_card
from modeling_taae.hub.push import PushError, push_folder
from modeling_taae.taae_file import format_bottleneck
from training.publish import publish
from training.recipe import Recipe, RecipeError

TEMPLATE = Path(__file__).with_name("model_card.md")
METRICS = ("pesq_wb", "pesq_nb", "stoi", "si_sdr", "mel_distance")


class HubError(RuntimeError):
    """A trained model that could not be published; the message says why, and where it is."""


def check_hub(recipe: Recipe) -> None:
    """Finds out before the run what publishing will need after it.

    Raises:
        RecipeError: if it is missing.
    """
    if recipe.hub is None:
        return
    if recipe.validation.corpus is None:
        raise RecipeError("To publish on the Hub, name validation.corpus: its figures stand in the card.")
    if not Path(recipe.hub.license_file).is_file():
        raise RecipeError(f"hub.license_file {recipe.hub.license_file!r} is no file; name the text of the licence.")


def publish_on_hub(recipe: Recipe, run: Path) -> None:
    """Makes `run/hub/NAME` of the model in `run/model`, and pushes it.

    Raises:
        HubError: if it cannot be evaluated, or the Hub refuses or cannot be reached.
    """
    folder = run / "hub" / recipe.hub.repo.split("/")[-1]
    publish(run / "model", folder)
    shutil.copyfile(recipe.hub.license_file, folder / "LICENSE")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(published_recipe(recipe), sort_keys=False), encoding="utf-8")
    evaluate(recipe, folder)
    (folder / "README.md").write_text(card(recipe, folder), encoding="utf-8")
    try:
        push_folder(folder, recipe.hub.repo, recipe.hub.private, report=print)
    except (PushError, TaaeInputError) as error:
        raise HubError(
            f"Not published: {error}. The model is in {folder}: `taae push {folder} {recipe.hub.repo}` publishes it."
        ) from error


def published_recipe(recipe: Recipe) -> dict:
    """The recipe as others can use it, without where the run and its model went."""
    settings = asdict(recipe)
    del settings["output_dir"], settings["hub"]
    return json.loads(json.dumps(settings))  # tuples as lists, for YAML


def evaluate(recipe: Recipe, folder: Path) -> None:
    """Leaves the results of `taae evaluate` on the validation speech in `folder/results`.

    Raises:
        HubError: if it fails.
    """
    corpus, settings = recipe.validation.corpus, recipe.validation
    own = format_bottleneck(TaaeConfig.from_pretrained(folder).bottleneck)
    data = [corpus.source, "--split", corpus.split, "--audio-column", corpus.audio_column]
    data += ["--subset", corpus.subset] if corpus.subset else []
    extent = ["--limit", str(settings.utterances), "--metrics", *METRICS, "--samples", "0", "--no-speed"]
    systems = ["--model", str(folder), "--bottleneck", *dict.fromkeys([own, settings.bottleneck])]
    if cli.main(["evaluate", *data, *extent, *systems, "--workers", "1", "-o", str(folder / "results")]) != 0:
        raise HubError(f"The model could not be evaluated for its card. It is in {folder}.")


def card(recipe: Recipe, folder: Path) -> str:
    """The card of a model, from what is in its folder."""
    results = json.loads((folder / "results" / "results.json").read_text(encoding="utf-8"))
    ours = [system["metrics"] for system in results["systems"]]
    shown = [name for name in results["metrics"] if all(metrics[name]["mean"] is not None for metrics in ours)]
    model = TaaeModel.from_pretrained(folder)
    config = model.config
    return write_card(
        TEMPLATE,
        ModelCardData(
            license=recipe.hub.license, library_name="transformers", pipeline_tag="audio-to-audio", tags=list(TAGS)
        ),
        **model_facts(folder.name, model),
        origin="from scratch" if recipe.size in NAMED_SIZES else f"on from `{Path(recipe.size).name}`",
        steps=f"{recipe.max_steps:,}",
        crop_seconds=f"{recipe.data.crop_frames / config.frame_rate:g}",
        corpora=[corpus.source for corpus in recipe.data.corpora],
        companions=[name for name in ("discriminator", "ctc_head") if (folder / f"{name}.safetensors").is_file()],
        setting=report.setting(results),
        quality=report.quality_table(results, shown),
        footnote=report.footnote(results),
        license=recipe.hub.license,
    )
