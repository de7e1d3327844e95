"""Turns a trained model into the folder that is published: `python training/publish.py runs/nano/model DESTINATION`.

Weights are stored in bfloat16, half the size; the config says float32, which is what they are loaded as. With
`--demo speech.wav`, the folder also gets `demo.taae`, that recording in the model's own tokens.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from modeling_taae.audio_io import TaaeInputError, read_audio
from modeling_taae.codec import load_codec
from training.ctc import CTCHead
from training.discriminator import MultiResolutionDiscriminator


def publish(source: Path, destination: Path, demo: Path | None = None) -> None:
    """Writes config, code, preprocessor config, bfloat16 weights and, from a recording, a demo to a folder.

    A discriminator and a CTC head that were trained beside the model come along: others need them to fine-tune.

    Args:
        source: folder of a trained model.
        destination: folder to write; what else it holds stays.
        demo: audio to encode into `demo.taae`.
    """
    model = TaaeModel.from_pretrained(source, dtype=torch.float32)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in model.fused_state_dict().items()}
    model.save_pretrained(destination, state_dict=half)
    TaaeFeatureExtractor.from_pretrained(source).save_pretrained(destination)
    for kind in (MultiResolutionDiscriminator, CTCHead):
        if (companion := kind.from_pretrained(source)) is not None:
            companion.save_pretrained(destination)
    if demo is not None:
        codec = load_codec(str(destination), device="cpu")
        codec.encode(read_audio(demo, model.config.sampling_rate)).save(destination / "demo.taae")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a trained model, such as runs/nano/model")
    parser.add_argument("destination", type=Path, help="folder to publish, such as hub_cards/taae-speech-16k-nano")
    parser.add_argument("--demo", type=Path, help="a recording to encode into demo.taae")
    options = parser.parse_args()
    try:
        publish(options.source, options.destination, options.demo)
    except (TaaeInputError, OSError) as error:
        sys.exit(f"publish.py: error: {error}")


if __name__ == "__main__":
    main()
