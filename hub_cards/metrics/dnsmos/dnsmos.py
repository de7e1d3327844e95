"""DNSMOS P.835 (overall, speech, background) and P.808: guesses of how listeners would rate, without reference.

Reddy et al., "DNSMOS P.835", ICASSP 2022, arXiv 2110.01763; models of the package speechmos. 1 to 5, higher is better.
They were trained for noise suppression, so that they judge how clean speech is rather than whether it is the same.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules


class Dnsmos(evaluate_modules.ClipMetric):
    """DNSMOS"""

    names = ("dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808")
