"""Writes the tables of the project's README: all published models, and one of them beside other codecs."""

from pathlib import Path

from huggingface_hub import ModelCard

from hub_cards.cards.card_sections import JUDGED
from modeling_taae import TaaeConfig
from modeling_taae.codec import load_codec
from modeling_taae.evaluation import report
from modeling_taae.evaluation.results import Results, SystemSummary

MODELS = ("<!-- models: written by `make card` from the models in hub_cards -->\n", "<!-- /models -->")
COMPARISON = (
    "<!-- comparison: written by `make card` from the results in hub_cards/{name} -->\n",
    "<!-- /comparison -->",
)
SHOWN_METRICS = ("dwer", "speaker_similarity", "distillmos", "stoi", "pesq_wb")
MODEL_METRICS = SHOWN_METRICS[:4]


def project_readme(readme: Path, name: str, results: Results) -> str | None:
    """Returns the project's README with its tables filled in; None where it has no place for any.

    Args:
        readme: the file.
        name: the model whose card is written; the comparison is filled in if it is this model's.
        results: its results.
    """
    results = judged_results(readme.parent / "hub_cards" / name) or results
    shown = [metric for metric in SHOWN_METRICS if metric in results.metrics]
    ours = next(system for system in results.systems if system.kind == "TAAE")
    setting = f"{report.setting(results)} {describe_test_set(ours)}".rstrip()
    comparison = "\n\n".join([setting, report.quality_table(results, shown), report.footnote(results)])
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    filled = replaced(text, (COMPARISON[0].format(name=name), COMPARISON[1]), comparison)
    filled = replaced(filled, MODELS, models_table(readme.parent / "hub_cards")) if MODELS[0] in filled else filled
    return filled if filled != text or COMPARISON[0].format(name=name) in text else None


def judged_results(folder: Path) -> Results | None:
    """Returns what networks judged of a model and of neural codecs, None where they did not."""
    path = folder / JUDGED / "results.json"
    return Results.read(path) if path.is_file() else None


def replaced(text: str, markers: tuple[str, str], content: str) -> str:
    """Returns a text with the content between two markers replaced; as it is where a marker is missing."""
    before, start, rest = text.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    return f"{before}{start}{content}\n{end}{after}" if start and end else text


def describe_test_set(ours: SystemSummary, sources: bool = True) -> str:
    """Returns where the test set's utterances are from, in which languages, in sentences; empty where nobody knows.

    Args:
        ours: the results of one of the model's bottlenecks.
        sources: whether to name the sources.
    """

    def listed(grouping: str) -> str:
        groups = sorted(ours.groups(grouping).items(), key=lambda item: -item[1].utterances)
        return ", ".join(f"{name} {group.utterances}" for name, group in groups)

    texts = [f"Utterances by source: {names}." if sources and (names := listed("source")) else ""]
    texts += [f"Utterances by language: {languages}." if (languages := listed("language")) else ""]
    if speakers := ours.groups("speaker"):
        texts.append(f"{len(speakers)} known speakers.")
    return " ".join(filter(None, texts))


def models_table(folder: Path) -> str:
    """Returns a table of the models in a folder that have a card and results, the smallest first."""
    models = {
        path.parent: Results.read(path.parent / "results" / "results.json")
        for path in sorted(
            folder.glob("*/config.json"), key=lambda path: (TaaeConfig.from_pretrained(path.parent).causal, path)
        )
        if (path.parent / "results" / "results.json").is_file() and (path.parent / "README.md").is_file()
    }
    judged = {path: judged_results(path) or results for path, results in models.items()}
    facts = {name: results.metrics[name] for results in judged.values() for name in results.metrics}
    shown = {name: facts[name] for name in MODEL_METRICS if name in facts}
    headings = ["model", "parameters", "bit/s", "streams", *map(report.metric_heading, shown.values())]
    headings += ["speed, one CPU thread", "weights under"]
    rows = [model_row(path, results, judged[path], list(shown)) for path, results in models.items()]
    return report.table(headings, rows)


def model_row(folder: Path, results: Results, judged: Results, shown: list[str]) -> list[str]:
    """Returns the facts of a published model, as cells: its quality is that of its own bottleneck."""
    model = load_codec(str(folder), device="cpu").model
    config = model.config
    systems = [system for system in results.systems if system.kind == "TAAE"]
    ours, heard = (
        next(system for system in each.systems if system.bottleneck == config.bottleneck) for each in (results, judged)
    )
    figures = [
        report.figure(heard.metrics[name], judged.metrics[name], False) if name in judged.metrics else report.NOTHING
        for name in shown
    ]
    speed = ours.speed
    return [
        f"[{folder.name}](hub_cards/{folder.name}/README.md)",
        f"{model.num_parameters() / 1e6:.0f} million",
        " / ".join(report.number(system.nominal_bit_rate, 0) for system in systems),
        f"yes, {1000 / config.frame_rate:g} ms at a time" if config.causal else "no",
        *figures,
        f"{1 / (speed.encode_rtf + speed.decode_rtf):.0f} times real time" if speed else "–",
        ModelCard.load(folder / "README.md").data.license,
    ]
