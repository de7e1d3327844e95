"""What corpora are made of: recordings, Parquet files, WebDataset archives and data sets on the Hub, read row by row.

Each reader has a number of units, and a unit has the same rows in the same order whenever it is read. No audio is
decoded here. A row without audio comes all the same, with what is wrong with it, and so does the place where a file
turns out to be damaged.
"""

import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from datasets import Audio, ClassLabel, Features, Image, IterableDataset, Video
from pyarrow import csv, parquet
from pyarrow import json as json_lines

from ..audio_io import AUDIO_SUFFIXES
from ..errors import TaaeInputError, as_text, one_line
from .utterances import COLUMNS, NOWHERE, Origin, as_dictionaries, check_column

# Rows that a unit has at least, where the source leaves the choice. A run that is killed repeats its unfinished units.
UNIT_ROWS = 128


def read_texts(table: Path) -> pa.Table:
    """A CSV file, all of it as text: an id of 007 is no number."""
    with csv.open_csv(table) as beginning:
        names = beginning.schema.names
    return csv.read_csv(table, convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())))


# What a folder of recordings may tell about them: a table with a column `file_name`, as `datasets` has it.
METADATA_READERS = {
    "metadata.csv": read_texts,
    "metadata.jsonl": json_lines.read_json,
    "metadata.parquet": parquet.read_table,
}
# Members of an archive that are a column beside those of its .json, by their suffix.
TEXT_MEMBERS = {"txt": "text", "text": "text", "transcript": "text", "cls": "cls"}
# WebDataset: what stands before a name's first dot is the sample, what stands behind it is the kind of member.
MEMBER_NAME = re.compile(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]+)")
# What readers raise for damaged content, beside an OSError without a number; with one, it is not the content.
DAMAGED = (pa.ArrowException, tarfile.TarError, EOFError)


@dataclass
class Row:
    """One recording of a corpus, not yet decoded.

    Args:
        id: as the source has it, or made of the file's name.
        source: the file it is from, as the list of rejects names it.
        audio: what [`decode_cell`] takes.
        columns: the source's own, without the audio.
        problem: why there is no audio; empty if nothing is known against it.
        origin: where the source lies, below which paths are opened.
    """

    id: str
    source: str
    audio: dict | str | bytes | Path | None = None
    columns: dict = field(default_factory=dict)
    problem: str = ""
    origin: Origin = NOWHERE


def read_metadata(tables: list[Path]) -> pa.Table:
    """What folders tell about their recordings; `file_name` becomes the file's full path.

    Raises:
        TaaeInputError: if a table cannot be read or has no such column.
    """
    read = [pa.table({"file_name": pa.array([], pa.string())})]
    for table in tables:
        try:
            content = METADATA_READERS[table.name](table)
            names = [os.path.abspath(table.parent / name) for name in content.column("file_name").to_pylist()]
            if repeated := [name for name, number in Counter(names).items() if number > 1]:
                raise TaaeInputError(
                    f"{table}: tells more than once about {as_text(os.path.basename(repeated[0]))}; expected a row for "
                    "each file, so cut recordings into files of their own"
                )
            read.append(content.set_column(content.column_names.index("file_name"), "file_name", pa.array(names)))
        except (OSError, KeyError, TypeError, pa.ArrowException) as error:
            raise TaaeInputError(
                f"{table}: cannot be read ({one_line(error)}); expected a table with a column file_name, so call it "
                "something else if it is for something else"
            ) from error
    try:
        return pa.concat_tables(read, promote_options="permissive")
    except pa.ArrowException as error:
        raise TaaeInputError(
            f"{tables[0].name}: the folders' tables do not fit together ({one_line(error)})"
        ) from error


def row_id(columns: dict, id_column: str | None, fallback: str) -> str:
    """A row's id: what the source calls it, else what it is called here."""
    names = [id_column] if id_column else COLUMNS["id"]
    return str(next((columns[name] for name in names if columns.get(name) not in (None, "")), fallback))


def until_damage(rows: Iterator[Row], file: str) -> Iterator[Row]:
    """The rows of a file, and if it is damaged somewhere, a row that says so in place of the rest.

    Raises:
        TaaeInputError: if it is not the file's content, but the file cannot be read.
    """
    try:
        yield from rows
    except (OSError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise TaaeInputError(
                f"{file}: cannot be read any more ({error.strerror}); see to it, then run the same command again"
            ) from error
        yield Row(file, file, problem=f"damaged: nothing can be read from here on ({one_line(error)})")


class Recordings:
    """Audio files, with what a table tells about them; those that are not there come as missing.

    Args:
        files: their full paths.
        outside: those of them that a table names, but which lie elsewhere; they are not opened.
        root: the folder where names begin.
        metadata: a table with a column `file_name` of full paths.
        id_column: as for [`Corpus`].
    """

    def __init__(self, files: list[Path], outside: set[Path], root: Path, metadata: pa.Table, id_column: str | None):
        self.columns = {row.pop("file_name"): row for row in metadata.to_pylist()}
        self.types = metadata.drop_columns(["file_name"]).schema
        self.files, self.outside = sorted(map(str, files)), set(map(str, outside))
        self.missing = {file for file in self.files if file not in self.outside and not os.path.lexists(file)}
        self.root, self.id_column, self.unit_rows = root, id_column, UNIT_ROWS

    def __len__(self) -> int:
        return -(-len(self.files) // self.unit_rows)

    def schema(self, unit: int) -> pa.Schema:
        """The types of the table's columns."""
        return self.types

    def rows(self, unit: int) -> Iterator[Row]:
        """So many files, whether or not they are audio."""
        for file in self.files[unit * self.unit_rows :][: self.unit_rows]:
            name = as_text(os.path.relpath(file, self.root))
            columns = self.columns.get(file, {})
            row = Row(row_id(columns, self.id_column, name), name, Path(file), columns)
            if file in self.outside:
                row.audio, row.problem = None, "outside: its path leads out of the corpus's folder; move the file there"
            # Not a reject: a disk that is not mounted any more would make one of each file.
            elif not os.path.lexists(file) and file not in self.missing:
                raise TaaeInputError(f"{file}: is gone since the run began; see to it, then run the same command again")
            yield row


class OwnColumns:
    """What rows have beside audio, of a kind that tokens can have as well: class labels become their names.

    Args:
        features: of the whole row.
        audio_column: which of them is the audio; others of its kind are left out as well.
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

    def of(self, row: dict) -> dict:
        """A row's own columns."""
        columns = {name: row[name] for name in self.schema.names}
        for name, feature in self.labels.items():
            # Data sets say -1 where the class is not known.
            known = columns[name] is not None and columns[name] >= 0
            columns[name] = feature.int2str(columns[name]) if known else None
        return columns


class Tables:
    """Parquet files; a unit is a few row groups in a row.

    Args:
        origins: what the cells of each file may name, by the file's full path.
        root: the folder where names begin.
        audio_column, id_column: as for [`Corpus`].

    Raises:
        TaaeInputError: if a file has no such column.
    """

    def __init__(self, origins: dict[Path, Origin], root: Path, audio_column: str, id_column: str | None):
        self.origins, self.root, self.audio_column, self.id_column = origins, root, audio_column, id_column
        self.own: dict[Path, OwnColumns] = {}
        self.units: list[tuple[Path, list[int], int]] = []  # a file, its row groups, the number of their first row
        for file in origins:
            try:
                with parquet.ParquetFile(file) as table:
                    features = Features.from_arrow_schema(table.schema_arrow)
                    groups = [table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)]
            except (OSError, *DAMAGED):
                self.units.append((file, [], 0))  # reading will tell what is wrong
                continue
            except ValueError as error:
                raise TaaeInputError(
                    f"{file}: has a column of a kind that `datasets` does not read ({one_line(error)}); leave it out"
                ) from error
            check_column(audio_column, features, str(file), "--audio-column")
            if id_column is not None:
                check_column(id_column, features, str(file), "--id-column")
            self.own[file] = OwnColumns(features, audio_column)
            self.units += [(file, *unit) for unit in row_group_units(groups)]

    def __len__(self) -> int:
        return len(self.units)

    def schema(self, unit: int) -> pa.Schema:
        """The types of the file's own columns."""
        file = self.units[unit][0]
        return self.own[file].schema if file in self.own else pa.schema([])

    def rows(self, unit: int) -> Iterator[Row]:
        """The rows of a few row groups."""
        file, groups, first = self.units[unit]
        name = as_text(file.relative_to(self.root))
        return until_damage(self._rows(file, name, groups, first), name)

    def _rows(self, file: Path, name: str, groups: list[int], first: int) -> Iterator[Row]:
        with parquet.ParquetFile(file) as table:
            own = self.own[file]
            wanted = [self.audio_column, *own.schema.names]
            batches = table.iter_batches(batch_size=16, row_groups=groups, columns=wanted)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, first):
                columns = own.of(row)
                identifier = row_id(columns, self.id_column, f"{name}#{number}")
                yield Row(identifier, name, row[self.audio_column], columns, origin=self.origins[file])


def row_group_units(groups: list[int]) -> Iterator[tuple[list[int], int]]:
    """Row groups of these sizes as units of at least UNIT_ROWS rows: their numbers, and the number of the first row."""
    unit, first, rows = [], 0, 0
    for number, size in enumerate(groups):
        unit.append(number)
        rows += size
        if rows - first >= UNIT_ROWS or number == len(groups) - 1:
            yield unit, first
            unit, first = [], rows


class Archives:
    """WebDataset archives, each a unit: tar files in which members of one name with several suffixes are a sample.

    Audio, texts and what stands in a sample's .json are read, other members are not.

    Args:
        files: their full paths.
        root: the folder where names begin.
        id_column: as for [`Corpus`].
    """

    def __init__(self, files: list[Path], root: Path, id_column: str | None):
        self.files, self.root, self.id_column = files, root, id_column

    def __len__(self) -> int:
        return len(self.files)

    def schema(self, unit: int) -> pa.Schema:
        """Nothing is known."""
        return pa.schema([])

    def rows(self, unit: int) -> Iterator[Row]:
        """The samples of an archive."""
        file = self.files[unit]
        name = as_text(file.relative_to(self.root))
        return until_damage(self._rows(file, name), name)

    def _rows(self, file: Path, name: str) -> Iterator[Row]:
        with tarfile.open(file) as archive:
            members = ((MEMBER_NAME.fullmatch(member.name), member) for member in archive if member.isfile())
            named = ((*match.groups(), member) for match, member in members if match)
            for key, sample in itertools.groupby(named, key=lambda item: item[0]):
                # Keys are often unique in their archive only.
                content = ((kind, archive.extractfile(member).read()) for _, kind, member in sample)
                audio, columns, problem = read_sample(content)
                yield Row(row_id(columns, self.id_column, f"{name}/{key}"), name, audio, columns, problem)


def read_sample(members: Iterable[tuple[str, bytes]]) -> tuple[bytes | None, dict, str]:
    """Audio, columns and what is wrong with them, from the members of a sample: what follows the key, and the content.

    What a .json holds in lists and objects is kept as JSON.
    """
    audio, columns, problem = None, {}, ""
    for kind, content in members:
        suffix = kind.lower().rsplit(".", 1)[-1]
        if f".{suffix}" in AUDIO_SUFFIXES:
            if audio is not None:
                problem = "bad audio: there are two recordings in its sample, whose name ends at the first dot"
            audio = content
        elif suffix == "json":
            try:
                facts = json.loads(content).items()
                json.dumps([*facts], ensure_ascii=False).encode()  # fails for half of a surrogate pair
                columns |= {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in facts}
            except (ValueError, AttributeError) as error:
                problem = f"bad text: its .json holds no object ({one_line(error)})"
        elif suffix in TEXT_MEMBERS:
            columns[TEXT_MEMBERS[suffix]] = content.decode(errors="replace").strip()
    return audio, columns, problem or ("" if audio is not None else "missing: there is no audio in its sample")


class StreamedRows:
    """A data set that `datasets` streams, from the Hub or a folder; a unit is one of its files.

    Args:
        rows: with their audio undecoded.
        origin: what its cells may name.
        split: which one it is.
        audio_column, id_column: as for [`Corpus`].
    """

    def __init__(self, rows: IterableDataset, origin: Origin, split: str, audio_column: str, id_column: str | None):
        self.origin, self.split, self.audio_column, self.id_column = origin, split, audio_column, id_column
        self.own = OwnColumns(rows.features, audio_column) if rows.features else None
        self.streamed = rows.select_columns([audio_column, *self.own.schema.names]) if self.own else rows

    def __len__(self) -> int:
        return self.streamed.num_shards

    def schema(self, unit: int) -> pa.Schema:
        """The types of the data set's own columns, if it tells."""
        return self.own.schema if self.own else pa.schema([])

    def rows(self, unit: int) -> Iterator[Row]:
        """The rows of a file."""
        name = f"{self.split}-{unit:05d}"
        try:
            shard = self.streamed.shard(num_shards=len(self), index=unit)
            for number, row in enumerate(as_dictionaries(shard)):
                audio = row.pop(self.audio_column)
                columns = self.own.of(row) if self.own else row
                yield Row(row_id(columns, self.id_column, f"{name}#{number}"), name, audio, columns, origin=self.origin)
        # Whatever it is, the network may be the reason, so nothing is rejected.
        except (OSError, ValueError, *DAMAGED) as error:
            raise TaaeInputError(
                f"{name}: cannot be read ({one_line(error)}); see to it, then run the same command again"
            ) from error
