"""Corpora of recorded speech in units of work, whatever they are stored in."""

import hashlib
import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from datasets import load_dataset_builder
from datasets.fingerprint import Hasher

from ..audio_io import AUDIO_SUFFIXES
from ..errors import TaaeInputError, as_text, one_line
from ..files import search_directory
from .readers import METADATA_READERS, Archives, Recordings, Row, StreamedRows, Tables, read_metadata
from .utterances import Origin, check_column, is_below, matching_paths, origin_of, stream_rows

# What there may be in folders, and what may tell about it.
CONTAINERS = frozenset({".parquet", ".tar"})
SUFFIXES = AUDIO_SUFFIXES | CONTAINERS
TABLE_SUFFIXES = frozenset(Path(name).suffix for name in METADATA_READERS)


class Corpus:
    """The rows of one or more sources, in units of work.

    Args:
        sources: recordings, Parquet files, WebDataset archives, folders of them, patterns of their names, or names of
            data sets on the Hub.
        audio_column: of Parquet files and data sets.
        id_column: the column with ids; None for the first of those that [`COLUMNS`] lists, if there is one.
        split: of data sets. Where it is given, a folder is read as a data set; without it, the Hub's are read as
            "train".
        subset: of data sets that have several.

    Raises:
        TaaeInputError: if a source holds nothing, cannot be read, or lacks a column that is named.
    """

    def __init__(
        self,
        sources: list[str],
        audio_column: str = "audio",
        id_column: str | None = None,
        split: str | None = None,
        subset: str | None = None,
    ):
        self.readers, self.sources = [], []
        taken: set[Path] = set()
        found = {name: [] if split and os.path.isdir(name) else matching_paths(name) for name in sources}
        root = common_folder(itertools.chain.from_iterable(found.values()))
        for name, paths in found.items():
            if paths:
                readers, fingerprint = open_files(name, paths, taken, root, audio_column, id_column)
            else:
                readers, fingerprint = open_dataset(name, split or "train", subset, audio_column, id_column)
            self.readers += readers
            description = {"name": as_text(Path(name).name) if paths else name, "units": sum(map(len, readers))}
            self.sources.append(description | {"fingerprint": fingerprint})
        if not self.readers:
            raise TaaeInputError(f"{', '.join(sources)}: holds nothing to encode; expected audio beside the metadata")
        self.ends = list(itertools.accumulate(map(len, self.readers)))

    def __len__(self) -> int:
        """Number of units."""
        return self.ends[-1]

    def rows(self, unit: int) -> Iterator[Row]:
        """The rows of a unit, in order.

        Raises:
            TaaeInputError: if a source cannot be read any more.
        """
        reader, index = self._locate(unit)
        return reader.rows(index)

    def schema(self, unit: int) -> pa.Schema:
        """Types of the unit's columns, as far as they are known before the rows are read."""
        reader, index = self._locate(unit)
        return reader.schema(index)

    def _locate(self, unit: int) -> tuple:
        number = bisect_right(self.ends, unit)
        return self.readers[number], unit - (self.ends[number - 1] if number else 0)


def common_folder(paths: Iterable[Path]) -> Path:
    """The deepest folder that holds them all. Names begin here, so that no two files have the same.

    Raises:
        TaaeInputError: if there is none, as there is for two drives of Windows.
    """
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in paths]
    try:
        return Path(os.path.commonpath(folders)) if folders else Path()
    except ValueError as error:
        raise TaaeInputError(f"the sources are on several drives ({one_line(error)}); expected one") from error


def open_files(
    name: str, paths: list[Path], taken: set[Path], root: Path, audio_column: str, id_column: str | None
) -> tuple:
    """Readers of files and folders, but not of files taken already, and a fingerprint that changes when a file does.

    Raises:
        TaaeInputError: if there is no file, or one lacks a column.
    """
    tables: list[Path] = []
    owners: dict[Path, Path] = {}  # files that were found, with the source's path that holds them
    paths = [Path(os.path.abspath(path)) for path in paths]
    for path in paths:
        found = [path]  # tried whatever it is called
        if path.is_dir():
            inside = sorted(search_directory(path, SUFFIXES | TABLE_SUFFIXES))
            tables += [file for file in inside if file.name in METADATA_READERS]
            found = [file for file in inside if file.suffix.lower() in SUFFIXES]
        owners |= {file: path for file in found if file.name not in METADATA_READERS}
    metadata = read_metadata(tables)
    if id_column is not None and tables:
        check_column(id_column, metadata.column_names, name, "--id-column")
    named = {file for file in map(Path, metadata["file_name"].to_pylist()) if file not in owners}
    holders = {file: next((path for path in paths if is_below(file, path)), None) for file in named}
    outside = {file for file, path in holders.items() if path is None}
    owners |= holders
    files = list(owners)
    if not files and not tables:
        raise TaaeInputError(f"{name}: holds no audio, no Parquet and no tar file; expected one of them")
    files = [file for file in files if file not in taken]
    taken.update(files)
    recordings, parquets, archives = (
        [file for file in files if ("audio" if file in outside else kind_of(file)) == kind]
        for kind in ("audio", ".parquet", ".tar")
    )
    readers = [
        Recordings(recordings, outside, root, metadata, id_column),
        Tables({file: origin_of(file, owners[file]) for file in parquets}, root, audio_column, id_column),
        Archives(archives, root, id_column),
    ]
    fingerprint = fingerprint_of([file for file in [*files, *tables] if file not in outside], root)
    return [reader for reader in readers if len(reader)], fingerprint


def kind_of(file: Path) -> str:
    """Which reader a file is for."""
    suffix = file.suffix.lower()
    return suffix if suffix in CONTAINERS else "audio"


def fingerprint_of(files: Iterable[Path], root: Path) -> str:
    """The start of a SHA-256 over the files' names, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        size, changed = (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else (0, 0)
        digest.update(os.fsencode(os.path.relpath(file, root)) + f"\t{size}\t{changed}\n".encode())
    return digest.hexdigest()[:16]


def open_dataset(name: str, split: str, subset: str | None, audio_column: str, id_column: str | None) -> tuple:
    """Readers of a data set, and a fingerprint that changes when the data set does.

    Raises:
        TaaeInputError: if there is no such data set, or it lacks a column.
    """
    rows = stream_rows(audio_column, name, subset, split=split)
    if id_column is not None and rows.column_names:
        check_column(id_column, rows.column_names, name, "--id-column")
    fingerprint = Hasher.hash(load_dataset_builder(name, subset).config.data_files)
    origin = Origin(Path(name)) if os.path.isdir(name) else Origin(dataset=name)
    return [StreamedRows(rows, origin, split, audio_column, id_column)], fingerprint
