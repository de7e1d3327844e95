"""Decodes the audio of a row to samples, and detects unusable clips."""

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import soundfile

from ..audio_io import Recording, decode_recording, sound_file
from ..errors import TaaeInputError
from ..feature_extraction_taae import SILENCE_ENERGY
from .row import Row

# Keys of decoded audio in `datasets`, and other names for the same.
ARRAY_KEYS, RATE_KEYS = ("array", "samples"), ("sampling_rate", "sample_rate", "sr")
HIGHEST_RATE = 768_000  # Hz; larger values are no sampling rates


def decode_row(row: Row, sampling_rate: int) -> Recording:
    """Decodes the audio of a row to one channel at a rate in Hz.

    The audio is the bytes of an audio file, its path or address, a dictionary with the keys `bytes` and `path`, or a
    dictionary of samples with the keys `array` and `sampling_rate`. A `Path` is a file found by the reader; it is
    opened wherever it is.

    Raises:
        TaaeInputError: if there is no audio, it cannot be decoded, or it names a file outside the corpus.
        OSError: if the file cannot be read.
    """
    if row.problem:
        raise TaaeInputError(f"{row.id}: {row.problem}")

    def decoded(content: BinaryIO) -> Recording:
        return decode_recording(content, row.id, sampling_rate, row.channel, span=row.span)

    cell, name = plain_cell(row.audio), row.id
    match cell:
        case Path():
            if not cell.is_file():
                raise TaaeInputError(f"{name}: missing: there is no such file")
            with cell.open("rb") as file:
                return decoded(file)
        case bytes():
            return decoded(io.BytesIO(cell))
        case None | "":
            raise TaaeInputError(f"{name}: missing: there is neither audio nor a path")
        case str():
            with row.origin.open(cell, name) as opened:
                return decoded(opened)
        case list() | np.ndarray():
            kind = "samples without their rate"
        case dict():
            kind = f"keys {', '.join(cell)}"
        case _:
            kind = type(cell).__name__
    raise TaaeInputError(
        f"{name}: holds {kind} for its audio; expected the bytes or the path of an audio file, or samples with their "
        "sampling_rate"
    )


def plain_cell(audio: Any, rate: Any = None) -> Any:
    """Converts an audio cell to the bytes or the path of an audio file; returns other cells unchanged.

    Args:
        audio: a cell, as a Python or an Arrow value.
        rate: the sampling rate in Hz from another column of the row, if there is one.
    """
    if isinstance(audio, pa.StructScalar):
        audio = dict(audio.items()) if audio.is_valid else None
    if isinstance(audio, dict):
        array = next((audio[key] for key in ARRAY_KEYS if is_there(audio.get(key))), None)
        rate = next((audio[key] for key in RATE_KEYS if is_there(audio.get(key))), rate)
        content, path = (as_python(audio.get(key)) for key in ("bytes", "path"))
        if content:
            return content
        if array is not None and is_there(rate):
            return encoded_samples(array, rate)
        if path or content is not None or audio.keys() & {"bytes", "path"}:
            return path or content
        return {name: as_python(value) for name, value in audio.items()} or None
    is_list = isinstance(audio, list | np.ndarray | pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar)
    if is_list and is_there(audio) and is_there(rate):
        return encoded_samples(audio, rate)
    return as_python(audio)


def encoded_samples(array: Any, rate: Any) -> bytes | list:
    """Encodes samples losslessly as a WAV file; returns values that are no samples unchanged.

    Args:
        array: (samples,), (channels, samples) or (samples, channels), floating point of full scale 1 or integers.
        rate: samples per second, in Hz.
    """
    try:
        samples = to_numpy(array)
        rate = int(as_python(rate))
        if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
            samples = samples.T
        if samples.dtype.kind not in "fi" or samples.ndim not in (1, 2) or not 0 < rate <= HIGHEST_RATE:
            return as_python(array)
        if samples.dtype.kind == "i":
            # 64-bit integers come from Python and pandas, and hold 16-bit samples.
            samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1 if samples.dtype.itemsize < 8 else 15)
        return sound_file(samples.astype(np.float32), rate, "WAV", "FLOAT")
    except (TypeError, ValueError, soundfile.SoundFileError, pa.ArrowException):
        return as_python(array)


def to_numpy(array: Any) -> np.ndarray:
    """Returns samples as an array; reads Arrow's lists without making a Python object per sample."""
    if not isinstance(array, pa.Scalar):
        return np.asarray(array)
    values = array.values
    if pa.types.is_nested(values.type):
        return np.stack([to_numpy(each) for each in values])
    return values.to_numpy(zero_copy_only=False)


def is_there(value: Any) -> bool:
    """Returns whether a value is neither None nor Arrow's null."""
    return value.is_valid if isinstance(value, pa.Scalar) else value is not None


def as_python(value: Any) -> Any:
    """Converts an Arrow value to a Python value."""
    return value.as_py() if isinstance(value, pa.Scalar) else value


def fault(audio: np.ndarray, sampling_rate: int, shortest: float) -> str:
    """Returns why a clip cannot be used: it is silent, or shorter than `shortest` seconds. Empty if it can be used."""
    seconds = len(audio) / sampling_rate
    if seconds < shortest:
        return f"too short: {seconds:.3f} s, at least {shortest:g} s are needed"
    if np.mean(np.square(audio)) < SILENCE_ENERGY:
        return "silent: its level is below -60 dB of full scale"
    return ""
