"""Limits what the Space takes: recordings of some length with something to hear, and so many of them a minute."""

import math
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import soundfile

from modeling_taae.audio_io import decode_audio
from modeling_taae.errors import TaaeInputError
from modeling_taae.feature_extraction_taae import integrated_loudness

# In seconds. The shortest is a little more than loudness can be measured on.
SHORTEST_CLIP, LONGEST_CLIP = 0.5, 60
# Each visitor may have so many clips encoded in so many seconds.
CLIPS, WINDOW = 10, 60
# How many may wait for the one that is being served.
LONGEST_QUEUE = 20
LARGEST_UPLOAD = "30mb"
# In samples of all channels: the longest clip at 48 kHz in stereo, and as much again.
LARGEST_RECORDING = 2 * 2 * 48_000 * LONGEST_CLIP
# In bytes: the longest clip of the largest preset takes a tenth of it.
LARGEST_FILE = 100_000


def read_recording(path: str | None, sampling_rate: int) -> np.ndarray:
    """Reads what a visitor recorded or uploaded: (samples,) float32 at the given rate, in Hz.

    Raises:
        TaaeInputError: if it is no audio, too short, too long, of too high a rate, of too many channels, or silent.
    """
    with open(path, "rb") as file:
        # Before a long recording takes memory. What is no audio at all is left to decode_audio, which says why.
        with suppress(soundfile.SoundFileError):
            facts = soundfile.info(file)
            check_length(facts.duration)
            check_samples(facts.frames * facts.channels)
        file.seek(0)
        # What soundfile knows nothing of may still expand to any length.
        most_samples = 2 * LONGEST_CLIP * sampling_rate
        audio = decode_audio(file, "Your recording", sampling_rate, most_samples=most_samples)
    check_length(len(audio) / sampling_rate)
    if integrated_loudness(audio, sampling_rate) is None:
        raise TaaeInputError("The recording is silent. Check the microphone, and speak closer to it.")
    return audio


def read_tokens(path: str | None) -> bytes:
    """Reads a `.taae` file that a visitor uploaded.

    Raises:
        TaaeInputError: if there is none, or it is larger than the longest clip's.
    """
    if path is None:
        raise TaaeInputError("There is no file yet. Choose a .taae file that was saved here.")
    if (size := os.path.getsize(path)) > LARGEST_FILE:
        raise TaaeInputError(f"The file is too large: {size:,} bytes. No clip of {LONGEST_CLIP} s takes as many.")
    with open(path, "rb") as file:
        return file.read()


def check_present(path: str | None) -> None:
    """Refuses, with a TaaeInputError, to begin without a recording."""
    if path is None:
        raise TaaeInputError("There is no recording yet. Record something, upload a file, or choose an example.")


def check_samples(samples: int) -> None:
    """Refuses, with a TaaeInputError, recordings that take long to decode whatever their length in seconds."""
    if samples > LARGEST_RECORDING:
        raise TaaeInputError("The recording has too many samples. Save it with one or two channels, at up to 48 kHz.")


def check_length(seconds: float) -> None:
    """Refuses, with a TaaeInputError, what is shorter or longer than the Space takes."""
    if seconds < SHORTEST_CLIP:
        raise TaaeInputError(f"The recording is too short: {seconds:.2f} s. At least {SHORTEST_CLIP:g} s are needed.")
    if seconds > LONGEST_CLIP:
        raise TaaeInputError(f"The recording is too long: {seconds:.0f} s. Up to {LONGEST_CLIP:g} s can be taken here.")


class RateLimit:
    """So many clips for each visitor in so many seconds, and not more.

    Args:
        clips: how many.
        seconds: length of that time.
        clock: seconds since whenever.
    """

    def __init__(self, clips: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.clips, self.seconds, self.clock = clips, seconds, clock
        self.times: dict[str, deque[float]] = {}

    def check(self, visitor: str) -> None:
        """Counts one more clip.

        Raises:
            TaaeInputError: if it is one too many; it is not counted then.
        """
        now = self.clock()
        # Whoever has been away for long enough is forgotten.
        self.times = {name: times for name, times in self.times.items() if now - times[-1] < self.seconds}
        times = self.times.setdefault(visitor, deque(maxlen=self.clips))
        if len(times) == self.clips and (wait := times[0] + self.seconds - now) > 0:
            raise TaaeInputError(
                f"Those were {self.clips} clips in {self.seconds:g} seconds, and others want a turn too. "
                f"Go on in {math.ceil(wait)} seconds."
            )
        times.append(now)
