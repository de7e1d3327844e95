"""The perceptual loss: distances between what a speech recogniser's network makes of decoded and of real audio.

TAAE's fine-tuning adds it with WavLM-Large: "essential in producing intelligible speech".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, WavLMModel

from training.recipe import PerceptualConfig, RecipeError


class PerceptualLoss(nn.Module):
    """L1 of WavLM's hidden states, layer by layer over the real ones' standard deviation, mean over layers.

    Args:
        settings: which model, and which of its layers.
        sampling_rate: of the codec, in Hz.

    Raises:
        RecipeError: if there is no such model or layer, or the model reads another sampling rate.
    """

    def __init__(self, settings: PerceptualConfig, sampling_rate: int):
        super().__init__()
        try:
            self.model = WavLMModel.from_pretrained(settings.model, dtype=torch.float32).eval().requires_grad_(False)
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(settings.model)
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"Cannot load perceptual.model {settings.model!r}: {str(error).splitlines()[0]}"
            ) from error
        if extractor.sampling_rate != sampling_rate:
            raise RecipeError(f"{settings.model!r} reads {extractor.sampling_rate} Hz, the codec {sampling_rate} Hz.")
        self.normalized = extractor.do_normalize
        states = self.model.config.num_hidden_layers + 1
        self.layers = list(range(states)) if settings.layers is None else settings.layers
        if not self.layers or min(self.layers) < 0 or max(self.layers) >= states:
            raise RecipeError(f"perceptual.layers of {settings.model!r} are 0 to {states - 1}, not {self.layers}.")

    def features(self, audio: Tensor) -> list[Tensor]:
        """(batch, 1, samples) -> the hidden states of the chosen layers, each (batch, frames, width)."""
        audio = audio.squeeze(1)
        if self.normalized:
            audio = F.layer_norm(audio.float(), audio.shape[-1:], eps=1e-7)
        states = self.model(audio, output_hidden_states=True).hidden_states
        return [states[layer].float() for layer in self.layers]

    def forward(self, decoded: Tensor, audio: Tensor) -> Tensor:
        """The distance of decoded audio (batch, 1, samples) from real audio of the same shape; a scalar."""
        with torch.no_grad():
            real = self.features(audio)
        distances = [
            F.l1_loss(feature, reference) / reference.std().clamp(min=1e-6)
            for feature, reference in zip(self.features(decoded), real, strict=True)
        ]
        return torch.stack(distances).mean()
