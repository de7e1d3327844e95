"""Writes the results of an evaluation as JSON, as CSV with a line per utterance, and as Markdown tables.

`html_report.py` writes the same tables as HTML.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import printable
from ..files import write_bytes
from .charts import metric_heading
from .codecs import ORIGINAL
from .results import Mean, MetricFacts, Results, Score

NOTHING = "–"
FACTS_OF_ROWS = ("condition", "language", "source", "speaker", "gender")
COLUMNS = ("id", "system", *FACTS_OF_ROWS, "seconds", "payload_bytes", "file_bytes")
GROUPINGS = ("condition", "language", "source", "gender")
LISTED_PROBLEMS = 50
# Spreadsheets treat cells that begin with one of these as formulas.
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def write_results(folder: Path, results: Results) -> None:
    """Writes results.csv, report.md, report.html and results.json into a folder, each in one step.

    Raises:
        TaaeInputError: if they cannot be written.
    """
    from .html_report import html_report

    content = json.dumps(results.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(folder / "results.csv", rows_as_csv(results).encode())
    write_bytes(folder / "report.md", report(results).encode())
    write_bytes(folder / "report.html", html_report(results).encode())
    write_bytes(folder / "results.json", content.encode())


def rows_as_csv(results: Results) -> str:
    """Returns a table with one line per utterance and codec; an undefined metric is empty."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow([*COLUMNS, *results.metrics, "error"])
    for rows in results.rows.values():
        for row in rows:
            facts = [row.facts.get(name, "") for name in FACTS_OF_ROWS]
            scores = [cell(row.metrics.get(name)) for name in results.metrics]
            sizes = [row.seconds, row.payload_bytes, row.file_bytes]
            texts = [harmless(text) for text in (row.id, row.system, *facts)]
            writer.writerow([*texts, *("" if size is None else size for size in sizes), *scores, harmless(row.error)])
    return content.getvalue()


def harmless(text: str) -> str:
    """Escapes a cell's text, so that a spreadsheet shows it instead of running a formula."""
    return f"'{text}" if text.startswith(FORMULAS) else text


def cell(value: Score) -> str:
    """Returns an utterance's score as text; counts as a fraction, such as 3/12."""
    if value is None:
        return ""
    return "/".join(map(str, value)) if isinstance(value, list) else f"{value:.7g}"


def report(results: Results) -> str:
    """Returns the results as a page of Markdown."""
    parts = ["# Evaluation", *summary(results), *data_section(results), *details(results)]
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> list[str]:
    """Returns the first parts of a report: what was measured how, and the means of all metrics."""
    return [setting(results), "## Quality", quality_table(results), footnote(results)]


def details(results: Results) -> list[str]:
    """Returns the last parts of a report, from the means of groups to the definitions."""
    return [
        *(part for grouping in GROUPINGS for part in breakdown(results, grouping)),
        *rate_section(results),
        *token_section(results),
        *speed_section(results),
        "## Listed files",
        problem_list(results),
        "## Definitions",
        definitions(results),
    ]


def setting(results: Results) -> str:
    """Returns a few sentences about the data and the reference of the evaluation."""
    data, reference = results.data, results.reference
    loudness = reference.target_loudness
    level = "at its own level" if loudness is None else f"normalised to {loudness:g} LUFS"
    added = "".join(f" Added {what} is from {code_list(origin)}." for what, origin in data.added.items() if origin)
    return (
        f"{data.scored:,} of {data.utterances:,} utterances ({data.seconds / 60:.1f} minutes of speech) from "
        f"{code_list(data.sources)}. The reference is the recording mixed to mono, at {reference.sampling_rate:,} Hz, "
        f"{level}: the model's own input. Other codecs get the same samples, and their output is aligned with "
        f"them.{added}"
    )


def code_list(names: Iterable[str]) -> str:
    """Returns names, such as those of files, each as code."""
    return ", ".join(code(name) for name in names)


def code(text: str) -> str:
    """Returns text as code, on one line."""
    return f"`{printable(text).replace('`', chr(39))}`"


def footnote(results: Results) -> str:
    """Returns a note on the intervals, the judges, and the similarity of the originals' speakers."""
    intervals = results.intervals
    text = (
        f"Means over utterances, in brackets their {100 * intervals.level:g} % intervals ({intervals.method}, "
        f"{intervals.resamples:,} resamples, seed {intervals.seed})."
    )
    if "dwer" in results.metrics:
        text += (
            " dWER is the share of words that the recogniser hears differently in decoded speech and in the recording."
        )
    judges = [f"{name}: {value}" for name, value in results.judges.items() if f"{name} weights" in results.judges]
    return text + (f" Judges: {'; '.join(judges)}." if judges else "") + voices_text(results)


def voices_text(results: Results) -> str:
    """Returns a sentence on the similarity of recordings of one and of two people; empty if it is not known."""
    known = results.originals
    if known is None or known.same_speaker is None or known.other_speakers is None:
        return ""
    facts = results.metrics["speaker_similarity"]
    same, other = (figure(mean, facts, False) for mean in (known.same_speaker, known.other_speakers))
    return (
        f" Two recordings of one person have a {facts.label} of {same} ({known.same_speaker.n:,} pairs), those of two "
        f"people {other} ({known.other_speakers.n:,} pairs)."
    )


def quality_table(results: Results, names: Sequence[str] | None = None, intervals: bool = True) -> str:
    """Returns a Markdown table of codecs and metrics, with the originals first if they are judged.

    Args:
        results: the results.
        names: names of the metrics; None for all.
        intervals: whether to include intervals.
    """
    metrics = {name: results.metrics[name] for name in names or results.metrics}
    rows = [
        [
            system.name,
            number(system.nominal_bit_rate, 0),
            *(figure(system.metrics[name], facts, intervals) for name, facts in metrics.items()),
        ]
        for system in results.systems
    ]
    known = {} if results.originals is None else results.originals.metrics
    if any(name in known and known[name].mean is not None for name in metrics):
        means = (figure(known.get(name, Mean(None)), facts, intervals) for name, facts in metrics.items())
        rows.insert(0, [ORIGINAL, NOTHING, *means])
    return table(["codec", "bit/s", *map(metric_heading, metrics.values())], rows)


def data_section(results: Results) -> list[str]:
    """Returns a section on the test set; empty if the data give no facts about it."""
    rows = [
        [f"{fact}: {value}", f"{share.utterances:,}", number(share.seconds / 60, 1), number_or_nothing(share.speakers)]
        for fact, shares in results.data.parts.items()
        for value, share in shares.items()
    ]
    if not rows:
        return []
    data = results.data
    rows.insert(0, ["all", f"{data.scored:,}", number(data.seconds / 60, 1), number_or_nothing(data.speakers)])
    note = "According to the data. Speakers are counted by their names in the data."
    return ["## Test set", table(["part", "utterances", "minutes", "speakers"], rows), note]


def number_or_nothing(count: int) -> str:
    """Returns a count as text, a dash for 0."""
    return f"{count:,}" if count else NOTHING


def breakdown(results: Results, grouping: str) -> list[str]:
    """Returns a section with one line per codec and group; empty if the data have no groups."""
    rows = [
        [
            name,
            system.name,
            str(group.utterances),
            *(figure(group.metrics[metric], facts) for metric, facts in results.metrics.items()),
        ]
        for system in results.systems
        for name, group in system.groups(grouping).items()
    ]
    if not rows:
        return []
    if grouping != "condition":
        rows.sort(key=lambda row: row[0])
    heading = [grouping, "codec", "utterances", *map(metric_heading, results.metrics.values())]
    return [f"## By {grouping}", table(heading, rows)]


def rate_section(results: Results) -> list[str]:
    """Returns a section with nominal and actual bit rates."""
    rows = [
        [
            system.name,
            *(number(rate, 1) for rate in (system.nominal_bit_rate, system.payload_bit_rate, system.file_bit_rate)),
            number(1000 * system.delay_samples / results.reference.sampling_rate, 1),
            number(system.silence_level, 0),
            system.facts.get("resampling", "none"),
            system.facts["file"],
        ]
        for system in results.systems
    ]
    heading = ["codec", "nominal bit/s", "coded speech bit/s", "file bit/s", "delay ms", "silence becomes, dB"]
    note = (
        "Actual rates are all bytes over all seconds. The delay was taken out before scoring. "
        "What two seconds of digital silence become is in dB of full scale, -120 at the lowest."
    )
    return ["## Bit rates", table([*heading, "resampling", "file"], rows), note]


def token_section(results: Results) -> list[str]:
    """Returns a section with statistics of the tokens; empty if there are no tokens."""
    rows = []
    for system in results.systems:
        tokens = system.tokens
        if not tokens:
            continue
        for index, stage in enumerate(tokens["stages"]):
            digits = stage["digit_entropy"]
            rows.append(
                [
                    system.name,
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


def speed_section(results: Results) -> list[str]:
    """Returns a section with real-time factors; empty if speed was not measured."""
    measured = [(each, each.speed) for each in results.systems if each.speed is not None and each.kind != "PCM"]
    if not measured:
        return []
    rows = [
        [
            system.name,
            system.facts.get("device", "cpu"),
            system.facts.get("dtype", NOTHING),
            number(speed.encode_rtf, 4),
            number(speed.decode_rtf, 4),
        ]
        for system, speed in measured
    ]
    machine = results.environment
    accelerator = f", {machine['accelerator']}" if machine["accelerator"] else ""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''} of {machine['cores']} cores"
    seconds = measured[0][1].seconds
    note = (
        f"Seconds of work per second of speech: below 1 is faster than real time. Single clips of {seconds:g} s, after "
        f"one run to warm up; {threads}, {machine['processor']}{accelerator}. Unlike all other figures, these differ "
        "from run to run."
    )
    return ["## Speed", table(["codec", "device", "dtype", "encoding", "decoding"], rows), note]


def problem_list(results: Results) -> str:
    """Lists the utterances that were not scored, or scored with a reservation."""
    if not results.problems:
        return "Every utterance was scored by every metric for every codec."
    lines = [f"- {line}" for line in problem_lines(results, LISTED_PROBLEMS)]
    return "\n".join(["These are in no mean, or only in those of the metrics that are defined for them.", "", *lines])


def problem_lines(results: Results, most: int) -> list[str]:
    """Lists at most `most` utterances that were not scored or scored with a reservation, and the number of others."""
    listed = results.problems
    lines = [
        f"{code(entry.id)}{f', {entry.system}' if entry.system else ''}: {printable(entry.problem)}"
        for entry in listed[:most]
    ]
    return lines if len(listed) <= most else [*lines, f"and {len(listed) - most} more, which results.json lists"]


def definitions(results: Results) -> str:
    """Returns definitions of the metrics, the judges, and the versions of the packages."""
    lines = {f"- {facts.label}: {facts.definition}" for facts in results.metrics.values()}
    judges = [f"- {name}: {value}" for name, value in results.judges.items()]
    packages = ", ".join(f"{name} {version}" for name, version in results.environment["packages"].items())
    return "\n".join([*sorted(lines), *judges, "", f"Made with Python {results.environment['python']}, {packages}."])


def figure(value: Mean, facts: MetricFacts, interval: bool = True) -> str:
    """Returns a mean as text, with its interval; shares of metrics in % are converted to per cent."""
    scale = 100 if facts.unit == "%" else 1
    mean, low, high = (None if bound is None else bound * scale for bound in (value.mean, value.low, value.high))
    text = number(mean, facts.decimals)
    if interval and low is not None:
        text += f" ({number(low, facts.decimals)} to {number(high, facts.decimals)})"
    return text


def number(value: float | None, decimals: int) -> str:
    """Returns a number as text."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is aligned left, the others right."""
    lines = [list(heading), ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def between(markers: tuple[str, str], page: Path, content: str) -> str | None:
    """Returns the text of a page with the content between two markers replaced.

    Args:
        markers: the line before the content, and the text after it.
        page: the page's file.
        content: the new content, without a final line break.

    Returns:
        The page's text; None if there is no such page, or it lacks a marker.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, start, rest = text.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    return f"{before}{start}{content}\n{end}{after}" if start and end else None
