"""The discriminator of a run: the terms that it adds to the codec's loss, and its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modeling_taae.configuration_taae import NAMED_SIZES
from training.auxiliary import Companion
from training.discriminator import DiscriminatorError, MultiResolutionDiscriminator
from training.losses import codec_hinge_loss, discriminator_hinge_loss, feature_matching_loss
from training.recipe import Recipe


class Adversary:
    """A discriminator that trains beside the codec, on the audio that the codec's own step has decoded.

    Args:
        recipe: of the run; names a discriminator.
        accelerator: of the run.
        hop_length: samples per frame of the crops.

    Raises:
        DiscriminatorError: if the recipe's discriminator does not fit its crops, or the one published beside the model
            that the run starts from.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, hop_length: int):
        self.recipe, self.settings, self.accelerator = recipe, recipe.discriminator, accelerator
        longest, crop = max(self.settings.fft_sizes, default=0), recipe.data.crop_frames * hop_length
        if longest > crop:
            raise DiscriminatorError(
                f"An FFT of {longest} samples does not fit crops of {crop}: raise data.crop_frames, or drop it from "
                "discriminator.fft_sizes."
            )
        self.discriminator = self._build()
        self.companion = Companion(
            self.discriminator,
            "discriminator",
            self.settings.learning_rate,
            recipe,
            accelerator,
            self.settings.start_step,
        )

    def _build(self) -> MultiResolutionDiscriminator:
        shape = {name: getattr(self.settings, name) for name in ("fft_sizes", "channels", "exponent")}
        start = self.recipe.size
        if start not in NAMED_SIZES and (found := MultiResolutionDiscriminator.from_pretrained(start)):
            if found.config != shape:
                raise DiscriminatorError(
                    f"The discriminator published with {start} has {found.config}; give these in the recipe "
                    f"instead of {shape}."
                )
            self.accelerator.print(f"The discriminator starts from {start}.")
            return found
        return MultiResolutionDiscriminator(**shape)

    def active(self, step: int) -> bool:
        """Whether the reconstruction warm-up is over at a step."""
        return step >= self.settings.start_step

    def losses(self, decoded: Tensor, audio: Tensor, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The adversarial terms of the codec; on the way, the discriminator gathers the gradient of its own loss.

        Args:
            decoded: (batch, 1, samples) from the codec, with its graph.
            audio: the same shape, real.
            step: optimiser steps so far.

        Returns:
            The terms to add to the codec's loss, and the discriminator's loss, for the log.
        """
        drawn = self._draw(step)
        learning = (step + 1) % self.settings.update_every == 0  # among others in steps that are logged
        own = {}
        with self.accelerator.autocast():
            with torch.set_grad_enabled(learning):
                real = self.discriminator(audio, drawn)
            if learning:
                own["discriminator"] = discriminator_hinge_loss(real, self.discriminator(decoded.detach(), drawn))
        if learning:  # before the third pass, so that memory holds no more than two
            (own["discriminator"] / self.accelerator.gradient_accumulation_steps).backward()
        with self.accelerator.autocast(), frozen(self.discriminator):
            features = self.discriminator(decoded, drawn)
        return {
            "adversarial": codec_hinge_loss(features),
            "feature_matching": feature_matching_loss(real, features),
        }, own

    def _draw(self, step: int) -> list[int]:
        """The resolutions of a step: the same in every process, and in a run that resumes."""
        resolutions = len(self.settings.fft_sizes)
        drawn = min(self.settings.resolutions_per_step or resolutions, resolutions)
        return np.random.default_rng((self.recipe.seed, step)).choice(resolutions, drawn, replace=False).tolist()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Lets gradients pass through a module, but not into its parameters, which saves their computation."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
