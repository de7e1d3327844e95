"""Writes a model's card from its results: `python hub_cards/make_card.py hub_cards/taae-speech-16k-nano`.

What the card says in figures comes from the files in the model's folder: config.json and the weights,
results/results.json (`taae evaluate`), training.json and training_data.json (`make_provenance.py`). Beside README.md
this writes .eval_results/, the Hub's form of results, and the table in the project's own README. `--check` writes
nothing and fails where any of them differs from what would be written.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from modeling_taae import report
from modeling_taae.codec import Codec, load_codec
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS, NATIVE

ROOT = Path(__file__).resolve().parent
TEMPLATES = ROOT / "templates"
README = ROOT.parent / "README.md"
COMPARISON = (
    "<!-- comparison: written by `make card` from the results in hub_cards/{name} -->\n",
    "<!-- /comparison -->",
)
# The Hub knows results by the data set they are of; this one is not on the Hub.
EVALUATION_DATASET = "taae/speech-test"
TAGS = ["audio", "speech", "audio-codec", "neural-audio-codec", "speech-tokenizer", "fsq", "taae"]
SHOWN_METRICS = ("pesq_wb", "pesq_nb", "stoi", "si_sdr", "mel_distance", "dnsmos_ovrl")
STANDING_METRIC = "stoi"


class CardError(ValueError):
    """A card that cannot be made, because something it needs is missing or of another model."""


def make_files(folder: Path) -> dict[Path, str]:
    """What is to be written, by path.

    Args:
        folder: the model's.

    Raises:
        CardError: if results or provenance are missing, or the results are of other weights.
    """
    codec = load_codec(str(folder), device="cpu")
    results = read_json(folder / "results" / "results.json", "run `make results`")
    ours = [system for system in results["systems"] if system["kind"] == "TAAE"]
    if {system["model_identity"] for system in ours} != {codec.identity}:
        raise CardError(
            f"{folder / 'results'}: holds results of other weights than those in {folder} ({codec.identity}); "
            "run `make results`"
        )
    files = {
        folder / "README.md": card(folder, codec, results),
        folder / ".eval_results" / "speech_test.yaml": evaluation_results(default_system(codec, results), results),
    }
    comparison = project_readme(folder.name, results)
    return files | ({README: comparison} if comparison else {})


def read_json(path: Path, remedy: str) -> dict:
    """A JSON file's content.

    Raises:
        CardError: if there is none.
    """
    if not path.is_file():
        raise CardError(f"{path}: is missing; {remedy}")
    return json.loads(path.read_text(encoding="utf-8"))


def card(folder: Path, codec: Codec, results: dict) -> str:
    """The model card's text."""
    config = codec.model.config
    training = read_json(folder / "training.json", "run `make provenance`")
    data = read_json(folder / "training_data.json", "run `make provenance`")
    ours = default_system(codec, results)
    shown = [name for name in SHOWN_METRICS if name in results["metrics"]]
    hours = sum(source["hours"] for source in data["sources"])
    by_language = sorted(data["languages"].items(), key=lambda item: -item[1])
    card_data = ModelCardData(
        language=[language for language, _ in by_language],
        license="cc-by-sa-4.0",
        library_name="transformers",
        pipeline_tag="audio-to-audio",
        tags=TAGS,
        metrics=list(results["metrics"]),
        model_name=folder.name,
    )
    content = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATES / "model_card.md"),
        name=folder.name,
        sampling_rate=config.sampling_rate,
        kilohertz=f"{config.sampling_rate / 1000:g}",
        frame_rate=f"{config.frame_rate:g}",
        parameters=f"{codec.model.num_parameters() / 1e6:.1f} million",
        training_hours=f"{hours:.0f}",
        presets=presets(codec),
        setting=report.setting(results),
        quality=report.quality_table(results, shown),
        footnote=report.footnote(results),
        standing=standing(ours, results),
        default_rate=report.number(ours["nominal_bit_rate"], 0),
        languages=language_table(ours, results, shown),
        speed="\n\n".join(report.speed_section(results)[1:]),
        spectrogram=(folder / "spectrogram.png").is_file(),
        curves=(folder / "curves.png").is_file(),
        training=training_text(training, config.frame_rate),
        sources=source_rows(data),
        main_language={"en": "English"}.get(by_language[0][0], by_language[0][0]),
        main_share=f"{100 * by_language[0][1] / hours:.0f}",
    )
    return str(content).rstrip() + "\n"


def default_system(codec: Codec, results: dict) -> dict:
    """The results at the model's own bottleneck.

    Raises:
        CardError: if it was not evaluated.
    """
    for system in results["systems"]:
        if system.get("bottleneck") == codec.model.config.bottleneck:
            return system
    raise CardError(f"the bottleneck {codec.model.config.bottleneck} was not evaluated; run `make results`")


def presets(codec: Codec) -> list[dict]:
    """Rows of the table of bottlenecks."""
    rows = []
    for name in [*BOTTLENECK_PRESETS, NATIVE]:
        quantizer = codec.model.bottleneck(name)
        rows.append(
            {
                "name": name,
                "default": name == codec.model.config.bottleneck,
                "tokens": len(quantizer.stages),
                "vocabulary": f"{quantizer.codebook_sizes[0]:,}",
                "bit_rate": report.number(quantizer.bits_per_frame * codec.model.config.frame_rate, 0),
            }
        )
    return rows


def standing(ours: dict, results: dict) -> str:
    """Where the model stands among its peers, in a sentence; empty without peers."""
    facts = results["metrics"].get(STANDING_METRIC)
    peers = [system for system in results["systems"] if system["kind"] not in ("TAAE", "PCM")]
    if facts is None or not peers:
        return ""

    def value(system: dict) -> float:
        mean = system["metrics"][STANDING_METRIC]["mean"]
        return -math.inf if mean is None else mean

    def listed(systems: list[dict]) -> str:
        return (
            ", ".join(f"{system['name']} ({value(system):.{facts['decimals']}f})" for system in systems)
            or "none of them"
        )

    peers.sort(key=value)
    worse = [system for system in peers if value(system) <= value(ours)]
    better = [system for system in peers if value(system) > value(ours)]
    return (
        f"By {facts['label']}, this model at {report.number(ours['nominal_bit_rate'], 0)} bit/s "
        f"({value(ours):.{facts['decimals']}f}) is better than {listed(worse)} and worse than {listed(better)}."
    )


def language_table(ours: dict, results: dict, shown: list[str]) -> str:
    """The default bottleneck's figures by language; empty where there is one language or none."""
    groups = ours["by"]["language"]
    if len(groups) < 2:
        return ""
    facts = {name: results["metrics"][name] for name in shown}
    rows = [
        [language, str(group["utterances"]), *(report.figure(group["metrics"][name], facts[name]) for name in shown)]
        for language, group in groups.items()
    ]
    return report.table(["language", "utterances", *map(report.metric_heading, facts.values())], rows)


def training_text(training: dict, frame_rate: float) -> str:
    """How the model was trained, in a paragraph."""
    recipe = training["recipe"]
    losses = {name.removeprefix("losses."): value for name, value in recipe.items() if name.startswith("losses.")}
    for name, part in PARTS_OF_LOSSES.items():
        if not any(field.startswith(f"{part}.") for field in recipe):
            losses.pop(name, None)
    weights = ", ".join(
        f"{name} {value:g}" for name, value in losses.items() if isinstance(value, int | float) and value
    )
    crop_seconds = recipe["data.crop_frames"] / frame_rate
    return (
        f"{training['steps']:,} optimiser steps in {training['hours']:.1f} hours on {training['trained_on']}, each on "
        f"{recipe['batch_size'] * training['processes']} crops of {crop_seconds:.2f} s at -20 LUFS (give or take "
        f"{recipe['data.augmentation.level']:g} dB); AdamW, learning rate {recipe['optimizer.learning_rate']:g}; "
        f"activations in {PRECISIONS.get(recipe['mixed_precision'], recipe['mixed_precision'])}, "
        f"averaged weights (EMA) published. Settings of the losses: {weights}. "
        "The recipe is in training/recipes of the project, the settings of this run in training.json."
    )


PRECISIONS = {"no": "float32", "bf16": "bfloat16"}
# Losses that count only where the recipe has the part that they come from.
PARTS_OF_LOSSES = {
    "adversarial": "discriminator",
    "feature_matching": "discriminator",
    "perceptual": "perceptual",
    "ctc": "ctc",
}


def source_rows(data: dict) -> list[dict]:
    """Rows of the table of training data.

    Raises:
        CardError: if nobody is credited for a source.
    """
    credits = yaml.safe_load((TEMPLATES / "sources.yaml").read_text(encoding="utf-8"))
    rows = []
    for source in data["sources"]:
        if source["name"] not in credits:
            raise CardError(f"{TEMPLATES / 'sources.yaml'}: has no credit for {source['name']}; add one")
        shown = {"hours": f"{source['hours']:.2f}", "languages": ", ".join(source["languages"])}
        speakers = {"speakers": str(source["speakers"] or "not told")}
        rows.append({**source, **shown, **speakers, **credits[source["name"]]})
    return rows


def evaluation_results(ours: dict, results: dict) -> str:
    """The Hub's form of results, one entry per metric of the model's own bottleneck."""
    entries = []
    for name, value in ours["metrics"].items():
        if value["mean"] is None:
            continue
        label, interval = results["metrics"][name]["label"], results["intervals"]["level"]
        bounds = "" if value["low"] is None else f", {interval:.0%} interval {value['low']:.4g} to {value['high']:.4g}"
        rate = f"{ours['bottleneck']}, {ours['nominal_bit_rate']:.0f} bit/s"
        notes = f"{label} at {rate}, mean over {value['n']} utterances{bounds}"
        entries.append(EvalResultEntry(EVALUATION_DATASET, name, value["mean"], notes=notes))
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def project_readme(name: str, results: dict) -> str | None:
    """The project's README with its comparison filled in; None where it has no place for this model's."""
    start, end = COMPARISON[0].format(name=name), COMPARISON[1]
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    if start not in text or end not in text:
        return None
    before, rest = text.split(start, 1)
    shown = [metric for metric in ("pesq_wb", "pesq_nb", "stoi") if metric in results["metrics"]]
    body = "\n\n".join([report.setting(results), report.quality_table(results, shown), report.footnote(results)])
    return f"{before}{start}{body}\n{end}{rest.split(end, 1)[1]}"


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks, and returns the exit status: 1 where a check fails, 2 where a card cannot be made."""
    parser = argparse.ArgumentParser(prog="make_card.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a model's folder, with results/ in it")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything would change")
    options = parser.parse_args(arguments)
    try:
        files = make_files(options.folder)
    except ValueError as error:
        print(f"make_card.py: error: {error}", file=sys.stderr)
        return 2
    changed = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if options.check:
        for path in changed:
            print(f"make_card.py: {path} does not say what the results say; run `make card`", file=sys.stderr)
        return 1 if changed else 0
    for path in changed:
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
