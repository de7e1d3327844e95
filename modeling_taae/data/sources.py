"""Opens corpora of recorded speech from any kind of source, in units of work."""

import glob
import hashlib
import itertools
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import TaaeInputError, as_text, one_line
from .archives import Archives, is_archive
from .folders import CONTAINERS, PACKED, RECORDINGS, Found, files_told_beside, find, is_saved, saved_split
from .listings import LIST_SUFFIXES
from .origin import Origin
from .readers import UNIT_ROWS, Reader, Recordings, Tables
from .row import Row, check_column
from .streams import open_dataset

LOGGER = logging.getLogger(__name__)
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
# A missing source with one of these suffixes is a missing file rather than a data set on the Hub.
FILE_SUFFIXES = RECORDINGS | CONTAINERS | LIST_SUFFIXES | PACKED
TABLE_SUFFIXES = frozenset({".parquet", ".arrow"})


class Corpus:
    """The rows of one or more sources, in units of work.

    Args:
        sources: recordings, Parquet files, WebDataset archives, lists of recordings, folders of all these, patterns of
            their names, or names of data sets on the Hub.
        audio_column: the column with the audio, of Parquet files and data sets.
        id_column: the column with ids; None for the first one that [`COLUMNS`] lists, if there is one.
        split: the split of a data set. If it is given, a folder is read as a data set; otherwise everything in the
            folder is read.
        subset: the subset of a data set that has several.
        hub_split: the split of a data set on the Hub if `split` is None.
        audio_root: a folder outside of the sources that may hold recordings named in them.
        channel: the channel of recordings to read, counted from 1; None averages all.
        names_by_source: whether names are relative to each source's own folder and tables precede recordings, as in
            evaluation and training; otherwise names are relative to the sources' common folder.
        streamed: whether a data set on the Hub is streamed rather than downloaded first.
        unit_rows: the minimum number of rows of a unit, if the source does not fix it.

    Attributes:
        sources: each source's name, number of units, and a fingerprint that changes when it does.
        notes: lines about files of the sources that are not read; they are logged as warnings.

    Raises:
        TaaeInputError: if a source is empty, cannot be read, or lacks a named column.
    """

    def __init__(
        self,
        sources: list[str],
        audio_column: str = "audio",
        id_column: str | None = None,
        split: str | None = None,
        subset: str | None = None,
        *,
        hub_split: str = "train",
        audio_root: str | None = None,
        channel: int | None = None,
        names_by_source: bool = False,
        streamed: bool = True,
        unit_rows: int = UNIT_ROWS,
    ):
        self.channel = channel
        self.readers: list[Reader] = []
        self.sources: list[dict[str, Any]] = []
        self.notes: list[str] = []
        settings = (audio_column, id_column, split, subset, hub_split, audio_root, channel)
        self.identity = [repr(settings)]
        taken: set[Path] = set()
        outside = checked_root(audio_root)
        found = {name: paths_of(name, split, hub_split if names_by_source else None) for name in sources}
        root = None if names_by_source else common_folder(itertools.chain.from_iterable(found.values()))
        for name, paths in found.items():
            readers: list[Reader]
            if paths:
                pattern = None if os.path.exists(name) else name
                files = find([Path(os.path.abspath(path)) for path in paths], pattern, outside)
                readers, fingerprint = open_files(name, files, taken, root, audio_column, id_column, outside, unit_rows)
                self.notes += files.notes
            else:
                is_folder = os.path.isdir(name)
                reader, fingerprint = open_dataset(
                    name, split or hub_split, subset, audio_column, id_column, streamed or is_folder
                )
                readers = [reader]
            self.readers += readers
            place = os.path.abspath(name) if os.path.exists(name) else name
            self.identity.append(f"{as_text(place)}\t{fingerprint}")
            description = {"name": as_text(Path(name).name) if paths else name, "units": sum(map(len, readers))}
            self.sources.append(description | {"fingerprint": fingerprint})
        if not self.readers:
            raise TaaeInputError(f"{', '.join(sources)}: holds nothing to encode; expected audio beside the metadata")
        self.ends = list(itertools.accumulate(map(len, self.readers)))
        for note in self.notes:
            LOGGER.warning("%s", note)

    def __len__(self) -> int:
        """Returns the number of units."""
        return self.ends[-1]

    def __iter__(self) -> Iterator[Row]:
        """Yields the rows of all units."""
        for unit in range(len(self)):
            yield from self.rows(unit)

    def rows(self, unit: int) -> Iterator[Row]:
        """Yields the rows of a unit, in order.

        Raises:
            TaaeInputError: if a source cannot be read any more.
        """
        reader, index = self._locate(unit)
        for row in reader.rows(index):
            row.channel = self.channel
            yield row

    def schema(self, unit: int) -> pa.Schema:
        """Returns the types of the unit's columns, as far as they are known before reading."""
        reader, index = self._locate(unit)
        return reader.schema(index)

    @property
    def known_rows(self) -> int | None:
        """The number of rows, None if it is not known before reading."""
        counts = [reader.known_rows for reader in self.readers]
        return None if None in counts else sum(filter(None, counts))

    def fingerprint(self) -> str:
        """Returns a fingerprint that changes with any file that is read, files named in cells included."""
        named = [fingerprint_of(reader.named_files(), None) for reader in self.readers]
        return hashlib.sha256("\n".join([*self.identity, *named]).encode()).hexdigest()[:32]

    def shards(self) -> list[list[int]]:
        """Returns the units in groups that belong together: those of one table, or of all recordings of a source."""
        groups: list[list[int]] = []
        unit = 0
        for reader in self.readers:
            for names in reader.shards():
                groups.append(list(range(unit, unit + names)))
                unit += names
        return groups

    def _locate(self, unit: int) -> tuple[Reader, int]:
        number = bisect_right(self.ends, unit)
        return self.readers[number], unit - (self.ends[number - 1] if number else 0)


def paths_of(name: str, split: str | None, saved: str | None) -> list[Path]:
    """Returns the files and folders of a source; none for a data set that `datasets` reads.

    Args:
        name: the source.
        split: the requested split; if given, a folder is read as a data set.
        saved: the split of a folder that `save_to_disk` wrote, if none is requested; None reads all.
    """
    if os.path.isdir(name) and is_saved(Path(name)):
        return [saved_split(Path(name), split or saved)]
    return [] if split and os.path.isdir(name) else matching_paths(name)


def matching_paths(source: str) -> list[Path]:
    """Returns the files and folders that a source names or its pattern matches; none for the name of a Hub data set.

    Raises:
        TaaeInputError: if it is a path or pattern without files.
    """
    paths = [Path(source)] if os.path.exists(source) else sorted(map(Path, glob.glob(source, recursive=True)))
    if not paths and (not HUB_NAME.fullmatch(source) or Path(source).suffix.lower() in FILE_SUFFIXES):
        raise TaaeInputError(f"{source}: no such file, folder or pattern; check the path")
    return paths


def checked_root(audio_root: str | None) -> Path | None:
    """Returns the audio root as a full path.

    Raises:
        TaaeInputError: if it is no folder.
    """
    if audio_root is not None and not os.path.isdir(audio_root):
        raise TaaeInputError(f"{audio_root}: is no folder; expected one with recordings as audio root")
    return None if audio_root is None else Path(os.path.abspath(audio_root))


def common_folder(paths: Iterable[Path]) -> Path:
    """Returns the deepest common folder of paths. Names are relative to it, so that they are unique.

    Raises:
        TaaeInputError: if there is none, as for two drives of Windows.
    """
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in paths]
    try:
        return Path(os.path.commonpath(folders)) if folders else Path()
    except ValueError as error:
        raise TaaeInputError(f"the sources are on several drives ({one_line(error)}); expected one") from error


def open_files(
    name: str,
    found: Found,
    taken: set[Path],
    root: Path | None,
    audio_column: str,
    id_column: str | None,
    audio_root: Path | None,
    unit_rows: int,
) -> tuple[list[Reader], str]:
    """Opens the files found in a source, except those that other sources have taken.

    Args:
        name: the source's name in error messages.
        found: the source's files.
        taken: files of other sources; the files of this one are added.
        root: the folder to which names are relative; None for the source's own, which also puts tables first.
        audio_column, id_column, audio_root, unit_rows: see [`Corpus`].

    Returns:
        The source's readers, and a fingerprint that changes when a file does.

    Raises:
        TaaeInputError: if there is no file, or one lacks a column.
    """
    if id_column is not None and found.told:
        listings = [listing for listing, _ in found.told]
        columns = [column for each in listings for column in [*each.schema.names, *itertools.chain(*each.rows)]]
        check_column(id_column, dict.fromkeys(columns), name, "--id-column")
    if not found.owners and not found.lists:
        told = f" ({found.notes[0]})" if found.notes else ""
        raise TaaeInputError(f"{name}: holds no audio, no Parquet and no tar file; expected one of them{told}")
    files = named(found, taken, root)
    taken.update(files)
    kinds = {file: "recording" if file in found.problems else kind_of(file) for file in files}
    recordings, tables, archives = (
        {file: name for file, name in files.items() if kinds[file] == kind}
        for kind in ("recording", "table", "archive")
    )
    if root is not None:
        recordings = dict(sorted(recordings.items(), key=lambda each: str(each[0])))
    origins = {file: origin_of(file, found.owners[file], audio_root) for file in tables}
    from_tables = Tables(tables, origins, audio_column, id_column, unit_rows)
    if twice := recordings.keys() & set(from_tables.named_files() if recordings else ()):
        found.notes.append(
            f"{name}: {len(twice)} recordings are read on their own, and once more because tables name them; to read "
            "them once, name only the tables"
        )
    readers: list[Reader] = [
        Recordings(recordings, found.problems, found.told, found.beside, id_column, unit_rows),
        from_tables,
        Archives(archives, id_column),
    ]
    if root is None:
        readers[:2] = reversed(readers[:2])
    telling = [*found.lists, *files_told_beside(found)]
    opened = [file for file in [*files, *telling] if not found.problems.get(file, "").startswith("outside")]
    return [reader for reader in readers if len(reader)], fingerprint_of(opened, root)


def named(found: Found, taken: set[Path], root: Path | None) -> dict[Path, str]:
    """Returns the files that are not taken yet, with names relative to a root or to the source's folder."""
    files = {}
    for file, owner in found.owners.items():
        if file not in taken:
            begin = owner if owner.is_dir() else owner.parent
            if root is not None and file.is_relative_to(root):
                begin = root
            files[file] = as_text(os.path.relpath(file, begin))
    return files


def kind_of(file: Path) -> str:
    """Returns the kind of reader for a file."""
    if file.suffix.lower() in TABLE_SUFFIXES:
        return "table"
    return "archive" if is_archive(file) else "recording"


def origin_of(file: Path, source: Path, audio_root: Path | None) -> Origin:
    """Returns the files that a table's cells may name: those below the source's folder, or the folder that holds it."""
    return Origin(source if source.is_dir() else source.parent, near=file.parent, audio_root=audio_root)


def fingerprint_of(files: Iterable[Path], root: Path | None) -> str:
    """Returns the start of a SHA-256 over the files' names, relative to a root, sizes and modification times."""
    digest = hashlib.sha256()
    for file in files:
        try:
            state = file.stat()
            size, changed = state.st_size, state.st_mtime_ns
        except (OSError, ValueError):
            size, changed = 0, 0
        name = os.path.abspath(file) if root is None else os.path.relpath(file, root)
        digest.update(os.fsencode(name) + f"\t{size}\t{changed}\n".encode())
    return digest.hexdigest()[:16]
