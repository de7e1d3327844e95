"""Batches of a run: the items of each process, and loaders that raise errors without wrapping them.

The global batch consists of the same items for any number of processes, and a resumed run continues with the items that
it would have had without the interruption.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from modeling_taae.errors import TaaeInputError
from training.recipe import RecipeError

FORESEEN = (RecipeError, TaaeInputError, OSError)


class Failure:
    """An error that a worker returns as a value, because a loader would wrap a raised one in a traceback."""

    def __init__(self, error: Exception):
        self.error = error


class Batches(Dataset):
    """The batches of a data set by the indices of their items; an expected error takes the place of its batch."""

    def __init__(self, dataset: Dataset, collate: Callable[[list], Any]):
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, indices: range) -> Any:
        """Returns a batch, or the error that reading its items raises."""
        try:
            return self.collate([self.dataset[index] for index in indices])
        except FORESEEN as error:
            return Failure(error)


class BatchStream(IterableDataset):
    """The batches of a stream; an expected error ends them, as the last one."""

    def __init__(self, dataset: IterableDataset, size: int):
        self.dataset, self.size = dataset, size

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches, and the error that ends them."""
        items = iter(self.dataset)
        try:
            while batch := list(islice(items, self.size)):
                yield default_collate(batch)
        except FORESEEN as error:
            yield Failure(error)


def shares(size: int, batches: range, process: int, processes: int) -> list[range]:
    """Returns the indices of the items in each of a process's batches.

    Args:
        size: items in a batch of one process.
        batches: indices of the batches in the run.
        process, processes: the index of this process and the number of processes.
    """
    starts = ((batch * processes + process) * size for batch in batches)
    return [range(start, start + size) for start in starts]


def batches_of(
    dataset: Dataset,
    shares: list[range],
    workers: int,
    collate: Callable[[list], Any] = default_collate,
    pinned: bool = False,
) -> Iterable[Any]:
    """Yields a batch for each share, with the items at the share's indices.

    Raises:
        RecipeError, TaaeInputError, OSError: raised by the data set in any process.
    """
    return loaded(Batches(dataset, collate), workers, sampler=shares, pin_memory=pinned)


def batches_of_stream(dataset: IterableDataset, size: int, count: int, workers: int) -> Iterable[Any]:
    """Yields `count` batches of a stream.

    Raises:
        RecipeError, TaaeInputError, OSError: raised by the stream in any process.
    """
    return islice(loaded(BatchStream(dataset, size), min(workers, 1)), count)


def loaded(batches: Dataset, workers: int, **options: Any) -> Iterator[Any]:
    """Yields batches that workers prepare, and raises an error that comes instead of a batch.

    Args:
        batches: a data set or stream of whole batches.
        workers: the number of worker processes; 0 prepares them in this one.
        options: further options of the loader.
    """
    # With a generator of its own: a loader draws a number at its start, which would shift a resumed run's noise.
    loader = DataLoader(batches, batch_size=None, num_workers=workers, generator=torch.Generator(), **options)
    for batch in loader:
        if isinstance(batch, Failure):
            raise batch.error
        yield batch
