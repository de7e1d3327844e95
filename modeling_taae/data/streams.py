"""Reads data sets of the Hub, and folders in the format of data sets, with `datasets`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import DatasetBuilder, IterableDataset, load_dataset, load_dataset_builder
from datasets.fingerprint import Hasher
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ..errors import TaaeInputError, one_line
from .origin import Origin
from .readers import OwnColumns, Reader, cells_and_columns
from .row import Row, check_column, row_id

# Parts into which a data set on disk is split, so that several processes can read it.
PARTS = 64
TIMEOUT = 10.0  # seconds


class StreamedRows(Reader):
    """Reads a data set that `datasets` streams; a unit is one of its files.

    Args:
        rows: the stream.
        origin: the place whose files the cells may name.
        split: the name of the split.
        audio_column, id_column: see [`Corpus`].
    """

    def __init__(self, rows: IterableDataset, origin: Origin, split: str, audio_column: str, id_column: str | None):
        self.origin, self.split, self.audio_column, self.id_column = origin, split, audio_column, id_column
        self.own = OwnColumns(rows.features, audio_column) if rows.features else None
        self.streamed = rows.select_columns([audio_column, *self.own.schema.names]) if self.own else rows
        splits = getattr(rows.info, "splits", None) or {}
        self.known_rows = getattr(splits.get(split), "num_examples", None) or None

    def __len__(self) -> int:
        return self.streamed.num_shards

    def schema(self, unit: int) -> pa.Schema:
        """Returns the types of the data set's own columns, if it has them."""
        return self.own.schema if self.own else pa.schema([])

    def rows(self, unit: int) -> Iterator[Row]:
        """Yields the rows of a file."""
        name = f"{self.split}-{unit:05d}"
        try:
            for number, (audio, row) in enumerate(self._rows(unit)):
                columns = self.own.of(row) if self.own else row
                told = row_id(columns, self.id_column)
                identifier = f"{name}#{number}" if told is None else told
                yield Row(identifier, name, audio, columns, origin=self.origin, is_numbered=told is None)
        # An error rather than rejects, because the network may be the reason.
        except (OSError, ValueError, EOFError, pa.ArrowException) as error:
            raise TaaeInputError(
                f"{name}: cannot be read ({one_line(error)}); fix that, then run the same command again"
            ) from error

    def _rows(self, unit: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        # Through Arrow, because otherwise `datasets` needs torchcodec for everything but Parquet.
        shard = self.streamed.shard(num_shards=len(self), index=unit).with_format("arrow")
        for table in shard:
            yield from cells_and_columns(table.combine_chunks(), self.audio_column)


def open_dataset(
    name: str, split: str, subset: str | None, audio_column: str, id_column: str | None, streamed: bool = True
) -> tuple[StreamedRows, str]:
    """Opens a data set.

    Args:
        name: its name on the Hub, or a folder.
        split, subset, audio_column, id_column: see [`Corpus`].
        streamed: whether to stream it rather than to download it first. Formats other than Parquet are always streamed.

    Returns:
        The data set's reader, and a fingerprint that changes when the data set does.

    Raises:
        TaaeInputError: if there is no such data set, or it lacks a column.
    """
    try:
        if not os.path.isdir(name):
            check_there(name)
        builder = load_dataset_builder(name, subset)
        if streamed or builder.name != "parquet":
            rows = streamed_split(builder, split)
        else:
            downloaded = load_dataset(name, subset, split=split)
            rows = downloaded.to_iterable_dataset(num_shards=max(1, min(PARTS, len(downloaded))))
        # Formats such as CSV have no features before reading; their audio columns hold paths.
        rows = rows.decode(False) if rows.features else rows
        columns = rows.column_names or list(next(iter(rows)))
    except Exception as error:  # datasets raises errors of many types, all of which mean that it cannot be read
        place = "" if os.path.exists(name) else f"there is no folder of that name in {os.getcwd()}; "
        raise TaaeInputError(
            f"{name}: cannot be read ({one_line(error)}); {place}expected Parquet files, a folder of audio or the name "
            "of a data set on the Hub"
        ) from error
    check_column(audio_column, columns, name, "--audio-column")
    if id_column is not None:
        check_column(id_column, columns, name, "--id-column")
    origin = Origin(Path(name)) if os.path.isdir(name) else Origin(dataset=name)
    reader = StreamedRows(rows, origin, split, audio_column, id_column)
    return reader, Hasher.hash(builder.config.data_files)


def check_there(name: str) -> None:
    """Asks the Hub once whether it has a data set, for which `datasets` would try again and again.

    Raises:
        FileNotFoundError: if it has none.
        OSError: if the Hub cannot be reached, and nothing of the data set was downloaded before.
    """
    try:
        HfApi(datasets.config.HF_ENDPOINT).dataset_info(name, timeout=TIMEOUT)
    except RepositoryNotFoundError as error:
        raise FileNotFoundError("the Hub has no data set of that name, or none that you may see") from error
    except HfHubHTTPError:
        pass  # it answers: `datasets` will tell what is wrong
    except Exception as error:  # of the library that connects
        if not os.path.isdir(os.path.join(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___"))):
            raise OSError(f"the Hub cannot be reached: {one_line(error)}") from error


def streamed_split(builder: DatasetBuilder, split: str) -> IterableDataset:
    """Returns a split as a stream, without the threads that decode ahead, which need torchcodec."""
    if hasattr(builder.config, "decode_num_threads"):
        builder.config.decode_num_threads = 0
    return builder.as_streaming_dataset(split=split)
