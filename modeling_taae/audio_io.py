"""Files in and out: any audio that libsndfile reads becomes mono float32, and targets are replaced in one step."""

import io
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from .errors import TaaeInputError
from .files import display_name, is_standard_stream, open_input, write_bytes

# What a directory is searched for. A file that is named outright is tried whatever it is called.
AUDIO_SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph", ".voc"}
    | {".w64", ".wav", ".wave"}
)

WRITTEN_FORMATS = {".wav": "WAV", ".flac": "FLAC"}

# libsndfile reads a cut WAV or AIFF file silently; only its log tells the promised from the actual size of the samples.
SIZE_OF_SAMPLES = re.compile(r"(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)")
# Nor does it tell of an Ogg file, whose last page is marked as such by a bit of its sixth byte.
OGG_PAGE, OGG_HEADER, OGG_LAST, LONGEST_OGG_PAGE = b"OggS", 27, 4, 65_307
# The length that an MP3 file promises may be off by a few of its frames.
MP3_TOLERANCE = 0.2  # seconds
# Programs that write WAV into a pipe promise a size from here up, because they cannot know it yet.
UNKNOWN_SIZE = 0x7FFF0000
# FLAC from a pipe says nothing; libsndfile then promises more than any file can hold.
UNKNOWN_FRAMES = 1 << 62


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
    with open_input(source) as file:
        return decode_audio(file, display_name(source), sampling_rate)


def decode_audio(content: BinaryIO, name: str, sampling_rate: int = 16_000, channel: int | None = None) -> np.ndarray:
    """As [`read_audio`], from an open, seekable file.

    Args:
        content: the file.
        name: its name in errors.
        sampling_rate: samples per second of the result, in Hz.
        channel: the one channel to read, from 1; None averages all.
    """
    try:
        with SequentialFile(content) as file:
            if channel is not None and channel > file.channels:
                raise TaaeInputError(
                    f"{name}: has {file.channels} channel{'s' if file.channels > 1 else ''}; expected at least "
                    f"{channel}, so choose another channel"
                )
            audio, rate, log = _read_mono(file, channel), file.samplerate, file.extra_info
            missing = 0 if file.frames >= UNKNOWN_FRAMES else file.frames - len(audio)
    # soundfile raises TypeError for a headerless .raw file, whose rate it would have to be told.
    except (soundfile.SoundFileError, TypeError) as error:
        reason = str(getattr(error, "error_string", error)).strip(". ")
        raise TaaeInputError(
            f"{name}: cannot be read as audio ({reason}); expected an undamaged WAV, FLAC, Ogg or MP3 file or the "
            "like, so check it, or convert it first, for example with ffmpeg"
        ) from error
    if missing > MP3_TOLERANCE * rate or _is_cut(log) or _is_cut_ogg(content):
        raise TaaeInputError(f"{name}: is truncated (it promises more than is there); copy or download it again")
    if rate != sampling_rate:
        audio = soxr.resample(audio, rate, sampling_rate)
    if len(audio) == 0:
        raise TaaeInputError(f"{name}: holds no audio (zero length); expected at least one sample")
    if not np.isfinite(audio).all():
        raise TaaeInputError(f"{name}: contains NaN or infinite samples; repair the file or export it again")
    return audio


class SequentialFile(soundfile.SoundFile):
    """A sound file that is read from its start to its end: seeking, as soundfile does after each read, fails in FLAC
    of unknown length.
    """

    def seekable(self) -> bool:
        """No."""
        return False


def _read_mono(file: SequentialFile, channel: int | None = None, block_length: int = 1 << 18) -> np.ndarray:
    # Block by block, so that a long file is never in memory with all its channels.
    blocks = [np.zeros(0, dtype=np.float32)]
    while len(block := file.read(block_length, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1) if channel is None else block[:, channel - 1])
    return np.concatenate(blocks)


def _is_cut(log: str) -> bool:
    sizes = SIZE_OF_SAMPLES.findall(log)
    return any(int(actual) < int(promised) < UNKNOWN_SIZE for promised, actual in sizes)


def _is_cut_ogg(content: BinaryIO) -> bool:
    content.seek(0)
    if content.read(len(OGG_PAGE)) != OGG_PAGE:
        return False
    content.seek(max(content.seek(0, io.SEEK_END) - LONGEST_OGG_PAGE, 0))
    end = content.read()
    last_page = end[end.rfind(OGG_PAGE) :]
    if len(last_page) <= OGG_HEADER or not last_page[5] & OGG_LAST:
        return True
    # The header ends with the number of segments, whose sizes follow.
    sizes = last_page[OGG_HEADER:][: last_page[OGG_HEADER - 1]]
    return len(last_page) < OGG_HEADER + len(sizes) + sum(sizes)


def audio_format(target: str | Path) -> str:
    """The format in which [`write_audio`] writes a target: that of its suffix, or WAV for `-`.

    Raises:
        TaaeInputError: if the suffix is neither .wav nor .flac.
    """
    if is_standard_stream(target):
        return "WAV"
    suffix = Path(target).suffix.lower()
    if suffix not in WRITTEN_FORMATS:
        raise TaaeInputError(f"{target}: is no name for audio; expected one that ends in .wav or .flac, so change -o")
    return WRITTEN_FORMATS[suffix]


def to_pcm16(audio: np.ndarray) -> np.ndarray:
    """Samples of full scale 1 as 16-bit integers; what is beyond full scale is clipped."""
    return np.clip(np.rint(audio * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)


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
    buffer = io.BytesIO()
    soundfile.write(buffer, to_pcm16(audio), sampling_rate, format=audio_format(target), subtype="PCM_16")
    write_bytes(target, buffer.getvalue())
