"""Forward and backward passes as a CUDA graph, for codecs so small that the GPU waits for Python.

A step of the nano codec consists of thousands of short kernels. Recorded once and replayed, they run without gaps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from training.recipe import Recipe, RecipeError

WARM_UP = 3  # passes before the recording, in which libraries initialise and compilers compile


class ReplayedPasses:
    """Records the forward and backward passes of a batch at the first call, and replays them at later calls.

    Args:
        passes: a function of a batch, and None for utterances, that leaves gradients in the parameters and returns
            scalars for the log. It must launch the same GPU operations each time.
        parameters: the parameters that get gradients.
    """

    def __init__(self, passes: Callable[[Tensor, None], dict[str, Tensor]], parameters: list[torch.nn.Parameter]):
        self.passes, self.parameters = passes, parameters
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Tensor, utterances: None = None) -> dict[str, Tensor]:
        """Computes the gradients of a batch of fixed shape; returns its scalars, valid until the next call."""
        if self.graph is None:
            self._record(batch)
        self.batch.copy_(batch, non_blocking=True)
        if self.graph is not None:
            self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.scalars

    def _record(self, batch: Tensor) -> None:
        self.batch, stream = batch.to(self.parameters[0].device, copy=True), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Forked, so that the run's noise is the same with and without warm-up passes.
        with torch.random.fork_rng([self.batch.device]), torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.passes(self.batch, None)
        torch.cuda.current_stream().wait_stream(stream)
        for parameter in self.parameters:
            parameter.grad = None  # so that the recorded pass creates gradients instead of adding to them
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may pin the next batches meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.scalars = self.passes(self.batch, None)
        self.gradients = [parameter.grad for parameter in self.parameters]


def check_replayable(recipe: Recipe, device: torch.device, processes: int) -> None:
    """Rejects a recipe whose passes differ between steps.

    Raises:
        RecipeError: if settings make passes differ, which it names, or there is no CUDA GPU.
    """
    if device.type != "cuda":
        raise RecipeError(f"cuda_graph: needs a GPU with CUDA, and this run computes on {device.type}; leave it out.")
    changing = {
        "discriminator": recipe.discriminator is not None,
        "perceptual": recipe.perceptual is not None,
        "ctc": recipe.ctc is not None,
        "losses.waveform, which fades": recipe.losses.waveform != 0,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps > 1,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "several processes": processes > 1,
    }
    if found := [name for name, present in changing.items() if present]:
        raise RecipeError(f"cuda_graph: does not go with {', '.join(found)}; leave one or the other out.")
