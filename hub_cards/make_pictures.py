"""Draws the pictures of a model card: `python hub_cards/make_pictures.py FOLDER [--speech SOURCE]`.

curves.png is drawn from the folder's curves.csv; with `--speech`, spectrogram.png from a recording and what the model
makes of it.
"""

import argparse
import csv
import sys
from pathlib import Path

from demo import draw

from modeling_taae.audio_io import TaaeInputError
from modeling_taae.codec import load_codec
from modeling_taae.utterances import Utterances

# Panels of curves.png: a title, and the curves in it by the name of their column. A panel without curves is left out.
PANELS = {
    "log-mel loss": {"train/log_mel": "training", "validation/log_mel": "validation"},
    "magnitude loss": {"train/magnitude": "training", "validation/magnitude": "validation"},
    "STOI": {"validation/stoi": "validation"},
    "PESQ": {"validation/pesq_wb": "wide-band", "validation/pesq_nb": "narrow-band"},
}
# Points of a training curve are averaged, this many of them in all.
SMOOTH_POINTS = 200


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in a CSV file by the name of their column: steps and values."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    return {name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in names}


def averaged(curve: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """A curve with no more than `SMOOTH_POINTS` points, each the mean of those it stands for."""
    size = -(-len(curve) // SMOOTH_POINTS) or 1
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]


def draw_curves(curves: dict[str, list[tuple[int, float]]], target: Path) -> None:
    """Draws the panels that there are curves for, side by side."""
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
        axis.set(title=title, xlabel="step")
        if len(names) > 1:
            axis.legend()
    figure.savefig(target, dpi=120)


def draw_spectrogram(folder: Path, speech: list[str], name: str | None) -> None:
    """Draws an utterance before and after the codec: the one of that id, or the first that can be used.

    Raises:
        TaaeInputError: if there is none.
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
    draw(folder / "spectrogram.png", dict(zip(titles, (heard, decoded), strict=True)), rate)


def main(arguments: list[str] | None = None) -> int:
    """Draws what there is data for, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make_pictures.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("--speech", nargs="+", metavar="SOURCE", help="Parquet files or audio for spectrogram.png")
    parser.add_argument("--id", help="which utterance of it (default: the first)")
    options = parser.parse_args(arguments)
    try:
        if (curves := options.folder / "curves.csv").is_file():
            draw_curves(read_curves(curves), options.folder / "curves.png")
        if options.speech:
            draw_spectrogram(options.folder, options.speech, options.id)
    except TaaeInputError as error:
        print(f"make_pictures.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
