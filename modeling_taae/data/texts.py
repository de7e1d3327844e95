"""Texts in files of their own: beside a recording in a folder, or in its sample of an archive."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import one_line
from .listings import decode_text

# What tells about a recording of the same name, by suffix.
TEXT_SUFFIXES = {"txt": "text", "text": "text", "transcript": "text", "cls": "cls"}
# In folders also these; LibriTTS has a text in two forms, of which the one to be read aloud counts.
BESIDE = (".normalized.txt", ".txt", ".text", ".transcript", ".lab", ".json")
LARGEST_TEXT = 1 << 24  # bytes
# Lines of a .lab file that tell when which sound is spoken.
ALIGNMENT = re.compile(r"[\d.]+\s+([\d.]+\s+)?\S+")


def told_by(suffix: str, content: bytes) -> dict[str, Any]:
    """Returns the columns that a member of a sample tells; what a .json holds in lists and objects is kept as JSON.

    Args:
        suffix: the member's kind, in lower case, without the dot.
        content: its bytes.

    Raises:
        ValueError: if it is JSON and holds no object, or half of a surrogate pair.
    """
    if suffix != "json":
        return {TEXT_SUFFIXES[suffix]: content.decode(errors="replace").strip()} if suffix in TEXT_SUFFIXES else {}
    facts = json.loads(content)
    if not isinstance(facts, dict):
        raise ValueError(f"it holds a {type(facts).__name__}")
    json.dumps(facts, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in facts.items()}


def told_beside(files: Iterable[Path]) -> tuple[dict[str, Any], str]:
    """Returns the columns that files beside a recording tell, and what is wrong with one of them.

    Raises:
        OSError: if one cannot be read.
    """
    columns: dict[str, Any] = {}
    for file in files:
        suffix = file.suffix.lower().removeprefix(".")
        if not file.is_file() or file.stat().st_size > LARGEST_TEXT:
            return columns, f"bad text: {file.name} is no regular file, or too large for a text"
        content = file.read_bytes()
        try:
            if suffix == "json":
                columns |= told_by(suffix, content)
            elif not (suffix == "lab" and ALIGNMENT.fullmatch(content.decode(errors="replace").split("\n")[0].strip())):
                columns["text"] = decode_text(content)[0].strip()
        except ValueError as error:
            return columns, f"bad text: {file.name} holds no object ({one_line(error)})"
    return columns, ""


def files_beside(recording: Path, names: dict[str, Path]) -> list[Path]:
    """Returns the files that tell about a recording: at most one text, and JSON.

    Args:
        recording: the audio file.
        names: all files of the corpus that may be such, by their full path.
    """
    stem = str(recording.with_suffix(""))
    found = [names[stem + suffix] for suffix in BESIDE if stem + suffix in names]
    return [file for file in found if file.suffix == ".json"] + [file for file in found if file.suffix != ".json"][:1]
