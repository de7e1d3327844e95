"""Finds pickled data by its content, because unpickling a file runs any code that its author put into it.

Pickles occur in archives (`torch.save`, `.pt2`, `.npz`), in compressed files (`joblib`) and in NumPy arrays of objects,
under any name. Safetensors, Parquet and JSON contain none.
"""

import bz2
import io
import json
import lzma
import pickletools
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Suffixes that mean pickled data by convention, whatever the content.
SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# Instructions with which a pickle names or calls code.
CALLS = frozenset({"BUILD", "GLOBAL", "INST", "NEWOBJ", "NEWOBJ_EX", "OBJ", "REDUCE", "STACK_GLOBAL"})
PROTOCOLS = range(2, 6)  # these begin with their number; earlier protocols are plain text
# The depth to which archives and compressed data are opened, and the number of bytes that are read of each.
DEPTH, LARGEST = 3, 64 * 2**20
COMPRESSED: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    b"\x78": zlib.decompressobj,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
}
ARRAY = b"\x93NUMPY"


def is_pickled(path: Path) -> bool:
    """Returns whether a file is, or contains, pickled data."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with open(path, "rb") as file:
        return holds_pickle(file)


def holds_pickle(file: BinaryIO, depth: int = DEPTH) -> bool:
    """Returns whether an open, seekable file is, or contains, pickled data."""
    start = file.read(512)
    file.seek(0)
    if is_safetensors(file, start):
        return False
    if start.startswith(ARRAY):
        return b"'|O'" in start  # an array of objects, or one with a field of objects
    if is_pickle(file, start):
        return True
    return depth > 0 and any(holds_pickle(io.BytesIO(content), depth - 1) for content in contents(file, start))


def is_safetensors(file: BinaryIO, start: bytes) -> bool:
    """Returns whether a file has the header of safetensors, whose first byte is arbitrary."""
    length = int.from_bytes(start[:8], "little")
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if start[8:9] != b"{" or length > size - 8:
        return False
    try:
        json.loads(file.read(8 + length)[8:])
    except ValueError:
        return False
    finally:
        file.seek(0)
    return True


def is_pickle(file: BinaryIO, start: bytes) -> bool:
    """Returns whether a file is a pickle, by its first bytes or, for early protocols, by its instructions."""
    if start[:1] == b"\x80" and len(start) > 1 and start[1] in PROTOCOLS:
        return True
    try:
        pickletools.dis(
            file, io.StringIO()
        )  # checks the stack, so that text which looks like instructions is recognised
        ended = not file.read(1)
        file.seek(0)
        return ended and bool(CALLS & {operation.name for operation, _, _ in pickletools.genops(file)})
    # Other files fail with errors of many types.
    except Exception:
        return False
    finally:
        file.seek(0)


def contents(file: BinaryIO, start: bytes) -> Iterator[bytes]:
    """Yields the beginnings of what an archive or a compressed file contains; nothing for other files."""
    for magic, decompressor in COMPRESSED.items():
        if start.startswith(magic):
            try:
                yield decompressor().decompress(file.read(LARGEST), LARGEST)
            except (OSError, zlib.error, lzma.LZMAError):
                return
            finally:
                file.seek(0)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    with archive.open(member) as opened:
                        yield opened.read(LARGEST)
        elif start[257:262] == b"ustar":
            with tarfile.open(fileobj=file) as tar:
                for entry in tar:
                    if entry.isfile() and (extracted := tar.extractfile(entry)) is not None:
                        yield extracted.read(LARGEST)
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError):
        return
