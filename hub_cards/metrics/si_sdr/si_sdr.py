"""Scale-invariant signal-to-distortion ratio in dB, both clips made zero-mean first (torchmetrics, `zero_mean=True`).

Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, arXiv 1811.02508. Higher is better. It asks for the
waveform itself: a codec that invents the phase is far below zero, however it sounds.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules


class SiSdr(evaluate_modules.ClipMetric):
    """SI-SDR"""

    names = ("si_sdr",)
