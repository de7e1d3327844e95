"""Options that several commands share, and the types of their values."""

import argparse
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

SHORTEST = 1e-6  # minimum of durations, which must not be zero
AUDIO_HELP = (
    "an audio file of any format, rate and channel count that libsndfile reads, or FFmpeg with the extra `audio`; a "
    "directory of them; or -"
)
OUTPUT_HELP = "file for one input, directory for several, - for standard output"
BOTTLENECK_HELP = (
    "1x46656_400bps, 2x15625_700bps, 4x729_1000bps, native, or stages such as 5,5,5,5,5,5@1.0/5,5,5,5,5,5@0.25 "
    "(levels of each dimension @ scale); default: the model's own"
)
COMPILE_HELP = "compile the layers, for GPUs (no gain on CPUs): takes a minute at first; rounding changes some tokens"
LEVEL_HELP = "keep the loudness as it is (default: normalise to the loudness of the training, such as -20 LUFS)"
FORCE_HELP = "decode files of another model, most likely to noise"
SKIP_HELP = "keep existing targets, to resume after an interruption (default: overwrite them)"


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by what the namespace is
        self, *arguments: Any, **options: Any
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses as argparse does, but a command itself rejects unknown arguments, so that errors name its help."""
        namespace, unknown = super().parse_known_args(*arguments, **options)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def whole_number(least: int) -> Callable[[str], int]:
    """Returns the type of an option that takes whole numbers from `least` up."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {least} up")
        return int(text)

    return parse


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """Returns the type of an option that takes finite numbers from `least` to `most`, both included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            bounds = f"from {least:g} up" if math.isinf(most) else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text}: expected a number {bounds}")
        return value

    return parse


def split_name(text: str) -> str:
    """Returns a split's name after checking that `datasets` allows it."""
    if not re.fullmatch(r"\w+(\.\w+)*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected letters, digits, _ and dots between them")
    return text


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose the model and its device."""
    add = parser.add_argument
    add("--model", help="folder or name on the Hub (default: $TAAE_MODEL, else taae-speech-16k-nano)")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if available, else cpu)")


def add_encoding_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of encoding."""
    parser.add_argument("--bottleneck", metavar="B", help=BOTTLENECK_HELP)
    parser.add_argument("--no-loudness", dest="loudness", action="store_false", help=LEVEL_HELP)


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of corpora: subset, column of audio, folder of recordings, and channel."""
    add = parser.add_argument
    add("--subset", metavar="NAME", help="subset of a data set on the Hub that has several, such as a language")
    add("--audio-column", default="audio", metavar="C", help="column with the audio (default: audio)")
    outside = "folder outside of the source that may hold recordings named in its tables and lists"
    add("--audio-root", metavar="DIR", help=outside)
    add_channel(parser)


def add_channel(parser: argparse.ArgumentParser) -> None:
    """Adds the option that chooses a channel."""
    one = "read only this channel of recordings, such as one speaker of two: 1, 2, ... (default: average all)"
    parser.add_argument("--channel", type=whole_number(1), metavar="N", help=one)


def add_audio_inputs(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments for input recordings, their channel, and `--skip-existing`."""
    parser.add_argument("inputs", nargs="+", metavar="AUDIO", help=AUDIO_HELP)
    add_channel(parser)
    parser.add_argument("--skip-existing", action="store_true", help=SKIP_HELP)
