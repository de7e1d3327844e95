"""A recording of a corpus, and the usual names of what is told about it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audio.blocks import Span
from ..errors import TaaeInputError
from .origin import NOWHERE, Origin

# The names under which data sets tell the same; the first that a row has counts, whatever its case.
COLUMNS = {
    "id": ("id", "utterance_id", "segment_id"),
    "language": ("language", "locale", "lang"),
    "source": ("source",),
    "speaker": ("speaker_id", "speaker", "client_id", "spk_id"),
    "gender": ("gender",),
    "kind": ("kind",),
    "text": (
        *("text", "sentence", "transcription", "transcript"),
        *("normalized_text", "raw_text", "raw_transcription", "utterance"),
    ),
}


@dataclass
class Row:
    """One recording of a corpus, not yet decoded.

    Args:
        id: the source's own, or one made of the file's name.
        source: the file that the row is from, as the list of rejects names it.
        audio: the recording: a file that was found, the bytes of an audio file, a path or address that the source
            names, or None where `problem` says why. Anything else is not understood.
        columns: the source's own columns, without the audio.
        problem: the reason why there is no audio; empty if nothing is known against it.
        origin: the place below which paths are opened.
        is_numbered: whether the source has no id for it, and its place in a table serves instead.
        channel: the channel to read, from 1; None averages all.
        span: the part of the recording to read; None for all of it.
    """

    id: str
    source: str
    audio: Path | bytes | str | None | Any = None
    columns: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    origin: Origin = NOWHERE
    is_numbered: bool = False
    channel: int | None = None
    span: Span | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What is known under usual names: id, language, source, speaker, gender, kind and text, where it is told."""
        return known_columns(self.columns)

    def text(self, column: str | None = None) -> str | None:
        """Returns the text that is spoken, from a column or from the first with a usual name; None if none is told."""
        if column is None:
            return self.facts.get("text")
        value = self.columns.get(column)
        return None if value is None else str(value)


def known_columns(columns: dict[str, Any]) -> dict[str, str]:
    """Returns what columns tell under usual names, each by the first of its names that has a value."""
    spellings = {spelling(name): name for name in reversed(columns)}
    found = {}
    for name, aliases in COLUMNS.items():
        names = [alias if alias in columns else spellings.get(alias) for alias in aliases]
        values = [columns[each] for each in names if each is not None and columns[each] not in (None, "")]
        if values and isinstance(values[0], str | int):
            found[name] = str(values[0])
    return found


def spelling(name: str) -> str:
    """Returns a column's name as usual names are written: `File Name` is `file_name`."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def row_id(columns: dict[str, Any], id_column: str | None) -> str | None:
    """Returns a row's id as the source tells it, None if it does not."""
    names = [id_column] if id_column else COLUMNS["id"]
    return next((str(columns[name]) for name in names if columns.get(name) not in (None, "")), None)


def check_column(column: str, columns: Iterable[str], name: str, option: str) -> None:
    """Checks that the column that an option names is there; `name` is the data's name in the error.

    Raises:
        TaaeInputError: if it is not.
    """
    if column not in columns:
        raise TaaeInputError(f"{name}: has no column {column!r}, only {', '.join(columns)}; choose one with {option}")
