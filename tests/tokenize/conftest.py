"""A folder of its own for each test, with a tiny model as the default."""

import datasets
import pytest


@pytest.fixture(autouse=True)
def workplace(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
