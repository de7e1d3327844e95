"""Trains a small language model of speech on tokens: `python training/train_speech_lm.py --train TOKENS …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from training.commands import exit_status, parse_settings, tell_loading
from training.speech_lm.results import Settings

TOKENS = {
    "train": "tokens to train on: folders of `taae tokenize`, or names of such data sets on the Hub",
    "validation": "tokens to validate on, of the same preset and codec",
}


def main(arguments: list[str] | None = None) -> int:
    """Trains as the command line says and returns the exit status: 2 if that is not possible."""
    settings = parse_settings(Settings, "train_speech_lm.py", arguments, TOKENS)
    tell_loading("train_speech_lm.py")
    from training.speech_lm.train import is_main_process

    advice = "interrupted; the same command resumes from the newest checkpoint"
    return exit_status("train_speech_lm.py", lambda: report(settings), advice, is_main_process())


def report(settings: Settings) -> None:
    """Trains, and prints the result in the main process."""
    from training.speech_lm.train import is_main_process, run

    result = run(settings)
    if result is not None and is_main_process():
        rates = result.bit_rate
        print(
            f"{settings.output_dir}: {rates.free:.0f} bits per second of speech, {rates.grammar:.0f} with the "
            f"grammar; {result.nominal_bit_rate:.0f} if all tokens were equally likely"
        )


if __name__ == "__main__":
    sys.exit(main())
