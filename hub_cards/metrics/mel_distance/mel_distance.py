"""Spectral convergence plus L1 of natural-log magnitudes of 128 mel bands.

Hann windows of 1024 samples at 16 kHz, hop 256, Slaney's mel scale and area normalisation, 0 to 8 kHz, magnitudes at
least 1e-4. Lower is better. Implementations differ in every one of these, so compare only figures made alike.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules


class MelDistance(evaluate_modules.ClipMetric):
    """mel distance"""

    names = ("mel_distance",)
