"""Splits a sound file into pieces that libsndfile reads completely.

libsndfile stops at the length in a file's first header, or at an estimate if there is none. It silently reads only a
part of joined MP3 files, chained Ogg streams, or a WAV file whose header was never finished. This module finds each
piece's beginning and end from the structure of the file, and replaces headers with a missing or wrong length. Decoding
the samples is left to libsndfile.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import TaaeInputError
from .containers import ENDS, parts_of, without_tags
from .mpeg import LONGEST_SEARCH, mpeg_pieces
from .window import Window, read_at

# An Ogg page: capture pattern, version, flags, position in samples, serial number, page number, checksum, segments.
OGG_PAGE = struct.Struct("<4sBBqIIIB")
OGG_MAGIC, OGG_BEGINS, OGG_ENDS, OGG_CHECKSUM = b"OggS", 2, 4, slice(22, 26)
# A FLAC file begins with its only block of stream information.
FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.S)
CHUNK = struct.Struct("<4sI")
# Programs that write WAV into a pipe cannot know the size yet, and write this size or a larger one.
UNKNOWN_SIZE = 0x7FFF0000
# Tags that programs append to any sound file.
APPENDED_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICS", b"3DI")
# Seconds of samples beyond the size in a WAV header that count as padding; more are read as audio.
WAV_TOLERANCE = 0.2
SCAN_LENGTH = 1 << 20


@dataclass
class Piece:
    """A part of a file that is a complete sound file.

    Args:
        content: the bytes.
        promises: whether the header's number of samples is exact rather than an estimate.
        samples: minimum number of samples.
        counted: the bytes with a header that gives their number, for readers that expect too few samples.
    """

    content: Window
    promises: bool = True
    samples: int = 0
    counted: Window | None = None


def pieces(content: BinaryIO, name: str) -> list[Piece]:
    """Splits an open, seekable file into pieces; a file of another format is a single piece.

    Raises:
        TaaeInputError: if the file ends in the middle of a piece.
    """
    size = content.seek(0, io.SEEK_END)
    content.seek(0)
    beginning = content.read(12)
    if beginning.startswith(OGG_MAGIC):
        return _ogg_chains(content, size, name)
    if beginning.startswith(b"fLaC"):
        starts = [*_flac_starts(content), without_tags(content, size)]
        return [Piece(Window(content, *ends)) for ends in zip(starts, starts[1:], strict=False)]
    if beginning[:4] in (b"RIFF", b"RF64") and beginning[8:] == b"WAVE":
        return list(_wav_pieces(content, size, name))
    if parts := parts_of(content, size, name):
        return [Piece(Window(content, *part)) for part in parts]
    return _mpeg(content, name) or [Piece(Window(content, 0, size))]


def hidden_mpeg(content: BinaryIO, name: str) -> list[Piece]:
    """Finds MP3 that begins within a frame, as in recordings of live streams, or inside another format.

    Raises:
        TaaeInputError: if it ends within a frame.
    """
    return _mpeg(content, name, search=LONGEST_SEARCH)


def _mpeg(content: BinaryIO, name: str, search: int = 0) -> list[Piece]:
    found = []
    for part in mpeg_pieces(content, name, search):
        whole = Window(content, part.start, part.end, part.header if part.counted else part.muted)
        counted = None if part.counted or not part.header else Window(content, part.start, part.end, part.header)
        found.append(Piece(whole, False, 0 if part.counted else part.frames * part.first.samples, counted))
    return found


def _ogg_chains(content: BinaryIO, size: int, name: str) -> list[Piece]:
    """Returns the links of a chain of Ogg streams.

    A missing end mark is no error, because recorders of live streams write none. A file that ends within a page is
    truncated.
    """
    position, in_header, starts, last_pages = 0, False, [0], [(0, 0)]
    while position < size:
        header = read_at(content, position, OGG_PAGE.size)
        if not header.startswith(OGG_MAGIC):
            if (position := _find(content, OGG_MAGIC, position)) < 0:
                break
            continue
        segments = content.read(header[-1]) if len(header) == OGG_PAGE.size else b""
        end = position + OGG_PAGE.size + len(segments) + sum(segments)
        if len(header) < OGG_PAGE.size or len(segments) < header[-1] or end > size:
            raise TaaeInputError(f"{name}: is truncated (it ends within an Ogg page); copy or download it again")
        begins = bool(header[5] & OGG_BEGINS)
        if begins and not in_header and position:
            starts.append(position)
            last_pages.append((position, end))
        last_pages[-1], in_header, position = (position, end), begins, end
    return [
        Piece(Window(content, start, last[0], trailer=_marked_end(read_at(content, last[0], last[1] - last[0]))), False)
        for start, last in zip(starts, last_pages, strict=True)
    ]


def _marked_end(page: bytes) -> bytes:
    """Marks an Ogg page as the last of its stream; without the mark libsndfile rejects Opus as malformed."""
    if not page or page[5] & OGG_ENDS:
        return page
    marked = bytearray(page)
    marked[5] |= OGG_ENDS
    marked[OGG_CHECKSUM] = bytes(4)
    marked[OGG_CHECKSUM] = ogg_checksum(marked).to_bytes(4, "little")
    return bytes(marked)


def ogg_checksum(page: bytes | bytearray) -> int:
    """Returns the CRC-32 of an Ogg page whose checksum field is zero: most significant bit first, not inverted."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _flac_starts(content: BinaryIO) -> Iterator[int]:
    """Yields the position of each of several joined FLAC files."""
    content.seek(0)
    position, kept = 0, b""
    while block := content.read(SCAN_LENGTH):
        data = kept + block
        yield from (position - len(kept) + match.start() for match in FLAC_START.finditer(data))
        kept, position = data[-7:], position + len(block)


def _find(content: BinaryIO, pattern: bytes, position: int) -> int:
    """Returns the next position of a pattern, -1 if there is none."""
    content.seek(position)
    while block := content.read(SCAN_LENGTH):
        if (found := block.find(pattern)) >= 0:
            return position + found
        if len(block) < SCAN_LENGTH:
            return -1
        position += len(block) - len(pattern)
        content.seek(position)
    return -1


@dataclass
class _Wav:
    """The needed chunks of a WAV file: `fmt ` as bytes, and the position of the samples."""

    format_chunk: bytes = b""
    data_start: int = 0
    data_size: int = 0
    sizes64: bytes = b""  # the ds64 chunk of RF64, which holds sizes that do not fit 32 bits

    @property
    def bytes_per_second(self) -> int:
        """Bytes per second of samples, according to the header."""
        return struct.unpack_from("<I", self.format_chunk, 16)[0] if len(self.format_chunk) >= 20 else 0


def _wav_pieces(content: BinaryIO, size: int, name: str, start: int = 0) -> Iterator[Piece]:
    """Yields joined WAV files one by one, including samples that a header does not count.

    Programs write the header before the samples, and rewrite it with their number at the end. If the second write did
    not happen, the number is 0 or too small. Beyond 4 GiB only its lowest 32 bits remain.

    Raises:
        TaaeInputError: if a file of another kind follows.
    """
    wav = _read_wav(content, start, size)
    if wav is None:
        yield Piece(Window(content, start, size))
        return
    data_end = wav.data_start + wav.data_size
    following = _after_chunks(content, data_end, size)
    if following is not None:  # well-formed chunks follow, then the end or another file
        yield Piece(Window(content, start, following))
        if following < size:
            yield from _wav_pieces(content, size, name, following)
        return
    follows = read_at(content, data_end, 8)
    if follows.startswith((OGG_MAGIC, b"fLaC", *(magic[:8] for magic in ENDS))):
        raise TaaeInputError(f"{name}: is several files of different formats, joined; split them")
    tag_follows = follows.startswith(APPENDED_TAGS)
    left_over = size - data_end
    if data_end >= size or tag_follows or left_over <= WAV_TOLERANCE * wav.bytes_per_second:
        yield Piece(Window(content, start, size))
    else:
        yield Piece(Window(content, wav.data_start, size, finished_header(wav.format_chunk, size - wav.data_start)))


def finished_header(format_chunk: bytes, data_size: int) -> bytes:
    """Returns the header of a WAV file up to its samples, as RF64, which has room for any size.

    Args:
        format_chunk: the chunk `fmt `, with name and size.
        data_size: the size of the samples in bytes.
    """
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, 4 + 36 + len(format_chunk) + 8 + data_size, data_size, 0, 0)
    full = 0xFFFFFFFF
    return CHUNK.pack(b"RF64", full) + b"WAVE" + sizes + format_chunk + CHUNK.pack(b"data", full)


def _read_wav(content: BinaryIO, start: int, size: int) -> _Wav | None:
    """Reads the chunks up to the samples; None if the file is damaged, which is left to libsndfile to report."""
    wav, position = _Wav(), start + 12
    while len(head := read_at(content, position, CHUNK.size)) == CHUNK.size:
        chunk, length = CHUNK.unpack(head)
        if chunk == b"data":
            wav.data_start, wav.data_size = position + CHUNK.size, length
            if wav.sizes64 and length == 0xFFFFFFFF:
                wav.data_size = struct.unpack_from("<Q", wav.sizes64, 8)[0]
            elif length >= UNKNOWN_SIZE and size <= wav.data_start + length:
                wav.data_size = size - wav.data_start  # from a pipe
            return wav if wav.format_chunk else None
        if chunk == b"fmt ":
            wav.format_chunk = head + read_at(content, position + CHUNK.size, min(length, 1 << 12))
        elif chunk == b"ds64" and length >= 28:
            wav.sizes64 = read_at(content, position + CHUNK.size, 28)
        position += CHUNK.size + length + length % 2
    return None


def _after_chunks(content: BinaryIO, position: int, size: int) -> int | None:
    """Returns where the chunks after the samples end: at the end of the file or at the next file.

    Returns None if no well-formed chunks follow; then the bytes are samples, a tag, or unknown.
    """
    while position < size:
        position += position % 2 and read_at(content, position, 1) == b"\0"
        if position >= size:
            break
        head = read_at(content, position, 12)
        if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
            return position
        if len(head) < CHUNK.size or not re.fullmatch(rb"[ -~]{4}", head[:4]):
            return None
        length = CHUNK.unpack(head[: CHUNK.size])[1]
        if position + CHUNK.size + length > size:
            return None
        position += CHUNK.size + length
    return size if position >= size else None
