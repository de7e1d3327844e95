"""Turns a trained model into the folder that is published: `python training/publish.py runs/nano/model DESTINATION`.

Weights are stored in bfloat16, half the size; the config says float32, which is what they are loaded as. With
`--demo speech.wav`, the folder also gets `demo.taae`, that recording in the model's own tokens; `--demo FILE ID` takes
the utterance with this id from Parquet. `make release` begins with this, and goes on with all that hangs on the
weights.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from modeling_taae.codec import load_codec
from modeling_taae.data.utterances import Utterances
from modeling_taae.entropy.prior import PRIOR_FILE, find_prior
from modeling_taae.errors import TaaeInputError
from training.ctc import CTCHead
from training.discriminator import MultiResolutionDiscriminator


def publish(source: Path, destination: Path, demo: Sequence[str] = ()) -> None:
    """Writes config, code, preprocessor config, bfloat16 weights and, from a recording, a demo to a folder.

    A discriminator and a CTC head that were trained beside the model come along: others need them to fine-tune.

    Args:
        source: folder of a trained model.
        destination: folder to write; what else it holds stays, but for a prior for entropy coding of other weights.
        demo: a recording to encode into `demo.taae`: a file and, where that is Parquet, the utterance's id.

    Raises:
        OSError: if the model cannot be read, or the folder cannot be written.
        TaaeInputError: if there is no such recording.
    """
    model = TaaeModel.from_pretrained(source)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in model.fused_state_dict().items()}
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=destination.parent) as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder, state_dict=half)
        TaaeFeatureExtractor.from_pretrained(source).save_pretrained(folder)
        for kind in (MultiResolutionDiscriminator, CTCHead):
            if (companion := kind.from_pretrained(source)) is not None:
                companion.save_pretrained(folder)
        codec = load_codec(str(folder), device="cpu")
        if demo:
            codec.encode(read_utterance(*demo, sampling_rate=model.config.sampling_rate)).save(folder / "demo.taae")
        prior = find_prior(destination)
        if prior is not None and prior.model_identity not in codec.ancestors:
            (destination / PRIOR_FILE).unlink()
        for file in folder.iterdir():
            file.replace(destination / file.name)


def read_utterance(source: str, name: str | None = None, *, sampling_rate: int) -> np.ndarray:
    """(samples,) float32 of a recording, or of the utterance with this id among several.

    Raises:
        TaaeInputError: if there is none.
    """
    for utterance in Utterances([source], sampling_rate):
        if name in (None, utterance.id) and utterance.audio is not None:
            return utterance.audio
    raise TaaeInputError(f"{source}: holds no utterance {name or ''} that can be heard; check --demo")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a trained model, such as runs/nano/model")
    parser.add_argument("destination", type=Path, help="folder to publish, such as hub_cards/taae-speech-16k-nano")
    parser.add_argument(
        "--demo", nargs="+", default=(), metavar=("FILE", "ID"), help="a recording to encode into demo.taae"
    )
    options = parser.parse_args()
    if len(options.demo) > 2:
        parser.error(f"--demo takes a file and perhaps an id, not {len(options.demo)} values; put a pattern in quotes")
    try:
        publish(options.source, options.destination, options.demo)
    except (TaaeInputError, OSError) as error:
        sys.exit(f"publish.py: error: {error}")


if __name__ == "__main__":
    main()
