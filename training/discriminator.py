"""The multi-resolution complex STFT discriminator (EnCodec's, arXiv 2210.13438, with the three changes of TAAE).

Each resolution is a small separate network on the complex spectrum of the audio. TAAE makes it wider. It uses FFT sizes
whose ratios are not powers of two, because evenly spaced sizes favour some frequencies, which causes periodic
artefacts. It compresses magnitudes by a power law, so that quiet parts of a spectrum count.

To follow an adversarial step, start at the end of this file: `Adversary.losses` computes the codec's two terms and the
discriminator's gradient. The optimiser is in `auxiliary.py`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from modeling_taae.configuration_taae import NAMED_SIZES
from training.auxiliary import AuxiliaryNetwork, PublishedModule, frozen
from training.losses import relative_l1
from training.model import start_of
from training.recipe import Recipe, RecipeError

NEGATIVE_SLOPE = 0.2
QUIETEST_POWER = 1e-6  # 60 dB below full-scale noise; keeps the gradient of the power law finite in silence

Features = list[list[Tensor]]  # by resolution and layer; the last layer's are the logits


class DiscriminatorError(RecipeError):
    """A discriminator that is missing or does not fit; the message says which and why."""


class STFTDiscriminator(nn.Module):
    """The discriminator of one resolution: six weight-normed convolutions on a spectrum's real and imaginary parts.

    Args:
        fft_size: length of the Hann window in samples; the hop is half of it.
        channels: width of the hidden layers.
        exponent: power to which magnitudes are raised; 1 leaves them unchanged.
    """

    def __init__(self, fft_size: int, channels: int, exponent: float):
        super().__init__()
        self.fft_size, self.exponent = fft_size, exponent
        window = torch.hann_window(fft_size)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        # Kernels and strides are (time, frequency).
        self.layers = nn.ModuleList(
            [
                weight_norm(nn.Conv2d(2, channels, (3, 9), padding=(1, 4))),
                *(
                    weight_norm(
                        nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(dilation, 4), dilation=(dilation, 1))
                    )
                    for dilation in (1, 2, 4)
                ),
                weight_norm(nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))),
            ]
        )
        self.to_logits = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def spectrum(self, audio: Tensor) -> Tensor:
        """(batch, 1, samples) -> (batch, 2, frames, frequencies): real and imaginary parts, magnitudes compressed."""
        frames = audio.squeeze(1).to(torch.float32).unfold(-1, self.fft_size, self.fft_size // 2)
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window))
        power = spectrum.square().sum(-1, keepdim=True) + QUIETEST_POWER
        return (spectrum * power ** ((self.exponent - 1) / 2)).movedim(-1, 1)

    def forward(self, audio: Tensor) -> list[Tensor]:
        """(batch, 1, samples) -> the features of each layer, and last the logits, (batch, ..., frames, frequencies)."""
        hidden_states, features = self.spectrum(audio), []
        for layer in self.layers:
            hidden_states = F.leaky_relu(layer(hidden_states), NEGATIVE_SLOPE)
            features.append(hidden_states)
        return [*features, self.to_logits(hidden_states)]


class MultiResolutionDiscriminator(PublishedModule):
    """Discriminators of several resolutions.

    Args:
        fft_sizes: one FFT size for each resolution, in samples.
        channels, exponent: see `STFTDiscriminator`.

    Raises:
        DiscriminatorError: if there is no resolution, or a size is not positive.
    """

    file_name = "discriminator"

    def __init__(self, fft_sizes: Sequence[int], channels: int, exponent: float):
        super().__init__()
        if not fft_sizes or min(fft_sizes) < 2 or channels < 1:
            raise DiscriminatorError(
                f"A discriminator needs FFT sizes of at least 2 and at least 1 channel, not {fft_sizes} and {channels}."
            )
        self.config = {"fft_sizes": list(fft_sizes), "channels": channels, "exponent": exponent}
        self.resolutions = nn.ModuleList(STFTDiscriminator(size, channels, exponent) for size in fft_sizes)

    def forward(self, audio: Tensor, drawn: Sequence[int] | None = None) -> Features:
        """Returns the features of audio (batch, 1, samples) at each resolution, or at those in `drawn`."""
        drawn = range(len(self.resolutions)) if drawn is None else drawn
        return [self.resolutions[index](audio) for index in drawn]


def codec_hinge_loss(decoded: Features) -> Tensor:
    """Returns the codec's adversarial hinge loss of decoded audio, mean over resolutions; a scalar."""
    return -_mean([features[-1].float().mean() for features in decoded])


def discriminator_hinge_loss(real: Features, decoded: Features) -> Tensor:
    """Returns the discriminator's loss, mean over resolutions; a scalar.

    It is zero where logits of real audio are above 1 and those of decoded audio below -1.
    """
    margins = [
        F.relu(1 - logits.float()).mean() + F.relu(1 + decoded_logits.float()).mean()
        for (*_, logits), (*_, decoded_logits) in zip(real, decoded, strict=True)
    ]
    return _mean(margins)


def feature_matching_loss(real: Features, decoded: Features) -> Tensor:
    """Returns the L1 distance of hidden features over the real ones' mean magnitude, mean over all layers; a scalar.

    Without the division, layers and resolutions with large features would dominate. No gradient flows into the real
    features.
    """
    return _mean(
        [
            relative_l1(decoded_feature.float(), real_feature.detach().float())
            for real_features, decoded_features in zip(real, decoded, strict=True)
            for real_feature, decoded_feature in zip(real_features[:-1], decoded_features[:-1], strict=True)
        ]
    )


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


class Adversary(AuxiliaryNetwork[MultiResolutionDiscriminator]):
    """A discriminator that trains together with the codec, on the audio decoded in the codec's step.

    Args:
        recipe: the run's recipe, with a discriminator.
        accelerator: the run's accelerator.
        hop_length: samples per token frame.

    Raises:
        DiscriminatorError: if the recipe's discriminator does not fit its crops, or the one published beside the model
            that the run starts from.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, hop_length: int):
        if recipe.discriminator is None:
            raise DiscriminatorError("The recipe names no discriminator.")
        settings = self.settings = recipe.discriminator
        longest, crop = max(settings.fft_sizes, default=0), recipe.data.crop_frames * hop_length
        if longest > crop:
            raise DiscriminatorError(
                f"An FFT of {longest} samples does not fit crops of {crop}: raise data.crop_frames, or drop it from "
                "discriminator.fft_sizes."
            )
        discriminator = make_discriminator(recipe, accelerator)
        super().__init__(discriminator, settings.learning_rate, recipe, accelerator, settings.start_step)

    def active(self, step: int) -> bool:
        """Returns whether the discriminator is in use at a step."""
        return step >= self.settings.start_step

    def losses(self, decoded: Tensor, audio: Tensor, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the adversarial terms of the codec, and accumulates the gradient of the discriminator's loss.

        Args:
            decoded: (batch, 1, samples) from the codec, with its graph.
            audio: (batch, 1, samples), the real audio.
            step: optimiser steps so far.

        Returns:
            The terms to add to the codec's loss, and the discriminator's loss for the log.
        """
        drawn = self._draw(step)
        learning = (step + 1) % self.settings.update_every == 0  # includes the steps that are logged
        own = {}
        with self.accelerator.autocast():
            with torch.set_grad_enabled(learning):
                real = self.module(audio, drawn)
            if learning:
                own["discriminator"] = discriminator_hinge_loss(real, self.module(decoded.detach(), drawn))
        if learning:  # before the third pass, so that memory holds at most two passes
            (own["discriminator"] / self.accelerator.gradient_accumulation_steps).backward()
        with self.accelerator.autocast(), frozen(self.module):
            features = self.module(decoded, drawn)
        return {
            "adversarial": codec_hinge_loss(features),
            "feature_matching": feature_matching_loss(real, features),
        }, own

    def _draw(self, step: int) -> list[int]:
        """Draws the resolutions of a step: the same in every process and in a resumed run."""
        resolutions = len(self.settings.fft_sizes)
        drawn = min(self.settings.resolutions_per_step or resolutions, resolutions)
        return np.random.default_rng((self.recipe.seed, step)).choice(resolutions, drawn, replace=False).tolist()


def make_discriminator(recipe: Recipe, accelerator: Accelerator) -> MultiResolutionDiscriminator:
    """Returns the discriminator published beside the model that the run starts from, else a new one.

    Raises:
        DiscriminatorError: if the published one has another shape.
    """
    shape = {name: getattr(recipe.discriminator, name) for name in ("fft_sizes", "channels", "exponent")}
    start = start_of(recipe)
    if start in NAMED_SIZES or (found := MultiResolutionDiscriminator.from_pretrained(start)) is None:
        return MultiResolutionDiscriminator(**shape)
    if found.config != shape:
        raise DiscriminatorError(
            f"The discriminator published with {start} has {found.config}; give these in the recipe instead of {shape}."
        )
    accelerator.print(f"The discriminator starts from {start}.")
    return found
