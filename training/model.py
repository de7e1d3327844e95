"""Makes or loads the codec of a run as its recipe says, and prepares it for training."""

import copy
import re
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import torch

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel
from modeling_taae.configuration_taae import NAMED_SIZES
from modeling_taae.errors import one_line
from modeling_taae.identity import list_ancestors
from modeling_taae.transformer_taae import TaaeTransformerLayer
from training.recipe import Recipe, RecipeError

CHECKOUT = Path(__file__).resolve().parents[1]
OWN_FOLDERS = {"runs", "hub_cards"}  # folders of the project, which may not exist yet
REPOSITORY = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # a name on the Hub


def load_model(recipe: Recipe, attention: str = "sdpa", empty: bool = False) -> TaaeModel:
    """Makes a model of a named size, or loads a published model to continue from, as the recipe says.

    Args:
        recipe: the run's recipe.
        attention: the attention implementation.
        empty: whether to leave out the weights and use no memory, for counting them.

    Raises:
        RecipeError: if there is no such model, or the recipe's configuration does not fit it.
    """
    if unknown := sorted(recipe.config.keys() - {field.name for field in fields(TaaeConfig)}):
        raise RecipeError(f"A model's configuration has no field {unknown[0]!r}, which the recipe sets under config.")
    start = start_of(recipe)
    named = start in NAMED_SIZES
    try:
        if named or empty:
            make_config = TaaeConfig.named if named else TaaeConfig.from_pretrained
            with torch.device("meta") if empty else nullcontext():
                model = TaaeModel(make_config(start, **recipe.config))
        else:
            model = TaaeModel.from_pretrained(start, **recipe.config)
            list_ancestors(model)  # tokens stay the same if the encoder does
        model.set_attn_implementation(attention)
        model.bottleneck(recipe.validation.bottleneck)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RecipeError(f"Cannot make the model {recipe.size!r}: {str(error).splitlines()[0]}") from error
    return model


def start_of(recipe: Recipe) -> str:
    """Returns the start of a run: a named size, a folder, or a name on the Hub.

    A relative folder is searched for in the current folder and in the checkout, so that recipes work from anywhere.

    Raises:
        RecipeError: if the recipe names a folder that does not exist.
    """
    size = recipe.size
    if size in NAMED_SIZES or Path(size).is_dir():
        return size
    if (CHECKOUT / size).is_dir():
        return str(CHECKOUT / size)
    if REPOSITORY.fullmatch(size) and not is_local(Path(size).parent):
        return size
    places = " nor in ".join(dict.fromkeys(map(str, (Path.cwd(), CHECKOUT))))
    raise RecipeError(
        f"There is no folder {size!r} in {places}; --size takes the folder of a model, its name on the Hub, or one of "
        f"{', '.join(NAMED_SIZES)}."
    )


def is_local(parent: Path) -> bool:
    """Returns whether a path with this parent means a folder rather than a name on the Hub."""
    if parent == Path():
        return False
    return parent.name in OWN_FOLDERS or any((base / parent).is_dir() for base in (Path(), CHECKOUT))


def load_extractor(recipe: Recipe, config: TaaeConfig) -> TaaeFeatureExtractor:
    """Returns the feature extractor published with the model, or a new one for a model from scratch.

    Raises:
        RecipeError: if there is none beside a published model.
    """
    if recipe.size in NAMED_SIZES:
        return TaaeFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.hop_length)
    try:
        return TaaeFeatureExtractor.from_pretrained(start_of(recipe))
    except OSError as error:
        raise RecipeError(f"No feature extractor beside the model {recipe.size!r}: {one_line(error)}") from error


def prepare_model(model: TaaeModel, recipe: Recipe) -> TaaeModel:
    """Prepares a model for training: with weight norm, and with the settings of the recipe."""
    # A frozen encoder gets no weight norm, because splitting and fusing a weight would round it and change tokens.
    frozen = copy.deepcopy(model.encoder).requires_grad_(False) if recipe.freeze_encoder else None
    model.apply_weight_norm()
    if frozen is not None:
        model.encoder = frozen
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if recipe.compile:
        compile_layers(model)
    return model


def compile_layers(model: TaaeModel, backend: str = "inductor") -> None:
    """Compiles a model's transformer layers for crops of one length, in place.

    Compiling layer by layer takes a fraction of the time of the whole model, because layers of one shape share code.

    Args:
        model: the model.
        backend: a backend of `torch.compile`.
    """
    for module in model.modules():
        if isinstance(module, TaaeTransformerLayer):
            module.compile(backend=backend)
