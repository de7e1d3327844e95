"""Recordings and tables, read row by row.

A reader of a source has a number of units, and a unit has the same rows in the same order whenever it is read. No audio
is decoded here. A row without audio comes all the same, with what is wrong with it, and so does the place where a file
turns out to be damaged.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from datasets import Audio, ClassLabel, Features, Image, Video
from pyarrow import parquet

from ..audio.blocks import Span
from ..errors import TaaeInputError, one_line
from .decode import RATE_KEYS, plain_cell
from .listings import Listing, told_span
from .origin import Origin
from .row import Row, check_column, row_id
from .texts import files_beside, told_beside

# Rows that a unit has at least, where the source leaves the choice. A run that is killed repeats its unfinished units.
UNIT_ROWS = 128
BATCH_ROWS = 16
WHOLE = (None,)  # in place of the parts of a recording


class Reader(Protocol):
    """The units of one kind in a source."""

    @property
    def known_rows(self) -> int | None:
        """The number of rows in all units, if that is known before they are read."""

    def __len__(self) -> int:
        """Returns the number of units."""

    def schema(self, unit: int) -> pa.Schema:
        """Returns the types of a unit's own columns, as far as they are known before it is read."""

    def rows(self, unit: int) -> Iterator[Row]:
        """Yields the rows of a unit."""

    def named_files(self) -> Iterator[Path]:
        """Yields the files that cells name, as far as they are not part of the source's fingerprint."""

    def shards(self) -> list[int]:
        """Returns how many units in a row belong together, such as those of one file."""


def until_damage(rows: Iterator[Row], file: str) -> Iterator[Row]:
    """Yields the rows of a file and, if it is damaged somewhere, a row that says so in place of the rest.

    Raises:
        TaaeInputError: if it is not the file's content, but the file cannot be read.
    """
    try:
        yield from rows
    except TaaeInputError:
        raise
    except Exception as error:  # whatever damaged content makes its reader raise
        if isinstance(error, OSError) and error.errno is not None:
            raise TaaeInputError(
                f"{file}: cannot be read any more ({error.strerror}); see to it, then run the same command again"
            ) from error
        reason = one_line(error) or type(error).__name__
        yield Row(file, file, problem=f"damaged: nothing can be read from here on ({reason})")


class Recordings:
    """Audio files or parts of them, with what is told about them; those that are not there come as missing.

    Args:
        files: their full paths, in order, with their names.
        problems: why some of them are not opened, by path.
        told: what tables tell about them; the last one counts.
        beside: files that may tell about the recording of the same name, by their full path.
        id_column, unit_rows: see [`Corpus`].
    """

    def __init__(
        self,
        files: dict[Path, str],
        problems: dict[Path, str],
        told: list[tuple[Listing, list[Path]]],
        beside: dict[str, Path],
        id_column: str | None,
        unit_rows: int = UNIT_ROWS,
    ):
        self.problems, self.beside, self.id_column = problems, beside, id_column
        self.columns: dict[tuple[Path, Span | None], dict[str, Any]] = {}
        spans: dict[Path, dict[Span, None]] = {}
        for listing, places in told:
            for place, span, row in zip(places, listing.spans, listing.rows, strict=True):
                self.columns[place, span] = self.columns.get((place, span), {}) | row
                if span is not None:
                    spans.setdefault(place, {})[span] = None
        self.parts = [(file, name, span) for file, name in files.items() for span in spans.get(file, WHOLE)]
        self.types = common_types([listing.schema for listing, _ in told])
        self.missing = {file for file in files if file not in problems and not os.path.lexists(file)}
        self.unit_rows, self.known_rows = unit_rows, len(self.parts)

    def __len__(self) -> int:
        return -(-len(self.parts) // self.unit_rows)

    def schema(self, unit: int) -> pa.Schema:
        """Returns the types of the tables' columns."""
        return self.types

    def rows(self, unit: int) -> Iterator[Row]:
        """Yields so many files or parts, whether or not they are audio."""
        for file, name, span in self.parts[unit * self.unit_rows :][: self.unit_rows]:
            # A text beside a recording is about all of it.
            beside = files_beside(file, self.beside) if self.beside and span is None else []
            columns, problem = told_beside(beside)
            columns |= self.columns.get((file, span), {})
            problem = self.problems.get(file, problem)
            if file in self.missing:
                problem = problem or "missing: there is no such file"
            # Not a reject: a disk that is not mounted any more would make one of each file.
            if not problem and not os.path.lexists(file):
                raise TaaeInputError(f"{file}: is gone since the run began; see to it, then run the same command again")
            audio = None if problem else file
            identifier = row_id(columns, self.id_column) or (f"{name}#{span}" if span else name)
            yield Row(identifier, name, audio, columns, problem, span=span)

    def named_files(self) -> Iterator[Path]:
        """Yields nothing: all files are known."""
        return iter(())

    def shards(self) -> list[int]:
        """Returns all units as one."""
        return [len(self)]


def common_types(schemas: list[pa.Schema]) -> pa.Schema:
    """Returns types that hold what is in several tables, without those of columns on which they do not agree."""
    fields: dict[str, pa.Field] = {}
    for field in (field for schema in schemas for field in schema):
        try:
            known = fields.get(field.name, field)
            fields[field.name] = pa.unify_schemas(
                [pa.schema([known]), pa.schema([field])], promote_options="permissive"
            ).field(0)
        except pa.ArrowException:
            fields[field.name] = pa.field(field.name, pa.null())
    return pa.schema([field for field in fields.values() if not pa.types.is_null(field.type)])


class OwnColumns:
    """What rows have beside audio, of a kind that tokens can have as well: class labels become their names.

    Args:
        features: the types of the whole row.
        audio_column: the one with the audio; others of its kind are left out as well.
    """

    def __init__(self, features: Features, audio_column: str):
        kept = {
            name: feature
            for name, feature in features.items()
            if name != audio_column and not isinstance(feature, Audio | Image | Video)
        }
        self.labels = {name: feature for name, feature in kept.items() if isinstance(feature, ClassLabel)}
        schema = Features(kept).arrow_schema.remove_metadata()
        self.schema = pa.schema([(n, pa.string() if n in self.labels else schema.field(n).type) for n in schema.names])

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns a row's own columns."""
        columns = {name: row[name] for name in self.schema.names}
        for name, feature in self.labels.items():
            # Data sets say -1 where the class is not known.
            known = columns[name] is not None and columns[name] >= 0
            columns[name] = feature.int2str(columns[name]) if known else None
        return columns


def cells_and_columns(batch: pa.RecordBatch | pa.Table, audio_column: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields the audio and the other columns of each row; samples without their rate get it from a column of that."""
    names = batch.column_names
    others = batch.select([name for name in names if name != audio_column]).to_pylist()
    rate_column = next((name for name in RATE_KEYS if name in names), None)
    audio = batch.column(audio_column)
    for number, columns in enumerate(others):
        yield plain_cell(audio[number], columns.get(rate_column)), columns


class TableFile:
    """A Parquet file, or one of Arrow as `save_to_disk` writes it.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be read.
        pyarrow.ArrowException: if it is damaged.
    """

    def __init__(self, path: Path):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise pa.ArrowInvalid("it is no regular file")
        self.path, self.is_parquet = path, path.suffix.lower() != ".arrow"
        if self.is_parquet:
            with parquet.ParquetFile(path) as table:
                self.schema = table.schema_arrow
                self.groups = [table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)]
        else:
            self.schema, batches = self._arrow_batches()
            self.groups = [batch.num_rows for batch in batches]

    def _arrow_batches(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        source = pa.memory_map(str(self.path))
        if source.read_at(6, 0) == b"ARROW1":
            file = pa.ipc.open_file(source)
            return file.schema, (file.get_batch(n) for n in range(file.num_record_batches))
        stream = pa.ipc.open_stream(source)
        return stream.schema, iter(stream)

    def batches(self, groups: list[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows of some row groups, a few at a time."""
        if self.is_parquet:
            with parquet.ParquetFile(self.path) as table:
                yield from table.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=columns)
        else:
            for number, batch in enumerate(self._arrow_batches()[1]):
                if number in groups:
                    for first in range(0, batch.num_rows, BATCH_ROWS):
                        yield batch.select(columns).slice(first, BATCH_ROWS)

    def paths(self, audio_column: str) -> Iterator[str]:
        """Yields the paths that a column of audio names, without reading its bytes."""
        kind = self.schema.field(audio_column).type
        column = audio_column
        if pa.types.is_struct(kind):
            if kind.get_field_index("path") < 0 or (self.is_parquet and not self._lacks_bytes(audio_column)):
                return
            column = f"{audio_column}.path"
        elif not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            return
        if self.is_parquet:
            with parquet.ParquetFile(self.path) as table:
                batches = list(table.iter_batches(columns=[column]))
        else:
            batches = list(self._arrow_batches()[1])
        for batch in batches:
            values = batch.column(audio_column)
            values = values.field("path") if pa.types.is_struct(kind) else values
            yield from (path for path in values.to_pylist() if path)

    def _lacks_bytes(self, audio_column: str) -> bool:
        """Returns whether a row may have no bytes; that all have them, the statistics tell."""
        with parquet.ParquetFile(self.path) as table:
            for group in range(table.num_row_groups):
                chunks = map(table.metadata.row_group(group).column, range(table.metadata.num_columns))
                for chunk in (chunk for chunk in chunks if chunk.path_in_schema == f"{audio_column}.bytes"):
                    if chunk.statistics is None or chunk.statistics.null_count != 0:
                        return True
        return self.schema.field(audio_column).type.get_field_index("bytes") < 0


class Tables:
    """Parquet and Arrow files; a unit is a few row groups in a row.

    Args:
        files: their full paths, with their names.
        origins: the places whose files the cells of each file may name.
        audio_column, id_column, unit_rows: see [`Corpus`].

    Raises:
        TaaeInputError: if a file has rows and no such column.
    """

    def __init__(
        self,
        files: dict[Path, str],
        origins: dict[Path, Origin],
        audio_column: str,
        id_column: str | None,
        unit_rows: int = UNIT_ROWS,
    ):
        self.files, self.origins, self.audio_column, self.id_column = files, origins, audio_column, id_column
        self.own: dict[Path, OwnColumns] = {}
        self.units: list[tuple[Path, list[int], int]] = []  # a file, its row groups, the number of their first row
        self.known_rows = 0
        for file in files:
            try:
                table = TableFile(file)
                features = Features.from_arrow_schema(table.schema)
            except (OSError, pa.ArrowException):
                self.units.append((file, [], 0))  # reading will tell what is wrong
                continue
            except ValueError as error:
                raise TaaeInputError(
                    f"{file}: has a column of a kind that `datasets` does not read ({one_line(error)}); leave it out"
                ) from error
            if not any(table.groups):
                continue  # an empty shard often has no columns either
            check_column(audio_column, features, str(file), "--audio-column")
            if id_column is not None:
                check_column(id_column, features, str(file), "--id-column")
            self.own[file] = OwnColumns(features, audio_column)
            self.known_rows += sum(table.groups)
            self.units += [(file, *unit) for unit in row_group_units(table.groups, unit_rows)]

    def __len__(self) -> int:
        return len(self.units)

    def schema(self, unit: int) -> pa.Schema:
        """Returns the types of the file's own columns."""
        file = self.units[unit][0]
        return self.own[file].schema if file in self.own else pa.schema([])

    def rows(self, unit: int) -> Iterator[Row]:
        """Yields the rows of a few row groups."""
        file, groups, first = self.units[unit]
        name = self.files[file]
        return until_damage(self._rows(file, name, groups, first), name)

    def _rows(self, file: Path, name: str, groups: list[int], first: int) -> Iterator[Row]:
        table = TableFile(file)
        own = self.own[file]
        batches = table.batches(groups, [self.audio_column, *own.schema.names])
        rows = itertools.chain.from_iterable(cells_and_columns(batch, self.audio_column) for batch in batches)
        for number, (audio, row) in enumerate(rows, first):
            columns = own.of(row)
            told = row_id(columns, self.id_column)
            identifier = f"{name}#{number}" if told is None else told
            # Bytes are a recording of the row's own, whatever it was cut from.
            span = told_span(columns) if isinstance(audio, str) else None
            origin = self.origins[file]
            yield Row(identifier, name, audio, columns, origin=origin, is_numbered=told is None, span=span)

    def named_files(self) -> Iterator[Path]:
        """Yields the files that cells name."""
        for file in self.own:
            with suppress(OSError, pa.ArrowException):  # reading its rows will tell what is wrong
                yield from map(self.origins[file].locate, TableFile(file).paths(self.audio_column))

    def shards(self) -> list[int]:
        """Returns the number of units of each file."""
        return list(Counter(file for file, _, _ in self.units).values())


def row_group_units(groups: list[int], unit_rows: int) -> Iterator[tuple[list[int], int]]:
    """Yields row groups of these sizes as units of at least so many rows: their numbers, and their first row's."""
    unit: list[int] = []
    first = rows = 0
    for number, size in enumerate(groups):
        unit.append(number)
        rows += size
        if rows - first >= unit_rows or number == len(groups) - 1:
            yield unit, first
            unit, first = [], rows
