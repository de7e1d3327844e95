"""The reconstruction losses of a codec, and the weighted sum of all losses.

Reconstruction losses are multi-resolution log-mel and magnitude distances, and a waveform distance that fades out. The
terms of auxiliary networks are in `discriminator.py` (adversarial), `ctc.py` and `perceptual.py` (features).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from training.recipe import LossConfig

WINDOWS_AND_MELS = ((128, 16), (256, 32), (512, 64), (1024, 80), (2048, 128))
QUIETEST = 1e-4  # lower bound of log-mel spectra, 80 dB below a full-scale sine


class SpectralDistance(nn.Module):
    """Distances between the spectra of two signals at one resolution.

    Spectra are scaled so that a sine of amplitude a reads a.

    Args:
        window: length of the window in samples; the hop is half of it.
        mels: number of mel bands.
        sampling_rate: samples per second.
    """

    def __init__(self, window: int, mels: int, sampling_rate: int):
        super().__init__()
        self.hop = window // 2
        hann = torch.hann_window(window)
        self.register_buffer("window", hann * 2 / hann.sum(), persistent=False)
        filters = mel_filter_bank(
            num_frequency_bins=window // 2 + 1,
            num_mel_filters=mels,
            min_frequency=0.0,
            max_frequency=sampling_rate / 2,
            sampling_rate=sampling_rate,
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).to(torch.float32), persistent=False)

    def forward(self, audio: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) twice -> the log-mel L1 and the magnitude L1 relative to the reference's mean, scalars."""
        # One transform for both signals is faster than two.
        frames = torch.cat([audio, reference]).unfold(-1, len(self.window), self.hop) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames))
        magnitudes = (spectrum.square().sum(-1) + 1e-12).sqrt()
        log_mels = (magnitudes @ self.filters).clamp(min=QUIETEST).log10()
        return F.l1_loss(*log_mels.chunk(2)), relative_l1(*magnitudes.chunk(2))


def relative_l1(values: Tensor, reference: Tensor) -> Tensor:
    """Returns the mean absolute difference over the reference's mean, averaged over the batch; a scalar."""
    difference = (values - reference).abs().flatten(1).mean(1)
    return (difference / (reference.abs().flatten(1).mean(1) + QUIETEST)).mean()


class ReconstructionLoss(nn.Module):
    """The reconstruction losses.

    Args:
        sampling_rate: samples per second.
    """

    def __init__(self, sampling_rate: int):
        super().__init__()
        self.resolutions = nn.ModuleList(SpectralDistance(*sizes, sampling_rate) for sizes in WINDOWS_AND_MELS)

    def forward(self, audio: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Returns the unweighted terms, scalars by name, for decoded audio and its reference, (batch, 1, samples)."""
        missing = max(WINDOWS_AND_MELS[-1][0] - reference.shape[-1], 0)
        audio, reference = (F.pad(signal.squeeze(1).to(torch.float32), (0, missing)) for signal in (audio, reference))
        distances = [resolution(audio, reference) for resolution in self.resolutions]
        return {
            "log_mel": sum(log_mel for log_mel, _ in distances),
            "magnitude": sum(magnitude for _, magnitude in distances),
            "waveform": relative_l1(audio, reference),
        }


def weighted_sum(terms: dict[str, Tensor], weights: LossConfig, step: int) -> Tensor:
    """Returns the loss that the codec minimises: the sum of the terms, each times the weight of its name.

    Args:
        terms: scalars, named like the fields of `Losses`.
        weights: the terms' weights.
        step: optimiser steps so far, for the fading waveform term.
    """
    fading = max(0.0, 1 - step / max(weights.waveform_decay_steps, 1))
    return sum(getattr(weights, name) * (fading if name == "waveform" else 1) * term for name, term in terms.items())
