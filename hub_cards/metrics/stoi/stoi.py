"""Short-time objective intelligibility, the plain kind, not the extended one (pystoi, `extended=False`).

Taal et al., "An algorithm for intelligibility prediction of time-frequency weighted noisy speech", 2011. About 0 to 1,
higher is better. Not defined for clips with less than 0.4 s of sound.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules


class Stoi(evaluate_modules.ClipMetric):
    """STOI"""

    names = ("stoi",)
