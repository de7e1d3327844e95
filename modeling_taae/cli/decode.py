"""`taae decode`: decodes `.taae` files to audio files."""

import argparse
from typing import TYPE_CHECKING

from . import encode
from .options import FORCE_HELP, OUTPUT_HELP, SKIP_HELP, add_model_options

if TYPE_CHECKING:
    from .jobs import Prepared

SUMMARY = "turn .taae files into audio"
EXAMPLES = """\
  taae decode speech.taae -o decoded.wav
  taae decode encoded/ -o decoded/
  taae decode speech.taae -o - | play -t wav -"""
PRIOR_HELP = "the model that encoded, if another one decodes: its prior is needed to read entropy-coded tokens"
INTERRUPTED = encode.INTERRUPTED


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_model_options(parser)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="FILE", help="a .taae file, a directory of them, or -")
    add("-o", "--output", metavar="OUT", required=True, help=OUTPUT_HELP)
    add("--skip-existing", action="store_true", help=SKIP_HELP)
    add("--force", action="store_true", help=f"{FORCE_HELP}; entropy-coded files need --prior too")
    add("--prior", metavar="MODEL", help=PRIOR_HELP)


def run(args: argparse.Namespace) -> int:
    """Decodes the files and returns the exit status."""
    from ..audio_io import audio_format
    from .files import plan
    from .jobs import run_jobs

    jobs = plan(args, frozenset([".taae"]), ".wav")
    for job in jobs:
        audio_format(job.target)

    def prepare() -> "Prepared":
        from ..codec import load_codec
        from ..transcode.files import decode_files

        codec = load_codec(args.model, args.device)
        prior = load_codec(args.prior, "cpu").prior if args.prior else None
        return codec, lambda there, on_error: decode_files(codec, there, prior, args.force, on_error)

    return run_jobs(args, jobs, "decoding", prepare)
