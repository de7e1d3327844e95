"""Draws quality against bit rate: one panel per metric, the codecs as points with intervals."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from .results import Mean, MetricFacts, Results, SystemSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Panels of a report's first figure, for intelligibility, naturalness and voice. Each shows its first metric in the run.
QUESTIONS = {
    "Are the words still there?": ("dwer", "wer", "stoi"),
    "Does it sound natural?": ("distillmos", "dnsmos_p808", "pesq_wb"),
    "Is it the same voice?": ("speaker_similarity",),
}
TICKS = [digit * 10**power for power in range(2, 6) for digit in (1, 2, 5)]  # bit/s
MARKERS = "osDv^<>Pphd*X"
# The models under evaluation in shades of one colour, the others in further ones.
OURS = ("#c2185b", "#f06292", "#880e4f", "#ff80ab")
MODEL_GAP = 1.06
OTHERS = ("#1976d2", "#2e7d32", "#ef6c00", "#6a1b9a", "#00838f", "#5d4037", "#455a64")


def questions(results: Results) -> dict[str, str]:
    """Returns the metrics of the three questions that the results answer, each with its question."""
    found = {}
    for question, names in QUESTIONS.items():
        if name := next((name for name in names if name in results.metrics), None):
            found[name] = question
    return found


def draw_rates(results: Results, names: Sequence[str], titles: Sequence[str] = ()) -> "Figure":
    """Draws metrics against the nominal bit rate on a logarithmic axis, with intervals; the originals are a line.

    Args:
        results: the results of two codecs or more.
        names: names of the metrics, one panel each.
        titles: titles of the panels; empty for the metrics' headings.
    """
    from matplotlib.figure import Figure

    series = families(results)
    figure = Figure(figsize=(4.2 * len(names), 3.6 + 0.09 * len(series)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for place, (panel, name) in enumerate(zip(panels, names, strict=True)):
        draw_panel(panel, series, name, results)
        heading = metric_heading(results.metrics[name])
        panel.set_ylabel(heading)
        if titles:
            panel.set_title(titles[place], fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3 * len(names), len(labels)), fontsize=8)
    return figure


def families(results: Results) -> dict[str, list[SystemSummary]]:
    """Returns the codecs with a bit rate by family, sorted by rate. A family is a model or a kind of codec."""
    found: dict[str, list[SystemSummary]] = {}
    for system in results.systems:
        if system.kind == "PCM" or not system.nominal_bit_rate:
            continue
        family = system.name.removesuffix(f" {system.bottleneck}") if system.kind == "TAAE" else system.kind
        if trial := system.facts.get("trial"):
            family = f"{system.facts['codec']}, {trial}"
        found.setdefault(family, []).append(system)
    for systems in found.values():
        systems.sort(key=lambda system: system.nominal_bit_rate)
    return found


def draw_panel(panel: "Axes", series: Mapping[str, Sequence[SystemSummary]], name: str, results: Results) -> None:
    """Draws one metric of all codecs, with a line that joins each family."""
    facts = results.metrics[name]
    scale = 100 if facts.unit == "%" else 1
    ours, others = cycle(OURS), cycle(OTHERS)
    shifts = side_by_side(series)
    for (label, systems), marker in zip(series.items(), cycle(MARKERS), strict=False):
        colour = next(ours if systems[0].kind == "TAAE" else others)
        known = [(system.nominal_bit_rate, system.metrics[name]) for system in systems if defined(system, name)]
        panel.errorbar(
            [rate * shifts[label] for rate, _ in known],
            [scale * (mean.mean or 0) for _, mean in known],
            scale * np.array([reach(mean) for _, mean in known]).reshape(-1, 2).T,
            fmt=f"{marker}-",
            color=colour,
            label=label,
            markersize=5,
            linewidth=1,
            capsize=2,
        )
    draw_originals(panel, name, scale, results)
    panel.set_xscale("log")
    rates = [system.nominal_bit_rate for systems in series.values() for system in systems]
    panel.set_xlim(min(rates) / 1.4, max(rates) * 1.4)
    low, high = panel.get_xlim()
    panel.set_xticks(ticks := [tick for tick in TICKS if low <= tick <= high], [f"{tick:,}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("bit/s (nominal)")
    panel.grid(alpha=0.3, linewidth=0.5)
    panel.margins(y=0.15)


def side_by_side(series: Mapping[str, Sequence[SystemSummary]]) -> dict[str, float]:
    """Returns factors of the bit rate by family, so that models of the same rates do not overlap."""
    models = [label for label, systems in series.items() if systems[0].kind == "TAAE"]
    return dict.fromkeys(series, 1.0) | {
        label: MODEL_GAP ** (place - (len(models) - 1) / 2) for place, label in enumerate(models)
    }


def defined(system: SystemSummary, name: str) -> bool:
    """Returns whether a codec has a mean of a metric."""
    return name in system.metrics and system.metrics[name].mean is not None


def reach(mean: Mean) -> tuple[float, float]:
    """Returns the lengths of a mean's interval below and above it; 0 without an interval."""
    if mean.mean is None or mean.low is None or mean.high is None:
        return 0, 0
    # The bootstrap interval of a skewed sample may just miss the mean.
    return max(mean.mean - mean.low, 0), max(mean.high - mean.mean, 0)


def draw_originals(panel: "Axes", name: str, scale: float, results: Results) -> None:
    """Draws the recordings as a line: their own score, or the similarity of recordings of one and of two speakers."""
    if results.originals is None:
        return
    lines = {"originals": results.originals.metrics.get(name)}
    if name == "speaker_similarity":
        lines = {"same person": results.originals.same_speaker, "other people": results.originals.other_speakers}
    for label, mean in lines.items():
        if mean is not None and mean.mean is not None:
            panel.axhline(scale * mean.mean, color="0.4", linewidth=1, linestyle="--")
            panel.annotate(
                label,
                (0.99, scale * mean.mean),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                fontsize=7,
                color="0.3",
            )


def metric_heading(facts: MetricFacts) -> str:
    """Returns a metric's label, unit and direction."""
    unit = f", {facts.unit}" if facts.unit else ""
    return f"{facts.label}{unit} {'↑' if facts.better == 'higher' else '↓'}"


def svg(figure: "Figure", label: str) -> str:
    """Returns a figure as an SVG element for a page; equal figures give equal elements.

    Args:
        figure: the figure.
        label: a description for screen readers.
    """
    import html

    from matplotlib import rc_context

    content = io.StringIO()
    with rc_context({"svg.hashsalt": label}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    _, start, rest = content.getvalue().partition("<svg ")
    return f"{start}role='img' aria-label='{html.escape(label, quote=True)}' {rest}"
