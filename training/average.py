"""Averages the weights of models: `python training/average.py FOLDER FOLDER … -o OUTPUT`.

A fine-tuned model and the model that it started from often have an average that is better than both (Wortsman et al.,
"Robust fine-tuning of zero-shot models", arXiv 2109.01903): it keeps more of what the first one knew. Models with the
same encoder have an average with that encoder, which reads their tokens.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae.codec import load_codec
from modeling_taae.configuration_taae import TaaeConfig
from modeling_taae.errors import TaaeInputError
from modeling_taae.files import completed
from modeling_taae.identity import FIELDS, list_ancestors
from training.commands import exit_status


def average_models(sources: Sequence[Path], output: Path) -> None:
    """Writes the model whose weights are the mean of several models' weights, in float32.

    Weights that are the same in all models do not change, not even by rounding.

    Args:
        sources: folders of models of one configuration.
        output: folder to write, which is there as a whole or not at all.

    Raises:
        TaaeInputError: if a model cannot be loaded, or differs from the first in its configuration, or in the names or
            shapes of its weights.
        OSError: if the folder cannot be written.
    """
    first = load_codec(str(sources[0]), device="cpu")
    total = {name: tensor.double() for name, tensor in first.model.fused_state_dict().items()}
    for source in sources[1:]:
        other = load_codec(str(source), device="cpu").model
        weights = other.fused_state_dict()
        if shapes(weights) != shapes(total):
            raise TaaeInputError(f"{source}: has other weights than {sources[0]}; average models of one configuration")
        check_configuration(source, other.config, first.model.config)
        for name, tensor in weights.items():
            total[name] += tensor.double()
    mean = {name: (tensor / len(sources)).float() for name, tensor in total.items()}
    list_ancestors(first.model)
    with completed(output, CONFIG_NAME) as folder:
        first.model.save_pretrained(folder, state_dict=mean)
        first.extractor.save_pretrained(folder)


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """Returns the shapes of tensors by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def check_configuration(source: Path, config: TaaeConfig, expected: TaaeConfig) -> None:
    """Raises `TaaeInputError` if a model computes something else than another one of the same weights would."""
    for field in FIELDS:
        value, wanted = getattr(config, field), getattr(expected, field)
        if value != wanted:
            raise TaaeInputError(f"{source}: has {field} {value}, not {wanted}; average models of one configuration")


def main(arguments: list[str] | None = None) -> int:
    """Averages the models that the command line names, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="average.py", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    options = parser.parse_args(arguments)
    return exit_status("average.py", lambda: average_models(options.folders, options.output))


if __name__ == "__main__":
    sys.exit(main())
