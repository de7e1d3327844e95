"""Base classes of the `evaluate` modules in hub_cards/metrics, which average metrics over clips.

Each module is a folder that `evaluate.load` loads without a network. The scores come from `metrics.py` and from the
judges of this package.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import List as ListOf

from .judges import Judge, JudgedClip
from .metrics import ALL_METRICS, Metric, score
from .results import Score
from .tables import mean_with_interval

CLIP = ListOf(Value("float32"))
INPUTS = """
Args:
    predictions: decoded clips, each (samples,) float at 16 kHz with full scale at 1.
    references: the original clips, each as long as its prediction{unused}.{further}

Returns:
    the mean over the clips for which the metric is defined, by its name, and how many these are, as `<name>_n`.
"""


def metric_info(module: type, needs_references: bool, further: str = "") -> evaluate.MetricInfo:
    """Returns the description of a module from its docstring.

    Args:
        module: the module's class.
        needs_references: whether decoded clips are compared with originals.
        further: a line of its documentation for each further argument.
    """
    inputs = {"predictions": CLIP, "references": CLIP} if needs_references else {"predictions": CLIP}
    unused = "" if needs_references else " (not taken by this metric)"
    return evaluate.MetricInfo(
        description=sys.modules[module.__module__].__doc__,
        citation="",
        inputs_description=INPUTS.format(unused=unused, further=further),
        features=Features(inputs),
    )


def means(scores: Sequence[Mapping[str, Score]], names: Sequence[str]) -> dict[str, Any]:
    """Returns the mean of each metric over the clips for which it is defined, and their number."""
    results: dict[str, Any] = {}
    for name in names:
        defined = [row[name] for row in scores if row[name] is not None and np.isfinite(np.asarray(row[name])).all()]
        results |= {name: mean_with_interval(defined).mean, f"{name}_n": len(defined)}
    return results


class ClipMetric(evaluate.Metric):
    """Metrics of decoded clips; a module lists them in `names` and describes them in its docstring."""

    names: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name."""
        return {name: ALL_METRICS[name] for name in self.names}

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(type(self), any(metric.needs_reference for metric in self.metrics.values()))

    def _compute(self, predictions: list, references: list | None = None) -> dict[str, Any]:
        clips = as_clips(predictions)
        originals = clips if references is None else as_clips(references)
        return means([score(*pair, self.names) for pair in zip(originals, clips, strict=True)], self.names)


class JudgeMetric(evaluate.Metric):
    """Metrics by a judge; a module lists them in `metrics`, describes them in its docstring, and loads the judge."""

    metrics: dict[str, Metric]
    needs_references = True
    further = ""

    def load_judge(self, model: str | None) -> Judge:
        """Loads a judge from a folder or Hub name; None loads the one that needs no download."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(type(self), self.needs_references, self.further)

    def _compute(
        self,
        predictions: list,
        references: list | None = None,
        model: str | None = None,
        texts: list[str] | None = None,
        languages: list[str] | None = None,
    ) -> dict[str, Any]:
        clips = as_clips(predictions)
        originals = clips if references is None else as_clips(references)
        facts: list[dict[str, str]] = [{} for _ in clips]
        for name, values in (("text", texts), ("language", languages)):
            for known, value in zip(facts, values or (), strict=values is not None):
                known[name] = value
        judged = [JudgedClip(*each) for each in zip(originals, clips, facts, strict=True)]
        return means(self.load_judge(model).judge(judged), list(self.metrics))


def as_clips(clips: list) -> list[np.ndarray]:
    """Returns lists of samples as arrays: (samples,) float32 each."""
    return [np.asarray(clip, dtype=np.float32) for clip in clips]
