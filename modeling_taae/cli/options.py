"""Options that several commands share, and the types of their values."""

import argparse
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

SHORTEST = 1e-6  # of lengths of time, which are not zero
AUDIO_HELP = (
    "an audio file of any format, rate and channel count that libsndfile reads, or FFmpeg with the extra `audio`; a "
    "directory of them; or -"
)
OUTPUT_HELP = "file for one input, directory for several, - for standard output"
BOTTLENECK_HELP = (
    "1x46656_400bps, 2x15625_700bps, 4x729_1000bps, native, or stages such as 5,5,5,5,5,5@1.0/5,5,5,5,5,5@0.25 "
    "(levels of each dimension @ scale); default: the model's own"
)
AUDIO_ROOT_HELP = "folder outside of the source in which recordings may lie that its tables and lists name"
CHANNEL_HELP = "read this channel of recordings alone, such as one speaker of two: 1, 2, ... (default: average all)"
COMPILE_HELP = "compile the layers, for GPUs: a minute at first; moves some tokens by rounding (no gain on CPUs)"
SUBSET_HELP = "of a data set on the Hub that has several, such as a language"
LEVEL_HELP = "keep the level as it is (default: bring it to that of the model's training, such as -20 LUFS)"
FORCE_HELP = "decode what another model encoded, to noise most likely"
SKIP_HELP = "leave out files whose target is there, to go on after an interruption (default: targets are replaced)"


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by what the namespace is
        self, *arguments: Any, **options: Any
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but a command refuses what it does not know itself, and so names its own help."""
        namespace, unknown = super().parse_known_args(*arguments, **options)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def whole_number(least: int) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from `least` up."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {least} up")
        return int(text)

    return parse


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """The type of an option that takes finite numbers between two, these included."""

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
    """The type of an option that takes the name of a split, as `datasets` allows it."""
    if not re.fullmatch(r"\w+(\.\w+)*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected letters, digits, _ and dots between them")
    return text


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose the model and its device."""
    add = parser.add_argument
    add("--model", help="folder or name on the Hub (default: $TAAE_MODEL, else taae-speech-16k-nano)")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda where there is one, else cpu)")


def add_encoding_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how audio becomes tokens."""
    parser.add_argument("--bottleneck", metavar="B", help=BOTTLENECK_HELP)
    parser.add_argument("--no-loudness", dest="loudness", action="store_false", help=LEVEL_HELP)


def add_audio_inputs(parser: argparse.ArgumentParser) -> None:
    """Adds the recordings to read, the channel, and `--skip-existing`."""
    parser.add_argument("inputs", nargs="+", metavar="AUDIO", help=AUDIO_HELP)
    parser.add_argument("--channel", type=whole_number(1), metavar="N", help=CHANNEL_HELP)
    parser.add_argument("--skip-existing", action="store_true", help=SKIP_HELP)
