"""The results of an evaluation as files: JSON for programs, CSV with a line per utterance, Markdown for people.

`html_report.py` makes a page of the same tables.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import write_bytes
from .run import Evaluation

NOTHING = "–"
FACTS_OF_ROWS = (
    *("id", "system", "condition", "language", "source", "speaker", "gender"),
    *("seconds", "payload_bytes", "file_bytes"),
)
LISTED_PROBLEMS = 50


def write_results(folder: Path, summary: dict, evaluation: Evaluation) -> None:
    """Writes results.csv, report.md and results.json, each in one step."""
    content = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(folder / "results.csv", rows_as_csv(evaluation).encode())
    write_bytes(folder / "report.md", report(summary).encode())
    write_bytes(folder / "results.json", content.encode())


def rows_as_csv(evaluation: Evaluation) -> str:
    """One line per utterance and system; an undefined metric is empty."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow([*FACTS_OF_ROWS, *evaluation.metrics, "error"])
    for rows in evaluation.rows.values():
        for row in rows:
            facts = [row.get(name, "") for name in FACTS_OF_ROWS]
            scores = [cell(row["metrics"][name]) for name in evaluation.metrics]
            writer.writerow([*facts, *scores, row.get("error", "")])
    return content.getvalue()


def cell(value: float | list[int] | None) -> str:
    """An utterance's score as text; counts as a fraction, such as 3/12."""
    if value is None:
        return ""
    return "/".join(map(str, value)) if isinstance(value, list) else f"{value:.7g}"


def report(summary: dict) -> str:
    """The results as a page of Markdown."""
    sections = [
        "# Evaluation",
        setting(summary),
        "## Quality",
        quality_table(summary),
        footnote(summary),
        *breakdown(summary, "condition"),
        *breakdown(summary, "language"),
        *breakdown(summary, "source"),
        *breakdown(summary, "gender"),
        "## Bit rates",
        rate_table(summary),
        *token_section(summary),
        *speed_section(summary),
        "## Listed files",
        problem_list(summary),
        "## Definitions",
        definitions(summary),
    ]
    return "\n\n".join(sections) + "\n"


def setting(summary: dict) -> str:
    """What was evaluated, on what, in a few sentences."""
    data, reference = summary["data"], summary["reference"]
    loudness = reference["target_loudness"]
    level = "at its own level" if loudness is None else f"brought to {loudness:g} LUFS"
    sources = ", ".join(f"`{source}`" for source in data["sources"])
    added = "".join(
        f" Where there is {what}, it is from {', '.join(f'`{source}`' for source in origin)}."
        for what, origin in data.get("added", {}).items()
    )
    return (
        f"{data['scored']:,} of {data['utterances']:,} utterances ({data['seconds'] / 60:.1f} minutes of speech) from "
        f"{sources}. The reference is the recording mixed to mono, at {reference['sampling_rate']:,} Hz, {level}: what "
        "the model itself is given. Peers are given the same samples, and what they return is aligned with them."
        f"{added}"
    )


def footnote(summary: dict) -> str:
    """How the intervals were made."""
    intervals = summary["intervals"]
    return (
        f"Means over utterances, in brackets their {100 * intervals['level']:g} % intervals ({intervals['method']}, "
        f"{intervals['resamples']:,} resamples, seed {intervals['seed']})."
    )


def quality_table(summary: dict, names: Sequence[str] | None = None, intervals: bool = True) -> str:
    """Systems against metrics, as a Markdown table.

    Args:
        summary: the content of results.json.
        names: which metrics; None for all.
        intervals: whether to give them.
    """
    metrics = {name: summary["metrics"][name] for name in names or summary["metrics"]}
    rows = [
        [
            system["name"],
            number(system["nominal_bit_rate"], 0),
            *(figure(system["metrics"][name], facts, intervals) for name, facts in metrics.items()),
        ]
        for system in summary["systems"]
    ]
    return table(["codec", "bit/s", *map(metric_heading, metrics.values())], rows)


def metric_heading(facts: dict) -> str:
    """A metric's label, unit and direction."""
    unit = f", {facts['unit']}" if facts["unit"] else ""
    return f"{facts['label']}{unit} {'↑' if facts['better'] == 'higher' else '↓'}"


def breakdown(summary: dict, grouping: str) -> list[str]:
    """A section with one line per system and group; empty where the data do not tell."""
    rows = [
        [
            name,
            system["name"],
            str(group["utterances"]),
            *(figure(group["metrics"][metric], facts) for metric, facts in summary["metrics"].items()),
        ]
        for system in summary["systems"]
        for name, group in system["by"][grouping].items()
    ]
    if not rows:
        return []
    if grouping != "condition":
        rows.sort(key=lambda row: row[0])
    heading = [grouping, "codec", "utterances", *map(metric_heading, summary["metrics"].values())]
    return [f"## By {grouping}", table(heading, rows)]


def rate_table(summary: dict) -> str:
    """Nominal and actual bit rates."""
    names = ("nominal_bit_rate", "payload_bit_rate", "file_bit_rate")
    rows = [
        [
            system["name"],
            *(number(system[name], 1) for name in names),
            number(1000 * system["delay_samples"] / summary["reference"]["sampling_rate"], 1),
            number(system["silence_level"], 0),
            system.get("resampling", "none"),
            system["file"],
        ]
        for system in summary["systems"]
    ]
    heading = [
        "codec",
        "nominal bit/s",
        "coded speech bit/s",
        "file bit/s",
        "delay ms",
        "silence becomes, dB",
        "resampling",
        "file",
    ]
    note = (
        "Actual rates are all bytes over all seconds. The delay was taken out before scoring. "
        "What two seconds of digital silence become is in dB of full scale, -120 at the lowest."
    )
    return f"{table(heading, rows)}\n\n{note}"


def token_section(summary: dict) -> list[str]:
    """How well tokens use their bits; empty without tokens."""
    rows = []
    for system in summary["systems"]:
        tokens = system.get("tokens")
        for index, stage in enumerate(tokens["stages"] if tokens else []):
            digits = stage["digit_entropy"]
            rows.append(
                [
                    system["name"],
                    str(index),
                    f"{stage['used']:,} of {stage['vocabulary']:,}",
                    f"{tokens['frames']:,}",
                    " ".join(f"{entropy:.2f}" for entropy in digits),
                    f"{tokens['entropy_bit_rate']:.0f}",
                    f"{tokens['conditional_bit_rate']:.0f}",
                ]
            )
    if not rows:
        return []
    heading = ["codec", "stage", "tokens used", "frames", "digit entropy / maximum, per dimension"]
    heading += ["entropy, all stages, bit/s", "the same given the frame before, bit/s"]
    note = (
        "Entropies are of single digits, counted on these very frames: rates that a coder with these statistics would "
        "need. With few frames, many tokens cannot occur."
    )
    return ["## Tokens", table(heading, rows), note]


def speed_section(summary: dict) -> list[str]:
    """Real-time factors; empty where speed was not measured."""
    measured = [system for system in summary["systems"] if "speed" in system and system["kind"] != "PCM"]
    if not measured:
        return []
    rows = [
        [
            system["name"],
            system.get("device", "cpu"),
            system.get("dtype", NOTHING),
            number(system["speed"]["encode_rtf"], 4),
            number(system["speed"]["decode_rtf"], 4),
        ]
        for system in measured
    ]
    machine = summary["environment"]
    accelerator = f", {machine['accelerator']}" if machine["accelerator"] else ""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''} of {machine['cores']} cores"
    note = (
        f"Seconds of work per second of speech (below 1 is faster than real time), single clips of "
        f"{measured[0]['speed']['seconds']:g} s, {threads}, "
        f"{machine['processor']}{accelerator}. Unlike all other figures, these differ from run to run."
    )
    return ["## Speed", table(["codec", "device", "dtype", "encoding", "decoding"], rows), note]


def problem_list(summary: dict) -> str:
    """What was not scored, or scored with a reservation."""
    if not summary["problems"]:
        return "Every utterance was scored by every metric for every codec."
    lines = [f"- {line}" for line in problem_lines(summary, LISTED_PROBLEMS)]
    return "\n".join(["These are in no mean, or only in those of the metrics that are defined for them.", "", *lines])


def problem_lines(summary: dict, most: int) -> list[str]:
    """What was not scored, or scored with a reservation, a line each, and how many more there are."""
    listed = summary["problems"]
    lines = [
        f"`{entry['id']}`{', ' + entry['system'] if 'system' in entry else ''}: {entry['problem']}"
        for entry in listed[:most]
    ]
    return lines if len(listed) <= most else [*lines, f"and {len(listed) - most} more, which results.json lists"]


def definitions(summary: dict) -> str:
    """What each metric is."""
    lines = {f"- {facts['label']}: {facts['definition']}" for facts in summary["metrics"].values()}
    judges = [f"- {name}: {value}" for name, value in summary["judges"].items()]
    packages = ", ".join(f"{name} {version}" for name, version in summary["environment"]["packages"].items())
    return "\n".join([*sorted(lines), *judges, "", f"Made with Python {summary['environment']['python']}, {packages}."])


def figure(value: dict, facts: dict, interval: bool = True) -> str:
    """A mean as text, with its interval; what is in per cent is kept as a share of one."""
    mean, low, high = (
        None if value[name] is None else value[name] * (100 if facts["unit"] == "%" else 1)
        for name in ("mean", "low", "high")
    )
    text = number(mean, facts["decimals"])
    if interval and low is not None:
        text += f" ({number(low, facts['decimals'])} to {number(high, facts['decimals'])})"
    return text


def number(value: float | None, decimals: int) -> str:
    """A number as text."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are set to the right."""
    lines = [list(heading), ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def between(markers: tuple[str, str], page: Path, content: str) -> str | None:
    """The text of a page with this content between its two markers, in place of what is there.

    Args:
        markers: the line before and what comes after.
        page: the file.
        content: without the last end of line.

    Returns:
        None where there is no such page, or it lacks a marker.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, start, rest = text.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    return f"{before}{start}{content}\n{end}{after}" if start and end else None
