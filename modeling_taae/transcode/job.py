"""A file to convert; apart from `files.py`, so that commands can plan their work before torch is imported."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Job(NamedTuple):
    """A source file and its target; `-` is a standard stream."""

    source: Path
    target: Path


OnError = Callable[[Job, Exception], None]
