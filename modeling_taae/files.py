"""Reads and writes bytes and JSON: handles standard streams and pipes like files, and replaces targets in one step."""

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import TaaeInputError, one_line

STANDARD_STREAM = "-"
# Seconds after which a temporary file counts as left behind. Its content is in memory before, so writing is quick.
LEFT_BEHIND = 3600


def is_standard_stream(path: str | Path) -> bool:
    """Returns whether a path is `-`, which stands for standard input or standard output."""
    return str(path) == STANDARD_STREAM


def display_name(path: str | Path) -> str:
    """Returns an input's name for messages."""
    return "standard input" if is_standard_stream(path) else str(path)


def standard_input() -> BinaryIO:
    """Returns standard input as a stream of bytes.

    Raises:
        TaaeInputError: if the process was started without one.
    """
    if sys.stdin is None:
        raise TaaeInputError("standard input: is closed; expected a file or a pipe, as in `taae encode - < speech.wav`")
    return sys.stdin.buffer


def standard_output() -> BinaryIO:
    """Returns standard output as a stream of bytes.

    Raises:
        TaaeInputError: if the process was started without one.
    """
    if sys.stdout is None:
        raise TaaeInputError("standard output: is closed; expected a file or a pipe, or another target with -o")
    return sys.stdout.buffer


def open_input(source: str | Path) -> BinaryIO:
    """Opens a file, a pipe or, for `-`, standard input for reading, always seekable.

    Raises:
        TaaeInputError: if it cannot be opened or has no bytes.
    """
    try:
        # The caller closes the file.
        file = io.BytesIO(standard_input().read()) if is_standard_stream(source) else open(source, "rb")
        if not file.seekable():
            file = io.BytesIO(file.read())
        empty = not file.read(1)
        file.seek(0)
    except OSError as error:
        reason = error.strerror or error
        raise TaaeInputError(f"{source}: cannot be read ({reason}); expected a file; check the path") from error
    if empty:
        raise TaaeInputError(f"{display_name(source)}: is empty (0 bytes); expected a file with content")
    return file


def read_bytes(source: str | Path) -> bytes:
    """Returns the content of a file or, for `-`, of standard input.

    Raises:
        TaaeInputError: if it cannot be read or has no bytes.
    """
    with open_input(source) as file:
        return file.read()


def write_bytes(target: str | Path, data: bytes) -> None:
    """Writes a file in one step, so that readers see the old content or the new one, never a part of it.

    Missing folders are made. `-` is standard output; devices and pipes are written to directly.

    Raises:
        TaaeInputError: if the target cannot be written.
    """
    if is_standard_stream(target):
        output = standard_output()
        output.write(data)
        output.flush()
        return
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            # Follow links: replace the file that a link points to, not the link.
            _replace(Path(os.path.realpath(path)), data)
    except OSError as error:
        # Making a folder below a file raises "File exists".
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        raise TaaeInputError(f"{target}: cannot be written ({reason}); choose another target with -o") from error


@contextmanager
def completed(folder: Path, last: str) -> Iterator[Path]:
    """Moves files into a folder once all of them are made; its other files stay.

    If the process is killed at any moment, the folder contains the earlier files, or the new files, or lacks `last`.

    Args:
        folder: the folder, created if missing; in case of an error, it is then removed.
        last: name of the file without which the folder counts as incomplete.

    Yields:
        The folder to make the files in.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
            yield Path(temporary)
            (folder / last).unlink(missing_ok=True)
            for file in sorted(Path(temporary).iterdir(), key=lambda file: (file.name == last, file.name)):
                file.replace(folder / file.name)
    except BaseException:
        if is_new:
            shutil.rmtree(folder)
        raise


def _replace(path: Path, data: bytes) -> None:
    is_there = path.exists()
    temporary = _temporary_file(path, 0o600 if is_there else 0o666)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        if is_there:  # a private file stays private
            temporary.chmod(path.stat().st_mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_file(path: Path, mode: int) -> Path:
    """Makes an empty file in the target's folder, because a rename is atomic only within one file system.

    Its name depends on the target's, so that a file left behind by a killed process is found and replaced.
    """
    own_name = path.with_name(f".{uuid.uuid5(uuid.NAMESPACE_URL, path.name).hex}.tmp")
    with suppress(FileNotFoundError):
        if time.time() - own_name.stat().st_mtime > LEFT_BEHIND:
            own_name.unlink()
    for temporary in (own_name, path.with_name(f".{uuid.uuid4().hex}.tmp")):
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        except FileExistsError:  # another process writes the same target
            continue
        return temporary
    raise AssertionError("a random name of 128 bits was taken")


def search_directory(root: Path, suffixes: frozenset[str] | None, output: str | None = None) -> Iterator[Path]:
    """Yields the files below a folder that have one of these suffixes, at any depth and through links, in no order.

    Args:
        root: the folder.
        suffixes: the suffixes in lower case; None for all files.
        output: a folder below it to leave out, because files of an earlier run are no input.

    Raises:
        TaaeInputError: if the folder or one below it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise TaaeInputError(
            f"{error.filename}: cannot be read ({error.strerror}); change its permissions, or name the other folders"
        ) from error

    seen = set() if output is None else {os.path.realpath(output)} - {os.path.realpath(root)}
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # links may form a loop
            below.clear()
            continue
        seen.add(place)
        below.sort()
        for path in (Path(folder, name) for name in names):
            # Hidden files are left out: on foreign disks macOS puts a ._speech.wav without audio beside each file.
            if (suffixes is None or path.suffix.lower() in suffixes) and not path.name.startswith("."):
                yield path


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict:
    """Returns a JSON file's content, empty if there is none.

    Raises:
        TaaeInputError: if it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise TaaeInputError(f"{path}: is damaged ({one_line(error)}); choose a new folder with -o") from error
    return content if isinstance(content, dict) else {}


def as_json(content: dict) -> bytes:
    """Returns a dictionary as indented JSON in UTF-8."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
