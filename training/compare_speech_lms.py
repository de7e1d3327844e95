"""Compares presets and layouts for language models: `python training/compare_speech_lms.py --tokens TOKENS …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from training.commands import exit_status, parse_settings
from training.speech_lm.compare import Comparison, compare


def main(arguments: list[str] | None = None) -> int:
    """Compares as the command line says and returns the exit status: 2 if that is not possible."""
    comparison = parse_settings(Comparison, "compare_speech_lms.py", arguments)
    return exit_status("compare_speech_lms.py", lambda: compare(comparison))


if __name__ == "__main__":
    sys.exit(main())
