"""The transformer layers of TAAE.

`lengths` (batch,) is the number of real steps of each item, or None if all are real. `past` holds the steps that a
stream has kept, or is None outside of streams.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import is_flash_attention_requested

from .attention_taae import TaaeAttention, WindowBlocks, rotary_embedding
from .configuration_taae import TaaeConfig
from .convolution_taae import TaaeConv1d, chunks, is_long
from .streaming_taae import Past


class TaaeFeedForward(nn.Module):
    """Gated feed-forward layer: value * SiLU(gate)."""

    def __init__(self, config: TaaeConfig, width: int):
        super().__init__()
        self.up_proj = nn.Linear(width, 2 * config.intermediate_ratio * width)
        self.down_proj = nn.Linear(config.intermediate_ratio * width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, steps, width) -> the same shape."""
        value, gate = self.up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(value * F.silu(gate))


class TaaeConformerModule(nn.Module):
    """The convolution module of a Conformer."""

    def __init__(self, config: TaaeConfig, width: int):
        super().__init__()
        self.in_norm = nn.LayerNorm(width, eps=config.norm_eps, bias=False)
        self.pointwise_conv1 = nn.Linear(width, width, bias=False)
        self.glu = nn.Linear(width, 2 * width)
        self.depthwise_conv = TaaeConv1d(width, width, kernel_size=17, groups=width, bias=False, causal=config.causal)
        self.mid_norm = nn.LayerNorm(width, eps=config.norm_eps, bias=False)
        self.pointwise_conv2 = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, steps, width) -> the same shape."""
        value, gate = self.glu(self.pointwise_conv1(self.in_norm(hidden_states))).chunk(2, dim=-1)
        hidden_states = self.depthwise_conv((value * F.silu(gate)).transpose(1, 2), lengths, past)
        return self.pointwise_conv2(F.silu(self.mid_norm(hidden_states.transpose(1, 2))))


class TaaeLayerScale(nn.Module):
    """Scales each channel of a residual branch, starting near zero."""

    def __init__(self, config: TaaeConfig, width: int):
        super().__init__()
        self.initial_scale = config.layer_scale_initial_scale
        self.scale = nn.Parameter(torch.full((width,), self.initial_scale))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, steps, width) -> the same shape."""
        return self.scale * hidden_states


class TaaeTransformerLayer(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward, each scaled by LayerScale; optionally a Conformer module between them."""

    def __init__(self, config: TaaeConfig, width: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps, bias=False)
        self.attention = TaaeAttention(config, width)
        self.attention_scale = self._scale(config, width)
        self.conformer = TaaeConformerModule(config, width) if config.use_conformer else None
        self.conformer_scale = self._scale(config, width) if config.use_conformer else None
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.norm_eps, bias=False)
        self.feed_forward = TaaeFeedForward(config, width)
        self.feed_forward_scale = self._scale(config, width)
        # Without LayerScale the branches themselves start at zero.
        starts_at_zero = config.layer_scale_initial_scale is None
        self.attention.o_proj.starts_at_zero = self.feed_forward.down_proj.starts_at_zero = starts_at_zero

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Steps to the left and to the right of a step on which its output depends."""
        left, right = self.attention.window
        if self.conformer is None:
            return left, right
        before, after = self.conformer.depthwise_conv.side_padding
        return left + before, right + after

    @staticmethod
    def _scale(config: TaaeConfig, width: int) -> nn.Module:
        return nn.Identity() if config.layer_scale_initial_scale is None else TaaeLayerScale(config, width)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        blocks: WindowBlocks | None = None,
        lengths: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """(batch, steps, width) -> the same shape."""
        attended = self.attention(self.attention_norm(hidden_states), position_embeddings, blocks, lengths, past)
        hidden_states = hidden_states + self.attention_scale(attended)
        if self.conformer is not None:
            hidden_states = hidden_states + self.conformer_scale(self.conformer(hidden_states, lengths, past))
        return hidden_states + self.feed_forward_scale(self.feed_forward(self.feed_forward_norm(hidden_states)))


class TaaeTransformer(nn.Module):
    """The transformer layers of one block."""

    def __init__(self, config: TaaeConfig, width: int, depth: int):
        super().__init__()
        self.config = config
        self.rotary_dim = min(config.head_dim, width) // 2
        self.uniform_blocks = False  # true where layers are compiled for all lengths
        self.layers = nn.ModuleList(TaaeTransformerLayer(config, width) for _ in range(depth))

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, width, steps) -> the same shape."""
        if not self.layers:
            return hidden_states
        # Contiguous, because layers compiled for the CPU by PyTorch 2.13 give NaN for a transposed input.
        hidden_states = hidden_states.transpose(1, 2).contiguous()
        if past is None and is_long(hidden_states.shape[1]):
            return self._in_chunks(hidden_states, lengths).transpose(1, 2)
        past_steps = None if past is None else past.steps(hidden_states.shape[1])
        positions = self._positions(hidden_states, start=past_steps)
        blocks = self._window_blocks(hidden_states, lengths, past_steps)
        for layer in self.layers:
            hidden_states = layer(hidden_states, positions, blocks, lengths, past)
        return hidden_states.transpose(1, 2)

    def _in_chunks(self, hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
        """Runs each layer chunk by chunk to bound memory; overwrites and returns (batch, steps, width).

        A chunk is extended by the receptive field on both sides; outputs of the extension are discarded.
        """
        for layer in self.layers:
            left, right = layer.receptive_field
            before = hidden_states[:, :0]  # the layer's inputs at the end of the previous chunk
            for start, end in chunks(hidden_states.shape[1]):
                begin = start - before.shape[1]
                chunk = torch.cat([before, hidden_states[:, start : end + right]], dim=1)
                before = chunk[:, max(end - begin - left, 0) : end - begin]
                real = None if lengths is None else (lengths - begin).clamp(0, chunk.shape[1])
                positions = self._positions(chunk, start=torch.tensor([begin]))
                processed = layer(chunk, positions, self._window_blocks(chunk, real), real)
                hidden_states[:, start:end] = processed[:, start - begin : end - begin]
        return hidden_states

    def _positions(self, hidden_states: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        steps, device = hidden_states.shape[1], hidden_states.device
        return rotary_embedding(steps, self.rotary_dim, self.config.rope_theta, device, start)

    def _window_blocks(
        self, hidden_states: Tensor, lengths: Tensor | None, past_steps: Tensor | None = None
    ) -> WindowBlocks | None:
        implementation = self.config._attn_implementation
        if is_flash_attention_requested(self.config):
            if past_steps is None:
                return None
            implementation = "sdpa"  # flash_window_attention takes no past steps
        window, uniform = self.config.attention_window, self.uniform_blocks
        return WindowBlocks(window, hidden_states, lengths, implementation, past_steps, uniform)
