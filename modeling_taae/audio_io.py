"""Files in and out: any audio that libsndfile reads becomes mono float32, and targets are replaced in one step."""

import io
import os
import re
import sys
import uuid
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

STANDARD_STREAM = "-"

# What a directory is searched for. A file that is named outright is tried whatever it is called.
AUDIO_SUFFIXES = frozenset(
    ".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav .wave".split()
)

WRITTEN_FORMATS = {".wav": "WAV", ".flac": "FLAC"}

# libsndfile reads a cut WAV or AIFF file silently; only its log tells the promised from the actual size of the samples.
SIZE_OF_SAMPLES = re.compile(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)")
# Programs that write WAV into a pipe promise a size from here up, because they cannot know it yet.
UNKNOWN_SIZE = 0x7FFF0000


class TaaeInputError(ValueError):
    """A file or an argument that cannot be used; the message says what it is, what was expected and what to do."""


def is_standard_stream(path: str | Path) -> bool:
    """Whether a path is `-`, which stands for standard input or standard output."""
    return str(path) == STANDARD_STREAM


def display_name(path: str | Path) -> str:
    """What messages call an input."""
    return "standard input" if is_standard_stream(path) else str(path)


def open_input(source: str | Path) -> BinaryIO:
    """Opens a file, a pipe or, for `-`, standard input for reading, always seekable.

    Raises:
        TaaeInputError: if it cannot be opened or has no bytes.
    """
    try:
        file = io.BytesIO(sys.stdin.buffer.read()) if is_standard_stream(source) else open(source, "rb")
        if not file.seekable():
            file = io.BytesIO(file.read())
        empty = not file.read(1)
        file.seek(0)
    except OSError as error:
        reason = error.strerror or error
        raise TaaeInputError(f"{source}: cannot be read ({reason}); expected a file, so check the path") from error
    if empty:
        raise TaaeInputError(f"{display_name(source)}: is empty (0 bytes); expected a file with content")
    return file


def read_bytes(source: str | Path) -> bytes:
    """The content of a file or, for `-`, of standard input.

    Raises:
        TaaeInputError: if it cannot be read or has no bytes.
    """
    with open_input(source) as file:
        return file.read()


def read_audio(source: str | Path, sampling_rate: int = 16_000) -> np.ndarray:
    """Reads any file that libsndfile reads; channels are averaged, other rates resampled.

    Args:
        source: a path, or `-` for standard input.
        sampling_rate: samples per second of the result, in Hz.

    Returns:
        (samples,) float32, at least one sample, all of them finite.

    Raises:
        TaaeInputError: if the file cannot be read, is no audio, is damaged or cut short, or holds no samples or NaNs.
    """
    name = display_name(source)
    with open_input(source) as opened:
        try:
            with soundfile.SoundFile(opened) as file:
                audio, rate, log = _read_mono(file), file.samplerate, file.extra_info
        # soundfile raises TypeError for a headerless .raw file, whose rate it would have to be told.
        except (soundfile.SoundFileError, TypeError) as error:
            reason = str(getattr(error, "error_string", error)).strip(". ")
            raise TaaeInputError(
                f"{name}: cannot be read as audio ({reason}); expected an undamaged file such as WAV, FLAC, Ogg or MP3, "
                "so check it, or convert it first, for example with ffmpeg"
            ) from error
    _check_complete(log, name)
    if rate != sampling_rate:
        audio = soxr.resample(audio, rate, sampling_rate)
    if len(audio) == 0:
        raise TaaeInputError(f"{name}: holds no audio (zero length); expected at least one sample")
    if not np.isfinite(audio).all():
        raise TaaeInputError(f"{name}: contains NaN or infinite samples; repair the file or export it again")
    return audio


def _read_mono(file: soundfile.SoundFile, block_length: int = 1 << 18) -> np.ndarray:
    # Block by block, so that a long file is never in memory with all its channels.
    blocks = [np.zeros(0, dtype=np.float32)]
    while len(block := file.read(block_length, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1))
    return np.concatenate(blocks)


def _check_complete(log: str, name: str) -> None:
    for promised, actual in SIZE_OF_SAMPLES.findall(log):
        if int(actual) < int(promised) < UNKNOWN_SIZE:
            raise TaaeInputError(
                f"{name}: is truncated (its header promises {promised} bytes of samples, {actual} are there); "
                "copy or download it again"
            )


def audio_format(target: str | Path) -> str:
    """The format in which [`write_audio`] writes a target: that of its suffix, or WAV for `-`.

    Raises:
        TaaeInputError: if the suffix is neither .wav nor .flac.
    """
    if is_standard_stream(target):
        return "WAV"
    suffix = Path(target).suffix.lower()
    if suffix not in WRITTEN_FORMATS:
        raise TaaeInputError(f"{target}: audio is written as .wav or .flac, not {suffix or 'without a suffix'}; rename it")
    return WRITTEN_FORMATS[suffix]


def write_audio(target: str | Path, audio: np.ndarray, sampling_rate: int) -> None:
    """Writes 16-bit PCM; samples beyond full scale are clipped. The target is replaced in one step.

    Args:
        target: a path that ends in .wav or .flac, or `-` for WAV on standard output.
        audio: (samples,) float, full scale at 1.
        sampling_rate: samples per second, in Hz.

    Raises:
        TaaeInputError: if the suffix is another one or the target cannot be written.
        ValueError: if a sample is NaN or infinite.
    """
    if not np.isfinite(audio).all():
        raise ValueError(f"{target}: not written, because the audio contains NaN or infinite samples")
    pcm = np.clip(np.rint(audio * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, sampling_rate, format=audio_format(target), subtype="PCM_16")
    write_bytes(target, buffer.getvalue())


def write_bytes(target: str | Path, data: bytes) -> None:
    """Writes a file in one step: whoever looks finds the old content or the new one, never a part.

    Folders on the way are made. `-` is standard output; devices and pipes are written to directly.

    Raises:
        TaaeInputError: if the target cannot be written.
    """
    if is_standard_stream(target):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    # Through links: what they point to is replaced, not the link.
    path = Path(os.path.realpath(target))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(path, data)
    except OSError as error:
        reason = error.strerror or error
        raise TaaeInputError(f"{target}: cannot be written ({reason}); choose another target with -o") from error


def _replace(path: Path, data: bytes) -> None:
    # In the same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
