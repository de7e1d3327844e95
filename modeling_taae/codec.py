"""A model with its feature extractor, ready to encode and decode clips: what command line, demo and evaluation share.

Torch and Transformers are imported when a model is loaded, so that importing this costs nothing.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .audio_io import TaaeInputError, one_line
from .taae_file import TaaeFile, TaaeFileError, model_identity, parse_bottleneck

if TYPE_CHECKING:
    from .feature_extraction_taae import TaaeFeatureExtractor
    from .modeling_taae import TaaeModel

DEFAULT_MODEL = "taae-speech-16k-nano"


@dataclass
class Codec:
    """A model with its feature extractor, on its device."""

    model: "TaaeModel"
    extractor: "TaaeFeatureExtractor"
    identity: str

    def encode(self, audio: np.ndarray, bottleneck: str | list | None = None) -> TaaeFile:
        """Encodes one clip, (samples,) float32 at the model's rate."""
        import torch

        inputs = self.extractor(audio, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        with torch.inference_mode():
            encoded = self.model.encode(**inputs.to(self.model.device), bottleneck=bottleneck)
        return TaaeFile(
            audio_codes=encoded.audio_codes[0].cpu().numpy(),
            vocabulary_sizes=self.model.bottleneck(bottleneck).codebook_sizes,
            bottleneck=self.model.config.bottleneck if bottleneck is None else bottleneck,
            num_samples=len(audio),
            hop_length=self.model.config.hop_length,
            sampling_rate=self.model.config.sampling_rate,
            model_identity=self.identity,
        )

    def decode(self, encoded: TaaeFile) -> np.ndarray:
        """Decodes one clip: (samples,) float32, as long as what was encoded.

        Raises:
            TaaeInputError: if the tokens are not of a kind that this model decodes.
        """
        import torch

        codes = torch.from_numpy(encoded.audio_codes)[None].to(self.model.device)
        try:
            with torch.inference_mode():
                decoded = self.model.decode(codes, bottleneck=encoded.bottleneck)
        except ValueError as error:
            raise TaaeInputError(f"the tokens do not fit this model ({error}); choose another with --model") from error
        return decoded.audio_values[0, 0, : encoded.num_samples].float().cpu().numpy()

    def check_identity(self, source: str, identity: str) -> None:
        """Checks that this is the model that encoded; `source` is what the error calls the input.

        Raises:
            TaaeFileError: if it is another.
        """
        if identity != self.identity:
            raise TaaeFileError(
                f"{source}: was encoded by model {identity}, not by this one ({self.identity}); choose the encoder's "
                "with --model, or decode to noise with --force"
            )


def chosen_bottleneck(codec: Codec, text: str | None) -> str | list | None:
    """What `--bottleneck` stands for, checked against the model."""
    try:
        bottleneck = None if text is None else parse_bottleneck(text)
        codec.model.bottleneck(bottleneck)
    except ValueError as error:
        raise TaaeInputError(f"--bottleneck: {error}") from error
    return bottleneck


def default_model() -> str:
    """`$TAAE_MODEL`, else the model in this checkout, else its name on the Hub."""
    in_checkout = Path(__file__).resolve().parent.parent / "hub_cards" / DEFAULT_MODEL
    fallback = str(in_checkout) if (in_checkout / "config.json").is_file() else DEFAULT_MODEL
    return os.environ.get("TAAE_MODEL") or fallback


def load_codec(name: str | None, device: str | None = None, loudness: bool = True) -> Codec:
    """Loads a model and its feature extractor.

    Args:
        name: a folder, a name on the Hub, or None for [`default_model`].
        device: as torch spells it; None for a GPU where there is one, else the CPU.
        loudness: whether the extractor normalises loudness as its config says.

    Raises:
        TaaeInputError: if there is no such model or device, or it is not a TAAE model with all its weights.
    """
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoFeatureExtractor, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = name or default_model()
    try:
        # In one go, because asking the Hub file by file takes minutes to fail where there is no network.
        folder = name if os.path.isdir(name) else snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])
        model, loading = AutoModel.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    # Damaged files raise whatever their reader raises.
    except Exception as error:
        raise TaaeInputError(
            f"{name}: no model could be loaded from there ({one_line(error)}); expected a folder with config.json, "
            "preprocessor_config.json and weights, or a name on the Hub: choose one with --model or $TAAE_MODEL"
        ) from error
    if model.config.model_type != "taae" or loading["missing_keys"] or loading["unexpected_keys"]:
        raise TaaeInputError(f"{name}: is not a TAAE model with all its weights; choose another with --model")
    if not loudness:
        extractor.target_loudness = None
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device).eval()
    # torch says AssertionError where it was built without the device's backend.
    except (RuntimeError, AssertionError) as error:
        raise TaaeInputError(
            f"--device {device}: cannot be used ({one_line(error)}); expected a device of this machine, such as cpu"
        ) from error
    return Codec(model, extractor, model_identity(model))
