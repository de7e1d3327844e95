"""Compares presets and layouts as tokens of small language models.

TOKENS holds folders PRESET/train and PRESET/validation, made from the same speech with `taae tokenize`. A small
language model is trained on each (see `train.py`), all with the same size and budget. The results are
language_models.json and language_models.md. Finished runs are not repeated.
"""

from dataclasses import dataclass, field
from pathlib import Path

from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.report import NOTHING, number, table
from modeling_taae.files import as_json, read_json, write_bytes
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS
from modeling_taae.speech_vocabulary_taae import LAYOUTS
from training.speech_lm.results import Budget, Result, Settings
from training.speech_lm.train import run

HEADING = (
    "preset",
    "layout",
    "text before speech",
    "bit/s",
    "bit/s with the grammar",
    "nominal bit/s",
    "`.taae` version 2, bit/s",
    "rows of embeddings × width, million",
)


@dataclass
class Comparison:
    """Presets and layouts as tokens of language models of the same size and budget.

    Args:
        tokens: folder of the folders PRESET/train and PRESET/validation.
        output_dir: folder for the runs; an interrupted comparison in it is resumed.
        results: folder for language_models.json and .md, such as that of the codec's results.
        texts: texts for `with_texts`: a column of the corpora, or a Parquet file with columns id and text.
        with_texts: presets that are also trained with text before speech, interleaved.
        codec: folder or name of the codec, to decode samples with.
        samples: the number of samples of each kind.
        budget: size and training.
    """

    tokens: str
    output_dir: str
    results: str
    texts: str | None = None
    with_texts: list[str] = field(default_factory=list)
    codec: str | None = None
    samples: int = 2
    budget: Budget = field(default_factory=Budget)


def combinations(comparison: Comparison) -> list[Settings]:
    """Returns the settings of the runs: each preset with tokens in each distinct layout, then those with texts.

    Raises:
        TaaeInputError: if there are no tokens, or texts are needed and not given.
    """
    folder = Path(comparison.tokens)
    presets = [preset for preset in BOTTLENECK_PRESETS if (folder / preset).is_dir()]
    if missing := set(comparison.with_texts) - set(presets) or ({str(folder)} if not presets else set()):
        raise TaaeInputError(
            f"{', '.join(sorted(map(str, missing)))}: there are no tokens; make folders PRESET/train and "
            f"PRESET/validation in {folder} with `taae tokenize`"
        )
    if comparison.with_texts and comparison.texts is None:
        raise TaaeInputError("--with_texts: where are the texts? Name a column or a Parquet file with --texts")
    wanted: list[tuple[str, str, str | None]] = [
        (preset, layout, None)
        for preset in presets
        for layout in (list(LAYOUTS) if len(BOTTLENECK_PRESETS[preset]) > 1 else list(LAYOUTS)[:1])
    ]
    wanted += [(preset, next(iter(LAYOUTS)), comparison.texts) for preset in comparison.with_texts]
    return [
        Settings(
            train=[str(folder / preset / "train")],
            validation=[str(folder / preset / "validation")],
            output_dir=str(Path(comparison.output_dir) / "-".join([preset, layout] + ["text"] * (texts is not None))),
            bottleneck=preset,
            layout=layout,
            texts=texts,
            codec=comparison.codec,
            samples=comparison.samples,
            budget=comparison.budget,
        )
        for preset, layout, texts in wanted
    ]


def coded_bit_rates(results: Path, codec: str) -> dict[str, float]:
    """Returns the bit rates of entropy-coded tokens by preset, if they were measured for this codec."""
    entropy = read_json(results / "entropy.json")
    if entropy.get("model_identity") != codec:
        return {}
    return {name: sizes["version_2"]["payload"]["bit_rate"] for name, sizes in entropy["bottlenecks"].items()}


def report(runs: list[Result], coded: dict[str, float]) -> str:
    """Returns the results as a page of Markdown."""
    first, rows = runs[0], []
    budget = first.budget
    for each in runs:
        rates = [each.bit_rate.free, each.bit_rate.grammar, each.nominal_bit_rate, coded.get(each.bottleneck)]
        rows.append(
            [
                each.bottleneck,
                each.layout,
                "yes" if each.texts else NOTHING,
                *(number(rate, 0) for rate in rates),
                number(each.parameters.embeddings / 1e6, 1),
            ]
        )
    heard = budget.max_steps * budget.batch_size
    return "\n\n".join(
        [
            "# Language models of speech",
            table(HEADING, rows),
            f"Llamas of {budget.layers} layers × {budget.hidden_size} "
            f"({first.parameters.transformer / 1e6:.1f} million parameters besides the embeddings, which are "
            f"tied), each trained for {budget.max_steps:,} steps of {budget.batch_size} crops of at most "
            f"{budget.crop_frames} frames: the same crops for all rows without text, {heard:,} in all, drawn from "
            f"{first.sequences.train:,}. Tokens of codec `{first.codec}`.",
            "bit/s: minus the base-2 logarithm of the probability of the speech tokens and end markers, over "
            f"{first.bit_rate.seconds:,.0f} s of speech for validation; with the grammar, among the tokens "
            "that it allows. Rows with text leave out clips that are longer or have none"
            + "".join(f" ({each.bit_rate.seconds:,.0f} s remain)" for each in runs if each.texts)
            + ".",
            "`.taae` version 2: payload of entropy-coded files of the test set, where it was measured with this codec.",
        ]
    )


def compare(comparison: Comparison) -> list[Result]:
    """Does the runs that are not finished, writes the results, and returns them.

    Raises:
        TaaeInputError: if a part of it cannot be used.
    """
    runs = [result for settings in combinations(comparison) if (result := run(settings)) is not None]
    results = Path(comparison.results)
    coded = coded_bit_rates(results, runs[0].codec)
    content = [each.to_json() for each in runs]
    summary = {"model_identity": runs[0].codec, "runs": content, "entropy_coded_bit_rates": coded}
    write_bytes(results / "language_models.json", as_json(summary))
    write_bytes(results / "language_models.md", (report(runs, coded) + "\n").encode())
    return runs
