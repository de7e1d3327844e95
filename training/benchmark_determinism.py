"""The earlier name of `training/measure.py determinism`."""

import runpy
import sys
from pathlib import Path

sys.argv.insert(1, "determinism")
runpy.run_path(str(Path(__file__).with_name("measure.py")), run_name="__main__")
