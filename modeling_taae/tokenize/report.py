"""The speed of a tokenisation, to plan a larger one."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from ..records import read_fields
from .encoder import Part


@dataclass(frozen=True)
class MillionHours:
    """The work for a million hours of audio at the speed of a run.

    Args:
        unit_hours: hours of one unit, which is a GPU or a core.
        cost: the price of these hours, if the price of one hour is known.
    """

    unit_hours: float
    cost: float | None


@dataclass(frozen=True)
class Measured:
    """The speed of a run that encoded something.

    Args:
        audio_seconds: the encoded audio, in seconds.
        elapsed_seconds: the time from start to end, in seconds.
        speed: seconds of audio per second, start and loading included.
        speed_per_unit: seconds of audio per second and unit, start and loading excluded.
        model_speed_per_unit: the same if the model never waited for audio.
        model_busy_share: the share of the time in which the model did not wait for audio.
        million_hours: the work for a million hours at this speed.
    """

    audio_seconds: float
    elapsed_seconds: float
    speed: float
    speed_per_unit: float
    model_speed_per_unit: float
    model_busy_share: float
    million_hours: MillionHours


@dataclass(frozen=True)
class Report:
    """The content of report.json.

    Args:
        device: the type of device that the model ran on.
        workers: the number of models that ran side by side.
        unit: the unit of hardware, `GPU` or `core`.
        units: the number of units.
        measured: the speed; None if nothing was encoded.
        notes: lines about files of the sources that were not read.
    """

    device: str
    workers: int
    unit: str
    units: int
    measured: Measured | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the report as one flat dictionary."""
        content = asdict(self)
        measured, notes = content.pop("measured") or {}, list(content.pop("notes"))
        return content | measured | ({"notes": notes} if notes else {})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Report":
        """Reads a report."""
        return cls(**read_fields(cls, {**content, "measured": content if "speed" in content else None}))


@dataclass
class Speed:
    """Measures the speed over the parts as they are made.

    Args:
        device: the type of device that the model runs on: cpu, cuda, ...
        workers: the number of models that run side by side.
        cores: the number of cores of each worker, on CPUs.
        seconds: the audio so far, in seconds.
        elapsed: the time from start to end, in seconds.
        worked: the time of all workers together, without loading the model, in seconds.
        waited: the part of that time in which a model waited for audio, in seconds.
    """

    device: str
    workers: int
    cores: int = 1
    seconds: float = 0.0
    elapsed: float = 0.0
    worked: float = 0.0
    waited: float = 0.0

    def measured(self, parts: Iterable[Part], units: int, done: int) -> Iterator[Part]:
        """Passes the parts on and shows the progress; `done` of the `units` were done before."""
        start = time.perf_counter()
        with tqdm(desc="Tokenising", total=units, initial=done, unit="unit", disable=None) as progress:
            for part in parts:
                yield part
                self.elapsed = time.perf_counter() - start
                self.seconds += part.seconds
                self.worked += part.worked
                self.waited += part.waited
                rate = self.seconds / self.elapsed
                progress.set_postfix_str(f"{self.seconds / 3600:.2f} h of audio, {rate:.0f} s/s", refresh=False)
                progress.update()

    def report(self, price_per_hour: float | None) -> Report:
        """Returns the report.

        Args:
            price_per_hour: the price of an hour of one unit, which is a GPU or a core.
        """
        unit = "core" if self.device == "cpu" else "GPU"
        machine = (self.device, self.workers, unit, self.workers * self.cores)
        if not self.seconds:
            return Report(*machine)
        speed_per_unit = self.seconds / self.worked / self.cores
        hours = 1e6 / speed_per_unit
        cost = None if price_per_hour is None else round(hours * price_per_hour, 2)
        return Report(
            *machine,
            Measured(
                audio_seconds=round(self.seconds, 3),
                elapsed_seconds=round(self.elapsed, 3),
                speed=round(self.seconds / self.elapsed, 2),
                speed_per_unit=round(speed_per_unit, 2),
                model_speed_per_unit=round(self.seconds / (self.worked - self.waited) / self.cores, 2),
                model_busy_share=round(1 - self.waited / self.worked, 4),
                million_hours=MillionHours(round(hours, 1), cost),
            ),
        )
