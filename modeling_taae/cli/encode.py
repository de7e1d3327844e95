"""`taae encode`: audio files to `.taae` files."""

import argparse

from .options import OUTPUT_HELP, add_audio_inputs, add_encoding_options, add_model_options

SUMMARY = "turn audio into .taae files"
EXAMPLES = """\
  taae encode speech.wav                                  writes speech.taae
  taae encode speech.mp3 -o small.taae --bottleneck 2x15625_700bps
  taae encode a.wav b.flac recordings/ -o encoded/        keeps the folders below recordings/"""
INTERRUPTED = "files that are there are whole; the same command with --skip-existing makes the others"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_model_options(parser)
    add_encoding_options(parser)
    add_audio_inputs(parser)
    parser.add_argument("-o", "--output", metavar="OUT", help=f"{OUTPUT_HELP} (default: beside each input)")


def run(args: argparse.Namespace) -> int:
    """Encodes the files and returns the exit status."""
    from ..audio_io import AUDIO_SUFFIXES
    from ..codec import chosen_bottleneck, load_codec
    from ..errors import TaaeInputError
    from ..transcode.files import encode_files, layer_progress
    from .files import Failures, plan
    from .progress import Progress
    from .startup import import_loudness

    jobs = plan(args, AUDIO_SUFFIXES, ".taae")
    for job in jobs:
        if job.target.suffix.lower() in AUDIO_SUFFIXES:
            raise TaaeInputError(f"{job.target}: is a name for audio; expected one that ends in .taae, so change -o")
    failures = Failures(jobs, args.debug)
    there = failures.without_missing()
    if not there:
        return failures.report()
    with Progress(args.patience) as progress:
        progress.say("loading the model")
        if args.loudness:
            import_loudness()
        codec = load_codec(args.model, args.device, args.loudness)
        bottleneck = chosen_bottleneck(codec, args.bottleneck)
        with layer_progress(codec.model, progress.done):
            progress.work(encode_files(codec, there, bottleneck, failures.add), there, "encoding")
    return failures.report()
