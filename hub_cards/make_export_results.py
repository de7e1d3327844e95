"""The earlier name of `training/measure.py exports`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout's training/ is not installed

from training.measure import main

sys.exit(main(["exports", *sys.argv[1:]]))
