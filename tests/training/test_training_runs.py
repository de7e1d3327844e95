"""Runs of the trainer: they learn, are killed and go on, share work, and say what is wrong."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
import yaml
from accelerate.tracking import WandBTracker
from datasets import Dataset
from safetensors.torch import load_file
from support.processes import finish
from support.training_runs import (
    ADVERSARIAL,
    CHECKOUT,
    TINY,
    TORCHRUN,
    assert_equal,
    make_trainer,
    published,
    start_script,
    start_training,
    train,
)

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from training import validation
from training.checkpoints import CheckpointError, complete_checkpoints
from training.cuda_graph import check_replayable
from training.discriminator import DiscriminatorError, MultiResolutionDiscriminator
from training.publish import publish
from training.recipe import RecipeError, parse_recipe
from training.train import main
from training.trainer import Trainer

pytestmark = pytest.mark.slow


def validations(output: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"step"')]


def test_a_killed_run_resumes_exactly(recipe_file, tmp_path):
    """Killed between checkpoints, then run again, it ends with the weights of a run that nobody disturbed."""
    options = (*ADVERSARIAL, "--discriminator.resolutions_per_step", 2, "--discriminator.start_step", 2)
    killed = start_training(recipe_file, *options, "--output_dir", tmp_path / "killed")
    while killed.poll() is None and not (tmp_path / "killed" / "checkpoint-4").exists():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "model").exists(), "the run was over before it could be killed"
    train(recipe_file, *options, "--output_dir", tmp_path / "killed")
    train(recipe_file, *options, "--output_dir", tmp_path / "undisturbed")
    assert_equal(published(tmp_path / "undisturbed"), published(tmp_path / "killed"))
    assert [path.name for path in complete_checkpoints(tmp_path / "killed")] == ["checkpoint-6", "checkpoint-8"]


def test_two_processes_train_like_one_with_the_same_global_batch(recipe_file, tmp_path):
    # The dither of training is drawn by each process for itself, so it is switched off to compare.
    steady = ("--config.training_noise_probability", 0, "--config.training_rounding_probability", 0, *ADVERSARIAL)
    options = (*steady, "--batch_size", 1, "--output_dir", tmp_path / "two")
    two = start_script("training/train.py", recipe_file, *options, launcher=TORCHRUN)
    train(recipe_file, *steady, "--batch_size", 2, "--output_dir", tmp_path / "one")
    finish(two)
    one, two = published(tmp_path / "one"), published(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    for name, processes in (("one", 1), ("two", 2)):  # the log tells which was which, in plain numbers
        (log,) = (tmp_path / name).glob("log/*/hparams.yml")
        recipe = yaml.safe_load(log.read_text())
        assert (recipe["processes"], recipe["batch_size"]) == (processes, 2 // processes)


def test_accumulated_batches_train_like_one_large_batch(recipe_file, tmp_path):
    steady = ("--config.training_noise_probability", 0, "--config.training_rounding_probability", 0, *ADVERSARIAL)
    train(recipe_file, *steady, "--batch_size", 2, "--output_dir", tmp_path / "large")
    small = ("--batch_size", 1, "--gradient_accumulation_steps", 2)
    train(recipe_file, *steady, *small, "--output_dir", tmp_path / "small")
    large, small = published(tmp_path / "large"), published(tmp_path / "small")
    assert all(torch.allclose(large[name], small[name], atol=1e-4) for name in large)


def test_a_run_learns_and_publishes_what_it_learnt(recipe_file, tmp_path, capfd):
    """From scratch, then fine-tuned from the published folder, streaming: the loss falls and the folders load."""
    brief = ("--checkpoint_every", 1_000, "--validation.every", 20)
    train(recipe_file, *brief, "--max_steps", 60, "--output_dir", tmp_path / "scratch")
    first, *_, last = validations(capfd.readouterr().out)
    assert last["validation/loss"] < 0.9 * first["validation/loss"]
    assert last["validation/gap"] == pytest.approx(0, abs=1e-3), "it validates on what it trains on"
    named = ("pesq_wb", "stoi", "si_sdr", "mel_distance", "log_mel", "tokens_used", "entropy_bit_rate")
    assert {f"validation/{name}" for name in (*named, "digit_entropy", "digit_entropy_0_5")} <= last.keys()
    assert list((tmp_path / "scratch").glob("log/events.out.tfevents.*"))
    assert len(list((tmp_path / "scratch").glob("samples/step-60/0-*.wav"))) == 2
    model = TaaeModel.from_pretrained(tmp_path / "scratch" / "model")
    assert model(torch.zeros(1, 1, 1_000)).audio_values.shape == (1, 1, 1_000)
    start = ("--size", tmp_path / "scratch" / "model", "--config", "{}", "--data.streaming", "true")
    train(recipe_file, *brief, *start, "--max_steps", 40, "--output_dir", tmp_path / "tuned")
    assert validations(capfd.readouterr().out)[0]["validation/loss"] < 0.9 * first["validation/loss"]


def test_a_run_goes_on_with_a_discriminator_and_publishes_it(recipe_file, tmp_path, capfd):
    """Reconstruction first, adversarial from the checkpoint on, then fine-tuning from what was published."""
    train(recipe_file, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run" / "model" / "discriminator.safetensors").exists()
    train(recipe_file, *ADVERSARIAL, "--output_dir", tmp_path / "run", "--max_steps", 12)
    output = capfd.readouterr().out
    assert "Resuming from" in output and "holds no discriminator" in output
    publish(tmp_path / "run" / "model", tmp_path / "published")
    found = MultiResolutionDiscriminator.from_pretrained(tmp_path / "published")
    assert found.config == {"fft_sizes": [78, 206, 542], "channels": 4, "exponent": 0.5}
    start = ("--size", tmp_path / "published", "--config", "{}", "--output_dir", tmp_path / "tuned")
    tuned = make_trainer(recipe_file, *ADVERSARIAL, *start)
    assert_equal(found.state_dict(), tuned.adversary.module.state_dict())
    with pytest.raises(DiscriminatorError, match="'channels': 4"):
        make_trainer(recipe_file, *ADVERSARIAL, *start, "--discriminator.channels", 8)


def test_a_discriminator_changes_neither_the_first_weights_nor_the_noise(recipe_file, tmp_path):
    """So two runs with and without one differ by the discriminator alone."""
    without = make_trainer(recipe_file, "--output_dir", tmp_path)
    noise = torch.rand(1)
    adversarial = make_trainer(recipe_file, "--output_dir", tmp_path, *ADVERSARIAL)
    assert torch.equal(torch.rand(1), noise)
    assert_equal(without.model.state_dict(), adversarial.model.state_dict())


def test_a_frozen_encoder_keeps_every_token(recipe_file, tmp_path):
    """The decoder learns, on hard rounding as for the published presets; the encoder's weights stay to the last bit."""
    train(recipe_file, "--output_dir", tmp_path / "start", "--max_steps", 2)
    shares = {"training_noise_probability": 0.0, "training_rounding_probability": 1.0, "training_levels": [6, 6, 6, 17]}
    start = ("--size", tmp_path / "start" / "model", "--config", json.dumps(shares), "--freeze_encoder", "true")
    train(recipe_file, *start, "--output_dir", tmp_path / "tuned")
    before, after = published(tmp_path / "start"), published(tmp_path / "tuned")
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("encoder."), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", str(CHECKOUT / "tests")), "Cannot make the model .*tests"),
        (("--config", '{"hiden_sizes": [8]}'), "no field 'hiden_sizes'"),
        (("--config", '{"strides": [2]}'), "one entry per block"),
        (("--attn_implementation", "fast"), "fast"),
        (("--size", str(CHECKOUT / "hub_cards/taae-speech-16k-nano"), "--config", '{"latent_dim": 8}'), "Cannot make"),
        (("--tracker", "nope"), "Accelerate cannot set up this run: "),
        (("--tracker", "wandb"), "--tracker wandb: is not installed"),
        (("--validation.bottleneck", "300bps"), "no bottleneck named '300bps'"),
    ],
)
def test_models_that_cannot_be_made_are_refused(options, message, recipe_file, tmp_path):
    with pytest.raises(RecipeError, match=message):
        make_trainer(recipe_file, *options, "--output_dir", tmp_path)


@pytest.mark.parametrize("option", ["gradient_checkpointing", "compile"])
def test_ways_to_compute_a_step_change_no_result(option, recipe_file, tmp_path):
    one_block = TINY | {"hidden_sizes": [16], "strides": [4], "encoder_depths": [1], "decoder_depths": [1]}
    one_step = ("--max_steps", 1, "--validation.corpus", "null", "--config", json.dumps(one_block))
    train(recipe_file, *one_step, "--output_dir", tmp_path / "plain")
    train(recipe_file, *one_step, f"--{option}", "true", "--output_dir", tmp_path / option)
    plain, other = published(tmp_path / "plain"), published(tmp_path / option)
    assert all(torch.allclose(plain[name], other[name], atol=1e-5) for name in plain)


@pytest.mark.gpu
def test_a_replayed_graph_leaves_the_gradients_of_its_batch(recipe_file, tmp_path):
    """The bottleneck's noise is its own in each pass, so that it is switched off here."""
    quiet = {**TINY, "training_noise_probability": 0.0, "training_rounding_probability": 0.0}
    options = ("--config", json.dumps(quiet), "--losses.waveform", 0, "--validation.corpus", "null")
    plain, replayed = (
        make_trainer(recipe_file, *options, "--cuda_graph", graph, "--output_dir", tmp_path / graph)
        for graph in ("false", "true")
    )
    for batch in 0.1 * torch.randn(3, 2, 1, 16 * 640, device="cuda"):
        losses = [trainer.forward_and_backward(batch)["loss"].item() for trainer in (plain, replayed)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for parameter, other in zip(plain.model.parameters(), replayed.model.parameters(), strict=True):
            assert torch.allclose(parameter.grad, other.grad, atol=1e-5)
        for trainer in (plain, replayed):
            trainer.update()


def test_a_graph_is_refused_where_there_is_no_gpu(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RecipeError, match="cuda_graph: needs a GPU with CUDA, and this run computes on cpu"):
        make_trainer(recipe_file, "--cuda_graph", "true", "--output_dir", tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "losses.waveform, which fades"),
        (("--losses.waveform", 0, *ADVERSARIAL), "discriminator"),
        (("--losses.waveform", 0, "--gradient_accumulation_steps", 2), "gradient_accumulation_steps"),
    ],
)
def test_a_graph_is_refused_where_passes_differ(options, named, recipe_file):
    recipe = parse_recipe([recipe_file, *map(str, options)])
    with pytest.raises(RecipeError, match=f"cuda_graph: does not go with {named}; leave"):
        check_replayable(recipe, torch.device("cuda"), processes=1)


def test_bfloat16_trains_float32_weights(recipe_file, tmp_path):
    options = ("--mixed_precision", "bf16", "--attn_implementation", "eager", *ADVERSARIAL)
    trainer = train(recipe_file, *options, "--output_dir", tmp_path)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model" / "model.safetensors").values())


def test_a_resumed_run_steps_as_its_recipe_says_now(recipe_file, tmp_path):
    train(recipe_file, "--max_steps", 2, *ADVERSARIAL, "--output_dir", tmp_path)
    now = {"learning_rate": 1e-5, "weight_decay": 0.5, "betas": [0.5, 0.6]}
    options = [word for name, value in now.items() for word in (f"--optimizer.{name}", value)]
    trainer = train(recipe_file, *ADVERSARIAL, *options, "--optimizer.decay_steps", 0, "--output_dir", tmp_path)
    for optimizer in (trainer.optimizer, trainer.adversary.optimizer):
        (group,) = optimizer.param_groups
        assert (group["weight_decay"], list(group["betas"])) == (0.5, [0.5, 0.6])
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_a_resumed_run_may_accumulate_other_numbers_of_batches(recipe_file, tmp_path, monkeypatch):
    train(recipe_file, "--max_steps", 3, "--output_dir", tmp_path)
    options = ("--max_steps", 5, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path)
    trainer, batches = make_trainer(recipe_file, *options), []
    update = trainer.update

    def counted_update() -> dict:
        batches.append(trainer.accelerator.step)
        return update()

    monkeypatch.setattr(trainer, "update", counted_update)
    trainer.train()
    assert (trainer.step, batches) == (5, [2, 4])


def test_a_run_goes_on_with_the_model_that_it_began_with(recipe_file, tmp_path, capfd):
    train(recipe_file, "--max_steps", 2, "--output_dir", tmp_path)
    before = published(tmp_path)
    with pytest.raises(RecipeError, match="has freeze_encoder False, this recipe True; choose another --output_dir"):
        train(recipe_file, "--max_steps", 4, "--freeze_encoder", "true", "--output_dir", tmp_path)
    train(recipe_file, "--max_steps", 2, "--seed", 1, "--output_dir", tmp_path)
    assert "has its 2 steps, so nothing is trained" in capfd.readouterr().out
    assert_equal(published(tmp_path), before)


def test_a_decay_that_is_longer_than_the_run_is_told(recipe_file, tmp_path, capfd):
    train(recipe_file, "--max_steps", 1, "--optimizer.decay_steps", 100, "--output_dir", tmp_path)
    assert "so the learning rate gets to 0% of 0.003 only" in capfd.readouterr().out


def test_a_codec_keeps_its_loudness(tiny_model_folder, recipe_file, tmp_path):
    start = Path(shutil.copytree(tiny_model_folder, tmp_path / "start"))
    TaaeFeatureExtractor(target_loudness=None).save_pretrained(start)
    options = ("--size", start, "--config", "{}", "--max_steps", 1)
    train(recipe_file, *options, "--output_dir", tmp_path / "run")
    assert TaaeFeatureExtractor.from_pretrained(tmp_path / "run" / "model").target_loudness is None


def test_pictures_go_to_any_tracker(recipe_file, tmp_path):
    trainer = make_trainer(recipe_file, "--output_dir", tmp_path)
    tracker = create_autospec(WandBTracker, instance=True)
    tracker.name = "wandb"
    trainer.accelerator.trackers = [tracker]
    trainer.validate()
    (pictures,), options = tracker.log_images.call_args
    assert pictures["validation/0"].ndim == 4 and options == {"step": 0}


class Clerk:
    """A judge that finds one error in ten words, counts what it loads, and draws from the run's generator."""

    loaded = 0
    metrics, facts = {}, {"recognizer": "Clerk 1, for tests"}

    def __init__(self):
        Clerk.loaded += 1
        torch.rand(3)

    def judge(self, clips):
        assert all(len(clip.decoded) == len(clip.reference) and clip.facts["text"] == "Ab c" for clip in clips)
        return [{"dwer": [1, 10], "distillmos": None} for _ in clips]


def test_validation_with_judges_changes_no_weight(recipe_file, tmp_path, monkeypatch, capfd):
    options = (*ADVERSARIAL, "--validation.every", 4)
    train(recipe_file, *options, "--output_dir", tmp_path / "without")
    assert "dwer" not in capfd.readouterr().out
    monkeypatch.setattr(validation, "choose_judges", lambda metrics, device: ([], [Clerk()], ["left out: the others"]))
    train(recipe_file, *options, "--validation.judges", "true", "--output_dir", tmp_path / "judged")
    output = capfd.readouterr().out
    assert [line["validation/dwer"] for line in validations(output)] == [0.1, 0.1] and Clerk.loaded == 1
    assert output.count("validation.judges: left out: the others") == 1 and "distillmos" not in output
    assert_equal(published(tmp_path / "without"), published(tmp_path / "judged"))


def test_copies_of_checkpoints_are_left_alone(recipe_file, tmp_path):
    copies = [tmp_path / f"checkpoint-{name}" for name in ("2-before-decay", "2.bak", "best")]
    for copy in copies:
        copy.mkdir()
    train(recipe_file, "--keep_checkpoints", 1, "--output_dir", tmp_path)
    train(recipe_file, "--keep_checkpoints", 1, "--max_steps", 10, "--output_dir", tmp_path)
    assert set(tmp_path.glob("checkpoint-*")) == {*copies, tmp_path / "checkpoint-10"}


def test_a_discriminator_that_learns_every_other_step_is_logged(recipe_file, tmp_path, monkeypatch):
    trainer = make_trainer(
        recipe_file, *ADVERSARIAL, "--discriminator.update_every", 2, "--log_every", 2, "--output_dir", tmp_path
    )
    logged = []
    monkeypatch.setattr(trainer.accelerator, "log", lambda values, step: logged.append(values))
    trainer.train()
    assert all("train/discriminator" in values for values in logged if "train/loss" in values)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_without_audio_is_told_in_a_line(workers, recipe_file, tmp_path):
    Dataset.from_dict({"audio": [{"bytes": b"text", "path": None}] * 5}).to_parquet(tmp_path / "bad.parquet")
    corpora = json.dumps([{"source": str(tmp_path / "bad.parquet")}])
    stream = ("--data.streaming", "true", "--data.workers", workers, "--validation.corpus", "null")
    process = start_training(recipe_file, "--data.corpora", corpora, *stream, "--output_dir", tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "train.py: error: No audio can be decoded of 5 rows in the share of process 1 of 1 (" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("place", ["samples", "recipe.json"])
def test_a_full_disk_is_told_in_a_line_wherever_it_shows(place, recipe_file, tmp_path):
    if place == "samples":
        (tmp_path / place).write_text("in the way of a folder, as a full disk is in the way of a file")
    else:
        (tmp_path / place).mkdir()
    process = start_training(recipe_file, "--output_dir", tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "to resume from the newest checkpoint" in output and "Traceback" not in output


def test_too_little_memory_is_told_in_a_line(recipe_file, tmp_path, monkeypatch):
    def fail(trainer: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB. And much else.")

    monkeypatch.setattr(Trainer, "train", fail)
    monkeypatch.setattr(sys, "argv", ["train.py", recipe_file, "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"too little memory \(CUDA out of memory\). Lower --batch_size"):
        main()


def test_what_is_published_is_there_whole_or_not_at_all(recipe_file, tmp_path, monkeypatch):
    def fail(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(TaaeFeatureExtractor, "save_pretrained", fail)
        with pytest.raises(OSError, match="No space left"):
            train(recipe_file, "--max_steps", 1, "--output_dir", tmp_path)
    assert not (tmp_path / "model").exists()
    train(recipe_file, "--max_steps", 1, "--output_dir", tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "model").iterdir()}
    assert not (tmp_path / "model.partial").exists()


def test_a_damaged_checkpoint_is_named_and_kept(recipe_file, tmp_path):
    train(recipe_file, "--output_dir", tmp_path)
    weights = tmp_path / "checkpoint-8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000])
    with pytest.raises(CheckpointError, match="Cannot resume from .*checkpoint-8"):
        train(recipe_file, "--output_dir", tmp_path)
    assert weights.exists()


def test_a_full_disk_costs_no_checkpoint(recipe_file, tmp_path, monkeypatch):
    trainer = make_trainer(recipe_file, "--output_dir", tmp_path)
    save_state = trainer.accelerator.save_state

    def write_to_a_full_disk(folder: str) -> None:
        if "checkpoint-6" in folder:
            Path(folder).mkdir()
            raise OSError(28, "No space left on device")
        save_state(folder)

    monkeypatch.setattr(trainer.accelerator, "save_state", write_to_a_full_disk)
    with pytest.raises(CheckpointError, match=r"checkpoint-6: \[Errno 28\] No space left on device"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2", "checkpoint-4"]


def test_a_diverged_run_says_what_to_do(recipe_file, tmp_path):
    options = ("--optimizer.learning_rate", "1e30", "--optimizer.warmup_steps", 1, "--output_dir", tmp_path)
    process = start_training(recipe_file, *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Lower optimizer.learning_rate" in output and "Traceback" not in output
