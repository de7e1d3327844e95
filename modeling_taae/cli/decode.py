"""`taae decode`: `.taae` files to audio files."""

import argparse

from .encode import INTERRUPTED
from .options import FORCE_HELP, OUTPUT_HELP, SKIP_HELP, add_model_options

SUMMARY = "turn .taae files into audio"
EXAMPLES = """\
  taae decode speech.taae -o decoded.wav
  taae decode encoded/ -o decoded/
  taae decode speech.taae -o - | play -t wav -"""
PRIOR_HELP = "the model that encoded, where another one decodes: entropy-coded tokens are read with its prior"
__all__ = ["EXAMPLES", "INTERRUPTED", "SUMMARY", "add_options", "run"]


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
    from ..codec import load_codec
    from ..transcode.files import decode_files, layer_progress
    from .files import Failures, plan
    from .progress import Progress

    jobs = plan(args, frozenset([".taae"]), ".wav")
    for job in jobs:
        audio_format(job.target)
    failures = Failures(jobs, args.debug)
    there = failures.without_missing()
    if not there:
        return failures.report()
    with Progress(args.patience) as progress:
        progress.say("loading the model")
        codec = load_codec(args.model, args.device)
        prior = load_codec(args.prior, "cpu").prior if args.prior else None
        with layer_progress(codec.model, progress.done):
            done = decode_files(codec, there, prior, args.force, failures.add)
            progress.work(done, there, "decoding")
    return failures.report()
