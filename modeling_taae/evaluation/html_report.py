"""Writes the results of an evaluation as one HTML page with audio, which loads nothing from the network."""

import base64
import html
import io
import re
from importlib.util import find_spec

import numpy as np

from ..audio.spectrum import draw_spectrum, spectrum
from ..audio_io import sound_file
from ..errors import printable
from . import report
from .alignment import SAMPLING_RATE
from .charts import draw_rates, questions, svg
from .results import Results, Sample

# Seconds to which clips are cut, so that the page has only a few megabytes.
LONGEST_CLIP = 8.0
# An interval at the end of a cell, and its replacement, which puts it on a separate line.
INTERVAL, BELOW = re.compile(r" (\(\S+ to \S+\))$"), r" <small>\1</small>"
# Metrics that are also drawn, if a run has them.
FURTHER_CHARTS = ("stoi", "pesq_wb", "mel_distance")
CLIPS_IN_A_ROW = 4

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of {title}</title>
<style>
:root {{ color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; vertical-align: top; }}
td small {{ display: block; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 0; min-width: 0; }}
figcaption {{ font-size: .9rem; }}
audio, figure img, figure svg {{ width: 100%; height: auto; display: block; }}
.charts, .clips {{ display: grid; gap: 1rem; grid-template-columns: repeat(var(--columns), 1fr); }}
@media (max-width: 50rem) {{ .charts, .clips {{ grid-template-columns: 1fr; }} }}
</style>
</head>
<body>
<h1>Evaluation of {title}</h1>
{body}
<script>
// Starting one clip of an utterance stops the others and continues at the same position, to compare by ear.
for (const group of document.querySelectorAll("section.sample")) {{
  const players = [...group.querySelectorAll("audio")];
  for (const player of players) player.addEventListener("play", () => {{
    const other = players.find(each => each !== player && !each.paused);
    if (!other) return;
    player.currentTime = other.currentTime;
    other.pause();
  }});
}}
</script>
</body>
</html>
"""


def html_report(results: Results) -> str:
    """Returns the page, with the samples of the results to listen to."""
    ours = [system.name for system in results.systems if system.kind == "TAAE"]
    title = ours[0].split()[0] if ours else "codecs"
    listen = ["<h2>Listen</h2>", *map(sample_section, results.samples)] if results.samples else []
    parts = [
        *map(as_html, report.summary(results)),
        rate_charts(results),
        *map(as_html, report.data_section(results)),
        *listen,
        *map(as_html, report.details(results)),
    ]
    return PAGE.format(title=html.escape(title), body="\n".join(parts))


def as_html(markdown: str) -> str:
    """Converts a part of a report: a heading, a table, or paragraphs and a list whose only markup is code."""
    if markdown.startswith("## "):
        return f"<h2>{html.escape(markdown[3:])}</h2>"
    if markdown.startswith("|"):
        return table(markdown)
    lines = [line for line in markdown.splitlines() if line]
    points = "".join(f"<li>{inline(line[2:])}</li>\n" for line in lines if line.startswith("- "))
    texts = "".join(f"<p>{inline(line)}</p>" for line in lines if not line.startswith("- "))
    return texts + (f"<ul>{points}</ul>" if points else "")


def inline(text: str) -> str:
    """Converts text with code between backticks."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def table(markdown: str) -> str:
    """Converts a table that [`report.table`] made."""
    heading, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in markdown.splitlines())
    head = "".join(f"<th scope='col'>{inline(cell)}</th>" for cell in heading)
    body = "".join(
        "<tr>" + "".join(f"<td>{INTERVAL.sub(BELOW, inline(cell))}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def rate_charts(results: Results) -> str:
    """Returns charts of quality against bit rate, one per metric; empty for fewer than two codecs."""
    if sum(system.kind != "PCM" for system in results.systems) < 2 or find_spec("matplotlib") is None:
        return ""
    asked = questions(results)
    names = [*asked, *(name for name in FURTHER_CHARTS if name in results.metrics and name not in asked)]
    charts = []
    for name in names:
        label = f"{results.metrics[name].label} against bit rate"
        drawn = draw_rates(results, [name], [asked.get(name, results.metrics[name].label)])
        charts.append(f"<figure>{svg(drawn, label)}</figure>")
    if not charts:
        return ""
    return f"<h2>Quality against bit rate</h2>\n<div class='charts' style='--columns: 2'>{''.join(charts)}</div>"


def sample_section(sample: Sample) -> str:
    """Returns one utterance: its text, and players with spectrograms in rows of about equal length."""
    facts = ", ".join(sample.facts[name] for name in ("language", "source", "speaker") if name in sample.facts)
    reference = spectrum(next(iter(sample.clips.values())))
    figures = "".join(clip_figure(name, clip, reference.max()) for name, clip in sample.clips.items())
    rows = -(-len(sample.clips) // CLIPS_IN_A_ROW)
    columns = -(-len(sample.clips) // rows)
    spoken = html.escape(printable(sample.facts.get("text", "")))
    text = f"<p lang='{html.escape(sample.facts.get('language', ''))}'>“{spoken}”</p>\n" if spoken else ""
    heading = f"<h3>{html.escape(printable(sample.id))}{f' ({html.escape(printable(facts))})' if facts else ''}</h3>"
    clips = f"<div class='clips' style='--columns: {columns}'>{figures}</div>"
    return f"<section class='sample'>{heading}{text}{clips}</section>"


def clip_figure(name: str, clip: np.ndarray, loudest: float) -> str:
    """Returns a player and a spectrogram with levels in dB relative to the loudest point of the reference."""
    clip = clip[: int(LONGEST_CLIP * SAMPLING_RATE)]
    sound = sound_file(clip.clip(-1, 1), SAMPLING_RATE, "FLAC")
    label = html.escape(name)
    return (
        f"<figure><figcaption>{label}</figcaption>"
        f"<img src='data:image/png;base64,{encoded(spectrogram_png(clip, loudest))}' alt='Spectrogram, {label}'>"
        f"<audio controls preload='metadata' aria-label='{label}' "
        f"src='data:audio/flac;base64,{encoded(sound)}'></audio></figure>\n"
    )


def encoded(content: bytes) -> str:
    """Encodes bytes in base64."""
    return base64.b64encode(content).decode()


def spectrogram_png(clip: np.ndarray, loudest: float) -> bytes:
    """Draws a spectrogram with its axes, low frequencies at the bottom, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 1.6), layout="constrained")
    axes = figure.subplots()
    draw_spectrum(axes, clip, SAMPLING_RATE, loudest)
    axes.set_xlabel("s", fontsize=7)
    axes.set_ylabel("kHz", fontsize=7)
    axes.tick_params(labelsize=7)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
