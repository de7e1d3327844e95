"""The plan for a million hours: what it computes follows from what was measured."""

import json
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "a_million_hours.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| (nano|240m|950m) \| (\w+) \| ([\d.e-]+) \| ([\d,]+) \| ([\d.]+) \|")


def test_gpu_hours_follow_from_the_benchmark():
    rows = json.loads((CHECKOUT / "training/benchmarks/benchmark_gpu.json").read_text())["speed"]["rows"]
    measured = {
        (row["size"], row["precision"]): row["real-time factor"] for row in rows if row["direction"] == "encode"
    }
    found = ROW.findall(PAGE)
    assert {(size, precision) for size, precision, *_ in found} == measured.keys()
    for size, precision, factor, speed, hours in found:
        expected = measured[size, precision]
        assert float(factor) == pytest.approx(expected, rel=0.01)
        assert float(speed.replace(",", "")) == pytest.approx(1 / expected, rel=0.01)
        assert float(hours) == pytest.approx(1e6 * expected, rel=0.01)


def test_storage_follows_from_bytes_a_second():
    rows = re.findall(r"\| (?:recordings|tokens)[^|]*\| ([\d,]+) \| ([\d.]+) TB \|", PAGE)
    assert len(rows) == 4
    for rate, terabytes in rows:
        assert float(terabytes) == pytest.approx(float(rate.replace(",", "")) * 3600e6 / 1e12, rel=0.02)
