"""Killed at whatever moment, nothing half-written is taken for complete: all is as before, new, or refused."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support import stable_codec_reference as reference
from support.tiny_models import make_model

from hub_cards import model_code
from modeling_taae import TaaeFeatureExtractor
from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.hub.convert import convert_checkpoint
from modeling_taae.hub.push import push_folder
from training.publish import publish

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
# What a process does to files, as Python's audit hooks call it.
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def run_and_kill(work: Callable[[], object], moment: int | None) -> int:
    """Does work in a process that is killed at the n-th thing it does to a file; returns its exit code."""

    def child() -> None:
        torch.set_num_threads(1)
        left = [moment]

        def hook(event: str, arguments: tuple) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if left[0] is not None and (event in EVENTS or writes):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        pytest.fail("it hangs")
    return process.exitcode


def kills(work: Callable[[], object], restore: Callable[[], None], check: Callable[[], str]) -> set[str]:
    """Kills work at each moment, with what was there before restored each time; returns what the checks found."""
    found = set()
    for moment in range(200):
        restore()
        code = run_and_kill(work, moment)
        found.add(check())
        if code == 0:
            return found
        assert code == -signal.SIGKILL
    raise AssertionError("it never ends")


def stable_codec(folder: Path, seed: int) -> Path:
    shape = reference.Shape()
    folder.mkdir()
    (folder / "model_config.json").write_text(json.dumps(shape.model_config()))
    torch.save(reference.recipe_state(reference.tensor_shapes(shape), seed=seed), folder / "model.ckpt")
    (folder / "LICENSE").write_text(f"licence {seed}")
    return folder


def trained(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = make_model(seed=seed)
    model.save_pretrained(folder)
    TaaeFeatureExtractor(hop_length=model.config.hop_length).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", ["convert", "publish"])
def test_a_model_s_folder(tmp_path: Path, way: str) -> None:
    make, write = (stable_codec, convert_checkpoint) if way == "convert" else (trained, publish)
    sources = [make(tmp_path / f"source{seed}", seed) for seed in (1, 2)]
    target, kept = tmp_path / "target", [tmp_path / "kept1", tmp_path / "kept2"]
    for source, folder in zip(sources, kept, strict=True):
        write(source, folder)
    identities = [load_codec(str(folder), "cpu").identity for folder in kept]
    assert identities[0] != identities[1]

    def restore() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(kept[0], target)

    def check() -> str:
        try:
            codec = load_codec(str(target), "cpu")
        except TaaeInputError:
            return "refused"
        seed = identities.index(codec.identity)
        if way == "convert":
            assert (target / "LICENSE").read_text() == f"licence {seed + 1}"
            conversion = json.loads((target / "conversion.json").read_text())
            assert conversion["source"]["name"] == f"source{seed + 1}" and identities[seed] in (
                (target / "README.md").read_text()
            )
        return "new" if seed else "old"

    found = kills(lambda: write(sources[1], target), restore, check)
    assert found == {"old", "refused", "new"}


def test_the_code_of_published_folders(tmp_path: Path) -> None:
    """Each file is the old one or the new one, and what is not new yet is found."""
    published = Path(model_code.__file__).parent / "taae-speech-16k-nano"
    for name in model_code.CONFIGS:
        shutil.copy(published / name, tmp_path)
    new = {path.name: path.read_bytes() for path in model_code.modules_of(tmp_path)}

    def restore() -> None:
        for name in new:
            (tmp_path / name).write_bytes(b"old")

    def check() -> str:
        contents = {name: (tmp_path / name).read_bytes() for name in new}
        assert all(content in (b"old", new[name]) for name, content in contents.items())
        stale = {path.name for path in model_code.stale_code(tmp_path)}
        assert stale == {name for name, content in contents.items() if content == b"old"}
        return "stale" if stale else "new"

    assert kills(lambda: model_code.write_code(tmp_path), restore, check) == {"stale", "new"}


def test_a_dry_run_of_a_push_writes_nothing(tmp_path: Path) -> None:
    folder = trained(tmp_path / "model", 1)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    def push() -> None:
        with suppress(TaaeInputError):
            push_folder(folder, "me/model", dry_run=True)

    for moment in (0, 1, 2, None):
        run_and_kill(push, moment)
        assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before
