"""Reads audio files as mono float32, even if their headers are wrong, and writes audio files in one step.

libsndfile reads the formats it supports, piece by piece (see `audio/pieces.py`). FFmpeg reads other formats if the
extra `audio` is installed (see `audio/ffmpeg.py`).
"""

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from mimetypes import MimeTypes
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import soundfile

from .audio.blocks import MOST_SAMPLES, TOLERANCE, Blocks, Mixer, Span, cut, one_channel, resample
from .audio.ffmpeg import av_blocks
from .audio.pieces import UNKNOWN_SIZE, Piece, hidden_mpeg, pieces
from .audio.window import Window
from .errors import TaaeInputError
from .files import display_name, is_standard_stream, open_input, write_bytes

# Suffixes that are searched for in a directory: of files that libsndfile reads, and of files that need FFmpeg. A file
# that is named explicitly is tried whatever its suffix.
SNDFILE_SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph", ".voc"}
    | {".w64", ".wav", ".wave"}
)
FFMPEG_SUFFIXES = frozenset(
    {".3gp", ".aac", ".ac3", ".amr", ".ape", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp4", ".mpga", ".webm"}
    | {".wma", ".wv"}
)
AUDIO_SUFFIXES = SNDFILE_SUFFIXES | FFMPEG_SUFFIXES

# Further suffixes of sound, beside those that `mimetypes` knows.
OTHER_SOUND = frozenset(
    {".aa3", ".aax", ".adts", ".dff", ".dsf", ".f4a", ".flv", ".gsm", ".m2ts", ".m4p", ".m4r", ".mpc", ".mts", ".nist"}
    | {".oma", ".pcm", ".qcp", ".raw", ".rmvb", ".sd2", ".sln", ".spx", ".tta", ".vob", ".vox"}
)

WRITTEN_FORMATS = {".wav": "WAV", ".flac": "FLAC"}

# libsndfile reads a truncated WAV or AIFF file silently; only its log gives the promised and the actual size.
SIZE_OF_SAMPLES = re.compile(r"(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)")
# FLAC from a pipe gives no length; libsndfile then reports more frames than any file can hold.
UNKNOWN_FRAMES = 1 << 62
BLOCK_VALUES = 1 << 18  # samples in memory at a time, over all channels
# libsndfile's names of encodings in which it can seek without reading the samples before.
SEEKABLE = ("PCM_", "FLOAT", "DOUBLE")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Recording:
    """A recording that was read.

    Args:
        audio: (samples,) float32, at least one sample, all of them finite.
        averaged: whether it has several channels, which were averaged to one and are not the same.
    """

    audio: np.ndarray
    averaged: bool = False


def read_audio(source: str | Path, sampling_rate: int = 16_000) -> np.ndarray:
    """Reads an audio file; channels are averaged, other rates resampled.

    Args:
        source: a path, or `-` for standard input.
        sampling_rate: samples per second of the result, in Hz.

    Returns:
        (samples,) float32, at least one sample, all of them finite.

    Raises:
        TaaeInputError: if the file cannot be read, is no audio, is damaged or truncated, or holds no samples or NaNs.
    """
    return read_recording(source, sampling_rate).audio


def read_recording(source: str | Path, sampling_rate: int = 16_000, channel: int | None = None) -> Recording:
    """Reads an audio file as [`read_audio`] does, or one channel of it, counted from 1."""
    with open_input(source) as file:
        return decode_recording(file, display_name(source), sampling_rate, channel)


def decode_audio(
    content: BinaryIO,
    name: str,
    sampling_rate: int = 16_000,
    channel: int | None = None,
    most_samples: int = MOST_SAMPLES,
) -> np.ndarray:
    """Reads an open, seekable audio file as [`read_audio`] does; arguments and errors as [`decode_recording`]."""
    return decode_recording(content, name, sampling_rate, channel, most_samples).audio


def decode_recording(
    content: BinaryIO,
    name: str,
    sampling_rate: int = 16_000,
    channel: int | None = None,
    most_samples: int = MOST_SAMPLES,
    span: Span | None = None,
) -> Recording:
    """Reads an open, seekable audio file, and tells whether channels were averaged.

    Args:
        content: the open file.
        name: the file's name in error messages.
        sampling_rate: samples per second of the result, in Hz.
        channel: the one channel to read, counted from 1; None averages all.
        most_samples: samples of the longest recording that is read.
        span: the part to read, as if it had been cut into its own file; None reads all.

    Raises:
        TaaeInputError: see [`read_audio`], or if the recording is longer, or ends before the part does.
    """

    def blocks() -> Blocks:
        return _blocks(content, name) if span is None else cut(_blocks(content, name, span.start), span, name)

    mixer = Mixer()
    if channel is None:
        audio = resample(mixer.mix(blocks()), name, sampling_rate, most_samples)
        if mixer.cancelled:
            # One channel then has the whole signal: the others hold the same one with inverted polarity.
            channel = mixer.loudest
    if channel is not None:
        audio = resample(one_channel(blocks(), channel, name), name, sampling_rate, most_samples)
    if len(audio) == 0:
        raise TaaeInputError(f"{name}: holds no audio (zero length); expected at least one sample")
    if not np.isfinite(audio).all():
        raise TaaeInputError(f"{name}: contains NaN or infinite samples; repair the file or export it again")
    return Recording(audio, channel is None and mixer.averaged)


def averaged_note(count: int) -> str:
    """Returns a line about recordings whose channels were averaged."""
    several = f"{count:,} recordings have several channels" if count > 1 else "1 recording has several channels"
    return f"{several}, which were averaged; --channel (in a recipe, channel) reads one of them"


def unread_sound(files: Iterable[Path], read: Collection[str]) -> str:
    """Returns a line about sound files and films of kinds that are not read; empty if there are none.

    Args:
        files: the files.
        read: the suffixes that are read, in lower case.
    """
    kinds = MimeTypes()  # without the system's own list: the same everywhere
    found: Counter[str] = Counter()
    for suffix, number in Counter(os.path.splitext(file.name)[1].lower() for file in files).items():
        kind = kinds.guess_type(f"a{suffix}", strict=False)[0] or ""
        if suffix not in read and (suffix in OTHER_SOUND or kind.startswith(("audio/", "video/"))):
            found[suffix] += number
    if not found:
        return ""
    names = ", ".join(f"{number} {suffix}" for suffix, number in sorted(found.items()))
    files_are = "sound files are of kinds that are" if found.total() > 1 else "sound file is of a kind that is"
    return f"{found.total()} {files_are} not read ({names}); convert them first, for example with ffmpeg"


class SequentialFile(soundfile.SoundFile):
    """A sound file without seeking: soundfile seeks after each read, which fails in FLAC of unknown length."""

    def seekable(self) -> bool:
        """Returns false."""
        return False


def _blocks(content: BinaryIO, name: str, unheard: float = 0.0) -> Blocks:
    """Yields the samples of all pieces of a file, (samples, channels) float32, each block with its sampling rate.

    Args:
        content: the open file.
        name: the name that errors call it.
        unheard: seconds from the start that are not asked for: where that saves reading them, they come as zeros.
    """
    found = pieces(content, name)
    for number, piece in enumerate(found):
        try:
            file = _open(piece)
        # soundfile raises TypeError for a .raw file without a header, because it needs the rate as an argument.
        except (soundfile.SoundFileError, TypeError) as error:
            if number:
                raise _unreadable(name, error) from error
            yield from _other_blocks(content, name, error)
            return
        with file:
            yield from _piece_blocks(file, piece, name, unheard if len(found) == 1 else 0.0)


def _open(piece: Piece) -> SequentialFile:
    file = _keeping_errors(piece.content, lambda: SequentialFile(piece.content))
    if piece.counted is None or file.frames >= piece.samples:
        return file
    # libsndfile would stop at its estimated length.
    file.close()
    piece.content = piece.counted
    return SequentialFile(piece.content)


def _keeping_errors(content: Window, call: Callable[[], Result]) -> Result:
    """Calls libsndfile, and raises an error of the file it reads from instead of libsndfile's own."""
    try:
        return call()
    finally:
        if content.error is not None:
            raise content.error


def _piece_blocks(file: SequentialFile, piece: Piece, name: str, unheard: float = 0.0) -> Blocks:
    """Yields the samples of one piece, or zeros for as many seconds at its start as are unheard.

    Raises:
        TaaeInputError: if it is damaged or shorter than its header says.
    """
    length, block_length = 0, max(BLOCK_VALUES // file.channels, 1)

    def read() -> np.ndarray:
        return file.read(block_length, dtype="float32", always_2d=True)

    try:
        if unheard and file.frames < UNKNOWN_FRAMES and file.subtype.startswith(SEEKABLE):
            length = min(int(unheard * file.samplerate), file.frames)
            _keeping_errors(piece.content, lambda: file.seek(length))
            yield np.broadcast_to(np.float32(0), (length, file.channels)), file.samplerate
        while len(block := _keeping_errors(piece.content, read)):
            length += len(block)
            yield block, file.samplerate
    except soundfile.SoundFileError as error:
        raise _unreadable(name, error) from error
    promised = file.frames if piece.promises and file.frames < UNKNOWN_FRAMES else 0
    if promised - length > TOLERANCE * file.samplerate or _is_cut(file.extra_info):
        raise TaaeInputError(f"{name}: is truncated (it promises more than is there); copy or download it again")


def _other_blocks(content: BinaryIO, name: str, error: Exception) -> Blocks:
    """Yields the samples of a file that libsndfile cannot read.

    Raises:
        TaaeInputError: if it is no audio, or needs an extra that is not installed.
    """
    if found := hidden_mpeg(content, name):
        for piece in found:
            with _open(piece) as file:
                yield from _piece_blocks(file, piece, name)
        return
    try:
        yield from av_blocks(content, name)
    except ModuleNotFoundError:
        raise _unreadable(
            name,
            error,
            "; M4A, MP4, WebM, AMR, WMA and others need the extra `audio`: pip install 'modeling_taae[audio]'",
        ) from error


def _unreadable(name: str, error: Exception, hint: str = "") -> TaaeInputError:
    reason = str(getattr(error, "error_string", error)).strip(". ")
    return TaaeInputError(
        f"{name}: cannot be read as audio ({reason}); expected an undamaged WAV, FLAC, Ogg or MP3 file or the like, so "
        f"check it, or convert it first, for example with ffmpeg{hint}"
    )


def _is_cut(log: str) -> bool:
    sizes = SIZE_OF_SAMPLES.findall(log)
    return any(int(actual) < int(promised) < UNKNOWN_SIZE for promised, actual in sizes)


def audio_format(target: str | Path) -> str:
    """Returns the format in which [`write_audio`] writes a target: from its suffix, or WAV for `-`.

    Raises:
        TaaeInputError: if the suffix is neither .wav nor .flac.
    """
    if is_standard_stream(target):
        return "WAV"
    suffix = Path(target).suffix.lower()
    if suffix not in WRITTEN_FORMATS:
        raise TaaeInputError(f"{target}: is no name for audio; expected one that ends in .wav or .flac; change -o")
    return WRITTEN_FORMATS[suffix]


def to_pcm16(audio: np.ndarray) -> np.ndarray:
    """Converts samples of full scale 1 to 16-bit integers; samples beyond full scale are clipped."""
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
    write_bytes(target, sound_file(to_pcm16(audio), sampling_rate, audio_format(target)))


def sound_file(audio: np.ndarray, sampling_rate: int, file_format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """Returns samples, (samples,) or (samples, channels), as a file of a format and an encoding of libsndfile.

    Raises:
        soundfile.SoundFileError: if libsndfile refuses them.
    """
    content = io.BytesIO()
    soundfile.write(content, audio, sampling_rate, format=file_format, subtype=subtype)
    return content.getvalue()
