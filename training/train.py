"""Trains a TAAE codec: `accelerate launch training/train.py RECIPE.yaml [--any.recipe.key value ...]`.

A run is made of optimiser steps. It writes checkpoints that resume exactly, a log for any Accelerate tracker, and at
the end the averaged weights as a folder that `AutoModel.from_pretrained` loads.
"""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from safetensors import SafetensorError
from soundfile import SoundFileError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae.errors import TaaeInputError, one_line
from modeling_taae.files import write_bytes
from training.adversarial import Adversary
from training.checkpoints import (
    CheckpointError,
    checkpoint_step,
    complete_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from training.cuda_graph import ReplayedPasses, check_replayable
from training.data import StreamedCrops, TrainingCrops
from training.dry_run import check_room, dry_run
from training.hub import HubError, check_hub, publish_on_hub
from training.losses import ReconstructionLoss, weighted_sum
from training.model import load_extractor, load_model, prepare_model
from training.optimization import (
    DivergenceError,
    DivergenceWatch,
    build_optimizer,
    learning_rate_factor,
    step_if_finite,
    trainable_parameters,
)
from training.perceptual import PerceptualLoss
from training.recipe import Recipe, RecipeError, parse_recipe
from training.semantic import Reader
from training.sharding import WeightAverage, is_sharded, prepare_sharded, shard, unsharded, whole_tensor
from training.validation import Validator

RECIPE_NAME = "recipe.json"  # in the run's folder


class Trainer:
    """The state of a run and its loop.

    Args:
        recipe: everything that the run depends on.

    Raises:
        RecipeError: if there is nothing to train on, or a part of the recipe does not fit another.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, self.step = recipe, 0
        self.output_dir = Path(recipe.output_dir)
        self.accelerator = make_accelerator(recipe)
        check_hub(recipe)
        if recipe.cuda_graph:
            check_replayable(recipe, self.accelerator.device, self.accelerator.num_processes)
        sharded = is_sharded(self.accelerator)
        set_seed(recipe.seed)  # the same weights in every process
        model = prepare_model(load_model(recipe), recipe)
        config = model.config
        self.extractor = load_extractor(recipe, config)
        self.crops = self.validator = None
        if not recipe.dry_run:
            self._read_speech()
        self.reconstruction = ReconstructionLoss(config.sampling_rate).to(self.accelerator.device)
        self.perceptual = self.adversary = self.reader = None
        if recipe.perceptual is not None:
            self.perceptual = PerceptualLoss(recipe.perceptual, config.sampling_rate).to(self.accelerator.device)
        if recipe.discriminator is not None:
            self.adversary = Adversary(recipe, self.accelerator, config.hop_length)
        if recipe.ctc is not None:
            self.reader = Reader(recipe, self.accelerator, self.extractor, config.latent_dim)
        self.companions = [part.companion for part in (self.adversary, self.reader) if part is not None]
        self.watch = DivergenceWatch(recipe.optimizer.divergence_ratio)
        self.average = WeightAverage(model, recipe.optimizer.ema_decay)
        for network in (model, self.average.module):
            if sharded:
                shard(network, self.accelerator.device)
            else:
                network.to(self.accelerator.device)
        prepare = prepare_sharded if sharded else Accelerator.prepare
        self.model, self.optimizer = prepare(self.accelerator, model, build_optimizer(model))
        self.passes = self._passes
        if recipe.cuda_graph:
            self.passes = ReplayedPasses(self._passes, trainable_parameters(self.model))
        self.accelerator.register_for_checkpointing(self.average)
        set_seed(recipe.seed, device_specific=True)  # and noise of its own

    def _read_speech(self) -> None:
        recipe = self.recipe
        if not recipe.data.streaming:
            with self.accelerator.local_main_process_first():  # the others find what it has decoded
                self.crops = TrainingCrops(recipe.data, self.extractor, recipe.seed)
            self.accelerator.print(f"{self.crops.skipped} recordings could not be decoded and are left out.")
        if recipe.validation.corpus is not None and self.accelerator.is_main_process:
            self.validator = Validator(recipe, self.extractor)

    def shares(self, size: int) -> list[range]:
        """The numbers of the items in each of this process's batches of a size, from the current step to the last.

        The global batch is the same run of items on any number of processes.
        """
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        accumulated = self.recipe.gradient_accumulation_steps
        batches = range(self.step * accumulated, self.recipe.max_steps * accumulated)
        starts = ((batch * processes + process) * size for batch in batches)
        return [range(start, start + size) for start in starts]

    def batches(self) -> Iterable[torch.Tensor]:
        """This process's batches of crops, (batch, 1, samples), from the current step to the last."""
        recipe, process, processes = self.recipe, self.accelerator.process_index, self.accelerator.num_processes
        size, data, shares = recipe.batch_size, recipe.data, self.shares(recipe.batch_size)
        # A generator of its own: a loader draws a number as it starts, which would shift the dither of a resumed run.
        generator = torch.Generator()
        if data.streaming:
            first = self.step * recipe.gradient_accumulation_steps * size
            crops = StreamedCrops(data, self.extractor, recipe.seed, process, processes, first)
            loader = DataLoader(crops, size, num_workers=min(data.workers, 1), generator=generator)
            return itertools.islice(loader, len(shares))
        pinned = self.accelerator.device.type == "cuda"
        return DataLoader(
            self.crops, batch_sampler=shares, num_workers=data.workers, generator=generator, pin_memory=pinned
        )

    def utterances(self) -> Iterable[dict | None]:
        """This process's batches of transcribed utterances, one for each of crops, if the recipe has a CTC head."""
        if self.reader is None:
            return itertools.repeat(None)
        return self.reader.batches(self.shares(self.recipe.ctc.batch_size))

    def train(self) -> None:
        """Runs from the newest checkpoint, if there is one, to the last step.

        Raises:
            DivergenceError: if the run diverges.
            CheckpointError: if a checkpoint cannot be read or written.
            HubError: if the trained model does not get to the Hub.
        """
        self.resume()
        self.keep_recipe()
        self.tell_schedule()
        logged = {**flatten(asdict(self.recipe)), "processes": self.accelerator.num_processes}
        # TensorBoard makes it a folder in the run's own, others a project among many.
        project = "log" if self.recipe.tracker == "tensorboard" else self.output_dir.name
        self.accelerator.init_trackers(project, config=logged)
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
        try:
            self.publish()
        finally:
            self.accelerator.end_training()

    def forward_and_backward(self, audio: torch.Tensor, utterances: dict | None = None) -> dict[str, torch.Tensor]:
        """Gathers the gradients of a batch and returns its losses for the log; arguments as for `losses`."""
        return self.passes(audio, utterances)

    def _passes(self, audio: torch.Tensor, utterances: dict | None = None) -> dict[str, torch.Tensor]:
        _, terms, others = self.losses(audio, utterances)
        loss = weighted_sum(terms, self.recipe.losses, self.step)
        self.accelerator.backward(loss)
        return {name: value.detach() for name, value in {**terms, **others, "loss": loss}.items()}

    def losses(
        self, audio: torch.Tensor, utterances: dict | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What a batch is decoded to, the terms of the codec's loss, at weight 1, and others' losses, for the log.

        The codec decodes once: its own losses and the discriminator's are taken from the same audio.

        Args:
            audio: (batch, 1, samples).
            utterances: a batch for the CTC head, if there is one.
        """
        with self.accelerator.autocast():  # which a sharded model does not bring along
            decoded = self.model(audio).audio_values
        terms, others = self.reconstruction(decoded, audio), {}
        if self.perceptual is not None:
            with self.accelerator.autocast():
                terms["perceptual"] = self.perceptual(decoded, audio)
        if self.adversary is not None and self.adversary.active(self.step):
            adversarial, others = self.adversary.losses(decoded, audio, self.step)
            terms |= adversarial
        if self.reader is not None:
            terms["ctc"] = self.reader.loss(self.accelerator.unwrap_model(self.model), utterances)
        return decoded, terms, others

    def update(self) -> dict[str, torch.Tensor]:
        """One step of the optimisers with the gradients gathered; returns the gradient norm for the log."""
        settings = self.recipe.optimizer
        norm = whole_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm))
        learning_rate = settings.learning_rate * learning_rate_factor(settings, self.recipe.max_steps, self.step)
        step_if_finite(self.optimizer.optimizer, settings, learning_rate, norm)
        self.optimizer.zero_grad()
        for companion in self.companions:
            companion.update(self.step)
        self.step += 1
        return {"grad_norm": norm}

    def after_step(self, log: dict[str, torch.Tensor], progress: tqdm) -> None:
        """Watches, averages, logs, validates and saves, each when its time has come."""
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
        # Before the checkpoint, from which a run that is interrupted meanwhile would go on without it.
        if recipe.validation.corpus is not None and (self.step % recipe.validation.every == 0 or last):
            self.validate()
        if saving:
            self.save()

    def validate(self) -> None:
        """Scores the averaged weights, in the main process, and logs the means."""
        if (model := unsharded(self.average.module, self.accelerator.device)) is None:
            return
        means = self.validator.run(model.eval(), self.validation_loss, self.accelerator, self.step)
        if self.reader is not None:
            means |= self.reader.validate(model)
        means = {f"validation/{name}": value for name, value in means.items()}
        self.accelerator.log(means, step=self.step)
        tqdm.write(json.dumps({"step": self.step} | {name: round(value, 4) for name, value in means.items()}))

    def validation_loss(self, decoded: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """The reconstruction terms of decoded audio, and as `"loss"` their sum, which no discriminator moves."""
        terms = self.reconstruction(decoded, audio)
        return {**terms, "loss": weighted_sum(terms, self.recipe.losses, self.step)}

    def save(self) -> None:
        """Writes model, average, optimiser, random state and companions as a checkpoint."""
        target = self.output_dir / f"checkpoint-{self.step}"
        writers = [companion.save for companion in self.companions]
        save_checkpoint(self.accelerator, target, self.recipe.keep_checkpoints, writers)

    def resume(self) -> None:
        """Goes on from the newest checkpoint in the output folder, if there is one.

        Raises:
            RecipeError: if it is of a run of another model.
        """
        if checkpoints := complete_checkpoints(self.output_dir):
            self._check_kept_recipe()
            load_checkpoint(self.accelerator, checkpoints[-1], [companion.load for companion in self.companions])
            self.step = checkpoint_step(checkpoints[-1])
            # Batches since the last update: none, even if there are to be other numbers of them now.
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

    def tell_schedule(self) -> None:
        """Says so where nothing is left to train, or the learning rate cannot get to where the recipe has it."""
        settings, steps = self.recipe.optimizer, self.recipe.max_steps
        if self.step >= steps:
            self.accelerator.print(
                f"The run in {self.output_dir} has its {steps:,} steps, so nothing is trained; raise --max_steps to go "
                "on, or choose another --output_dir for a new run."
            )
        elif settings.warmup_steps + settings.decay_steps > steps:
            highest = max(learning_rate_factor(settings, steps, step) for step in range(steps))
            self.accelerator.print(
                f"Warm-up and decay take more than the {steps:,} steps, so the learning rate gets to {highest:.0%} of "
                f"{settings.learning_rate:g} only; lower --optimizer.decay_steps."
            )

    def publish(self) -> None:
        """Writes the averaged weights, fused, with all that goes with them, to `output_dir/model`, and to the Hub.

        Raises:
            HubError: if the recipe names a place on the Hub, and the model does not get there.
        """
        self.accelerator.wait_for_everyone()
        if (model := unsharded(self.average.module, self.accelerator.device)) is not None:
            folder, partial = self.output_dir / "model", self.output_dir / "model.partial"
            shutil.rmtree(partial, ignore_errors=True)
            for part in (model, self.extractor, *(companion.module for companion in self.companions)):
                part.save_pretrained(partial)
            folder.mkdir(exist_ok=True)
            for file in partial.iterdir():
                os.replace(file, folder / file.name)
            partial.rmdir()
            if self.recipe.hub is not None:
                publish_on_hub(self.recipe, self.output_dir)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The processes and devices of a run.

    Raises:
        RecipeError: if there is no such tracker, its package is not installed, or the machine cannot do what is asked.
    """
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # left to itself, it ignores other processes on a CPU
            mixed_precision=recipe.mixed_precision,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            log_with=recipe.tracker,
            project_config=ProjectConfiguration(project_dir=recipe.output_dir),
            # The others wait while one process decodes a corpus or validates.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
        )
    except ValueError as error:
        raise RecipeError(f"Accelerate cannot set up this run: {one_line(error)}") from error
    if not accelerator.log_with:
        raise RecipeError(f"--tracker {recipe.tracker}: is not installed; install it, or choose another.")
    return accelerator


def flatten(tree: dict, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings as dotted names and plain numbers, which is what trackers take."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            # A number that the recipe restricts is of a type of its own, which nobody else could read.
            kind = next((kind for kind in (bool, int, float) if isinstance(value, kind)), str)
            flat[prefix + name] = kind(value)
    return flat


def main() -> None:
    """Entry point: what goes wrong is one line on standard error; exit status 2 for a mistake, 1 for a failure."""
    recipe = parse_recipe(sys.argv[1:])
    try:
        if recipe.dry_run:
            check_room(recipe)
            trainer = Trainer(recipe)
            trainer.accelerator.print(dry_run(trainer))
            trainer.accelerator.end_training()
        else:
            Trainer(recipe).train()
    except RecipeError as error:
        # From a loader's worker it comes with a traceback before it.
        message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        print(f"train.py: error: {message}", file=sys.stderr)
        sys.exit(2)
    except (CheckpointError, HubError) as error:
        sys.exit(f"train.py: {error}")
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        sys.exit(
            f"train.py: the device has too little memory ({reason}). Lower --batch_size and raise "
            "--gradient_accumulation_steps, or try --gradient_checkpointing true."
        )
    # The log, samples or weights on a full disk.
    except (OSError, TaaeInputError, SoundFileError, SafetensorError) as error:
        reason = error.__cause__ or error
        sys.exit(f"train.py: {reason}. Run again once that is seen to: it goes on from the newest checkpoint.")
    except DivergenceError as error:
        sys.exit(
            f"train.py: {error} Lower optimizer.learning_rate, or raise optimizer.warmup_steps, and run again: it goes "
            f"on from the last checkpoint in {recipe.output_dir}."
        )


if __name__ == "__main__":
    main()
