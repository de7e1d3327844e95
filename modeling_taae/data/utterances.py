"""Recorded speech to evaluate on, from Parquet files, folders of audio or data sets on the Hub.

Audio is kept as bytes by `datasets` and decoded by soundfile and soxr. An utterance that cannot be scored comes all the
same, with what is wrong with it.
"""

import glob
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import fsspec
import numpy as np

from ..audio_io import AUDIO_SUFFIXES, decode_audio
from ..errors import TaaeInputError, as_text, one_line
from ..feature_extraction_taae import GATING_BLOCK, SILENCE_ENERGY
from ..files import search_directory

if TYPE_CHECKING:
    from datasets import IterableDataset

# What data sets call the columns that evaluation knows, first match wins.
COLUMNS = {
    "id": ("id", "utterance_id", "segment_id"),
    "language": ("language", "locale", "lang"),
    "source": ("source",),
    "speaker": ("speaker_id", "speaker", "client_id"),
    "gender": ("gender",),
    "kind": ("kind",),
    "text": ("text", "sentence", "transcription", "transcript"),
}
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
# What ends like this is a file that is not there, rather than a data set on the Hub.
FILE_SUFFIXES = AUDIO_SUFFIXES | {".parquet", ".tar"}
# A duration column may be off by so many seconds before the file is called mismatched.
DURATION_TOLERANCE = 0.1


@dataclass(frozen=True)
class Origin:
    """Where a corpus lies, and so what its cells and metadata may name: they are other people's text.

    Args:
        folder: the folder whose files may be opened, however deep; None for no file.
        dataset: the Hub data set whose files may be fetched, at the addresses that `datasets` streams from; None for
            no address.
        near: the folder where relative paths begin, below `folder`; None for `folder` itself.
    """

    folder: Path | None = None
    dataset: str | None = None
    near: Path | None = None

    def open(self, path: str, name: str) -> BinaryIO:
        """Opens a file that a cell names.

        Args:
            path: a path, or an address of the data set.
            name: what errors call it.

        Raises:
            TaaeInputError: if it is missing, or not one of the corpus's own files.
            OSError: if it cannot be read.
        """
        if "://" in path:
            if not self.holds_address(path):
                raise TaaeInputError(
                    f"{name}: outside: {as_text(path)} is an address, and addresses that a corpus names are not "
                    "fetched; download the recordings into its folder"
                )
            return fsspec.open(path, "rb").open()
        file = Path(self.near or self.folder or "", path)
        if self.folder is not None and not is_below(file, self.folder):
            raise TaaeInputError(
                f"{name}: outside: {as_text(path)} does not lie in the corpus's folder, and nothing else is opened; "
                "move the recordings there"
            )
        if self.folder is None or not file.is_file():
            raise TaaeInputError(f"{name}: missing: there is no file {as_text(path)}")
        return file.open("rb")

    def holds_address(self, address: str) -> bool:
        """Whether `datasets` makes such an address for a file of this data set, or for a member of its archives."""
        if self.dataset is None or ".." in re.split(r"[/\\]", address):
            return False
        place = rf"hf://datasets/{re.escape(self.dataset)}(@[\w.%~-]+)?/[^:]+"
        return re.fullmatch(rf"((zip|tar)://[^:]+::)?{place}", address) is not None


def origin_of(file: Path, source: Path) -> Origin:
    """What the cells of a table may name: files below the folder that is the source, or holds it."""
    return Origin(source if source.is_dir() else source.parent, near=file.parent)


def is_below(file: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, however deep, once links are followed."""
    try:
        return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a path with a NUL character
        return False


NOWHERE = Origin()


@dataclass
class Utterance:
    """One recording.

    Args:
        id: unique within the data.
        audio: (samples,) float32, or None where it cannot be scored.
        problem: what is wrong with it, empty if nothing; with audio beside it, it can be scored nevertheless.
        facts: language, source, speaker and text, as far as the data tell.
    """

    id: str
    audio: np.ndarray | None
    problem: str = ""
    facts: dict[str, str] = field(default_factory=dict)


class Utterances:
    """The utterances of one or more sources, in their order; it can be gone through more than once.

    Args:
        sources: Parquet files, audio files, folders of either, glob patterns of them, or names of Hub data sets.
        sampling_rate: to decode to, in Hz.
        limit: how many from the start; None for all.
        split: of Hub data sets.
        subset: of Hub data sets that have several.
        audio_column: of Parquet files and Hub data sets.
        transcripts: a Parquet file with columns `id` and `text`, for utterances that have no text themselves.
        strict: whether recordings that are silent or too short to score come without their audio.

    Raises:
        TaaeInputError: if a source holds nothing.
    """

    def __init__(
        self,
        sources: list[str],
        sampling_rate: int = 16_000,
        limit: int | None = None,
        split: str = "test",
        subset: str | None = None,
        audio_column: str = "audio",
        transcripts: str | None = None,
        strict: bool = True,
    ):
        self.sampling_rate, self.limit, self.strict = sampling_rate, limit, strict
        self.split, self.subset, self.audio_column = split, subset, audio_column
        self.texts = {} if transcripts is None else read_transcripts(transcripts)
        self.readers = [self._reader(source) for source in sources]

    def __len__(self) -> int:
        """Number of utterances; of streamed Hub data sets, as far as their makers tell, else 0."""
        total = sum(rows for rows, _ in self.readers)
        return total if self.limit is None else min(total, self.limit)

    def __iter__(self) -> Iterator[Utterance]:
        seen: Counter[str] = Counter()
        rows = chain.from_iterable(read() for _, read in self.readers)
        for number, (row, origin) in enumerate(islice(rows, self.limit)):
            facts = known_columns(row)
            name = facts.pop("id", f"{number:06d}")
            if name in self.texts:
                facts.setdefault("text", self.texts[name])
            seen[name] += 1
            yield self._utterance(name if seen[name] == 1 else f"{name}#{seen[name]}", row, facts, origin)

    def _utterance(self, name: str, row: dict, facts: dict[str, str], origin: Origin) -> Utterance:
        try:
            audio = decode_cell(row[self.audio_column], name, self.sampling_rate, origin)
        except (TaaeInputError, OSError) as error:
            return Utterance(name, None, one_line(error).removeprefix(f"{name}: "), facts)
        if not self.strict:
            return Utterance(name, audio, "", facts)
        if problem := fault(audio, self.sampling_rate, GATING_BLOCK):
            return Utterance(name, None, problem, facts)
        seconds, promised = len(audio) / self.sampling_rate, row.get("duration")
        if isinstance(promised, float | int) and abs(promised - seconds) > DURATION_TOLERANCE:
            problem = f"mismatched: {seconds:.2f} s long where its duration column says {promised:.2f} s; scored"
        return Utterance(name, audio, problem, facts)

    def _reader(self, source: str) -> tuple:
        """Number of rows, and a function that goes through them."""
        paths = matching_paths(source)
        if not paths:
            return self._hub_reader(source)
        files = [(name, file, path) for path in paths for name, file in files_of(path)]
        tables = [(str(file), origin_of(file, path)) for _, file, path in files if file.suffix == ".parquet"]
        recordings = [(name, file) for name, file, _ in files if file.suffix != ".parquet"]
        if not files:
            raise TaaeInputError(f"{source}: holds no audio and no Parquet file; expected one of them")

        def read() -> Iterator[tuple[dict, Origin]]:
            for table, origin in tables:
                rows = stream_rows(self.audio_column, "parquet", data_files=glob.escape(table), split="train")
                yield from ((row, origin) for row in as_dictionaries(rows))
            for name, file in recordings:
                yield {"id": name, self.audio_column: file}, Origin()

        return sum(count_rows(table) for table, _ in tables) + len(recordings), read

    def _hub_reader(self, source: str) -> tuple:
        rows = stream_rows(self.audio_column, source, self.subset, split=self.split)
        splits = getattr(rows.info, "splits", None) or {}
        number, origin = getattr(splits.get(self.split), "num_examples", 0) or 0, Origin(dataset=source)
        return number, lambda: ((row, origin) for row in as_dictionaries(rows))


def matching_paths(source: str) -> list[Path]:
    """The files and folders that a source names or its pattern matches; none for the name of a Hub data set.

    Raises:
        TaaeInputError: if it is neither.
    """
    paths = [Path(source)] if os.path.exists(source) else sorted(map(Path, glob.glob(source, recursive=True)))
    if not paths and (not HUB_NAME.fullmatch(source) or Path(source).suffix.lower() in FILE_SUFFIXES):
        raise TaaeInputError(f"{source}: no such file, folder or pattern; check the path")
    return paths


def stream_rows(audio_column: str, *arguments: str | None, **options: str) -> "IterableDataset":
    """What `datasets.load_dataset` loads of these arguments, as a stream with its audio as bytes or path.

    Raises:
        TaaeInputError: if there is nothing to read or no such column.
    """
    from datasets import Audio, load_dataset

    name = options.get("data_files", arguments[0])
    try:
        rows = load_dataset(*arguments, streaming=True, **options)
        columns = rows.column_names or list(next(iter(rows)))
    except Exception as error:  # datasets raises many types, and each means that there is nothing to read
        raise TaaeInputError(
            f"{name}: cannot be read ({one_line(error)}); expected Parquet files, a folder of audio or the name of a "
            "data set on the Hub"
        ) from error
    check_column(audio_column, columns, name, "--audio-column")
    # Features are not known of what has to be read to know them, such as CSV; it holds paths.
    return rows.cast_column(audio_column, Audio(decode=False)) if rows.features else rows


def as_dictionaries(rows: "IterableDataset") -> Iterator[dict]:
    """The rows of a stream, by way of Arrow.

    By any other, `datasets` wants torchcodec for whatever is not Parquet, though it decodes nothing.
    """
    for table in rows.with_format("arrow"):
        yield from table.to_pylist()


def check_column(column: str, columns: Iterable[str], name: str, option: str) -> None:
    """Checks that a column that an option names is there; `name` is what the error calls the data.

    Raises:
        TaaeInputError: if it is not.
    """
    if column not in columns:
        raise TaaeInputError(f"{name}: has no column {column!r}, only {', '.join(columns)}; choose one with {option}")


def decode_cell(
    audio: dict | str | bytes | Path | None, name: str, sampling_rate: int, origin: Origin = NOWHERE
) -> np.ndarray:
    """Decodes audio as data sets hold it to (samples,) float32.

    Args:
        audio: the bytes of an audio file, its path or address, or both in a dictionary with the keys `bytes` and
            `path`. A `Path` is a file that was found, and is opened wherever it lies.
        name: what errors call it.
        sampling_rate: samples per second of the result, in Hz.
        origin: where the corpus lies, below which paths are opened.

    Raises:
        TaaeInputError: if there is no audio, it cannot be decoded, or it names something that is not the corpus's.
        OSError: if the file cannot be read.
    """
    match audio:
        case Path():
            if not audio.is_file():
                raise TaaeInputError(f"{name}: missing: there is no such file")
            with audio.open("rb") as file:
                return decode_audio(file, name, sampling_rate)
        case bytes() | None:
            content, path = audio, None
        case str():
            content, path = None, audio
        case {"bytes": bytes() | None as content, **others}:
            path = others.get("path")
        case {"path": str() | None as path}:
            content = None
        case _:
            kind = f"keys {', '.join(audio)}" if isinstance(audio, dict) else type(audio).__name__
            raise TaaeInputError(f"{name}: holds {kind} for its audio; expected the bytes or the path of an audio file")
    if content is not None:
        return decode_audio(io.BytesIO(content), name, sampling_rate)
    if not path:
        raise TaaeInputError(f"{name}: missing: there is neither audio nor a path")
    with origin.open(path, name) as file:
        return decode_audio(file, name, sampling_rate)


def fault(audio: np.ndarray, sampling_rate: int, shortest: float) -> str:
    """Why a clip cannot be used, empty if it can: it is shorter than so many seconds, or silent."""
    seconds = len(audio) / sampling_rate
    if seconds < shortest:
        return f"too short: {seconds:.3f} s, at least {shortest:g} s are needed"
    if np.mean(np.square(audio)) < SILENCE_ENERGY:
        return "silent: its level is below -60 dB of full scale"
    return ""


def known_columns(row: dict) -> dict[str, str]:
    """What evaluation uses of a row beside the audio."""
    found = {}
    for name, aliases in COLUMNS.items():
        values = [row[alias] for alias in aliases if row.get(alias) not in (None, "")]
        if values and isinstance(values[0], str | int):
            found[name] = str(values[0])
    return found


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """A file itself, or the audio and Parquet files in a folder, however deep, each with its name in the results."""
    if path.is_dir():
        for file in sorted(search_directory(path, AUDIO_SUFFIXES | {".parquet"})):
            yield as_text(file.relative_to(path)), file
    else:
        yield as_text(path.name), path


def read_transcripts(table: str) -> dict[str, str]:
    """Texts by id.

    Raises:
        TaaeInputError: if the file is no Parquet file with these columns.
    """
    from pyarrow import ArrowException, parquet

    try:
        columns = parquet.read_table(table, columns=["id", "text"])
        return {
            name: text for name, text in zip(*(columns[c].to_pylist() for c in ("id", "text")), strict=True) if text
        }
    except (OSError, KeyError, ArrowException) as error:
        raise TaaeInputError(
            f"{table}: cannot be read ({one_line(error)}); expected a Parquet file with columns id and text"
        ) from error


def count_rows(table: str) -> int:
    """Rows of a Parquet file.

    Raises:
        TaaeInputError: if it is none.
    """
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_metadata(table).num_rows
    except (OSError, ArrowException) as error:
        raise TaaeInputError(f"{table}: cannot be read as Parquet ({one_line(error)}); check the file") from error
