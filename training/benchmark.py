"""Measures the speed of training and inference: `python training/benchmark.py [SECTION ...]`, see `benchmarks/`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from training.benchmarks.benchmark import main

if __name__ == "__main__":
    main()
