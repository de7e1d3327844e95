"""The optimiser, its learning rate, and the watch for runs that diverge."""

import math

import torch
from torch import Tensor, nn

from training.recipe import OptimizerConfig

SKIPPED_IN_SUCCESSION = 5  # a single overflow is bad luck, this many are a diverged run
SMOOTHING = 0.02  # of the watched loss: an average over about the last 50 steps
SETTLING_STEPS = 100  # before the average means anything


class DivergenceError(RuntimeError):
    """The run has diverged; the message says how it shows and what to do."""


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those parameters of a module that train."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def build_optimizer(module: nn.Module) -> torch.optim.AdamW:
    """AdamW for those parameters of a module that train; `step_if_finite` sets it."""
    return torch.optim.AdamW(trainable_parameters(module), fused=True)


def learning_rate_factor(optimizer: OptimizerConfig, max_steps: int, step: int, first_step: int = 0) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, cosine decay to zero at the end.

    Args:
        optimizer: how long warm-up and decay take.
        max_steps: of the run.
        step: steps taken so far.
        first_step: where the warm-up begins.
    """
    warmup = min(1.0, (step - first_step + 1) / max(optimizer.warmup_steps, 1))
    left = (max_steps - step) / max(optimizer.decay_steps, 1)
    return warmup * 0.5 * (1 - math.cos(math.pi * min(max(left, 0.0), 1.0)))


def step_if_finite(optimizer: torch.optim.AdamW, settings: OptimizerConfig, learning_rate: float, norm: Tensor) -> None:
    """One step, unless the norm of the gradients is not finite. The device decides, so that nobody waits for the norm.

    Args:
        optimizer: fused. It steps by the recipe as it is, whatever the recipe was when a checkpoint was written.
        settings: of the recipe.
        learning_rate: of this step.
        norm: a scalar.
    """
    for group in optimizer.param_groups:
        group.update(lr=learning_rate, betas=tuple(settings.betas), weight_decay=settings.weight_decay)
    optimizer.found_inf = (~norm.isfinite()).to(torch.float32)  # as torch.amp.GradScaler tells a fused optimiser
    optimizer.step()


class DivergenceWatch:
    """Notices a run that goes wrong, before its checkpoints are spoilt.

    Args:
        ratio: how far above its lowest value so far the averaged loss may rise.
    """

    def __init__(self, ratio: float):
        self.ratio = ratio
        self.skipped = self.steps = 0
        self.average = self.lowest = math.inf
        self.noted: list[Tensor] = []

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Takes note of a step's loss and gradient norm, scalars, without waiting for them."""
        self.noted.append(torch.stack([loss.detach().float(), norm.detach().float()]))

    def look(self) -> None:
        """Looks at the steps noted since the last time.

        Raises:
            DivergenceError: if too many steps in succession have been skipped, or the loss, averaged over the last
                steps, has risen too far above its lowest value.
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
        self.average = loss if self.steps == 1 else self.average + SMOOTHING * (loss - self.average)
        if self.steps < SETTLING_STEPS:
            return
        self.lowest = min(self.lowest, self.average)
        if self.average > self.ratio * self.lowest:
            raise DivergenceError(
                f"The log-mel loss has risen to {self.average:.3g}, more than {self.ratio:g} times its lowest value."
            )
