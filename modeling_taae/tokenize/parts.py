"""Parts: small Parquet files with the rows of one unit in order, each with tokens or the reason why it has none."""

import io
import json

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from .units import Clip

# Columns of a part that shards lack: the file that contains the row, the reason why it has no tokens, and whether its
# channels were averaged.
SOURCE, PROBLEM, AVERAGED = "__source__", "__problem__", "__averaged__"
NOT_KEPT = (SOURCE, PROBLEM, AVERAGED)
OUR_COLUMNS = ("id", "codes", "frames", "duration")
RENAMED = "source_"


def part_bytes(clips: list[Clip], schema: pa.Schema, tokens_per_frame: int, sampling_rate: int) -> bytes:
    """Returns a part as a Parquet file.

    Args:
        clips: the unit's clips, in order.
        schema: the types of the source's own columns, as far as they are known.
        tokens_per_frame: the number of tokens in a frame.
        sampling_rate: the rate of the clips' audio, in Hz.
    """
    content = io.BytesIO()
    parquet.write_table(part_table(clips, schema, tokens_per_frame, sampling_rate), content, compression="zstd")
    return content.getvalue()


def part_table(clips: list[Clip], schema: pa.Schema, tokens_per_frame: int, sampling_rate: int) -> pa.Table:
    """Returns a part as a table: our columns, then the source's own. Takes the arguments of [`part_bytes`]."""
    columns = {
        SOURCE: pa.array([clip.row.source for clip in clips], pa.string()),
        PROBLEM: pa.array([clip.problem for clip in clips], pa.string()),
        AVERAGED: pa.array([clip.averaged for clip in clips], pa.bool_()),
        "id": pa.array([clip.row.id for clip in clips], pa.string()),
        "codes": codes_array([clip.codes for clip in clips], tokens_per_frame),
        "frames": pa.array([0 if clip.codes is None else clip.codes.shape[1] for clip in clips], pa.int64()),
        "duration": pa.array([clip.samples / sampling_rate for clip in clips], pa.float64()),
    }
    names = dict.fromkeys([*schema.names, *(name for clip in clips for name in clip.row.columns)])
    for name, kept in kept_names(list(names)).items():
        values = [clip.row.columns.get(name) for clip in clips]
        if name == "id" and all(
            v in (None, "") or str(v) == clip.row.id for v, clip in zip(values, clips, strict=True)
        ):
            continue  # this column is the rows' ids already
        columns[kept] = column_array(values, schema.field(name).type if name in schema.names else None)
    return pa.table(columns)


def kept_names(names: list[str]) -> dict[str, str]:
    """Returns the name under which each column of a source is kept; names that we use get the prefix `source_`.

    Thus the `codes` of another codec and the `duration` that many corpora have are not lost.
    """
    taken, kept = {*OUR_COLUMNS, *NOT_KEPT, *names}, {}
    for name in names:
        kept[name] = name
        if name in (*OUR_COLUMNS, *NOT_KEPT):
            while kept[name] in taken:
                kept[name] = RENAMED + kept[name]
            taken.add(kept[name])
    return kept


def codes_array(codes: list[np.ndarray | None], tokens_per_frame: int) -> pa.Array:
    """Returns the tokens of clips, each (tokens_per_frame, frames) int64 or None, as lists of frames."""
    frames = [np.zeros((0, tokens_per_frame), np.int64) if clip is None else clip.T for clip in codes]
    tokens = pa.array(np.concatenate([*frames, np.zeros((0, tokens_per_frame), np.int64)]).ravel())
    offsets = np.cumsum([0, *map(len, frames)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(tokens, tokens_per_frame))


def column_array(values: list, known: pa.DataType | None) -> pa.Array:
    """Returns a column of the source, with its known type or one that fits; mixed values become text."""
    try:
        return pa.array(values, known)
    except (pa.ArrowException, OverflowError):
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(texts, pa.string())
