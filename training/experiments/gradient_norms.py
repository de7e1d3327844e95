"""Measures the gradient norm of each loss: `python training/experiment.py gradient_norms RECIPE.yaml`.

Measures the gradients of each term at weight 1, at the decoded audio and at the codec's weights, averaged over a few
batches. Use the norms to choose loss weights. Name with `--size` a model whose discriminator or CTC head was published
beside it, because a fresh one has far smaller gradients than a trained one. Prints Markdown and changes nothing.
"""

import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modeling_taae.evaluation.report import NOTHING, table
from training.optimization import trainable_parameters
from training.recipe import RecipeError, parse_recipe
from training.trainer import Trainer

BATCHES = 8


def gradient_norm(term: Tensor, inputs: list[Tensor]) -> float:
    """Norm of a term's gradient at all inputs together; those it does not depend on count as zero."""
    found = torch.autograd.grad(term, inputs, retain_graph=True, allow_unused=True)
    return float(sum(gradient.float().square().sum() for gradient in found if gradient is not None)) ** 0.5


def measure(trainer: Trainer) -> dict[str, np.ndarray]:
    """The loss of each term, and the norms of its gradient at the audio and at the weights, by the term's name."""
    weights, found = trainable_parameters(trainer.model), defaultdict(list)
    trainer.model.train()
    for crops, utterances in zip(trainer.batches(), trainer.utterances(), strict=False):
        decoded, terms, _ = trainer.losses(crops.to(trainer.accelerator.device), utterances)
        for name, term in terms.items():
            found[name].append((term.item(), gradient_norm(term, [decoded]), gradient_norm(term, weights)))
        trainer.step += 1  # another draw of resolutions
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measures as the recipe and its options say, and returns the exit status: 2 for an error."""
    recipe = parse_recipe(sys.argv[1:] if arguments is None else arguments)
    recipe = replace(recipe, max_steps=BATCHES, hub=None, validation=replace(recipe.validation, corpus=None))
    if recipe.discriminator is not None:
        recipe = replace(recipe, discriminator=replace(recipe.discriminator, start_step=0))
    try:
        found = measure(Trainer(recipe))
    except RecipeError as error:
        print(f"experiment.py gradient_norms: error: {error}", file=sys.stderr)
        return 2
    rows = [
        [f"`{name}`", f"{loss:.3g}", f"{at_audio:.2g}" if at_audio else NOTHING, f"{at_weights:.2g}"]
        for name, (loss, at_audio, at_weights) in found.items()
    ]
    print(table(["term", "loss", "gradient at the audio", "gradient at the weights"], rows))
    return 0
