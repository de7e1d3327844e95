"""The perceptual loss: distances between a speech network's hidden states for decoded and for real audio.

TAAE's fine-tuning adds it with WavLM-Large: "essential in producing intelligible speech". It also works with other
encoders of Transformers that read waveforms (HuBERT, wav2vec 2.0, data2vec, UniSpeech), and with Whisper's encoder.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from training.recipe import PerceptualConfig, RecipeError

QUIETEST_POWER = 1e-10  # lower bound of Whisper's mel bands
WHISPER_RANGE = 8.0  # range of Whisper's spectrogram below its loudest band, in powers of ten


class WaveformListener(nn.Module):
    """An encoder that reads waveforms, such as WavLM.

    Args:
        model: the encoder.
        extractor: the encoder's feature extractor, which says whether waveforms are normalised.
    """

    def __init__(self, model: nn.Module, extractor: Wav2Vec2FeatureExtractor):
        super().__init__()
        self.encoder, self.normalized = model, extractor.do_normalize

    @property
    def states(self) -> int:
        """Returns the number of hidden states."""
        return self.encoder.config.num_hidden_layers + 1

    def forward(self, audio: Tensor, last: int) -> list[Tensor]:
        """(batch, samples) -> the hidden states up to `last`, each (batch, frames, width)."""
        if self.normalized:
            audio = F.layer_norm(audio, audio.shape[-1:], eps=1e-7)
        return list(self.encoder(audio, output_hidden_states=True).hidden_states[: last + 1])


class WhisperListener(nn.Module):
    """Whisper's encoder on crops, which use its first position embeddings and are not padded to 30 seconds.

    Args:
        model: a Whisper model; its encoder is kept.
        extractor: the model's feature extractor, for the sizes of the log-mel spectrogram.
    """

    def __init__(self, model: nn.Module, extractor: WhisperFeatureExtractor):
        super().__init__()
        self.encoder, self.hop_length = model.get_encoder(), extractor.hop_length
        self.register_buffer("window", torch.hann_window(extractor.n_fft), persistent=False)
        filters = torch.from_numpy(extractor.mel_filters).to(torch.float32)
        self.register_buffer("filters", filters, persistent=False)

    @property
    def states(self) -> int:
        """Returns the number of hidden states; the last one is normalised."""
        return len(self.encoder.layers) + 1

    def forward(self, audio: Tensor, last: int) -> list[Tensor]:
        """(batch, samples) -> the hidden states up to `last`, each (batch, frames, width); layers above do not run.

        Raises:
            RecipeError: if the audio is longer than Whisper's input.
        """
        encoder = self.encoder
        embedded = F.gelu(encoder.conv1(self.log_mel(audio)))
        embedded = F.gelu(encoder.conv2(embedded)).transpose(1, 2)
        positions = encoder.embed_positions.weight
        if embedded.shape[1] > len(positions):
            raise RecipeError(f"Whisper hears {len(positions)} steps at once; crops have {embedded.shape[1]}.")
        states = [embedded + positions[: embedded.shape[1]]]
        for layer in encoder.layers[:last]:
            states.append(layer(states[-1], None))
        if last == len(encoder.layers):
            states[-1] = encoder.layer_norm(states[-1])
        return states

    def log_mel(self, audio: Tensor) -> Tensor:
        """Computes the spectrogram of Whisper's feature extractor: (batch, samples) -> (batch, mels, frames)."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio, len(self.window), self.hop_length, window=self.window, return_complex=True)
            power = torch.view_as_real(spectrum[..., :-1]).square().sum(-1)
            log_mel = (self.filters.T @ power).clamp(min=QUIETEST_POWER).log10()
            floor = log_mel.amax(dim=(1, 2), keepdim=True) - WHISPER_RANGE
            return (torch.maximum(log_mel, floor) + 4) / 4


LISTENERS: dict[type, Callable] = {Wav2Vec2FeatureExtractor: WaveformListener, WhisperFeatureExtractor: WhisperListener}


def load_listener(name: str, sampling_rate: int, eager: bool = False) -> WaveformListener | WhisperListener:
    """Loads the network of a perceptual loss, in float32 and frozen.

    Args:
        name: a folder or a name on the Hub.
        sampling_rate: the codec's sampling rate, in Hz.
        eager: whether to use eager attention, the fastest in bfloat16 on CPUs, instead of the model's default.

    Raises:
        RecipeError: if there is no such model, or it reads another sampling rate or other features.
    """
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name)
        attention = {"attn_implementation": "eager"} if eager else {}
        model = AutoModel.from_pretrained(name, dtype=torch.float32, **attention)
    except (OSError, ValueError) as error:
        raise RecipeError(f"Cannot load perceptual.model {name!r}: {str(error).splitlines()[0]}") from error
    if type(extractor) not in LISTENERS:
        raise RecipeError(
            f"{name!r} reads the features of {type(extractor).__name__}; perceptual.model takes models that read "
            "waveforms, such as WavLM and HuBERT, and Whisper."
        )
    if extractor.sampling_rate != sampling_rate:
        raise RecipeError(f"{name!r} reads {extractor.sampling_rate} Hz, the codec {sampling_rate} Hz.")
    listener: WaveformListener | WhisperListener = LISTENERS[type(extractor)](model, extractor)
    listener.eval().requires_grad_(False)
    return listener


class PerceptualLoss(nn.Module):
    """L1 distance of a network's hidden states over the real ones' standard deviation per layer, mean over layers.

    Args:
        settings: the network and its compared layers.
        sampling_rate: the codec's sampling rate, in Hz.
        eager: whether to use eager attention, see `load_listener`.

    Raises:
        RecipeError: if there is no such model or layer, or the model reads something else.
    """

    def __init__(self, settings: PerceptualConfig, sampling_rate: int, eager: bool = False):
        super().__init__()
        self.listener = load_listener(settings.model, sampling_rate, eager)
        states = self.listener.states
        self.layers = list(range(states)) if settings.layers is None else settings.layers
        if not self.layers or min(self.layers) < 0 or max(self.layers) >= states:
            raise RecipeError(f"perceptual.layers of {settings.model!r} are 0 to {states - 1}, not {self.layers}.")

    def features(self, audio: Tensor) -> list[Tensor]:
        """(batch, 1, samples) -> the hidden states of the chosen layers, each (batch, frames, width)."""
        states = self.listener(audio.squeeze(1).float(), max(self.layers))
        return [states[layer].float() for layer in self.layers]

    def forward(self, decoded: Tensor, audio: Tensor) -> Tensor:
        """Returns the distance of decoded audio (batch, 1, samples) from real audio of the same shape; a scalar."""
        with torch.no_grad():
            real = self.features(audio)
        distances = [
            F.l1_loss(feature, reference) / reference.std().clamp(min=1e-6)
            for feature, reference in zip(self.features(decoded), real, strict=True)
        ]
        return torch.stack(distances).mean()
