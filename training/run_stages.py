"""The earlier name of `training/experiment.py stages`."""

import sys

from experiment import main

sys.exit(main(["stages", *sys.argv[1:]]))
