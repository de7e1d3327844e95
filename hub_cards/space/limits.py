"""Limits the Space's input: the length, size and loudness of recordings, and the number of clips per minute."""

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

# In seconds. The shortest is slightly longer than a loudness measurement needs.
SHORTEST_CLIP, LONGEST_CLIP = 0.5, 60
# Maximum number of clips of each visitor within a window, in seconds.
CLIPS, WINDOW = 10, 60
# Maximum number of waiting requests.
LONGEST_QUEUE = 20
LARGEST_UPLOAD = "30mb"
# In samples of all channels: twice the longest clip at 48 kHz in stereo.
LARGEST_RECORDING = 2 * 2 * 48_000 * LONGEST_CLIP
# In bytes: ten times the longest clip at the largest preset.
LARGEST_FILE = 100_000


def read_recording(path: str | None, sampling_rate: int) -> np.ndarray:
    """Reads a visitor's recording or upload: (samples,) float32 at the given rate, in Hz.

    Raises:
        TaaeInputError: if it is not audio, too short, too long, of too high a rate, of too many channels, or silent.
    """
    with open(path, "rb") as file:
        # Before a long recording takes memory. decode_audio refuses files that are not audio, with the reason.
        with suppress(soundfile.SoundFileError):
            facts = soundfile.info(file)
            check_length(facts.duration)
            check_samples(facts.frames * facts.channels)
        file.seek(0)
        # A format that soundfile does not know may still expand to any length.
        most_samples = 2 * LONGEST_CLIP * sampling_rate
        audio = decode_audio(file, "Your recording", sampling_rate, most_samples=most_samples)
    check_length(len(audio) / sampling_rate)
    if integrated_loudness(audio, sampling_rate) is None:
        raise TaaeInputError("The recording is silent. Check the microphone, and speak closer to it.")
    return audio


def read_tokens(path: str | None) -> bytes:
    """Reads a `.taae` file that a visitor uploaded.

    Raises:
        TaaeInputError: if there is none, or it is too large for a clip.
    """
    if path is None:
        raise TaaeInputError("There is no file yet. Choose a .taae file that this page saved.")
    if (size := os.path.getsize(path)) > LARGEST_FILE:
        raise TaaeInputError(f"The file is too large: {size:,} bytes. Choose one of at most {LONGEST_CLIP} s.")
    with open(path, "rb") as file:
        return file.read()


def check_present(path: str | None) -> None:
    """Raises a TaaeInputError if there is no recording."""
    if path is None:
        raise TaaeInputError("There is no recording yet. Record or upload one, or choose the example.")


def check_samples(samples: int) -> None:
    """Raises a TaaeInputError for a recording with so many samples that it takes long to decode."""
    if samples > LARGEST_RECORDING:
        raise TaaeInputError("The recording has too many samples. Save it with one or two channels, at up to 48 kHz.")


def check_length(seconds: float) -> None:
    """Raises a TaaeInputError for a recording that is too short or too long."""
    if seconds < SHORTEST_CLIP:
        raise TaaeInputError(f"The recording is too short: {seconds:.2f} s. Record at least {SHORTEST_CLIP:g} s.")
    if seconds > LONGEST_CLIP:
        raise TaaeInputError(f"The recording is too long: {seconds:.0f} s. Cut it to at most {LONGEST_CLIP:g} s.")


class RateLimit:
    """A limit on the number of each visitor's clips within a time window.

    Args:
        clips: maximum number of clips.
        seconds: length of the window.
        clock: function that returns seconds.
    """

    def __init__(self, clips: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.clips, self.seconds, self.clock = clips, seconds, clock
        self.times: dict[str, deque[float]] = {}

    def check(self, visitor: str) -> None:
        """Counts one more clip.

        Raises:
            TaaeInputError: if the visitor is over the limit; the clip is not counted.
        """
        now = self.clock()
        # Forget visitors whose last clip is older than the window.
        self.times = {name: times for name, times in self.times.items() if now - times[-1] < self.seconds}
        times = self.times.setdefault(visitor, deque(maxlen=self.clips))
        if len(times) == self.clips and (wait := times[0] + self.seconds - now) > 0:
            raise TaaeInputError(
                f"You had {self.clips} clips within {self.seconds:g} seconds, which is the limit. "
                f"Try again in {math.ceil(wait)} seconds."
            )
        times.append(now)
