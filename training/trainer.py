"""The trainer: the state of a run, its loop, and its outputs.

A run consists of optimiser steps. It writes checkpoints that resume exactly, a log for any Accelerate tracker, and at
the end the averaged weights as a folder that `AutoModel.from_pretrained` loads.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers.utils import CONFIG_NAME

from modeling_taae import TaaeConfig
from modeling_taae.audio_io import averaged_note
from modeling_taae.files import as_json, completed, write_bytes
from training.auxiliary import AuxiliaryNetwork
from training.batches import batches_of, batches_of_stream, shares
from training.checkpoints import (
    Writer,
    checkpoint_step,
    complete_checkpoints,
    load_average,
    load_checkpoint,
    save_average,
    save_checkpoint,
)
from training.ctc import CTCReader
from training.cuda_graph import ReplayedPasses, check_replayable
from training.data import StreamedCrops, TrainingCrops
from training.discriminator import Adversary
from training.launch import batch_share, make_accelerator
from training.losses import ReconstructionLoss, weighted_sum
from training.model import load_extractor, load_model, prepare_model
from training.optimization import (
    DivergenceWatch,
    build_optimizer,
    learning_rate_factor,
    step_if_finite,
    tell_schedule,
    trainable_parameters,
)
from training.perceptual import PerceptualLoss
from training.precision import choose_attention, choose_workers
from training.provenance import TRAINING_DATA, training_data
from training.publish import check_hub, publish_on_hub
from training.recipe import Recipe, RecipeError
from training.sharding import WeightAverage, is_sharded, prepare_sharded, shard, unsharded, whole_tensor
from training.validation import Validator

RECIPE_NAME = "recipe.json"  # in the run's folder
LOCK_NAME = ".training.lock"

Terms = dict[str, torch.Tensor]  # scalars by name


class IncompleteRunError(RuntimeError):
    """A run that ended before its last step."""


class Trainer:
    """The state of a run and its loop.

    Args:
        recipe: the settings of the run.

    Raises:
        RecipeError: if there is nothing to train on, or a part of the recipe does not fit another or the launch.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, self.step, self.batch_size = recipe, 0, batch_share(recipe.batch_size)
        self.output_dir = Path(recipe.output_dir)
        self.accelerator, self.precision = make_accelerator(recipe)
        processes, device = self.accelerator.num_processes, self.accelerator.device
        local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        self.workers = choose_workers(recipe.data.workers, device, local)
        self.data = replace(recipe.data, workers=self.workers)
        check_hub(recipe)
        if recipe.cuda_graph:
            check_replayable(recipe, device, processes)
        set_seed(recipe.seed)  # the same weights in every process
        attention = choose_attention(recipe.attn_implementation, device, self.precision.precision, recipe.compile)
        model = prepare_model(load_model(recipe, attention), recipe)
        self.extractor = load_extractor(recipe, model.config)
        self.crops: TrainingCrops | None = None
        self.validator: Validator | None = None
        if not recipe.dry_run:
            self._read_speech()
        self._make_losses(model.config, attention == "eager")
        self.watch = DivergenceWatch(recipe.optimizer.divergence_ratio)
        self.average = WeightAverage(model, recipe.optimizer.ema_decay)
        sharded = is_sharded(self.accelerator)
        for network in (model, self.average.module):
            if sharded:
                shard(network, device)
            else:
                network.to(device)
        prepare: Callable = prepare_sharded if sharded else Accelerator.prepare
        self.model, self.optimizer = prepare(self.accelerator, model, build_optimizer(model))
        self.passes: Callable[..., Terms] = self._passes
        if recipe.cuda_graph:
            self.passes = ReplayedPasses(self._passes, trainable_parameters(self.model))
        set_seed(recipe.seed, device_specific=True)  # but different noise

    def _read_speech(self) -> None:
        recipe = self.recipe
        if not recipe.data.streaming:
            with self.accelerator.local_main_process_first():  # the others find the decoded corpus
                self.crops = TrainingCrops(self.data, self.extractor, recipe.seed)
            if self.crops.skipped:
                self.accelerator.print(
                    f"{self.crops.skipped} recordings could not be decoded and are left out: {self.crops.reasons}."
                )
            if self.crops.averaged:
                self.accelerator.print(f"{averaged_note(self.crops.averaged)}.")
        if recipe.validation.corpus is not None and self.accelerator.is_main_process:
            self.validator = Validator(recipe, self.extractor, str(self.accelerator.device))

    def _make_losses(self, config: TaaeConfig, eager: bool) -> None:
        recipe, device, sampling_rate = self.recipe, self.accelerator.device, config.sampling_rate
        self.reconstruction = ReconstructionLoss(sampling_rate).to(device)
        self.perceptual: PerceptualLoss | None = None
        self.adversary: Adversary | None = None
        self.reader: CTCReader | None = None
        if recipe.perceptual is not None:
            self.perceptual = PerceptualLoss(recipe.perceptual, sampling_rate, eager).to(device)
        if recipe.discriminator is not None:
            self.adversary = Adversary(recipe, self.accelerator, config.hop_length)
        if recipe.ctc is not None:
            self.reader = CTCReader(recipe, self.accelerator, self.extractor, config.latent_dim)
        self.auxiliaries: list[AuxiliaryNetwork] = [part for part in (self.adversary, self.reader) if part is not None]

    def shares(self, size: int) -> list[range]:
        """Returns the indices of the items in each of this process's batches, from the current step to the last.

        Args:
            size: items in a batch.
        """
        accumulated = self.recipe.gradient_accumulation_steps
        batches = range(self.step * accumulated, self.recipe.max_steps * accumulated)
        return shares(size, batches, self.accelerator.process_index, self.accelerator.num_processes)

    def batches(self) -> Iterable[torch.Tensor]:
        """Yields this process's batches of crops, (batch, 1, samples), from the current step to the last."""
        recipe, size, data = self.recipe, self.batch_size, self.data
        own = self.shares(size)
        if data.streaming:
            first = self.step * recipe.gradient_accumulation_steps * size
            place = self.accelerator.process_index, self.accelerator.num_processes, first
            crops = StreamedCrops(data, self.extractor, recipe.seed, *place)
            return batches_of_stream(crops, size, len(own), self.workers)
        return batches_of(self.crops, own, self.workers, pinned=self.accelerator.device.type == "cuda")

    def utterances(self) -> Iterable[dict | None]:
        """Yields this process's batches of transcribed utterances; None for each if there is no CTC head."""
        if self.reader is None:
            return itertools.repeat(None)
        shares = self.shares(batch_share(self.reader.settings.batch_size))
        return self.reader.batches(shares, self.workers)

    def train(self) -> None:
        """Runs from the newest checkpoint, if there is one, to the last step.

        Raises:
            RecipeError: if another run trains in the folder, or its checkpoints are of another model.
            DivergenceError: if the run diverges.
            CheckpointError: if a checkpoint cannot be read or written.
            IncompleteRunError: if the speech ends before the last step.
            HubError: if the trained model cannot be published.
        """
        with locked(self.output_dir, self.accelerator):
            self.resume()
            self.keep_recipe()
            tell_schedule(self.recipe, self.step, self.accelerator.print)
            self.accelerator.print(f"Computing in {self.precision}.")
            try:
                self._start_log()
                self._loop()
                self.publish()
            finally:
                self.accelerator.end_training()

    def _start_log(self) -> None:
        processes, precision = self.accelerator.num_processes, self.precision.precision
        logged = {**flatten(asdict(self.recipe)), "processes": processes, "computed_in": precision}
        # For TensorBoard, a folder in the run's folder; for other trackers, the name of a project.
        project = "log" if self.recipe.tracker == "tensorboard" else self.output_dir.name
        self.accelerator.init_trackers(project, config=logged)

    def _loop(self) -> None:
        progress = tqdm(
            initial=self.step,
            total=self.recipe.max_steps,
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        )
        self.model.train()
        for crops, utterances in zip(self.batches(), self.utterances(), strict=False):
            with self.accelerator.accumulate(self.model):
                log = self.forward_and_backward(crops.to(self.accelerator.device, non_blocking=True), utterances)
                if self.accelerator.sync_gradients:
                    log |= self.update()
                    progress.update()
                    self.after_step(log, progress)
        progress.close()
        if self.step < self.recipe.max_steps:
            raise IncompleteRunError(
                f"The run ended after {self.step:,} of {self.recipe.max_steps:,} steps. Nothing is published; the same "
                "command resumes from the newest checkpoint."
            )

    def forward_and_backward(self, audio: torch.Tensor, utterances: dict | None = None) -> Terms:
        """Accumulates the gradients of a batch and returns its losses for the log; arguments as for `losses`."""
        return self.passes(audio, utterances)

    def _passes(self, audio: torch.Tensor, utterances: dict | None = None) -> Terms:
        _, terms, others = self.losses(audio, utterances)
        loss = weighted_sum(terms, self.recipe.losses, self.step)
        self.accelerator.backward(loss)
        return {name: value.detach() for name, value in {**terms, **others, "loss": loss}.items()}

    def losses(self, audio: torch.Tensor, utterances: dict | None = None) -> tuple[torch.Tensor, Terms, Terms]:
        """Decodes a batch and computes all losses.

        The codec decodes once: its own losses and the discriminator's are computed from the same audio.

        Args:
            audio: (batch, 1, samples).
            utterances: a batch for the CTC head, if there is one.

        Returns:
            The decoded audio, the terms of the codec's loss at weight 1, and others' losses, for the log.
        """
        with self.accelerator.autocast():  # a sharded model has no autocast of its own
            decoded = self.model(audio).audio_values
        terms: Terms = self.reconstruction(decoded, audio)
        others: Terms = {}
        if self.perceptual is not None:
            with self.accelerator.autocast():
                terms["perceptual"] = self.perceptual(decoded, audio)
        if self.adversary is not None and self.adversary.active(self.step):
            adversarial, others = self.adversary.losses(decoded, audio, self.step)
            terms |= adversarial
        if self.reader is not None and utterances is not None:
            terms["ctc"] = self.reader.loss(self.accelerator.unwrap_model(self.model), utterances)
        return decoded, terms, others

    def update(self) -> Terms:
        """Takes one step of the optimisers with the accumulated gradients; returns the gradient norm for the log."""
        settings = self.recipe.optimizer
        norm = whole_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm))
        learning_rate = settings.learning_rate * learning_rate_factor(settings, self.recipe.max_steps, self.step)
        step_if_finite(self.optimizer.optimizer, settings, learning_rate, norm)
        self.optimizer.zero_grad()
        for auxiliary in self.auxiliaries:
            auxiliary.update(self.step)
        self.step += 1
        return {"grad_norm": norm}

    def after_step(self, log: Terms, progress: tqdm) -> None:
        """Checks for divergence, averages, logs, validates and saves, each at its steps."""
        recipe, last = self.recipe, self.step == self.recipe.max_steps
        logging, saving = (last or self.step % every == 0 for every in (recipe.log_every, recipe.checkpoint_every))
        self.watch.note(log["log_mel"], log["grad_norm"])
        if logging or saving:
            self.watch.look()
        if self.step % recipe.optimizer.ema_every == 0 or last:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        if logging:
            values = {f"train/{name}": value.item() for name, value in log.items()}
            progress.set_postfix(loss=f"{values['train/loss']:.3f}")
            values["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
            self.accelerator.log(values, step=self.step)
        # Before the checkpoint, because a run interrupted during the validation would otherwise resume after it.
        if recipe.validation.corpus is not None and (self.step % recipe.validation.every == 0 or last):
            self.validate()
        if saving:
            self.save()

    def validate(self) -> None:
        """Scores the averaged weights, in the main process, and logs the means."""
        model = unsharded(self.average.module, self.accelerator.device)
        if model is None or self.validator is None:
            return
        means = self.validator.run(model.eval(), self.validation_loss, self.accelerator, self.step)
        if self.reader is not None:
            means |= self.reader.validate(model)
        means = {f"validation/{name}": value for name, value in means.items()}
        self.accelerator.log(means, step=self.step)
        tqdm.write(json.dumps({"step": self.step} | {name: round(value, 4) for name, value in means.items()}))

    def validation_loss(self, decoded: torch.Tensor, audio: torch.Tensor) -> Terms:
        """Returns the reconstruction terms of decoded audio, and their sum as `"loss"`, without adversarial terms."""
        terms = self.reconstruction(decoded, audio)
        return {**terms, "loss": weighted_sum(terms, self.recipe.losses, self.step)}

    def save(self) -> None:
        """Writes model, average, optimiser, random states and auxiliary networks as a checkpoint."""
        target, main = self.output_dir / f"checkpoint-{self.step}", self.accelerator.is_main_process
        writers: list[Writer] = [partial(save_average, self.average, main)]
        writers += [auxiliary.save for auxiliary in self.auxiliaries if main]
        save_checkpoint(self.accelerator, target, self.recipe.keep_checkpoints, writers)

    def resume(self) -> None:
        """Resumes from the newest checkpoint in the output folder, if there is one.

        Raises:
            RecipeError: if it belongs to a run with another model.
            CheckpointError: if it is damaged.
        """
        if checkpoints := complete_checkpoints(self.output_dir):
            self._check_kept_recipe()
            readers: list[Writer] = [partial(load_average, self.average)]
            readers += [auxiliary.load for auxiliary in self.auxiliaries]
            load_checkpoint(self.accelerator, checkpoints[-1], readers)
            self.step = checkpoint_step(checkpoints[-1])
            # No batches since the last update, even if their number per update has changed.
            self.accelerator.step = 0
            self.accelerator.print(f"Resuming from {checkpoints[-1]}.")

    def _check_kept_recipe(self) -> None:
        kept = self.output_dir / RECIPE_NAME
        if not kept.exists():
            return
        before = json.loads(kept.read_text(encoding="utf-8"))
        for name in ("size", "config", "freeze_encoder"):
            if before[name] != (now := getattr(self.recipe, name)):
                raise RecipeError(
                    f"The run in {self.output_dir} has {name} {before[name]}, this recipe {now}; choose another "
                    "--output_dir."
                )

    def keep_recipe(self) -> None:
        """Writes the recipe, with all its defaults, into the run's folder."""
        if self.accelerator.is_main_process:
            content = json.dumps(asdict(self.recipe), indent=2, ensure_ascii=False)
            write_bytes(self.output_dir / RECIPE_NAME, f"{content}\n".encode())

    def publish(self) -> None:
        """Writes the averaged weights, fused, with the files of a model to `output_dir/model`, and to the Hub.

        Raises:
            HubError: if the recipe names a repository and the model cannot be published there.
        """
        self.accelerator.wait_for_everyone()
        if (model := unsharded(self.average.module, self.accelerator.device)) is not None:
            data = training_data(self.recipe, self.crops, self.extractor.sampling_rate, str(self.precision))
            with completed(self.output_dir / "model", CONFIG_NAME) as folder:
                for part in (model, self.extractor, *(auxiliary.module for auxiliary in self.auxiliaries)):
                    part.save_pretrained(folder)
                write_bytes(folder / TRAINING_DATA, as_json(data.to_json()))
            if self.recipe.hub is not None:
                publish_on_hub(self.recipe, self.recipe.hub, self.output_dir)


@contextmanager
def locked(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Locks a run's folder against other runs.

    Raises:
        RecipeError: if another run has locked it.
    """
    if not accelerator.is_main_process:
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output_dir / LOCK_NAME, timeout=0):
            yield
    except Timeout as error:
        raise RecipeError(
            f"Another run is training in {output_dir}: wait for its end, or choose another --output_dir."
        ) from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Flattens nested settings to dotted names and plain numbers, which is what trackers take."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            # Restricted numbers of a recipe have their own types, which others could not read.
            kind = next((kind for kind in (bool, int, float) if isinstance(value, kind)), str)
            flat[prefix + name] = kind(value)
    return flat
