"""The earlier name of `training/measure.py determinism`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from training.measure import main

sys.exit(main(["determinism", *sys.argv[1:]]))
