"""Stress tests of a codec: noise and reverberation, other lengths, repeated coding, lost frames, music and silence.

Tests that change the data are *conditions*: each utterance is evaluated once per condition, and results are broken down
by condition. The reference is the codec's input, noise included. Tests that change the codec are separate systems.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from operator import length_hint

import numpy as np

from ..data.utterances import Utterance, Utterances
from ..errors import TaaeInputError
from ..taae_file import TaaeFile
from .alignment import SAMPLING_RATE, align
from .codecs import CODEC_ERRORS, Encoded, System, TaaeSystem

PLAIN = "as recorded"
# Music of three chords, synthesised to need no licence: seconds per chord, and the notes in Hz.
CHORD_SECONDS = 1.5
CHORDS = ((220.0, 277.18, 329.63), (293.66, 369.99, 440.0), (329.63, 415.3, 493.88))
NOISE_RATIOS = (20.0, 10.0, 0.0)  # in dB, where none is asked for


class Conditions:
    """Yields utterances as recorded and under conditions, if there are any; the data are read once.

    Args:
        utterances: the data.
        noise: sources of noise to mix in; utterances use the recordings in turn.
        ratios: signal-to-noise ratios of the mixtures in dB; None for 20, 10 and 0.
        reverberation: sources of room impulse responses; utterances use them in turn.
        lengths: durations in seconds of additional clips, each cut from the joined data.
        music: whether to add a clip of music.

    Raises:
        TaaeInputError: if a source holds no noise or no responses.
    """

    def __init__(
        self,
        utterances: Iterable[Utterance],
        noise: list[str] | None = None,
        ratios: Iterable[float] | None = None,
        reverberation: list[str] | None = None,
        lengths: Iterable[float] = (),
        music: bool = False,
    ):
        self.utterances, self.lengths, self.music = utterances, list(lengths), music
        self.noises, self.ratios = read_kind(noise, "noise") if noise else [], list(ratios or NOISE_RATIOS)
        self.responses = read_kind(reverberation, "rir") if reverberation else []

    def __len__(self) -> int:
        """Returns the number of clips, if the data's number is known."""
        each = 1 + len(self.ratios) * bool(self.noises) + bool(self.responses)
        return each * length_hint(self.utterances) + len(self.lengths) + self.music

    def __iter__(self) -> Iterator[Utterance]:
        if not (self.noises or self.responses or self.lengths or self.music):
            yield from self.utterances
            return
        longest = int(max(self.lengths, default=0) * SAMPLING_RATE)
        clips: list[np.ndarray] = []  # from the start of the data, for clips of other lengths
        for number, utterance in enumerate(self.utterances):
            yield from self._trials(number, utterance)
            if utterance.audio is not None and sum(map(len, clips)) < longest:
                clips.append(utterance.audio)
        for length in self.lengths:
            clip = end_to_end(clips, int(length * SAMPLING_RATE))
            yield Utterance(f"{length:g} s", clip, facts={"condition": f"{length:g} s long"})
        if self.music:
            yield Utterance("music", make_music(), facts={"condition": "music"})

    def _trials(self, number: int, utterance: Utterance) -> Iterator[Utterance]:
        yield changed(utterance, PLAIN, utterance.audio)
        if utterance.audio is None:
            return
        for ratio in self.ratios if self.noises else ():
            noise = self.noises[number % len(self.noises)]
            yield changed(utterance, f"noise at {ratio:g} dB", mix(utterance.audio, noise, ratio))
        if self.responses:
            response = self.responses[number % len(self.responses)]
            yield changed(utterance, "reverberation", reverberate(utterance.audio, response))


def changed(utterance: Utterance, condition: str, audio: np.ndarray | None) -> Utterance:
    """Returns an utterance under a condition, with a new id."""
    name = utterance.id if condition == PLAIN else f"{utterance.id} @ {condition}"
    return replace(utterance, id=name, audio=audio, facts={**utterance.facts, "condition": condition})


def mix(speech: np.ndarray, noise: np.ndarray, ratio: float) -> np.ndarray:
    """Adds noise, repeated or cut to the length of the speech, at a ratio of mean powers in dB: (samples,)."""
    noise = np.resize(noise, len(speech))
    gain = np.sqrt(np.mean(np.square(speech)) / max(np.mean(np.square(noise)), 1e-12)) * 10 ** (-ratio / 20)
    return (speech + gain * noise).astype(np.float32)


def reverberate(speech: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolves speech with a room response; keeps its power and length, and does not delay the direct sound."""
    from scipy.signal import fftconvolve

    wet = align(fftconvolve(speech, response), int(np.abs(response).argmax()), len(speech))
    power = np.mean(np.square(wet))
    return (wet * np.sqrt(np.mean(np.square(speech)) / max(power, 1e-12))).astype(np.float32)


def end_to_end(clips: Iterable[np.ndarray], samples: int) -> np.ndarray:
    """Joins clips, repeating them from the first one if necessary: (samples,)."""
    return np.resize(np.concatenate([*clips] or [np.zeros(samples, np.float32)]), samples)


def make_music() -> np.ndarray:
    """Synthesises chords of plucked strings, each note with ten overtones: (samples,) float32."""
    time = np.arange(int(CHORD_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    chords = [
        sum(np.sin(2 * np.pi * note * k * time) * np.exp(-2 * k * time) / k for note in chord for k in range(1, 11))
        for chord in CHORDS
    ]
    music = np.concatenate(chords)
    return (0.3 * music / np.abs(music).max()).astype(np.float32)


def read_kind(sources: list[str], kind: str) -> list[np.ndarray]:
    """Reads the recordings whose column `kind` has this value, such as noise or rir; all if there is no such column.

    Raises:
        TaaeInputError: if there are none.
    """
    recordings = Utterances(sources, SAMPLING_RATE, strict=False)
    found = [each.audio for each in recordings if each.audio is not None and each.facts.get("kind", kind) == kind]
    if not found:
        raise TaaeInputError(f"{' '.join(sources)}: holds no recording of the kind {kind!r}; check the data")
    return found


class Tandem:
    """Applies a codec several times in a row, as when a recording passes through several services.

    Args:
        system: the codec.
        times: number of passes.
        delay: the codec's delay in samples, which is removed after every pass.
    """

    def __init__(self, system: System, times: int, delay: int):
        self.system, self.times, self.delay = system, times, delay
        self.name = f"{system.name}, {times} times"
        self.nominal_bit_rate = system.nominal_bit_rate
        self.facts = {**system.facts, "kind": "tandem", "codec": system.name, "trial": f"{times} times in a row"}

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes the output of all passes but the last."""
        for _ in range(self.times - 1):
            decoded = self.system.decode(self.system.encode(audio))
            audio = align(decoded, self.delay, len(audio)).astype(np.float32)
        return self.system.encode(audio)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes the last pass."""
        return self.system.decode(encoded)


class PacketLoss:
    """Simulates a TAAE model that loses frames independently; the previous frame replaces a lost one.

    Args:
        system: the model.
        share: share of lost frames; which frames are lost depends only on the clip's length.
    """

    def __init__(self, system: TaaeSystem, share: float):
        self.system, self.share = system, share
        self.name = f"{system.name}, {100 * share:g}% lost"
        self.nominal_bit_rate, self.delay = system.nominal_bit_rate, system.delay
        self.facts = {**system.facts, "kind": "packet loss", "concealment": "the frame before"}
        self.facts |= {"codec": system.name, "trial": f"{100 * share:g}% of frames lost"}

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes all frames."""
        return self.system.encode(audio)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Drops frames and decodes."""
        whole: TaaeFile = encoded.content
        codes = whole.audio_codes.copy()
        lost = np.asarray(np.random.default_rng(codes.shape[1]).random(codes.shape[1]) < self.share)
        for frame in np.flatnonzero(lost[1:]) + 1:
            codes[:, frame] = codes[:, frame - 1]
        return self.system.decode(Encoded(replace(whole, audio_codes=codes), encoded.payload_bytes, encoded.file_bytes))


def silence_level(system: System) -> float | None:
    """Returns the level of a codec's output for two seconds of silence in dB of full scale; None if it rejects it."""
    silence = np.zeros(2 * SAMPLING_RATE, np.float32)
    try:
        decoded = system.decode(system.encode(silence))
    except CODEC_ERRORS:
        return None
    return float(10 * np.log10(np.mean(np.square(decoded)) + 1e-12))
