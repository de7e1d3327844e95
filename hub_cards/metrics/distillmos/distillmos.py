"""DistillMOS: a network that predicts listeners' ratings of the quality of speech, without reference.

Stahl and Gamper, "Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality
Assessment", 2025, arXiv 2502.05356; weights of the package distillmos. 1 to 5, higher is better. It learnt from ratings
of calls and of enhanced speech. It does not know what was said, so that fluent babble rates well.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules
from modeling_taae.evaluation import naturalness


class DistillMos(evaluate_modules.JudgeMetric):
    """DistillMOS"""

    metrics = naturalness.DistillMos.metrics
    needs_references = False

    def load_judge(self, model: str | None) -> naturalness.DistillMos:
        """Loads the network, of which there is one."""
        return naturalness.DistillMos()
