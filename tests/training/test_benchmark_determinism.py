"""The determinism table, on a tiny model: what it counts, and that it says what it could not measure."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.training_runs import CHECKOUT

from modeling_taae.codec import load_codec
from training.benchmarks import determinism as benchmark_determinism
from training.benchmarks.determinism import BOTTLENECKS, Determinism, padded_batches

pytestmark = pytest.mark.slow


@pytest.fixture
def determinism(tiny_model_folder) -> Determinism:
    generator = np.random.default_rng(0)
    clips = [(0.1 * generator.normal(size=size)).astype(np.float32) for size in (20_000, 700, 48_000)]
    return Determinism(load_codec(str(tiny_model_folder), device="cpu"), clips)


def test_every_way_gives_the_latents_of_every_clip(determinism) -> None:
    reference = determinism.one_by_one()
    assert [item.shape for item in reference] == [(6, 32), (6, 2), (6, 75)]
    for latents in (determinism.batched(), determinism.shuffled(), determinism.one_go_each()):
        for item, other in zip(latents, reference, strict=True):
            torch.testing.assert_close(item, other, rtol=1e-5, atol=1e-5)
    with benchmark_determinism.chunks(48):
        chunked = determinism.one_by_one()
    assert 0 < max(float((a - b).abs().max()) for a, b in zip(chunked, reference, strict=True)) < 1e-5
    model = determinism.changed(dtype=torch.bfloat16, attention="eager").codec.model
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
    assert (determinism.codec.model.dtype, determinism.codec.model.config._attn_implementation) == (
        torch.float32,
        "sdpa",
    )


def test_it_counts_frames_whose_tokens_differ(determinism) -> None:
    reference = determinism.one_by_one()
    assert determinism.compare(reference, reference) == {
        "latents_apart": 0.0,
        "frames_changed": dict.fromkeys(BOTTLENECKS, 0),
    }
    other = [item.clone() for item in reference]
    other[0][:, 3], other[2][1, [0, 70]] = 9.0, -9.0
    compared = determinism.compare(other, reference)
    assert compared["latents_apart"] > 5 and compared["frames_changed"] == dict.fromkeys(BOTTLENECKS, 3)


def test_padded_batches_hold_everything_and_no_more_than_they_may() -> None:
    clips = [np.zeros(size) for size in (5, 30, 7, 1, 6, 5)]
    assert padded_batches(clips, 14) == [[1], [2, 4], [0, 5], [3]]


def test_the_command(tiny_model_folder, tmp_path, monkeypatch, capsys) -> None:
    original = Determinism.settings

    def broken() -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(Determinism, "settings", lambda self: original(self) | {"torch.compile": broken})
    monkeypatch.setattr(Determinism, "costs", lambda self: [{"network": "tiny", **self.cost(1.5)}])
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_model_folder, folder)
    for number, seconds in enumerate((1.0, 2.3)):
        noise = np.random.default_rng(number).normal(size=int(16_000 * seconds))
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * noise, 16_000)
    assert benchmark_determinism.MEASUREMENT.run([str(folder), "--speech", str(tmp_path)]) == 0
    results = json.loads((folder / "results" / "determinism.json").read_text())
    rows = {row["setting"]: row for row in results["settings"]}
    assert results["frames"] == 25 + 58 and rows["torch.compile"] == {
        "setting": "torch.compile",
        "skipped": "no compiler here",
    }
    assert not any(rows["nothing, computed again"]["frames_changed"].values())
    assert rows["bfloat16"]["frames_changed"]["native"] > 0
    together = {row["setting"]: row for row in results["groupings"]}
    fixed = [row for name, row in together.items() if name.startswith("`encode_clips`")]
    assert len(fixed) >= 3 and len(together) >= len(fixed) + 2
    assert all(row["latents_apart"] == 0 and not any(row["frames_changed"].values()) for row in fixed)
    printed = capsys.readouterr().out
    assert "| torch.compile | not measured |" in printed and results["environment"]["processor"] in printed


def test_bad_input_is_one_line(tiny_model_folder, tmp_path, capsys) -> None:
    for model, speech in ((tmp_path, tiny_model_folder), (tiny_model_folder, tmp_path / "none.parquet")):
        assert benchmark_determinism.MEASUREMENT.run([str(model), "--speech", str(speech)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not Path(tiny_model_folder, "results").exists()


def test_the_page_says_what_was_measured() -> None:
    results = CHECKOUT / "hub_cards" / "taae-speech-16k-nano" / "results" / "determinism.json"
    page = benchmark_determinism.MEASUREMENT.filled_page("taae-speech-16k-nano", json.loads(results.read_text()))
    assert page is not None and page == benchmark_determinism.MEASUREMENT.page.read_text()
