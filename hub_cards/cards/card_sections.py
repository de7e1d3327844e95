"""Sections of a model card from further results in the model's folder: one text each, empty without results.

They show judgements of networks (`make judged`), the quality of every preset against its bit rate (`make presets`),
stress tests (`make protocols`), probes of the tokens (`make probes`), and overfitting, from the training curves
(`make provenance`).
"""

import csv
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation import report
from modeling_taae.evaluation.conditions import PLAIN
from modeling_taae.evaluation.metrics import ALL_METRICS
from modeling_taae.evaluation.results import Group, Mean, MetricFacts, Results, SystemSummary

JUDGED, PRESETS, PROBES = "results/judged", "results/presets", "results/probes.json"
QUALITY_PICTURE, RATE_PICTURE = "quality.png", "rates.png"
# Where trials are, and what their utterances as they are are called in the one table of all.
TRIALS = {
    "results/robustness": PLAIN,
    "results/transmission": PLAIN,
    "results/multilingual": "{languages} languages, {unheard} not in training",
}
TRIAL_METRICS = ("pesq_wb", "stoi")
LANGUAGES = "results/languages"
RANKED_LANGUAGES = 5  # named at either end of the ranking
JUDGED_METRICS = ("dwer", "wer", "speaker_similarity", "distillmos", "dnsmos_p808", "stoi", "pesq_wb")
MUSIC, MUSIC_METRIC = "music", "mel_distance"
FEATURES = ("tokens", "log-mel")
NO_MEAN = Mean(None)
GENDERS = {"f": "female", "m": "male"}
# Below this share of the loss, the gap between validation and training speech does not count as overfitting.
SMALL_GAP = 0.02
VALIDATION_METRICS = ("pesq_wb", "stoi", "mel_distance")

Curves = dict[str, list[tuple[int, float]]]  # steps and values, by name


class CardError(ValueError):
    """A card that cannot be made, because something it needs is missing or of another model."""


def read_json(path: Path, remedy: str) -> dict:
    """Returns a JSON file's content.

    Raises:
        CardError: if there is no such file.
    """
    if not path.is_file():
        raise CardError(f"{path}: is missing; {remedy}")
    return json.loads(path.read_text(encoding="utf-8"))


def read_results(path: Path, identity: str, remedy: str) -> Results:
    """Reads the results of a model's evaluation.

    Args:
        path: the file.
        identity: the model's identity.
        remedy: the way to make the file.

    Raises:
        CardError: if there is no such file, or it belongs to other weights.
    """
    if not path.is_file():
        raise CardError(f"{path}: is missing; {remedy}")
    try:
        results = Results.read(path)
    except TaaeInputError as error:
        raise CardError(f"{error}; {remedy}") from error
    check_identity(path, results.model_identities, identity, remedy)
    return results


def check_identity(path: Path, found: set[str], identity: str, remedy: str) -> None:
    """Checks that a file belongs to a model's weights; `remedy` is the way to make it.

    Raises:
        CardError: if it belongs to others.
    """
    if found != {identity}:
        raise CardError(f"{path}: holds results of other weights than those of the model ({identity}); {remedy}")


def judged_section(folder: Path, identity: str) -> str:
    """Returns words, naturalness and voices judged by networks, beside neural codecs; empty without results."""
    if not (folder / JUDGED / "results.json").is_file():
        return ""
    results = read_results(folder / JUDGED / "results.json", identity, "run `make judged`")
    picture = "![Words, naturalness and voice against bit rate, for this model and other codecs]"
    shown = [name for name in JUDGED_METRICS if name in results.metrics]
    return "\n\n".join(
        [
            f"{results.data.scored} utterances of {code(results.data.sources)}, judged by networks:",
            report.quality_table(results, shown),
            f"{report.footnote(results)} More is in [{JUDGED}/report.md]({JUDGED}/report.md).",
            *([f"{picture}({QUALITY_PICTURE})"] if (folder / QUALITY_PICTURE).is_file() else []),
        ]
    )


def preset_section(folder: Path, identity: str) -> str:
    """Returns quality against bit rate for every preset and for other codecs; empty without results."""
    if not (folder / PRESETS / "results.json").is_file():
        return ""
    results = read_results(folder / PRESETS / "results.json", identity, "run `make presets`")
    picture = f"![Quality against bit rate, for this model and other codecs]({RATE_PICTURE})\n\n"
    text = (
        "The presets of this one checkpoint, further stages (levels of each dimension @ scale) and other codecs, on "
        f"the first {results.data.scored} utterances of {code(results.data.sources)}, with "
        f"{100 * results.intervals.level:g} % intervals. {same_audio(results)} The figures are in "
        f"[{PRESETS}/report.md]({PRESETS}/report.md)."
    )
    return (picture if (folder / RATE_PICTURE).is_file() else "") + text


def code(names: Iterable[str]) -> str:
    """Returns names, such as those of files, each as code."""
    return ", ".join(f"`{name}`" for name in names)


def same_audio(results: Results) -> str:
    """Returns a sentence on stages that decode to the same audio, judged by their figures; empty if none do."""
    groups = defaultdict(list)
    for system in results.systems:
        if system.kind == "TAAE":
            groups[repr(system.metrics)].append(f"`{system.bottleneck}`")
    return " ".join(
        f"{', '.join(names[:-1])} and {names[-1]} give the same audio, in other vocabularies."
        for names in groups.values()
        if len(names) > 1
    )


def trial_section(folder: Path, identity: str, bottleneck: str, languages: Collection[str]) -> str:
    """Returns the scores of the model and of other codecs under harder conditions; empty without results.

    Args:
        folder: the model's folder.
        identity: the identity of its weights.
        bottleneck: its default bottleneck, which is shown.
        languages: the languages that it was trained on.

    Raises:
        CardError: if results belong to other weights.
    """
    results = {
        name: read_results(folder / name / "results.json", identity, "run `make protocols`")
        for name in TRIALS
        if (folder / name / "results.json").is_file()
    }
    if not results:
        return ""
    rows: dict[str, dict[str, dict[str, Mean]]] = defaultdict(dict)
    first = next(iter(results.values()))
    origins = [f"{what} is from {code(sources)}" for what, sources in first.data.added.items()]
    for name, result in results.items():
        spoken = result.systems[0].groups("language").keys()
        plain = TRIALS[name].format(languages=len(spoken), unheard=len(spoken - set(languages)))
        for trial, codec, means in trials(result, bottleneck, plain):
            rows[trial][codec] = means
        if result.data.sources != first.data.sources:
            origins.append(f'"{plain}" is {code(result.data.sources)}')
    links = ", ".join(f"[{name}/report.md]({name}/report.md)" for name in results)
    return "\n\n".join(
        [
            f"The first {first.data.scored} utterances of {code(first.data.sources)}, with noise or "
            "reverberation added, with frames lost, or joined to other lengths. The reference is the codec's input, "
            "noise and reverberation included, so the figures show only the loss by coding. A lost frame is replaced "
            "by the one before it."
            f"{''.join(f' {origin[0].upper()}{origin[1:]}.' for origin in origins)}{music_text(rows, first)}",
            trial_table({trial: row for trial, row in rows.items() if trial != MUSIC}, first.metrics),
            f"Means; intervals and further tables are in {links}.",
        ]
    )


def trials(results: Results, bottleneck: str, plain: str) -> list[tuple[str, str, dict[str, Mean]]]:
    """Returns the stress tests of an evaluation: name, codec, and means of the metrics.

    Args:
        results: the results.
        bottleneck: the model's bottleneck that is shown.
        plain: the name for unchanged utterances.
    """
    found = []
    for system in results.systems:
        if system.bottleneck not in (None, bottleneck):
            continue
        codec = "this model" if system.bottleneck else system.facts.get("codec", system.name)
        conditions = {name: group.metrics for name, group in system.groups("condition").items()}
        trial = system.facts.get("trial", plain)
        found += [(name, codec, means) for name, means in (conditions or {trial: system.metrics}).items()]
    return found


def trial_table(rows: dict[str, dict[str, dict[str, Mean]]], facts: dict[str, MetricFacts]) -> str:
    """Returns tables of stress tests and codecs, one for each of a few metrics.

    Args:
        rows: means of metrics by trial and codec.
        facts: the metrics' facts.
    """
    codecs = list(dict.fromkeys(codec for row in rows.values() for codec in row))
    cells = [(name, codec) for name in TRIAL_METRICS if name in facts for codec in codecs]
    lines = []
    for trial, row in rows.items():
        clips = max(means[name].n for means in row.values() for name in means)
        means = [(name, row.get(codec, {}).get(name, NO_MEAN)) for name, codec in cells]
        lines.append([trial, str(clips), *(report.figure(mean, facts[name], False) for name, mean in means)])
    heading = [f"{report.metric_heading(facts[name])} {codec}" for name, codec in cells]
    return report.table(["trial", "clips", *heading], lines)


def music_text(rows: dict[str, dict[str, dict[str, Mean]]], results: Results) -> str:
    """Returns a sentence on music; empty if it was not tested."""
    if MUSIC not in rows or MUSIC_METRIC not in results.metrics:
        return ""
    facts = results.metrics[MUSIC_METRIC]
    music, speech = (
        report.figure(next(iter(rows[trial].values()))[MUSIC_METRIC], facts, False) for trial in (MUSIC, PLAIN)
    )
    return f" A few chords of music end up at a {facts.label} of {music}, where speech as recorded is at {speech}."


def language_section(folder: Path, identity: str, trained: Collection[str]) -> str:
    """Returns the scores in many languages, those of the training data apart; empty without results.

    Args:
        folder: the model's folder.
        identity: the identity of its weights.
        trained: the languages that it was trained on.

    Raises:
        CardError: if the results belong to other weights.
    """
    if not (folder / LANGUAGES / "results.json").is_file():
        return ""
    results = read_results(folder / LANGUAGES / "results.json", identity, "run `make languages`")
    ours = results.systems[0].groups("language")
    heard = [language for language in ours if language in trained]
    groups = {
        "all": list(ours),
        "in the training data": heard,
        "not in the training data": [language for language in ours if language not in heard],
        "English": [language for language in ours if language == "en"],
    }
    rows = [language_row(name, chosen, results) for name, chosen in groups.items() if chosen]
    cells = [(facts, system) for facts in results.metrics.values() for system in results.systems]
    heading = [
        f"{report.metric_heading(facts)} {'this model' if system.kind == 'TAAE' else system.name}"
        for facts, system in cells
    ]
    return "\n\n".join(
        [
            f"{results.data.scored} clips in {len(ours)} languages, from {code(results.data.sources)}. No model here "
            "was trained on their speakers. Each figure is a mean over languages, however many clips they have.",
            report.table(["languages", "number", "clips", *heading], rows),
            f"[{LANGUAGES}/report.md]({LANGUAGES}/report.md) has every language. {ranking_text(ours, results)}".strip(),
        ]
    )


def language_row(name: str, chosen: list[str], results: Results) -> list[str]:
    """Returns the row of some languages: their number, their clips, and each metric of each codec."""
    clips = sum(results.systems[0].groups("language")[language].utterances for language in chosen)
    row = [name, str(len(chosen)), str(clips)]
    for metric, facts in results.metrics.items():
        for system in results.systems:
            means = [system.groups("language")[language].metrics[metric].mean for language in chosen]
            known = [mean for mean in means if mean is not None]
            row.append(report.figure(Mean(sum(known) / len(known)) if known else NO_MEAN, facts, False))
    return row


def ranking_text(groups: Mapping[str, Group], results: Results) -> str:
    """Returns a sentence with the languages of the lowest and of the highest STOI; empty if it was not measured."""
    facts = results.metrics.get("stoi")
    known = [(each.metrics["stoi"].mean, name) for name, each in groups.items()] if facts else []
    ranked = sorted((mean, name) for mean, name in known if mean is not None)
    if len(ranked) <= 2 * RANKED_LANGUAGES:
        return ""
    ends = ranked[:RANKED_LANGUAGES], ranked[::-1][:RANKED_LANGUAGES]
    low, high = (", ".join(f"{name} ({mean:.3f})" for mean, name in end) for end in ends)
    return f"STOI of this model is lowest for {low}, and highest for {high}."


def probe_section(folder: Path, identity: str) -> str:
    """Returns the section on probes of the tokens; empty without results."""
    if not (folder / PROBES).is_file():
        return ""
    results = read_json(folder / PROBES, "run `make probes`")
    check_identity(folder / PROBES, {results.get("model_identity")}, identity, "run `make probes`")
    rows = []
    for fact in ("language", "gender", "speaker"):
        if fact in results:
            found = results[fact]
            counts = [str(found["tokens"][name]) for name in ("classes", "utterances")]
            values = [found[kind]["balanced_accuracy"] for kind in FEATURES]
            rows.append([f"{fact}, accuracy ↑", *counts, *map(percent, [*values, 1 / found["tokens"]["classes"]])])
    if "phonemes" in results:
        found = results["phonemes"]
        values = [found[kind]["phoneme_error_rate"] for kind in FEATURES]
        counts = ["–", str(found["tokens"]["utterances"])]
        rows.append(["phonemes, error rate ↓", *counts, *map(percent, [*values, found["tokens"]["chance"]])])
    return "\n\n".join(
        [
            f"Predictions of small models from the tokens of `{results['bottleneck']}`, and from log-mel spectra of "
            f"the same frames, for the speech in {code(results['speech'])}:",
            report.table(["what", "classes", "utterances", "tokens", "log-mel", "chance"], rows),
            probe_notes(results),
        ]
    )


def probe_notes(results: dict) -> str:
    """Returns notes on the method of the probes."""
    notes = [
        "Accuracy is the mean over classes, of logistic regression on means and deviations over an utterance, in five "
        "folds; except for predicting speakers, no speaker is in two folds.",
    ]
    if "language" in results:
        labels = ", ".join(results["language"]["labels"])
        notes.append(f"The languages are {labels}; their recordings differ in more than the language.")
    if "phonemes" in results:
        found = results["phonemes"]
        notes.append(
            f"Phonemes come from two convolutions trained with CTC on {found['trained_on']:,} utterances of "
            f"{found['source']}, of other speakers; a guess repeats the most frequent phoneme."
        )
    return " ".join([*notes, "Larger models may find more."])


def percent(share: float) -> str:
    """Formats a share in per cent."""
    return f"{100 * share:.0f} %"


def gender_text(ours: SystemSummary, results: Results) -> str:
    """Returns a sentence on the model's quality by the speakers' gender; empty if the data do not give it.

    Args:
        ours: the results at the model's own bottleneck.
        results: the results.
    """
    groups = ours.groups("gender")
    shown = {name: results.metrics[name] for name in TRIAL_METRICS if name in results.metrics}
    if len(groups) < 2 or not shown:
        return ""
    parts = []
    for name, group in groups.items():
        means = ((facts.label, report.figure(group.metrics[metric], facts)) for metric, facts in shown.items())
        figures = ", ".join(f"{label} {figure}" for label, figure in means)
        parts.append(f"{figures} for {group.utterances} of {GENDERS.get(name, name)} speakers")
    return f"For the utterances whose speaker's gender is known: {'; '.join(parts)}."


def read_curves(path: Path) -> Curves:
    """Reads the curves in a CSV file, by the name of their column; none if there is no such file."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    return {name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in names}


def gap_text(curves: Curves) -> str:
    """Returns a comparison of the losses on training and on validation speech; empty without such curves."""
    if not curves.get("validation/gap"):
        return ""
    loss, gap = (curves[f"validation/{name}"][-1][1] for name in ("loss", "gap"))
    text = f"Final loss: {loss:.2f} on validation speech, {loss - gap:.2f} on training speech."
    if gap < SMALL_GAP * loss:
        return f"{text} The model does not overfit: training time and size limit it, not the amount of speech."
    return f"{text} The model is starting to overfit: more speech would help it."


def score_text(curves: Curves, start: int, end: int) -> str:
    """Returns a sentence with the last scores on validation speech between two steps; empty if there are none."""
    scores = []
    for name in VALIDATION_METRICS:
        values = [value for step, value in curves.get(f"validation/{name}", []) if start < step <= end]
        if values:
            metric = ALL_METRICS[name]
            scores.append(f"{metric.label} {values[-1]:.{metric.decimals}f}")
    return f" At its end, on validation speech: {', '.join(scores)}." if scores else ""
