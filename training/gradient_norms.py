"""The earlier name of `training/experiment.py gradient_norms`."""

import runpy
import sys
from pathlib import Path

sys.argv.insert(1, "gradient_norms")
runpy.run_path(str(Path(__file__).with_name("experiment.py")), run_name="__main__")
