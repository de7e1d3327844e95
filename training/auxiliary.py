"""Modules that train beside the codec, such as a discriminator: their optimiser, and their state on disk."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from training.optimization import build_optimizer, learning_rate_factor, step_if_finite
from training.recipe import Recipe


class Companion:
    """A module with an optimiser of its own, which follows the codec's schedule.

    Accelerate does not know of it: its gradients are averaged over processes here, and its state is a file of its own
    in a checkpoint, so that a run without the module can go on with it.

    Args:
        module: with equal weights in every process.
        name: of its file in a checkpoint.
        learning_rate: the constant one.
        recipe: of the run, for the optimiser's other settings.
        accelerator: of the run.
        first_step: where the warm-up begins.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        learning_rate: float,
        recipe: Recipe,
        accelerator: Accelerator,
        first_step: int = 0,
    ):
        self.module, self.name, self.learning_rate = module.to(accelerator.device), name, learning_rate
        self.recipe, self.accelerator, self.first_step = recipe, accelerator, first_step
        self.optimizer = build_optimizer(module)

    def update(self, step: int) -> None:
        """One step of the optimiser with the gradients gathered, if there are any and they are finite."""
        parameters = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        if not parameters:
            return
        self._average_over_processes(parameters)
        settings = self.recipe.optimizer
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        factor = learning_rate_factor(settings, self.recipe.max_steps, step, self.first_step)
        step_if_finite(self.optimizer, settings, self.learning_rate * factor, norm)
        self.optimizer.zero_grad()

    def _average_over_processes(self, parameters: list[nn.Parameter]) -> None:
        if self.accelerator.num_processes == 1:
            return
        # In one message, not one per parameter.
        gradient = self.accelerator.reduce(torch.cat([parameter.grad.flatten() for parameter in parameters]), "mean")
        pieces = gradient.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()

    def save(self, checkpoint: Path) -> None:
        """Writes module and optimiser into a checkpoint."""
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, checkpoint / f"{self.name}.pt")

    def load(self, checkpoint: Path) -> None:
        """Reads them back; a checkpoint of a run without the module leaves a fresh one."""
        file = checkpoint / f"{self.name}.pt"
        if not file.exists():
            self.accelerator.print(f"{checkpoint} holds no {self.name}; it starts afresh.")
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
