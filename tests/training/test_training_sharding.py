"""A codec sharded over two processes trains as it does whole, saves and resumes, and publishes all of its weights."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from support.processes import finish, two_processes
from support.sharded_training import train_sharded
from support.training_runs import (
    ADVERSARIAL,
    CHECKOUT,
    assert_equal,
    make_trainer,
    published,
    train,
)

from modeling_taae.transformer_taae import TaaeTransformerLayer
from training.checkpoints import CheckpointError
from training.recipe import RecipeError

pytestmark = pytest.mark.slow

# The dither of training is drawn by each process for itself, so it is switched off to compare. With latents of one
# dimension, a process has no share of the convolution that makes them.
STEADY = (
    *("--config.training_noise_probability", 0, "--config.training_rounding_probability", 0),
    *("--config.latent_dim", 1, "--config.bottleneck", "native", "--validation.bottleneck", "native"),
    *("--max_steps", 4, "--validation.utterances", 1, *ADVERSARIAL),
)


@pytest.fixture(scope="module")
def ctc(recipe_file) -> tuple[object, ...]:
    """Options that switch on a CTC head, whose loss calls the encoder by itself."""
    corpus = json.loads(Path(recipe_file).read_text())["data"]["corpora"][0]
    return "--ctc.corpora", json.dumps([corpus]), "--losses.ctc", "0.1"


@pytest.fixture(scope="module")
def sharded(recipe_file, ctc, tmp_path_factory) -> Path:
    """Two runs of two processes, see `sharded_training.py`."""
    folder = tmp_path_factory.mktemp("sharded")
    options = (*STEADY, *ctc, "--ctc.batch_size", 1, "--batch_size", 1, "--gradient_checkpointing", "true")
    finish(*two_processes(partial(train_sharded, recipe_file, folder, *map(str, options))))
    return folder


def test_a_sharded_codec_trains_like_a_whole_one(sharded, recipe_file, ctc, tmp_path):
    """With discriminator, CTC head, clipping and average; and what it publishes loads."""
    batches = ("--ctc.batch_size", 2, "--batch_size", 2)
    trainer = make_trainer(recipe_file, *STEADY, *ctc, *batches, "--output_dir", tmp_path)
    start = {name: tensor.clone() for name, tensor in trainer.model.fused_state_dict().items()}
    trainer.train()
    whole, from_shards = published(tmp_path), published(sharded / "whole")
    assert whole.keys() == from_shards.keys()
    assert all(torch.allclose(whole[name], from_shards[name], atol=1e-4) for name in whole)
    for name in ("encoder.conv_out.weight", "decoder.conv_out.weight"):
        assert (from_shards[name] - start[name]).abs().max() > 1e-3


def test_a_sharded_run_resumes_exactly(sharded):
    assert_equal(published(sharded / "whole"), published(sharded / "resumed"))


def test_transformer_layers_are_the_units_and_every_parameter_is_sharded(sharded):
    shards = json.loads((sharded / "shards.json").read_text())
    layers = [f"{side}.transformer.layers.0" for side in ("encoder.blocks.1", "decoder.blocks.0")]
    assert shards["units"] == ["", *layers]
    assert shards["not sharded"] == []
    # Weights, gradients, average and twice as much for the optimiser, of 4 bytes, halved as well as can be.
    assert 10 * shards["parameters"] <= shards["memory"] < 10.5 * shards["parameters"]


def test_checkpoints_of_sharded_and_whole_runs_are_told_apart(sharded, recipe_file, tmp_path):
    shutil.copytree(sharded / "whole" / "checkpoint-4", tmp_path / "checkpoint-4")
    with pytest.raises(CheckpointError, match=r"checkpoint-4: its run is sharded .* this one is not sharded"):
        train(recipe_file, *STEADY, "--output_dir", tmp_path)


def test_a_launch_that_would_silently_not_shard_is_refused(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="FSDP, which needs two GPUs or more; this run has 1 process"):
        make_trainer(recipe_file, "--output_dir", tmp_path)


def test_the_configuration_asks_for_what_the_trainer_does():
    """Its layer is the one that the code names, and Accelerate reads it."""
    settings = load_config_from_file(str(CHECKOUT / "training" / "configs" / "fsdp.yaml")).fsdp_config
    assert settings["fsdp_version"] == 2
    assert settings["fsdp_transformer_layer_cls_to_wrap"] == TaaeTransformerLayer.__name__
    assert settings["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"
