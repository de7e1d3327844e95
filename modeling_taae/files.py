"""Bytes and JSON in and out: standard streams and pipes are files, and targets are replaced in one step."""

import io
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import TaaeInputError, one_line

STANDARD_STREAM = "-"


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


def search_directory(root: Path, suffixes: frozenset[str] | None, output: str | None = None) -> Iterator[Path]:
    """Files below a folder, however deep and through links, with one of these suffixes, in no particular order.

    Args:
        root: the folder.
        suffixes: in lower case; None for all files.
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
            if (suffixes is None or path.suffix.lower() in suffixes) and not path.name.startswith("."):
                yield path


def read_json(path: Path) -> dict:
    """A JSON file's content, empty if there is none.

    Raises:
        TaaeInputError: if it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise TaaeInputError(f"{path}: is damaged ({one_line(error)}); choose a new folder with -o") from error
    return content if isinstance(content, dict) else {}


def as_json(content: dict) -> bytes:
    """A dictionary as the content of a file for programs and people."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
