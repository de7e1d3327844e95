"""The card of a metric, which `make_card.py` writes into a folder with an `evaluate` module.

On the Hub such a folder is a Space, from which `evaluate.load` loads the module. A Space needs a page as well.
"""

import html
import inspect
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import SpaceCardData

from modeling_taae.evaluation.tables import metric_facts
from modeling_taae.hub.cards import write_card

TEMPLATE = Path(__file__).with_name("templates") / "metric_card.md"
PAGE = """<!doctype html>
<meta charset="utf-8"><title>{title}</title>
<h1>{title}</h1>
<p>{summary}</p>
<p>It is loaded with <code>evaluate.load</code>; the <a href="README.md">card</a> says how.</p>
"""


def is_metric(folder: Path) -> bool:
    """Returns whether a folder holds an `evaluate` module with the folder's name."""
    return (folder / f"{folder.name}.py").is_file()


def metric_files(folder: Path) -> dict[Path, str]:
    """Returns the files to write for a metric's folder, by path."""
    import evaluate

    metric = evaluate.load(str(folder))
    title = inspect.getdoc(type(metric)).rstrip(".")
    summary = metric.description.partition("\n")[0]
    metrics = getattr(metric, "metrics", {})
    card = write_card(
        TEMPLATE,
        SpaceCardData(
            title=title,
            emoji="🎧",
            colorFrom="indigo",
            colorTo="green",
            sdk="static",
            license="apache-2.0",
            tags=["evaluate", "metric", "speech", "audio-codec"],
            description=summary,
        ),
        title=title,
        name=folder.name,
        description=metric.description.strip(),
        arguments=", ".join(f"{name}={name}" for name in metric.features),
        usage=paragraphs(metric.inputs_description),
        values=[{"name": name, **asdict(metric_facts(each))} for name, each in metrics.items()],
    )
    page = PAGE.format(title=html.escape(title), summary=html.escape(summary.replace("`", "")))
    return {folder / "README.md": card, folder / "index.html": page}


def paragraphs(text: str) -> str:
    """A docstring's `Args:` and `Returns:` as Markdown: a heading in bold above a list."""
    lines = []
    for line in inspect.cleandoc(text).splitlines():
        if line.endswith(":") and not line.startswith(" "):
            lines.append(f"**{line.removesuffix(':')}**\n")
        else:
            lines.append(f"- {line.strip()}" if line.startswith(" ") else line)
    return "\n".join(lines)
