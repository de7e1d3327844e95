"""A few attempts of each fuzzing target; `make fuzz` makes many."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.run import LINKS, VOICE, run_links, run_target

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["files", "streams", "models", "corpora", "tokens"])
def test_damage_is_refused_or_right(name: str) -> None:
    counts = run_target(name, seed=0, seconds=60, attempts=25)
    assert counts.failures == []
    assert counts.tried and counts.outcomes["refused"]


@pytest.mark.skipif(not (shutil.which("node") and VOICE.is_file()), reason=f"{LINKS} need node and the page")
def test_damaged_links_are_refused_or_right() -> None:
    counts = run_links(seed=0, seconds=60, attempts=2000)
    assert counts.failures == [] and counts.outcomes["refused"] > 1000
