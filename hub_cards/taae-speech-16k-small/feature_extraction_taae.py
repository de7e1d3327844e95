"""Prepares waveforms for [`TaaeModel`]: loudness, padding to whole token frames, and masks."""

import math
from collections.abc import Mapping, Sequence
from numbers import Number
from os import PathLike
from typing import TypeAlias

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType, logging

logger = logging.get_logger(__name__)

# Length of a gating block of ITU-R BS.1770, in seconds: a shorter clip has no integrated loudness.
GATING_BLOCK = 0.4
# Mean square of near-silence, about -60 dB of full scale. Normalising it would only amplify noise.
SILENCE_ENERGY = 1e-6
# The peak after normalisation if the gain would otherwise take it to full scale.
LIMITED_PEAK = 0.95
# Full scale of the integer types in which audio readers return PCM.
PCM_FULL_SCALE = {"int16": 2**15, "int32": 2**31}

Clip: TypeAlias = np.ndarray | torch.Tensor | Sequence[float]


def integrated_loudness(audio: np.ndarray, sampling_rate: int) -> float | None:
    """Returns the gated loudness of a mono clip as ITU-R BS.1770-4 defines it.

    Args:
        audio: samples, (samples,) float, full scale at 1.
        sampling_rate: samples per second, in Hz.

    Returns:
        The loudness in LUFS. None for a clip that has none: it is shorter than one gating block of 0.4 s, it is
        near-silent (mean square below 1e-6), or no block passes the absolute gate, as with a constant offset.

    Raises:
        ImportError: if pyloudnorm is not installed.
    """
    try:
        import pyloudnorm
    except ImportError as error:
        raise ImportError(
            "Loudness normalisation needs the package pyloudnorm: run `pip install pyloudnorm`, "
            "or switch it off with target_loudness=None."
        ) from error
    samples = np.asarray(audio, dtype=np.float64)
    if len(samples) < GATING_BLOCK * sampling_rate or np.mean(np.square(samples)) < SILENCE_ENERGY:
        return None
    loudness = float(pyloudnorm.Meter(sampling_rate).integrated_loudness(samples))
    return loudness if np.isfinite(loudness) else None


def normalize_loudness(audio: np.ndarray, sampling_rate: int, target: float) -> np.ndarray:
    """Brings a mono clip to a target loudness with one gain for the whole clip.

    A clip without a measurable loudness (see [`integrated_loudness`]) is returned unchanged. If the gain would take the
    peak to full scale, the peak becomes 0.95 instead and the clip stays below the target.

    Args:
        audio: samples, (samples,) float, full scale at 1.
        sampling_rate: samples per second, in Hz.
        target: the loudness after normalisation, in LUFS.

    Returns:
        (samples,) float of the input's dtype.

    Raises:
        ImportError: if pyloudnorm is not installed.
    """
    loudness = integrated_loudness(audio, sampling_rate)
    if loudness is None:
        return audio
    peak = float(np.max(np.abs(audio)))
    gain = 10 ** ((target - loudness) / 20)
    if gain * peak >= 1:
        gain = LIMITED_PEAK / peak
    return audio * np.asarray(gain, dtype=audio.dtype)


class TaaeFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Prepares speech for a [`TaaeModel`]: normalises each clip's loudness, pads the batch with zeros to whole token
    frames and marks which samples are real. Padding is always on the right, as the model needs it.

    Args:
        feature_size (`int`, defaults to 1):
            Audio channels. The codec is mono.
        sampling_rate (`int`, defaults to 16000):
            Samples per second that the model reads, in Hz.
        padding_value (`float`, defaults to 0.0):
            Value of padded samples.
        hop_length (`int`, defaults to 640):
            Samples per token frame; inputs are padded to a multiple of it.
        target_loudness (`float` or `None`, defaults to -20.0):
            Loudness in LUFS to which each clip is normalised (ITU-R BS.1770, gated; see [`normalize_loudness`]);
            `None` leaves the clips unchanged.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_taae import TaaeFeatureExtractor
    >>> extractor = TaaeFeatureExtractor()
    >>> inputs = extractor([np.zeros(16_000), np.zeros(1_000)], sampling_rate=16_000)
    >>> inputs["input_values"].shape, inputs["padding_mask"].sum(dim=1).tolist()
    (torch.Size([2, 1, 16000]), [16000, 1000])
    ```"""

    model_input_names = ["input_values", "padding_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        hop_length: int = 640,
        target_loudness: float | None = -20.0,
        **kwargs,
    ):
        # AutoProcessor passes padding_side, which is meant for a tokenizer, to all its parts.
        kwargs["padding_side"] = "right"
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.hop_length = hop_length
        self.target_loudness = target_loudness
        self._check_settings()

    def __call__(
        self,
        audio: Clip | Sequence[Clip] | None = None,
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | TensorType = "pt",
        raw_audio: Clip | Sequence[Clip] | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        device: str | torch.device | None = None,
    ) -> BatchFeature:
        """
        Args:
            audio: One mono clip or a list of them. A clip is a 1-D array, tensor or list of floats with full scale at
                1, an array of int16 or int32 PCM, or an audio cell of `datasets`: a dictionary with `"array"` and
                `"sampling_rate"`, or a decoder.
            sampling_rate: The audio's samples per second, in Hz. Without it the model's rate is assumed, with a
                warning, unless the clips bring their own rate.
            padding: `True` or `"longest"` pads to the longest clip of the batch, `"max_length"` to `max_length`, both
                up to the next multiple of `hop_length`; `False` does not pad and needs clips of equal length.
            max_length: Length in samples, rounded up to a multiple of `hop_length`.
            truncation: Whether longer clips are cut to `max_length`. Loudness is measured before the cut.
            return_tensors: `"pt"` or `"np"`.
            raw_audio: Another name of `audio`, used by the extractors of other codecs.
            pad_to_multiple_of: Samples of which the padded length is also a multiple, besides `hop_length`.
            return_attention_mask: `False` leaves out the mask, which the model needs for clips of different lengths.
            device: Device of the returned tensors; loudness is always computed on the CPU.

        Returns:
            `input_values` (batch, 1, samples) float32 and `padding_mask` (batch, samples) int32, 1 where a sample is
            real and 0 where it is padding.

        Raises:
            TypeError: if the audio or a clip holds no samples, such as a path.
            ValueError: if the rate is not the model's, the list or a clip is empty, a clip is not 1-D, its samples are
                NaN, infinite or of a type without a known full scale, or the clips have different lengths unpadded.
            ImportError: if pyloudnorm is not installed and loudness is normalised.
        """
        if (audio is None) == (raw_audio is None):
            raise TypeError("Pass the audio as audio or as raw_audio, not as both: one clip or a list of clips.")
        clips = self._read_clips(raw_audio if audio is None else audio, sampling_rate)
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is in samples, at least 1, not {max_length}.")
        if self.target_loudness is not None:
            clips = [normalize_loudness(clip, self.sampling_rate, self.target_loudness) for clip in clips]
        multiple = math.lcm(self.hop_length, pad_to_multiple_of or 1)
        features = self._pad_clips(clips, padding, max_length, truncation, multiple)
        if return_attention_mask is False:
            del features["padding_mask"]
        batch = BatchFeature(features, tensor_type=return_tensors)
        return batch if device is None else batch.to(device)

    def _pad_clips(
        self,
        clips: list[np.ndarray],
        padding: bool | str | PaddingStrategy,
        max_length: int | None,
        truncation: bool,
        multiple: int,
    ) -> dict[str, np.ndarray]:
        """Returns the clips and their mask, padded to one length that is a multiple of `multiple` samples."""
        padded = self.pad(
            BatchFeature({"input_values": clips}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=multiple,
            return_attention_mask=True,
        )
        lengths = sorted({len(clip) for clip in padded["input_values"]})
        if len(lengths) > 1:
            raise ValueError(
                f"The clips have from {lengths[0]} to {lengths[-1]} samples, so they do not fit one batch unpadded: "
                "pass padding=True, or truncation=True and a max_length."
            )
        return {
            "input_values": np.stack(padded["input_values"])[:, None, :],
            "padding_mask": np.stack(padded["attention_mask"]),
        }

    def _check_settings(self) -> None:
        """Checks the settings, which may come from a file.

        Raises:
            ValueError: if one is wrong; names it, its value and what is expected.
        """
        loudness, padding = self.target_loudness, self.padding_value
        wanted = {
            "feature_size": (self.feature_size == 1, "1, because the codec is mono"),
            "sampling_rate": (_is_count(self.sampling_rate), "a positive integer, in Hz"),
            "hop_length": (_is_count(self.hop_length), "a positive integer, in samples"),
            "padding_value": (_is_number(padding), "a finite number"),
            "target_loudness": (loudness is None or _is_number(loudness), "a finite number in LUFS, or None"),
        }
        for name, (fits, expected) in wanted.items():
            if not fits:
                raise ValueError(f"{name} must be {expected}, not {getattr(self, name)!r}.")

    def _read_clips(self, audio: Clip | Sequence[Clip], sampling_rate: int | None) -> list[np.ndarray]:
        """Returns each clip as (samples,) float32 after checking its sampling rate, its own or the one passed."""
        clips, rates = [], []
        for position, clip in _enumerate_clips(audio):
            samples, own_rate = _unpack(clip)
            if own_rate is not None and sampling_rate is not None and own_rate != sampling_rate:
                raise ValueError(f"{position} has {own_rate} Hz, but sampling_rate={sampling_rate} was passed.")
            rates.append(sampling_rate if own_rate is None else own_rate)
            clips.append(_as_waveform(samples, position))
        for rate in dict.fromkeys(rates):
            self._check_sampling_rate(rate)
        return clips

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            logger.warning(
                f"No sampling_rate was passed to {type(self).__name__}, so {self.sampling_rate} Hz is assumed. Pass "
                "sampling_rate, so that audio of another rate is noticed."
            )
        elif not _is_number(sampling_rate):
            raise TypeError(f"sampling_rate must be a number of samples per second, not {sampling_rate!r}.")
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"The audio has {sampling_rate} Hz, but the model reads {self.sampling_rate} Hz; resample it first, "
                f"for example with soxr.resample(audio, {sampling_rate}, {self.sampling_rate})."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, Number) and not isinstance(value, (bool, complex)) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _enumerate_clips(audio: Clip | Sequence[Clip]) -> list[tuple[str, Clip]]:
    """Returns each clip with its name for error messages."""
    if not isinstance(audio, (list, tuple)):
        return [("The audio", audio)]
    if len(audio) == 0:
        raise ValueError("The list of audio is empty; pass at least one clip with at least one sample.")
    if isinstance(audio[0], Number):
        return [("The audio", audio)]
    return [(f"Clip {index} of the list", clip) for index, clip in enumerate(audio)]


def _unpack(clip: Clip | Mapping) -> tuple[Clip, int | None]:
    """Returns a clip's samples and its own sampling rate, None if it brings none.

    Decoders of `datasets` have the same keys as its dictionaries; they mix channels down to one.
    """
    if isinstance(clip, Mapping) and "array" not in clip:
        raise TypeError(
            f"A clip given as a dictionary holds 'array' and 'sampling_rate', not {', '.join(map(str, clip))}; decode "
            "it first."
        )
    if isinstance(clip, Mapping):
        return clip["array"], clip.get("sampling_rate")
    if hasattr(clip, "get_all_samples"):
        return clip["array"], clip["sampling_rate"]
    return clip, None


def _as_waveform(clip: Clip, position: str) -> np.ndarray:
    """Returns one clip as (samples,) float32 with full scale at 1; errors begin with `position`."""
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        # NumPy has no bfloat16.
        clip = clip.float() if clip.is_floating_point() else clip
    elif isinstance(clip, (str, bytes, PathLike)) or not (hasattr(clip, "__len__") or hasattr(clip, "ndim")):
        cure = (
            "read the file first, for example with soundfile.read"
            if isinstance(clip, (str, PathLike))
            else ("pass an array, a tensor or a list of samples")
        )
        raise TypeError(f"{position} is of type {type(clip).__name__}; {cure}.")
    try:
        samples = np.asarray(clip)
    except ValueError as error:
        raise ValueError(f"{position} is not a plain sequence of samples: {error}") from error
    if samples.ndim != 1:
        raise ValueError(
            f"{position} has shape {samples.shape}, expected (samples,), mono. Pass a batch as a list of 1-D arrays "
            "and mix stereo down to one channel first."
        )
    if samples.size == 0:
        raise ValueError(f"{position} is empty; pass at least one sample.")
    if samples.dtype.name in PCM_FULL_SCALE:
        samples = samples / PCM_FULL_SCALE[samples.dtype.name]
    elif not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"{position} has samples of type {samples.dtype}, whose full scale is not known. "
            "Pass floats with full scale at 1, or int16 or int32 PCM."
        )
    with np.errstate(over="ignore"):
        samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(
            f"{position} contains NaN or infinite samples; remove them first, for example with nan_to_num."
        )
    return samples


__all__ = ["TaaeFeatureExtractor", "integrated_loudness", "normalize_loudness"]
