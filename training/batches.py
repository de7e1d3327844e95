"""Batches of a run: which items each process gets, and loaders that raise errors as they are.

The global batch is the same run of items on any number of processes, and a run that resumes goes on with the items that
it would have had.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from modeling_taae.errors import TaaeInputError
from training.recipe import RecipeError

FORESEEN = (RecipeError, TaaeInputError, OSError)


class Failure:
    """An error that travels from a worker as a value; a loader would wrap a raised one in its traceback."""

    def __init__(self, error: Exception):
        self.error = error


class Reported(Dataset):
    """A data set whose foreseen errors are items."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        """Returns an item, or the error that it raises."""
        try:
            return self.dataset[index]
        except FORESEEN as error:
            return Failure(error)


class ReportedStream(IterableDataset):
    """A stream whose foreseen errors are its last item."""

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        """Yields the items, and the error that ends them."""
        try:
            yield from self.dataset
        except FORESEEN as error:
            yield Failure(error)


class Collate:
    """Makes a batch of items, or passes on the first error among them."""

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, items: list) -> Any:
        """Returns the batch."""
        return next((item for item in items if isinstance(item, Failure)), None) or self.collate(items)


def shares(size: int, batches: range, process: int, processes: int) -> list[range]:
    """Returns the numbers of the items in each of a process's batches.

    Args:
        size: items in a batch of one process.
        batches: numbers of the batches in the run.
        process, processes: this process's number, and how many there are.
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
    """Yields a batch for each share, of the items of the share's numbers.

    Raises:
        RecipeError, TaaeInputError, OSError: as the data set raises them, whichever process reads.
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
    """Yields batches of a stream, as many as asked for.

    Raises:
        RecipeError, TaaeInputError, OSError: as the stream raises them, whichever process reads.
    """
    collate = Collate(torch.utils.data.default_collate)
    stream, workers = ReportedStream(dataset), min(workers, 1)
    loader = DataLoader(stream, size, num_workers=workers, collate_fn=collate, generator=own_generator())
    return (batch for batch, _ in zip(raised(loader), range(count), strict=False))


def own_generator() -> torch.Generator:
    """Makes a generator for a loader: it draws a number as it starts, which would shift the dither of a resumed run."""
    return torch.Generator()


def raised(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches, and raises the error that comes in place of one."""
    for batch in batches:
        if isinstance(batch, Failure):
            raise batch.error
        yield batch
