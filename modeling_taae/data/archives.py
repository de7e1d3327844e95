"""Reads WebDataset archives: tar files in which members with one name and different suffixes form a sample."""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ..audio_io import AUDIO_SUFFIXES
from ..errors import one_line
from .readers import Reader, until_damage
from .row import Row, row_id
from .texts import LARGEST_TEXT, told_by

# The part of a name before its first dot is the sample's key; the part after it is the kind of member.
MEMBER_NAME = re.compile(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]+)")
ARCHIVE_NAME = re.compile(r".*\.(tar|tgz|tar\.(gz|bz2|xz))", re.IGNORECASE)
# First bytes of compressed files.
COMPRESSIONS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
BLOCK = 1 << 20
# Limits on sizes, because a file's own figures are not trusted: in bytes, and in bytes per compressed byte.
LARGEST_RECORDING, LARGEST_SPARSE, LARGEST_EXPANSION, LEAST_LIMIT = 1 << 31, 1 << 26, 64, 1 << 28


class Archives(Reader):
    """Reads WebDataset archives, one unit each.

    Reads a sample's audio, its texts and the fields of its .json; other members are ignored. The members of a sample
    need not be adjacent.

    Args:
        files: the archives' full paths, with their names.
        id_column: see [`Corpus`].
        largest: the size in bytes of the largest recording that is read.
    """

    def __init__(self, files: dict[Path, str], id_column: str | None, largest: int = LARGEST_RECORDING):
        self.files, self.id_column, self.largest = list(files.items()), id_column, largest

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, unit: int) -> Iterator[Row]:
        """Yields the samples of an archive, in the order of their first members."""
        file, name = self.files[unit]
        return until_damage(self._rows(file, name), name)

    def _rows(self, file: Path, name: str) -> Iterator[Row]:
        if file.exists() and not file.is_file():  # reading a pipe could wait forever
            raise tarfile.TarError("it is no regular file")
        with plain_archive(file) as (content, damage), tarfile.open(fileobj=content, mode="r:") as archive:
            samples, cut = samples_of(archive)
            for key, members in samples.items():
                audio, columns, problem = self._read(archive, members)
                # Keys are often unique only within their archive.
                identifier = row_id(columns, self.id_column) or f"{name}/{key}"
                yield Row(identifier, name, audio, columns, problem)
            if error := damage or cut:
                raise error

    def _read(self, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> tuple[bytes | None, dict, str]:
        """Returns audio, columns and a problem, empty if there is none, from a sample's members by their kind."""
        audio: bytes | None = None
        columns: dict[str, Any] = {}
        problem = ""
        for kind, member in members.items():
            suffix = kind.lower().rsplit(".", 1)[-1]
            is_audio = f".{suffix}" in AUDIO_SUFFIXES
            limit = self.largest if is_audio else LARGEST_TEXT
            if member.size > (min(limit, LARGEST_SPARSE) if member.issparse() else limit):
                problem = f"too large: its .{kind} is said to hold {member.size:,} bytes"
            elif is_audio and audio is not None:
                problem = "bad audio: there are two recordings in its sample, whose name ends at the first dot"
            elif is_audio:
                audio = read_member(archive, member)
            else:
                try:
                    columns |= told_by(suffix, read_member(archive, member))
                except ValueError as error:
                    problem = f"bad text: its .json holds no object ({one_line(error)})"
        return audio, columns, problem or ("" if audio is not None else "missing: there is no audio in its sample")


def is_archive(file: Path) -> bool:
    """Returns whether a file has the suffix of a tar file, compressed or not."""
    return ARCHIVE_NAME.fullmatch(file.name) is not None


def samples_of(archive: tarfile.TarFile) -> tuple[dict[str, dict[str, tarfile.TarInfo]], Exception | None]:
    """Returns the members of each sample by their kind, in the archive's order, and the error that ended the reading.

    Only regular files count. If two members have the same name, the last one counts.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        for member in archive:
            match = MEMBER_NAME.fullmatch(member.name)
            if match is not None and member.isfile():
                samples.setdefault(match[1], {})[match[2]] = member
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        return samples, error
    return samples, None


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns the content of a member.

    Raises:
        tarfile.ReadError: if the archive ends within the member.
    """
    file = cast(IO[bytes] | None, archive.fileobj)
    if file is not None and not member.issparse() and member.offset_data + member.size > file.seek(0, os.SEEK_END):
        raise tarfile.ReadError("unexpected end of data")
    return cast(IO[bytes], archive.extractfile(member)).read()


@contextmanager
def plain_archive(file: Path, least_limit: int = LEAST_LIMIT) -> Iterator[tuple[IO[bytes], Exception | None]]:
    """Opens an archive; expands a compressed one into a temporary file, up to the first damage.

    Args:
        file: the archive.
        least_limit: the bytes to which any archive may expand.

    Yields:
        The open file, and the error that ended the expansion, None if there was none.

    Raises:
        tarfile.TarError: if it expands to more bytes than is plausible for speech.
    """
    with open(file, "rb") as content:
        beginning = content.read(6)
        content.seek(0)
        opener = next((opener for mark, opener in COMPRESSIONS.items() if beginning.startswith(mark)), None)
        if opener is None:
            yield content, None
            return
        limit = max(least_limit, LARGEST_EXPANSION * file.stat().st_size)
        damage: Exception | None = None
        with tempfile.TemporaryFile() as plain, opener(content) as packed:
            try:
                while block := packed.read1(BLOCK):  # read() would withhold the bytes before the damage
                    plain.write(block)
                    if plain.tell() > limit:
                        raise tarfile.TarError(f"its {file.stat().st_size:,} bytes expand to more than {limit:,}")
            except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
                damage = error
            plain.seek(0)
            yield plain, damage
