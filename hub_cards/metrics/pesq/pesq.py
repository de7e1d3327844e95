"""PESQ wide-band (ITU-T P.862.2, at 16 kHz) and narrow-band (P.862 mapped by P.862.1, on copies resampled to 8 kHz).

Computed by the package pesq. MOS-LQO, 1.04 to 4.64 and 1.02 to 4.56; higher is better. The two are not comparable:
narrow-band is higher for the same speech, so always say which. Not defined where it finds no speech.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules


class Pesq(evaluate_modules.ClipMetric):
    """PESQ"""

    names = ("pesq_wb", "pesq_nb")
