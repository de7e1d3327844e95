"""State of a stream through a causal TAAE.

A causal module sees the current chunk and a fixed number of steps before it. [`Past`] carries these steps through one
call. [`StreamingState`] keeps them between calls, together with the samples of the incomplete frame; its size does not
grow with the stream. A call returns a new state and leaves the old one unchanged, so a state can be kept, copied or
pickled to continue from there again.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .configuration_taae import TaaeConfig


class Past:
    """Holds the steps before a chunk, by the name of the module that needs them.

    Args:
        contexts: the steps that each module kept of the last chunk; empty at the start of a stream, where they are
            zero.
        frames_before: (batch,) frames of each item before this chunk.
        frames: frames of this chunk.
    """

    def __init__(self, contexts: dict[str, Tensor], frames_before: Tensor, frames: int):
        self.contexts = contexts
        self.kept: dict[str, Tensor] = {}
        self.frames_before, self.frames = frames_before, frames

    def prepend(self, name: str, present: Tensor, steps: int, dim: int = -1) -> Tensor:
        """Prepends the `steps` steps before a chunk, and keeps the last ones for the next chunk.

        Args:
            name: the path of the module within the model; a module that keeps several tensors appends their names.
            present: (batch, …, present, …), the chunk, with its steps in dimension `dim`.
            steps: the number of steps to prepend.
            dim: the dimension of the steps.

        Returns:
            (batch, …, steps + present, …).

        Raises:
            ValueError: if a name is used twice, or was not used for the last chunk.
        """
        if name in self.kept or (self.contexts and name not in self.contexts):
            raise ValueError(f"The stream has kept no steps for the module {name!r}, or uses them twice.")
        if self.contexts:
            context = self.contexts[name]
        else:
            shape = list(present.shape)
            shape[dim] = steps
            context = present.new_zeros(shape)
        extended = torch.cat([context, present], dim)
        # A copy, because a view would keep the whole chunk.
        self.kept[name] = extended.narrow(dim, extended.shape[dim] - steps, steps).clone()
        return extended

    def steps(self, present: int) -> Tensor:
        """Returns the steps of each item before this chunk, (batch,) int64, at a rate of `present` steps per chunk."""
        return self.frames_before * (present // self.frames)


@dataclass
class StreamingState:
    """State of a batch of streams between calls of `encode` or `decode`, which need a separate state each.

    Args:
        architecture: the fields of the model's configuration that fix the network.
        samples: (batch, 1, fewer than a frame), audio of the incomplete frame.
        frames: (batch,) int64, frames of each item so far.
        contexts: the past steps that modules still need, each (batch, …), by the path of the module; empty before the
            first frame.
        method: `"encode"` or `"decode"`, whichever made this state; None for a new state, which fits both.
    """

    architecture: dict[str, Any]
    samples: Tensor
    frames: Tensor
    contexts: dict[str, Tensor] = field(default_factory=dict)
    method: str | None = None

    @classmethod
    def start(cls, config: TaaeConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> "StreamingState":
        """Returns the initial state of `batch_size` streams.

        Raises:
            ValueError: if the model is not causal, or the batch size is below 1.
        """
        if not config.causal:
            raise ValueError(
                "Only a causal model can stream, because frames of other models depend on later audio; load one with "
                "causal=True in its config, or encode the whole recording at once."
            )
        if batch_size < 1:
            raise ValueError(f"A stream needs a batch size of at least 1, not {batch_size}.")
        return cls(
            architecture=architecture(config),
            samples=torch.zeros(batch_size, 1, 0, device=device, dtype=dtype),
            frames=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    @property
    def batch_size(self) -> int:
        """Number of streams that run side by side."""
        return self.frames.shape[0]

    def to(self, device: str | torch.device) -> "StreamingState":
        """Returns the same state on another device."""
        contexts = {name: context.to(device) for name, context in self.contexts.items()}
        return replace(self, samples=self.samples.to(device), frames=self.frames.to(device), contexts=contexts)

    def reset(self, mask: Tensor | None = None) -> "StreamingState":
        """Restarts the chosen streams, in place, and returns this state; the other streams continue.

        The streams of a batch share their frame boundaries, so some of them can restart only between frames. All
        streams together can restart at any time; the samples of the incomplete frame are dropped.

        Args:
            mask: (batch,), true for the streams to restart; None for all.

        Raises:
            ValueError: if the mask has another shape, or some but not all streams restart within a frame.
        """
        mask = torch.ones_like(self.frames) if mask is None else torch.as_tensor(mask, device=self.frames.device)
        mask = mask.bool()
        if mask.shape != self.frames.shape:
            raise ValueError(f"The mask of {self.batch_size} streams is (batch,), not {tuple(mask.shape)}.")
        if mask.all():
            self.samples = self.samples[..., :0].clone()
        elif mask.any() and self.samples.shape[-1] > 0:
            raise ValueError(
                f"{self.samples.shape[-1]} samples wait for their frame to be complete, and the streams of a batch "
                "share their frames; reset some streams between frames, or all of them."
            )
        self.frames = self.frames.masked_fill(mask, 0)
        self.contexts = {
            name: context.masked_fill(mask.reshape(-1, *[1] * (context.ndim - 1)), 0)
            for name, context in self.contexts.items()
        }
        return self

    def check(self, config: TaaeConfig, batch_size: int, device: torch.device, dtype: torch.dtype, method: str) -> None:
        """Checks that this state fits a model, a batch size, a device, a dtype and a method.

        Raises:
            ValueError: if it does not.
        """
        expected = architecture(config)
        if self.architecture != expected:
            differing = [name for name in expected if self.architecture.get(name) != expected[name]]
            raise ValueError(
                f"This state is of a model with other {', '.join(differing)}; start with streaming_state() of this one."
            )
        if self.method not in (None, method):
            raise ValueError(f"This state is one of {self.method}, not of {method}; keep one for each.")
        if self.batch_size != batch_size:
            raise ValueError(
                f"This state is of {self.batch_size} streams, and the chunk has {batch_size} items; the batch size of "
                "a stream cannot change."
            )
        if self.frames.device != device:
            raise ValueError(f"This state is on {self.frames.device}, the model on {device}; move it with state.to().")
        if self.samples.dtype != dtype:
            raise ValueError(
                f"This state is of a model in {self.samples.dtype}, and this model is in {dtype}; start with "
                "streaming_state() of this one."
            )

    def complete_frames(self, chunk: Tensor, hop_length: int, final: bool) -> tuple[Tensor, Tensor]:
        """Returns the whole frames of the waiting samples and the chunk (batch, 1, any), and the remaining samples.

        With `final` the last frame is padded with zeros, and no samples remain.
        """
        audio = torch.cat([self.samples, chunk], dim=-1)
        if final:
            audio = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % hop_length))
        whole = audio.shape[-1] // hop_length * hop_length
        return audio[..., :whole], audio[..., whole:].clone()

    def past(self, frames: int) -> Past:
        """Returns the past steps for the next chunk, which has `frames` frames."""
        return Past(self.contexts, self.frames, frames)

    def after(self, past: Past, **changes) -> "StreamingState":
        """Returns the state after a chunk.

        Args:
            past: the result of [`~StreamingState.past`], with the steps that modules kept of the chunk.
            changes: other fields of the next state.

        Raises:
            ValueError: if a module did not use its past steps.
        """
        if left := sorted(self.contexts.keys() - past.kept.keys()):
            raise ValueError(f"The stream kept steps for {left[0]!r}, which no module took.")
        return replace(self, frames=self.frames + past.frames, contexts=past.kept, **changes)


def architecture(config: TaaeConfig) -> dict:
    """Returns the fields of a configuration that fix the network, by name."""
    others = ("bottleneck", "token_ancestors")
    names = (name for name in TaaeConfig.__annotations__ if name not in others and not name.startswith("training_"))
    return {name: getattr(config, name) for name in names}
