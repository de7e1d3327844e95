"""Objective quality of decoded speech, one function per metric, each on a pair of mono clips.

Clips are (samples,) float arrays at 16 kHz of equal length, full scale at 1, reference first.
"""

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

SAMPLING_RATE = 16_000


def si_sdr(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, both clips made zero-mean first (torchmetrics)."""
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    clips = torch.from_numpy(np.ascontiguousarray(decoded)), torch.from_numpy(np.ascontiguousarray(reference))
    return float(scale_invariant_signal_distortion_ratio(*clips, zero_mean=True))


def pesq_wb(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Wide-band PESQ after ITU-T P.862.2, from 1.04 to 4.64; NaN where it finds no speech."""
    return _pesq(reference, decoded, SAMPLING_RATE, "wb")


def pesq_nb(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Narrow-band PESQ after ITU-T P.862.1 on copies resampled to 8 kHz, up to 4.55; NaN where it finds no speech."""
    import soxr

    reference, decoded = (soxr.resample(clip, SAMPLING_RATE, 8_000) for clip in (reference, decoded))
    return _pesq(reference, decoded, 8_000, "nb")


def _pesq(reference: np.ndarray, decoded: np.ndarray, sampling_rate: int, mode: str) -> float:
    import pesq

    try:
        return float(pesq.pesq(sampling_rate, reference, decoded, mode))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return float("nan")


def stoi(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al., 2011), the plain kind, from about 0 to 1."""
    import pystoi

    return float(pystoi.stoi(reference, decoded, SAMPLING_RATE, extended=False))


def stft_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Spectral convergence plus L1 of log magnitudes, window 1024, hop 256 (Yamamoto et al., 2020)."""
    return _spectral_distance(*(_magnitudes(clip) for clip in (reference, decoded)))


def mel_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """As [`stft_distance`], on 128 mel bands."""
    filters = torch.from_numpy(
        mel_filter_bank(
            num_frequency_bins=513,
            num_mel_filters=128,
            min_frequency=0.0,
            max_frequency=SAMPLING_RATE / 2,
            sampling_rate=SAMPLING_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
    ).to(torch.float32)
    return _spectral_distance(*(filters.T @ _magnitudes(clip) for clip in (reference, decoded)))


def _magnitudes(clip: np.ndarray) -> torch.Tensor:
    audio = torch.from_numpy(np.ascontiguousarray(clip)).to(torch.float32)
    spectrum = torch.stft(audio, n_fft=1024, hop_length=256, window=torch.hann_window(1024), return_complex=True)
    return spectrum.abs().clamp(min=1e-4)


def _spectral_distance(reference: torch.Tensor, decoded: torch.Tensor) -> float:
    convergence = torch.linalg.norm(reference - decoded) / torch.linalg.norm(reference)
    return float(convergence + (reference.log() - decoded.log()).abs().mean())


METRICS = {
    "pesq_wb": pesq_wb,
    "pesq_nb": pesq_nb,
    "stoi": stoi,
    "si_sdr": si_sdr,
    "mel_distance": mel_distance,
    "stft_distance": stft_distance,
}


def score(reference: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    """Every metric of one pair of clips, by name; NaN where a metric is not defined for the pair."""
    return {name: metric(reference, decoded) for name, metric in METRICS.items()}
