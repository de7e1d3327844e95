"""Both ways of loading a published folder, with and without `dtype=`, in whatever versions are installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "hub_cards" / "taae-speech-16k-nano"
SCRIPT = """
import sys
if sys.argv[2] == "remote code":
    sys.modules["modeling_taae"] = None
else:
    import modeling_taae
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

trust = {"trust_remote_code": True} if sys.argv[2] == "remote code" else {}
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1], **trust)
inputs = extractor([0.1] * 3000, sampling_rate=16_000)
for auto_class in (AutoModel, AutoModelForAudioTokenization):
    for options in ({}, {"dtype": torch.bfloat16}):
        model = auto_class.from_pretrained(sys.argv[1], **options, **trust)
        wanted = options.get("dtype", torch.float32)
        assert {parameter.dtype for parameter in model.parameters()} == {wanted}, (auto_class, options, model.dtype)
        assert type(model).__module__.startswith("transformers_modules.") == bool(trust)
        with torch.no_grad():
            assert model(**inputs).audio_values.shape == (1, 1, 3200)
"""


@pytest.mark.skipif(not (FOLDER / "model.safetensors").is_file(), reason="the weights are in a checkout only")
@pytest.mark.parametrize("way", ["package", "remote code"])
def test_a_published_folder_loads(way: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment["PYTHONPATH"] = str(ROOT) if way == "package" else ""
    command = [sys.executable, "-c", SCRIPT, FOLDER, way]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
