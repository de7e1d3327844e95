"""Joins parts to shards: rows with tokens under one schema with unique ids, and a list of rejects."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count

import pyarrow as pa
from pyarrow import compute, parquet

from ..errors import TaaeInputError
from .manifest import Reject
from .parts import AVERAGED, NOT_KEPT, OUR_COLUMNS, PROBLEM, SOURCE


@dataclass
class Contents:
    """Collects the rows of a corpus while its parts are read one by one.

    Args:
        schema: the shards' schema.
        rejects: the rows without tokens so far.
        ids: the rows with tokens so far, with the number of rows that have each id in the source.
        averaged: the rows so far whose channels were averaged.
    """

    schema: pa.Schema
    rejects: list[Reject] = field(default_factory=list)
    ids: Counter[str] = field(default_factory=Counter)
    averaged: int = 0

    def add(self, part: pa.Table) -> pa.Table:
        """Takes the rejects from a part and returns the other rows with unique ids."""
        kept, names = [], []
        columns = (part[name].to_pylist() for name in ("id", SOURCE, PROBLEM))
        for number, (name, source, reason) in enumerate(zip(*columns, strict=True)):
            if reason:
                self.rejects.append(Reject(name, source, reason))
            else:
                kept.append(number)
                names.append(self._own_id(name))
        rows = part.take(pa.array(kept, pa.int64()))
        if AVERAGED in part.column_names:  # parts of earlier versions do not tell
            self.averaged += compute.sum(rows[AVERAGED]).as_py() or 0
        rows = rows.set_column(rows.column_names.index("id"), "id", pa.array(names, pa.string()))
        taken = [
            rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
            for field in self.schema
        ]
        return pa.table(taken, schema=self.schema)

    def _own_id(self, name: str) -> str:
        """Returns an id that no row has yet. In many corpora the id is a sentence's, which several people read."""
        spellings = chain([name], (f"{name}#{number}" for number in count(self.ids[name] + 1)))
        own = next(spelling for spelling in spellings if spelling not in self.ids)
        self.ids.update({name, own})
        return own

    @property
    def reasons(self) -> dict[str, int]:
        """The number of rejected rows for each kind of reason."""
        return dict(sorted(Counter(reject.kind for reject in self.rejects).items()))


def in_shards(tables: Iterable[pa.Table], seconds: float) -> Iterator[pa.Table]:
    """Joins tables until each result holds `seconds` of audio."""
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
    """Returns a shard as a Parquet file; equal tables give equal bytes."""
    content = io.BytesIO()
    # Tokens are distributed too evenly for a dictionary to compress them.
    dictionary = [field.name for field in table.schema if field.name not in OUR_COLUMNS]
    parquet.write_table(table, content, compression="zstd", use_dictionary=dictionary, row_group_size=1024)
    return content.getvalue()


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Returns the columns of all parts, ours first, each with a type that fits all parts, else text.

    Raises:
        TaaeInputError: if a column's types are incompatible.
    """
    types: dict[str, pa.DataType] = {}
    for field_ in (field_ for schema in schemas for field_ in schema if field_.name not in NOT_KEPT):
        known = types.setdefault(field_.name, field_.type)
        types[field_.name] = known if known == field_.type else common_type(field_.name, known, field_.type)
    # A column of nulls could not be loaded together with data that have values there.
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in types.items()])


def common_type(name: str, *types: pa.DataType) -> pa.DataType:
    """Returns a common type for a column that has several types.

    Raises:
        TaaeInputError: if there is none.
    """
    schemas = [pa.schema([(name, kind)]) for kind in types]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:
        if any(pa.types.is_nested(kind) or pa.types.is_binary(kind) for kind in types):
            raise TaaeInputError(
                f"the column {name!r} is {types[0]} in one place and {types[1]} in another; rename it in one of them"
            ) from error
        return pa.string()
