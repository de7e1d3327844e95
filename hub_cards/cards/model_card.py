"""The card of a model that was trained here, which `make_card.py` writes into a folder with training.json.

Its figures come from the files in the folder: config.json and the weights, results/results.json (`taae evaluate`),
further results if there are any (`card_sections.py`), training.json and training_data.json (`make_provenance.py`).
It writes README.md, LICENSE and, if the project's README has a place for it, the table of results there.
"""

import math
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hub_cards.cards.card_sections import (
    CardError,
    Curves,
    gap_text,
    gender_text,
    judged_section,
    language_section,
    preset_section,
    probe_section,
    read_curves,
    read_json,
    read_results,
    score_text,
    trial_section,
)
from hub_cards.cards.make_provenance import WATTS, stages
from hub_cards.cards.make_samples import Clip, read_clips
from hub_cards.cards.readme_tables import describe_test_set, project_readme
from modeling_taae.codec import Codec, load_codec
from modeling_taae.configuration_taae import NAMED_SIZES
from modeling_taae.evaluation import report
from modeling_taae.evaluation.results import Results, SystemSummary
from modeling_taae.hub.cards import model_facts, write_card

TEMPLATES = Path(__file__).with_name("templates")
LICENSE = "cc-by-sa-4.0"
TAGS = ["audio", "speech", "audio-codec", "neural-audio-codec", "speech-tokenizer", "fsq", "taae"]
SHOWN_METRICS = ("pesq_wb", "pesq_nb", "stoi", "si_sdr", "mel_distance", "dnsmos_p808")
STANDING_METRIC = "stoi"


def model_files(folder: Path) -> dict[Path, str]:
    """Returns the files to write, by path.

    Args:
        folder: the model's folder.

    Raises:
        CardError: if results or provenance are missing, or the results belong to other weights.
    """
    codec = load_codec(str(folder), device="cpu")
    results = read_results(folder / "results" / "results.json", codec.identity, "run `make results`")
    files = {
        folder / "README.md": card(folder, codec, results),
        folder / "LICENSE": (TEMPLATES / f"{LICENSE}.txt").read_text(encoding="utf-8"),
    }
    readme = folder.resolve().parents[1] / "README.md"  # of a checkout, where the folder lies in hub_cards/
    text = project_readme(readme, folder.name, results)
    return files | ({readme: text} if text else {})


def card(folder: Path, codec: Codec, results: Results) -> str:
    """Returns the model card's text."""
    config = codec.model.config
    training = read_json(folder / "training.json", "run `make provenance`")
    data = read_json(folder / "training_data.json", "run `make provenance`")
    curves = read_curves(folder / "curves.csv")
    ours = default_system(codec, results)
    shown = [name for name in results.metrics if name in SHOWN_METRICS]
    hours = sum(source["hours"] for source in data["sources"])
    samples = [clip for clip in read_clips() if (folder / "samples" / f"{clip.name}.flac").is_file()]
    by_language = sorted(data["languages"].items(), key=lambda item: -item[1])
    card_data = ModelCardData(
        language=[language for language, _ in by_language],
        license=LICENSE,
        library_name="transformers",
        pipeline_tag="audio-to-audio",
        tags=TAGS,
        metrics=list(results.metrics),
        model_name=folder.name,
        eval_results=evaluation_results(ours, results),
    )
    return write_card(
        TEMPLATES / "model_card.md",
        card_data,
        **model_facts(folder.name, codec.model),
        origin=origin(training),
        frame_milliseconds=f"{1000 / config.frame_rate:g}",
        training_hours=f"{hours:.0f}",
        setting=report.setting(results),
        test_set=describe_test_set(ours, sources="source" not in results.data.parts),
        test_sources=test_set_table(results),
        quality=report.quality_table(results, shown),
        footnote=report.footnote(results),
        standing=standing(ours, results),
        default_rate=report.number(ours.nominal_bit_rate, 0),
        languages=language_table(ours, results, shown),
        rate_curve=preset_section(folder, codec.identity),
        trials=trial_section(folder, codec.identity, ours.bottleneck, data["languages"]),
        many_languages=language_section(folder, codec.identity, data["languages"]),
        probes=probe_section(folder, codec.identity),
        genders=gender_text(ours, results),
        speed="\n\n".join(report.speed_section(results)[1:]),
        samples=samples,
        sample_note=sample_note(samples),
        judged=judged_section(folder, codec.identity),
        spectrogram=(folder / "spectrogram.png").is_file(),
        curves=(folder / "curves.png").is_file(),
        gap=gap_text(curves),
        discriminator=(folder / "discriminator.safetensors").is_file(),
        training=training_text(training, curves, config.frame_rate),
        cost=cost_text(training),
        spread=spread(ours, results),
        sources=source_rows(data),
        main_language={"en": "English"}.get(by_language[0][0], by_language[0][0]),
        main_share=f"{100 * by_language[0][1] / hours:.0f}",
    )


def sample_note(clips: list[Clip]) -> str:
    """Returns sentences on the origin of the sample recordings."""
    return " ".join(
        f"{clip.voice}: [{clip.source}]({clip.link}), {clip.license.lower() if ' ' in clip.license else clip.license}. "
        f"{clip.training}"
        for clip in clips
    )


def default_system(codec: Codec, results: Results) -> SystemSummary:
    """Returns the results at the model's default bottleneck.

    Raises:
        CardError: if it was not evaluated.
    """
    for system in results.systems:
        if system.bottleneck == codec.model.config.bottleneck:
            return system
    raise CardError(f"the bottleneck {codec.model.config.bottleneck} was not evaluated; run `make results`")


def standing(ours: SystemSummary, results: Results) -> str:
    """Returns a sentence that compares the model with its peers; empty without peers."""
    facts = results.metrics.get(STANDING_METRIC)
    peers = [system for system in results.systems if system.kind not in ("TAAE", "PCM")]
    if facts is None or not peers:
        return ""

    def value(system: SystemSummary) -> float:
        mean = system.metrics[STANDING_METRIC].mean
        return -math.inf if mean is None else mean

    def listed(systems: list[SystemSummary]) -> str:
        return ", ".join(f"{system.name} ({value(system):.{facts.decimals}f})" for system in systems) or "none of them"

    peers.sort(key=value)
    worse = [system for system in peers if value(system) <= value(ours)]
    better = [system for system in peers if value(system) > value(ours)]
    return (
        f"By {facts.label}, this model at {report.number(ours.nominal_bit_rate, 0)} bit/s "
        f"({value(ours):.{facts.decimals}f}) is better than {listed(worse)} and worse than {listed(better)}."
    )


def language_table(ours: SystemSummary, results: Results, shown: list[str]) -> str:
    """Returns the default bottleneck's figures by language; empty for fewer than two languages."""
    groups = ours.groups("language")
    if len(groups) < 2:
        return ""
    facts = {name: results.metrics[name] for name in shown}
    rows = [
        [language, str(group.utterances), *(report.figure(group.metrics[name], facts[name]) for name in shown)]
        for language, group in groups.items()
    ]
    return report.table(["language", "utterances", *map(report.metric_heading, facts.values())], rows)


def training_text(training: dict, curves: Curves, frame_rate: float) -> str:
    """Returns a paragraph on each training stage and the scores at its end."""
    texts, start = [], 0
    for stage in stages(training):
        end = start + stage["steps"]
        averaged = f" Its weights were then averaged with {stage['averaged']}." if "averaged" in stage else ""
        texts.append(stage_text(stage, frame_rate) + score_text(curves, start, end) + averaged)
        start = end
    if len(texts) > 1:
        texts = [f"**Stage {number}.** {text}" for number, text in enumerate(texts, 1)]
    return "\n\n".join([*texts, "[training.json](training.json) has all settings."])


def stage_text(stage: dict, frame_rate: float) -> str:
    """Returns a paragraph on one training stage."""
    recipe = stage["recipe"]
    losses = {name.removeprefix("losses."): value for name, value in recipe.items() if name.startswith("losses.")}
    for name, part in PARTS_OF_LOSSES.items():
        if not any(field.startswith(f"{part}.") for field in recipe):
            losses.pop(name, None)
    if not losses.get("waveform"):
        losses.pop("waveform_decay_steps", None)
    weights = ", ".join(
        f"{name} {value:g}" for name, value in losses.items() if isinstance(value, int | float) and value
    )
    crop_seconds = recipe["data.crop_frames"] / frame_rate
    listener = recipe.get("perceptual.model")
    listened = f" The perceptual loss compares hidden states of {listener}." if listener else ""
    config = [f"{name.removeprefix('config.')} {recipe[name]}" for name in recipe if name.startswith("config.")]
    changed = f"Changed in the configuration: {', '.join(config)}. " if config else ""
    return (
        f"{stage['steps']:,} optimiser steps took {time_text(stage['hours'])} on {stage['trained_on']}. "
        f"{changed}{'Only the decoder was trained. ' if recipe.get('freeze_encoder') else ''}"
        f"Each step had {crops_text(stage['batches'])} of {crop_seconds:.2f} s, which are "
        f"{stage['frames'] / frame_rate / 3600:,.0f} hours in all. {augmentation_text(recipe)} "
        f"AdamW with a learning rate of {recipe['optimizer.learning_rate']:g}; "
        f"activations in {PRECISIONS.get(recipe['mixed_precision'], recipe['mixed_precision'])}; "
        f"averaged weights (EMA). Settings of the losses: {weights}.{listened}"
    )


def time_text(hours: float) -> str:
    """Formats hours, or minutes if that is clearer."""
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


def augmentation_text(recipe: dict) -> str:
    """Returns a sentence or two on the augmentation."""
    settings = {name: recipe.get(f"data.augmentation.{name}") for name in AUGMENTATIONS}
    drawn = [AUGMENTATIONS[name].format(value) for name, value in settings.items() if value not in SWITCHED_OFF]
    level = f"Crops are at -20 LUFS, plus or minus {recipe['data.augmentation.level']:g} dB."
    if not drawn:
        return level
    share = recipe.get("data.augmentation.probability", 0.5)
    return f"{level} Each of these changes is made to {share:.0%} of the crops: {', '.join(drawn)}."


# Descriptions of the augmentations, with their settings in the recipe.
AUGMENTATIONS = {
    "speed": "speed by up to {:.0%}",
    "equalization": "timbre by up to {:g} dB",
    "polarity": "polarity",
    "noise": "noise",
    "room": "echo",
}
SWITCHED_OFF = (None, "None", False, 0)


def crops_text(batches: list[dict]) -> str:
    """Returns the number of crops per step as text."""
    *earlier, last = batches
    until = "".join(f"{batch['crops']} crops until step {batch['until_step']:,}, then " for batch in earlier)
    return f"{until}{last['crops']} crops"


PRECISIONS = {"no": "float32", "bf16": "bfloat16", "auto": "bfloat16 or float32, whichever the machine computes faster"}
# Losses that apply only if the recipe has the part that they come from.
PARTS_OF_LOSSES = {
    "adversarial": "discriminator",
    "feature_matching": "discriminator",
    "perceptual": "perceptual",
    "ctc": "ctc",
}


def test_set_table(results: Results) -> str:
    """Returns what the test set is of, source by source, and how that was recorded; empty where nobody knows."""
    credits = yaml.safe_load((TEMPLATES / "sources.yaml").read_text(encoding="utf-8"))
    rows = []
    for name, share in results.data.parts.get("source", {}).items():
        known = credits.get(name, {})
        source = f"[{name}]({known['link']})" if known else name
        speakers = report.number_or_nothing(share.speakers)
        minutes = report.number(share.seconds / 60, 1)
        rows.append([source, f"{share.utterances:,}", minutes, speakers, known.get("recorded", report.NOTHING)])
    return report.table(["source", "utterances", "minutes", "speakers", "recorded"], rows) if rows else ""


def source_rows(data: dict) -> list[dict]:
    """Returns the rows of the table of training data.

    Raises:
        CardError: if a source has no credit.
    """
    credits = yaml.safe_load((TEMPLATES / "sources.yaml").read_text(encoding="utf-8"))
    rows = []
    for source in data["sources"]:
        if source["name"] not in credits:
            raise CardError(f"{TEMPLATES / 'sources.yaml'}: has no credit for {source['name']}; add one")
        shown = {"hours": f"{source['hours']:.2f}", "languages": ", ".join(source["languages"])}
        speakers = {"speakers": str(source["speakers"] or "unknown")}
        rows.append({**source, **shown, **speakers, **credits[source["name"]]})
    return rows


def spread(ours: SystemSummary, results: Results) -> str:
    """Returns a sentence on the differences between groups of utterances; empty if there is one group of each kind."""
    facts = results.metrics.get(STANDING_METRIC)
    parts = []
    for grouping in ("language", "source") if facts else ():
        means = {name: group.metrics[STANDING_METRIC].mean for name, group in ours.groups(grouping).items()}
        ranked = sorted((mean, name) for name, mean in means.items() if mean is not None)
        if len(ranked) > 1:
            low, high = (f"{mean:.{facts.decimals}f} ({name})" for mean, name in (ranked[0], ranked[-1]))
            parts.append(f"from {low} to {high} by {grouping}")
    return f"On the test set, {facts.label} ranges {' and '.join(parts)}." if parts else ""


def origin(training: dict) -> str:
    """Returns a description of the training's start."""
    size = stages(training)[0]["recipe"].get("size", "nano")
    return "trained from scratch" if size in NAMED_SIZES else f"trained further from `{Path(size).name}`"


def cost_text(training: dict) -> str:
    """Returns the time and energy of the training, with the assumptions behind the energy."""
    spent = [(stage["process_hours"], stage.get("watts", WATTS)) for stage in stages(training)]
    parts = " and ".join(f"{time_text(hours)} of a process at an assumed {watts:g} W" for hours, watts in spent)
    energy = sum(hours * watts for hours, watts in spent) / 1000
    return (
        f"{parts}, memory and cooling included, which is {energy:.2g} kWh. The energy was not measured; evaluation and "
        "discarded runs are not included."
    )


def evaluation_results(ours: SystemSummary, results: Results) -> list[EvalResult]:
    """Returns the Hub's metadata for results, one entry per metric of the model's default bottleneck.

    The Hub's newer form, .eval_results, is for benchmarks that are data sets on the Hub. This form also fits other
    data: its dataset type is the way in which the data were read, and its dataset name lists the files.
    """
    sources, utterances = ", ".join(results.data.sources), results.data.scored
    parquet = all(source.endswith(".parquet") for source in results.data.sources)
    return [
        EvalResult(
            task_type="audio-to-audio",
            task_name=f"speech coding at {ours.nominal_bit_rate:.0f} bit/s",
            dataset_type="parquet" if parquet else "audiofolder",
            dataset_name=f"{sources}, {utterances} utterances (not on the Hub)",
            metric_type=name,
            metric_name=results.metrics[name].label,
            metric_value=value.mean,
            metric_args={"bottleneck": ours.bottleneck},
        )
        for name, value in ours.metrics.items()
        if value.mean is not None
    ]
