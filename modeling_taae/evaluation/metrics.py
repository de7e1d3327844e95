"""Objective metrics of decoded speech: one function per metric, and facts about each.

Clips are mono, (samples,) float32 at 16 kHz with full scale at 1. Metrics of fidelity take the reference and the
decoded clip, of equal length. Metrics without a reference take only the decoded clip.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from .alignment import SAMPLING_RATE

NOT_A_NUMBER = float("nan")

# Lower bound of magnitudes before their logarithm, 80 dB below 1.
QUIETEST_MAGNITUDE = 1e-4
# Languages that are written without spaces between words: ISO 639-1 codes, and 639-3 codes that data sets use.
UNSPACED_LANGUAGES = frozenset({"zh", "cmn", "yue", "ja", "jpn", "th", "tha", "lo", "my", "km", "bo"})
LONGEST_PESQ = 20  # seconds
STFT_WINDOW, STFT_HOP, MEL_BANDS = 1024, 256, 128
DNSMOS_SECONDS = 9.01


def si_sdr(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., 2019, arXiv 1811.02508).

    Both clips are made zero-mean first (torchmetrics with `zero_mean=True`). Codecs that do not keep the phase, such as
    vocoders and small models, score far below zero however good they sound.

    Returns:
        Decibels; NaN if either clip is constant, such as digital silence.
    """
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    if np.ptp(reference) == 0 or np.ptp(decoded) == 0:
        return NOT_A_NUMBER
    clips = torch.from_numpy(np.ascontiguousarray(decoded)), torch.from_numpy(np.ascontiguousarray(reference))
    return float(scale_invariant_signal_distortion_ratio(*clips, zero_mean=True))


def pesq_wb(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Wide-band PESQ, ITU-T P.862.2, as the package pesq computes it at 16 kHz.

    Clips over 20 s, for which the standard was not made, are scored in equal parts and averaged.

    Returns:
        MOS-LQO, 1.04 to 4.64; NaN if PESQ finds no speech, the decoded clip is digital silence, or the clip is shorter
        than a quarter of a second.
    """
    return _pesq(reference, decoded, SAMPLING_RATE, "wb")


def pesq_nb(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Narrow-band PESQ, ITU-T P.862 with the mapping of P.862.1, on copies resampled to 8 kHz (soxr).

    Clips over 20 s are scored in equal parts and averaged.

    Returns:
        MOS-LQO, 1.02 to 4.56; NaN if PESQ finds no speech, the decoded clip is digital silence, or the clip is shorter
        than a quarter of a second.
    """
    import soxr

    reference, decoded = (soxr.resample(clip, SAMPLING_RATE, 8_000) for clip in (reference, decoded))
    return _pesq(reference, decoded, 8_000, "nb")


def _pesq(reference: np.ndarray, decoded: np.ndarray, sampling_rate: int, mode: str) -> float:
    import pesq

    parts = -(-len(reference) // (LONGEST_PESQ * sampling_rate))
    scores = []
    for whole, coded in zip(np.array_split(reference, parts), np.array_split(decoded, parts), strict=True):
        if not coded.any():  # pesq divides by the power
            continue
        try:
            scores.append(float(pesq.pesq(sampling_rate, whole, coded, mode)))
        except (pesq.NoUtterancesError, pesq.BufferTooShortError):
            continue
    return float(np.mean(scores)) if scores else NOT_A_NUMBER


def stoi(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al., 2011), the plain kind (pystoi with `extended=False`).

    Returns:
        About 0 to 1; NaN if less than 0.4 s remains after silent frames are removed: pystoi is then undefined and
        returns 1e-5.
    """
    import warnings

    import pystoi

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames")
        try:
            return float(pystoi.stoi(reference, decoded, SAMPLING_RATE, extended=False))
        except RuntimeWarning:
            return NOT_A_NUMBER


def stft_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Spectral convergence plus L1 of natural-log magnitudes (Yamamoto et al., 2020, arXiv 1910.11480).

    One resolution: Hann windows of 1024 samples, hop 256, magnitudes at least 1e-4.
    """
    return _spectral_distance(*(_magnitudes(clip) for clip in (reference, decoded)))


def mel_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """The STFT distance of 128 mel bands (Slaney's scale and area normalisation, 0 to 8 kHz) of the same spectra."""
    return _spectral_distance(*(_mel_filters().T @ _magnitudes(clip) for clip in (reference, decoded)))


@cache
def _mel_filters() -> np.ndarray:
    return mel_filter_bank(
        num_frequency_bins=STFT_WINDOW // 2 + 1,
        num_mel_filters=MEL_BANDS,
        min_frequency=0.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )


def _magnitudes(clip: np.ndarray) -> np.ndarray:
    """Returns the magnitudes of a clip's spectrum: (samples,) -> (frequencies, frames)."""
    # The edges are reflected, which needs more samples than half a window.
    audio = np.pad(clip, (0, max(STFT_WINDOW - len(clip), 0)))
    window = window_function(STFT_WINDOW, "hann")
    magnitudes = spectrogram(audio, window, STFT_WINDOW, STFT_HOP, power=1.0)
    return magnitudes.clip(min=QUIETEST_MAGNITUDE)


def _spectral_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    convergence = np.linalg.norm(reference - decoded) / np.linalg.norm(reference)
    return float(convergence + np.abs(np.log(reference) - np.log(decoded)).mean())


def dnsmos(decoded: np.ndarray) -> dict[str, float]:
    """DNSMOS P.835 and P.808 (Reddy et al., 2022, arXiv 2110.01763): networks that predict listeners' ratings.

    The models are those in the package speechmos. Clips shorter than their window of 9.01 s are repeated to fill it,
    longer ones are averaged over windows that start a second apart.

    Returns:
        Scores from 1 to 5: `dnsmos_sig` (speech), `dnsmos_bak` (background), `dnsmos_ovrl` (overall), `dnsmos_p808`.

    Raises:
        ImportError: if speechmos or one of its dependencies is not installed.
    """
    scores = _dnsmos_networks()(decoded.clip(-1, 1), SAMPLING_RATE, False)
    return {f"dnsmos_{name}": float(scores[f"{name}_mos"]) for name in ("sig", "bak", "ovrl", "p808")}


def dnsmos_p808(decoded: np.ndarray) -> dict[str, float]:
    """DNSMOS P.808 alone (Reddy et al., 2021, arXiv 2010.15258), which takes a fifteenth of the time of all four.

    Returns:
        `dnsmos_p808`, as [`dnsmos`] gives it.

    Raises:
        ImportError: if speechmos, or what it needs, is not installed.
    """
    networks, audio = _dnsmos_networks(), decoded.clip(-1, 1)
    while len(audio) < DNSMOS_SECONDS * SAMPLING_RATE:
        audio = np.append(audio, audio)
    scores = []
    for second in range(int(len(audio) // SAMPLING_RATE - DNSMOS_SECONDS) + 1):
        # Some ends are rounded down, and the package leaves out what is a sample too short for it.
        window = audio[second * SAMPLING_RATE : int((second + DNSMOS_SECONDS) * SAMPLING_RATE)]
        if len(window) >= int(DNSMOS_SECONDS * SAMPLING_RATE):
            spectrum = networks.audio_melspec(window[:-160]).astype(np.float32)
            scores.append(networks.p808_onnx_sess.run(None, {"input_1": spectrum[None]})[0][0][0])
    return {"dnsmos_p808": float(np.mean(scores))}


@cache
def _dnsmos_networks() -> Any:
    import onnxruntime
    from speechmos import dnsmos

    options = onnxruntime.SessionOptions()
    # One thread, for the same scores on any machine, and to avoid spinning threads beside other work.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    networks = dnsmos.DNSMOS.__new__(dnsmos.DNSMOS)
    folder = Path(dnsmos.__file__).parent / "dnsmos_models"
    networks.onnx_sess = onnxruntime.InferenceSession(folder / "sig_bak_ovr.onnx", options)
    networks.p808_onnx_sess = onnxruntime.InferenceSession(folder / "model_v8.onnx", options)
    return networks


@dataclass(frozen=True)
class Metric:
    """The function of a metric, and how its values are shown.

    Args:
        label: the metric's name in tables.
        better: the direction of improvement, `"higher"` or `"lower"`.
        decimals: number of meaningful decimals.
        function: the function of the reference and the decoded clip; for metrics without a reference, a function of the
            decoded clip that returns several metrics by name.
        unit: the unit, if there is one; metrics in % are computed as shares of one.
        needs_reference: whether it compares with the recording.
        needs_text: whether it is defined only where the text is known.
        needs_words: whether it is defined only in languages that put spaces between words.
        languages: the languages it is defined in; empty for all.
    """

    label: str
    better: str
    decimals: int
    function: Callable
    unit: str = ""
    needs_reference: bool = True
    needs_text: bool = False
    needs_words: bool = False
    languages: tuple[str, ...] = ()

    @property
    def definition(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").splitlines()[0]

    def applies_to(self, facts: Mapping[str, str]) -> bool:
        """Returns whether the metric can be defined for an utterance with these facts; an unknown language counts."""
        language = primary_language(facts.get("language", ""))
        if self.languages and language and language not in self.languages:
            return False
        if self.needs_words and language in UNSPACED_LANGUAGES:
            return False
        return "text" in facts or not self.needs_text


def primary_language(tag: str) -> str:
    """Returns the language of a tag such as zh-CN or pt_BR, in lower case."""
    return tag.replace("_", "-").partition("-")[0].lower()


METRICS = {
    "pesq_wb": Metric("PESQ-wb", "higher", 2, pesq_wb),
    "pesq_nb": Metric("PESQ-nb", "higher", 2, pesq_nb),
    "stoi": Metric("STOI", "higher", 3, stoi),
    "si_sdr": Metric("SI-SDR", "higher", 1, si_sdr, unit="dB"),
    "mel_distance": Metric("mel distance", "lower", 2, mel_distance),
    "stft_distance": Metric("STFT distance", "lower", 2, stft_distance),
}
DNSMOS_METRICS = {
    f"dnsmos_{name}": Metric(f"DNSMOS {name.upper()}", "higher", 2, dnsmos, needs_reference=False)
    for name in ("ovrl", "sig", "bak")
} | {"dnsmos_p808": Metric("DNSMOS P808", "higher", 2, dnsmos_p808, needs_reference=False)}
ALL_METRICS = METRICS | DNSMOS_METRICS


def score(reference: np.ndarray, decoded: np.ndarray, names: Iterable[str] = tuple(METRICS)) -> dict[str, float]:
    """Computes metrics of one pair of clips; returns them by name, in the order of `names`, NaN if undefined.

    Args:
        reference, decoded: (samples,) float32 at 16 kHz, of equal length.
        names: names of metrics, of `ALL_METRICS`; by default all that need a reference.

    Raises:
        ValueError: if the clips differ in length or a metric is unknown.
    """
    if reference.shape != decoded.shape or reference.ndim != 1:
        raise ValueError(f"Metrics compare clips of equal length, not of shapes {reference.shape} and {decoded.shape}.")
    scores: dict[str, float] = {}
    for name in names:
        if name not in ALL_METRICS:
            raise ValueError(f"There is no metric named {name!r}; choose from {', '.join(ALL_METRICS)}.")
        metric = ALL_METRICS[name]
        if metric.needs_reference:
            scores[name] = metric.function(reference, decoded)
        elif name not in scores:
            scores |= metric.function(decoded)  # several metrics by name
    return {name: scores[name] for name in names}
