"""What is wrong with a user's input, in one line."""

import os
import unicodedata
from pathlib import Path

# Characters that end lines, move a terminal's cursor or turn text around; letters of all scripts are none of them.
CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class TaaeInputError(ValueError):
    """A file or an argument that cannot be used; the message says what it is, what was expected and what to do."""


def as_text(path: str | Path) -> str:
    """A path as tables and pages can hold it: bytes of its name that are no UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(error: BaseException) -> str:
    """Returns an error's message without line breaks and control characters."""
    return printable(" ".join(str(error).split()))


def printable(text: object) -> str:
    """Returns text as one line for terminals and tables: control characters, line breaks and the like become \\xNN."""
    unsafe = {letter for letter in str(text) if unicodedata.category(letter) in CONTROLS or letter in TURNS}
    return str(text).translate({ord(letter): letter.encode("unicode_escape").decode() for letter in unsafe})


def describe(error: Exception) -> str:
    """Returns one line about an error that no one foresaw."""
    return f"{type(error).__name__}: {one_line(error)}; run again with --debug for the traceback"
