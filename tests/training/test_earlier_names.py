"""Scripts that cards and pages once named go on under these names, and help says what they are called now."""

import runpy
import sys

import pytest
from support.training_runs import CHECKOUT

NAMES = {
    "training/run_stages.py": "experiment.py stages",
    "training/run_ablations.py": "experiment.py ablations",
    "training/benchmark_determinism.py": "measure.py determinism",
    "training/benchmark.py": "benchmark.py",
    "hub_cards/make_entropy_results.py": "measure.py file_sizes",
    "hub_cards/make_export_results.py": "measure.py exports",
    "hub_cards/make_probes.py": "measure.py probes",
    "hub_cards/make_pictures.py": "make_pictures.py",
    "hub_cards/make_provenance.py": "make_provenance.py",
}


def start(name: str, monkeypatch, *arguments: str) -> object:
    """Runs a script in this process and returns its exit status."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str((CHECKOUT / name).parent))
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(CHECKOUT / name), run_name="__main__")
    return exit_info.value.code


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_found_under_its_earlier_name(name, monkeypatch, capsys):
    assert start(name, monkeypatch, "--help") == 0
    assert f"usage: {NAMES[name]} " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["training/experiment.py", "training/measure.py"])
def test_what_there_is_not_is_told(name, monkeypatch, capsys):
    assert start(name, monkeypatch, "nothing") == 2
    assert "WHAT is one of" in capsys.readouterr().err
