"""The earlier name of `training/experiment.py gradient_norms`."""

import sys

from experiment import main

sys.exit(main(["gradient_norms", *sys.argv[1:]]))
