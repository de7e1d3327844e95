"""The folder of a tokenised corpus, from its plan to its manifest.

Parts are collected in `.parts`, each written in one step, beside the plan that they belong to. When all exist, they
are joined to shards in `data`; then the card and the list of rejects are written, and finally the manifest. Whenever a
run is killed, the next one finds all finished parts, or a complete corpus.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import compute, parquet
from tqdm import tqdm

from ..errors import TaaeInputError
from ..files import as_json, read_json, write_bytes
from .encoder import Part
from .manifest import CARD, MANIFEST, REJECTS, Manifest, Plan, Reject, Shard
from .parts import kept_names
from .shards import Contents, common_schema, in_shards, shard_bytes
from .verification import DATA, fingerprint_of

# Shown in place of fingerprints that differ.
FILES_DIFFER = "other files, or files that were changed since"
MORE_FILES = "; recordings that were added go into a folder of their own: load both folders together"
SHARD_NAME = re.compile(r".+-\d{5,}-of-\d{5,}-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True)
class Assembled:
    """The shards of a folder, and the numbers of rejected rows.

    Args:
        shards: the shards' files.
        columns: the names of their columns.
        rejected: the number of rejected rows for each kind of reason.
        averaged: the number of rows whose channels were averaged.
    """

    shards: list[Shard]
    columns: list[str]
    rejected: dict[str, int]
    averaged: int

    @property
    def fingerprint(self) -> str:
        """The shards' fingerprint."""
        return fingerprint_of([shard.sha256 for shard in self.shards])


class TokenFolder:
    """A folder for a tokenised corpus; as a context, it is reserved for this process.

    Args:
        path: the folder; made if it does not exist.
        plan: the settings. A folder belongs to one plan.
        units: the number of units of the corpus.

    Raises:
        TaaeInputError: if the folder belongs to another plan or holds something else.
    """

    def __init__(self, path: Path, plan: Plan, units: int):
        self.path, self.plan, self.units = path, plan.to_json(), units
        self.parts = path / ".parts"
        self.lock = FileLock(self.parts / "lock")
        self._check()

    def __enter__(self) -> "TokenFolder":
        """Reserves the folder.

        Raises:
            TaaeInputError: if another process has reserved it, or it cannot be written.
        """
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise TaaeInputError(f"{self.path}: another run is at work there; wait until it ends") from error
        except OSError as error:
            raise self._unwritable(error) from error
        self._check()
        if not self.complete:
            self.write(self.parts / "plan.json", as_json(self.plan))
        return self

    def __exit__(self, *exception: object) -> None:
        """Releases the folder, and removes files that a complete corpus does not need."""
        self.lock.release()
        if self.complete:
            shutil.rmtree(self.parts, ignore_errors=True)

    def _check(self) -> None:
        begun = read_json(self.path / MANIFEST).get("plan") or read_json(self.parts / "plan.json")
        if not begun and self.path.exists() and not (self.path.is_dir() and set(self.path.iterdir()) <= {self.parts}):
            raise TaaeInputError(f"{self.path}: exists and holds no tokenised corpus; choose a new folder with -o")
        for name in {**self.plan, **begun} if begun else ():
            if begun.get(name) != self.plan.get(name):
                before, now = json.dumps(begun.get(name)), json.dumps(self.plan.get(name))
                difference = FILES_DIFFER if name == "source" else f"{before}, now {now}"
                raise TaaeInputError(
                    f"{self.path}: was begun with another {name} ({difference}); continue with the settings it was "
                    f"begun with, or choose a new folder with -o{MORE_FILES if name == 'source' else ''}"
                )

    def _unwritable(self, error: BaseException | None) -> TaaeInputError:
        # Making a folder below a file raises "File exists".
        strerror = getattr(error, "strerror", None)
        reason = "Not a directory" if isinstance(error, FileExistsError) else strerror or error
        return TaaeInputError(
            f"{self.path}: cannot be written ({reason}); fix that, then run the same command again: finished parts are "
            "kept"
        )

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return (self.path / MANIFEST).is_file()

    def missing(self, schema: Callable[[int], pa.Schema]) -> list[int]:
        """Returns the units without a part, or with a part that lacks a column of the source.

        Parts of older versions lack the source's own `codes`, `frames` and `duration`.

        Args:
            schema: returns the types of a unit's columns, as far as they are known.
        """
        return [unit for unit in range(self.units) if not is_part(self.part(unit), schema(unit).names)]

    def part(self, unit: int) -> Path:
        """Returns the path of a unit's part."""
        return self.parts / f"{unit:08d}.parquet"

    def add(self, part: Part) -> None:
        """Stores a part.

        Raises:
            TaaeInputError: if it cannot be written.
        """
        self.write(self.part(part.unit), part.content)

    def write(self, path: Path, content: bytes) -> None:
        """Writes a file in one step.

        Raises:
            TaaeInputError: if it cannot be written.
        """
        try:
            write_bytes(path, content)
        except TaaeInputError as error:
            raise self._unwritable(error.__cause__) from error

    def assemble(self, split: str, hours: float) -> Assembled:
        """Makes the shards and the list of rejects from all parts.

        Args:
            split: the split, which is part of the shards' names.
            hours: hours of audio in a shard; a shard may be slightly longer.

        Raises:
            TaaeInputError: if a file cannot be written, a column's types are incompatible, or no row has tokens; then
                nothing is kept, so that the folder can be used again.
        """
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        parts = [self.part(unit) for unit in range(self.units)]
        contents = Contents(common_schema(parquet.read_schema(part) for part in parts))
        tables = (
            contents.add(parquet.read_table(part, partitioning=None))
            for part in tqdm(parts, desc="Writing shards", disable=None)
        )
        unnamed = [self._write_shard(number, table) for number, table in enumerate(in_shards(tables, hours * 3600))]
        if not unnamed:
            self._free(contents.rejects)
        shards = self._place_shards(unnamed, split)
        lines = "".join(json.dumps(reject.to_json(), ensure_ascii=False) + "\n" for reject in contents.rejects)
        self.write(self.path / REJECTS, lines.encode())
        return Assembled(shards, contents.schema.names, contents.reasons, contents.averaged)

    def _write_shard(self, number: int, table: pa.Table) -> Shard:
        content, file = shard_bytes(table), self.parts / "shards" / f"{number}.parquet"
        self.write(file, content)
        return Shard(
            file=str(file),
            rows=len(table),
            frames=compute.sum(table["frames"]).as_py(),
            seconds=round(compute.sum(table["duration"]).as_py(), 3),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def _place_shards(self, unnamed: list[Shard], split: str) -> list[Shard]:
        """Moves the shards to their final names, and removes those that an earlier run left there."""
        end = f"of-{len(unnamed):05d}-{fingerprint_of([shard.sha256 for shard in unnamed])}.parquet"
        names = [f"{DATA}/{split}-{number:05d}-{end}" for number in range(len(unnamed))]
        try:
            (self.path / DATA).mkdir(exist_ok=True)
            for shard, name in zip(unnamed, names, strict=True):
                os.replace(shard.file, self.path / name)
            for file in (self.path / DATA).iterdir():
                if SHARD_NAME.fullmatch(file.name) and f"{DATA}/{file.name}" not in names:
                    file.unlink()
        except OSError as error:
            raise self._unwritable(error) from error
        return [Shard(**vars(shard) | {"file": name}) for shard, name in zip(unnamed, names, strict=True)]

    def _free(self, rejects: list[Reject]) -> None:
        shutil.rmtree(self.parts, ignore_errors=True)
        reasons = "; ".join(f"{reject.id}: {reject.reason}" for reject in rejects[:3])
        raise TaaeInputError(f"no row could be tokenised ({reasons or 'there is none'}); check the source")

    def finish(self, card: str, manifest: Manifest) -> None:
        """Writes the files that make the corpus complete.

        Raises:
            TaaeInputError: if it cannot be written.
        """
        self.write(self.path / CARD, card.encode())
        self.write(self.path / MANIFEST, as_json(manifest.to_json()))


def is_part(path: Path, columns: list[str]) -> bool:
    """Returns whether a part is a complete Parquet file with the source's columns; a power failure may truncate it.

    Args:
        path: the file.
        columns: the source's own columns, as far as they are known.
    """
    try:
        names = parquet.read_schema(path).names
    except (OSError, pa.ArrowException):
        return False
    return {kept for name, kept in kept_names(columns).items() if name != "id"} <= {*names}
