"""Puts the upstream tests on the import path. They are fetched on the first run: nothing of theirs is kept here."""

import os
import sys
from pathlib import Path

import pytest

# Nothing here needs the Hub: without this, a machine that is offline waits for time-outs.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

sys.path.insert(0, str(Path(__file__).parent))
import upstream


def pytest_configure(config: pytest.Config) -> None:
    """Runs before any test module is imported, which is when the upstream package must be there."""
    # Which markers upstream uses changes from release to release.
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnknownMarkWarning")
    try:
        sys.path.insert(0, str(upstream.prepare()))
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from None
