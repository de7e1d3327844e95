"""Draws the pictures of a model card: `python hub_cards/cards/make_pictures.py FOLDER [--speech SOURCE]`.

curves.png is drawn from the folder's curves.csv and training.json, quality.png from results/judged, rates.png from
results/presets, and spectrogram.png, with `--speech`, from a recording and its reconstruction. For a published model,
docs/quality.png is drawn too, from the results of all published models.
"""

import argparse
import json
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's hub_cards/ is not installed

from hub_cards.cards.card_sections import JUDGED, PRESETS, QUALITY_PICTURE, RATE_PICTURE, Curves, read_curves
from hub_cards.cards.make_provenance import stages
from hub_cards.demo import draw, save_picture
from modeling_taae.codec import load_codec
from modeling_taae.data.utterances import Utterances
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.charts import draw_rates, questions
from modeling_taae.evaluation.results import Results

# Panels of curves.png: a title, and the columns of its curves. A panel without curves is left out.
PANELS = {
    "log-mel loss": {"train/log_mel": "training", "validation/log_mel": "validation"},
    "magnitude loss": {"train/magnitude": "training", "validation/magnitude": "validation"},
    "STOI": {"validation/stoi": "validation"},
    "PESQ": {"validation/pesq_wb": "wide-band", "validation/pesq_nb": "narrow-band"},
}
HUB_CARDS = Path(__file__).resolve().parents[1]
PICTURE_OF_ALL = HUB_CARDS.parent / "docs" / QUALITY_PICTURE
# Number of points to which a training curve is averaged.
SMOOTH_POINTS = 200


def averaged(curve: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """A curve averaged to at most `SMOOTH_POINTS` points, each the mean of neighbours."""
    size = -(-len(curve) // SMOOTH_POINTS) or 1
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]


def draw_curves(curves: Curves, target: Path, training: dict) -> None:
    """Draws the panels that have curves, side by side, into a PNG that names the trained model.

    Args:
        curves: steps and values, by name.
        target: path of the picture.
        training: content of training.json; a line is drawn between its stages.
    """
    from matplotlib.figure import Figure

    panels = {title: {n: label for n, label in names.items() if curves.get(n)} for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        raise TaaeInputError(f"there is no curve to draw; expected a column such as {next(iter(PANELS.values()))}")
    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name, label in names.items():
            axis.plot(*zip(*averaged(curves[name]), strict=True), label=label, linewidth=1)
        for end in accumulate(stage["steps"] for stage in stages(training)[:-1]):
            axis.axvline(end, color="0.7", linewidth=1, linestyle=":")
        axis.set(title=title, xlabel="step")
        if len(names) > 1:
            axis.legend()
    save_picture(figure, target, training["model_identity"])


def draw_rate_picture(results: Results, target: Path) -> None:
    """Draws the metrics against the nominal bit rate: intelligibility, naturalness and voice if present, else all.

    Args:
        results: results of models and of other codecs.
        target: path of the picture.
    """
    asked = questions(results)
    names, titles = (list(asked), list(asked.values())) if len(asked) > 1 else (list(results.metrics), [])
    identities = " ".join(sorted(results.model_identities))
    save_picture(draw_rates(results, names, titles), target, identities)


def published_results() -> Results:
    """Returns the results of all published models together, with the other codecs of the first model's results."""
    every = [Results.read(path) for path in sorted(HUB_CARDS.glob(f"taae-*/{JUDGED}/results.json"))]
    models = [system for results in every for system in results.systems if system.kind == "TAAE"]
    return replace(every[0], systems=models + [system for system in every[0].systems if system.kind != "TAAE"])


def draw_spectrogram(folder: Path, speech: list[str], name: str | None) -> None:
    """Draws an utterance before and after the codec: the one with the given id, or the first usable one.

    Raises:
        TaaeInputError: if there is no such utterance.
    """
    codec = load_codec(str(folder), device="cpu")
    rate = codec.model.config.sampling_rate
    for utterance in Utterances(speech, rate):
        if utterance.audio is not None and name in (None, utterance.id):
            break
    else:
        raise TaaeInputError(f"{' '.join(speech)}: holds no utterance {name or 'that can be used'}")
    inputs = codec.extractor(utterance.audio, sampling_rate=rate)
    heard = inputs["input_values"][0, 0, : len(utterance.audio)].numpy()
    encoded = codec.encode(utterance.audio)
    decoded = codec.decode(encoded)
    titles = (f"{utterance.id}", f"the same at {encoded.bit_rate:.0f} bit/s")
    draw(folder / "spectrogram.png", dict(zip(titles, (heard, decoded), strict=True)), rate, codec.identity)


def main(arguments: list[str] | None = None) -> int:
    """Draws the pictures that have data, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make_pictures.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("--speech", nargs="+", metavar="SOURCE", help="Parquet files or audio for spectrogram.png")
    parser.add_argument("--id", help="id of the utterance (default: the first)")
    options = parser.parse_args(arguments)
    try:
        if (curves := options.folder / "curves.csv").is_file():
            training = json.loads((options.folder / "training.json").read_text(encoding="utf-8"))
            draw_curves(read_curves(curves), options.folder / "curves.png", training)
        for name, picture in ((JUDGED, QUALITY_PICTURE), (PRESETS, RATE_PICTURE)):
            if (results := options.folder / name / "results.json").is_file():
                draw_rate_picture(Results.read(results), options.folder / picture)
        if HUB_CARDS in options.folder.resolve().parents and (options.folder / JUDGED).is_dir():
            draw_rate_picture(published_results(), PICTURE_OF_ALL)
        if options.speech:
            draw_spectrogram(options.folder, options.speech, options.id)
    except TaaeInputError as error:
        print(f"make_pictures.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
