"""Measures whether a decoded clip still sounds like its speaker, by the similarity of speaker embeddings."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..codec import model_name
from ..identity import weights_identity
from .judges import JudgedClip, Remembered, load, need_package
from .metrics import SAMPLING_RATE, Metric

# The speaker verification model that most publications use.
USUAL_VERIFIER = "microsoft/wavlm-base-plus-sv"
EMBEDDING_DIGITS = 5


def speaker_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of the angle between the speaker embeddings of two clips by a verification network, -1 to 1."""
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-12))


class Embedder(Protocol):
    """A speaker-verification network; for `facts` see [`Judge`]."""

    facts: dict[str, Any]

    def embed(self, clips: list[tuple[np.ndarray, None]]) -> list[np.ndarray]:
        """Returns the speaker embedding, (dimensions,), of each clip, (samples,) float32 at 16 kHz."""


class SpeakerJudge:
    """Judges the speaker similarity of the decoded clip and the recording.

    For an original it returns the embedding, to compare recordings of one person and of several.

    Args:
        embedder: the network.
    """

    metrics = {"speaker_similarity": Metric("speaker similarity", "higher", 3, speaker_similarity)}

    def __init__(self, embedder: Embedder):
        self.facts = embedder.facts
        self._embed = Remembered(embedder.embed)

    def judge(self, clips: Sequence[JudgedClip]) -> list[dict[str, Any]]:
        """Compares voices; see [`Judge`]."""
        voices = self._embed([(audio, None) for clip in clips for audio in (clip.reference, clip.decoded)])
        return [
            {"embedding": np.round(voices[2 * place].astype(np.float64), EMBEDDING_DIGITS).tolist()}
            if clip.original
            else {"speaker_similarity": speaker_similarity(voices[2 * place], voices[2 * place + 1])}
            for place, clip in enumerate(clips)
        ]


class XVectorEmbedder:
    """A Transformers model that AutoModelForAudioXVector loads.

    Args:
        name: the folder or Hub name of the model.
        device: the torch device.

    Raises:
        TaaeInputError: if it cannot be loaded.
    """

    def __init__(self, name: str, device: str = "cpu"):
        import transformers

        self.extractor = load(lambda: transformers.AutoFeatureExtractor.from_pretrained(name), name)
        self.model = load(lambda: transformers.AutoModelForAudioXVector.from_pretrained(name), name).to(device).eval()
        self.facts: dict[str, Any] = {
            "speaker model": f"{model_name(name)} by transformers {transformers.__version__}, for speaker verification",
            "speaker model weights": weights_identity(self.model.state_dict()),
        }

    @torch.inference_mode()
    def embed(self, clips: list[tuple[np.ndarray, None]]) -> list[np.ndarray]:
        """Embeds clip by clip, because the network's pooling would count padding; see [`Embedder`]."""
        return [self._embed(audio) for audio, _ in clips]

    def _embed(self, audio: np.ndarray) -> np.ndarray:
        inputs = self.extractor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(self.model.device)
        return self.model(**inputs).embeddings[0].double().cpu().numpy()


class ResemblyzerEmbedder:
    """The voice encoder of Resemblyzer (Wan et al., 2018, arXiv 1710.10467), whose weights are in its package.

    Level and pauses of the recording are left unchanged.

    Args:
        device: the network's torch device.

    Raises:
        MissingJudgeError: if Resemblyzer, or webrtcvad, which it imports, is not installed.
    """

    def __init__(self, device: str = "cpu"):
        version = need_package("Resemblyzer", ["resemblyzer", "webrtcvad"])
        from resemblyzer import VoiceEncoder

        self.encoder = VoiceEncoder(device, verbose=False).eval()
        self.facts: dict[str, Any] = {
            "speaker model": f"Resemblyzer {version}, for speaker verification",
            "speaker model weights": weights_identity(self.encoder.state_dict()),
        }

    def embed(self, clips: list[tuple[np.ndarray, None]]) -> list[np.ndarray]:
        """Embeds clips, the overlapping windows of 1.6 s of each in a batch; see [`Embedder`]."""
        return [self.encoder.embed_utterance(audio) for audio, _ in clips]


def load_speaker_judge(name: str | None, device: str = "cpu") -> SpeakerJudge:
    """Loads a speaker judge.

    Args:
        name: folder or Hub name of a Transformers x-vector model; None for Resemblyzer.
        device: the torch device.

    Raises:
        MissingJudgeError: if Resemblyzer is wanted and not installed.
        TaaeInputError: if the model cannot be loaded.
    """
    return SpeakerJudge(ResemblyzerEmbedder(device) if name is None else XVectorEmbedder(name, device))
