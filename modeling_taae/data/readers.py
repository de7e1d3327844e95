"""Reads recordings and tables row by row.

A reader splits a source into units; a unit has the same rows in the same order whenever it is read. Audio is not
decoded here. A row without audio is yielded with its problem. A damaged file yields a last row that reports the damage.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

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

# Minimum rows of a unit, if the source does not fix them. A killed run repeats its unfinished units.
UNIT_ROWS = 128
BATCH_ROWS = 16
WHOLE = (None,)  # in place of the parts of a recording


class Reader:
    """Reads the units of one kind in a source: by default units that stand alone, of which nothing is known before.

    Attributes:
        known_rows: the number of rows in all units, None if it is not known before reading.
    """

    known_rows: int | None = None

    def __len__(self) -> int:
        """Returns the number of units."""
        raise NotImplementedError

    def rows(self, unit: int) -> Iterator[Row]:
        """Yields the rows of a unit."""
        raise NotImplementedError

    def schema(self, unit: int) -> pa.Schema:
        """Returns the types of a unit's own columns, as far as they are known before reading."""
        return pa.schema([])

    def named_files(self) -> Iterator[Path]:
        """Yields the files that cells name and that are not part of the source's fingerprint."""
        return iter(())

    def shards(self) -> list[int]:
        """Returns the numbers of consecutive units that belong together, such as those of one file."""
        return [1] * len(self)


def until_damage(rows: Iterator[Row], file: str) -> Iterator[Row]:
    """Yields the rows of a file; if it is damaged, a row that reports this replaces the rest.

    Raises:
        TaaeInputError: if the file can no longer be read, rather than having damaged content.
    """
    try:
        yield from rows
    except TaaeInputError:
        raise
    except Exception as error:  # damaged content makes readers raise errors of many types
        if isinstance(error, OSError) and error.errno is not None:
            raise TaaeInputError(
                f"{file}: cannot be read any more ({error.strerror}); fix that, then run the same command again"
            ) from error
        reason = one_line(error) or type(error).__name__
        yield Row(file, file, problem=f"damaged: nothing can be read from here on ({reason})")


class Recordings(Reader):
    """Reads audio files, or parts of them, with the tables and texts that describe them; reports missing files.

    Args:
        files: the recordings' full paths, in order, with their names.
        problems: reasons why some of them are not opened, by path.
        told: tables that describe them; the last one counts.
        beside: files that may describe the recording of the same name, by their full path.
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
        """Yields the files or parts of a unit, whether or not they are audio."""
        for file, name, span in self.parts[unit * self.unit_rows :][: self.unit_rows]:
            # A text beside a recording describes all of it.
            beside = files_beside(file, self.beside) if self.beside and span is None else []
            columns, problem = told_beside(beside)
            columns |= self.columns.get((file, span), {})
            problem = self.problems.get(file, problem)
            if file in self.missing:
                problem = problem or "missing: there is no such file"
            # An error rather than a reject: an unmounted disk would reject every file.
            if not problem and not os.path.lexists(file):
                raise TaaeInputError(f"{file}: is gone since the run began; restore it and run the same command again")
            audio = None if problem else file
            identifier = row_id(columns, self.id_column) or (f"{name}#{span}" if span else name)
            yield Row(identifier, name, audio, columns, problem, span=span)

    def shards(self) -> list[int]:
        """Returns all units as one group."""
        return [len(self)]


def common_types(schemas: list[pa.Schema]) -> pa.Schema:
    """Returns column types that fit all of several tables; columns with incompatible types are left out."""
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
    """Selects the columns of rows that are kept with the tokens: class labels become names, audio is left out.

    Args:
        features: the types of the whole row.
        audio_column: the column with the audio; other columns of audio are left out as well.
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
            # Data sets use -1 for an unknown class.
            known = columns[name] is not None and columns[name] >= 0
            columns[name] = feature.int2str(columns[name]) if known else None
        return columns


def cells_and_columns(batch: pa.RecordBatch | pa.Table, audio_column: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields the audio and the other columns of each row; samples without a rate get it from a column of rates."""
    names = batch.column_names
    others = batch.select([name for name in names if name != audio_column]).to_pylist()
    rate_column = next((name for name in RATE_KEYS if name in names), None)
    audio = batch.column(audio_column)
    for number, columns in enumerate(others):
        yield plain_cell(audio[number], columns.get(rate_column)), columns


class TableFile:
    """A Parquet file, or an Arrow file that `save_to_disk` wrote.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be read.
        pyarrow.ArrowException: if it is damaged.
    """

    def __init__(self, path: Path):
        if path.exists() and not path.is_file():  # reading a pipe could wait forever
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
        """Returns whether a row may have no bytes, according to the file's statistics."""
        with parquet.ParquetFile(self.path) as table:
            for group in range(table.num_row_groups):
                chunks = map(table.metadata.row_group(group).column, range(table.metadata.num_columns))
                for chunk in (chunk for chunk in chunks if chunk.path_in_schema == f"{audio_column}.bytes"):
                    if chunk.statistics is None or chunk.statistics.null_count != 0:
                        return True
        return self.schema.field(audio_column).type.get_field_index("bytes") < 0


class Tables(Reader):
    """Reads Parquet and Arrow files; a unit is a few consecutive row groups.

    Args:
        files: the tables' full paths, with their names.
        origins: the place whose files the cells of each table may name.
        audio_column, id_column, unit_rows: see [`Corpus`].

    Raises:
        TaaeInputError: if a file has rows but lacks a column.
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
        self.units: list[tuple[Path, list[int], int]] = []  # a file, its row groups, the index of their first row
        self.known_rows = 0
        for file in files:
            try:
                table = TableFile(file)
                features = Features.from_arrow_schema(table.schema)
            except (OSError, pa.ArrowException):
                self.units.append((file, [], 0))  # reading will report the problem
                continue
            except ValueError as error:
                raise TaaeInputError(
                    f"{file}: has a column of a type that `datasets` does not read ({one_line(error)}); leave it out"
                ) from error
            if not any(table.groups):
                continue  # an empty shard often has no columns
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
            with suppress(OSError, pa.ArrowException):  # reading its rows will report the problem
                yield from map(self.origins[file].locate, TableFile(file).paths(self.audio_column))

    def shards(self) -> list[int]:
        """Returns the number of units of each file."""
        return list(Counter(file for file, _, _ in self.units).values())


def row_group_units(groups: list[int], unit_rows: int) -> Iterator[tuple[list[int], int]]:
    """Groups row groups of these sizes into units of at least `unit_rows` rows; yields their indices and first row."""
    unit: list[int] = []
    first = rows = 0
    for number, size in enumerate(groups):
        unit.append(number)
        rows += size
        if rows - first >= unit_rows or number == len(groups) - 1:
            yield unit, first
            unit, first = [], rows
