"""A MUSHRA listening test (ITU-R BS.1534-3) of a few utterances, for webMUSHRA (github.com/audiolabs/webMUSHRA).

Every trial has the hidden reference and a low anchor, the reference without what lies above 3.5 kHz; all clips of a
trial are brought to the reference's loudness. Before the trials come consent, a volume setting and a check for
headphones. Nothing is sent anywhere but to the server that the organiser sets up.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
import yaml

from .audio_io import write_audio, write_bytes
from .feature_extraction_taae import integrated_loudness, normalize_loudness
from .metrics import SAMPLING_RATE
from .samples import REFERENCE, Sample

ANCHOR_CUTOFF = 3_500  # Hz
# Three tones of which one is quieter; another has its channels in opposite phase, so that loudspeakers make that one
# seem the quietest (Woods et al., 2017, doi 10.3758/s13414-017-1361-2).
TONE, TONE_SECONDS, TONE_PAUSE = 200.0, 1.0, 0.5
QUIETER_DB, QUIETEST_TONE, OPPOSITE_TONE = -6.0, 1, 2

CONSENT = """\
<p>You will hear short recordings of speech, each in several versions, and rate how good each version sounds compared
with the original. It takes about {minutes} minutes, with breaks whenever you like.</p>
<p>Your ratings are stored without your name. Taking part is voluntary: you can stop at any time by closing the
page, and nothing is stored then. By going on you agree to this, and confirm that you are of age and hear normally.
</p>"""
TASK = (
    "Rate every version against the reference. One of them is the reference itself, and should be rated 100. "
    "You can listen as often as you like."
)
LEVELS = ("First", "Second", "Third")


def write_listening_test(folder: Path, samples: Sequence[Sample]) -> None:
    """Writes the clips and `mushra.yaml`, whose paths are relative to webMUSHRA's folder.

    Put the folder into webMUSHRA's `configs/resources` and the file into its `configs`, then open
    `http://SERVER/?config=mushra.yaml`.

    Args:
        folder: where to; made if need be.
        samples: utterances with what the codecs make of them, one trial each.
    """
    trials = [write_trial(folder, number, sample) for number, sample in enumerate(samples)]
    write_bytes(folder / "headphones.wav", stereo_wav(headphone_tones()))
    configuration = {
        "testname": "How good does coded speech sound?",
        "testId": f"mushra_{folder.name}",
        "bufferSize": 2048,
        "stopOnErrors": True,
        "showButtonPreviousPage": True,
        "remoteService": "service/write.php",
        "pages": [
            page("generic", "consent", "Welcome", CONSENT.format(minutes=max(2 * len(samples), 5))),
            volume_page(folder, trials),
            headphone_page(folder),
            # A list that begins with this word is shuffled for each listener.
            ["random", *trials],
            {
                **page("finish", "finish", "Thank you", "Your ratings have been sent."),
                "showResults": False,
                "writeResults": True,
                "questionnaire": [
                    {"type": "number", "label": "Age", "name": "age", "min": 18, "max": 120, "optional": True},
                    {"type": "text", "label": "Which languages do you speak well?", "name": "languages"},
                    {"type": "text", "label": "Headphones (make and model)", "name": "headphones", "optional": True},
                ],
            },
        ],
    }
    content = yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True, width=1000)
    write_bytes(folder / "mushra.yaml", content.encode())


def page(kind: str, name: str, title: str, content: str) -> dict:
    """What all pages of webMUSHRA have."""
    return {"type": kind, "id": name, "name": title, "content": content}


def resource(folder: Path, *parts: str) -> str:
    """A clip's path as webMUSHRA finds it."""
    return "/".join(["configs/resources", folder.name, *parts])


def write_trial(folder: Path, number: int, sample: Sample) -> dict:
    """Writes one utterance's clips and returns its page. Listeners do not see what the versions are called."""
    reference = sample.clips[REFERENCE]
    versions = {"anchor35": low_anchor(reference)}
    versions |= {name: clip for name, clip in sample.clips.items() if name != REFERENCE}
    loudness = integrated_loudness(reference, SAMPLING_RATE)
    trial = f"trial_{number:02d}"
    write_audio(folder / trial / "reference.wav", reference, SAMPLING_RATE)
    stimuli = {}
    for name, clip in versions.items():
        file = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) + ".wav"
        level = clip if loudness is None else normalize_loudness(clip, SAMPLING_RATE, loudness)
        write_audio(folder / trial / file, level, SAMPLING_RATE)
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


def volume_page(folder: Path, trials: Sequence[dict]) -> dict:
    """The page on which listeners set the volume, on the first trial's reference."""
    text = "Put on headphones, and set the volume so that the speech is comfortable. Leave it as it is from then on."
    stimulus = trials[0]["reference"] if trials else resource(folder, "headphones.wav")
    return {**page("volume", "volume", "Volume", text), "stimulus": stimulus, "defaultVolume": 0.5}


def headphone_page(folder: Path) -> dict:
    """The page that tells listeners with headphones from others, who do not answer that it is the second."""
    text = "You hear three tones. Which of them is the quietest?"
    responses = [{"value": str(place), "label": label} for place, label in enumerate(LEVELS)]
    return {
        **page("likert_single_stimulus", "headphones", "Headphones", text),
        "mustPlayback": True,
        "stimuli": {"tones": resource(folder, "headphones.wav")},
        "response": responses,
    }


def low_anchor(reference: np.ndarray) -> np.ndarray:
    """The reference without what lies above 3.5 kHz: (samples,) float32."""
    low = soxr.resample(reference, SAMPLING_RATE, 2 * ANCHOR_CUTOFF, quality="VHQ")
    anchor = soxr.resample(low, 2 * ANCHOR_CUTOFF, SAMPLING_RATE, quality="VHQ")
    return np.resize(np.pad(anchor, (0, max(len(reference) - len(anchor), 0))), len(reference)).astype(np.float32)


def headphone_tones() -> np.ndarray:
    """The three tones of the headphone check: (samples, 2) float32."""
    time = np.arange(int(TONE_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    fade = np.minimum(1, np.minimum(time, TONE_SECONDS - time) / 0.1)
    tone = 0.2 * fade * np.sin(2 * np.pi * TONE * time)
    tones = []
    for place in range(len(LEVELS)):
        gain = 10 ** (QUIETER_DB / 20) if place == QUIETEST_TONE else 1.0
        sign = -1 if place == OPPOSITE_TONE else 1
        tones += [gain * np.stack([tone, sign * tone], axis=1), np.zeros((int(TONE_PAUSE * SAMPLING_RATE), 2))]
    return np.concatenate(tones).astype(np.float32)


def stereo_wav(audio: np.ndarray) -> bytes:
    """(samples, 2) as a WAV file's content."""
    content = io.BytesIO()
    soundfile.write(content, audio, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return content.getvalue()
