"""Measures what 8-bit weights change: `python hub_cards/web/measure.py SPEECH`.

The page's model is compared with the one that it was made of, on recordings: how many tokens are the same, and how
intelligible what either decodes is.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from build import MODEL, PAGE
from tqdm import tqdm

from modeling_taae.audio_io import TaaeInputError
from modeling_taae.codec import load_codec
from modeling_taae.exported_codec import ExportedCodec
from modeling_taae.metrics import stoi
from modeling_taae.utterances import Utterances


def measure(model: Path, site: Path, speech: list[str]) -> str:
    """A sentence with the figures.

    Args:
        model: folder of the model that the page was built with.
        site: the page, as `build.py` wrote it.
        speech: sources of recordings, as `taae evaluate` takes them.
    """
    codec, rounded = load_codec(str(model), device="cpu"), ExportedCodec.load(site)
    rate, bottleneck = codec.model.config.sampling_rate, rounded.metadata["bottleneck"]
    tokens, scores = [], []
    for utterance in tqdm(Utterances(speech, rate), unit="utterance", disable=None):
        if utterance.audio is None:
            continue
        inputs = codec.extractor(utterance.audio, sampling_rate=rate, return_tensors="np")
        heard = inputs["input_values"][0, 0, : len(utterance.audio)]
        encoded, codes = codec.encode(utterance.audio, bottleneck), rounded.encode(**inputs).audio_codes
        tokens.append((encoded.audio_codes == codes[0]).ravel())
        decoded = rounded.decode(codes)[0, 0, : len(heard)]
        scores.append((stoi(heard, codec.decode(encoded)), stoi(heard, decoded)))
    same = np.concatenate(tokens)
    before, after = np.nanmean(scores, axis=0)
    return (
        f"{same.mean():.1%} of {same.size:,} tokens, of {len(scores)} utterances, are those of model {codec.identity} "
        f"in float32. Mean STOI is {before:.3f} in float32 and {after:.3f} with 8-bit weights "
        f"({rounded.metadata['model_identity']})."
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the figures and returns the exit status."""
    parser = argparse.ArgumentParser(prog="measure.py", description=__doc__.splitlines()[0])
    parser.add_argument("speech", nargs="+", metavar="SPEECH", help="Parquet files or audio")
    parser.add_argument("--model", type=Path, default=MODEL, help="a model's folder (default: %(default)s)")
    parser.add_argument(
        "--site", type=Path, default=PAGE / "dist", help="the page built with it (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        print(measure(options.model, options.site, options.speech))
    except TaaeInputError as error:
        print(f"measure.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
