"""Restricts which files a corpus's cells and metadata may name, because their content is not trusted."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import fsspec

from ..errors import TaaeInputError, as_text

CURE = "move the recordings there, or name the folder that holds them (--audio-root; in a recipe, audio_root)"


@dataclass(frozen=True)
class Origin:
    """The place of a corpus. Only files in it are opened, even if a cell names others.

    Args:
        folder: the folder whose files may be opened, at any depth; None for no files.
        dataset: the Hub data set whose files may be fetched, at the addresses that `datasets` streams from; None for
            no address.
        near: the folder below `folder` to which paths are relative; None for `folder` itself.
        audio_root: a further folder whose files the user allows to be opened; relative paths that are found nowhere
            else are tried there.
    """

    folder: Path | None = None
    dataset: str | None = None
    near: Path | None = None
    audio_root: Path | None = None

    def open(self, path: str, name: str) -> BinaryIO:
        """Opens a file that a cell names.

        Args:
            path: a path, or an address of the data set.
            name: the row's name in error messages.

        Raises:
            TaaeInputError: if it is missing, or lies outside of the corpus.
            OSError: if it cannot be read.
        """
        if "://" in path:
            if not self.holds_address(path):
                raise TaaeInputError(
                    f"{name}: outside: {as_text(path)} is an address, and addresses that a corpus names are not "
                    "fetched; download the recordings into its folder"
                )
            return cast(BinaryIO, fsspec.open(path, "rb").open())
        # Without this check, an unmounted disk would make every file count as missing.
        for root in (self.folder, self.audio_root):
            if root is not None and not root.exists():
                raise FileNotFoundError(errno.ENOENT, "the corpus's folder is gone", str(root))
        file = self.locate(path)
        if problem := self.problem_of(file, path):
            raise TaaeInputError(f"{name}: {problem}")
        return file.open("rb")

    def locate(self, path: str | Path) -> Path:
        """Returns the file that a path refers to, whether or not it exists and may be opened."""
        file = Path(self.near or self.folder or "", path)
        if self.audio_root is not None and not exists(file):
            return Path(self.audio_root, path)
        return file

    def problem_of(self, file: Path, path: str | Path) -> str:
        """Returns why a located file may not be opened, empty if it may; `path` is its spelling in the corpus."""
        roots = [root for root in (self.folder, self.audio_root) if root is not None]
        if roots and not any(is_below(file, root) for root in roots):
            return f"outside: {as_text(path)} does not lie in the corpus's folder, and nothing else is opened; {CURE}"
        if not roots or not file.is_file():  # neither folders nor pipes, which could block
            return f"missing: there is no file {as_text(path)}"
        return ""

    def holds_address(self, address: str) -> bool:
        """Returns whether an address is one that `datasets` makes for a file of this data set or of its archives."""
        if self.dataset is None or ".." in re.split(r"[/\\]", address):
            return False
        place = rf"hf://datasets/{re.escape(self.dataset)}(@[\w.%~-]+)?/[^:]+"
        return re.fullmatch(rf"((zip|tar)://[^:]+::)?{place}", address) is not None


def is_below(file: Path, folder: Path) -> bool:
    """Returns whether a file lies in a folder, at any depth, after links are resolved."""
    try:
        return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a path with a NUL character
        return False


def exists(file: Path) -> bool:
    """Returns whether a path exists, also as a broken link."""
    try:
        return os.path.lexists(file)
    except ValueError:
        return False


NOWHERE = Origin()
