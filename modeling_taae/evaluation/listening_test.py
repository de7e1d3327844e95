"""A MUSHRA listening test (ITU-R BS.1534-3) of a few utterances, for webMUSHRA (github.com/audiolabs/webMUSHRA).

Every trial has the hidden reference and a low anchor, the reference without what lies above 3.5 kHz; all clips of a
trial are brought to the reference's loudness. Before the trials come consent, a volume setting and a check for
headphones. Nothing is sent anywhere but to the server that the organiser sets up.

What webMUSHRA asks for, by its doc/experimenter.md and its code: clips of 12 s at most, of one length, and in two equal
channels, for it plays mono in the left ear alone; and YAML in which a list within a list begins on a line of its own,
for its parser (yamljs) makes a string of it otherwise.
"""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile
import soxr
import yaml

from ..errors import TaaeInputError
from ..feature_extraction_taae import integrated_loudness, normalize_loudness
from ..files import write_bytes
from .alignment import SAMPLING_RATE
from .results import Sample
from .run import REFERENCE

ANCHOR_CUTOFF = 3_500  # Hz
LONGEST_CLIP = 10.0  # seconds, as BS.1534-3 recommends
# BS.1534-3 has twelve versions a trial at most, the hidden reference and the anchor among them.
MOST_CODECS = 10
# Three tones of which one is quieter; another has its channels in opposite phase, so that loudspeakers make that one
# seem the quietest (Woods et al., 2017, doi 10.3758/s13414-017-1361-2). They come in every order; listeners with
# headphones are right about five of the six or more.
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
    """Writes a list within a list on lines of its own."""

    def expect_block_sequence(self) -> None:
        """As YAML has it, but with a line's end before a list that is an item of another."""
        if self.sequence_context:
            self.write_indent()
        super().expect_block_sequence()


def check_codecs(count: int) -> None:
    """Checks that so many codecs can be compared in one trial.

    Raises:
        TaaeInputError: if they are too many.
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
        folder: where to; made if need be.
        samples: utterances with what the codecs make of them, one trial each.
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
    """Returns what all pages of webMUSHRA have."""
    return {"type": kind, "id": name, "name": title, "content": content}


def resource(folder: Path, *parts: str) -> str:
    """A clip's address as webMUSHRA finds it."""
    return quote("/".join(["configs/resources", folder.resolve().name, *parts]))


def write_trial(folder: Path, number: int, sample: Sample) -> dict:
    """Writes one utterance's clips and returns its page. Listeners do not see what the versions are called."""
    clips = {name: clip[: int(LONGEST_CLIP * SAMPLING_RATE)] for name, clip in sample.clips.items()}
    reference = clips.pop(REFERENCE)
    versions = {"anchor35": low_anchor(reference)} | clips
    loudness = integrated_loudness(reference, SAMPLING_RATE)
    trial = f"trial_{number:02d}"
    write_bytes(folder / trial / "reference.wav", stereo_wav(two_channels(reference)))
    stimuli = {}
    for name, clip in versions.items():
        file = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) + ".wav"
        level = clip if loudness is None else normalize_loudness(clip, SAMPLING_RATE, loudness)
        write_bytes(folder / trial / file, stereo_wav(two_channels(level)))
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
    """The page on which listeners set the volume, on a clip of this address."""
    text = "Put on headphones, and set the volume so that the speech is comfortable. Leave it as it is from then on."
    return {**page("volume", "volume", "Volume", text), "stimulus": stimulus, "defaultVolume": 0.5}


def write_headphone_check(folder: Path) -> dict:
    """Writes the tones in every order and returns what webMUSHRA makes a page of each of.

    A row of its results (lss.csv) has the answer, 1 to 3, and the stimulus, whose name says what was right.
    """
    stimuli = {}
    for order in itertools.permutations(TONES):
        name = f"quietest_{order.index('quiet') + 1}_opposite_{order.index('opposite') + 1}"
        write_bytes(folder / "headphones" / f"{name}.wav", stereo_wav(headphone_tones(order)))
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
    """The reference without what lies above 3.5 kHz: (samples,) float32."""
    low = soxr.resample(reference, SAMPLING_RATE, 2 * ANCHOR_CUTOFF, quality="VHQ")
    anchor = soxr.resample(low, 2 * ANCHOR_CUTOFF, SAMPLING_RATE, quality="VHQ")
    return np.resize(np.pad(anchor, (0, max(len(reference) - len(anchor), 0))), len(reference)).astype(np.float32)


def headphone_tones(order: Sequence[str]) -> np.ndarray:
    """The three tones of the headphone check, as `TONES` calls them: (samples, 2) float32."""
    time = np.arange(int(TONE_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    fade = np.minimum(1, np.minimum(time, TONE_SECONDS - time) / 0.1)
    tone = two_channels(0.2 * fade * np.sin(2 * np.pi * TONE * time))
    tones = {"plain": tone, "quiet": 10 ** (QUIETER_DB / 20) * tone, "opposite": tone * [1, -1]}
    pause = np.zeros((int(TONE_PAUSE * SAMPLING_RATE), 2))
    return np.concatenate([part for name in order for part in (tones[name], pause)]).astype(np.float32)


def two_channels(audio: np.ndarray) -> np.ndarray:
    """(samples,) -> (samples, 2), both the same."""
    return np.stack([audio, audio], axis=1)


def stereo_wav(audio: np.ndarray) -> bytes:
    """(samples, 2) as a WAV file's content."""
    content = io.BytesIO()
    soundfile.write(content, audio.clip(-1, 1), SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return content.getvalue()
