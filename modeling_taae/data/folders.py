"""Finds the recordings, tables and archives of a source, and the lists that describe recordings."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..audio_io import AUDIO_SUFFIXES, unread_sound
from ..errors import TaaeInputError, as_text, one_line
from ..files import search_directory
from .archives import is_archive
from .listings import (
    FILE_COLUMNS,
    KALDI_RECORDINGS,
    LIST_SUFFIXES,
    METADATA,
    TRANSCRIPTS,
    UNTRUSTED_LISTS,
    Listing,
    NotAListError,
    locate,
    priority,
    read_listing,
    read_metadata,
    stems_of,
)
from .origin import CURE, is_below
from .texts import BESIDE, MICROPHONE, files_beside, texts_of

# Suffixes of the files that are read in folders. Some decoders lack the last of these formats; recordings that cannot
# be decoded are reported.
CONTAINERS = frozenset({".parquet", ".tar"})
RECORDINGS = AUDIO_SUFFIXES | {".3ga", ".avi", ".awb", ".dss", ".mpeg", ".mpg", ".ra", ".weba", ".wmv"}
# Suffixes of files that may hold speech or texts but are not read in folders; often they lie there unpacked as well.
PACKED = frozenset({".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".arrow", ".feather", ".h5", ".hdf5"})
OTHER_TEXTS = frozenset({".textgrid", ".srt", ".vtt", ".eaf", ".trs", ".stm", ".ctm", ".chat", ".cha", ".xlsx"})
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # as `save_to_disk` of `datasets` writes them
TOLD_NAMES = 3
# Files with these suffixes count as lists only if they begin like one; other files that fail to be lists are reported.
UNLIKELY_LISTS = frozenset({".json", ".txt"})
POSSIBLE_LISTS = LIST_SUFFIXES | UNLIKELY_LISTS
TOLD_LISTS = LIST_SUFFIXES - UNLIKELY_LISTS


@dataclass
class Found:
    """The files of a source.

    Args:
        owners: each file to read, with the source's path that contains it.
        problems: reasons why some of the files are not opened.
        told: contents of lists, with the recordings that they refer to.
        lists: files that describe recordings.
        beside: files that may describe the recording of the same name, by their full path.
        notes: lines about files that are not read.
    """

    owners: dict[Path, Path] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)
    told: list[tuple[Listing, list[Path]]] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    beside: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find(paths: list[Path], pattern: str | None, audio_root: Path | None) -> Found:
    """Finds the files to read.

    Args:
        paths: full paths of files and folders.
        pattern: the pattern that they match, so that a list among them was not named explicitly; None for one path.
        audio_root: a folder outside of them that may hold recordings named in lists.

    Raises:
        TaaeInputError: if a folder, or a table whose name says that it describes recordings, cannot be read.
    """
    found, wanted, tried = Found(), [], []
    for path in paths:
        if path.is_dir():
            inside = sorted(search_directory(path, None))
            found.owners |= dict.fromkeys([*recordings_and_containers(inside), *saved_tables(inside)], path)
            found.beside |= texts_of(inside)
            wanted += [file for file in inside if file.name in METADATA]
            tried += possible_lists(inside)
            found.notes += notes_on(path, inside)
        elif is_list(path):
            (wanted if pattern is None else tried).append(path)
        else:
            found.owners[path] = path  # named explicitly, so tried whatever its suffix
            if path.suffix.lower() in PACKED - {".arrow"} and not is_archive(path):
                found.problems[path] = "bad audio: it is packed, or a table of a kind that is not read; unpack it first"
    found.told += [(read_metadata(table), []) for table in wanted]
    look_beside(found, paths, pattern)
    for table in tried:
        try:
            found.told.append((read_listing(table), []))
        except (NotAListError, OSError) as error:
            if table.suffix.lower() in TOLD_LISTS:
                found.notes.append(
                    f"{table}: not read ({one_line(error)}); call it metadata.csv if it tells about audio"
                )
    resolve(found, [path if path.is_dir() else path.parent for path in paths], set(wanted), audio_root)
    found.lists = [*wanted, *(listing.table for listing, _ in found.told if listing.table not in wanted)]
    found.lists += [file for listing, _ in found.told for file in listing.others]
    found.told.sort(key=lambda each: priority(each[0].table))
    for file in found.owners:
        if not file.is_file() and os.path.exists(file):
            found.problems.setdefault(file, "bad audio: it is no regular file")
    return found


def look_beside(found: Found, paths: list[Path], pattern: str | None) -> None:
    """Finds the texts of recordings that are named or match a pattern, and notes tables that are not read.

    Args:
        found: the source, to which the texts are added.
        paths: the source's paths.
        pattern: the pattern that they match; texts may lie anywhere below its folder. None for a named recording.
    """
    named = [path for path in paths if suffix_of(path) in RECORDINGS and not path.is_dir()]
    if not named:
        return
    if pattern is None:
        beside = dict.fromkeys(spelt for suffix in BESIDE for spelt in (suffix, suffix.upper()))
        possible = [Path(f"{os.path.splitext(file)[0]}{suffix}") for file in named for suffix in beside]
        inside = [file for file in possible if file.is_file()]
    else:
        inside = list(search_directory(Path(os.path.abspath(fixed_part(pattern))), None))
    found.beside |= texts_of(inside)
    folders = dict.fromkeys(file.parent for file in named)
    for table in (folder / name for folder in folders for name in sorted(METADATA)):
        if table.is_file() and table not in paths:
            found.notes.append(f"{table}: not read, because recordings are named beside it; name it, or its folder")


def fixed_part(pattern: str) -> str:
    """Returns the folder that all matches of a pattern lie in."""
    return os.path.dirname(re.split(r"[*?[]", pattern)[0]) or "."


def recordings_and_containers(inside: Iterable[Path]) -> list[Path]:
    """Returns the recordings, tables and archives of a folder."""
    wanted = RECORDINGS | CONTAINERS
    return [file for file in inside if suffix_of(file) in wanted and file.name not in METADATA]


def suffix_of(file: Path) -> str:
    """Returns a file's suffix in lower case; faster than `Path.suffix`, which matters for millions of files."""
    return os.path.splitext(file.name)[1].lower()


def saved_tables(inside: list[Path]) -> list[Path]:
    """Returns the tables of data sets that `save_to_disk` wrote."""
    tables = []
    for state in (file for file in inside if file.name == SAVED):
        try:
            names = [each["filename"] for each in json.loads(state.read_bytes())["_data_files"]]
            tables += [state.parent / os.path.basename(name) for name in names]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another program's state.json
    return tables


def possible_lists(inside: list[Path]) -> list[Path]:
    """Returns files of a folder that may describe its recordings, although their names do not say so."""
    candidates = [file for file in inside if file.name == KALDI_RECORDINGS or suffix_of(file) in POSSIBLE_LISTS]
    recordings = stems_of(inside) if candidates else {}
    lists = []
    for file in candidates:
        is_called_so = suffix_of(file) not in UNLIKELY_LISTS or file.name.endswith(TRANSCRIPTS)
        is_untrusted = file.name in METADATA or file.stem.lower() in UNTRUSTED_LISTS
        is_beside = str(file.with_suffix("")) in recordings
        if not is_untrusted and (is_called_so or (not is_beside and begins_as_list(file))):
            lists.append(file)
    return lists


def begins_as_list(file: Path) -> bool:
    """Returns whether a file begins with a JSON object that names a file, or with fields that `|` delimits."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as content:
            beginning = content.read(1 << 16).decode("utf-8", "replace").lstrip("\ufeff \r\n\t")
    except OSError:
        return False
    if file.suffix.lower() == ".txt":
        return "|" in beginning.partition("\n")[0]
    return beginning.startswith(("{", "[")) and any(f'"{name}"' in beginning for name in FILE_COLUMNS)


def is_list(file: Path) -> bool:
    """Returns whether an explicitly named file is a list of recordings."""
    return (
        file.suffix.lower() in LIST_SUFFIXES
        or file.name in METADATA | {KALDI_RECORDINGS}
        or (file.suffix.lower() == ".txt" and begins_as_list(file))
    )


def notes_on(folder: Path, inside: list[Path]) -> list[str]:
    """Returns lines about the files of a folder that are not read."""
    saved = set(saved_tables(inside))
    others = [(file, suffix) for file in inside if (suffix := suffix_of(file)) not in RECORDINGS]
    packed = [file for file, suffix in others if suffix in PACKED and file not in saved]
    texts = [file for file, suffix in others if suffix in OTHER_TEXTS]
    microphones = {file: first_microphone(file) for file in inside if "_mic" in file.name}
    repeated = [file for file, first in microphones.items() if first != file and first in microphones]
    untrusted = [file for file, suffix in others if suffix == ".tsv" and file.stem.lower() in UNTRUSTED_LISTS]
    notes = {
        "unpack them, or name archives and tables one by one": packed,
        "write what they tell into metadata.csv, with a column file_name": texts,
        "copy those that are right into metadata.csv": untrusted,
    }
    told = [
        f"{folder}: {len(files)} file{'s are' if len(files) > 1 else ' is'} not read ({names_of(files)}); {cure}"
        for cure, files in notes.items()
        if files
    ]
    if line := unread_sound(inside, RECORDINGS | CONTAINERS):
        told.append(f"{folder}: {line}")
    if repeated:
        told.append(
            f"{folder}: {len(repeated)} of the recordings are the speech of others once more, through another "
            f"microphone ({names_of(repeated)}); to read each once, name those of one, as in '{folder}/**/*_mic1.*'"
        )
    return told


def first_microphone(file: Path) -> Path:
    """Returns the recording of the first microphone that belongs to one of another; the file itself, if it is none."""
    stem, suffix = os.path.splitext(file.name)
    return file.with_name(MICROPHONE.sub("_mic1", stem) + suffix)


def names_of(files: list[Path]) -> str:
    """Returns the first few names of files."""
    names = ", ".join(as_text(file.name) for file in files[:TOLD_NAMES])
    return names + (", ..." if len(files) > TOLD_NAMES else "")


def resolve(found: Found, folders: list[Path], wanted: set[Path], audio_root: Path | None) -> None:
    """Finds the recordings that lists name, and adds those that are not part of the source yet.

    Args:
        found: the source; a list without any recording found is dropped, with a note.
        folders: the folders below which recordings may lie.
        wanted: lists that are kept in any case.
        audio_root: a further folder of recordings.
    """
    stems, told = stems_of(found.owners), found.told
    found.told = []
    roots = [*folders, *([] if audio_root is None else [audio_root])]
    for listing, _ in told:
        places = []
        for name in listing.names:
            place = locate(listing.table.parent, name, stems)
            if place is None and audio_root is not None:
                place = locate(audio_root, name, {})
            places.append(place or Path(os.path.abspath(listing.table.parent / name.replace("\0", ""))))
        holders = {
            place: next((root for root in roots if is_below(place, root)), None)
            for place in places
            if place not in found.owners
        }
        if listing.table not in wanted and not any(
            place in found.owners or (holders[place] is not None and os.path.lexists(place)) for place in places
        ):
            if listing.table.suffix.lower() in TOLD_LISTS:
                found.notes.append(f"{listing.table}: not read, because none of the recordings it names is there")
            continue
        found.told.append((listing, places))
        found.notes += [listing.note] if listing.note else []
        for place, holder in holders.items():
            found.owners[place] = holder or place.parent
            if holder is None:
                found.problems[place] = f"outside: its path leads out of the corpus's folder; {CURE}"


def files_told_beside(found: Found) -> list[Path]:
    """Returns the files that describe a recording of the same name."""
    if not found.beside:
        return []
    return [file for recording in found.owners for file in files_beside(recording, found.beside)]


def saved_split(folder: Path, split: str | None) -> Path:
    """Returns the folder of a split that `save_to_disk` wrote; the folder itself, if it holds no splits.

    Raises:
        TaaeInputError: if there is no such split.
    """
    try:
        splits = json.loads((folder / SAVED_SPLITS).read_bytes())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder
    if split is None:
        return folder
    if split not in splits:
        raise TaaeInputError(f"{folder}: has no split {split!r}, only {', '.join(splits)}; choose one with --split")
    return folder / split


def is_saved(folder: Path) -> bool:
    """Returns whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in (SAVED, SAVED_SPLITS))
