"""Averages the weights of models: `python training/average.py FOLDER FOLDER … -o OUTPUT`.

A fine-tuned model and the model that it started from often have an average that is better than both (Wortsman et al.,
"Robust fine-tuning of zero-shot models", arXiv 2109.01903): it keeps more of what the first one knew.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.files import completed
from training.commands import exit_status


def average_models(sources: Sequence[Path], output: Path) -> None:
    """Writes the model whose weights are the mean of several models' weights, in float32.

    Args:
        sources: folders of models of one configuration.
        output: folder to write, which is there as a whole or not at all.

    Raises:
        TaaeInputError: if a model cannot be loaded, or its weights have other names or shapes than those of the first.
        OSError: if the folder cannot be written.
    """
    first = load_codec(str(sources[0]), device="cpu")
    mean = {name: tensor.float() / len(sources) for name, tensor in first.model.fused_state_dict().items()}
    for source in sources[1:]:
        other = load_codec(str(source), device="cpu").model.fused_state_dict()
        if shapes(other) != shapes(mean):
            raise TaaeInputError(f"{source}: has other weights than {sources[0]}; average models of one configuration")
        for name, tensor in other.items():
            mean[name] += tensor.float() / len(sources)
    with completed(output, CONFIG_NAME) as folder:
        first.model.save_pretrained(folder, state_dict=mean)
        first.extractor.save_pretrained(folder)


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """Returns the shapes of tensors by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def main(arguments: list[str] | None = None) -> int:
    """Averages the models that the command line names, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="average.py", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    options = parser.parse_args(arguments)
    return exit_status("average.py", lambda: average_models(options.folders, options.output))


if __name__ == "__main__":
    sys.exit(main())
