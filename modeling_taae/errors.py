"""Errors in a user's input, and text that is safe to print in one line."""

import os
import unicodedata
from pathlib import Path

# Categories of characters that end lines or move a terminal's cursor, and characters that change the text's direction.
# No letter of any script is among them.
CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class TaaeInputError(ValueError):
    """A file or an argument that cannot be used; the message says what it is, what was expected and what to do."""


def as_text(path: str | Path) -> str:
    """Returns a path as valid text for tables and pages: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(error: BaseException) -> str:
    """Returns an error's message without line breaks and control characters."""
    return printable(" ".join(str(error).split()))


def printable(text: object) -> str:
    """Returns text as one line for terminals and tables: control characters, line breaks and the like become \\xNN."""
    unsafe = {letter for letter in str(text) if unicodedata.category(letter) in CONTROLS or letter in TURNS}
    return str(text).translate({ord(letter): letter.encode("unicode_escape").decode() for letter in unsafe})


def describe(error: Exception) -> str:
    """Returns one line about an unexpected error."""
    return f"{type(error).__name__}: {one_line(error)}; run again with --debug for the traceback"
