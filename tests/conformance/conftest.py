"""Puts the upstream tests on the import path; they are fetched on the first run, so that nothing of theirs is kept here."""

import os
import sys
from pathlib import Path

import pytest

# Nothing here needs the Hub: without this, a machine that is offline waits for time-outs.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

sys.path.insert(0, str(Path(__file__).parent))
import upstream  # noqa: E402

UPSTREAM_MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "slow",
    "torch_compile_test",
)


def pytest_configure(config: pytest.Config) -> None:
    """Runs before any test module is imported, which is when the upstream package must be there."""
    for marker in UPSTREAM_MARKERS:
        config.addinivalue_line("markers", f"{marker}: used by the Transformers test suite")
    try:
        sys.path.insert(0, str(upstream.prepare()))
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from None
