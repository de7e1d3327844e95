"""Stores the rows of an evaluation on disk, so that an interrupted run does not score them again."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..data.utterances import Utterance
from ..errors import TaaeInputError
from ..files import write_bytes
from .codecs import System
from .judges import Judge
from .results import Row, iterate_rows

ROWS_FILE = "rows.jsonl"


def settings_key(system: System, delay: int, metrics: Iterable[str], judges: Sequence[Judge]) -> str:
    """Returns as text everything that a codec's scores depend on besides the audio."""
    settings = [system.name, system.facts, delay, list(metrics), [judge.facts for judge in judges]]
    return json.dumps(settings, sort_keys=True)


def row_key(settings: str, utterance: Utterance, reference: np.ndarray) -> str:
    """Returns the key of a row: a hash of the settings, the utterance's facts and its audio."""
    facts = json.dumps(utterance.facts, sort_keys=True)
    digest = hashlib.sha256(f"{settings}\n{utterance.id}\n{facts}\n".encode())
    digest.update(np.ascontiguousarray(reference).data)
    return digest.hexdigest()[:20]


class RowStore:
    """Stores rows in a JSON-lines file, each as soon as it is complete.

    Args:
        folder: the folder of the file, made if it does not exist; None keeps rows only in memory. An incomplete last
            line is dropped. So are clips for which a codec failed, so that they are tried again.

    Raises:
        TaaeInputError: raised by its methods if the file cannot be written.
    """

    def __init__(self, folder: Path | None):
        self.path = None if folder is None else folder / ROWS_FILE
        self.rows: dict[str, Row] = {}
        self.file: Any = None

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self.rows = {row.key: row for row in iterate_rows(self.path) if row.key and not row.error}
                self.keep(list(self.rows))
            self.file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise self._refusal(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            # Closing flushes, which fails again on a full disk.
            with suppress(OSError):
                self.file.close()

    def append(self, row: Row) -> None:
        """Writes a row."""
        self.rows[row.key] = row
        if self.file is None:
            return
        try:
            self.file.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
            self.file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def keep(self, keys: Iterable[str]) -> None:
        """Rewrites the file with only these rows, in this order."""
        if self.path is None:
            return
        lines = (json.dumps(self.rows[key].to_json(), ensure_ascii=False) + "\n" for key in keys)
        try:
            write_bytes(self.path, "".join(lines).encode())
        except TaaeInputError as error:
            raise self._refusal(error.__cause__) from error

    def _refusal(self, error: BaseException | None) -> TaaeInputError:
        reason = getattr(error, "strerror", None) or error
        return TaaeInputError(
            f"{self.path}: cannot be written ({reason}); make room or choose another folder with -o, then run the same "
            "command to resume"
        )
