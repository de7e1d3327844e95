"""The earlier name of `training/measure.py file_sizes`."""

import runpy
import sys
from pathlib import Path

sys.argv.insert(1, "file_sizes")
runpy.run_path(str(Path(__file__).parents[1].joinpath("training/measure.py")), run_name="__main__")
