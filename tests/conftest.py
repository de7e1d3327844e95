"""Fixtures that several tests share."""

import io
import os
from collections.abc import Callable
from pathlib import Path

# Before the libraries read them. Tests run side by side, a core each, and so do the processes that they start; and none
# waits for a Hub that it was not given.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from transformers.utils import logging

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel

# Tests look at what commands say; Transformers' own bars are not theirs.
logging.disable_progress_bar()

SHARED = Path(os.environ.get("TAAE_SHARED") or Path(__file__).resolve().parents[2] / "shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts slow tests first, so that the workers end together; marks those that hear the shared speech, and skips
    those that need a GPU where there is none.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    without_gpu = pytest.mark.skip(reason="there is no GPU with CUDA")
    for item in items:
        if "speech" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.speech)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(without_gpu)


def build_tiny_model(seed: int) -> TaaeModel:
    """A model of 0.2M random parameters, with frames as long as the published model's."""
    torch.manual_seed(seed)
    config = TaaeConfig(
        hidden_sizes=(32, 32), encoder_depths=(1, 1), decoder_depths=(1, 1), head_dim=32, layer_scale_initial_scale=0.1
    )
    model = TaaeModel(config).eval()
    with torch.no_grad():  # a random encoder's latents are so small that all tokens would be the same
        model.encoder.conv_out.weight *= 30
    return model


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[[int], TaaeModel]:
    """Builds a tiny model of a seed, to be changed at will."""
    return build_tiny_model


@pytest.fixture(scope="session")
def tiny_model() -> TaaeModel:
    """One tiny model for all tests, to be left as it is."""
    return build_tiny_model(seed=0)


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_model: TaaeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a user has it: a folder with config, weights and preprocessor config."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.save_pretrained(folder)
    TaaeFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def speech() -> list[np.ndarray]:
    """Three clips of speech, each (samples,) float32 at 16 kHz."""
    import soundfile

    parquet = pytest.importorskip("pyarrow.parquet")
    files = sorted(SHARED.glob("speech/validation-*.parquet"))
    if not files:
        pytest.skip(f"there is no speech/validation-*.parquet in {SHARED}; set TAAE_SHARED to the folder that has it")
    rows = next(parquet.ParquetFile(files[0]).iter_batches(batch_size=3, columns=["audio"])).to_pylist()
    return [soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0] for row in rows]
