"""The recordings of a source, as its repository describes them, before decoding."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from training.corpora.manifest import SourceEntry
from training.corpora.repository import GitFiles

GENDERS = {"male": "m", "female": "f", "male_masculine": "m", "female_feminine": "f"}
CLIENT_LENGTH = 10  # characters of Mozilla's speaker hash that tell speakers apart


@dataclass(frozen=True)
class Recording:
    """A recording in a repository.

    Args:
        id: id in the shards.
        path: path in the repository.
        language: language code.
        speaker: speaker; empty if unknown.
        gender: "f", "m" or empty.
        text: transcript; None if unknown.
    """

    id: str
    path: str
    language: str
    speaker: str = ""
    gender: str = ""
    text: str | None = None


def recordings_of(entry: SourceEntry, files: GitFiles) -> list[Recording]:
    """Lists the recordings of a source, in the order of their paths."""
    paths = sorted(path for path in files.blobs if re.search(entry.pattern, path))
    if entry.reader == "common_voice":
        return list(common_voice(entry, files, paths))
    return [plain(entry, path) for path in paths]


def plain(entry: SourceEntry, path: str) -> Recording:
    """Describes a recording by its path."""
    found = re.search(entry.speaker_pattern, path) if entry.speaker_pattern else None
    speaker = entry.speaker or (f"{entry.speaker_prefix}{found[1]}" if found else "")
    place = PurePosixPath(path)
    language = entry.language.format(folder=place.parts[0])
    return Recording(f"{entry.speaker or entry.name}-{place.stem}", path, language, speaker, entry.gender)


def common_voice(entry: SourceEntry, files: GitFiles, paths: list[str]) -> Iterator[Recording]:
    """Yields recordings of Common Voice with speakers, genders and texts from Mozilla's tables."""
    tables: dict[str, tuple[dict[str, dict], set[str]]] = {}
    for path in paths:
        place = PurePosixPath(path)
        folder = place.parts[0]
        if folder not in tables:
            tables[folder] = read_tables(files, [table.format(folder=folder) for table in entry.tables])
        rows, rejected = tables[folder]
        if place.name in rejected:
            continue
        found = re.fullmatch(r"common_voice_([\w-]+?)_(\d+)", place.stem)
        prefix, number = (f"cv-{found[1]}", found[2]) if found else (entry.name, place.stem)
        row = rows.get(place.name, {})
        client = row.get("client_id") or ""
        yield Recording(
            f"{prefix}_{number}",
            path,
            entry.language.format(folder=folder),
            f"{prefix}-{client[:CLIENT_LENGTH]}" if client else "",
            GENDERS.get(row.get("gender") or "", ""),
            row.get("sentence") or None,
        )


def read_tables(files: GitFiles, names: list[str]) -> tuple[dict[str, dict], set[str]]:
    """Reads Mozilla's tables: the rows by file name, and the names of files that listeners rejected."""
    rows: dict[str, dict] = {}
    rejected: set[str] = set()
    for name in names:
        if (content := files.read(name)) is None:
            continue
        table = csv.DictReader(io.StringIO(content.decode("utf-8")), delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in table:
            if "invalidated" in PurePosixPath(name).name:
                rejected.add(row["path"])
            else:
                rows.setdefault(row["path"], row)
    return rows, rejected
