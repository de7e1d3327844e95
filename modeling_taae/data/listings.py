"""Reads tables and lists that describe recordings.

Supported are `metadata.csv`, `.jsonl` and `.parquet` with a column of file names, as in `datasets`; the manifests of
NeMo and Moshi; the tables of Common Voice and LJSpeech; the transcripts of LibriSpeech; and Kaldi's directories.
"""

import codecs
import csv
import io
import json
import math
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import json as json_lines
from pyarrow import parquet

from ..audio.blocks import Span
from ..audio_io import AUDIO_SUFFIXES
from ..errors import TaaeInputError, as_text, one_line
from .row import spelling

METADATA = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".json"})
KALDI_RECORDINGS, TRANSCRIPTS = "wav.scp", ".trans.txt"
KALDI_SEGMENTS = "segments"
KALDI_COLUMNS = {"text": "text", "utt2spk": "speaker", "utt2lang": "language"}
KALDI_GENDERS = "spk2gender"
# Names of the column of files, the best first.
FILE_COLUMNS = (
    *("file_name", "filename", "audio_filepath", "audio_file", "audio_path", "file_path", "filepath", "file"),
    *("wav_filename", "wav_path", "wav", "path", "audio", "clip"),
)
# Names of the columns with the start and the end of a row's part of a file, in seconds.
OFFSETS, STARTS = ("offset",), ("start", "start_time", "begin", "begin_time", "segment_start")
ENDS = ("end", "end_time", "stop", "stop_time", "segment_end")
# Folders beside a table in which its files may be.
PLACES = ("", "clips", "wavs", "wav", "audio")
# If several tables describe the same file, as in Common Voice, the last one in this order counts.
LAST_LISTS = ("other", "test", "dev", "train", "validated")
# Lists of clips that were voted down or reported as wrong.
UNTRUSTED_LISTS = frozenset({"invalidated", "reported"})
LARGEST_LIST = 1 << 32  # bytes
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass
class Listing:
    """A table that describes recordings.

    Args:
        table: the file.
        names: the recordings as the table spells them, one per row.
        rows: the other columns, a dictionary for each row.
        schema: the types of these columns, if the table gives them.
        note: a remark for the user; empty if there is none.
        spans: the part of its recording that each row describes; None for all of it.
        others: further files that were read for the table.
    """

    table: Path
    names: list[str]
    rows: list[dict[str, Any]]
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    note: str = ""
    spans: list[Span | None] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Finds the parts that rows tell of, where the table's reader has not."""
        self.spans = self.spans or told_spans(self.names, self.rows)


class NotAListError(ValueError):
    """A table that does not describe recordings; the message says why."""


def read_listing(table: Path) -> Listing:
    """Reads a table with the reader for its name.

    Raises:
        NotAListError: if it does not describe recordings.
        OSError: if it cannot be read.
    """
    if not table.is_file() or table.stat().st_size > LARGEST_LIST:
        raise NotAListError("it is no regular file, or too large for a list")
    try:
        listing = reader_of(table)(table)
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise NotAListError(one_line(error)) from error
    rows, parts = Counter(listing.names), Counter(zip(listing.names, listing.spans, strict=True))
    alone = (name for (name, span), number in parts.items() if number > 1 or (span is None and rows[name] > 1))
    if repeated := next(alone, None):
        raise NotAListError(
            f"tells more than once about {as_text(os.path.basename(repeated))}; expected a row for each file, or for "
            "each part of it, from an offset on for a duration, or from a start to an end"
        )
    return listing


def told_spans(names: list[str], rows: list[dict[str, Any]]) -> list[Span | None]:
    """Returns the parts of recordings that rows are about; None for a row that is about all of its recording.

    A row with an offset and a duration is about a part, as NeMo has it. A start and an end may as well tell where a
    file was cut from, so they count only where several rows are about one file.
    """
    counts = Counter(names)
    return [told_span(row, counts[name] > 1) for name, row in zip(names, rows, strict=True)]


def told_span(row: dict[str, Any], has_others: bool = False) -> Span | None:
    """Returns the part that a row tells of, None if it is about all of its recording; see [`told_spans`]."""
    told = {spelling(name): value for name, value in row.items()}
    names = OFFSETS + STARTS if has_others else OFFSETS
    start = next((seconds for name in names if (seconds := as_seconds(told.get(name))) is not None), None)
    if start is None:
        return None
    length = as_seconds(told.get("duration"))
    ends = [as_seconds(told.get(name)) for name in ENDS] if has_others else []
    end = next((end for end in ends if end is not None), None if length is None else start + length)
    return None if end is None or end <= start else Span(start, end)


def as_seconds(value: Any) -> float | None:
    """Returns a time as a number, None for what is no time."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < math.inf and not isinstance(value, bool) else None


def reader_of(table: Path) -> Callable[[Path], Listing]:
    """Returns the function that reads a table of this name."""
    if table.name.endswith(TRANSCRIPTS):
        return read_transcripts_of_chapter
    readers: dict[str, Callable[[Path], Listing]] = {
        ".parquet": read_parquet,
        ".jsonl": read_json,
        ".json": read_json,
        ".scp": read_kaldi,
    }
    return readers.get(table.suffix.lower(), read_delimited)


def read_metadata(table: Path) -> Listing:
    """Reads a table whose name says that it describes recordings.

    Raises:
        TaaeInputError: if it cannot be used.
    """
    try:
        return read_listing(table)
    except NotAListError as error:
        if str(error).startswith("tells more"):
            raise TaaeInputError(f"{table}: {error}") from error
        raise TaaeInputError(
            f"{table}: cannot be read ({error}); expected a table with a column file_name, so call it something else "
            "if it is for something else"
        ) from error
    except OSError as error:
        raise TaaeInputError(f"{table}: cannot be read ({error.strerror or error}); check its permissions") from error


def read_parquet(table: Path) -> Listing:
    """Reads a Parquet file with a column of file names."""
    return from_table(table, parquet.read_table(table, partitioning=None))


def from_table(table: Path, content: pa.Table) -> Listing:
    """Converts an Arrow table to a listing."""
    column = file_column(content.column_names)
    names = [str(name) for name in content.column(column).to_pylist()]
    others = content.drop_columns([column])
    return Listing(table, names, others.to_pylist(), others.schema.remove_metadata())


def file_column(columns: Iterable[str]) -> str:
    """Returns the column of file names.

    Raises:
        ValueError: if there is none.
    """
    spelt = {spelling(name): name for name in reversed(list(columns))}
    found = next((spelt[name] for name in FILE_COLUMNS if name in spelt), None)
    if found is None:
        raise ValueError(f"no column file_name among {', '.join(spelt.values()) or 'none'}")
    return found


def read_json(table: Path) -> Listing:
    """Reads JSON lines, or one JSON list, of objects with a file name.

    Columns have the types that Arrow infers; columns of mixed types become text.
    """
    try:
        return from_table(table, json_lines.read_json(table))
    except pa.ArrowException:
        pass  # a byte order mark, a list, or mixed types
    text, _ = decode_text(table.read_bytes())
    content = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, filled_lines(text)))
    if not content or not all(isinstance(row, dict) for row in content):
        raise ValueError("its lines are no JSON objects")
    columns = list(dict.fromkeys(name for row in content for name in row))
    column = file_column(columns)
    names = [str(row.get(column)) for row in content]
    rows = [{name: row.get(name) for name in columns if name != column} for row in content]
    return Listing(table, names, as_one_type(rows))


def as_one_type(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows in which a column with a text in one row is text in all, and nested values are JSON."""
    texts = {name for row in rows for name, value in row.items() if isinstance(value, str | list | dict)}
    return [
        {
            name: value if value is None or isinstance(value, str) or name not in texts else json.dumps(value)
            for name, value in row.items()
        }
        for row in rows
    ]


def read_delimited(table: Path) -> Listing:
    """Reads a table of text. All columns are text, so that an id of 007 stays as it is.

    The delimiter is a comma, a tab, a semicolon or `|`. Without a header, as in LJSpeech, the first column is the file,
    and the second and third are text and normalised text.
    """
    text, encoding = decode_text(table.read_bytes())
    lines = filled_lines(text)
    first = next(lines, "")
    for delimiter in sorted(",\t;|", key=lambda mark: (mark != "\t") if table.suffix == ".tsv" else 0):
        header = next(csv.reader([first], delimiter=delimiter), [])
        try:
            column = header.index(file_column(header))
        except ValueError:
            continue
        fields = split_text(text, delimiter)
        next(fields)
        break
    else:
        delimiter = "|" if "|" in first else "\t" if "\t" in first else ","
        fields, column = split_text(text, delimiter), 0
        width = len(first.split(delimiter))
        if width < 2 or (delimiter != "|" and not locate(table.parent, first.split(delimiter)[0], {})):
            raise ValueError("no column file_name in its first line")
        header = ["file_name", "text", "normalized_text", *(f"column_{n}" for n in range(4, width + 1))][:width]
    names, rows = [], []
    for number, values in enumerate(fields, 2):
        if len(values) > len(header):
            raise ValueError(f"row {number} has {len(values)} columns, where its first has {len(header)}")
        row: dict[str, Any] = dict(zip(header, [*values, *[None] * (len(header) - len(values))], strict=True))
        names.append(row.pop(header[column]) or "")
        rows.append(row)
    schema = pa.schema([(name, pa.string()) for number, name in enumerate(header) if number != column])
    note = "" if encoding.startswith("utf") else f"{table}: is no UTF-8, and was read as {encoding}"
    return Listing(table, names, rows, schema, note)


def split_text(text: str, delimiter: str) -> Iterator[list[str]]:
    """Splits a table of text into fields; empty rows are left out.

    Quotes may contain delimiters and line breaks. In tables delimited by tabs or | they are often part of the text.

    Raises:
        ValueError: if a quote is never closed, so that it would hold the rest of the table.
    """
    if delimiter in ",;":
        try:
            deque(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), maxlen=0)
        except csv.Error as error:
            if "end of data" in str(error):
                raise ValueError("a quote is never closed") from error
        fields: Iterator[list[str]] = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    else:
        fields = ([unquoted(value) for value in line.split(delimiter)] for line in filled_lines(text))
    return (values for values in fields if any(values))


def unquoted(value: str) -> str:
    """Removes the quotes around a field, and undoubles the quotes within it."""
    inside = value[1:-1].replace('""', "")
    is_quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inside
    return value[1:-1].replace('""', '"') if is_quoted else value


def decode_text(content: bytes) -> tuple[str, str]:
    """Decodes text and returns its encoding: that of a byte order mark, else UTF-8, else Windows-1252."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding), encoding
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        if b"\0" in content:
            raise
        return content.decode("windows-1252", errors="replace"), "Windows-1252 (Latin-1)"


def filled_lines(text: str) -> Iterator[str]:
    """Yields the lines with more than white space in them."""
    return (line for line in re.split(r"\r\n|\n|\r", text) if line.strip())


def read_transcripts_of_chapter(table: Path) -> Listing:
    """Reads LibriSpeech's transcripts: each line holds an utterance's name and its text."""
    text, _ = decode_text(table.read_bytes())
    pairs = [line.partition(" ") for line in filled_lines(text)]
    return Listing(table, [name for name, _, _ in pairs], [{"text": spoken.strip()} for _, _, spoken in pairs])


def read_kaldi(table: Path) -> Listing:
    """Reads the `wav.scp` of a Kaldi directory, with the files of segments, texts, speakers and languages beside it."""
    recordings = pairs_of(table)
    segments, note = kaldi_segments(table.parent / KALDI_SEGMENTS, recordings)
    rows: dict[str, dict[str, Any]] = {name: {"id": name} for name in segments}
    for file, column in KALDI_COLUMNS.items():
        for name, value in pairs_of(table.parent / file).items():
            if name in rows:
                rows[name][column] = value
    genders = pairs_of(table.parent / KALDI_GENDERS)
    for row in rows.values():
        if row.get("speaker") in genders:
            row["gender"] = genders[row["speaker"]]
    names, spans = [recordings[name] for name, _ in segments.values()], [span for _, span in segments.values()]
    others = [table.parent / file for file in (KALDI_SEGMENTS, *KALDI_COLUMNS, KALDI_GENDERS)]
    return Listing(table, names, list(rows.values()), note=note, spans=spans, others=list(filter(Path.is_file, others)))


def kaldi_segments(file: Path, recordings: Iterable[str]) -> tuple[dict[str, tuple[str, Span | None]], str]:
    """Reads the utterances of a Kaldi directory: the recording of each, and its part of the recording.

    Args:
        file: the file `segments`; if there is none, each recording is an utterance.
        recordings: the recordings' names.

    Returns:
        The utterances, and a note on recordings and segments that do not belong together.

    Raises:
        ValueError: if a line is no segment.
    """
    whole: dict[str, tuple[str, Span | None]] = {name: (name, None) for name in recordings}
    if not file.is_file():
        return whole, ""
    segments: dict[str, tuple[str, Span | None]] = {}
    unknown = 0
    for name, value in pairs_of(file).items():
        fields = value.split()
        start, end = (as_seconds(each) for each in (fields + ["", "", ""])[1:3])
        if fields[2:3] == ["-1"]:
            end = math.inf
        if start is None or end is None or end <= start:
            raise ValueError(f"its segments have no start and end for {name}")
        if fields[0] in whole:
            segments[name] = fields[0], Span(start, end)
        else:
            unknown += 1
    were_cut = {recording for recording, _ in segments.values()}
    uncut = {name: each for name, each in whole.items() if name not in were_cut}
    told = [
        f"{count} {what}"
        for count, what in (
            (unknown, "segments are not read, because wav.scp does not name their recording"),
            (len(uncut), "recordings have no segment and are read whole"),
        )
        if count
    ]
    return segments | uncut, f"{file}: {'; '.join(told)}" if told else ""


def pairs_of(table: Path) -> dict[str, str]:
    """Reads a Kaldi file, whose lines hold a name and a value; returns none if there is no such file."""
    if not table.is_file():
        return {}
    text, _ = decode_text(table.read_bytes())
    lines = (line.strip().partition(" ") for line in filled_lines(text.replace("\t", " ")))
    return {name: value.strip() for name, _, value in lines}


def locate(folder: Path, name: str, stems: dict[str, Path]) -> Path | None:
    """Returns the file that a name in a table refers to, None if there is none.

    Args:
        folder: the table's folder.
        name: the file as the table spells it, perhaps without its suffix.
        stems: found recordings by their full path without suffix.
    """
    for place in PLACES:
        file = Path(os.path.abspath(folder / place / name.replace("\\", os.sep)))
        if "\0" not in name and name and (os.path.lexists(file)) and not file.is_dir():
            return file
        if str(file) in stems:
            return stems[str(file)]
    return None


def stems_of(files: Iterable[Path]) -> dict[str, Path]:
    """Returns recordings by their full path without suffix."""
    parts = ((file, *os.path.splitext(file)) for file in files)
    return {stem: file for file, stem, suffix in parts if suffix.lower() in AUDIO_SUFFIXES}


def priority(table: Path) -> tuple[int, str]:
    """Returns the sort key of a table among those that may describe the same files: the last one counts."""
    if table.name in METADATA:
        return len(LAST_LISTS) + 1, ""
    name = table.stem.lower()
    return (LAST_LISTS.index(name) + 1 if name in LAST_LISTS else 0), str(table)
