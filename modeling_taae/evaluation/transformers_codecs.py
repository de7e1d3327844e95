"""Codecs of the Transformers library as peers: Mimi, EnCodec, DAC, X-codec 2, and others with the same interface."""

import inspect
import math
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import soxr
import torch

from ..codec import model_name
from ..errors import TaaeInputError
from ..identity import weights_identity
from .alignment import SAMPLING_RATE
from .codecs import Encoded
from .judges import load


class TransformersSystem:
    """A codec that AutoModel loads; options of its `encode` follow a question mark in its name.

    Such as `kyutai/mimi?num_quantizers=8`, `facebook/encodec_24khz?bandwidth=1.5`, `descript/dac_16khz?n_quantizers=2`.
    Clips are resampled to the codec's rate and back.

    Args:
        name: the codec's folder or Hub name, with options.
        device: the codec's torch device.

    Raises:
        TaaeInputError: if it cannot be loaded, or has no `encode` and `decode`.
    """

    delay = None

    def __init__(self, name: str, device: str = "cpu"):
        from transformers import AutoFeatureExtractor, AutoModel

        source, _, query = name.partition("?")
        self.options = {key: float(value) if "." in value else int(value) for key, value in parse_qsl(query)}
        self.model = load(lambda: AutoModel.from_pretrained(source), source).to(device).eval()
        kind = self.model.config.model_type
        if kind in EXTRACTORS:
            self.extractor = EXTRACTORS[kind](self.model.config)
        else:
            self.extractor = load(lambda: AutoFeatureExtractor.from_pretrained(source), source)
        if not hasattr(self.model, "encode") or not hasattr(self.model, "decode"):
            raise TaaeInputError(f"--peers {name}: is a {kind}, which is no codec with encode and decode")
        self.rate = self.model.config.sampling_rate
        self.codebook_size = codebook_size(self.model.config)
        self.name = model_name(source) + (f"?{query}" if query else "")
        self.facts: dict[str, Any] = {
            "kind": f"Transformers {kind}",
            "weights": weights_identity(self.model.state_dict()),
            "parameters": self.model.num_parameters(),
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "resampling": "none"
            if self.rate == SAMPLING_RATE
            else f"soxr, 16 kHz to {self.rate / 1000:g} kHz and back",
            "file": "bare codes, each in its share of bits",
        }
        codes = [self.encode(np.zeros(seconds * SAMPLING_RATE, np.float32)).codes for seconds in (1, 2)]
        first, second = (found.size for found in codes if found is not None)
        self.nominal_bit_rate = (second - first) * math.log2(self.codebook_size)

    @torch.inference_mode()
    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes at the codec's rate."""
        samples = soxr.resample(audio, SAMPLING_RATE, self.rate)
        inputs = self.extractor(samples, sampling_rate=self.rate, return_tensors="pt").to(self.model.device)
        taken = inspect.signature(self.model.encode).parameters
        wanted = {name: value for name, value in inputs.items() if name in taken}
        encoded = self.model.encode(**wanted, **self.options)
        codes = encoded.audio_codes
        # EnCodec has a leading dimension for chunks of long audio, which the published models do not use.
        flat = codes.reshape(-1, codes.shape[-1]).cpu().numpy()
        size = math.ceil(flat.size * math.log2(self.codebook_size) / 8)
        return Encoded((encoded, inputs.get("padding_mask")), size, size, flat)

    @torch.inference_mode()
    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes and resamples."""
        output, mask = encoded.content
        if self.model.config.model_type == "encodec":
            decoded = self.model.decode(output.audio_codes, output.audio_scales, mask)
        else:
            decoded = self.model.decode(audio_codes=output.audio_codes)
        samples = decoded.audio_values.float().cpu().numpy().reshape(-1)
        return soxr.resample(samples, self.rate, SAMPLING_RATE)


def codebook_size(config: Any) -> int:
    """Returns the number of values of a code, from any of the fields that configurations use for it."""
    if levels := getattr(config, "quantization_levels", None):
        return math.prod(levels)
    return config.codebook_size


class Xcodec2Inputs:
    """Prepares the inputs of X-codec 2 without torchaudio, which its own feature extractor needs.

    The waveform gets one zero, then zero padding to whole frames. The spectrum has Kaldi's 80 log-mel bands of this
    waveform with half a frame of zeros at both ends, normalised per band, with two frames per row.

    Args:
        config: the codec's configuration.
    """

    def __init__(self, config: Any):
        from transformers import SeamlessM4TFeatureExtractor

        self.hop_length = config.hop_length
        self.spectrum = SeamlessM4TFeatureExtractor(sampling_rate=config.sampling_rate, padding_value=1.0)

    def __call__(self, audio: np.ndarray, sampling_rate: int, return_tensors: str) -> Any:
        """Converts (samples,) to `input_values` (1, 1, samples) and `input_features` (1, frames, 160)."""
        padded = np.pad(audio, (0, 1))
        padded = np.pad(padded, (0, -len(padded) % self.hop_length))
        surrounded = np.pad(padded, self.hop_length // 2)
        inputs = self.spectrum(surrounded, sampling_rate=sampling_rate, return_tensors=return_tensors)
        inputs.pop("attention_mask", None)
        inputs["input_values"] = torch.from_numpy(padded)[None, None]
        return inputs


EXTRACTORS = {"xcodec2": Xcodec2Inputs}
