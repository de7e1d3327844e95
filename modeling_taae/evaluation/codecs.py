"""Codecs under evaluation, with common methods `encode` and `decode`: TAAE, PCM, and no codec at all.

Every codec takes the same float32 clip at 16 kHz and returns one. Its `facts` describe everything in between, such as
resampling and 16-bit samples. The evaluation removes its delay. Other codecs are in `peers.py`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..audio_io import to_pcm16
from ..codec import Codec, chosen_bottleneck
from ..errors import TaaeInputError
from ..taae_file import TaaeFile, format_bottleneck, read_header
from .alignment import SAMPLING_RATE

# The errors that codecs raise for a clip that they cannot encode.
CODEC_ERRORS = (RuntimeError, ValueError, OSError)
ORIGINAL = "original"


@dataclass(frozen=True)
class Encoded:
    """One encoded clip.

    Args:
        content: the input of `decode`.
        payload_bytes: size of the coded speech alone.
        file_bytes: size of the stored or sent file, with header, container and checksum.
        codes: (tokens_per_frame, frames) int64, if the codec has tokens.
    """

    content: Any
    payload_bytes: int
    file_bytes: int
    codes: np.ndarray | None = None


class System(Protocol):
    """A codec under evaluation. The evaluation changes none of its attributes."""

    @property
    def name(self) -> str:
        """The codec's name in tables."""

    @property
    def nominal_bit_rate(self) -> float:
        """The bit rate in bit/s that the codec's authors state."""

    @property
    def delay(self) -> int | None:
        """The delay of its output in samples; None if it must be estimated."""

    @property
    def facts(self) -> dict[str, Any]:
        """Everything needed to reproduce the figures, as JSON values by name, including `kind` and `file`."""

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes a clip, (samples,) float32 at 16 kHz."""

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes to (samples,) float32 at 16 kHz, with the codec's own delay and length."""


class TaaeSystem:
    """A TAAE model with one of its bottlenecks.

    Clips already have the evaluation's loudness, so the model's own normalisation is skipped; the given codec is not
    changed.

    Args:
        codec: the model.
        bottleneck: the bottleneck as the model's methods take it; None for the model's own.
        name: the model's name.

    Raises:
        ValueError: if the model has no such bottleneck.
    """

    delay = 0  # decoded frames are aligned with the input

    def __init__(self, codec: Codec, bottleneck: str | list | tuple | None, name: str):
        model, self.codec, self.prior = codec.model, codec.without_loudness(), codec.prior
        self.bottleneck = model.config.bottleneck if bottleneck is None else bottleneck
        self.quantizer = model.bottleneck(bottleneck)
        self.name = f"{name} {format_bottleneck(self.bottleneck)}"
        self.nominal_bit_rate = self.quantizer.bits_per_frame * model.config.frame_rate
        coded = self.prior is not None and self.prior.can_encode(self.bottleneck)
        self.facts: dict[str, Any] = {
            "kind": "TAAE",
            "model_identity": codec.identity,
            "bottleneck": format_bottleneck(self.bottleneck),
            "parameters": model.num_parameters(),
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            **({"compiled": True} if codec.is_compiled else {}),
            "file": f".taae of version {'2 (entropy-coded)' if coded else '1'}, header and checksum included",
        }

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes to the `.taae` file that `taae encode` writes, entropy-coded if the model has a prior for it."""
        encoded = self.codec.encode(audio, self.bottleneck)
        content = encoded.to_bytes(self.prior)
        payload, _ = read_header(content)
        return Encoded(encoded, len(payload.read()), len(content), encoded.audio_codes)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes a `.taae` file's content."""
        content: TaaeFile = encoded.content
        return self.codec.decode(content)


def taae_systems(codec: Codec, bottlenecks: list[str | None], name: str) -> list[TaaeSystem]:
    """Returns the model with each of several bottlenecks.

    Args:
        codec: the model.
        bottlenecks: the bottlenecks as text; None for the model's own. Repetitions are dropped.
        name: the model's name.

    Raises:
        TaaeInputError: if one is no bottleneck, or none of the model's, or the model's rate is not that of the metrics.
    """
    if codec.model.config.sampling_rate != SAMPLING_RATE:
        raise TaaeInputError(
            f"{name}: works at {codec.model.config.sampling_rate} Hz, but metrics are defined at {SAMPLING_RATE} Hz; "
            "expected a model at that rate"
        )
    return [TaaeSystem(codec, chosen_bottleneck(codec, text), name) for text in dict.fromkeys(bottlenecks)]


class PcmSystem:
    """No codec: the reference in 16-bit samples, which shows the best scores that metrics give."""

    tools: tuple[str, ...] = ()
    package = ""
    delay = 0

    def __init__(self, bits: str):
        self.name = f"pcm{bits}"
        self.nominal_bit_rate = float(bits) * SAMPLING_RATE
        self.facts: dict[str, Any] = {"kind": "PCM", "file": "bare samples"}

    def encode(self, audio: np.ndarray) -> Encoded:
        """Rounds to 16 bits."""
        content = pcm_bytes(audio)
        return Encoded(content, len(content), len(content))

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Returns the samples as floats."""
        return pcm_samples(encoded.content)


class OriginalSystem:
    """The recording itself, for metrics without a reference: the upper end of the judges' scale."""

    name, nominal_bit_rate, delay = ORIGINAL, 0.0, 0

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"kind": ORIGINAL, "file": "none"}

    def encode(self, audio: np.ndarray) -> Encoded:
        """Returns the clip as it is."""
        return Encoded(audio, 0, 0)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Returns the clip."""
        return encoded.content


def pcm_bytes(audio: np.ndarray) -> bytes:
    """Converts (samples,) float to 16-bit little-endian samples."""
    return to_pcm16(audio).astype("<i2").tobytes()


def pcm_samples(content: bytes) -> np.ndarray:
    """Converts 16-bit little-endian samples, after a WAV header if there is one, to (samples,) float32."""
    if content[:4] == b"RIFF":
        content = content[content.index(b"data") + 8 :]
    return np.frombuffer(content[: len(content) // 2 * 2], "<i2").astype(np.float32) / 2**15
