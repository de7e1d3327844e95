"""Tracks the units of a corpus while they are encoded.

A unit is read row by row and encoded clip by clip, in any order of its clips. [`UnitQueue`] tracks the state of each
unit and returns it once it is complete.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np

from ..data.row import Row


@dataclass
class Clip:
    """A row being encoded: first with audio or a problem, then with tokens.

    Args:
        row: the row.
        audio: (samples,) float32 mono at the model's rate, until it is encoded.
        samples: the audio's length.
        problem: the reason why there are no tokens; empty if there is none.
        codes: (tokens_per_frame, frames) int64, once the clip is encoded.
        averaged: whether several channels were averaged.
    """

    row: Row
    audio: np.ndarray | None = None
    samples: int = 0
    problem: str = ""
    codes: np.ndarray | None = None
    averaged: bool = False


class Place(NamedTuple):
    """A clip's unit, and its number among the unit's clips."""

    unit: int
    number: int


class UnitState(Enum):
    """The states of a unit, in order."""

    READING = "more rows may come"
    ENCODING = "all rows are read, and some clips wait for their tokens"
    COMPLETE = "each clip has its tokens or a problem"


@dataclass
class Unit:
    """A unit's clips so far.

    Args:
        clips: the clips, in the order of the rows.
        waiting: the number of clips that wait for their tokens.
        closed: true once all rows have been read.
    """

    clips: list[Clip] = field(default_factory=list)
    waiting: int = 0
    closed: bool = False

    @property
    def state(self) -> UnitState:
        """The unit's state."""
        if not self.closed:
            return UnitState.READING
        return UnitState.ENCODING if self.waiting else UnitState.COMPLETE


class UnitQueue:
    """The units between the reader and the model. One thread uses it."""

    def __init__(self) -> None:
        self.units: dict[int, Unit] = {}

    def add(self, unit: int, clip: Clip) -> Place:
        """Adds the next clip of a unit; a clip with audio waits for its tokens.

        Args:
            unit: the unit's number.
            clip: the clip.

        Returns:
            The clip's place, for [`~UnitQueue.resolve`] and [`~UnitQueue.reject`].
        """
        work = self.units.setdefault(unit, Unit())
        work.clips.append(clip)
        work.waiting += clip.audio is not None
        return Place(unit, len(work.clips) - 1)

    def close(self, unit: int) -> None:
        """Marks a unit as completely read."""
        self.units.setdefault(unit, Unit()).closed = True

    def clip(self, place: Place) -> Clip:
        """Returns the clip at a place."""
        return self.units[place.unit].clips[place.number]

    def resolve(self, place: Place, codes: np.ndarray) -> None:
        """Gives a clip its tokens, (tokens_per_frame, frames) int64."""
        self.clip(place).codes = codes
        self.units[place.unit].waiting -= 1

    def reject(self, place: Place, problem: str) -> None:
        """Gives a clip the reason why it has no tokens."""
        clip = self.clip(place)
        clip.problem, clip.samples = problem, 0
        self.units[place.unit].waiting -= 1

    def take_complete(self) -> list[tuple[int, list[Clip]]]:
        """Removes the complete units and returns them, each with its number and its clips."""
        complete = [unit for unit, work in self.units.items() if work.state is UnitState.COMPLETE]
        return [(unit, self.units.pop(unit).clips) for unit in complete]
