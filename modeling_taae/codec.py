"""Loads a model with its feature extractor, and encodes and decodes single clips with them."""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import CONFIG_NAME, logging

from .compilation import room_for_graphs, with_compiled_layers
from .configuration_taae import TaaeConfig
from .entropy.prior import PRIOR_FILE, EntropyPrior, find_prior
from .errors import TaaeInputError, one_line
from .feature_extraction_taae import TaaeFeatureExtractor
from .identity import TokenSource, ancestors_of, listed_ancestors, model_identity, tokens_identity
from .modeling_taae import TaaeModel
from .quantization_taae import BOTTLENECK_PRESETS, NATIVE, ResidualFSQ
from .taae_file import TaaeFile, TaaeFileError, parse_bottleneck

DEFAULT_MODEL = "taae-speech-16k-nano"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# Weights in a byte of a file at most, in formats of 4 bits.
DENSEST = 2
WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass
class Codec:
    """A model with its feature extractor, on its device, and the folder that holds them.

    Args:
        model: the model, in evaluation mode.
        extractor: its feature extractor.
        identity: the model's identity.
        folder: where both came from.
        is_compiled: whether the model's layers are compiled (see [`Codec.compiled`]).
    """

    model: TaaeModel
    extractor: TaaeFeatureExtractor
    identity: str
    folder: Path
    is_compiled: bool = False

    def compiled(self, backend: str | Callable = "inductor") -> "Codec":
        """Returns a codec with the same weights and compiled layers, for many clips of any length.

        Tokens differ from this codec's where a latent lies on a rounding tie, as they do between machines. PyTorch
        keeps the code in `$TORCHINDUCTOR_CACHE_DIR` for later processes.

        Args:
            backend: a backend of `torch.compile`.
        """
        return replace(self, model=with_compiled_layers(self.model, backend), is_compiled=True)

    def without_loudness(self) -> "Codec":
        """Returns a codec with the same model and an extractor that does not normalise loudness."""
        extractor = copy.copy(self.extractor)
        extractor.target_loudness = None
        return replace(self, extractor=extractor)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Has the model compute without gradients and without rounding that changes tokens."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(exact_convolutions())
            if self.is_compiled:
                stack.enter_context(room_for_graphs())
            yield

    @cached_property
    def ancestors(self) -> tuple[str, ...]:
        """Returns the identities of the models with the same tokens, oldest first; the last one is this one's."""
        return ancestors_of(self.model)

    @cached_property
    def file_identity(self) -> str:
        """Returns the identity written into files: that of the oldest model with the same tokens."""
        return next(iter(listed_ancestors(self.model)), self.identity)

    def token_source(self, bottleneck: str | list | tuple | None = None) -> TokenSource:
        """Returns the source of a bottleneck's tokens, as manifests and language models record it.

        Args:
            bottleneck: see `TaaeModel.encode`.
        """
        identity = tokens_identity(self.model, self.extractor.target_loudness, bottleneck)
        return TokenSource(self.identity, identity, self.ancestors)

    @cached_property
    def prior(self) -> EntropyPrior | None:
        """The prior for writing and reading entropy-coded files, if the model has one.

        Raises:
            TaaeInputError: if it cannot be read, or was trained on the tokens of other weights.
        """
        prior = find_prior(self.folder)
        if prior is not None and prior.model_identity not in self.ancestors:
            raise TaaeInputError(
                f"{self.folder / PRIOR_FILE}: belongs to model {prior.model_identity}, not to this one "
                f"({self.identity}); make it again with training/make_entropy_prior.py, or delete it to do without"
            )
        return prior

    def encode(self, audio: np.ndarray, bottleneck: str | list | tuple | None = None) -> TaaeFile:
        """Encodes one clip, (samples,) float32 at the model's rate, without padding beyond whole frames."""
        return self.encode_block([audio], 1, len(audio), bottleneck)[0]

    def encode_block(
        self, clips: list[np.ndarray], rows: int, samples: int, bottleneck: str | list | tuple | None = None
    ) -> list[TaaeFile]:
        """Encodes clips in one padded batch of a given shape.

        Args:
            clips: the clips, each (samples,) float32 at the model's rate.
            rows: the number of rows of the batch; the clips take the first ones.
            samples: the length to which clips are padded, up to whole frames; no clip is longer.
            bottleneck: a bottleneck as `TaaeModel.encode` takes it; None for the model's own.
        """
        inputs = self.extractor(
            clips, sampling_rate=self.extractor.sampling_rate, padding="max_length", max_length=samples
        )
        missing = rows - len(clips)
        inputs = {
            name: torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
            for name, values in inputs.to(self.model.device).items()
        }
        with self.inference():
            encoded = self.model.encode(**inputs, bottleneck=bottleneck)
        return [
            TaaeFile(
                audio_codes=codes[:, : -(-len(audio) // self.model.config.hop_length)],
                vocabulary_sizes=self.model.bottleneck(bottleneck).codebook_sizes,
                bottleneck=self.model.config.bottleneck if bottleneck is None else bottleneck,
                num_samples=len(audio),
                hop_length=self.model.config.hop_length,
                sampling_rate=self.model.config.sampling_rate,
                model_identity=self.file_identity,
            )
            for codes, audio in zip(encoded.audio_codes[: len(clips)].cpu().numpy(), clips, strict=True)
        ]

    def decode(self, encoded: TaaeFile) -> np.ndarray:
        """Decodes one clip: (samples,) float32, as long as the encoded audio.

        Raises:
            TaaeInputError: if the model does not have these tokens or this bottleneck.
        """
        self.check_format(encoded.sampling_rate, encoded.hop_length)
        codes = torch.from_numpy(encoded.audio_codes)[None].to(self.model.device)
        try:
            with self.inference():
                decoded = self.model.decode(codes, bottleneck=encoded.bottleneck)
        except ValueError as error:
            raise TaaeInputError(f"the tokens do not fit this model ({error}); choose another with --model") from error
        audio = decoded.audio_values[0, 0, : encoded.num_samples].float().cpu().numpy()
        # With odd strides, a model that is not causal returns slightly less than whole frames.
        return np.pad(audio, (0, encoded.num_samples - len(audio)))

    def check_format(self, sampling_rate: int, hop_length: int) -> None:
        """Checks that tokens have this model's sampling rate and hop length.

        Args:
            sampling_rate: the sampling rate stored with the tokens, in Hz.
            hop_length: the samples per frame stored with the tokens.

        Raises:
            TaaeInputError: if the model's sampling rate or hop length is another one.
        """
        config = self.model.config
        if (sampling_rate, hop_length) != (config.sampling_rate, config.hop_length):
            raise TaaeInputError(
                f"the tokens are of {sampling_rate} Hz in frames of {hop_length} samples, and this model is of "
                f"{config.sampling_rate} Hz in frames of {config.hop_length}; choose another with --model"
            )

    def check_identity(self, source: str, identity: str) -> None:
        """Checks that tokens were made by this model, or by a model with the same tokens.

        Args:
            source: the input's name in error messages.
            identity: the identity stored with the tokens.

        Raises:
            TaaeFileError: if they were made by another model.
        """
        if identity != self.identity and identity not in self.ancestors:
            raise TaaeFileError(
                f"{source}: was encoded by model {identity}, not by this one ({self.identity}); choose the encoder's "
                "with --model, or decode to noise with --force"
            )


def chosen_bottleneck(codec: Codec, bottleneck: str | list | tuple | None) -> str | list | tuple:
    """Returns a bottleneck, which may be given as text, after checking that the model has it; None is the model's own.

    Raises:
        TaaeInputError: if it is none, or none of the model's.
    """
    if bottleneck is None:
        return codec.model.config.bottleneck
    try:
        bottleneck = parse_bottleneck(bottleneck) if isinstance(bottleneck, str) else bottleneck
        codec.model.bottleneck(bottleneck)
    except ValueError as error:
        raise TaaeInputError(f"--bottleneck: {error}") from error
    return bottleneck


def named_bottlenecks(model: TaaeModel) -> dict[str, ResidualFSQ]:
    """Returns a model's bottlenecks by name: `native`, and the presets for its number of latent dimensions."""
    found = {}
    for name in (*BOTTLENECK_PRESETS, NATIVE):
        with suppress(ValueError):
            found[name] = model.bottleneck(name)
    return found


def default_model() -> str:
    """Returns `$TAAE_MODEL`, else the model in this package's or the current checkout, else its name on the Hub."""
    checkouts = (Path(__file__).resolve().parent.parent, Path.cwd())
    folders = (checkout / "hub_cards" / DEFAULT_MODEL for checkout in checkouts)
    fallback = next((str(folder) for folder in folders if (folder / "config.json").is_file()), DEFAULT_MODEL)
    return os.environ.get("TAAE_MODEL") or fallback


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Makes cuDNN convolve in float32: its default, TF32, changes tokens."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences Transformers' messages while a model is loaded; the caller reports failures itself."""
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def _download(name: str) -> str:
    """Downloads a model from the Hub, or finds it in the cache; returns its folder.

    Raises:
        FileNotFoundError: if it can only be meant as a folder.
    """
    if not HUB_NAME.fullmatch(name):
        raise FileNotFoundError("there is no such folder")
    from huggingface_hub import snapshot_download

    # All files in one call: without a network, asking the Hub file by file takes minutes to fail.
    return snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])


def check_size(folder: Path) -> None:
    """Checks, before memory is taken for it, that a model is no larger than its weights on disk.

    Raises:
        ValueError: if its config asks for more, or cannot be.
    """
    try:
        described = json.loads((folder / CONFIG_NAME).read_bytes())
    except (OSError, ValueError):
        return  # Transformers will tell what is wrong
    if not isinstance(described, dict) or described.get("model_type") != TaaeConfig.model_type:
        return
    weights = TaaeConfig.from_dict(described).least_weights
    there = DENSEST * sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if there and weights > there:
        raise ValueError(f"{CONFIG_NAME} describes {weights:,} weights at least, and its files hold {there:,} at most")


def load_codec(name: str | None, device: str | None = None, loudness: bool = True) -> Codec:
    """Loads a model and its feature extractor.

    Args:
        name: a folder, a name on the Hub, or None for [`default_model`].
        device: a torch device, such as `"cuda:0"`; None for CUDA if available, else the CPU.
        loudness: whether to normalise loudness as the extractor's config says; false leaves clips unchanged.

    Raises:
        TaaeInputError: if there is no such model or device, it is not a TAAE model with all its weights, or its feature
            extractor has another sampling rate or hop length.
    """
    name = name or default_model()
    try:
        folder = name if os.path.isdir(name) else _download(name)
        check_size(Path(folder))
        with quiet_transformers():
            model, loading = AutoModel.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    # Damaged files make their readers raise errors of many types.
    except Exception as error:
        raise TaaeInputError(
            f"{name}: no model could be loaded from there ({one_line(error)}); expected a folder with config.json, "
            "preprocessor_config.json and weights, or a name on the Hub: choose one with --model or $TAAE_MODEL"
        ) from error
    if model.config.model_type != "taae" or loading["missing_keys"] or loading["unexpected_keys"]:
        raise TaaeInputError(f"{name}: is not a TAAE model with all its weights; choose another with --model")
    prepared, read = ((part.sampling_rate, part.hop_length) for part in (extractor, model.config))
    if prepared != read:
        raise TaaeInputError(
            f"{name}: preprocessor_config.json prepares {prepared[0]} Hz in frames of {prepared[1]} samples, but "
            f"config.json reads {read[0]} Hz in frames of {read[1]}; copy the folder again, or choose "
            "another with --model"
        )
    if not loudness:
        extractor.target_loudness = None
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device).eval()
    # torch raises AssertionError if it was built without the device's backend.
    except (RuntimeError, AssertionError) as error:
        raise TaaeInputError(
            f"--device {device}: cannot be used ({one_line(error)}); expected a device of this machine, such as cpu"
        ) from error
    return Codec(model, extractor, model_identity(model), Path(folder))


def model_name(model: str) -> str:
    """Returns a model's name for tables: the last part of its folder or Hub name, or the run's name for `RUN/model`."""
    if not Path(model).is_dir():
        return model.split("/")[-1]
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "model" else folder.name
