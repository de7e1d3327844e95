"""Dry runs: what they tell is so, and they leave nothing behind."""

import re
import sys

import numpy as np
import psutil
import pytest
import torch
from support.training_runs import ADVERSARIAL, make_trainer, train, write_recipe

from training.dry_run import PeakMemory, fixed_memory, local_parameters, run_seconds, starts_of_phases
from training.recipe import DiscriminatorConfig, Recipe
from training.train import main


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    main()


@pytest.mark.slow
def test_a_dry_run_tells_what_a_run_takes_and_writes_nothing(tmp_path, monkeypatch, capfd):
    """As a user starts it; there is no corpus to be read yet."""
    recipe = write_recipe(tmp_path, "nowhere.parquet")
    options = ("--dry_run", "true", "--output_dir", tmp_path / "run", *ADVERSARIAL, "--discriminator.start_step", 4)
    run_main(monkeypatch, recipe, *options, "--gradient_accumulation_steps", 3)
    lines = {line[:11].strip(): line[12:] for line in capfd.readouterr().out.splitlines()}
    assert sorted(lines) == [
        "a day",
        "a step",
        "if sharded",
        "its time",
        "memory",
        "parameters",
        "precision",
        "the run",
    ]
    assert not (tmp_path / "run").exists()
    # Three times 2 crops of 16 frames of 640 samples.
    assert re.fullmatch(r"96 token frames, 3.8 s of audio, in 1 process of \d+ threads?", lines["a step"])
    assert "from step 0 on" in lines["its time"] and "from step 4 on" in lines["its time"]
    codec = make_trainer(recipe, "--dry_run", "true").model
    assert f"codec {codec.num_parameters():,}, " in lines["parameters"] and "discriminator" in lines["parameters"]


def test_a_codec_that_does_not_fit_is_refused_before_it_takes_memory(tmp_path, monkeypatch, capfd):
    recipe = write_recipe(tmp_path, "nowhere.parquet")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**9}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_info:
        run_main(monkeypatch, recipe, "--size", "950m", "--config", "{}", "--dry_run", "true")
    assert exit_info.value.code == 2
    # 953,319,756 parameters of 4 bytes, and as many gradients, averages and twice as many of the optimiser.
    assert "takes 19.07 GB (weights 3.81, gradients 3.81, optimiser 7.63, average 3.81)" in capfd.readouterr().err


def test_what_stays_in_memory_is_counted_as_a_run_holds_it(recipe_file, tmp_path):
    """Against the tensors that a run really holds."""
    trainer = train(
        recipe_file, *ADVERSARIAL, "--max_steps", 1, "--output_dir", tmp_path / "run", "--validation.corpus", "null"
    )
    discriminator, codec = trainer.adversary.module, trainer.model
    counted = fixed_memory(trainer.average.module, [discriminator])
    optimizers = (trainer.optimizer.optimizer, trainer.adversary.optimizer)
    states = [tensor for optimizer in optimizers for state in optimizer.state.values() for tensor in state.values()]
    assert counted["optimiser"] == sum(tensor.nbytes for tensor in states if tensor.ndim > 0)
    assert counted["weights"] == sum(p.nbytes for module in (codec, discriminator) for p in module.parameters())
    assert counted["average"] == sum(p.nbytes for p in trainer.average.module.parameters())
    assert counted["gradients"] == counted["weights"]
    codec.encoder.requires_grad_(False)
    assert fixed_memory(codec, [])["gradients"] == sum(p.nbytes for p in codec.decoder.parameters())
    assert sum(trains for _, trains in local_parameters(codec)) == len(list(codec.decoder.parameters()))


def test_memory_that_is_given_back_counts_at_its_peak():
    with PeakMemory(torch.device("cpu")) as memory:
        for _ in range(20):
            # 64 MB, written to: too much for malloc to take from what earlier tests have left it.
            np.ones(8 * 10**6)
    assert 60e6 < memory.rise < 100e6


def test_time_is_told_by_phase():
    recipe = Recipe(max_steps=100, discriminator=DiscriminatorConfig(start_step=60))
    assert starts_of_phases(recipe) == [0, 60]
    assert run_seconds(recipe, {0: 1.0, 60: 2.0}) == 140
    assert starts_of_phases(Recipe(max_steps=50, discriminator=recipe.discriminator)) == [0]
    assert starts_of_phases(Recipe()) == starts_of_phases(Recipe(discriminator=DiscriminatorConfig())) == [0]
