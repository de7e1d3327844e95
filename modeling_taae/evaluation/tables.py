"""Summarises the rows of an evaluation as means with intervals, per codec, language, source, speaker and gender."""

import glob
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..entropy.statistics import token_statistics
from ..errors import as_text
from .codecs import System, TaaeSystem
from .conditions import PLAIN
from .metrics import Metric
from .results import DataSummary, Group, Mean, MetricFacts, Originals, Problem, Row, Score, Share, Speed, SystemSummary

RESAMPLES, SEED, LEVEL = 2_000, 0, 0.95
GROUPINGS = ("language", "source", "speaker", "gender")
PARTS = ("condition", "source", "language", "gender")
PACKAGES = (
    *("modeling_taae", "torch", "transformers", "numpy", "scipy", "soxr", "soundfile", "pyloudnorm"),
    *("torchmetrics", "pesq", "pystoi", "speechmos", "onnxruntime", "librosa", "rapidfuzz"),
    *("Resemblyzer", "distillmos", "faster-whisper", "ctranslate2"),
)


def describe_data(
    sources: Sequence[str], added: Mapping[str, Sequence[str]], count: int, rows: Sequence[Row]
) -> DataSummary:
    """Describes the data of an evaluation.

    Args:
        sources: the data as the user named them.
        added: sounds added under conditions, with the names of their files.
        count: number of utterances as recorded, scored or not.
        rows: the rows of one codec, under all conditions.
    """
    plain = plain_rows(rows)
    parts = {fact: shares(rows if fact == "condition" else plain, fact) for fact in PARTS}
    return DataSummary(
        sources=names_of(sources),
        utterances=count,
        scored=len(plain),
        seconds=sum(row.seconds for row in plain),
        added={what: names_of(files) for what, files in added.items()},
        parts={fact: found for fact, found in parts.items() if found},
        speakers=number_of_speakers(plain),
    )


def shares(rows: Sequence[Row], fact: str) -> dict[str, Share]:
    """Returns the share of the data for each value of a fact."""
    return {
        value: Share(len(members), sum(row.seconds for row in members), number_of_speakers(members))
        for value, members in grouped(rows, fact).items()
    }


def number_of_speakers(rows: Iterable[Row]) -> int:
    """Counts the known speakers."""
    return len({row.facts["speaker"] for row in rows if "speaker" in row.facts})


def names_of(sources: Sequence[str]) -> list[str]:
    """Returns the names of files, folders and patterns without their parent folders, which are private."""
    local = {source for source in sources if os.path.exists(source) or glob.has_magic(source)}
    return [as_text(Path(source).resolve().name) if source in local else source for source in sources]


def plain_rows(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows of utterances without a condition."""
    return [row for row in rows if row.facts.get("condition", PLAIN) == PLAIN]


def metric_facts(metric: Metric) -> MetricFacts:
    """Returns the facts about a metric for readers."""
    return MetricFacts(metric.label, metric.unit, metric.better, metric.decimals, metric.definition)


def system_summary(
    system: System,
    rows: Sequence[Row],
    metrics: Sequence[str],
    delay: int,
    silence_level: float | None,
    speed: Speed | None,
) -> SystemSummary:
    """Summarises one codec.

    Args:
        system: the codec.
        rows: the codec's rows, under all conditions.
        metrics: names of the metrics.
        delay: the delay that was removed, in samples.
        silence_level: level of the codec's output for silence, in dB of full scale.
        speed: the codec's speed, if that was measured.
    """
    plain = plain_rows(rows)
    tokens = None
    if isinstance(system, TaaeSystem) and (codes := [np.array(row.codes) for row in plain if row.codes is not None]):
        tokens = token_statistics(codes, system.quantizer, system.codec.model.config.frame_rate)
    by = {"condition": rows} | dict.fromkeys(GROUPINGS, plain)
    return SystemSummary(
        name=system.name,
        nominal_bit_rate=system.nominal_bit_rate,
        payload_bit_rate=bit_rate(plain, lambda row: row.payload_bytes),
        file_bit_rate=bit_rate(plain, lambda row: row.file_bytes),
        delay_samples=delay,
        metrics=metric_means(plain, metrics),
        silence_level=silence_level,
        by={fact: group_means(members, fact, metrics) for fact, members in by.items()},
        facts=system.facts,
        tokens=tokens,
        speed=speed,
    )


def bit_rate(rows: Sequence[Row], size: Callable[[Row], int | None]) -> float | None:
    """Returns all bits over all seconds of the encoded utterances, in bit/s."""
    encoded = [(found, row.seconds) for row in rows if (found := size(row)) is not None]
    if not encoded:
        return None
    return 8 * sum(found for found, _ in encoded) / sum(seconds for _, seconds in encoded)


def metric_means(rows: Sequence[Row], metrics: Iterable[str]) -> dict[str, Mean]:
    """Returns the mean of each metric over rows."""
    return {name: mean_with_interval([row.metrics.get(name) for row in rows]) for name in metrics}


def mean_with_interval(values: Sequence[Score]) -> Mean:
    """Returns a mean with a bootstrap interval, over the values that are defined.

    Args:
        values: one per utterance: a number; a count and its reference, such as errors and words, which are both summed
            before they are divided; or None.
    """
    pairs = [value if isinstance(value, list) else (value, 1) for value in values if value is not None]
    counts, weights = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    if weights.sum() == 0:
        return Mean(None)
    mean = float(counts.sum() / weights.sum())
    if len(pairs) == 1:
        return Mean(mean, n=1)
    # The same draws for every codec, so that codecs are compared on the same resamples.
    draws = np.random.default_rng(SEED).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    means = counts[draws].sum(axis=1) / np.maximum(weights[draws].sum(axis=1), 1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Mean(mean, float(low), float(high), len(pairs))


def grouped(rows: Iterable[Row], fact: str) -> dict[str, list[Row]]:
    """Groups rows by the value of a fact, with conditions in their order; leaves out rows without it."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if fact in row.facts:
            groups.setdefault(row.facts[fact], []).append(row)
    return groups if fact == "condition" else dict(sorted(groups.items()))


def group_means(rows: Iterable[Row], fact: str, metrics: Sequence[str]) -> dict[str, Group]:
    """Returns means by the value of a fact."""
    return {name: Group(len(members), metric_means(members, metrics)) for name, members in grouped(rows, fact).items()}


def originals(rows: Sequence[Row], metrics: Sequence[str]) -> Originals:
    """Summarises the scores of the recordings themselves.

    Args:
        rows: the rows of the originals.
        metrics: names of the metrics without a reference.
    """
    voices = [row for row in rows if row.embedding is not None and "speaker" in row.facts]
    if len(voices) < 2:
        return Originals(metric_means(rows, metrics))
    vectors = np.array([row.embedding for row in voices], dtype=np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = vectors @ vectors.T
    pairs: dict[bool, list[float]] = {True: [], False: []}
    for first, second in combinations(range(len(voices)), 2):
        same = voices[first].facts["speaker"] == voices[second].facts["speaker"]
        pairs[same].append(float(cosines[first, second]))
    # No intervals, because the pairs share recordings.
    means = {same: Mean(float(np.mean(found)), n=len(found)) if found else None for same, found in pairs.items()}
    return Originals(metric_means(rows, metrics), means[True], means[False])


def problems_of(rows: Iterable[Row], metrics: Mapping[str, Metric]) -> list[Problem]:
    """Lists failures of codecs, and metrics that are not defined for an utterance.

    Metrics that need a text, or words, are not listed if the utterance has no text or its language no spaces.
    """
    listed = []
    for row in rows:
        if row.error:
            listed.append(Problem(row.id, row.error, row.system))
            continue
        undefined = [
            metric.label
            for name, metric in metrics.items()
            if row.metrics.get(name) is None and metric.applies_to(row.facts)
        ]
        if undefined:
            listed.append(Problem(row.id, f"not defined: {', '.join(undefined)}", row.system))
    return listed


def environment() -> dict[str, Any]:
    """Returns facts about the machine, and the versions of packages."""
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
    """Returns the processor's name, if the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
