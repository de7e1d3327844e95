"""Loading a codec: what is refused, and that nothing else in the process changes."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_models import make_model
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import logging

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel
from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.taae_file import TaaeFile

MOST_MEMORY = 1 << 19  # KiB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = make_model()
    model.save_pretrained(tmp_path)
    TaaeFeatureExtractor(hop_length=model.config.hop_length).save_pretrained(tmp_path)
    return tmp_path


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_process_stays_as_it_was(folder: Path) -> None:
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    torch.backends.cudnn.allow_tf32 = True
    try:
        codec = load_codec(str(folder), "cpu")
        codec.decode(codec.encode(np.ones(1000, np.float32) / 9))
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
        assert torch.backends.cudnn.allow_tf32
    finally:
        logging.set_verbosity_warning()


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("preprocessor_config.json", {"sampling_rate": 8000}, "prepares 8000 Hz.*config.json reads 16000 Hz"),
        ("preprocessor_config.json", {"hop_length": 640}, "in frames of 640 samples.*in frames of 32"),
        ("preprocessor_config.json", {"target_loudness": "x"}, "target_loudness must be"),
        ("config.json", {"causal": "x"}, "causal must be true or false, not 'x'"),
        ("config.json", {"norm_eps": float("nan")}, "norm_eps must be a number"),
        ("config.json", {"encoder_depths": [10**9, 1]}, "encoder_depths must be integers"),
        ("config.json", {"sampling_rate": 8000}, "config.json reads 8000 Hz"),
        ("config.json", {"encoder_depths": [1024, 1]}, "1,0.. transformer layers .* at most 1,024 layers"),
        ("config.json", {"hidden_sizes": [10**6, 10**6]}, "hidden_sizes must be integers of .* at most 65536"),
        ("config.json", {"hidden_sizes": [2**16, 2**16]}, "at most 1,024 layers and 10,000,000,000 weights"),
        ("config.json", {"strides": [4096, 4096], "hidden_sizes": [2**15, 2**15]}, "at most 1,024 layers and 10,000"),
        ("config.json", {"patch_size": 2**20, "hidden_sizes": [1024, 1024]}, "at most 1,024 layers and 10,000,"),
        ("config.json", {"hidden_sizes": [1024, 1024]}, "describes [0-9,]+ weights at least, and its files hold"),
        ("config.json", {"intermediate_ratio": 1024}, "describes [0-9,]+ weights at least, and its files hold"),
    ],
)
def test_configs_that_cannot_be_or_do_not_agree(folder: Path, file: str, values: dict, message: str) -> None:
    edit(folder / file, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TaaeInputError, match=message) as caught:
        load_codec(str(folder), "cpu")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + MOST_MEMORY


def test_every_size_has_the_weights_that_it_is_said_to_have_at_least() -> None:
    for config in (*map(TaaeConfig.named, ("nano", "small", "240m")), make_model().config):
        with torch.device("meta"):
            model = TaaeModel(config)
        matrices = [weight.numel() for weight in model.parameters() if weight.ndim > 1]
        assert 0.9 * sum(matrices) < config.least_weights <= sum(matrices)


class Trap:
    """A pickle that makes a folder."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "none"])
def test_a_folder_s_own_code_and_pickles_are_not_run(folder: Path, tmp_path: Path, weights: str) -> None:
    trapped = tmp_path / "trapped"
    for file in folder.glob("*.py"):
        file.write_text(f"import os\nos.mkdir({str(trapped)!r})\n")
    for name in ("pytorch_model.bin", "training_args.bin", "entropy_prior.pkl"):
        torch.save({"a": Trap(trapped)}, folder / name)
    if weights != "model.safetensors":
        (folder / "model.safetensors").unlink()
        if weights == "none":
            (folder / "pytorch_model.bin").unlink()
        with pytest.raises(TaaeInputError):
            load_codec(str(folder), "cpu")
    else:
        load_codec(str(folder), "cpu").encode(np.ones(1000, np.float32) / 9)
        AutoModel.from_pretrained(folder)
        AutoFeatureExtractor.from_pretrained(folder)
    assert not trapped.exists()


@pytest.mark.parametrize("name", ["./x/y", "x/y/z", "/nowhere/at/all", "~/model", "..", "x/", "a b/c", "-x/y"])
def test_what_can_only_be_a_folder_is_not_looked_for_on_the_hub(name: str, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(TaaeInputError, match="there is no such folder|not a TAAE model|no model could be loaded"):
        load_codec(name, "cpu")


@pytest.mark.parametrize(
    ("rate", "hop", "samples"), [(48_000, 32, 1000), (16_000, 64, 2000), (16_000, 2**32 - 1, 2**33)]
)
def test_files_of_another_rate_or_frame_are_refused_before_anything_is_made(folder, rate, hop, samples) -> None:
    codec = load_codec(str(folder), "cpu")
    frames = -(-samples // hop)
    codes = np.zeros((1, frames), np.int64)
    crafted = TaaeFile(codes, (46_656,), "1x46656_400bps", samples, hop, rate, codec.identity)
    with pytest.raises(TaaeInputError, match=f"of {rate} Hz in frames of {hop} samples, and this model is of 16000 Hz"):
        codec.decode(TaaeFile.from_bytes(crafted.to_bytes()))
