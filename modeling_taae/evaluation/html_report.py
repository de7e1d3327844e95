"""The results of an evaluation as one page to look at and to listen to, with nothing to fetch from anywhere."""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import soundfile

from . import report
from .metrics import SAMPLING_RATE
from .samples import Sample

# Longer clips are cut for the page, so that it stays a few megabytes.
LONGEST_CLIP = 8.0
# Spectrograms: windows and steps in samples, range in dB below the loudest point of the reference, height in pixels.
WINDOW, STEP, RANGE_DB = 512, 160, 70
CURVE_METRICS = ("stoi", "pesq_wb", "pesq_nb", "dnsmos_ovrl", "mel_distance", "dwer")
TICKS = [digit * 10**power for power in range(2, 5) for digit in (1, 2, 5)]  # of the axis of bit rates
COLOURS = {"TAAE": "#c2185b", "other": "#1976d2"}

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
th:first-child, td:first-child {{ text-align: left; }}
figure {{ display: inline-block; margin: .5rem; width: 22rem; }}
figcaption {{ font-size: .9rem; }}
audio, figure img {{ width: 100%; display: block; }}
figure img {{ height: 7rem; image-rendering: pixelated; }}
svg text {{ fill: currentColor; font-size: 11px; }}
</style>
</head>
<body>
<h1>Evaluation of {title}</h1>
{body}
<script>
// Starting one clip of an utterance stops the others and goes on from the same moment, to compare by ear.
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


def html_report(summary: dict, samples: Sequence[Sample]) -> str:
    """The page.

    Args:
        summary: the content of results.json.
        samples: what can be listened to.
    """
    ours = [system["name"] for system in summary["systems"] if system["kind"] == "TAAE"]
    title = ours[0].split()[0] if ours else "codecs"
    sections = [
        paragraph(report.setting(summary)),
        "<h2>Quality</h2>",
        table(report.quality_table(summary)),
        paragraph(report.footnote(summary)),
        curves(summary),
        *(["<h2>Listen</h2>", *map(sample_section, samples)] if samples else []),
        *sections_of(report.breakdown(summary, "condition")),
        *sections_of(report.breakdown(summary, "language")),
        *sections_of(report.breakdown(summary, "source")),
        *sections_of(report.breakdown(summary, "gender")),
        "<h2>Bit rates</h2>",
        *sections_of(report.rate_table(summary).split("\n\n")),
        *sections_of(report.token_section(summary)),
        *sections_of(report.speed_section(summary)),
        "<h2>Listed files</h2>",
        markdown_list(report.problem_list(summary)),
        "<h2>Definitions</h2>",
        markdown_list(report.definitions(summary)),
    ]
    return PAGE.format(title=html.escape(title), body="\n".join(sections))


def sections_of(parts: Sequence[str]) -> list[str]:
    """Headings, tables and paragraphs of Markdown as HTML."""
    converted = []
    for part in parts:
        if part.startswith("## "):
            converted.append(f"<h2>{html.escape(part[3:])}</h2>")
        else:
            converted.append(table(part) if part.startswith("|") else paragraph(part))
    return converted


def paragraph(text: str) -> str:
    """A paragraph of Markdown without more markup than code."""
    return f"<p>{inline(text)}</p>"


def inline(text: str) -> str:
    """Text with code between backticks."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def table(markdown: str) -> str:
    """A table that [`report.table`] made."""
    heading, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in markdown.splitlines())
    head = "".join(f"<th scope='col'>{inline(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{inline(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def markdown_list(markdown: str) -> str:
    """Paragraphs and a list of points."""
    lines = [line for line in markdown.splitlines() if line]
    points = "".join(f"<li>{inline(line[2:])}</li>\n" for line in lines if line.startswith("- "))
    texts = "".join(paragraph(line) for line in lines if not line.startswith("- "))
    return texts + (f"<ul>{points}</ul>" if points else "")


def curves(summary: dict) -> str:
    """Bit rate against quality, one small chart per metric; empty where there are fewer than two codecs."""
    systems = [system for system in summary["systems"] if system["kind"] != "PCM"]
    if len(systems) < 2:
        return ""
    names = [name for name in CURVE_METRICS if name in summary["metrics"]]
    charts = "".join(f"<figure>{chart(systems, name, summary['metrics'][name])}</figure>" for name in names)
    return f"<h2>Quality against bit rate</h2>\n{charts}" if charts else ""


def chart(systems: Sequence[dict], name: str, facts: dict) -> str:
    """One metric against the nominal bit rate on a logarithmic axis, as SVG, with intervals."""
    points = [
        (math.log10(system["nominal_bit_rate"]), system["metrics"][name], system)
        for system in systems
        if system["metrics"][name]["mean"] is not None
    ]
    if not points:
        return ""
    width, height, margin = 350, 240, 40
    bounds = [value[key] for _, value, _ in points for key in ("low", "mean", "high") if value[key] is not None]
    x_scale = scale(min(x for x, _, _ in points), max(x for x, _, _ in points), margin + 20, width - 70)
    y_scale = scale(min(bounds), max(bounds), height - margin, margin)
    shapes = []
    for x, value, system in sorted(points, key=lambda point: point[0]):
        left, top = x_scale(x), y_scale(value["mean"])
        colour = COLOURS.get(system["kind"], COLOURS["other"])
        if value["low"] is not None:
            low, high = y_scale(value["low"]), y_scale(value["high"])
            shapes.append(f"<path d='M{left:.1f} {low:.1f}V{high:.1f}' stroke='{colour}' stroke-width='2'/>")
        below = system["kind"] == "TAAE"  # labels of ours and theirs keep out of each other's way
        tip = f"{system['name']}: {report.figure(value, facts)}"
        shapes.append(
            f"<circle cx='{left:.1f}' cy='{top:.1f}' r='4' fill='{colour}'><title>{html.escape(tip)}</title></circle>"
            f"<text x='{left + 6:.1f}' y='{top + (13 if below else -5):.1f}'>"
            f"{html.escape(system['name'].split()[-1])}</text>"
        )
    for rate in TICKS:
        if min(x for x, _, _ in points) <= math.log10(rate) <= max(x for x, _, _ in points):
            left = x_scale(math.log10(rate))
            shapes.append(f"<text x='{left:.1f}' y='{height - 20}' text-anchor='middle'>{rate:,}</text>")
    for bound in (min(bounds), max(bounds)):
        shapes.append(f"<text x='2' y='{y_scale(bound):.1f}'>{report.number(bound, facts['decimals'])}</text>")
    heading = html.escape(report.metric_heading(facts))
    return (
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{heading} against bit rate'>"
        f"<text x='{width / 2}' y='14' text-anchor='middle'>{heading}</text>{''.join(shapes)}"
        f"<text x='{width / 2}' y='{height - 4}' text-anchor='middle'>bit/s (nominal)</text></svg>"
    )


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A function that maps low to high linearly to start to end."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def sample_section(sample: Sample) -> str:
    """One utterance: players and spectrograms side by side."""
    facts = ", ".join(sample.facts[name] for name in ("language", "source", "speaker") if name in sample.facts)
    reference = spectrum(next(iter(sample.clips.values())))
    figures = "".join(clip_figure(name, clip, reference.max()) for name, clip in sample.clips.items())
    text = paragraph(sample.facts["text"]) if "text" in sample.facts else ""
    heading = f"<h3>{html.escape(sample.id)}{' (' + html.escape(facts) + ')' if facts else ''}</h3>"
    return f"<section class='sample'>{heading}{text}\n{figures}</section>"


def clip_figure(name: str, clip: np.ndarray, loudest: float) -> str:
    """A player and a spectrogram, its colours relative to the loudest point of the reference, in dB."""
    clip = clip[: int(LONGEST_CLIP * SAMPLING_RATE)]
    sound = io.BytesIO()
    soundfile.write(sound, clip.clip(-1, 1), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    label = html.escape(name)
    return (
        f"<figure><figcaption>{label}</figcaption>"
        f"<img src='data:image/png;base64,{encoded(spectrogram(clip, loudest))}' alt='Spectrogram, {label}'>"
        f"<audio controls preload='metadata' aria-label='{label}' "
        f"src='data:audio/flac;base64,{encoded(sound.getvalue())}'></audio></figure>\n"
    )


def encoded(content: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(content).decode()


def spectrum(clip: np.ndarray) -> np.ndarray:
    """(samples,) -> (frequencies, frames), in dB."""
    padded = np.pad(clip, (0, max(WINDOW - len(clip), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::STEP] * np.hanning(WINDOW)
    return 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-6)


def spectrogram(clip: np.ndarray, loudest: float) -> bytes:
    """A PNG, low frequencies at the bottom."""
    from matplotlib import image

    content = io.BytesIO()
    levels = spectrum(clip)
    image.imsave(content, levels[::-1], vmin=loudest - RANGE_DB, vmax=loudest, cmap="magma", format="png")
    return content.getvalue()
