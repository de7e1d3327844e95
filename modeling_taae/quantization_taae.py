"""The FSQ bottleneck of TAAE and its residual decomposition after training (arXiv 2411.19842, sections 3.2 and 3.2.1).

Latents are squashed by a hyperbolic tangent and each dimension is rounded to a grid. A *digit* is the position on that
grid, a *token* one integer for the digits of all dimensions, a *code* the value that the decoder reads.
"""

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks_taae import checked

NATIVE = "native"

# Levels per dimension and scale of each stage (the paper's table of bit rates). One model serves all presets: a grid of
# 2^n + 1 levels is a sum of coarser grids of 2^m + 1 levels whose scales are divided by powers of two.
BOTTLENECK_PRESETS: dict[str, tuple[tuple[tuple[int, ...], float], ...]] = {
    "1x46656_400bps": (((6,) * 6, 1.0),),
    "2x15625_700bps": (((5,) * 6, 1.0), ((5,) * 6, 1 / 4)),
    "4x729_1000bps": (((3,) * 6, 1.0), ((3,) * 6, 1 / 2), ((3,) * 6, 1 / 4), ((3,) * 6, 1 / 8)),
}


@dataclass(frozen=True)
class FiniteScalarQuantizer:
    """Quantises each dimension d to `levels[d]` evenly spaced values from -scale to scale: one stage.

    Args:
        levels: levels of each dimension, each at least 2.
        scale: half the width of the grid.

    Raises:
        ValueError: if there are no levels, one is below 2, the scale is not positive, or tokens would not fit int64.
    """

    levels: tuple[int, ...]
    scale: float = 1.0

    def __post_init__(self):
        if not self.levels or min(self.levels) < 2 or not 0 < self.scale < math.inf:
            raise ValueError(
                "A quantisation stage is (levels of each dimension, each at least 2; a positive scale); "
                f"got {self.levels}, {self.scale}."
            )
        if self.codebook_size > 2**63:
            raise ValueError(f"{self.codebook_size} codes do not fit an int64 token; use fewer levels or more stages.")

    @property
    def codebook_size(self) -> int:
        """Number of distinct tokens."""
        return math.prod(self.levels)

    def _step(self, device: torch.device) -> Tensor:
        # Rounded to float32, like the grid of the reference: six levels are 0.4000000060 apart, not 0.4.
        step = [2 * self.scale / (level - 1) for level in self.levels]
        return torch.tensor(step, dtype=torch.float32, device=device)[:, None]

    def _basis(self, device: torch.device) -> Tensor:
        basis = [math.prod(self.levels[:dimension]) for dimension in range(len(self.levels))]
        return torch.tensor(basis, dtype=torch.int64, device=device)[:, None]

    def quantize(self, values: Tensor) -> Tensor:
        """Returns the digits of the nearest grid points, ties to even: (batch, dim, frames) float -> int64."""
        digits = torch.round((values + self.scale) / self._step(values.device).to(values.dtype)).to(torch.int64)
        highest = torch.tensor(self.levels, device=values.device)[:, None] - 1
        return digits.clamp(min=torch.zeros_like(highest), max=highest)

    def dequantize(self, digits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the codes of digits: (batch, dim, frames) int64 -> the same shape, computed in `dtype`."""
        return digits.to(dtype) * self._step(digits.device).to(dtype) - self.scale

    def pack(self, digits: Tensor) -> Tensor:
        """Packs digits into tokens, dimension 0 least significant: (batch, dim, frames) -> (batch, frames), int64."""
        return (digits * self._basis(digits.device)).sum(dim=1)

    def unpack(self, tokens: Tensor) -> Tensor:
        """Unpacks tokens into digits: (batch, frames) int64 -> (batch, dim, frames) int64."""
        levels = torch.tensor(self.levels, dtype=torch.int64, device=tokens.device)[:, None]
        return tokens[:, None, :] // self._basis(tokens.device) % levels


@dataclass(frozen=True)
class ResidualFSQ:
    """Sums quantisation stages, each of which quantises the residual of the stages before it (section 3.2.1).

    Args:
        stages: the stages, coarsest first, all with the same number of dimensions.
        training_grid: whether this is the training grid. As in the reference, it is computed in float32 for float32
            latents; every other bottleneck is computed in float64.
    """

    stages: tuple[FiniteScalarQuantizer, ...]
    training_grid: bool = False

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of distinct tokens of each stage."""
        return tuple(stage.codebook_size for stage in self.stages)

    @property
    def bits_per_frame(self) -> float:
        """Bits of one frame if all tokens were equally likely."""
        return sum(math.log2(size) for size in self.codebook_sizes)

    def encode(self, latents: Tensor) -> Tensor:
        """Quantises latents to tokens.

        Args:
            latents: (batch, latent_dim, frames) before the hyperbolic tangent, of any floating dtype.

        Returns:
            (batch, tokens_per_frame, frames) int64.

        Raises:
            ValueError: if latents are NaN, which rounding would turn into ordinary tokens.
        """
        in_float32 = self.training_grid and latents.dtype == torch.float32
        values = latents if in_float32 or _has_float64(latents.device) else latents.cpu()
        residual = torch.tanh(values if in_float32 else values.to(torch.float64))
        tokens = []
        for stage in self.stages:
            digits = stage.quantize(residual)
            residual = residual - stage.dequantize(digits, residual.dtype)
            tokens.append(stage.pack(digits))
        return torch.stack(tokens, dim=1).to(latents.device) + checked(latents, "check_latents")

    def decode(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the codes of tokens: the sum over the stages.

        Args:
            tokens: (batch, tokens_per_frame, frames) of an integer dtype.
            mask: (batch, frames), true where a frame is real; the tokens of other frames are ignored.

        Returns:
            (batch, latent_dim, frames) float32.

        Raises:
            ValueError: if the tokens have another shape or dtype, or one is out of its codebook's range.
        """
        tokens = self._checked(tokens, mask)
        codes = [stage.dequantize(stage.unpack(tokens[:, k])) for k, stage in enumerate(self.stages)]
        return torch.stack(codes).sum(dim=0)

    def _checked(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
            raise ValueError(f"Tokens must be integers, not {tokens.dtype}.")
        if tokens.ndim != 3 or tokens.shape[1] != len(self.stages):
            raise ValueError(
                f"This bottleneck has tokens of shape (batch, {len(self.stages)}, frames), not {tuple(tokens.shape)}."
            )
        tokens = tokens.to(torch.int64)
        if mask is not None:
            if mask.shape != (tokens.shape[0], tokens.shape[2]):
                raise ValueError(
                    f"The mask of tokens {tuple(tokens.shape)} has shape {(tokens.shape[0], tokens.shape[2])}, "
                    f"not {tuple(mask.shape)}."
                )
            tokens = tokens.masked_fill(~mask.bool()[:, None, :], 0)
        return tokens + checked(tokens, "check_tokens", self.codebook_sizes)


def resolve_bottleneck(
    bottleneck: str | list | tuple | None, quantization_levels: tuple[int, ...], default: str | list | tuple = NATIVE
) -> ResidualFSQ:
    """Returns the bottleneck for a user's argument.

    Args:
        bottleneck: a preset's name, `"native"` for the training grid, a list of `(levels of each dimension, scale)`
            stages, or None for `default`.
        quantization_levels: levels of the training grid, one per latent dimension.
        default: the bottleneck for None.

    Raises:
        ValueError: if the name is unknown, or stages do not fit the number of latent dimensions.
    """
    bottleneck = default if bottleneck is None else bottleneck
    if isinstance(bottleneck, str):
        if bottleneck == NATIVE:
            return ResidualFSQ((FiniteScalarQuantizer(tuple(quantization_levels)),), training_grid=True)
        if bottleneck not in BOTTLENECK_PRESETS:
            known = ", ".join([*BOTTLENECK_PRESETS, NATIVE])
            raise ValueError(f"There is no bottleneck named {bottleneck!r}; choose one of {known}, or give stages.")
    stages = _parse_stages(BOTTLENECK_PRESETS[bottleneck] if isinstance(bottleneck, str) else bottleneck)
    if any(len(stage.levels) != len(quantization_levels) for stage in stages):
        raise ValueError(
            f"Each stage needs levels for the {len(quantization_levels)} latent dimensions of this model; "
            f"the bottleneck {bottleneck!r} has {[len(stage.levels) for stage in stages]}."
        )
    return ResidualFSQ(stages)


def _parse_stages(stages: list | tuple) -> tuple[FiniteScalarQuantizer, ...]:
    try:
        parsed = [(tuple(map(operator.index, levels)), float(scale)) for levels, scale in stages]
    except (TypeError, ValueError) as error:
        raise ValueError(
            "A bottleneck is a preset's name or a list of (levels of each dimension, scale) stages, such as "
            f"[([5, 5, 5, 5, 5, 5], 1.0)]; got {stages!r}."
        ) from error
    if not parsed:
        raise ValueError("A bottleneck needs at least one stage.")
    return tuple(FiniteScalarQuantizer(levels, scale) for levels, scale in parsed)


def straight_through(codes: Tensor, latents: Tensor) -> Tensor:
    """Returns codes unchanged, with the gradient that they would have without rounding (section 3.2).

    Args:
        codes: (batch, latent_dim, frames), the codes that a bottleneck gives for the latents.
        latents: the same shape, before the hyperbolic tangent.
    """
    values = torch.tanh(latents.to(codes.dtype))
    return codes + (values - values.detach())


def dither(latents: Tensor, levels: tuple[int, ...], noise_probability: float, rounding_probability: float) -> Tensor:
    """Applies the training bottleneck: noise or rounding on a randomly drawn grid, per batch item (section 3.2).

    Noise is uniform over one step of the grid and differs per element. Rounding passes the gradient straight through.
    Items that draw neither stay continuous.

    Args:
        latents: (batch, latent_dim, frames) before the hyperbolic tangent.
        levels: numbers of levels of the grids to draw from.
        noise_probability: share of the items that get noise.
        rounding_probability: share of the items that are rounded.

    Returns:
        Codes of the same shape in float32, differentiable with respect to the latents.
    """
    values = torch.tanh(latents.to(torch.float32))
    per_item = (values.shape[0], 1, 1)
    # Created on the device: a copy from the CPU could not be part of a CUDA graph.
    choices = torch.stack([torch.full((), level, dtype=torch.float32, device=values.device) for level in levels])
    step = 2 / (choices[torch.randint(len(levels), per_item, device=values.device)] - 1)
    noisy = values + (torch.rand_like(values) - 0.5) * step
    rounded = values + (torch.round((values + 1) / step) * step - 1 - values).detach()
    draw = torch.rand(per_item, device=values.device)
    codes = torch.where(draw < noise_probability + rounding_probability, rounded, values)
    return torch.where(draw < noise_probability, noisy, codes)


def _has_float64(device: torch.device) -> bool:
    return device.type != "mps"
