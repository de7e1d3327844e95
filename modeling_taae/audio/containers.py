"""Finds the end of sound files in rarer formats. libsndfile ignores the bytes behind it, or reads them as samples.

AIFF, AU, CAF, W64, VOC and NIST SPHERE have a header with a length. A file may consist of several joined files, its
header may be unfinished, or it may be cut off.
"""

import re
import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from ..errors import TaaeInputError
from .window import read_at

AU_MAGIC, W64_MAGIC = b".snd", b"riff\x2e\x91\xcf\x11"
VOC_MAGIC, NIST_MAGIC = b"Creative Voice File\x1a", b"NIST_1A\n"
UNKNOWN = 0xFFFFFFFF  # the size in AU files from a pipe
# In these formats, libsndfile ignores the header's length and reads samples up to the end of the file.
READ_ON = (W64_MAGIC, NIST_MAGIC)
# Fewer bytes behind the end count as padding. A last chunk may lack its own: W64 pads chunks to 8 bytes.
PADDING, CHUNK_PADDING = 1 << 12, 8
CHUNK_NAME = re.compile(rb"[ -~\xa9]{4}")
NIST_FIELD = re.compile(rb"(sample_count|sample_n_bytes|channel_count) -i (\d+)")
# Tags that programs append to any sound file: ID3 of version 1, and APE, whose footer has its size.
ID3_TAG, ID3_SIZE, APE_TAG, APE_SIZE = b"TAG", 128, b"APETAGEX", 32


# The function of a file, the start of one of its parts and its size, which returns the end of the part.
End = Callable[[BinaryIO, int, int], int]


class Part(NamedTuple):
    """A range of a file that is a complete sound file; `header` replaces its header if not empty."""

    start: int
    end: int
    header: bytes = b""


def without_tags(content: BinaryIO, size: int) -> int:
    """Returns the position at which a file ends without appended tags."""
    while size > 0:
        footer = read_at(content, max(size - APE_SIZE, 0), APE_SIZE)
        if read_at(content, max(size - ID3_SIZE, 0), 3) == ID3_TAG:
            size -= ID3_SIZE
        elif footer.startswith(APE_TAG):
            length, _, flags = struct.unpack_from("<III", footer, 12)
            size -= max(length, APE_SIZE) + APE_SIZE * (flags >> 31)
        else:
            return size
    return 0


def parts_of(content: BinaryIO, size: int, name: str) -> list[Part]:
    """Finds the joined files that a file in one of these formats consists of; none if it is in another format.

    Args:
        content: the open file.
        size: its size in bytes.
        name: name of the file in error messages.

    Raises:
        TaaeInputError: if it ends early, or has bytes behind the end in its header.
    """
    beginning = read_at(content, 0, len(VOC_MAGIC))
    kind = next((magic for magic in ENDS if beginning.startswith(magic)), None)
    if kind is None:
        return []
    parts: list[Part] = []
    start, rest = 0, without_tags(content, size)
    while start < size:
        end = ENDS[kind](content, start, size)
        if end > size + CHUNK_PADDING:
            raise TaaeInputError(f"{name}: is truncated (it promises more than is there); copy or download it again")
        end += end < size and end % 2 and read_at(content, end, 1) == b"\0"
        is_joined = end > start and read_at(content, end, len(kind)) == kind
        if not is_joined and rest - end > PADDING and kind not in READ_ON:
            if kind != AU_MAGIC:
                raise TaaeInputError(
                    f"{name}: holds {rest - end:,} bytes behind the end in its header, so the header was never "
                    "finished, or something was appended; convert it, for example with ffmpeg"
                )
            header = read_at(content, start, 8) + struct.pack(">I", UNKNOWN)
            return [*parts, Part(start + len(header), size, header)]
        parts.append(Part(start, end if is_joined or rest <= end else size))
        start = end if is_joined else size
    return parts


def _end_of_chunks(head: struct.Struct, first: int, samples: bytes, alignment: int) -> End:
    """Returns the function that finds the end of a file of chunks, each a name, a length and its content.

    Args:
        head: the form of a chunk's name and length.
        first: the position of the first chunk.
        samples: the name of the chunk with the samples, which may be cut off.
        alignment: the number of bytes to a multiple of which chunks are padded.
    """

    def end(content: BinaryIO, start: int, size: int) -> int:
        magic, position = read_at(content, start, 4), start + first
        while position < size:
            beginning = read_at(content, position, head.size)
            if len(beginning) < head.size or beginning.startswith(magic) or not CHUNK_NAME.fullmatch(beginning[:4]):
                break
            name, length = head.unpack(beginning)
            if length < 0:  # unknown, which only the last chunk may have
                return size
            if position + head.size + length > size and name != samples:
                break  # no chunk
            position += head.size + length + -length % alignment
        return position

    return end


def _au_end(content: BinaryIO, start: int, size: int) -> int:
    offset, length = struct.unpack(">II", read_at(content, start + 4, 8).ljust(8, b"\0"))
    return size if length == UNKNOWN else start + offset + length


def _w64_end(content: BinaryIO, start: int, size: int) -> int:
    return start + struct.unpack("<Q", read_at(content, start + 16, 8).ljust(8, b"\0"))[0]


def _voc_end(content: BinaryIO, start: int, size: int) -> int:
    position = start + struct.unpack("<H", read_at(content, start + 20, 2).ljust(2, b"\0"))[0]
    while position < size:
        head = read_at(content, position, 4)
        if len(head) < 4 or head[0] == 0:
            return position + 1
        position += 4 + int.from_bytes(head[1:], "little")
    return position


def _nist_end(content: BinaryIO, start: int, size: int) -> int:
    header = read_at(content, start, 1 << 10)
    told = {field: int(number) for field, number in NIST_FIELD.findall(header)}
    length = re.match(rb"NIST_1A\n *(\d+)\n", header)
    if length is None or len(told) < 3 or b"shorten" in header:
        return size
    return start + int(length[1]) + told[b"sample_count"] * told[b"channel_count"] * told[b"sample_n_bytes"]


# Functions that return the end of a file according to its header, by the file's first bytes.
ENDS: dict[bytes, End] = {
    b"FORM": _end_of_chunks(struct.Struct(">4sI"), 12, b"SSND", 2),
    AU_MAGIC: _au_end,
    b"caff": _end_of_chunks(struct.Struct(">4sq"), 8, b"data", 1),
    W64_MAGIC: _w64_end,
    VOC_MAGIC: _voc_end,
    NIST_MAGIC: _nist_end,
}
