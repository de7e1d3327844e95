"""Auxiliary networks, which train together with the codec and add a term to its loss, such as a discriminator.

`AuxiliaryNetwork` holds the optimiser and the state in checkpoints; its subclasses add the loss. A `PublishedModule` is
stored beside a published model, so that a later training can continue with it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from training.optimization import build_optimizer, learning_rate_factor, step_if_finite
from training.recipe import Recipe


class PublishedModule(nn.Module):
    """A network that is published beside a model, as `NAME.safetensors` and `NAME.json`.

    Subclasses set `file_name` and `config`, the arguments of their constructor.
    """

    file_name: ClassVar[str]
    config: dict[str, Any]

    def save_pretrained(self, folder: Path) -> None:
        """Writes weights and configuration beside a published model."""
        save_file(self.state_dict(), folder / f"{self.file_name}.safetensors")
        content = json.dumps(self.config, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{self.file_name}.json").write_text(content, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder_or_name: str | Path) -> Self | None:
        """Returns the network published beside a model, in a folder or on the Hub; None if there is none."""
        config, weights = (
            cached_file(str(folder_or_name), f"{cls.file_name}.{suffix}", _raise_exceptions_for_missing_entries=False)
            for suffix in ("json", "safetensors")
        )
        if config is None or weights is None:
            return None
        network = cls(**json.loads(Path(config).read_text(encoding="utf-8")))
        network.load_state_dict(load_file(weights))
        return network


Network = TypeVar("Network", bound=PublishedModule)


class AuxiliaryNetwork(Generic[Network]):
    """A network with its own optimiser, which follows the codec's schedule.

    It is not prepared by Accelerate: its gradients are averaged over processes here, and its state is a separate file
    in a checkpoint, so that a run without the network can continue from it.

    Args:
        module: the network, with equal weights in every process.
        learning_rate: the learning rate between warm-up and decay.
        recipe: the run's recipe, for the optimiser's other settings.
        accelerator: the run's accelerator.
        first_step: the step at which the warm-up begins.
    """

    def __init__(
        self, module: Network, learning_rate: float, recipe: Recipe, accelerator: Accelerator, first_step: int = 0
    ):
        self.module, self.name, self.learning_rate = module.to(accelerator.device), module.file_name, learning_rate
        self.recipe, self.accelerator, self.first_step = recipe, accelerator, first_step
        self.optimizer = build_optimizer(module)

    def update(self, step: int) -> None:
        """Takes one step of the optimiser with the accumulated gradients, if there are any and they are finite."""
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
        # In one message instead of one per parameter.
        gradient = self.accelerator.reduce(torch.cat([parameter.grad.flatten() for parameter in parameters]), "mean")
        chunks = gradient.split([parameter.numel() for parameter in parameters])
        for parameter, chunk in zip(parameters, chunks, strict=True):
            parameter.grad = chunk.view_as(parameter).clone()

    def save(self, checkpoint: Path) -> None:
        """Writes network and optimiser into a checkpoint."""
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, checkpoint / f"{self.name}.pt")

    def load(self, checkpoint: Path) -> None:
        """Reads network and optimiser; if the checkpoint's run had no such network, keeps the new one."""
        file = checkpoint / f"{self.name}.pt"
        if not file.exists():
            self.accelerator.print(f"{checkpoint} holds no {self.name}; it starts from random weights.")
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Disables gradients of a module's parameters, but not of its inputs, which saves computation."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
