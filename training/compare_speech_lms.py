"""Compares presets and layouts for language models: `python training/compare_speech_lms.py --tokens TOKENS …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae.errors import TaaeInputError
from training.speech_lm.compare import Comparison, compare
from training.speech_lm.options import parse_settings, run_command


def main(arguments: list[str] | None = None) -> int:
    """Compares as the command line says and returns the exit status: 2 if that is not possible."""
    comparison = parse_settings(Comparison, "compare_speech_lms.py", arguments)
    try:
        compare(comparison)
    except TaaeInputError as error:
        print(f"compare_speech_lms.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
