"""Walks the frames of MPEG audio (MP3 and its older layers) to find a file's actual content, whatever its header says.

A file may be several files joined. A part that counts its frames in a Xing, Info or VBRI header keeps that header,
which also gives the padding of its first and last frame. A part without one gets a new header; otherwise a decoder
would estimate the length from the bit rate of the first frame.
"""

import io
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import BinaryIO, NamedTuple

from ..errors import TaaeInputError

# kbit/s by (is MPEG 1, layer) and index.
BIT_RATES = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
BIT_RATES[False, 3] = BIT_RATES[False, 2]
SAMPLING_RATES = (44_100, 48_000, 32_000)  # of MPEG 1; half of it in MPEG 2, a quarter in 2.5
# Seconds by which a header's number of frames may be off; if more are missing, the file is truncated.
TOLERANCE = 0.2
# Bytes within which the first whole frame follows if a recording of a live stream begins within a frame.
LONGEST_SEARCH = 1 << 14
CONFIRMING = 3  # consecutive frames that distinguish audio from other bytes
XING = (b"Xing", b"Info")  # for a variable and for a constant bit rate
HAS_FRAMES, HAS_BYTES = 1, 2  # flags of that header


class Frame(NamedTuple):
    """The header of a frame: its length in bytes, its samples, their rate, and the kind that a file's frames share."""

    length: int
    samples: int
    rate: int
    kind: tuple[int, int, int, bool]  # version, layer, sampling rate, mono
    header: bytes


def parse_frame(header: bytes) -> Frame | None:
    """Parses the four bytes of a frame's header; None if they are no header, or one of free format without a length."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bit_rate_index, rate_index, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bit_rate_index in (0, 15) or rate_index == 3:
        return None
    is_first = version == 3
    bits = 1000 * BIT_RATES[is_first, layer][bit_rate_index]
    rate = SAMPLING_RATES[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and not is_first else 1152
    length = (12 * bits // rate + padding) * 4 if layer == 1 else samples // 8 * bits // rate + padding
    return Frame(length, samples, rate, (version, layer, rate, header[3] >> 6 == 3), header)


@dataclass
class MpegPiece:
    """Consecutive frames of one kind: a complete file once `header` is put in front.

    Args:
        start: position of the first byte to keep.
        end: position after the last byte to keep.
        first: the first frame.
        counted: number of frames in the piece's own header; None if it has no such header.
        ends: position of each frame's end, without that header.
        header: the bytes to put in front, with the number of frames; empty if the piece has its own header.
        muted: the same bytes without the number of frames.
    """

    start: int
    end: int
    first: Frame
    counted: int | None = None
    ends: array = field(default_factory=lambda: array("Q"))
    header: bytes = b""
    muted: bytes = b""

    @property
    def frames(self) -> int:
        """Frames found, without the header."""
        return len(self.ends)


def mpeg_pieces(content: BinaryIO, name: str, search: int = 0) -> list[MpegPiece]:
    """Finds the pieces of a file of MPEG audio; none if it is no such file.

    Args:
        content: the open file.
        name: the file's name in error messages.
        search: number of other bytes that may precede the first frame.

    Raises:
        TaaeInputError: if it ends within a frame, or holds fewer frames than its header says.
    """
    begin = _find_frame(content, _skip_tags(content), search)
    if begin is None:
        return []
    found = [split for piece in _walk(content, begin, name) for split in _split_at_promise(piece)]
    for number, piece in enumerate(found):
        if piece.counted is not None:
            # Junk may separate the frames that the header counts.
            parts = takewhile(lambda part: part.counted is None, found[number + 1 :])
            held = piece.frames + sum(part.frames for part in parts)
            if (piece.counted - held) * piece.first.samples > TOLERANCE * piece.first.rate:
                raise TaaeInputError(
                    f"{name}: is truncated (it promises {piece.counted:,} frames and holds {held:,}); copy or download "
                    "it again"
                )
        _mend_header(content, piece)
    return [piece for piece in found if piece.frames]


def _mend_header(content: BinaryIO, piece: MpegPiece) -> None:
    """Makes a header for a piece that has none, and corrects the size in bytes in an existing header."""
    if piece.counted is None:
        if piece.first.kind[1] == 3:
            piece.muted = _muted_start(content, piece)
            piece.header = counting_frame(piece.first, piece.frames) + piece.muted
        return
    content.seek(piece.start)
    header = bytearray(content.read(piece.first.length))
    offset = _xing_offset(piece.first)
    if header[offset : offset + 4] in XING and header[offset + 7] & HAS_BYTES:
        # Decoders print warnings if the size is wrong, as it is when a tag follows.
        struct.pack_into(">I", header, offset + 12, min(piece.end - piece.start, 0xFFFFFFFF))
        piece.header, piece.start = bytes(header), piece.start + piece.first.length


def _skip_tags(content: BinaryIO, position: int = 0) -> int:
    """Returns the position after the ID3 tags that begin at a position."""
    while True:
        content.seek(position)
        head = content.read(10)
        if len(head) < 10 or not head.startswith(b"ID3"):
            return position
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        position += 10 + size + (10 if head[5] & 0x10 else 0)


def _frame_at(content: BinaryIO, position: int) -> Frame | None:
    content.seek(position)
    return parse_frame(content.read(4))


def _find_frame(content: BinaryIO, position: int, search: int) -> int | None:
    """Returns where frames begin: several of one kind in a row, or the last ones; None if there are none.

    The search starts at `position` and covers `search` bytes, not counting the zeros with which encoders pad tags.
    """
    content.seek(position)
    data = content.read(search + LONGEST_SEARCH)
    zeros = len(data) - len(data.lstrip(b"\0"))
    for offset in range(zeros, min(zeros + search + 1, len(data))):
        if data[offset] == 0xFF and _are_frames(content, position + offset):
            return position + offset
    return None


def _are_frames(content: BinaryIO, position: int) -> bool:
    size = content.seek(0, io.SEEK_END)
    kind = None
    for number in range(CONFIRMING):
        frame = _frame_at(content, position)
        if frame is None or kind not in (None, frame.kind):
            return number > 1 and position >= size - 128  # a file of two frames and a tag
        kind, position = frame.kind, position + frame.length
        if position >= size:
            return number > 0
    return True


def _walk(content: BinaryIO, begin: int, name: str) -> Iterator[MpegPiece]:
    """Yields the pieces in order; a tag, junk, another kind of frame or a Xing or VBRI header begins the next one."""
    size, reader = content.seek(0, io.SEEK_END), _Reader(content)
    position: int | None = begin
    piece: MpegPiece | None = None
    while position is not None and position < size:
        frame = parse_frame(reader.at(position, 4))
        count = None if frame is None else count_of(reader.at(position, min(frame.length, 200)), frame)
        if piece is not None and (frame is None or count is not None or frame.kind != piece.first.kind):
            yield piece
            piece = None
        if frame is None:
            position = _next_frame(reader, position, size)
            continue
        end = position + frame.length
        if end > size:
            if piece is None:  # two bytes of a tag that look like a frame
                return
            raise TaaeInputError(f"{name}: is truncated (it ends within a frame); copy or download it again")
        if count != 0:  # a header that counts 0 frames was never finished
            piece = piece or MpegPiece(position, end, frame, count)
            piece.end = end
            if count is None:
                piece.ends.append(end)
        position = end
    if piece is not None:
        yield piece


class _Reader:
    """Reads a few bytes at rising positions, with one read of the file per block."""

    def __init__(self, content: BinaryIO, block: int = 1 << 18):
        self.content, self.block = content, block
        self.start, self.data = 0, b""

    def at(self, position: int, length: int) -> bytes:
        """Returns up to `length` bytes at a position."""
        if not self.start <= position <= self.start + len(self.data) - length:
            self.content.seek(position)
            self.start, self.data = position, self.content.read(max(self.block, length))
        return self.data[position - self.start : position - self.start + length]


def _next_frame(reader: _Reader, position: int, size: int) -> int | None:
    """Returns where the next frames begin behind a tag or junk; None if there are no more."""
    position = _skip_tags(reader.content, position)
    while position < size:
        data = reader.at(position, min(1 << 16, size - position))
        offset = data.find(b"\xff")
        if offset < 0:
            position += len(data)
            continue
        position += offset
        if parse_frame(reader.at(position, 4)) is not None and _are_frames(reader.content, position):
            return position
        position += 1
    return None


def _xing_offset(frame: Frame) -> int:
    """Returns where the side information ends in a frame of layer III; a Xing header follows it."""
    is_first, mono = frame.kind[0] == 3, frame.kind[3]
    return 4 + ((17 if mono else 32) if is_first else (9 if mono else 17))


def count_of(data: bytes, frame: Frame) -> int | None:
    """Returns the number of frames in a Xing, Info or VBRI header; None if the frame is no such header."""
    if frame.kind[1] != 3:
        return None
    offset = _xing_offset(frame)
    if data[offset : offset + 4] in XING and len(data) >= offset + 12:
        flags, count = struct.unpack_from(">II", data, offset + 4)
        return count if flags & HAS_FRAMES else None
    if data[36:40] == b"VBRI" and len(data) >= 54:
        return struct.unpack_from(">I", data, 50)[0]
    return None


def _muted_start(content: BinaryIO, piece: MpegPiece) -> bytes:
    """Silences the first frames of a piece that need bytes of earlier frames, and moves the start behind them.

    A decoder cannot decode them. Their bytes for later frames are kept.
    """
    muted, available = b"", 0
    for end in piece.ends:
        content.seek(piece.start)
        data = content.read(end - piece.start)
        side_end = _xing_offset(piece.first)
        has_checksum = not data[1] & 1
        needed = data[4] << 1 | data[5] >> 7 if piece.first.kind[0] == 3 else data[4]
        if has_checksum or needed <= available:
            break
        muted += data[:4].ljust(side_end, b"\0") + data[side_end:]
        available += len(data) - side_end
        piece.start = end
    return muted


def _split_at_promise(piece: MpegPiece) -> list[MpegPiece]:
    """Splits off the frames beyond the header's number: they are another file without a header."""
    beyond = 0 if piece.counted is None else piece.frames - piece.counted
    if not piece.counted or beyond * piece.first.samples <= TOLERANCE * piece.first.rate:
        return [piece]
    middle = piece.ends[piece.counted - 1]
    return [
        MpegPiece(piece.start, middle, piece.first, piece.counted, piece.ends[: piece.counted]),
        MpegPiece(middle, piece.end, piece.first, None, piece.ends[piece.counted :]),
    ]


def counting_frame(frame: Frame, frames: int) -> bytes:
    """Makes a header for a number of layer III frames: a silent frame that contains a Xing header."""
    offset = _xing_offset(frame)
    for index in range(1, 15):
        # Without padding or checksum, at the lowest bit rate that has room for the header.
        header = bytes([0xFF, frame.header[1] | 1, index << 4 | frame.header[2] & 0x0C, frame.header[3]])
        parsed = parse_frame(header)
        if parsed is not None and parsed.length >= offset + 12:
            xing = b"Xing" + struct.pack(">II", HAS_FRAMES, frames)
            return (header.ljust(offset, b"\0") + xing).ljust(parsed.length, b"\0")
    raise AssertionError("every layer III frame of 320 kbit/s or 160 kbit/s has room")
