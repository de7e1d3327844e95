"""Harder trials of a codec: noise and reverberation, other lengths, passage after passage, lost frames, no speech.

Trials of the data are conditions: an utterance comes once per condition, which results are broken down by. The
reference is what the codec is given, noise included. Trials of a codec are systems of their own beside it.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from ..data.utterances import Utterance, Utterances
from ..errors import TaaeInputError
from ..taae_file import TaaeFile
from .codecs import CODEC_ERRORS, Encoded, System, TaaeSystem, align
from .metrics import SAMPLING_RATE

PLAIN = "as recorded"
# Music of three chords, for want of any that is free: seconds of each, and the notes in Hz.
CHORD_SECONDS = 1.5
CHORDS = ((220.0, 277.18, 329.63), (293.66, 369.99, 440.0), (329.63, 415.3, 493.88))


class Conditions:
    """Utterances as they are and under conditions.

    Args:
        utterances: the data.
        noises: (samples,) each; the n-th utterance gets the n-th of them, over and over.
        ratios: signal-to-noise ratios in dB to mix them at.
        responses: room impulse responses, (samples,) each, used in turn likewise.
        lengths: in seconds, of further clips, each cut from the data set end to end.
        music: whether to add a clip of music.
    """

    def __init__(
        self,
        utterances: Utterances,
        noises: list[np.ndarray] | None = None,
        ratios: Iterable[float] = (),
        responses: list[np.ndarray] | None = None,
        lengths: Iterable[float] = (),
        music: bool = False,
    ):
        self.utterances = utterances
        self.noises, self.ratios = noises or [], list(ratios)
        self.responses, self.lengths, self.music = responses or [], list(lengths), music

    def __len__(self) -> int:
        """Number of clips."""
        each = 1 + len(self.ratios) * bool(self.noises) + bool(self.responses)
        return each * len(self.utterances) + len(self.lengths) + self.music

    def __iter__(self) -> Iterator[Utterance]:
        for number, utterance in enumerate(self.utterances):
            yield changed(utterance, PLAIN, utterance.audio)
            if utterance.audio is None:
                continue
            for ratio in self.ratios if self.noises else ():
                noise = self.noises[number % len(self.noises)]
                yield changed(utterance, f"noise at {ratio:g} dB", mix(utterance.audio, noise, ratio))
            if self.responses:
                response = self.responses[number % len(self.responses)]
                yield changed(utterance, "reverberation", reverberate(utterance.audio, response))
        for length in self.lengths:
            clip = end_to_end(self.utterances, int(length * SAMPLING_RATE))
            yield Utterance(f"{length:g} s", clip, facts={"condition": f"{length:g} s long"})
        if self.music:
            yield Utterance("music", make_music(), facts={"condition": "music"})


def changed(utterance: Utterance, condition: str, audio: np.ndarray | None) -> Utterance:
    """An utterance under a condition, with an id of its own."""
    name = utterance.id if condition == PLAIN else f"{utterance.id} @ {condition}"
    return Utterance(name, audio, utterance.problem, {**utterance.facts, "condition": condition})


def mix(speech: np.ndarray, noise: np.ndarray, ratio: float) -> np.ndarray:
    """Adds noise, repeated or cut to the length of the speech, at a ratio of mean powers in dB: (samples,)."""
    noise = np.resize(noise, len(speech))
    gain = np.sqrt(np.mean(np.square(speech)) / max(np.mean(np.square(noise)), 1e-12)) * 10 ** (-ratio / 20)
    return (speech + gain * noise).astype(np.float32)


def reverberate(speech: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Speech in a room, at the power that it had; the direct sound has no delay, what rings on is cut: (samples,)."""
    size = 2 ** (len(speech) + len(response)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(speech, size) * np.fft.rfft(response, size), size)
    wet = align(wet, int(np.abs(response).argmax()), len(speech))
    power = np.mean(np.square(wet))
    return (wet * np.sqrt(np.mean(np.square(speech)) / max(power, 1e-12))).astype(np.float32)


def end_to_end(utterances: Iterable[Utterance], samples: int) -> np.ndarray:
    """Utterances one after another, from the first one again if need be: (samples,)."""
    clips, have = [], 0
    for utterance in utterances:
        if utterance.audio is not None:
            clips.append(utterance.audio)
            have += len(utterance.audio)
        if have >= samples:
            break
    return np.resize(np.concatenate(clips or [np.zeros(samples, np.float32)]), samples)


def make_music() -> np.ndarray:
    """Chords of plucked strings, each note with ten overtones: (samples,) float32."""
    time = np.arange(int(CHORD_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    chords = [
        sum(np.sin(2 * np.pi * note * k * time) * np.exp(-2 * k * time) / k for note in chord for k in range(1, 11))
        for chord in CHORDS
    ]
    music = np.concatenate(chords)
    return (0.3 * music / np.abs(music).max()).astype(np.float32)


def read_kind(sources: list[str], kind: str) -> list[np.ndarray]:
    """Recordings of a kind, such as noise or rir, from data with a column of that name; all, where there is none.

    Raises:
        TaaeInputError: if there is none.
    """
    recordings = Utterances(sources, SAMPLING_RATE, strict=False)
    found = [each.audio for each in recordings if each.audio is not None and each.facts.get("kind", kind) == kind]
    if not found:
        raise TaaeInputError(f"{' '.join(sources)}: holds no recording of the kind {kind!r}; check the data")
    return found


class Tandem:
    """A codec several times in a row, as when a recording passes from service to service.

    Args:
        system: the codec. Where its delay is to be estimated, that comes first: every passage is aligned.
        times: how often it encodes and decodes.
    """

    def __init__(self, system: System, times: int):
        self.system, self.times = system, times
        self.name = f"{system.name}, {times} times"
        self.nominal_bit_rate = system.nominal_bit_rate
        self.facts = {**system.facts, "kind": "tandem", "codec": system.name, "trial": f"{times} times in a row"}

    @property
    def delay(self) -> int | None:
        """What is left of it in the last passage."""
        return self.system.delay

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes what comes out of all passages but the last."""
        for _ in range(self.times - 1):
            decoded = self.system.decode(self.system.encode(audio))
            audio = align(decoded, self.delay, len(audio)).astype(np.float32)
        return self.system.encode(audio)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes the last passage."""
        return self.system.decode(encoded)


class PacketLoss:
    """A TAAE model some of whose frames are lost, each on its own; the frame before takes the place of a lost one.

    Args:
        system: the model.
        share: of frames that are lost; which ones depends on the clip's length alone.
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
        """Loses frames and decodes."""
        whole: TaaeFile = encoded.content
        codes = whole.audio_codes.copy()
        lost = np.random.default_rng(codes.shape[1]).random(codes.shape[1]) < self.share
        for frame in np.flatnonzero(lost[1:]) + 1:
            codes[:, frame] = codes[:, frame - 1]
        file = TaaeFile(**{name: getattr(whole, name) for name in whole.__dataclass_fields__} | {"audio_codes": codes})
        return self.system.decode(Encoded(file, encoded.payload_bytes, encoded.file_bytes))


def silence_level(system: System) -> float | None:
    """Level in dB of full scale of what a codec makes of two seconds of digital silence; None if it refuses."""
    silence = np.zeros(2 * SAMPLING_RATE, np.float32)
    try:
        decoded = system.decode(system.encode(silence))
    except CODEC_ERRORS:
        return None
    return float(10 * np.log10(np.mean(np.square(decoded)) + 1e-12))
