"""Measures the effect of 8-bit weights: `python hub_cards/web/measure.py SPEECH`.

Compares the page's model with the original on recordings: the share of equal tokens, and the intelligibility of the
decoded speech. Writes results/web.json in the model's folder, and the figures in the README of the page and of the
built page.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from build import MODEL, PAGE, load_site
from tqdm import tqdm

from modeling_taae.codec import load_codec
from modeling_taae.data.utterances import Utterances
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.metrics import stoi
from modeling_taae.evaluation.report import between
from modeling_taae.export.export import round_weights
from modeling_taae.files import as_json, write_bytes
from modeling_taae.taae_file import model_identity

README = PAGE / "README.md"
PLACE = ("<!-- measured: written by measure.py -->\n", "<!-- /measured -->")


def measure(model: Path, site: Path, speech: list[str], limit: int | None) -> dict:
    """The content of web.json.

    Args:
        model: folder of the model that the page was built with.
        site: the page, as `build.py` wrote it.
        speech: sources of recordings, as `taae evaluate` takes them.
        limit: number of utterances; None for all.

    Raises:
        TaaeInputError: if there is no such model or page, the page has other weights, or there is no readable speech.
    """
    codec, rounded = load_codec(str(model), device="cpu"), load_site(site)
    rate, bottleneck = codec.model.config.sampling_rate, rounded.metadata["bottleneck"]
    tokens, scores = [], []
    if rounded.metadata["model_identity"] != model_identity(round_weights(codec.model)):
        raise TaaeInputError(f"{site}: was not built with {model}; build it again with hub_cards/web/build.py")
    for utterance in tqdm(Utterances(speech, rate, limit), unit="utterance", disable=None):
        if utterance.audio is None:
            continue
        inputs = codec.extractor(utterance.audio, sampling_rate=rate, return_tensors="np")
        heard = inputs["input_values"][0, 0, : len(utterance.audio)]
        encoded, codes = codec.encode(utterance.audio, bottleneck), rounded.encode(**inputs).audio_codes
        tokens.append((encoded.audio_codes == codes[0]).ravel())
        decoded = rounded.decode(codes)[0, 0, : len(heard)]
        scores.append((stoi(heard, codec.decode(encoded)), stoi(heard, decoded)))
    if not scores:
        raise TaaeInputError(f"{', '.join(speech)}: holds no speech that can be read")
    same = np.concatenate(tokens)
    before, after = np.nanmean(scores, axis=0)
    return {
        "model_identity": codec.identity,
        "rounded_identity": rounded.metadata["model_identity"],
        "speech": [Path(source).name for source in speech],
        "utterances": len(scores),
        "tokens": same.size,
        "equal_tokens": float(same.mean()),
        "stoi": {"float32": float(before), "rounded": float(after)},
    }


def sentence(results: dict) -> str:
    """The results in words."""
    stoi = results["stoi"]
    return (
        f"{results['equal_tokens']:.1%} of its {results['tokens']:,} tokens of {results['utterances']} utterances are "
        "those of the model in float32\n"
        f"(identity {results['model_identity']}, rounded {results['rounded_identity']});\n"
        f"mean STOI is {stoi['float32']:.3f} in float32 and {stoi['rounded']:.3f} with weights of 8 bits."
    )


def main(arguments: list[str] | None = None, readme: Path = README) -> int:
    """Measures, writes and returns the exit status: 2 for an error.

    Args:
        arguments: command line; None takes that of the process.
        readme: README of the page.
    """
    parser = argparse.ArgumentParser(prog="measure.py", description=__doc__.splitlines()[0])
    parser.add_argument("speech", nargs="+", metavar="SPEECH", help="Parquet files or audio")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of a model (default: %(default)s)")
    parser.add_argument(
        "--site", type=Path, default=PAGE / "dist", help="the page built with it (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="measure only the first N utterances")
    options = parser.parse_args(arguments)
    try:
        results = measure(options.model, options.site, options.speech, options.limit)
    except TaaeInputError as error:
        print(f"measure.py: error: {error}", file=sys.stderr)
        return 2
    write_bytes(options.model / "results" / "web.json", as_json(results))
    for text in (readme, options.site / README.name):
        write_bytes(text, between(PLACE, text, sentence(results)).encode())
    print(sentence(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
