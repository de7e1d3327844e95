"""Audio in and out: what a file holds becomes mono float32 whatever its header guesses, and targets are written whole.

libsndfile reads what it knows, piece by piece (see `audio/pieces.py`); FFmpeg reads the rest where the extra `audio` is
installed (see `audio/ffmpeg.py`).
"""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import soundfile
import soxr

from .audio.ffmpeg import av_blocks
from .audio.pieces import UNKNOWN_SIZE, Piece, Window, hidden_mpeg, pieces
from .errors import TaaeInputError
from .files import display_name, is_standard_stream, open_input, write_bytes

# What a directory is searched for: files that libsndfile reads, and files that need FFmpeg. A file that is named
# outright is tried whatever it is called.
SNDFILE_SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph", ".voc"}
    | {".w64", ".wav", ".wave"}
)
FFMPEG_SUFFIXES = frozenset(
    {".3gp", ".aac", ".ac3", ".amr", ".ape", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp4", ".mpga", ".webm"}
    | {".wma", ".wv"}
)
AUDIO_SUFFIXES = SNDFILE_SUFFIXES | FFMPEG_SUFFIXES

WRITTEN_FORMATS = {".wav": "WAV", ".flac": "FLAC"}

# libsndfile reads a cut WAV or AIFF file silently; only its log tells the promised from the actual size of the samples.
SIZE_OF_SAMPLES = re.compile(r"(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)")
# A length that a file promises may be off by so many seconds.
TOLERANCE = 0.2
# FLAC from a pipe says nothing; libsndfile then promises more than any file can hold.
UNKNOWN_FRAMES = 1 << 62
LEAST_RATE, GREATEST_RATE = 1_000, 1_000_000  # in Hz
# Samples of the longest recording that is read, 37 hours at 16 kHz: a small file may be made to expand to any length.
MOST_SAMPLES = 1 << 31
BLOCK_VALUES = 1 << 18  # samples of all channels together that are in memory at a time
# Channels cancel each other out if less than this share of their power is left in their mean: one is out of phase.
CANCELLED = 1e-3

Blocks = Iterator[tuple[np.ndarray, int]]
Result = TypeVar("Result")


def read_audio(source: str | Path, sampling_rate: int = 16_000) -> np.ndarray:
    """Reads an audio file; channels are averaged, other rates resampled.

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


def decode_audio(
    content: BinaryIO,
    name: str,
    sampling_rate: int = 16_000,
    channel: int | None = None,
    most_samples: int = MOST_SAMPLES,
) -> np.ndarray:
    """Reads an open, seekable audio file as [`read_audio`] does.

    Args:
        content: the open file.
        name: the name that errors call it.
        sampling_rate: samples per second of the result, in Hz.
        channel: the one channel to read, from 1; None averages all.
        most_samples: samples of the longest recording that is read.

    Returns:
        (samples,) float32, at least one sample, all of them finite.

    Raises:
        TaaeInputError: see [`read_audio`], or if the recording is longer.
    """
    if channel is None:
        mixer = Mixer()
        audio = resample(mixer.mix(_blocks(content, name)), name, sampling_rate, most_samples)
        if mixer.cancelled:
            # One channel then has all there is: the others hold the same sound, turned round.
            channel = mixer.loudest
    if channel is not None:
        blocks = one_channel(_blocks(content, name), channel, name)
        audio = resample(blocks, name, sampling_rate, most_samples)
    if len(audio) == 0:
        raise TaaeInputError(f"{name}: holds no audio (zero length); expected at least one sample")
    if not np.isfinite(audio).all():
        raise TaaeInputError(f"{name}: contains NaN or infinite samples; repair the file or export it again")
    return audio


class Mixer:
    """Averages channels, and notices where they cancel each other out."""

    def __init__(self):
        self.mixed_power, self.powers = 0.0, np.zeros(1)

    def mix(self, blocks: Blocks) -> Blocks:
        """Yields the mean of each block's channels, (samples,) float32, with its sampling rate."""
        for block, rate in blocks:
            mono = block.mean(axis=1)
            if block.shape[1] > 1:
                powers = np.square(block, dtype=np.float64).sum(axis=0)
                self.powers = np.pad(self.powers, (0, max(len(powers) - len(self.powers), 0)))
                self.powers[: len(powers)] += powers
                self.mixed_power += float(np.square(mono, dtype=np.float64).sum())
            yield mono, rate

    @property
    def cancelled(self) -> bool:
        """Whether hardly anything is left of the channels in their mean."""
        return self.mixed_power < CANCELLED * float(self.powers.mean())

    @property
    def loudest(self) -> int:
        """The channel with the greatest power, from 1."""
        return 1 + int(self.powers.argmax())


def one_channel(blocks: Blocks, channel: int, name: str) -> Blocks:
    """Yields one channel of each block, (samples,) float32, with its sampling rate.

    Args:
        blocks: blocks (samples, channels) float32, each with its sampling rate.
        channel: the channel, from 1.
        name: the name that errors call them.

    Raises:
        TaaeInputError: if there are fewer channels.
    """
    for block, rate in blocks:
        if channel > block.shape[1]:
            channels = f"{block.shape[1]} channel{'s' if block.shape[1] > 1 else ''}"
            raise TaaeInputError(f"{name}: has {channels}; expected at least {channel}, so choose another channel")
        yield block[:, channel - 1], rate


def resample(blocks: Blocks, name: str, sampling_rate: int, most_samples: int = MOST_SAMPLES) -> np.ndarray:
    """Joins blocks of samples at one rate.

    Args:
        blocks: blocks (samples,) float32, each with its sampling rate in Hz.
        name: the name that errors call them.
        sampling_rate: samples per second of the result, in Hz.
        most_samples: most samples of the result.

    Returns:
        (samples,) float32.

    Raises:
        TaaeInputError: if a rate is none of sound, or there are more samples.
    """
    parts, length = [np.zeros(0, dtype=np.float32)], 0
    resampler, resampled_rate = None, sampling_rate

    def keep(part: np.ndarray) -> None:
        nonlocal length
        length += len(part)
        if length > most_samples:
            seconds = most_samples / sampling_rate
            raise TaaeInputError(f"{name}: is longer than {seconds:,.0f} s; cut it into shorter recordings")
        parts.append(part)

    for block, rate in blocks:
        if not LEAST_RATE <= rate <= GREATEST_RATE:
            raise TaaeInputError(
                f"{name}: has a sampling rate of {rate:,} Hz; expected {LEAST_RATE:,} to {GREATEST_RATE:,} Hz, so "
                "check how it was made"
            )
        if rate != resampled_rate:
            if resampler is not None:
                keep(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
            resampled_rate = rate
            resampler = None if rate == sampling_rate else _resampler(rate, sampling_rate)
        keep(block if resampler is None else resampler.resample_chunk(block))
    if resampler is not None:
        keep(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    return np.concatenate(parts)


def _resampler(rate: int, sampling_rate: int) -> soxr.ResampleStream:
    return soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32")


class SequentialFile(soundfile.SoundFile):
    """A sound file that is read from its start to its end: seeking, as soundfile does after each read, fails in FLAC
    of unknown length.
    """

    def seekable(self) -> bool:
        """Returns false."""
        return False


def _blocks(content: BinaryIO, name: str) -> Blocks:
    """Yields the samples of all pieces of a file, (samples, channels) float32, each block with its sampling rate."""
    found = pieces(content, name)
    for number, piece in enumerate(found):
        try:
            file = _open(piece)
        # soundfile raises TypeError for a headerless .raw file, whose rate it would have to be told.
        except (soundfile.SoundFileError, TypeError) as error:
            if number:
                raise _unreadable(name, error) from error
            yield from _other_blocks(content, name, error)
            return
        with file:
            yield from _piece_blocks(file, piece, name)


def _open(piece: Piece) -> SequentialFile:
    file = _keeping_errors(piece.content, lambda: SequentialFile(piece.content))
    if piece.counted is None or file.frames >= piece.samples:
        return file
    # libsndfile would stop at the length that it guesses.
    file.close()
    piece.content = piece.counted
    return SequentialFile(piece.content)


def _keeping_errors(content: Window, call: Callable[[], Result]) -> Result:
    """Calls libsndfile; an error of the file it reads from comes before what libsndfile makes of it."""
    try:
        return call()
    finally:
        if content.error is not None:
            raise content.error


def _piece_blocks(file: SequentialFile, piece: Piece, name: str) -> Blocks:
    """Yields the samples of one piece.

    Raises:
        TaaeInputError: if it is damaged or holds less than it promises.
    """
    length, block_length = 0, max(BLOCK_VALUES // file.channels, 1)

    def read() -> np.ndarray:
        return file.read(block_length, dtype="float32", always_2d=True)

    try:
        while len(block := _keeping_errors(piece.content, read)):
            length += len(block)
            yield block, file.samplerate
    except soundfile.SoundFileError as error:
        raise _unreadable(name, error) from error
    promised = file.frames if piece.promises and file.frames < UNKNOWN_FRAMES else 0
    if promised - length > TOLERANCE * file.samplerate or _is_cut(file.extra_info):
        raise TaaeInputError(f"{name}: is truncated (it promises more than is there); copy or download it again")


def _other_blocks(content: BinaryIO, name: str, error: Exception) -> Blocks:
    """Yields the samples of a file that libsndfile does not know.

    Raises:
        TaaeInputError: if it is no audio, or of a kind that needs an extra which is not installed.
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
            "; M4A, MP4, WebM, AMR, WMA and others need an extra, which `pip install 'modeling_taae[audio]'` brings",
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
    """Returns the format in which [`write_audio`] writes a target: that of its suffix, or WAV for `-`.

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
    buffer = io.BytesIO()
    soundfile.write(buffer, to_pcm16(audio), sampling_rate, format=audio_format(target), subtype="PCM_16")
    write_bytes(target, buffer.getvalue())
