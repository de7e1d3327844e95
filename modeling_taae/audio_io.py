"""Files in and out: any audio that libsndfile reads becomes mono float32, and targets are replaced in one step."""

import io
import os
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

STANDARD_STREAM = "-"

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


class TaaeInputError(ValueError):
    """A file or an argument that cannot be used; the message says what it is, what was expected and what to do."""


def as_text(path: str | Path) -> str:
    """A path as tables and pages can hold it: bytes of its name that are no UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(error: Exception) -> str:
    """An error's message, without line breaks."""
    return " ".join(str(error).split())


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
        # The caller closes the file.
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
    with open_input(source) as file:
        return decode_audio(file, display_name(source), sampling_rate)


def decode_audio(content: BinaryIO, name: str, sampling_rate: int = 16_000) -> np.ndarray:
    """As [`read_audio`], from an open, seekable file; `name` is what errors call it."""
    try:
        with SequentialFile(content) as file:
            audio, rate, log = _read_mono(file), file.samplerate, file.extra_info
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


def _read_mono(file: SequentialFile, block_length: int = 1 << 18) -> np.ndarray:
    # Block by block, so that a long file is never in memory with all its channels.
    blocks = [np.zeros(0, dtype=np.float32)]
    while len(block := file.read(block_length, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1))
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
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            # Through links: what they point to is replaced, not the link.
            _replace(Path(os.path.realpath(path)), data)
    except OSError as error:
        # Making folders below a file says "File exists".
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        raise TaaeInputError(f"{target}: cannot be written ({reason}); choose another target with -o") from error


def _replace(path: Path, data: bytes) -> None:
    # In the same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        if path.exists():  # what was private stays so
            temporary.chmod(path.stat().st_mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Job(NamedTuple):
    """One file to make of another."""

    source: Path
    target: Path


def plan_jobs(inputs: list[str], output: str | None, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    """Says which file becomes which.

    Args:
        inputs: files, directories (searched to any depth for files with one of `suffixes`), or `-` alone.
        output: the target of a single file, the directory of several, `-`, or None for a place beside each input.
        suffixes: what counts as an input inside a directory, in lower case.
        target_suffix: suffix of targets whose name is not given.

    Raises:
        TaaeInputError: if nothing is found, or targets are ambiguous, clash or would overwrite an input.
    """
    if STANDARD_STREAM in inputs:
        if len(inputs) > 1:
            raise TaaeInputError("- (standard input) was given among other inputs; give it alone")
        return [Job(Path(STANDARD_STREAM), Path(output or STANDARD_STREAM))]
    if len(inputs) == 1 and output and not os.path.isdir(inputs[0]) and not _names_directory(output):
        jobs = [Job(Path(inputs[0]), Path(output))]
    else:
        jobs = _plan_directory(inputs, output, suffixes, target_suffix)
    _check_targets(jobs)
    return jobs


def _names_directory(output: str) -> bool:
    return os.path.isdir(output) or output.endswith(("/", os.sep))


def _plan_directory(inputs: list[str], output: str | None, suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    if output and (output == STANDARD_STREAM or os.path.exists(output) and not os.path.isdir(output)):
        raise TaaeInputError(f"-o {output}: is one target for several inputs; expected a directory")
    jobs = []
    for root in map(Path, inputs):
        sources = sorted(search_directory(root, suffixes, output)) if root.is_dir() else [root]
        if not sources:
            raise TaaeInputError(f"{root}: holds no file to read; expected files named {', '.join(sorted(suffixes))}")
        for source in sources:
            inside = source.relative_to(root) if root.is_dir() else Path(source.name)
            target = Path(output) / inside if output else source
            jobs.append(Job(source, target.with_suffix(target_suffix)))
    return jobs


def search_directory(root: Path, suffixes: frozenset[str], output: str | None = None) -> Iterator[Path]:
    """Files below a folder, however deep and through links, with one of these suffixes, in no particular order.

    Args:
        root: the folder.
        suffixes: in lower case.
        output: a folder to leave out, where it is one below the other: what an earlier run made is no input.

    Raises:
        TaaeInputError: if a folder below it, or itself, cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise TaaeInputError(
            f"{error.filename}: cannot be read ({error.strerror}); change its permissions, or name the other folders"
        ) from error

    seen = set() if output is None else {os.path.realpath(output)} - {os.path.realpath(root)}
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # links may lead back to where they are
            below.clear()
            continue
        seen.add(place)
        below.sort()
        for path in (Path(folder, name) for name in names):
            # Hidden files are not meant: macOS leaves a ._speech.wav without audio beside each file on foreign disks.
            if path.suffix.lower() in suffixes and not path.name.startswith("."):
                yield path


def _check_targets(jobs: list[Job]) -> None:
    sources = {os.path.realpath(job.source): job.source for job in jobs}
    targets: dict[str, Path] = {}
    for source, target in jobs:
        place = os.path.realpath(target)
        if place in sources:
            raise TaaeInputError(f"{target}: is an input and would be overwritten; choose another target with -o")
        if place in targets:
            raise TaaeInputError(
                f"{targets[place]} and {source} would both become {target}; rename one or treat them one by one"
            )
        targets[place] = source
