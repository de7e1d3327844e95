"""Convolutions of TAAE and the activations between them, all blind to padding.

`lengths` (batch,) is the number of real steps of each item at the rate of the tensor it goes with, or None where all
steps are real. What lies beyond an item's length is zero at the input of every convolution, so that an item of a padded
batch comes out as it does alone. `past` is what a stream remembers, which stands on the left in place of zeros.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_taae import TaaeConfig
from .streaming_taae import Past


def real_steps(lengths: Tensor, steps: int) -> Tensor:
    """Boolean (batch, steps), true for the first `lengths[item]` steps of each item."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def zero_padding(hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
    """Sets to zero what lies beyond each item's length in (batch, channels, steps)."""
    if lengths is None:
        return hidden_states
    return hidden_states.masked_fill(~real_steps(lengths, hidden_states.shape[-1])[:, None, :], 0)


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

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, in_channels, steps) -> (batch, out_channels, steps / stride)."""
        if past is not None:
            return super().forward(past.prepend(hidden_states, self.side_padding[0]))
        return super().forward(F.pad(zero_padding(hidden_states, lengths), self.side_padding))

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

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, in_channels, steps) -> (batch, out_channels, steps * stride)."""
        if past is not None:
            # The steps of the output that the last input reaches beyond its own begin those of the first new one.
            return super().forward(past.prepend(hidden_states, 1))[..., self.stride[0] : -self.stride[0]]
        hidden_states = super().forward(zero_padding(hidden_states, lengths))
        return hidden_states[..., : -self.stride[0]] if self.causal else hidden_states

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
