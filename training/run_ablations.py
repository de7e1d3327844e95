"""The earlier name of `training/experiment.py ablations`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from training.experiment import main

sys.exit(main(["ablations", *sys.argv[1:]]))
