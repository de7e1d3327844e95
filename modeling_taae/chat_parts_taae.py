"""Reads speech from chat messages, in the formats of `datasets`, Transformers and other chat interfaces."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers.audio_utils import load_audio

# Types of message parts that are speech, and the keys that may hold it. All but `audio_codes` are conventions of
# Transformers and of other chat interfaces.
SPEECH_TYPES = ("audio", "input_audio", "audio_url")
PART_KEYS = ("audio_codes", "audio", "path", "url", "base64", "audio_url", "input_audio")
NESTED_KEYS = ("url", "data")


def speech_of(part: dict) -> tuple[str, Any]:
    """Returns the key that holds the speech of a message part, and its value."""
    for key in PART_KEYS:
        speech = part.get(key)
        if key not in ("audio", "audio_codes") and isinstance(speech, Mapping):
            speech = next((speech[name] for name in NESTED_KEYS if speech.get(name) is not None), None)
        if speech is not None:
            return key, speech
    raise ValueError(f"A part of type audio has one of {', '.join(PART_KEYS)}.")


def waveform_of(speech: Any, model_rate: int, passed_rate: int | None) -> Any:
    """Returns the speech of a part in a form that the feature extractor takes, with its sampling rate if known.

    Args:
        speech: samples with or without their rate, or a file's name, address or content.
        model_rate: the rate to which files are resampled, in Hz.
        passed_rate: the rate of samples that come without one, in Hz.
    """
    if isinstance(speech, Mapping) and "array" not in speech:
        # An audio cell of `datasets` that is not decoded yet.
        speech = next((speech[key] for key in ("bytes", "path") if speech.get(key) is not None), speech)
    if isinstance(speech, bytes):
        speech = b64encode(speech).decode()
    if isinstance(speech, (str, PathLike)):
        return {"array": _load(str(speech), model_rate), "sampling_rate": model_rate}
    if isinstance(speech, tuple) and len(speech) == 2 and np.ndim(speech[0]) == 1 and np.ndim(speech[1]) == 0:
        return {"array": speech[0], "sampling_rate": speech[1]}
    if passed_rate is None or isinstance(speech, Mapping) or hasattr(speech, "get_all_samples"):
        return speech
    return {"array": speech, "sampling_rate": passed_rate}


def _load(source: str, sampling_rate: int) -> np.ndarray:
    """Returns the waveform of a file, given as its name, its address or its content in base64."""
    try:
        audio = load_audio(source, sampling_rate)
        # Earlier versions of Transformers hand back what is neither a file nor an address.
        if isinstance(audio, str):
            with TemporaryDirectory() as folder:
                file = Path(folder, "speech")
                file.write_bytes(b64decode(source.rpartition(",")[2], validate=True))
                audio = load_audio(str(file), sampling_rate)
        return audio
    except ValueError as error:
        raise ValueError(f"{source[:80]!r} is neither an audio file, nor an address, nor a file in base64.") from error


__all__ = ["SPEECH_TYPES", "speech_of", "waveform_of"]
