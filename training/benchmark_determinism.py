"""The earlier name of `training/measure.py determinism`."""

import sys

from measure import main

sys.exit(main(["determinism", *sys.argv[1:]]))
