"""Spectral convergence plus L1 of natural-log magnitudes at one resolution.

Yamamoto et al., "Parallel WaveGAN", ICASSP 2020, arXiv 1910.11480. Hann windows of 1024 samples at 16 kHz, hop 256,
magnitudes at least 1e-4. Lower is better.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules


class StftDistance(evaluate_modules.ClipMetric):
    """STFT distance"""

    names = ("stft_distance",)
