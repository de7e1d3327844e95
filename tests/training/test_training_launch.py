"""Where a run computes: precision, attention and processes by the machine; launchers that ask for something else."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.processes import finish
from support.training_runs import make_trainer, published, start_script, start_training, train

from training.commands import tell_loading
from training.launch import own_processes
from training.precision import choose_attention, choose_precision, choose_processes, choose_workers, processor_features
from training.recipe import CTCConfig, Recipe, RecipeError, parse_recipe

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("features", "half", "chosen", "reason"),
    [
        (("avx2",), 0.5, "no", "this processor has no bfloat16"),
        (("avx2", "avx512"), 0.5, "no", "this processor has no bfloat16"),
        (("avx512", "avx512_bf16"), 0.5, "bf16", "avx512_bf16: 2.0 times as fast here"),
        (("amx",), 0.25, "bf16", "amx: 4.0 times as fast here"),
        (("bf16",), 4.0, "no", "4.0 times as fast here"),
    ],
)
def test_the_processor_says_and_a_product_confirms(features, half, chosen, reason):
    times = {torch.float32: 1.0, torch.bfloat16: half}
    choice = choose_precision("auto", CPU, features, lambda dtype, device: times[dtype])
    assert (choice.precision, choice.reason) == (chosen, reason)


def test_a_processor_without_bfloat16_is_not_even_measured():
    def fail(dtype: torch.dtype, device: torch.device) -> float:
        raise AssertionError("emulated products take seconds")

    assert choose_precision("auto", CPU, ("avx2",), fail).precision == "no"
    assert [choose_precision(wanted, CPU, (), fail).precision for wanted in ("no", "bf16")] == ["no", "bf16"]


@pytest.mark.parametrize("supported", [True, False])
def test_gpus_have_bfloat16_or_not(supported, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    choice = choose_precision("auto", torch.device("cuda"))
    assert choice.precision == ("bf16" if supported else "no")


def test_this_machine_is_asked():
    assert set(processor_features()) <= {"avx2", "avx512", "avx512_bf16", "amx", "bf16"}
    choice = choose_precision("auto", CPU)
    assert str(choice).startswith("bfloat16 (" if choice.precision == "bf16" else "float32 (")


def test_attention_follows_the_precision():
    assert choose_attention("auto", CPU, "bf16") == "eager"
    assert choose_attention("auto", CPU, "no") == choose_attention("auto", torch.device("cuda"), "bf16") == "sdpa"
    assert choose_attention("flex_attention", CPU, "bf16") == "flex_attention"


def test_attention_that_would_corrupt_memory_is_not_compiled():
    """Spelt out and compiled for several threads of a CPU, its backward pass writes where it must not."""
    assert choose_attention("auto", CPU, "bf16", compiled=True, threads=2) == "sdpa"
    assert choose_attention("auto", CPU, "bf16", compiled=True, threads=1) == "eager"
    assert choose_attention("eager", torch.device("cuda"), "bf16", compiled=True, threads=2) == "eager"
    with pytest.raises(RecipeError, match="eager cannot be compiled for several threads"):
        choose_attention("eager", CPU, "no", compiled=True, threads=2)


@pytest.mark.parametrize(
    ("sizes", "cores", "processes"), [([8], 1, 1), ([8], 2, 2), ([8], 6, 4), ([8, 4], 16, 4), ([1], 16, 1), ([6], 4, 3)]
)
def test_processes_share_batches_equally(sizes, cores, processes):
    assert choose_processes(sizes, cores) == processes


@pytest.mark.parametrize(
    ("wanted", "device", "processes", "cores", "workers"),
    [
        (None, "cpu", 1, 16, 0),
        (3, "cpu", 1, 16, 3),
        (0, "cuda", 1, 4, 0),
        (None, "cuda", 1, 16, 15),
        (None, "cuda", 8, 16, 1),
        (None, "cuda", 1, 1, 1),
        (None, "cuda", 1, 128, 16),
    ],
)
def test_workers_take_the_cores_that_are_free(wanted, device, processes, cores, workers):
    assert choose_workers(wanted, torch.device(device), processes, cores) == workers


def test_a_launcher_decides_on_processes(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    recipe = Recipe(batch_size=8, processes=4)
    assert own_processes(recipe) == 4
    with pytest.raises(RecipeError, match="--processes 4: cannot share a batch of 6 equally"):
        own_processes(Recipe(batch_size=8, processes=4, ctc=CTCConfig([], batch_size=6)))
    for name, value in (("WORLD_SIZE", "2"), ("ACCELERATE_MIXED_PRECISION", "no")):
        with monkeypatch.context() as launched:
            launched.setenv(name, value)
            assert own_processes(recipe) == 1


def test_processes_of_its_own_train_like_one(recipe_file, tmp_path):
    """They share its batch, and what they say is what one says."""
    steady = ("--config.training_noise_probability", 0, "--config.training_rounding_probability", 0)
    two = start_training(recipe_file, *steady, "--processes", 2, "--output_dir", tmp_path / "two")
    train(recipe_file, *steady, "--output_dir", tmp_path / "one")
    output = finish(two)
    one, two = published(tmp_path / "one"), published(tmp_path / "two")
    # Adam makes steps of its full size of what rounding leaves of a gradient near zero.
    assert all(torch.allclose(one[name], two[name], atol=5e-4) for name in one)
    assert output.count("Computing in float32") == 1 and "Warning" not in output


def test_a_mistake_is_told_once_by_processes_of_its_own(recipe_file, tmp_path):
    process = start_training(recipe_file, "--processes", 2, "--data.corpora", "nowhere/", "--output_dir", tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and output.count("train.py: error: No corpus at 'nowhere/'") == 1
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "sets gradient_accumulation_steps 4, the recipe 1"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "asks for mixed_precision bf16, the recipe for no"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "asks for mixed_precision fp16, the recipe for no"),
    ],
)
def test_a_launcher_that_contradicts_the_recipe_is_refused(name, value, message, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        make_trainer(recipe_file, "--output_dir", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_launcher_may_choose_where_the_recipe_leaves_it_open(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = make_trainer(recipe_file, "--mixed_precision", "auto", "--output_dir", tmp_path)
    assert trainer.accelerator.mixed_precision == trainer.precision.precision == "bf16"


@pytest.mark.parametrize("script", ["train.py", "train_speech_lm.py", "speak.py"])
def test_help_comes_before_anything_slow_is_imported(script):
    code = f"""
import runpy, sys
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({str(ROOT / "training" / script)!r}, run_name="__main__")
except SystemExit as end:
    print("ENDED", end.code, sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "ENDED 0 []" in result.stdout, result.stderr


def test_a_recipe_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        parse_recipe(["nowhere.yaml", "--max_steps", "3"])
    assert end.value.code == 2 and capsys.readouterr().err.startswith("train.py: error: nowhere.yaml: there is no such")


@pytest.mark.parametrize(("rank", "told"), [("0", "train.py: loading …\n"), ("1", "")])
def test_a_terminal_is_told_once_what_takes_long(monkeypatch, rank, told):
    errors = io.StringIO()
    monkeypatch.setattr(errors, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("RANK", rank)
    tell_loading("train.py")
    assert errors.getvalue() == told


def test_the_entry_point_is_an_entry_point(capfd):
    """`python training/train.py` from another folder, without arguments."""
    process = start_script("training/train.py")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and output.startswith("train.py: error: The recipe names no corpus")
