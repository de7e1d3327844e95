"""Reads formats that libsndfile cannot, such as AAC in M4A and MP4, Opus in WebM, AMR and WMA, with FFmpeg (PyAV).

PyAV comes with the extra `audio`. Only the formats below are tried: others, such as playlists, could open other files.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ..errors import TaaeInputError, one_line
from .window import read_at

# FFmpeg's names of formats.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,amr,amrnb,amrwb,asf,flv,mpegts,mpeg,avi,ac3,eac3,ape,wv,tta,mpc,mpc8,"
    "rm,dts,dsf,wav,w64,aiff,au,caf,ogg,flac"
)
# Formats without a length in their header; FFmpeg only estimates it.
WITHOUT_LENGTH = {"aac", "amr", "amrnb", "amrwb", "mpegts", "mpeg", "ac3", "eac3", "dts", "flv"}
TOLERANCE = 0.2  # seconds by which the length in a header may be off


def av_blocks(content: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the samples of a file's best audio track, (samples, channels) float32, each block with its sampling rate.

    Args:
        content: the open file.
        name: the file's name in error messages.

    Raises:
        ModuleNotFoundError: if PyAV is not installed.
        TaaeInputError: if there is no audio, or it is damaged or truncated.
    """
    import av

    if is_joined_mp4(content):
        raise TaaeInputError(f"{name}: is several MP4 files joined, of which only one would be read; split them")
    content.seek(0)
    try:
        # Without protocols, a file cannot make FFmpeg open other files.
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        with av.open(content, mode="r", options=options, metadata_errors="ignore") as container:
            stream = container.streams.best("audio")
            if stream is None:
                raise TaaeInputError(f"{name}: holds no audio track; expected a recording with sound")
            promised, seconds, resampler, layout = _promised_seconds(container), 0.0, None, None
            for frame in container.decode(stream):
                if resampler is None or layout != (frame.sample_rate, frame.layout.name):
                    layout = (frame.sample_rate, frame.layout.name)
                    resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
                for converted in resampler.resample(frame):
                    seconds += converted.samples / converted.sample_rate
                    yield converted.to_ndarray().T, converted.sample_rate
    except av.FFmpegError as error:
        raise TaaeInputError(
            f"{name}: cannot be read as audio ({one_line(error)}); it is damaged, cut short, or in an unsupported "
            "format: copy or download it again, or convert it first, for example with ffmpeg"
        ) from error
    if seconds < promised - TOLERANCE:
        raise TaaeInputError(
            f"{name}: is truncated (it promises {promised:.1f} s and holds {seconds:.1f} s); copy or download it again"
        )


def _promised_seconds(container) -> float:  # noqa: ANN001  # of a package that may not be installed
    """Returns the length of the audio according to the file's header; 0 if the header has none."""
    stream = container.streams.best("audio")
    if set(container.format.name.split(",")) & WITHOUT_LENGTH:
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    # The file's length is that of its longest track, which may be video.
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def is_joined_mp4(content: BinaryIO) -> bool:
    """Returns whether a file consists of several joined MP4 files or the like, of which FFmpeg reads only the first.

    Joined files have two indices. A fragmented file may repeat its index too.
    """
    size, position = content.seek(0, io.SEEK_END), 0
    kinds: list[bytes] = []
    while position < size and len(head := read_at(content, position, 16)) == 16:
        length, kind = struct.unpack(">I4s", head[:8])
        if not kinds and kind != b"ftyp":
            return False
        kinds.append(kind)
        length = struct.unpack(">Q", head[8:])[0] if length == 1 else length
        if length < 8:  # as long as the file
            break
        position += length
    return kinds.count(b"moov") > 1 and b"moof" not in kinds
