"""Trains a TAAE codec: `accelerate launch training/train.py RECIPE.yaml [--any.recipe.key value ...]`.

A run is made of optimiser steps. It writes checkpoints that resume exactly, a log for any Accelerate tracker, and at
the end (and at every validation) the averaged weights as a folder that `AutoModel.from_pretrained` loads.
"""

import itertools
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel
from modeling_taae.configuration_taae import NAMED_SIZES
from modeling_taae.metrics import score
from training.data import CorpusError, StreamedCrops, TrainingCrops, validation_clips
from training.losses import ReconstructionLoss
from training.recipe import Optimizer, Recipe, Validation, parse_recipe


class DivergenceError(RuntimeError):
    """The loss is no longer finite."""


def learning_rate_factor(optimizer: Optimizer, max_steps: int, step: int) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, cosine decay to zero at the end."""
    warmup = min(1.0, (step + 1) / max(optimizer.warmup_steps, 1))
    left = (max_steps - step) / max(optimizer.decay_steps, 1)
    return warmup * 0.5 * (1 - math.cos(math.pi * min(max(left, 0.0), 1.0)))


def build_model(recipe: Recipe) -> TaaeModel:
    """The model to train, with weight norm: a named size from scratch, or a published model to go on from."""
    if recipe.size in NAMED_SIZES:
        model = TaaeModel(TaaeConfig.named(recipe.size, **recipe.config))
    else:
        model = TaaeModel.from_pretrained(recipe.size, **recipe.config)
    model.set_attn_implementation(recipe.attn_implementation)
    return model.apply_weight_norm()


class Trainer:
    """The state of a run and its loop.

    Args:
        recipe: everything that the run depends on.

    Raises:
        CorpusError: if there is nothing to train on.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.output_dir = Path(recipe.output_dir)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # left to itself, it ignores other processes on a CPU
            mixed_precision=recipe.mixed_precision,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            log_with=recipe.tracker,
            project_config=ProjectConfiguration(project_dir=str(self.output_dir)),
        )
        set_seed(recipe.seed, device_specific=True)
        model = build_model(recipe)
        config = model.config
        self.extractor = TaaeFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.hop_length)
        self.crops = None
        if not recipe.data.streaming:
            with self.accelerator.main_process_first():  # the others find what it has decoded
                self.crops = TrainingCrops(recipe.data, self.extractor, recipe.seed)
            self.accelerator.print(f"{self.crops.skipped} recordings could not be decoded and are left out.")
        self.clips = list(self._validation_clips(recipe.validation))
        self.losses = ReconstructionLoss(recipe.losses, config.sampling_rate).to(self.accelerator.device)
        settings = recipe.optimizer
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        # One step of this scheduler is one optimiser step whatever the number of processes, so it is not prepared.
        self.scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(settings, recipe.max_steps, step))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
        self.accelerator.register_for_checkpointing(self.scheduler, self.average)
        self.step = 0

    def _validation_clips(self, validation: Validation) -> Iterator[np.ndarray]:
        if validation.corpus is not None and self.accelerator.is_main_process:
            yield from validation_clips(validation.corpus, self.extractor, validation.utterances)

    def batches(self) -> Iterable[torch.Tensor]:
        """This process's batches from the current step to the last."""
        recipe, process, processes = self.recipe, self.accelerator.process_index, self.accelerator.num_processes
        size, data = recipe.batch_size, recipe.data
        first, last = (step * recipe.gradient_accumulation_steps for step in (self.step, recipe.max_steps))
        # A generator of its own: a loader draws a number as it starts, which would shift the dither of a resumed run.
        generator = torch.Generator()
        if data.streaming:
            crops = StreamedCrops(data, self.extractor, recipe.seed, process, processes, first * size)
            loader = DataLoader(crops, size, num_workers=min(data.workers, 1), generator=generator)
            return itertools.islice(loader, last - first)
        # The global batch is the same run of crops on any number of processes.
        starts = ((batch * processes + process) * size for batch in range(first, last))
        shares = [range(start, start + size) for start in starts]
        return DataLoader(self.crops, batch_sampler=shares, num_workers=data.workers, generator=generator)

    def train(self) -> None:
        """Runs from the newest checkpoint, if there is one, to the last step.

        Raises:
            DivergenceError: if the loss is not finite.
        """
        self.resume()
        self.accelerator.init_trackers("log", config=flatten(asdict(self.recipe)))
        progress = tqdm(
            initial=self.step,
            total=self.recipe.max_steps,
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        )
        self.model.train()
        for batch in self.batches():
            audio = batch.to(self.accelerator.device)
            with self.accelerator.accumulate(self.model):
                terms = self.losses(self.model(audio).audio_values, audio, self.step)
                self.accelerator.backward(terms["loss"])
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(
                        self.model.parameters(), self.recipe.optimizer.max_grad_norm
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.scheduler.step()
                self.step += 1
                progress.update()
                self.after_step(terms, norm, progress)
        progress.close()
        self.publish()
        self.accelerator.end_training()

    def after_step(self, terms: dict[str, torch.Tensor], norm: torch.Tensor, progress: tqdm) -> None:
        """Averages, logs, validates and saves, each when its time has come."""
        recipe, last = self.recipe, self.step == self.recipe.max_steps
        if self.step % recipe.optimizer.ema_every == 0 or last:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        if self.step % recipe.log_every == 0 or last:
            values = {name: value.item() for name, value in terms.items()}
            if not math.isfinite(values["loss"]):
                raise DivergenceError(
                    f"The loss is {values['loss']} at step {self.step}. Lower optimizer.learning_rate, or raise "
                    f"optimizer.warmup_steps, and run again: it goes on from the last checkpoint in {self.output_dir}."
                )
            progress.set_postfix(loss=f"{values['loss']:.3f}")
            rate = self.scheduler.get_last_lr()[0]
            log = {f"train/{name}": value for name, value in values.items()}
            self.accelerator.log({**log, "train/grad_norm": norm.item(), "train/learning_rate": rate}, step=self.step)
        if self.step % recipe.checkpoint_every == 0 or last:
            self.save_checkpoint()
        if self.clips and (self.step % recipe.validation.every == 0 or last):
            self.validate()

    @torch.no_grad()
    def validate(self) -> None:
        """Scores the averaged weights on the validation clips and logs the means."""
        model, bottleneck = self.average.module.eval(), self.recipe.validation.bottleneck
        scores = []
        for clip in tqdm(self.clips, desc="Validation", leave=False):
            audio = torch.from_numpy(clip)[None, None].to(self.accelerator.device)
            decoded = model(audio, bottleneck=bottleneck).audio_values.float()
            terms = self.losses(decoded, audio, self.step)
            scores.append(score(clip, decoded.squeeze().cpu().numpy()) | {k: v.item() for k, v in terms.items()})
        means = {f"validation/{name}": float(np.nanmean([row[name] for row in scores])) for name in scores[0]}
        self.accelerator.log(means, step=self.step)
        tqdm.write(json.dumps({"step": self.step} | {name: round(value, 4) for name, value in means.items()}))

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        folders = self.output_dir.glob("checkpoint-*")
        return sorted((f for f in folders if f.suffix != ".partial"), key=lambda f: int(f.name.split("-")[1]))

    def save_checkpoint(self) -> None:
        """Writes model, average, optimiser, scheduler and random state; takes its name only when complete."""
        target = self.output_dir / f"checkpoint-{self.step}"
        partial = target.with_suffix(".partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for old in self.checkpoints()[: -self.recipe.keep_checkpoints]:
                shutil.rmtree(old)

    def resume(self) -> None:
        """Goes on from the newest checkpoint in the output folder, if there is one."""
        if checkpoints := self.checkpoints():
            self.accelerator.load_state(str(checkpoints[-1]))
            self.step = int(checkpoints[-1].name.split("-")[1])
            self.accelerator.print(f"Resuming from {checkpoints[-1]}.")

    def publish(self) -> None:
        """Writes the averaged weights, fused, with config, code and preprocessor config, to `output_dir/model`."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.average.module.save_pretrained(self.output_dir / "model")
            self.extractor.save_pretrained(self.output_dir / "model")


def flatten(tree: dict, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings as dotted names, which is what trackers take."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat


def main() -> None:
    """Entry point: a mistake of the user's is one line on standard error and exit status 2."""
    recipe = parse_recipe(sys.argv[1:])
    try:
        Trainer(recipe).train()
    except CorpusError as error:
        sys.exit(f"train.py: error: {error}")
    except DivergenceError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
