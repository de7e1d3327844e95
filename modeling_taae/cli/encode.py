"""`taae encode`: encodes audio files to `.taae` files."""

import argparse
from typing import TYPE_CHECKING, Any

from .options import OUTPUT_HELP, add_audio_inputs, add_encoding_options, add_model_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..transcode.job import Job

SUMMARY = "turn audio into .taae files"
EXAMPLES = """\
  taae encode speech.wav                                  writes speech.taae
  taae encode speech.mp3 -o small.taae --bottleneck 2x15625_700bps
  taae encode a.wav b.flac recordings/ -o encoded/        keeps the folders below recordings/"""
INTERRUPTED = "existing files are complete; the same command with --skip-existing makes the others"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_model_options(parser)
    add_encoding_options(parser)
    add_audio_inputs(parser)
    parser.add_argument("-o", "--output", metavar="OUT", help=f"{OUTPUT_HELP} (default: beside each input)")


def run(args: argparse.Namespace) -> int:
    """Encodes the files and returns the exit status."""
    from ..audio_io import AUDIO_SUFFIXES
    from ..errors import TaaeInputError
    from .files import plan
    from .jobs import run_encoder

    jobs = plan(args, AUDIO_SUFFIXES, ".taae")
    for job in jobs:
        if job.target.suffix.lower() in AUDIO_SUFFIXES:
            raise TaaeInputError(f"{job.target}: is a name for audio; expected one that ends in .taae; change -o")

    def work(*arguments: Any) -> "Iterable[Job]":
        from ..transcode.files import encode_files

        return encode_files(*arguments)

    return run_encoder(args, jobs, "encoding", work)
