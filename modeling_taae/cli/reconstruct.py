"""`taae reconstruct`: audio through the codec and back."""

import argparse

from .encode import INTERRUPTED
from .options import OUTPUT_HELP, add_audio_inputs, add_encoding_options, add_model_options

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
    from ..codec import chosen_bottleneck, load_codec
    from ..transcode.files import layer_progress, reconstruct_files
    from .files import Failures, plan
    from .progress import Progress
    from .startup import import_loudness

    jobs = plan(args, AUDIO_SUFFIXES, ".wav")
    for job in jobs:
        audio_format(job.target)
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
            progress.work(reconstruct_files(codec, there, bottleneck, failures.add), there, "reconstructing")
    return failures.report()
