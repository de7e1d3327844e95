"""Batches of a run: the items of each process, and loaders that raise errors without wrapping them.

The global batch consists of the same items for any number of processes, and a resumed run continues with the items that
it would have had without the interruption.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from modeling_taae.errors import TaaeInputError
from training.recipe import RecipeError

FORESEEN = (RecipeError, TaaeInputError, OSError)


class Failure:
    """An error that a worker returns as a value, because a loader would wrap a raised one in a traceback."""

    def __init__(self, error: Exception):
        self.error = error


class Reported(Dataset):
    """A data set that returns expected errors as items."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        """Returns an item, or the error that reading it raises."""
        try:
            return self.dataset[index]
        except FORESEEN as error:
            return Failure(error)


class ReportedStream(IterableDataset):
    """A stream that yields an expected error as its last item."""

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        """Yields the items, and the error that ends them."""
        try:
            yield from self.dataset
        except FORESEEN as error:
            yield Failure(error)


class Collate:
    """Collates items to a batch, or passes on the first error among them."""

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, items: list) -> Any:
        """Returns the batch."""
        return next((item for item in items if isinstance(item, Failure)), None) or self.collate(items)


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
    collate: Callable[[list], Any] = torch.utils.data.default_collate,
    pinned: bool = False,
) -> Iterable[Any]:
    """Yields a batch for each share, with the items at the share's indices.

    Raises:
        RecipeError, TaaeInputError, OSError: raised by the data set in any process.
    """
    loader = DataLoader(
        Reported(dataset),
        batch_sampler=shares,
        num_workers=workers,
        collate_fn=Collate(collate),
        pin_memory=pinned,
        generator=own_generator(),
    )
    return raised(loader)


def batches_of_stream(dataset: IterableDataset, size: int, count: int, workers: int) -> Iterable[Any]:
    """Yields `count` batches of a stream.

    Raises:
        RecipeError, TaaeInputError, OSError: raised by the stream in any process.
    """
    collate = Collate(torch.utils.data.default_collate)
    stream, workers = ReportedStream(dataset), min(workers, 1)
    loader = DataLoader(stream, size, num_workers=workers, collate_fn=collate, generator=own_generator())
    return (batch for batch, _ in zip(raised(loader), range(count), strict=False))


def own_generator() -> torch.Generator:
    """Makes a generator for a loader, which draws a number at its start that would shift a resumed run's noise."""
    return torch.Generator()


def raised(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches, and raises an error that comes instead of a batch."""
    for batch in batches:
        if isinstance(batch, Failure):
            raise batch.error
        yield batch
