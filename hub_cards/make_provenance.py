"""The earlier name of `hub_cards/cards/make_provenance.py`."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("cards").joinpath("make_provenance.py")), run_name="__main__")
