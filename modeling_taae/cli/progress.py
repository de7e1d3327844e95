"""Says what a command is doing, whenever some seconds pass without a word."""

import sys
from collections.abc import Iterable
from threading import Event, Thread
from types import TracebackType

from tqdm import tqdm

from ..transcode.files import Job

RAREST = 60.0  # seconds between two lines, where they are kept in a log


class Progress:
    """Tells on standard error, from a thread, what is being done: on a terminal in one line, else in lines ever rarer.

    Args:
        patience: seconds before the first word.
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
        """Sets what is being done from now on."""
        self.text, self.share = text, 0.0

    def done(self, share: float) -> None:
        """Sets how much of it is done, from 0 to 1."""
        self.share = share

    def work(self, jobs: Iterable[Job], todo: list[Job], doing: str) -> None:
        """Works through jobs that are yielded once they are done, with a bar on a terminal if there are several.

        Args:
            jobs: the jobs, as they get done.
            todo: all jobs.
            doing: what is done to them, as in "encoding".
        """
        self.has_bar = self._on_terminal and len(todo) > 1
        self.say(self._doing(doing, todo, 0))
        for number, _ in enumerate(tqdm(jobs, total=len(todo), unit="file", disable=not self.has_bar), start=1):
            self.say(self._doing(doing, todo, number))

    @staticmethod
    def _doing(doing: str, todo: list[Job], number: int) -> str:
        return f"{doing} {todo[0].source}" if len(todo) == 1 else f"{doing}, {number} of {len(todo)} files are done"

    def _tell(self) -> None:
        wait = self.patience
        while not self._ended.wait(wait):
            if self.has_bar or not self.text:
                continue
            share = f", {self.share:.0%}" if self.share else ""
            start, end = ("\r\033[K", "") if self._on_terminal else ("", "\n")
            print(f"{start}taae: {self.text}{share}", end=end, file=sys.stderr, flush=True)
            self._told = True
            if not self._on_terminal:
                wait = min(2 * wait, RAREST)
