"""The earlier name of `training/experiment.py ablations`."""

import sys

from experiment import main

sys.exit(main(["ablations", *sys.argv[1:]]))
