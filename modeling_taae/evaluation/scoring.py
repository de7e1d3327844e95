"""Computes metrics in other processes, and runs judges in batches in this one."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import numpy as np

from .judges import Judge, JudgedClip
from .metrics import ALL_METRICS, score
from .results import Row, finite
from .rows import RowStore

JUDGED_TOGETHER = 16  # clips in a batch


@dataclass
class Waiting:
    """A row that waits for its metrics and judges; a row of an earlier run waits only for the rows before it."""

    row: Row
    clip: JudgedClip | None = None
    scores: Future | None = None
    judged: bool = False


class Scorer:
    """Scores rows in order; later clips are encoded while metrics are computed.

    Args:
        store: the store for scored rows.
        judges: networks that score batches of clips in this process.
        submit: the `submit` method of an executor for the other metrics.
        lookahead: number of rows that may wait for their metrics.
    """

    def __init__(self, store: RowStore, judges: Sequence[Judge], submit: Callable[..., Future], lookahead: int):
        self.store, self.judges, self.submit = store, judges, submit
        self.lookahead = lookahead + (JUDGED_TOGETHER if judges else 0)
        self.waiting: deque[Waiting] = deque()

    def add_known(self, row: Row) -> None:
        """Takes a row of an earlier run."""
        self.waiting.append(Waiting(row, judged=True))

    def add(self, row: Row, reference: np.ndarray, decoded: np.ndarray | None, original: bool = False) -> None:
        """Takes a new row and fills in its `metrics`; nothing is scored if the codec failed.

        Args:
            row: the row.
            reference, decoded: (samples,) float32 at 16 kHz, of equal length.
            original: whether the decoded clip is the recording itself.
        """
        if decoded is None:
            self.waiting.append(Waiting(row, JudgedClip(reference, reference), judged=True))
            return
        names = [name for name in row.metrics if name in ALL_METRICS]
        clip = JudgedClip(reference, decoded, row.facts, original)
        self.waiting.append(Waiting(row, clip, self.submit(score, reference, decoded, names), judged=not self.judges))

    def ready(self) -> Iterator[Row]:
        """Yields scored rows until no more rows wait than may."""
        while len(self.waiting) > self.lookahead:
            yield self._finish(self.waiting.popleft())

    def rest(self) -> Iterator[Row]:
        """Yields all remaining rows."""
        while self.waiting:
            yield self._finish(self.waiting.popleft())

    def _finish(self, first: Waiting) -> Row:
        if not first.judged:
            self._judge([first, *(each for each in self.waiting if not each.judged)][:JUDGED_TOGETHER])
        if first.scores is not None:
            first.row.metrics |= {name: finite(value) for name, value in first.scores.result().items()}
        if first.clip is not None:
            self.store.append(first.row)
        return first.row

    def _judge(self, batch: list[Waiting]) -> None:
        clips = [each.clip for each in batch if each.clip is not None]
        for judge in self.judges:
            for waiting, scores in zip(batch, judge.judge(clips), strict=True):
                waiting.row.embedding = scores.pop("embedding", waiting.row.embedding)
                waiting.row.metrics |= {name: scores[name] for name in scores if name in waiting.row.metrics}
        for waiting in batch:
            waiting.judged = True


@contextmanager
def metric_workers(workers: int) -> Iterator[Callable[..., Future]]:
    """Returns a function like `submit` that computes in other processes, or immediately if there is one worker."""
    if workers <= 1:
        yield call_now
        return
    # Spawned, because torch's threads do not survive a fork.
    pool: Executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def call_now(function: Callable, *arguments: Any) -> Future:
    """Calls a function and returns its result as a future."""
    future: Future = Future()
    future.set_result(function(*arguments))
    return future


def start_worker() -> None:
    """Limits a worker to one thread, and ends it when its parent is killed."""
    import torch

    torch.set_num_threads(1)
    Thread(target=end_with, args=(parent_process(),), daemon=True).start()


def end_with(parent: BaseProcess) -> None:
    """Ends this process as soon as another one has ended."""
    parent.join()
    os._exit(1)
