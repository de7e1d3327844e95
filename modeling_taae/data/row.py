"""A recording of a corpus, and the usual names of its columns."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audio.blocks import Span
from ..errors import TaaeInputError
from .origin import NOWHERE, Origin

# Column names with the same meaning in different data sets; the first one in a row counts, whatever its case.
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
        id: the source's id, or one made from the file's name.
        source: the file that contains the row, as named in the list of rejects.
        audio: the recording: a file that was found, the bytes of an audio file, or a path or address from the source;
            None if `problem` says why there is none.
        columns: the source's own columns, without the audio.
        problem: the reason why there is no audio; empty if none is known.
        origin: the place below which paths are opened.
        is_numbered: whether the row's position in a table serves as its id, because the source has none.
        channel: the channel to read, counted from 1; None averages all.
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
        """The known values of id, language, source, speaker, gender, kind and text."""
        return known_columns(self.columns)

    def text(self, column: str | None = None) -> str | None:
        """Returns the spoken text, from a column or from the first with a usual name; None if there is none."""
        if column is None:
            return self.facts.get("text")
        value = self.columns.get(column)
        return None if value is None else str(value)


def known_columns(columns: dict[str, Any]) -> dict[str, str]:
    """Returns the values of columns under their usual names, each from the first of its names that has a value."""
    spellings = {spelling(name): name for name in reversed(columns)}
    found = {}
    for name, aliases in COLUMNS.items():
        names = [alias if alias in columns else spellings.get(alias) for alias in aliases]
        values = [columns[each] for each in names if each is not None and columns[each] not in (None, "")]
        if values and isinstance(values[0], str | int):
            found[name] = str(values[0])
    return found


def spelling(name: str) -> str:
    """Normalises a column's name: `File Name` becomes `file_name`."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def row_id(columns: dict[str, Any], id_column: str | None) -> str | None:
    """Returns the source's id of a row, None if it has none."""
    names = [id_column] if id_column else COLUMNS["id"]
    return next((str(columns[name]) for name in names if columns.get(name) not in (None, "")), None)


def check_column(column: str, columns: Iterable[str], name: str, option: str) -> None:
    """Checks that the column of an option exists; `name` is the data's name in the error.

    Raises:
        TaaeInputError: if it does not.
    """
    if column not in columns:
        raise TaaeInputError(f"{name}: has no column {column!r}, only {', '.join(columns)}; choose one with {option}")
