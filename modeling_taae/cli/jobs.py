"""Runs a command that converts files one by one.

Slow imports wait until an input is known to exist, and then count as loading the model.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..audio_io import averaged_note, read_recording
from ..transcode.job import Job, OnError
from .files import Failures
from .progress import Progress
from .startup import import_loudness

if TYPE_CHECKING:
    from ..codec import Codec


class Reader:
    """Reads the recordings of a command, and counts those whose channels it averages.

    Args:
        channel: the channel to read, counted from 1; None averages all.
    """

    def __init__(self, channel: int | None):
        self.channel, self.averaged = channel, 0

    def __call__(self, source: Path, sampling_rate: int) -> np.ndarray:
        """Returns a recording at a sampling rate in Hz, (samples,) float32."""
        recording = read_recording(source, sampling_rate, self.channel)
        self.averaged += recording.averaged
        return recording.audio

    def tell(self) -> None:
        """Prints on standard error how many recordings were averaged, if any were."""
        if self.averaged:
            print(f"taae: {averaged_note(self.averaged)}", file=sys.stderr)


# A codec, and a function that processes jobs and yields each one once it is done.
Prepared = tuple["Codec", Callable[[list[Job], OnError], Iterable[Job]]]
# A function that encodes jobs with a bottleneck, and yields each one once it is done; its last argument reads files.
EncodingWork = Callable[["Codec", list[Job], str | list | tuple | None, OnError, Reader], Iterable[Job]]


def run_encoder(args: argparse.Namespace, jobs: list[Job], doing: str, work: EncodingWork) -> int:
    """Processes the jobs of a command that encodes, and returns the exit status; arguments as for [`run_jobs`].

    Raises:
        TaaeInputError: if there is no such model, or it has no such bottleneck.
    """
    reader = Reader(args.channel)

    def prepare() -> Prepared:
        if args.loudness:
            import_loudness()
        from ..codec import chosen_bottleneck, load_codec

        codec = load_codec(args.model, args.device, args.loudness)
        bottleneck = chosen_bottleneck(codec, args.bottleneck)
        return codec, lambda there, on_error: work(codec, there, bottleneck, on_error, reader)

    status = run_jobs(args, jobs, doing, prepare)
    reader.tell()
    return status


def run_jobs(args: argparse.Namespace, jobs: list[Job], doing: str, prepare: Callable[[], Prepared]) -> int:
    """Processes jobs, reports progress and failures, and returns the exit status.

    Args:
        args: the command's arguments.
        jobs: the files to read and to write.
        doing: the verb for messages, such as "encoding".
        prepare: loads the codec; called once it is known that an input exists.
    """
    failures = Failures(jobs, args.debug)
    there = failures.without_missing()
    if not there:
        return failures.report()
    with Progress(args.patience) as progress:
        progress.say("loading the model")
        codec, work = prepare()
        from ..transcode.files import layer_progress

        with layer_progress(codec.model, progress.done):
            progress.work(work(there, failures.add), there, doing)
    return failures.report()
