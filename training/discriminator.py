"""The multi-resolution complex STFT discriminator (EnCodec's, arXiv 2210.13438, with the three changes of TAAE).

Each resolution is a small network of its own on the complex spectrum of the audio. TAAE makes it wider, takes FFT sizes
that are not powers of two of one another (evenly spaced sizes favour some frequencies, which is heard as periodic
artefacts), and compresses magnitudes by a power law, so that quiet parts of a spectrum count.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.utils import cached_file

from training.recipe import RecipeError

WEIGHTS_NAME, CONFIG_NAME = "discriminator.safetensors", "discriminator.json"
NEGATIVE_SLOPE = 0.2
QUIETEST_POWER = 1e-6  # keeps the power law's gradient finite in silence: 60 dB below noise of full scale


class DiscriminatorError(RecipeError):
    """A discriminator that does not exist, or does not fit; the message says which and why."""


class STFTDiscriminator(nn.Module):
    """One resolution: six weight-normed convolutions on the real and imaginary planes of a spectrum.

    Args:
        fft_size: length of the Hann window in samples; the hop is half of it.
        channels: width of the hidden layers.
        exponent: magnitudes are raised to this power; 1 leaves them as they are.
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


class MultiResolutionDiscriminator(nn.Module):
    """Discriminators of several resolutions.

    Args:
        fft_sizes: of each resolution, in samples.
        channels, exponent: see `STFTDiscriminator`.

    Raises:
        DiscriminatorError: if there is no resolution, or a size is not positive.
    """

    def __init__(self, fft_sizes: Sequence[int], channels: int, exponent: float):
        super().__init__()
        if not fft_sizes or min(fft_sizes) < 2 or channels < 1:
            raise DiscriminatorError(
                f"A discriminator needs FFT sizes of at least 2 and at least 1 channel, not {fft_sizes} and {channels}."
            )
        self.config = {"fft_sizes": list(fft_sizes), "channels": channels, "exponent": exponent}
        self.resolutions = nn.ModuleList(STFTDiscriminator(size, channels, exponent) for size in fft_sizes)

    def forward(self, audio: Tensor, drawn: Sequence[int] | None = None) -> list[list[Tensor]]:
        """Features of each resolution, or of those drawn, from audio (batch, 1, samples); the last are the logits."""
        drawn = range(len(self.resolutions)) if drawn is None else drawn
        return [self.resolutions[index](audio) for index in drawn]

    def save_pretrained(self, folder: Path) -> None:
        """Writes `discriminator.safetensors` and `discriminator.json` beside a published model."""
        save_file(self.state_dict(), folder / WEIGHTS_NAME)
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder_or_name: str | Path) -> "MultiResolutionDiscriminator | None":
        """The discriminator that was published beside a model, in a folder or on the Hub; None if there is none."""
        config, weights = (
            cached_file(str(folder_or_name), name, _raise_exceptions_for_missing_entries=False)
            for name in (CONFIG_NAME, WEIGHTS_NAME)
        )
        if config is None or weights is None:
            return None
        discriminator = cls(**json.loads(Path(config).read_text()))
        discriminator.load_state_dict(load_file(weights))
        return discriminator
