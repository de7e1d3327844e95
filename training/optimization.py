"""The optimiser, its learning rate, and the detection of diverging runs."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from training.recipe import OptimizerConfig, Recipe

SKIPPED_IN_SUCCESSION = 5  # a single overflow may happen; this many mean that the run has diverged
SMOOTHING = 0.02  # smoothing of the loss: an average over about the last 50 steps
EARLY_STEPS = 100  # first steps, in which the average covers few losses and may rise twice as far
FEWEST_STEPS = 5  # steps before a run may count as diverged


class DivergenceError(RuntimeError):
    """A diverged run; the message gives the symptom and what to do."""


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of a module that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def build_optimizer(module: nn.Module) -> torch.optim.AdamW:
    """Makes AdamW for the parameters of a module that are trained; `step_if_finite` sets its learning rate."""
    return torch.optim.AdamW(trainable_parameters(module), fused=True)


def learning_rate_factor(optimizer: OptimizerConfig, max_steps: int, step: int, first_step: int = 0) -> float:
    """Returns the share of the learning rate at a step: linear warm-up, constant, cosine decay to zero at the end.

    Args:
        optimizer: the lengths of warm-up and decay.
        max_steps: the run's steps in all.
        step: steps taken so far.
        first_step: the step at which the warm-up begins.
    """
    warmup = min(1.0, (step - first_step + 1) / max(optimizer.warmup_steps, 1))
    left = (max_steps - step) / max(optimizer.decay_steps, 1)
    return warmup * 0.5 * (1 - math.cos(math.pi * min(max(left, 0.0), 1.0)))


def tell_schedule(recipe: Recipe, step: int, tell: Callable[[str], None]) -> None:
    """Reports that nothing is left to train, or that the learning rate cannot reach the recipe's value.

    Args:
        recipe: the run's recipe.
        step: steps taken so far.
        tell: a function that prints a line.
    """
    settings, steps = recipe.optimizer, recipe.max_steps
    if step >= steps:
        tell(
            f"The run in {recipe.output_dir} has its {steps:,} steps, so nothing is trained; raise --max_steps to "
            "continue it, or choose another --output_dir for a new run."
        )
    elif (highest := highest_factor(settings, steps)) < 0.995:
        # Blame the setting without which the rate rises.
        without = {
            "--optimizer.warmup_steps": highest_factor(replace(settings, warmup_steps=0), steps),
            "--optimizer.decay_steps": highest_factor(replace(settings, decay_steps=0), steps),
        }
        alone = [name for name, reached in without.items() if reached >= 0.995]
        blamed = " or ".join(alone) or " and ".join(without)
        tell(
            f"Warm-up and decay leave too few of the {steps:,} steps, so the learning rate gets to {highest:.0%} of "
            f"{settings.learning_rate:g} only; lower {blamed}."
        )


def highest_factor(settings: OptimizerConfig, steps: int) -> float:
    """Returns the largest share of the learning rate that a run of `steps` steps reaches."""
    return max(learning_rate_factor(settings, steps, step) for step in range(steps))


def step_if_finite(optimizer: torch.optim.AdamW, settings: OptimizerConfig, learning_rate: float, norm: Tensor) -> None:
    """Takes one step, unless the norm of the gradients is not finite.

    The check runs on the device, so that the CPU does not wait for the norm.

    Args:
        optimizer: a fused optimiser. It uses the current settings, not those of the checkpoint.
        settings: the recipe's settings.
        learning_rate: this step's rate.
        norm: norm of the gradients, a scalar.
    """
    for group in optimizer.param_groups:
        group.update(lr=learning_rate, betas=tuple(settings.betas), weight_decay=settings.weight_decay)
    optimizer.found_inf = (~norm.isfinite()).to(torch.float32)  # as torch.amp.GradScaler does for fused optimisers
    optimizer.step()


class DivergenceWatch:
    """Detects a diverging run from its first step on, before its checkpoints are spoilt.

    Args:
        ratio: multiple of its lowest value so far to which the averaged loss may rise.
    """

    def __init__(self, ratio: float):
        self.ratio = ratio
        self.skipped = self.steps = 0
        self.average, self.lowest = 0.0, math.inf
        self.noted: list[Tensor] = []

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Records a step's loss and gradient norm, scalars, without waiting for them."""
        self.noted.append(torch.stack([loss.detach().float(), norm.detach().float()]))

    def look(self) -> None:
        """Checks the steps recorded since the last check.

        Raises:
            DivergenceError: if too many steps in succession have been skipped, or the averaged loss has risen too far
                above its lowest value.
        """
        noted, self.noted = self.noted, []
        for loss, norm in torch.stack(noted).tolist() if noted else []:
            self._see(loss, norm)

    def _see(self, loss: float, norm: float) -> None:
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        if self.skipped >= SKIPPED_IN_SUCCESSION:
            raise DivergenceError(f"The gradients of {self.skipped} steps in succession are not finite.")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return
        self.steps += 1
        # At first the mean of all losses, later of about the last 50: a wrong learning rate is detected against the
        # first step's loss, before any update of the weights.
        self.average += max(SMOOTHING, 1 / self.steps) * (loss - self.average)
        self.lowest = min(self.lowest, self.average)
        limit = self.ratio * (2 if self.steps < EARLY_STEPS else 1)
        if self.steps >= FEWEST_STEPS and self.average > limit * self.lowest:
            raise DivergenceError(
                f"The log-mel loss has risen to {self.average:.3g}, more than {limit:g} times its lowest value."
            )
