"""Rates the naturalness of speech with a network trained on listeners' ratings, without a reference."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..identity import weights_identity
from .judges import JudgedClip, Remembered, need_package
from .metrics import Metric

BATCH_WINDOWS = 2  # windows of 7.68 s in a batch; with more, the convolutions take a quarter longer on a CPU


def distillmos(decoded: np.ndarray) -> float:
    """DistillMOS (Stahl and Gamper, 2025, arXiv 2502.05356): a network that predicts listeners' ratings, 1 to 5."""
    return DistillMos().judge([JudgedClip(decoded, decoded)])[0]["distillmos"]


class DistillMos:
    """Judges naturalness with DistillMOS, whose weights are in its package.

    Args:
        device: the network's torch device.

    Raises:
        MissingJudgeError: if its packages are not installed.
    """

    metrics = {"distillmos": Metric("DistillMOS", "higher", 2, distillmos, needs_reference=False)}

    def __init__(self, device: str = "cpu"):
        version = need_package("distillmos", ["distillmos", "xls_r_sqa"])
        with torchaudio_left_out():
            from distillmos import sqa
        self.window, self.hop = sqa.SEQ_LEN, sqa.MAX_HOP_LEN
        self.network = sqa.ConvTransformerSQAModel(load_weights=False, segmenting_in_forward=False)
        checkpoint = torch.load(sqa.DEFAULT_WEIGHTS_CHKPT, map_location="cpu", weights_only=True)
        self.network.load_state_dict(checkpoint["model"])
        self.network.to(device).eval()
        self.device = device
        self.facts: dict[str, Any] = {
            "naturalness model": f"DistillMOS {version}, trained on listeners' ratings of speech quality",
            "naturalness model weights": weights_identity(self.network.state_dict()),
        }
        self._rate = Remembered(self._rate_clips)

    def judge(self, clips: Sequence[JudgedClip]) -> list[dict[str, Any]]:
        """Rates the decoded clips; see [`Judge`]."""
        return [{"distillmos": rating} for rating in self._rate([(clip.decoded, None) for clip in clips])]

    @torch.inference_mode()
    def _rate_clips(self, clips: list[tuple[np.ndarray, None]]) -> list[float]:
        windows = [self._windows(audio) for audio, _ in clips]
        batches = torch.from_numpy(np.concatenate(windows)).split(BATCH_WINDOWS)
        ratings = torch.cat([self.network(batch.to(self.device)).reshape(-1).cpu() for batch in batches])
        return [float(ratings.mean()) for ratings in ratings.split([len(each) for each in windows])]

    def _windows(self, audio: np.ndarray) -> np.ndarray:
        """Cuts a clip into windows at most a second apart, after zero-padding a short one: (windows, samples)."""
        spare = max(len(audio) - self.window, 0)
        padded = np.pad(audio, (0, max(self.window - len(audio), 0))).astype(np.float32)
        starts = (np.linspace(0, 1, math.ceil(spare / self.hop) + 1) * spare).astype(int)
        return np.stack([padded[start : start + self.window] for start in starts])


@contextmanager
def torchaudio_left_out() -> Iterator[None]:
    """Allows importing a package without torchaudio, which it needs only for its command line."""
    if "torchaudio" in sys.modules or find_spec("torchaudio") is not None:
        yield
        return
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    try:
        yield
    finally:
        del sys.modules["torchaudio"]
