"""Convolutions of TAAE and the activations between them, all blind to padding.

`lengths` (batch,) is the number of real steps of each item at the rate of the tensor it goes with, or None where all
steps are real. What lies beyond an item's length is zero at the input of every convolution, so that an item of a padded
batch comes out as it does alone. `past` is what a stream remembers, which stands on the left in place of zeros.

Long inputs are processed in pieces of time, each with all that it depends on: what comes out is the same, and what is
in memory besides input and output does not grow with the length.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_taae import TaaeConfig
from .streaming_taae import Past

# Steps of a piece: enough to keep a processor busy and to make little of what is computed twice at the edges.
PIECE = 4096


def is_long(steps: int) -> bool:
    """Returns whether a sequence is processed in chunks. A gradient or a compiler needs it as a whole."""
    return not torch.compiler.is_compiling() and not torch.is_grad_enabled() and steps > PIECE


def pieces(steps: int) -> Iterator[tuple[int, int]]:
    """Start and end of each piece."""
    return ((start, min(start + PIECE, steps)) for start in range(0, steps, PIECE))


def real_steps(lengths: Tensor, steps: int) -> Tensor:
    """Boolean (batch, steps), true for the first `lengths[item]` steps of each item."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def zero_padding(hidden_states: Tensor, lengths: Tensor | None, start: int = 0) -> Tensor:
    """Sets to zero what lies beyond each item's length in (batch, channels, steps), of which the first is `start`."""
    if lengths is None:
        return hidden_states
    return hidden_states.masked_fill(~real_steps(lengths - start, hidden_states.shape[-1])[:, None, :], 0)


class TaaeConv1d(nn.Conv1d):
    """A convolution that keeps the rate, or divides it by its stride, and never reads padding.

    With `causal=True` the padding is on the left alone, and a step of the output sees no input after its own.
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
        reach = dilation * (kernel_size - 1)
        if causal:
            self.side_padding = (reach - stride + 1, 0)
        else:
            side = reach // 2 if stride == 1 else math.ceil(stride / 2)
            self.side_padding = (side, side)
        self.stream_name = ""  # the path within the model, which knows it

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, in_channels, steps) -> (batch, out_channels, steps / stride)."""
        if past is not None:
            return super().forward(past.prepend(self.stream_name, hidden_states, self.side_padding[0]))
        if is_long(hidden_states.shape[-1]):
            return self._in_pieces(hidden_states, lengths)
        return super().forward(F.pad(zero_padding(hidden_states, lengths), self.side_padding))

    def _in_pieces(self, hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
        batch, _, steps = hidden_states.shape
        left, right = self.side_padding
        reach, stride = self.dilation[0] * (self.kernel_size[0] - 1), self.stride[0]
        output = hidden_states.new_empty(batch, self.out_channels, (steps + left + right - reach - 1) // stride + 1)
        for start, end in pieces(output.shape[-1]):
            first, last = start * stride - left, (end - 1) * stride - left + reach + 1
            begin, stop = max(first, 0), min(last, steps)
            piece = zero_padding(hidden_states[..., begin:stop], lengths, begin)
            output[..., start:end] = super().forward(F.pad(piece, (begin - first, last - stop)))
        return output

    def output_lengths(self, lengths: Tensor | None) -> Tensor | None:
        """Real steps of each item after this convolution."""
        return None if lengths is None else lengths // self.stride[0]


class TaaeConvTranspose1d(nn.ConvTranspose1d):
    """An upsampling convolution of kernel 2 * stride that never reads padding.

    Gives steps * stride steps, one fewer where the stride is odd and the convolution not causal, as the reference does.
    With `causal=True` the output is trimmed on the right, so that a step sees no input after its own.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, causal: bool = False):
        super().__init__(
            in_channels, out_channels, 2 * stride, stride=stride, padding=0 if causal else math.ceil(stride / 2)
        )
        self.causal = causal
        self.stream_name = ""  # the path within the model, which knows it

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, in_channels, steps) -> (batch, out_channels, steps * stride)."""
        if past is not None:
            # The kernel spans 2 * stride, so the previous input overlaps the first stride outputs of this chunk:
            # prepend it, and trim both ends.
            extended = super().forward(past.prepend(self.stream_name, hidden_states, 1))
            return extended[..., self.stride[0] : -self.stride[0]]
        if is_long(hidden_states.shape[-1]):
            return self._in_pieces(hidden_states, lengths)
        hidden_states = super().forward(zero_padding(hidden_states, lengths))
        return hidden_states[..., : -self.stride[0]] if self.causal else hidden_states

    def _in_pieces(self, hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
        batch, _, steps = hidden_states.shape
        stride, padding = self.stride[0], self.padding[0]
        missing = 0 if self.causal else stride % 2
        output = hidden_states.new_empty(batch, self.out_channels, steps * stride - missing)
        for start, end in pieces(output.shape[-1]):
            # An input step reaches 2 * stride steps of the output, from `padding` before its own first one.
            begin, stop = max((start + padding) // stride - 1, 0), min((end - 1 + padding) // stride + 1, steps)
            piece = super().forward(zero_padding(hidden_states[..., begin:stop], lengths, begin))
            output[..., start:end] = piece[..., start - begin * stride : end - begin * stride]
        return output

    def output_lengths(self, lengths: Tensor | None) -> Tensor | None:
        """Real steps of each item after this convolution."""
        if lengths is None:
            return None
        missing = 0 if self.causal else self.stride[0] % 2
        return (lengths * self.stride[0] - missing).clamp(min=0)


class TaaeSnake(nn.Module):
    """Snake activation, x + sin²(e^alpha x) / e^beta, alpha and beta per channel."""

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
    """The three dilated units of one block, or none."""
    dilations = (1, 3, 9) if config.use_dilated_conv else ()
    return nn.ModuleList(TaaeResidualUnit(config, channels, dilation) for dilation in dilations)
