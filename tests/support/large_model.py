"""Publishes a 950M model of random weights to a Hub on loopback and loads it: `python tests/support/large_model.py`.

Not a test: it takes minutes, 8 GB of memory and as much disk. Prints a table of time and peak memory, a fresh process
for each line; the peak is what the process had resident at most, pages of the weight files that it had mapped included.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from support.hub_server import OWNER, TOKEN, HubServer

START = """
import resource, sys, time
import torch
from huggingface_hub import HfApi
from transformers import AutoFeatureExtractor, AutoModel
folder, repo = sys.argv[1:]
start = time.perf_counter()
"""
END = """
seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"{seconds:.0f} s | {peak:.1f} GiB | {result}")
"""
MAKE = """
from modeling_taae import TaaeConfig, TaaeFeatureExtractor
torch.manual_seed(0)
model = AutoModel.from_config(TaaeConfig(), dtype=torch.bfloat16)
model.save_pretrained(folder, max_shard_size="500MB")
TaaeFeatureExtractor().save_pretrained(folder)
result = f"{model.num_parameters():,} parameters"
"""
UPLOAD = """
api = HfApi()
api.create_repo(repo, private=True)
api.create_branch(repo, branch="v2")
api.upload_folder(repo_id=repo, folder_path=folder, revision="v2")
result = f"{len(api.list_repo_files(repo, revision='v2'))} files"
"""
LOAD = """
sys.modules["modeling_taae"] = None  # by its own code
model = AutoModel.from_pretrained(repo, revision="v2", trust_remote_code=True, {options})
extractor = AutoFeatureExtractor.from_pretrained(repo, revision="v2", trust_remote_code=True)
noise = 0.1 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    output = model(**extractor(noise.numpy(), sampling_rate=16_000, return_tensors="pt"))
result = f"{{model.dtype}}, first tokens of 2 s {{output.audio_codes[0, 0, :4].tolist()}}"
"""
LINES = {
    "made in bfloat16, saved with max_shard_size": (MAKE, {}),
    "uploaded to a branch": (UPLOAD, {}),
    "downloaded, loaded and run in bfloat16": (LOAD.format(options="dtype=torch.bfloat16"), {}),
    "the same offline, from the cache": (LOAD.format(options="dtype=torch.bfloat16"), {"HF_HUB_OFFLINE": "1"}),
    "in float32": (LOAD.format(options="dtype=torch.float32"), {"HF_HUB_OFFLINE": "1"}),
    'with device_map="auto"': (LOAD.format(options='device_map="auto"'), {"HF_HUB_OFFLINE": "1"}),
    "and with 1 GB of memory allowed, the rest on disk": (
        LOAD.format(options='device_map="auto", max_memory={"cpu": "1GB"}, offload_folder=folder + "/rest"'),
        {"HF_HUB_OFFLINE": "1"},
    ),
}


def main() -> None:
    """Works through the lines and prints the table."""
    with HubServer() as hub, tempfile.TemporaryDirectory() as workplace:
        ours = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": f"{workplace}/home", "HF_HUB_DISABLE_XET": "1"}
        ours |= {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        print("| 950M | time | peak memory | result |\n| --- | ---: | ---: | --- |")
        for title, (program, environment) in LINES.items():
            command = [sys.executable, "-c", START + program + END, f"{workplace}/taae-950m", f"{OWNER}/taae-950m"]
            run = subprocess.run(
                command, env=os.environ | ours | environment, capture_output=True, text=True, check=False
            )
            print(f"| {title} | {run.stdout.strip() or run.stderr} |", flush=True)


if __name__ == "__main__":
    main()
