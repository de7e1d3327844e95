"""A range of a file as a separate file."""

import io
from typing import BinaryIO


def read_at(content: BinaryIO, position: int, length: int) -> bytes:
    """Returns `length` bytes from a position on, fewer at the end."""
    content.seek(position)
    return content.read(length)


class Window(io.RawIOBase):
    """A range of a file, with another header in front and another end behind it, as a separate file.

    libsndfile calls it from C, where an exception would be printed and lost. An error is therefore stored in `error`,
    and later reads return nothing, as at the end of a file.
    """

    def __init__(self, content: BinaryIO, start: int, end: int, header: bytes = b"", trailer: bytes = b""):
        self.content, self.start, self.header, self.trailer = content, start, header, trailer
        self.trailer_start = len(header) + max(end - start, 0)
        self.length, self.position = self.trailer_start + len(trailer), 0
        self.error: BaseException | None = None

    def seekable(self) -> bool:
        """Returns true."""
        return True

    def tell(self) -> int:
        """Returns the position in the window."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position in the window, clamped to its ends."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = min(max(base + offset, 0), self.length)
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes; nothing after an error."""
        end = self.length if size < 0 else min(self.position + size, self.length)
        data = self.header[self.position : end]
        position, stop = self.position + len(data), min(end, self.trailer_start)
        try:
            if self.error is None and position < stop:
                self.content.seek(self.start + position - len(self.header))
                data += self.content.read(stop - position)
        except BaseException as error:  # an interrupt as well, which would be lost in C
            self.error = error
        if self.error is None and end > self.trailer_start:
            data += self.trailer[max(self.position - self.trailer_start, 0) : end - self.trailer_start]
        self.position += len(data)
        return data

    def readinto(self, buffer) -> int:  # noqa: ANN001  # a buffer of any kind
        """Reads into a buffer and returns the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
