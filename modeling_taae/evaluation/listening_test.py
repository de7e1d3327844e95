"""Writes a MUSHRA listening test (ITU-R BS.1534-3) of a few utterances for webMUSHRA (github.com/audiolabs/webMUSHRA).

Every trial has the hidden reference and a low anchor, the reference low-passed at 3.5 kHz. All clips of a trial are
normalised to the reference's loudness. Consent, a volume setting and a headphone check precede the trials. Ratings are
sent only to the server that the organiser sets up.

webMUSHRA (its doc/experimenter.md and its code) needs clips of at most 12 s, all of one length, with two equal
channels, because it plays mono only in the left ear. Its YAML parser (yamljs) needs a list within a list to begin on a
new line; otherwise it reads a string.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soxr
import yaml

from ..audio_io import sound_file
from ..errors import TaaeInputError
from ..feature_extraction_taae import integrated_loudness, normalize_loudness
from ..files import write_bytes
from .alignment import SAMPLING_RATE
from .results import Sample
from .run import REFERENCE

ANCHOR_CUTOFF = 3_500  # Hz
LONGEST_CLIP = 10.0  # seconds, as BS.1534-3 recommends
# BS.1534-3 allows at most twelve versions per trial, including the hidden reference and the anchor.
MOST_CODECS = 10
# Headphone check (Woods et al., 2017, doi 10.3758/s13414-017-1361-2): of three tones one is quieter, and another has
# channels in opposite phase, so that it seems the quietest over loudspeakers. The tones come in all six orders;
# listeners with headphones answer at least five correctly.
TONE, TONE_SECONDS, TONE_PAUSE, QUIETER_DB = 200.0, 1.0, 0.5, -6.0
TONES = ("plain", "quiet", "opposite")

CONSENT = (
    "<p>You will hear short recordings of speech, each in several versions, and rate how good each version sounds "
    "compared with the original. It takes about {minutes} minutes, with breaks whenever you like.</p> "
    "<p>Your ratings are stored without your name. Taking part is voluntary: you can stop at any time by closing the "
    "page, and nothing is stored then. By going on you agree to this, and confirm that you are of age and hear "
    "normally.</p>"
)
TASK = (
    "Rate every version against the reference. One of them is the reference itself, and should be rated 100. "
    "You can listen as often as you like."
)
LEVELS = ("First", "Second", "Third")


class Dumper(yaml.SafeDumper):
    """Begins a list within a list on a new line."""

    def expect_block_sequence(self) -> None:
        """Writes a line break before a list that is an item of another list."""
        if self.sequence_context:
            self.write_indent()
        super().expect_block_sequence()


def check_codecs(count: int) -> None:
    """Checks that the number of codecs fits one trial.

    Raises:
        TaaeInputError: if there are too many.
    """
    if count > MOST_CODECS:
        raise TaaeInputError(
            f"--mushra: {count} codecs are too many to compare by ear; choose {MOST_CODECS} or fewer with --bottleneck "
            "and --peers"
        )


def write_listening_test(folder: Path, samples: Sequence[Sample]) -> None:
    """Writes the clips and `mushra.yaml`, whose paths are relative to webMUSHRA's folder.

    Put the folder into webMUSHRA's `configs/resources` and the file into its `configs`, then open
    `http://SERVER/?config=mushra.yaml`.

    Args:
        folder: the folder to write; made if it does not exist.
        samples: utterances with their decoded clips, one trial each.
    """
    trials = [write_trial(folder, number, sample) for number, sample in enumerate(samples)]
    configuration = {
        "testname": "How good does coded speech sound?",
        "testId": f"mushra_{folder.resolve().name}",
        "bufferSize": 2048,
        "stopOnErrors": True,
        "showButtonPreviousPage": True,
        "remoteService": "service/write.php",
        "pages": [
            page("generic", "consent", "Welcome", CONSENT.format(minutes=max(2 * len(samples), 5))),
            *[volume_page(trial["reference"]) for trial in trials[:1]],
            write_headphone_check(folder),
            # A list that begins with this word is shuffled for each listener.
            ["random", *trials],
            {
                **page("finish", "finish", "Thank you", "Your ratings are sent when you press the button."),
                "popupContent": "Your ratings have been sent. You can close this page.",
                "showResults": False,
                "writeResults": True,
                "questionnaire": [
                    {"type": "text", "label": "Age", "name": "age", "optional": True},
                    {"type": "text", "label": "Which languages do you speak well?", "name": "languages"},
                    {"type": "text", "label": "Headphones (make and model)", "name": "headphones", "optional": True},
                ],
            },
        ],
    }
    content = yaml.dump(configuration, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    write_bytes(folder / "mushra.yaml", content.encode())


def page(kind: str, name: str, title: str, content: str) -> dict:
    """Returns the fields that all pages of webMUSHRA have."""
    return {"type": kind, "id": name, "name": title, "content": content}


def resource(folder: Path, *parts: str) -> str:
    """Returns a clip's address for webMUSHRA."""
    return quote("/".join(["configs/resources", folder.resolve().name, *parts]))


def write_trial(folder: Path, number: int, sample: Sample) -> dict:
    """Writes one utterance's clips and returns its page. Listeners do not see the names of the versions."""
    clips = {name: clip[: int(LONGEST_CLIP * SAMPLING_RATE)] for name, clip in sample.clips.items()}
    reference = clips.pop(REFERENCE)
    versions = {"anchor35": low_anchor(reference)} | clips
    loudness = integrated_loudness(reference, SAMPLING_RATE)
    trial = f"trial_{number:02d}"
    write_bytes(folder / trial / "reference.wav", wav(two_channels(reference)))
    stimuli = {}
    for name, clip in versions.items():
        file = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) + ".wav"
        level = clip if loudness is None else normalize_loudness(clip, SAMPLING_RATE, loudness)
        write_bytes(folder / trial / file, wav(two_channels(level)))
        stimuli[file.removesuffix(".wav")] = resource(folder, trial, file)
    return {
        **page("mushra", trial, f"Recording {number + 1}", TASK),
        "showWaveform": False,
        "enableLooping": True,
        "strict": True,
        "randomize": True,
        "reference": resource(folder, trial, "reference.wav"),
        "createAnchor35": False,
        "createAnchor70": False,
        "stimuli": stimuli,
    }


def volume_page(stimulus: str) -> dict:
    """Returns the page on which listeners set the volume, with a clip at this address."""
    text = "Put on headphones, and set the volume so that the speech is comfortable. Leave it as it is from then on."
    return {**page("volume", "volume", "Volume", text), "stimulus": stimulus, "defaultVolume": 0.5}


def write_headphone_check(folder: Path) -> dict:
    """Writes the tones in every order and returns the pages of the headphone check.

    A row of webMUSHRA's results (lss.csv) has the answer, 1 to 3, and the stimulus, whose name gives the right answer.
    """
    stimuli = {}
    for order in itertools.permutations(TONES):
        name = f"quietest_{order.index('quiet') + 1}_opposite_{order.index('opposite') + 1}"
        write_bytes(folder / "headphones" / f"{name}.wav", wav(headphone_tones(order)))
        stimuli[name] = resource(folder, "headphones", f"{name}.wav")
    text = "You hear three tones. Which of them is the quietest?"
    return {
        **page("likert_single_stimulus", "headphone_check", "Headphones", text),
        "mustRate": True,
        "mustPlayback": "ended",
        "stimuli": stimuli,
        "response": [{"value": str(place), "label": label} for place, label in enumerate(LEVELS, start=1)],
    }


def low_anchor(reference: np.ndarray) -> np.ndarray:
    """Low-passes the reference at 3.5 kHz: (samples,) float32."""
    low = soxr.resample(reference, SAMPLING_RATE, 2 * ANCHOR_CUTOFF, quality="VHQ")
    anchor = soxr.resample(low, 2 * ANCHOR_CUTOFF, SAMPLING_RATE, quality="VHQ")
    return np.resize(np.pad(anchor, (0, max(len(reference) - len(anchor), 0))), len(reference)).astype(np.float32)


def headphone_tones(order: Sequence[str]) -> np.ndarray:
    """Synthesises the three tones of the headphone check in an order of `TONES`: (samples, 2) float32."""
    time = np.arange(int(TONE_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    fade = np.minimum(1, np.minimum(time, TONE_SECONDS - time) / 0.1)
    tone = two_channels(0.2 * fade * np.sin(2 * np.pi * TONE * time))
    tones = {"plain": tone, "quiet": 10 ** (QUIETER_DB / 20) * tone, "opposite": tone * [1, -1]}
    pause = np.zeros((int(TONE_PAUSE * SAMPLING_RATE), 2))
    return np.concatenate([part for name in order for part in (tones[name], pause)]).astype(np.float32)


def two_channels(audio: np.ndarray) -> np.ndarray:
    """Copies one channel to two: (samples,) -> (samples, 2)."""
    return np.stack([audio, audio], axis=1)


def wav(audio: np.ndarray) -> bytes:
    """Encodes (samples, 2) as a WAV file."""
    return sound_file(audio.clip(-1, 1), SAMPLING_RATE)
