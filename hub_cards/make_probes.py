"""The earlier name of `training/measure.py probes`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout's training/ is not installed

from training.measure import main

sys.exit(main(["probes", *sys.argv[1:]]))
