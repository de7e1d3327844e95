"""Convolutions of TAAE, which never read padding, and the activations between them.

`lengths` (batch,) is the number of real steps of each item at the rate of its tensor, or None if all steps are real.
Every convolution zeroes the steps beyond an item's length in its input, so that an item gives the same output in a
padded batch as alone. `past` holds the steps that a stream has kept; they replace the zeros on the left.

Long inputs are processed in chunks. A chunk is extended by the receptive field, so the output is the same, and memory
beyond input and output does not grow with the length.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_taae import TaaeConfig
from .streaming_taae import Past

# Steps of a chunk: enough to keep a processor busy, and to make the edges that are computed twice negligible.
CHUNK_STEPS = 4096


def is_long(steps: int) -> bool:
    """Returns whether a sequence is processed in chunks. Gradients and compiled graphs need it as a whole."""
    return not torch.compiler.is_compiling() and not torch.is_grad_enabled() and steps > CHUNK_STEPS


def chunks(steps: int) -> Iterator[tuple[int, int]]:
    """Yields the start and end of each chunk."""
    return ((start, min(start + CHUNK_STEPS, steps)) for start in range(0, steps, CHUNK_STEPS))


def real_steps(lengths: Tensor, steps: int) -> Tensor:
    """Returns (batch, steps) bool, true for the first `lengths[item]` steps of each item."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def zero_padding(hidden_states: Tensor, lengths: Tensor | None, start: int = 0) -> Tensor:
    """Zeroes the steps beyond each item's length in (batch, channels, steps), whose first step is step `start`."""
    if lengths is None:
        return hidden_states
    return hidden_states.masked_fill(~real_steps(lengths - start, hidden_states.shape[-1])[:, None, :], 0)


class TaaeConv1d(nn.Conv1d):
    """A convolution that divides the rate by its stride and never reads padding.

    With `causal=True` it is padded on the left only, so that no output step sees later input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        causal: bool = False,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, groups=groups, bias=bias
        )
        self.receptive_field = dilation * (kernel_size - 1) + 1
        if causal:
            self.side_padding = (self.receptive_field - stride, 0)
        else:
            side = (self.receptive_field - 1) // 2 if stride == 1 else math.ceil(stride / 2)
            self.side_padding = (side, side)
        self.stream_name = ""  # the module's path, set by the model

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, in_channels, steps) -> (batch, out_channels, steps / stride)."""
        if past is not None:
            return super().forward(past.prepend(self.stream_name, hidden_states, self.side_padding[0]))
        if is_long(hidden_states.shape[-1]):
            return self._in_chunks(hidden_states, lengths)
        return super().forward(F.pad(zero_padding(hidden_states, lengths), self.side_padding))

    def _in_chunks(self, hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
        batch, _, steps = hidden_states.shape
        left, right = self.side_padding
        field, stride = self.receptive_field, self.stride[0]
        output = hidden_states.new_empty(batch, self.out_channels, (steps + left + right - field) // stride + 1)
        for start, end in chunks(output.shape[-1]):
            first, last = start * stride - left, (end - 1) * stride - left + field
            begin, stop = max(first, 0), min(last, steps)
            chunk = zero_padding(hidden_states[..., begin:stop], lengths, begin)
            output[..., start:end] = super().forward(F.pad(chunk, (begin - first, last - stop)))
        return output

    def output_lengths(self, lengths: Tensor | None) -> Tensor | None:
        """Returns the number of real steps of each item after this convolution."""
        return None if lengths is None else lengths // self.stride[0]


class TaaeConvTranspose1d(nn.ConvTranspose1d):
    """An upsampling convolution of kernel 2 * stride that never reads padding.

    It gives steps * stride steps; if it is not causal and the stride is odd, one fewer, as in the reference
    implementation. With `causal=True` the output is trimmed on the right, so that no output step sees later input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, causal: bool = False):
        super().__init__(
            in_channels, out_channels, 2 * stride, stride=stride, padding=0 if causal else math.ceil(stride / 2)
        )
        self.causal = causal
        self.stream_name = ""  # the module's path, set by the model

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, in_channels, steps) -> (batch, out_channels, steps * stride)."""
        if past is not None:
            # The kernel spans 2 * stride, so the previous input overlaps the first stride outputs of this chunk:
            # prepend it, and trim both ends.
            extended = super().forward(past.prepend(self.stream_name, hidden_states, 1))
            return extended[..., self.stride[0] : -self.stride[0]]
        if is_long(hidden_states.shape[-1]):
            return self._in_chunks(hidden_states, lengths)
        hidden_states = super().forward(zero_padding(hidden_states, lengths))
        return hidden_states[..., : -self.stride[0]] if self.causal else hidden_states

    def _in_chunks(self, hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
        batch, _, steps = hidden_states.shape
        stride, padding = self.stride[0], self.padding[0]
        missing = 0 if self.causal else stride % 2
        output = hidden_states.new_empty(batch, self.out_channels, steps * stride - missing)
        for start, end in chunks(output.shape[-1]):
            # An input step contributes to 2 * stride output steps, the first of them `padding` before its own.
            begin, stop = max((start + padding) // stride - 1, 0), min((end - 1 + padding) // stride + 1, steps)
            chunk = super().forward(zero_padding(hidden_states[..., begin:stop], lengths, begin))
            output[..., start:end] = chunk[..., start - begin * stride : end - begin * stride]
        return output

    def output_lengths(self, lengths: Tensor | None) -> Tensor | None:
        """Returns the number of real steps of each item after this convolution."""
        if lengths is None:
            return None
        missing = 0 if self.causal else self.stride[0] % 2
        return (lengths * self.stride[0] - missing).clamp(min=0)


class TaaeSnake(nn.Module):
    """Snake activation x + sin²(e^alpha x) / e^beta, with alpha and beta per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, channels, steps) -> the same shape."""
        alpha, beta = self.alpha[:, None].exp(), self.beta[:, None].exp()
        return hidden_states + torch.sin(alpha * hidden_states).square() / (beta + 1e-9)


class TaaeResidualUnit(nn.Module):
    """Activation, dilated convolution, activation, pointwise convolution, plus the input."""

    def __init__(self, config: TaaeConfig, channels: int, dilation: int):
        super().__init__()
        self.activation1 = TaaeSnake(channels) if config.use_snake else nn.ELU()
        self.conv1 = TaaeConv1d(channels, channels, kernel_size=7, dilation=dilation, causal=config.causal)
        self.activation2 = TaaeSnake(channels) if config.use_snake else nn.ELU()
        self.conv2 = TaaeConv1d(channels, channels, kernel_size=1)

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, channels, steps) -> the same shape."""
        residual = self.conv1(self.activation1(hidden_states), lengths, past)
        return hidden_states + self.conv2(self.activation2(residual), lengths)


def residual_units(config: TaaeConfig, channels: int) -> nn.ModuleList:
    """Returns the three dilated residual units of one block, or none if the configuration has none."""
    dilations = (1, 3, 9) if config.use_dilated_conv else ()
    return nn.ModuleList(TaaeResidualUnit(config, channels, dilation) for dilation in dilations)
