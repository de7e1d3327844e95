"""Lets a language model speak: `python training/speak.py MODEL "Good morning." -o speech.wav`.

MODEL is a folder that `train_speech_lm.py` wrote, or another folder with a language model and its TaaeProcessor.
Without a text it says something random; with `--prompt speech.wav` it continues that speech.
"""

import argparse
import sys
from pathlib import Path

from jsonargparse.typing import restricted_number_type

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae.files import is_standard_stream
from training.commands import exit_status, tell_loading

SECONDS = restricted_number_type("Seconds", float, [(">=", 0.01), ("<=", 3600)])
TEMPERATURE = restricted_number_type("Temperature", float, [(">=", 0.01), ("<=", 100)])


def main(arguments: list[str] | None = None) -> int:
    """Writes speech and returns the exit status: 2 if that is not possible."""
    parser = argparse.ArgumentParser(prog="speak.py", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the language model")
    parser.add_argument("text", nargs="?", default="", help="text to say, for a model that was trained with texts")
    written = ".wav or .flac; - streams 16-bit samples to standard output"
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=written)
    parser.add_argument("--prompt", metavar="FILE", help="speech to continue")
    parser.add_argument("--codec", metavar="M", help="the codec of the tokens (default: as for `taae`)")
    longest = "longest duration in seconds (default: 10)"
    parser.add_argument("--seconds", type=SECONDS, default=10.0, metavar="S", help=longest)
    varied = "variety: below 1, less varied (default: 1)"
    parser.add_argument("--temperature", type=TEMPERATURE, default=1.0, metavar="T", help=varied)
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the random draws; another seed gives another voice (default: 0)",
    )
    options = parser.parse_args(arguments)
    tell_loading(parser.prog)
    from transformers.utils import logging

    from training.speech_lm.speak import speak

    logging.set_verbosity_error()

    def work() -> None:
        speak(**vars(options))
        if not is_standard_stream(options.output):
            print(f"{options.output} is written")

    return exit_status(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
