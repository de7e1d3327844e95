"""`taae convert`: converts a stable-codec checkpoint to a model of this package."""

import argparse
from pathlib import Path

SUMMARY = "convert a stable-codec checkpoint to a model"
EXAMPLES = "  taae convert stable-codec-speech-16k/ taae-speech-16k/"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("source", metavar="SRC", help="folder with model_config.json and the weights")
    parser.add_argument("target", metavar="DST", help="folder to write")


def run(args: argparse.Namespace) -> int:
    """Converts the checkpoint and returns the exit status."""
    from .progress import telling

    with telling(f"converting {args.source}", args.patience):
        from ..hub.convert import convert_checkpoint

        convert_checkpoint(Path(args.source), Path(args.target))
    return 0
