"""A saved folder brings its own code: it loads with `trust_remote_code=True` where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_models import VARIANTS, make_model

from modeling_taae import TaaeFeatureExtractor

pytestmark = pytest.mark.slow

CODE = {
    "attention_taae.py",
    "checks_taae.py",
    "configuration_taae.py",
    "convolution_taae.py",
    "feature_extraction_taae.py",
    "modeling_taae.py",
    "quantization_taae.py",
    "streaming_taae.py",
    "transformer_taae.py",
}

# Blocks the package, wherever it may be installed; writes what it finds to the file it is told.
SCRIPT = """
import json, sys
sys.modules["modeling_taae"] = None
import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

folder, copy, target = sys.argv[1:]
speech = [np.load(folder + "/a.npy"), np.load(folder + "/b.npy")]
report = {}

def encode(model, extractor):
    inputs = extractor(speech, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        encoded = model.encode(**inputs, bottleneck="2x15625_700bps")
        decoded = model.decode(encoded.audio_codes, encoded.audio_codes_mask, bottleneck="2x15625_700bps")
    return encoded.audio_codes.tolist(), decoded.audio_values.double().square().sum().item()

extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
for auto_class in (AutoModel, AutoModelForAudioTokenization):
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    report[auto_class.__name__] = encode(model, extractor)
report["modules"] = [type(extractor).__module__, type(model).__module__, type(model.config).__module__]
report["dtype"] = str(model.dtype)
report["hop_length"] = AutoConfig.from_pretrained(folder, trust_remote_code=True).hop_length

model.save_pretrained(copy)
extractor.save_pretrained(copy)
report["saved again"] = encode(
    AutoModel.from_pretrained(copy, trust_remote_code=True),
    AutoFeatureExtractor.from_pretrained(copy, trust_remote_code=True),
)
json.dump(report, open(target, "w"))
"""


@pytest.fixture
def speech() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [0.1 * random.standard_normal(length).astype(np.float32) for length in (9000, 4321)]


def save(folder: Path, model_first: bool = True):
    model = make_model(**VARIANTS["published strides"])
    extractor = TaaeFeatureExtractor(hop_length=model.config.hop_length)
    for part in (model, extractor) if model_first else (extractor, model):
        part.save_pretrained(folder)
    return model, extractor


@pytest.mark.parametrize("model_first", [True, False])
def test_the_folder_names_its_classes_and_holds_their_code(tmp_path: Path, model_first: bool) -> None:
    save(tmp_path, model_first)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_taae.TaaeConfig",
        "AutoModel": "modeling_taae.TaaeModel",
        "AutoModelForAudioTokenization": "modeling_taae.TaaeModel",
    }
    assert config["dtype"] == "float32"
    preprocessor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert preprocessor["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_taae.TaaeFeatureExtractor"}
    assert {file.name for file in tmp_path.glob("*.py")} == CODE


def test_the_folder_loads_without_the_package(tmp_path: Path, speech: list[np.ndarray]) -> None:
    folder = tmp_path / "a model-1.0"
    model, extractor = save(folder)
    for name, clip in zip("ab", speech, strict=True):
        np.save(folder / f"{name}.npy", clip)
    with torch.no_grad():
        inputs = extractor(speech, sampling_rate=16_000, return_tensors="pt")
        encoded = model.encode(**inputs, bottleneck="2x15625_700bps")
        decoded = model.decode(encoded.audio_codes, encoded.audio_codes_mask, bottleneck="2x15625_700bps")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [sys.executable, "-c", SCRIPT, folder, tmp_path / "copy-2", tmp_path / "report.json"]
    run = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text())

    assert all(module.startswith("transformers_modules.") for module in report["modules"])
    assert report["dtype"] == "torch.float32"
    assert report["hop_length"] == model.config.hop_length
    for loaded in ("AutoModel", "AutoModelForAudioTokenization", "saved again"):
        codes, energy = report[loaded]
        assert torch.equal(torch.tensor(codes), encoded.audio_codes), loaded
        assert energy == pytest.approx(decoded.audio_values.double().square().sum().item(), rel=1e-5)
