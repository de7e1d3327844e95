"""Tells a digit that differs because its latent lies on a rounding tie from one that is wrong."""

import torch
from torch import Tensor

from modeling_taae.quantization_taae import ResidualFSQ


def tie_distance(latents: Tensor, quantizer: ResidualFSQ) -> Tensor:
    """How near each squashed latent is to a rounding tie, or its residual at a later stage: (batch, dim, frames)."""
    residual, nearest = torch.tanh(latents.double()), torch.full(latents.shape, torch.inf, dtype=torch.float64)
    for stage in quantizer.stages:
        step = 2 * stage.scale / (torch.tensor(stage.levels, dtype=torch.float64)[:, None] - 1)
        position = (residual + stage.scale) / step
        nearest = torch.minimum(nearest, (position - position.floor() - 0.5).abs() * step)
        residual = residual - (torch.round(position) * step - stage.scale)
    return nearest


def count_ties(tokens: Tensor, others: Tensor, latents: Tensor, quantizer: ResidualFSQ) -> int:
    """Number of digits that differ; an error if one of them is no rounding tie."""
    differs = torch.zeros(latents.shape, dtype=torch.bool)
    for index, stage in enumerate(quantizer.stages):
        differs |= stage.unpack(tokens[:, index]) != stage.unpack(others[:, index])
    assert (tie_distance(latents, quantizer)[differs] < 1e-5).all()
    return int(differs.sum())
