"""`taae reconstruct`: encodes and decodes audio files."""

import argparse
from typing import TYPE_CHECKING

from .encode import INTERRUPTED
from .options import OUTPUT_HELP, add_audio_inputs, add_encoding_options, add_model_options

if TYPE_CHECKING:
    from .jobs import Prepared

SUMMARY = "encode and decode audio, to hear the codec"
EXAMPLES = """\
  taae reconstruct speech.wav -o decoded.wav
  taae reconstruct recordings/ -o decoded/ --bottleneck 4x729_1000bps"""
__all__ = ["EXAMPLES", "INTERRUPTED", "SUMMARY", "add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_model_options(parser)
    add_encoding_options(parser)
    add_audio_inputs(parser)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=OUTPUT_HELP)


def run(args: argparse.Namespace) -> int:
    """Reconstructs the files and returns the exit status."""
    from ..audio_io import AUDIO_SUFFIXES, audio_format
    from ..transcode.files import reconstruct_files
    from .files import plan
    from .jobs import Reader, load_encoder, run_jobs

    jobs = plan(args, AUDIO_SUFFIXES, ".wav")
    for job in jobs:
        audio_format(job.target)

    def prepare() -> "Prepared":
        codec, bottleneck = load_encoder(args)
        return codec, lambda there, on_error: reconstruct_files(codec, there, bottleneck, on_error, reader)

    reader = Reader(args.channel)
    status = run_jobs(args, jobs, "reconstructing", prepare)
    reader.tell()
    return status
