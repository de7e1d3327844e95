"""From the rows of an evaluation to means with intervals, per system, language, source, speaker and gender."""

import glob
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from ..entropy.statistics import token_statistics
from ..errors import as_text
from .codecs import System, TaaeSystem
from .conditions import PLAIN
from .metrics import Metric
from .run import Evaluation

FORMAT = 1
RESAMPLES, SEED, LEVEL = 2_000, 0, 0.95
GROUPINGS = ("language", "source", "speaker", "gender")
PACKAGES = (
    *("modeling_taae", "torch", "transformers", "numpy", "soxr", "soundfile", "pyloudnorm"),
    *("torchmetrics", "pesq", "pystoi", "speechmos", "onnxruntime", "librosa", "jiwer"),
)
# Figures are written with so many significant digits, more than any of them deserves.
SIGNIFICANT_DIGITS = 7


def summarize(evaluation: Evaluation, data: list[str], added: dict[str, list[str]] | None = None) -> dict:
    """The content of results.json.

    Args:
        evaluation: a finished run.
        data: what was evaluated on, as its user named it.
        added: what was added to it under conditions, such as noise, and where that is from.
    """
    rows = plain_rows(next(iter(evaluation.rows.values())))
    summary = {
        "format": FORMAT,
        "data": {
            "sources": names_of(data),
            "added": {what: names_of(sources) for what, sources in (added or {}).items()},
            "utterances": len(plain_rows(evaluation.utterances)),
            "scored": len(rows),
            "seconds": sum(row["seconds"] for row in rows),
        },
        "reference": {"sampling_rate": 16_000, "target_loudness": evaluation.target_loudness},
        "metrics": {name: metric_facts(metric) for name, metric in evaluation.metrics.items()},
        "judges": {name: value for judge in evaluation.judges for name, value in judge.facts.items()},
        "intervals": {"method": "percentile bootstrap over utterances"}
        | {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "systems": [system_summary(evaluation, system) for system in evaluation.systems],
        "problems": problems(evaluation),
        "environment": environment(),
    }
    return rounded(summary)


def names_of(sources: Sequence[str]) -> list[str]:
    """Files, folders and patterns without the folders that they lie in, which are nobody else's business."""
    local = {source for source in sources if os.path.exists(source) or glob.has_magic(source)}
    return [as_text(Path(source).resolve().name) if source in local else source for source in sources]


def plain_rows(rows: Sequence[dict]) -> list[dict]:
    """The utterances as they were recorded, which is all of them where there are no conditions."""
    return [row for row in rows if row.get("condition", PLAIN) == PLAIN]


def metric_facts(metric: Metric) -> dict[str, str | int]:
    """What a reader must know about a metric."""
    facts = {"label": metric.label, "unit": metric.unit, "better": metric.better, "decimals": metric.decimals}
    return facts | {"definition": metric.definition}


def system_summary(evaluation: Evaluation, system: System) -> dict:
    """One system's figures."""
    every_row = evaluation.rows[system.name]
    rows = plain_rows(every_row)
    by_condition = {"condition": grouped(every_row, "condition", evaluation.metrics)}
    summary = {
        "name": system.name,
        **system.facts,
        "nominal_bit_rate": system.nominal_bit_rate,
        "payload_bit_rate": bit_rate(rows, "payload_bytes"),
        "file_bit_rate": bit_rate(rows, "file_bytes"),
        "delay_samples": evaluation.delays[system.name],
        "metrics": metric_means(rows, evaluation.metrics),
        "silence_level": evaluation.silence.get(system.name),
        "by": by_condition | {name: grouped(rows, name, evaluation.metrics) for name in GROUPINGS},
    }
    if isinstance(system, TaaeSystem):
        codes = [np.array(row["codes"]) for row in rows if "codes" in row]
        frame_rate = system.codec.model.config.frame_rate
        summary["tokens"] = token_statistics(codes, system.quantizer, frame_rate) if codes else None
    if system.name in evaluation.speed:
        summary["speed"] = evaluation.speed[system.name]
    return summary


def bit_rate(rows: Sequence[dict], size: str) -> float | None:
    """All bits over all seconds of the utterances that were encoded, in bit/s."""
    encoded = [row for row in rows if size in row]
    if not encoded:
        return None
    return 8 * sum(row[size] for row in encoded) / sum(row["seconds"] for row in encoded)


def metric_means(rows: Sequence[dict], metrics: Sequence[str]) -> dict[str, dict]:
    """Mean, bounds of its interval and number of utterances behind it, of each metric."""
    return {name: mean_with_interval([row["metrics"][name] for row in rows]) for name in metrics}


def mean_with_interval(values: Sequence[float | list[int] | None]) -> dict[str, float | int | None]:
    """Mean with a bootstrap interval, over the values that are defined.

    Args:
        values: one per utterance: a number; a count and what it is relative to, such as errors and words, which are
            each added up before they are divided; or None.

    Returns:
        `mean`, `low`, `high` (None where there is no value; no bounds for a single one), and `n`, the number of values.
    """
    pairs = [value if isinstance(value, list) else (value, 1) for value in values if value is not None]
    counts, weights = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    if weights.sum() == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(counts.sum() / weights.sum())
    if len(pairs) == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    # The same draws for every system: what is compared was resampled alike.
    draws = np.random.default_rng(SEED).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    means = counts[draws].sum(axis=1) / np.maximum(weights[draws].sum(axis=1), 1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(pairs)}


def grouped(rows: Sequence[dict], grouping: str, metrics: Sequence[str]) -> dict[str, dict]:
    """Means by the values of a fact, conditions in their order; utterances without it are left out."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        if grouping in row:
            groups.setdefault(row[grouping], []).append(row)
    return {
        name: {"utterances": len(members), "metrics": metric_means(members, metrics)}
        for name, members in (groups.items() if grouping == "condition" else sorted(groups.items()))
    }


def problems(evaluation: Evaluation) -> list[dict[str, str]]:
    """What was not scored, or scored with a reservation, and why: data, failed codecs, undefined metrics."""
    listed = [{"id": row["id"], "problem": row["problem"]} for row in evaluation.utterances if "problem" in row]
    for system, rows in evaluation.rows.items():
        for row in rows:
            possible = {
                name: metric for name, metric in evaluation.metrics.items() if "text" in row or not metric.needs_text
            }
            undefined = [metric.label for name, metric in possible.items() if row["metrics"][name] is None]
            if "error" in row:
                listed.append({"id": row["id"], "system": system, "problem": row["error"]})
            elif undefined:
                listed.append({"id": row["id"], "system": system, "problem": f"not defined: {', '.join(undefined)}"})
    return listed


def environment() -> dict[str, str | int | None | dict]:
    """What the run was made with."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": versions,
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rounded(tree: object) -> object:
    """The same JSON value with every float at a fixed number of significant digits."""
    if isinstance(tree, dict):
        return {name: rounded(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.{SIGNIFICANT_DIGITS}g}") if isinstance(tree, float) else tree
