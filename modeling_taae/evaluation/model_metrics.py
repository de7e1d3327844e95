"""Metrics that a pretrained network computes: whether a recogniser still understands, whether a verifier hears the same
speaker. Both are Transformers models that the user names; figures by different models do not compare.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import TaaeInputError, one_line
from ..identity import weights_identity
from .codecs import model_name
from .metrics import SAMPLING_RATE, Metric

# What the figures of the literature are mostly made with.
USUAL_RECOGNIZER, USUAL_VERIFIER = "openai/whisper-small", "microsoft/wavlm-base-plus-sv"


class Judge(Protocol):
    """A network that scores a decoded clip.

    Attributes:
        metrics: what it computes, by name.
        facts: what a reader must know to repeat the figures, JSON values by name.
    """

    metrics: dict[str, Metric]
    facts: dict[str, Any]

    def judge(self, reference: np.ndarray, decoded: np.ndarray, text: str | None) -> dict[str, Any]:
        """Scores by name; None where one is not defined.

        Args:
            reference, decoded: (samples,) float32 at 16 kHz.
            text: what was said, where that is known.
        """


@dataclass(frozen=True)
class ErrorCount:
    """Word or character errors between two texts."""

    errors: int
    length: int

    def as_list(self) -> list[int]:
        """Errors and length of the reference, which are added up over utterances before they are divided."""
        return [self.errors, self.length]


def word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Word error rate: substitutions, deletions and insertions per word of the reference (jiwer), as counts."""
    import jiwer

    if not reference:
        return ErrorCount(len(hypothesis.split()), 0)
    measures = jiwer.process_words(reference, hypothesis)
    length = measures.hits + measures.substitutions + measures.deletions
    return ErrorCount(measures.substitutions + measures.deletions + measures.insertions, length)


def character_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Character error rate, spaces included, likewise (jiwer), as counts."""
    import jiwer

    if not reference:
        return ErrorCount(len(hypothesis), 0)
    measures = jiwer.process_characters(reference, hypothesis)
    length = measures.hits + measures.substitutions + measures.deletions
    return ErrorCount(measures.substitutions + measures.deletions + measures.insertions, length)


def normalize_text(text: str) -> str:
    """Whisper's language-neutral normalisation: lower case, no punctuation, symbols or text in brackets."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()(text).strip()


class Recognizer:
    """Word and character error rates by a speech recogniser.

    `wer` and `cer` compare with the text, where there is one; `dwer` and `dcer` with what the recogniser makes of the
    reference, so that its own errors cancel out. Errors and lengths are added up over utterances, then divided.

    Args:
        name: folder or Hub name of a Transformers model for automatic speech recognition.
        device: as torch spells it.

    Raises:
        TaaeInputError: if it cannot be loaded.
    """

    metrics = {
        "wer": Metric("WER", "lower", 2, word_errors, unit="%", needs_text=True),
        "cer": Metric("CER", "lower", 2, character_errors, unit="%", needs_text=True),
        "dwer": Metric("dWER", "lower", 2, word_errors, unit="%"),
        "dcer": Metric("dCER", "lower", 2, character_errors, unit="%"),
    }

    def __init__(self, name: str, device: str = "cpu"):
        from transformers import pipeline

        self.pipeline = load(lambda: pipeline("automatic-speech-recognition", model=name, device=device), name)
        self.facts = {
            "recognizer": model_name(name),
            "recognizer weights": weights_identity(self.pipeline.model.state_dict()),
            "text normalisation": "Whisper's basic one",
        }
        # The reference of an utterance is transcribed once for all codecs.
        self._transcribe_reference = lru_cache(maxsize=4)(self._transcribe_bytes)

    def transcribe(self, audio: np.ndarray) -> str:
        """What is said in a clip, (samples,) float32 at 16 kHz, normalised."""
        # Whisper reads windows of 30 s, and goes on to the next one only with time stamps.
        whisper = self.pipeline.model.config.model_type == "whisper" and len(audio) > 30 * SAMPLING_RATE
        options = {"return_timestamps": True} if whisper else {}
        return normalize_text(self.pipeline({"raw": audio, "sampling_rate": SAMPLING_RATE}, **options)["text"])

    def _transcribe_bytes(self, audio: bytes) -> str:
        return self.transcribe(np.frombuffer(audio, np.float32))

    def judge(self, reference: np.ndarray, decoded: np.ndarray, text: str | None) -> dict[str, Any]:
        """Error counts; see [`Judge`]."""
        hypothesis = self.transcribe(decoded)
        transcript = self._transcribe_reference(reference.tobytes())
        scores: dict[str, Any] = {"wer": None, "cer": None}
        if text is not None:
            spoken = normalize_text(text)
            scores["wer"] = word_errors(spoken, hypothesis).as_list()
            scores["cer"] = character_errors(spoken, hypothesis).as_list()
        scores["dwer"] = word_errors(transcript, hypothesis).as_list()
        scores["dcer"] = character_errors(transcript, hypothesis).as_list()
        return scores


def speaker_similarity(reference: np.ndarray, decoded: np.ndarray, embed: Callable[[np.ndarray], np.ndarray]) -> float:
    """Cosine of the angle between two clips' speaker embeddings by a verification network, -1 to 1."""
    first, second = embed(reference), embed(decoded)
    return float(first @ second / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-12))


class SpeakerVerifier:
    """Speaker similarity by an x-vector model.

    Args:
        name: folder or Hub name of a Transformers model that AutoModelForAudioXVector loads.
        device: as torch spells it.

    Raises:
        TaaeInputError: if it cannot be loaded.
    """

    metrics = {"speaker_similarity": Metric("speaker similarity", "higher", 3, speaker_similarity)}

    def __init__(self, name: str, device: str = "cpu"):
        from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

        self.extractor = load(lambda: AutoFeatureExtractor.from_pretrained(name), name)
        self.model = load(lambda: AutoModelForAudioXVector.from_pretrained(name), name).to(device).eval()
        self.facts = {
            "speaker model": model_name(name),
            "speaker model weights": weights_identity(self.model.state_dict()),
        }

    @torch.inference_mode()
    def embed(self, audio: np.ndarray) -> np.ndarray:
        """Speaker embedding of a clip, (samples,) float32 at 16 kHz -> (dimensions,) float64."""
        inputs = self.extractor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(self.model.device)
        return self.model(**inputs).embeddings[0].double().cpu().numpy()

    def judge(self, reference: np.ndarray, decoded: np.ndarray, text: str | None) -> dict[str, Any]:
        """The similarity; see [`Judge`]."""
        return {"speaker_similarity": speaker_similarity(reference, decoded, self.embed)}


def load(loader: Callable[[], Any], name: str) -> Any:
    """Loads a model, with an error that names it.

    Raises:
        TaaeInputError: if that fails.
    """
    try:
        return loader()
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise TaaeInputError(
            f"{name}: cannot be loaded ({one_line(error)}); expected a folder or the name of a fitting model on the Hub"
        ) from error
