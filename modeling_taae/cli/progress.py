"""Reports what a command is doing after some seconds of silence."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType

from tqdm import tqdm

from ..transcode.job import Job

RAREST = 60.0  # longest time between two lines in a log, in seconds


@contextmanager
def telling(text: str, patience: float) -> Iterator[None]:
    """Reports, after some seconds of silence, that something is being done, such as "loading the model"."""
    with Progress(patience) as progress:
        progress.say(text)
        yield


class Progress:
    """Reports progress on standard error, from a thread: on a terminal in one line, else in ever rarer lines.

    Args:
        patience: seconds of silence before the first report.
    """

    def __init__(self, patience: float):
        self.patience, self.text, self.share, self.has_bar = patience, "", 0.0, False
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._ended, self._told = Event(), False
        self._thread = Thread(target=self._tell, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self._told and self._on_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Sets the description of the current work."""
        self.text, self.share = text, 0.0

    def done(self, share: float) -> None:
        """Sets the completed share of the current work, from 0 to 1."""
        self.share = share

    def work(self, jobs: Iterable[Job], todo: list[Job], doing: str) -> None:
        """Consumes jobs as they are done, with a progress bar on a terminal if there are several.

        Args:
            jobs: the jobs, each yielded once it is done.
            todo: all jobs.
            doing: the verb for messages, such as "encoding".
        """
        self.has_bar = self._on_terminal and len(todo) > 1
        self.say(self._doing(doing, todo, 0))
        for number, _ in enumerate(tqdm(jobs, total=len(todo), unit="file", disable=not self.has_bar), start=1):
            self.say(self._doing(doing, todo, number))

    @staticmethod
    def _doing(doing: str, todo: list[Job], number: int) -> str:
        return f"{doing} {todo[0].source}" if len(todo) == 1 else f"{doing}, {number} of {len(todo)} files are done"

    def _tell(self) -> None:
        wait, last = self.patience, ""
        while not self._ended.wait(wait):
            share = f", {self.share:.0%}" if self.share else ""
            line = f"taae: {self.text}{share}"
            if self.has_bar or not self.text or line == last:
                continue
            start, end = ("\r\033[K", "") if self._on_terminal else ("", "\n")
            print(f"{start}{line}", end=end, file=sys.stderr, flush=True)
            self._told, last = True, line
            if not self._on_terminal:
                wait = min(2 * wait, RAREST)
