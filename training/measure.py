"""Measures a model's folder on speech: `python training/measure.py WHAT FOLDER --speech FILES`, see `benchmarks/`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from training.commands import dispatch

MEASUREMENTS = {
    "determinism": "share of tokens that change with batch, threads, device or precision",
    "exports": "size, speed and tokens of exported models",
    "file_sizes": "bytes of `.taae` files",
    "probes": "language, gender, speaker and phonemes predicted from tokens",
}


def main(arguments: list[str]) -> int:
    """Runs the measurement that the first argument names, and returns the exit status."""
    return dispatch("measure.py", "training.benchmarks", MEASUREMENTS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
