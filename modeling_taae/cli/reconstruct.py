"""`taae reconstruct`: encodes and decodes audio files."""

import argparse
from typing import TYPE_CHECKING, Any

from . import encode
from .options import OUTPUT_HELP, add_audio_inputs, add_encoding_options, add_model_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..transcode.job import Job

SUMMARY = "encode and decode audio, to hear the codec"
EXAMPLES = """\
  taae reconstruct speech.wav -o decoded.wav
  taae reconstruct recordings/ -o decoded/ --bottleneck 4x729_1000bps"""
INTERRUPTED = encode.INTERRUPTED


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_model_options(parser)
    add_encoding_options(parser)
    add_audio_inputs(parser)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=OUTPUT_HELP)


def run(args: argparse.Namespace) -> int:
    """Reconstructs the files and returns the exit status."""
    from ..audio_io import AUDIO_SUFFIXES, audio_format
    from .files import plan
    from .jobs import run_encoder

    jobs = plan(args, AUDIO_SUFFIXES, ".wav")
    for job in jobs:
        audio_format(job.target)

    def work(*arguments: Any) -> "Iterable[Job]":
        from ..transcode.files import reconstruct_files

        return reconstruct_files(*arguments)

    return run_encoder(args, jobs, "reconstructing", work)
