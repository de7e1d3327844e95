"""Lets a language model speak: `python training/speak.py MODEL "Good morning." -o speech.wav`.

MODEL is a folder that `train_speech_lm.py` wrote, or any other with a language model and its TaaeProcessor. Without a
text it says something; with `--prompt speech.wav` it goes on from there.
"""

import argparse
import sys
from pathlib import Path

from jsonargparse.typing import restricted_number_type
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae.errors import TaaeInputError
from training.speech_lm.options import run_command
from training.speech_lm.speak import speak

SECONDS = restricted_number_type("Seconds", float, [(">=", 0.01), ("<=", 3600)])
TEMPERATURE = restricted_number_type("Temperature", float, [(">=", 0.01), ("<=", 100)])


def main(arguments: list[str] | None = None) -> int:
    """Speaks, writes and returns the exit status: 2 where that is not possible."""
    parser = argparse.ArgumentParser(prog="speak.py", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the language model")
    parser.add_argument("text", nargs="?", default="", help="to be said, by a model that was trained with texts")
    written = ".wav or .flac; - writes samples of 16 bits to standard output as they come"
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=written)
    parser.add_argument("--prompt", metavar="FILE", help="speech to go on from")
    parser.add_argument("--codec", metavar="M", help="that the tokens are of (default: as for `taae`)")
    longest = "the most that it says (default: 10)"
    parser.add_argument("--seconds", type=SECONDS, default=10.0, metavar="S", help=longest)
    varied = "below 1, less varied (default: 1)"
    parser.add_argument("--temperature", type=TEMPERATURE, default=1.0, metavar="T", help=varied)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one, another voice (default: 0)")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    try:
        speak(**vars(options))
    except TaaeInputError as error:
        print(f"speak.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
