"""The folder of a tokenised corpus, from its plan to its manifest.

Parts are collected in `.parts`, each written in one step, beside the plan that they belong to. When all are there, they
become shards in `data`, then card and list of rejects are written, and last of all the manifest. At whatever moment a
run is killed, the next one finds all parts that were made, or a corpus that is complete.
"""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import compute, parquet
from tqdm import tqdm

from ..errors import TaaeInputError
from ..files import as_json, read_json, write_bytes
from .encoder import OUR_COLUMNS, PROBLEM, SOURCE, Part

# Instead of the fingerprints that say so.
FILES_DIFFER = "other files, or files that were changed since"
MANIFEST, REJECTS, CARD = "manifest.json", "rejects.jsonl", "README.md"


class TokenFolder:
    """A folder for a tokenised corpus; as a context, it is reserved for this process.

    Args:
        path: the folder; it is made if need be.
        plan: all that the tokens depend on, by names that people understand. A folder belongs to one plan.
        units: number of the corpus's units.

    Raises:
        TaaeInputError: if the folder belongs to another plan or holds something else.
    """

    def __init__(self, path: Path, plan: dict, units: int):
        self.path, self.plan, self.units = path, plan, units
        self.parts = path / ".parts"
        self.lock = FileLock(self.parts / "lock")
        self._check()

    def __enter__(self) -> "TokenFolder":
        """Reserves the folder.

        Raises:
            TaaeInputError: if another process has it, or it cannot be written.
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
        """Lets others have the folder, and removes what a complete corpus does not need."""
        self.lock.release()
        if self.complete:
            shutil.rmtree(self.parts, ignore_errors=True)

    def _check(self) -> None:
        begun = read_json(self.path / MANIFEST).get("plan") or read_json(self.parts / "plan.json")
        if not begun and self.path.exists() and not (self.path.is_dir() and set(self.path.iterdir()) <= {self.parts}):
            raise TaaeInputError(f"{self.path}: is there and holds no tokenised corpus; choose a new folder with -o")
        for name in self.plan if begun else ():
            if begun.get(name) != self.plan[name]:
                before, now = json.dumps(begun.get(name)), json.dumps(self.plan[name])
                difference = FILES_DIFFER if name == "source" else f"{before}, now {now}"
                raise TaaeInputError(
                    f"{self.path}: was begun with another {name} ({difference}); go on with what it was begun with, or "
                    "choose a new folder with -o"
                )

    def _unwritable(self, error: OSError) -> TaaeInputError:
        # Making folders below a file says "File exists".
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        return TaaeInputError(
            f"{self.path}: cannot be written ({reason}); see to it, then run the same command again: nothing that is "
            "done is lost"
        )

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.path / MANIFEST).is_file()

    def missing(self) -> list[int]:
        """Units without a part."""
        return [unit for unit in range(self.units) if not is_parquet(self.part(unit))]

    def part(self, unit: int) -> Path:
        """Where the part of a unit is."""
        return self.parts / f"{unit:08d}.parquet"

    def add(self, part: Part) -> None:
        """Keeps a part.

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

    def assemble(self, split: str, hours: float) -> "Contents":
        """Makes shards and the list of rejects of all parts.

        Args:
            split: what the shards are named after.
            hours: of audio that a shard holds, and little more.

        Raises:
            TaaeInputError: if a file cannot be written, columns of the same name have nothing in common, or no row has
                tokens; then nothing is kept, so that the folder can be used again.
        """
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        parts = [self.part(unit) for unit in range(self.units)]
        contents = Contents(common_schema(parquet.read_schema(part) for part in parts))
        tables = (
            contents.add(parquet.read_table(part, partitioning=None))
            for part in tqdm(parts, desc="Writing shards", disable=None)
        )
        for number, table in enumerate(in_shards(tables, hours * 3600)):
            content = shard_bytes(table)
            self.write(self.parts / "shards" / f"{number}.parquet", content)
            contents.shards.append(
                {
                    "rows": len(table),
                    "frames": compute.sum(table["frames"]).as_py(),
                    "seconds": round(compute.sum(table["duration"]).as_py(), 3),
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            )
        if not contents.shards:
            shutil.rmtree(self.parts, ignore_errors=True)
            reasons = "; ".join(f"{reject['id']}: {reject['reason']}" for reject in contents.rejects[:3])
            raise TaaeInputError(f"no row could be tokenised ({reasons or 'there is none'}); check the source")
        total = len(contents.shards)
        end = f"of-{total:05d}-{contents.fingerprint}.parquet"
        names = [f"data/{split}-{number:05d}-{end}" for number in range(total)]
        try:
            (self.path / "data").mkdir(exist_ok=True)
            for number, name in enumerate(names):
                os.replace(self.parts / "shards" / f"{number}.parquet", self.path / name)
        except OSError as error:
            raise self._unwritable(error) from error
        contents.shards = [{"file": name} | shard for name, shard in zip(names, contents.shards, strict=True)]
        lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in contents.rejects)
        self.write(self.path / REJECTS, lines.encode())
        return contents

    def finish(self, card: str, manifest: dict) -> None:
        """Writes what makes the corpus complete.

        Raises:
            TaaeInputError: if it cannot be written.
        """
        self.write(self.path / CARD, card.encode())
        self.write(self.path / MANIFEST, as_json(manifest))


@dataclass
class Contents:
    """What a corpus consists of.

    Args:
        schema: of the shards.
        shards: of each shard its file, rows, frames, seconds, bytes and SHA-256.
        rejects: of each row without tokens its id, source and reason.
        ids: of all rows with tokens, and how many rows have each in the source.
    """

    schema: pa.Schema
    shards: list[dict] = field(default_factory=list)
    rejects: list[dict] = field(default_factory=list)
    ids: Counter[str] = field(default_factory=Counter)

    def add(self, part: pa.Table) -> pa.Table:
        """Takes the rejects from a part and returns the rest, each row with an id of its own."""
        kept, names = [], []
        columns = (part[name].to_pylist() for name in ("id", SOURCE, PROBLEM))
        for number, (name, source, reason) in enumerate(zip(*columns, strict=True)):
            if reason:
                self.rejects.append({"id": name, "source": source, "reason": reason})
            else:
                kept.append(number)
                names.append(self._own_id(name))
        rows = part.take(pa.array(kept, pa.int64()))
        rows = rows.set_column(rows.column_names.index("id"), "id", pa.array(names, pa.string()))
        columns = [
            rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
            for field in self.schema
        ]
        return pa.table(columns, schema=self.schema)

    def _own_id(self, name: str) -> str:
        """An id that no row has yet: in many corpora it is that of the sentence, which several people read."""
        spellings = chain([name], (f"{name}#{number}" for number in count(self.ids[name] + 1)))
        own = next(spelling for spelling in spellings if spelling not in self.ids)
        self.ids.update({name, own})
        return own

    @property
    def fingerprint(self) -> str:
        """What tells these shards from all others: the start of the SHA-256 over theirs.

        It is in the shards' names, and so in the card's pattern of them, because `datasets` takes folders of one name
        and one pattern for the same, and would give what it has cached of the other.
        """
        checksums = "".join(shard["sha256"] for shard in self.shards)
        return hashlib.sha256(checksums.encode()).hexdigest()[:16]

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows were rejected for each kind of reason."""
        return dict(sorted(Counter(reject["reason"].split(":")[0] for reject in self.rejects).items()))

    def total(self, name: str) -> float:
        """Rows, frames, seconds or bytes of all shards."""
        return round(sum(shard[name] for shard in self.shards), 3)


def in_shards(tables: Iterable[pa.Table], seconds: float) -> Iterator[pa.Table]:
    """Joins tables until they hold so many seconds of audio."""
    joined, duration = [], 0.0
    for table in tables:
        joined.append(table)
        duration += compute.sum(table["duration"]).as_py() or 0
        if duration >= seconds:
            yield pa.concat_tables(joined)
            joined, duration = [], 0.0
    if duration:
        yield pa.concat_tables(joined)


def shard_bytes(table: pa.Table) -> bytes:
    """A shard as a Parquet file, the same for the same table."""
    content = io.BytesIO()
    # Tokens are spread too evenly for a dictionary to make them smaller.
    dictionary = [field.name for field in table.schema if field.name not in OUR_COLUMNS]
    parquet.write_table(table, content, compression="zstd", use_dictionary=dictionary, row_group_size=1024)
    return content.getvalue()


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Columns of all parts, ours first, each of a type that holds what is in any part; text if there is no other.

    Raises:
        TaaeInputError: if there is none at all.
    """
    types: dict[str, pa.DataType] = {}
    for field_ in (field_ for schema in schemas for field_ in schema if field_.name not in (SOURCE, PROBLEM)):
        known = types.setdefault(field_.name, field_.type)
        types[field_.name] = known if known == field_.type else common_type(field_.name, known, field_.type)
    # A column without any value could not be loaded together with data that have some.
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in types.items()])


def common_type(name: str, *types: pa.DataType) -> pa.DataType:
    """A type for a column that has several."""
    schemas = [pa.schema([(name, kind)]) for kind in types]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:
        if any(pa.types.is_nested(kind) or pa.types.is_binary(kind) for kind in types):
            raise TaaeInputError(
                f"the column {name!r} is {types[0]} in one place and {types[1]} in another; rename it in one of them"
            ) from error
        return pa.string()


def is_parquet(path: Path) -> bool:
    """Whether there is a whole Parquet file: after a power failure there may be less."""
    try:
        parquet.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    return True
