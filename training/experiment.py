"""Runs an experiment: `python training/experiment.py stages|ablations|gradient_norms …`, see `experiments/`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from training.commands import dispatch

EXPERIMENTS = {
    "stages": "effect of further training stages on a published model",
    "ablations": "effect of changing one part of a recipe",
    "gradient_norms": "gradient norm of each loss",
}


def main(arguments: list[str]) -> int:
    """Runs the experiment that the first argument names, and returns the exit status."""
    return dispatch("experiment.py", "training.experiments", EXPERIMENTS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
