"""Checks the values of tensors, in eager and in compiled models alike.

A compiled graph cannot raise an error that depends on values, so there a check is an operator that the graph calls. Two
kinds of graphs go without checks: graphs of `torch.export`, which hold no Python, and CUDA graphs, which cannot read
values.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor


def check_latents(latents: Tensor, _: Sequence[int]) -> None:
    """Checks that latents, (batch, latent_dim, frames), are not NaN, which rounding would turn into ordinary tokens.

    Raises:
        ValueError: naming the item and the frame.
    """
    wrong = latents.isnan().any(dim=1)
    if wrong.any():
        item, frame = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"The latents of item {item} are NaN from frame {frame} on. Check whether the audio has samples that are "
            "NaN, infinite or far beyond full scale (1), and whether the model's weights are finite."
        )


def check_tokens(tokens: Tensor, codebook_sizes: Sequence[int]) -> None:
    """Checks that tokens, (batch, stages, frames) int64, are within the codebook of their stage.

    Raises:
        ValueError: naming the token and its place.
    """
    sizes = torch.tensor(codebook_sizes, dtype=torch.int64, device=tokens.device)[:, None]
    wrong = (tokens < 0) | (tokens >= sizes)
    if wrong.any():
        item, stage, frame = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Token {tokens[item, stage, frame].item()} of item {item}, stage {stage}, frame {frame} is out of range: "
            f"stage {stage} has tokens 0 to {codebook_sizes[stage] - 1}. Were these tokens made with another "
            "bottleneck?"
        )


def check_right_padding(mask: Tensor, _: Sequence[int]) -> None:
    """Checks that a mask, (batch, steps) bool, is true first and false after that, for each item.

    Raises:
        ValueError: if it is not.
    """
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError(
            "padding_mask and audio_codes_mask must be ones followed by zeros for each item: pad on the right."
        )


CHECKS = {function.__name__: function for function in (check_latents, check_tokens, check_right_padding)}
# The name is unique to this module, because the package and a model folder's copy of the code may be loaded together.
OPERATOR = f"taae::check_{re.sub(r'[^a-zA-Z0-9]', '_', __name__)}"


@torch.library.custom_op(OPERATOR, mutates_args=())
def _check_in_graph(values: Tensor, name: str, sizes: list[int]) -> Tensor:
    if not (values.is_cuda and torch.cuda.is_current_stream_capturing()):
        CHECKS[name](values, sizes)
    return torch.zeros((), dtype=torch.int64, device=values.device)


@_check_in_graph.register_fake
def _(values: Tensor, name: str, sizes: list[int]) -> Tensor:
    return values.new_empty((), dtype=torch.int64)


def checked(values: Tensor, name: str, sizes: Sequence[int] = ()) -> Tensor | int:
    """Runs a check and returns 0. Add the 0 to a used value: a compiler removes operators whose result is unused.

    Args:
        values: the tensor to check.
        name: the name of a check above.
        sizes: the codebook sizes, for tokens.

    Raises:
        ValueError: if the check fails.
    """
    if torch.compiler.is_exporting():
        return 0
    if torch.compiler.is_compiling():
        return _check_in_graph(values.detach(), name, list(sizes))
    CHECKS[name](values.detach(), sizes)
    return 0
