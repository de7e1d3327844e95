"""The benchmark measures what it says, keeps what it does not measure, and its tables are those of its results."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from support.training_runs import CHECKOUT, TINY, write_recipe

from modeling_taae.configuration_taae import NAMED_SIZES
from training.benchmarks import corpus as benchmark_corpus
from training.benchmarks import inference as benchmark_inference
from training.benchmarks import tools as benchmark_tools
from training.benchmarks import training_steps as benchmark_training
from training.benchmarks.benchmark import AVX2, AVX2_MARKERS, GPU_MARKERS, MARKERS, main, markdown
from training.benchmarks.peers import peer_rows
from training.benchmarks.tools import Bench, count_operations, random_model
from training.model import compile_layers
from training.precision import processor_features

pytestmark = pytest.mark.slow

RESULTS, README = CHECKOUT / "training" / "benchmarks" / "benchmark.json", CHECKOUT / "training" / "README.md"
GPU_RESULTS, AVX2_RESULTS = (RESULTS.with_name(f"benchmark_{name}.json") for name in ("gpu", "avx2"))
QUICK = ("--threads", "1", "--seconds", "0")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path) -> None:
    """Sizes and repetitions that take no time; and no state of a run that another test has left."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(NAMED_SIZES, "tiny", TINY)
    monkeypatch.setattr(benchmark_tools, "SECONDS", 0.0)
    monkeypatch.setattr(benchmark_tools, "PEAK_SIZES", {"cpu": (64,)})
    monkeypatch.setattr(benchmark_training, "BATCHES", {"cpu": (("tiny", 2, 0.2),)})
    monkeypatch.setattr(benchmark_training, "compile_layers", partial(compile_layers, backend="eager"))
    monkeypatch.setattr(benchmark_training, "RECIPE", write_recipe(tmp_path, "replaced"))
    monkeypatch.setattr(benchmark_inference, "SPEEDS", (("tiny", torch.float32), ("tiny", torch.bfloat16)))
    monkeypatch.setattr(benchmark_inference, "STREAMED", {"cpu": (("tiny", torch.float32),)})
    monkeypatch.setattr(benchmark_inference, "FRAMES", 10)


def test_operations_are_counted_for_forward_and_backward():
    layer, inputs = torch.nn.Linear(32, 64), torch.randn(10, 32)
    assert count_operations(lambda: layer(inputs)) == 2 * 10 * 32 * 64
    # The gradient of the weight; that of the inputs is not asked for.
    assert count_operations(lambda: layer(inputs).sum().backward()) == 2 * 2 * 10 * 32 * 64


def test_twice_the_audio_is_twice_the_work():
    model = random_model("tiny", torch.float32, torch.device("cpu"))
    bench = Bench()
    with torch.inference_mode():
        short, long = (count_operations(lambda: model.encode(bench.audio(1, seconds))) for seconds in (4, 8))  # noqa: B023
    assert 1.9 < long / short < 2.1


def test_times_are_medians_of_single_calls_after_a_first_one():
    now, durations = 0.0, iter([100.0, 3.0, 1.0, 2.0])

    def work() -> None:
        nonlocal now
        now += next(durations)

    assert Bench(repeat_for=0.0, clock=lambda: now).seconds(work) == 2.0


def test_sections_are_measured_one_by_one_and_kept_together(tmp_path, capsys):
    """As a user does it, with a text whose tables are replaced at last."""
    kept, text = tmp_path / "results.json", tmp_path / "README.md"
    text.write_text(f"Before.\n{MARKERS[0]}old\n{MARKERS[1]}\nAfter.\n")
    main(["gradients", "speed", *QUICK, "--json", str(kept)])
    first = json.loads(kept.read_text())
    main(["latency", *QUICK, "--json", str(kept), "--readme", str(text)])
    results = json.loads(kept.read_text())
    assert {name: results[name] for name in first} == first and list(results) == ["gradients", "speed", "latency"]
    tables = markdown(results)
    assert text.read_text() == f"Before.\n{MARKERS[0]}{tables}\n{MARKERS[1]}\nAfter.\n"
    assert tables in capsys.readouterr().out
    for section in ("gradients", "speed"):
        for row in results[section]["rows"]:
            peak = results[section]["gflops_at_peak"][row["precision"]]
            assert row["share of peak"] == pytest.approx(row["GFLOP"] / row["seconds"] / peak, rel=0.01)
    assert results["speed"]["rows"][0]["real-time factor"] == pytest.approx(results["speed"]["rows"][0]["seconds"] / 10)
    main(["--show", "--json", str(kept)])
    assert json.loads(kept.read_text()) == results


def test_other_codecs_are_measured_at_their_published_sizes():
    ours, theirs = peer_rows(Bench(), names=("TAAE nano", "EnCodec"), clip_seconds=1.0)
    assert ours["M parameters"] == pytest.approx(13.2, abs=0.05)
    assert theirs["M parameters"] == pytest.approx(14.9, abs=0.05)
    # A process with PyTorch and Transformers takes more than the weights alone.
    assert all(row["memory in GB, all told"] > 0.2 for row in (ours, theirs))
    assert all(
        row[f"{direction}: real-time factor"] > 0 for row in (ours, theirs) for direction in ("encode", "decode")
    )


def test_a_machine_that_is_held_to_avx2_says_so():
    if "avx512" not in processor_features():
        pytest.skip("this processor has no more than AVX2")
    code = "from training.benchmarks.runner import machine; print(machine()['features'])"
    environment = {**os.environ, **AVX2, "PYTHONPATH": str(CHECKOUT)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "['avx2', 'held to AVX2']"


def test_steps_are_measured_in_one_process_and_in_several(monkeypatch):
    """With real runs of the real command, of as few steps as possible."""
    monkeypatch.setattr(benchmark_training, "RECIPE", CHECKOUT / "training" / "recipes" / "nano_adversarial.yaml")
    monkeypatch.setattr(benchmark_training, "BATCH_SIZES", (2,))
    monkeypatch.setattr(benchmark_training, "RUN_STEPS", (1, 2))
    monkeypatch.setattr(benchmark_training, "usable_cores", lambda: 2)
    assert [row["processes"] for row in benchmark_training.process_rows(Bench())] == [1, 2]


def test_a_corpus_is_measured_with_and_without_compiled_layers(monkeypatch):
    monkeypatch.setattr(benchmark_corpus, "CORPORA", {"cpu": (("tiny", torch.float32, 5),)})
    plain, compiled = benchmark_corpus.corpus_rows(Bench())
    assert (plain["layers"], compiled["layers"]) == ("as they are", "compiled")
    assert plain["frames as on the CPU"] == 1.0 and compiled["frames as on the CPU"] > 0.9


@pytest.mark.parametrize("section", ["int8", "long"])
def test_sections_that_cannot_be_held_to_avx2_are_refused(section, capsys, monkeypatch):
    for name, value in AVX2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([section, "--avx2", *QUICK])
    assert f"no section {section} under --avx2" in capsys.readouterr().err


def test_the_parts_of_a_step_make_up_the_whole():
    recipe = json.loads(Path(benchmark_training.RECIPE).read_text())
    recipe |= {"discriminator": {"channels": 4, "fft_sizes": [78, 206]}, "max_steps": 10_000}
    Path(benchmark_training.RECIPE).write_text(json.dumps(recipe))
    rows = list(benchmark_training.step_rows(Bench()))
    parts = [row for row in rows if not row["part"].startswith("—")]
    assert sum(row["share"] for row in parts) == pytest.approx(1)
    codec = next(row for row in parts if row["part"] == "codec")
    kinds = [row for row in rows if row["part"].startswith("—")]
    assert sum(row["milliseconds"] for row in kinds) == pytest.approx(codec["milliseconds"])
    assert all(row["milliseconds"] > 0 for row in kinds)


def test_a_long_recording_is_told_beside_a_short_one():
    row = benchmark_inference.long_audio_row("tiny", torch.float32, 30)
    assert row["minutes"] == 0.5
    for direction in ("encode", "decode"):
        assert 0.02 < row[f"{direction}: times that of 10 s"] < 50
        assert row[f"{direction}: memory in GB, all told"] > 0.1


def test_frames_of_a_stream_go_through_compiled_functions_as_well(monkeypatch):
    """As on a GPU, without its CUDA graphs."""
    compiled = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(
        benchmark_inference, "frame_functions", lambda model: (compiled(model.encode), compiled(model.decode))
    )
    torch.compiler.reset()  # what other tests compiled counts here, and what is compiled here would count there
    rows = list(benchmark_inference.latency_rows(Bench()))
    torch.compiler.reset()
    assert [row["direction"] for row in rows] == ["encode", "decode"]


def test_what_a_gpu_gave_has_a_place_of_its_own(tmp_path):
    """Beside what the CPU gave: neither table is lost when the other is measured."""
    kept, text = tmp_path / "results.json", tmp_path / "README.md"
    text.write_text(f"{MARKERS[0]}of the CPU\n{MARKERS[1]}\n{GPU_MARKERS[0]}old\n{GPU_MARKERS[1]}\n")
    main(["latency", *QUICK, "--json", str(kept)])
    results = json.loads(kept.read_text())
    results["latency"]["environment"]["accelerator"] = "a GPU"
    kept.write_text(json.dumps(results))
    main(["--show", "--json", str(kept), "--readme", str(text)])
    written = f"{MARKERS[0]}of the CPU\n{MARKERS[1]}\n{GPU_MARKERS[0]}{markdown(results)}\n{GPU_MARKERS[1]}\n"
    assert text.read_text() == written and "(a GPU, torch" in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["sped"], "no section sped; choose from gradients"), (["latency", "--readme", "{folder}/none.md"], "none.md")],
)
def test_mistakes_are_told_in_a_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([argument.format(folder=tmp_path) for argument in arguments])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("results", "markers"), [(RESULTS, MARKERS), (GPU_RESULTS, GPU_MARKERS), (AVX2_RESULTS, AVX2_MARKERS)]
)
def test_the_tables_of_the_readme_are_those_of_the_results(results, markers):
    assert f"{markers[0]}{markdown(json.loads(results.read_text()))}\n{markers[1]}" in README.read_text()
