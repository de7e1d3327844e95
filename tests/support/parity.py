"""Recorded inputs, weights and outputs of the public implementation, and a model held against them."""

import json
import os
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from support import stable_codec_reference as reference
from torch import Tensor

from modeling_taae import TaaeModel
from modeling_taae.hub.convert import convert_config, convert_state_dict
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TAAE_SHARED") or ROOT.parent / "shared")
PORTABLE = ROOT / "tests" / "fixtures" / "portable"
TINY = SHARED / "golden" / "tiny"

# The recordings' names of the bottlenecks.
RECORDED_NAMES = {"native": "fsq17"} | {name: name for name in BOTTLENECK_PRESETS}


@cache
def read_index(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


@cache
def read_recordings(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")


@cache
def read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").exists():
        return {key: tensor.float() for key, tensor in load_file(folder / "model.safetensors").items()}
    index = read_index(folder)
    return reference.recipe_state({key: tuple(size) for key, size in index["state_dict"].items()}, index["seed"])


@cache
def read_shape(folder: Path) -> reference.Shape:
    return reference.Shape.of(json.loads((folder / "model_config.json").read_text()))


@cache
def load_model(folder: Path) -> TaaeModel:
    config = convert_config(json.loads((folder / "model_config.json").read_text()))
    model = TaaeModel(config)
    model.load_state_dict(convert_state_dict(read_weights(folder), config))
    return model.eval()


def recorded_audio(folder: Path, clip: str) -> Tensor:
    recordings = read_recordings(folder)
    if clip == "c_3p137s_padded640":
        raw = recordings["c_3p137s_raw/audio_int16"]
        return torch.nn.functional.pad(raw, (0, -raw.shape[-1] % 640)).float() / 32768
    return recordings[f"{clip}/audio_int16"].float() / 32768


def assert_reproduces(model: TaaeModel, folder: Path, clip: str) -> None:
    """Latents within 1e-5, every token of every preset, and audio within 2e-6 wherever it was recorded."""
    recordings, audio = read_recordings(folder), recorded_audio(folder, clip)
    for bottleneck, name in RECORDED_NAMES.items():
        with torch.no_grad():
            encoded = model.encode(audio, bottleneck=bottleneck)
            decoded = model.decode(encoded.audio_codes, bottleneck=bottleneck).audio_values
        torch.testing.assert_close(encoded.latents, recordings[f"{clip}/latents"], rtol=0, atol=1e-5)
        assert torch.equal(encoded.audio_codes, recordings[f"{clip}/tokens_{name}"].transpose(1, 2)), bottleneck
        # The 700 and the 1000 preset give the code of the training grid, hence its audio.
        stem = f"{clip}/decoded_{'1x46656_400bps' if bottleneck.startswith('1x') else 'fsq17'}"
        expected = {
            stem: decoded,
            f"{stem}_first_12000": decoded[..., :12000],
            f"{stem}_last_8000": decoded[..., -8000:],
        }
        for key in expected.keys() & recordings.keys():
            torch.testing.assert_close(expected[key], recordings[key], rtol=0, atol=2e-6)
