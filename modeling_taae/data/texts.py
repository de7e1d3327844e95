"""Reads texts from separate files: beside a recording in a folder, or in its sample of an archive."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import one_line
from .listings import decode_text

# Columns of the files that describe a recording of the same name, by suffix.
TEXT_SUFFIXES = {"txt": "text", "text": "text", "transcript": "text", "cls": "cls"}
# Suffixes of such files in folders, the best first. LibriTTS has two forms of a text; the normalised one counts.
BESIDE = (".normalized.txt", ".txt", ".text", ".transcript", ".lab", ".json")
# Folders of texts, beside folders of recordings in which the same paths lead to what is spoken, as in VCTK.
TEXT_FOLDERS = frozenset({"txt", "text", "texts", "transcript", "transcripts", "transcriptions", "lab", "labels"})
# What VCTK's recordings through several microphones end in; they share a text.
MICROPHONE = re.compile(r"_mic\d+$")
LARGEST_TEXT = 1 << 24  # bytes
# Lines of a .lab file with the times of phones rather than text.
ALIGNMENT = re.compile(r"[\d.]+\s+([\d.]+\s+)?\S+")


def told_by(suffix: str, content: bytes) -> dict[str, Any]:
    """Returns the columns of a sample's member; lists and objects in a .json are kept as JSON text.

    Args:
        suffix: the member's kind, in lower case, without the dot.
        content: the member's bytes.

    Raises:
        ValueError: if it is JSON but no object, or contains half of a surrogate pair.
    """
    if suffix != "json":
        return {TEXT_SUFFIXES[suffix]: content.decode(errors="replace").strip()} if suffix in TEXT_SUFFIXES else {}
    facts = json.loads(content)
    if not isinstance(facts, dict):
        raise ValueError(f"it holds a {type(facts).__name__}")
    json.dumps(facts, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in facts.items()}


def told_beside(files: Iterable[Path]) -> tuple[dict[str, Any], str]:
    """Returns the columns in the files beside a recording, and a problem with one of them, empty if there is none.

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
    """Returns the files that describe a recording: at most one text, and JSON.

    Args:
        recording: the audio file.
        names: all files of the corpus that may be such, by their full path.
    """
    stem = os.path.splitext(recording)[0]
    stems = dict.fromkeys([stem, MICROPHONE.sub("", stem)])
    found = [names[stem + suffix] for stem in stems for suffix in BESIDE if stem + suffix in names]
    return [file for file in found if is_json(file)] + [file for file in found if not is_json(file)][:1]


def is_json(file: Path) -> bool:
    """Returns whether a file is called as JSON is."""
    return file.suffix.lower() == ".json"


def texts_of(inside: list[Path]) -> dict[str, Path]:
    """Returns the files that may tell about recordings, by the full path that a recording's has but for its suffix.

    A folder of texts has each of its files a second time, with the name of each folder beside it in its place.

    Args:
        inside: the files of a corpus.
    """
    texts = [file for file in inside if file.name.lower().endswith(BESIDE)]
    names = {with_plain_suffix(file): file for file in texts}
    below = [(file, place) for file in texts if (place := text_folder(file.parent)) is not None]
    if below:
        roots = {place.parent for _, place in below}
        beside: dict[Path, set[str]] = {}
        for folder in {file.parent for file in inside}:
            for root in roots.intersection(folder.parents):
                beside.setdefault(root, set()).add(folder.relative_to(root).parts[0])
        for file, place in below:
            for other in beside[place.parent] - TEXT_FOLDERS:
                names.setdefault(with_plain_suffix(place.parent / other / file.relative_to(place)), file)
    return names


def with_plain_suffix(file: Path) -> str:
    """Returns the path of a file that may tell about a recording, with its suffix in lower case."""
    path = str(file)
    suffix = next(suffix for suffix in BESIDE if path.lower().endswith(suffix))
    return path[: -len(suffix)] + suffix


def text_folder(folder: Path) -> Path | None:
    """Returns the folder of texts that a folder is or lies in; None if there is none."""
    return next((each for each in (folder, *folder.parents) if each.name.lower() in TEXT_FOLDERS), None)
