"""What the `evaluate` modules in hub_cards/metrics have in common: clips in, means out.

Each module is a folder that `evaluate.load` takes without a network; what it computes is in `metrics.py`.
"""

import sys
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import List as ListOf

from .metrics import ALL_METRICS, score

CLIP = ListOf(Value("float32"))
INPUTS = """
Args:
    predictions: decoded clips, each (samples,) float at 16 kHz with full scale at 1.
    references: the original clips, each as long as its prediction{unused}.

Returns:
    the mean over the clips for which the metric is defined, by its name, and how many these are, as `<name>_n`.
"""


class ClipMetric(evaluate.Metric):
    """Metrics of decoded clips; a module names them in `names` and says in its docstring what they are."""

    names: tuple[str, ...]

    @property
    def needs_references(self) -> bool:
        """Whether decoded clips are compared with anything."""
        return any(ALL_METRICS[name].needs_reference for name in self.names)

    def _info(self) -> evaluate.MetricInfo:
        inputs = {"predictions": CLIP, "references": CLIP} if self.needs_references else {"predictions": CLIP}
        return evaluate.MetricInfo(
            description=sys.modules[type(self).__module__].__doc__,
            citation="",
            inputs_description=INPUTS.format(unused="" if self.needs_references else " (not taken by this metric)"),
            features=Features(inputs),
        )

    def _compute(self, predictions: list, references: list | None = None) -> dict[str, Any]:
        clips = [np.asarray(clip, dtype=np.float32) for clip in predictions]
        originals = clips if references is None else [np.asarray(clip, dtype=np.float32) for clip in references]
        scores = [score(*pair, self.names) for pair in zip(originals, clips, strict=True)]
        results: dict[str, Any] = {}
        for name in self.names:
            defined = [row[name] for row in scores if np.isfinite(row[name])]
            results |= {name: float(np.mean(defined)) if defined else None, f"{name}_n": len(defined)}
        return results
