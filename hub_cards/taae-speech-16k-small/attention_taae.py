"""Sliding-window attention of TAAE, with normalised queries and keys and rotary positions.

`lengths` (batch,) is the number of real steps of each item, or None if all are real. No query sees a step beyond it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_taae import TaaeConfig
from .convolution_taae import real_steps
from .streaming_taae import Past

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None


def rotary_embedding(
    steps: int, dim: int, base: float, device: torch.device, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of the rotary position embedding, each (steps, dim) in float32.

    With `start`, the position of each item's first step as (batch,) integers, both are (batch, 1, steps, dim).

    The angles are computed in float64: float32 is off by 1e-2 rad after half an hour, which changes tokens.
    """
    angle_device = torch.device("cpu") if device.type == "mps" else device
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=angle_device) / dim
    positions = torch.arange(steps, dtype=torch.float64, device=angle_device)
    if start is not None:
        positions = start.to(angle_device)[:, None, None] + positions
    angles = positions[..., None] / base**exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(torch.float32).to(device), angles.sin().to(torch.float32).to(device)


def apply_rotary(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates the first `cosines.shape[-1]` dimensions of each head: (batch, heads, steps, head_dim) -> the same."""
    rotated, kept = states.split([cosines.shape[-1], states.shape[-1] - cosines.shape[-1]], dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cosines.to(states.dtype) + torch.cat([-second, first], dim=-1) * sines.to(states.dtype)
    return torch.cat([rotated, kept], dim=-1)


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a mask to add to attention scores: 0 where a query sees a key, the dtype's minimum elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def flex_mask(seen: Tensor) -> BlockMask:
    """Returns the mask for FlexAttention, which corrupts memory on the CPU if it gets an additive mask."""
    items, _, queries, keys = seen.shape
    return create_block_mask(
        lambda item, head, query, key: seen[item, 0, query, key], items, 1, queries, keys, device=str(seen.device)
    )


class WindowBlocks:
    """Cuts sliding-window attention into blocks of queries, each with the keys that its queries can see.

    Time and memory grow linearly with the length on every attention implementation; a (steps, steps) mask would grow
    with its square. A sequence no longer than a block is one block.

    Args:
        window: keys that a query sees to its left and right, inclusive.
        hidden_states: (batch, steps, width), the sequences to attend over; only shape, dtype and device matter.
        lengths: (batch,) real steps of each item, or None.
        implementation: the attention implementation that computes within blocks.
        past_steps: (batch,) steps of each item before this chunk of a stream; the keys then begin with as many past
            steps as the window has to its left. None outside of streams.
        uniform: whether to make several blocks of the window's size at any length, so that one compiled graph serves
            all lengths. A model that is compiled as a whole always has them.
    """

    def __init__(
        self,
        window: tuple[int, int],
        hidden_states: Tensor,
        lengths: Tensor | None,
        implementation: str = "sdpa",
        past_steps: Tensor | None = None,
        uniform: bool = False,
    ):
        left, right = window
        self.implementation = implementation
        self.batch_size, self.steps, _ = hidden_states.shape
        if (uniform or torch.compiler.is_compiling()) and past_steps is None:
            # The last block is never full, because padding by nothing would need a second graph.
            self.block = left + right + 1
            self.blocks = self.steps // self.block + 2
        else:
            self.block = min(left + right + 1, self.steps)
            self.blocks = -(-self.steps // self.block)
        self.halo = (left, right) if self.blocks > 1 or past_steps is not None else (0, 0)
        seen = self._seen(window, lengths, past_steps, hidden_states.device)
        self.mask = flex_mask(seen) if implementation == "flex_attention" else additive_mask(seen, hidden_states.dtype)

    def _seen(
        self, window: tuple[int, int], lengths: Tensor | None, past_steps: Tensor | None, device: torch.device
    ) -> Tensor:
        """Returns (batch * blocks, 1, block, keys) bool, true where a query sees a key."""
        left, right = window
        starts = torch.arange(self.blocks, device=device)[:, None] * self.block
        query = starts + torch.arange(self.block, device=device)
        key = starts - self.halo[0] + torch.arange(self.block + sum(self.halo), device=device)
        offset = key[:, None, :] - query[:, :, None]
        ends = torch.full((self.batch_size,), self.steps, device=device) if lengths is None else lengths
        begins = torch.zeros_like(ends) if past_steps is None else -past_steps
        real = (key >= begins[:, None, None]) & (key < ends[:, None, None])
        # Queries beyond the end see themselves: a softmax over no key would give NaN, which would spread.
        seen = (offset >= -left) & (offset <= right) & real[:, :, None, :] | (offset == 0)
        return seen.flatten(0, 1)[:, None]

    def split_queries(self, states: Tensor) -> Tensor:
        """Splits (batch, heads, steps, head_dim) into (batch * blocks, heads, block, head_dim)."""
        return self._split(F.pad(states, (0, 0, 0, self.blocks * self.block - self.steps)), self.block)

    def split_keys(self, states: Tensor) -> Tensor:
        """Splits (batch, heads, steps, head_dim) into (batch * blocks, heads, keys, head_dim).

        In a stream, `states` begin with past steps, as many as the window has to its left.
        """
        before, after = self.halo
        missing = before - (states.shape[2] - self.steps)
        padded = F.pad(states, (0, 0, missing, after + self.blocks * self.block - self.steps))
        return self._split(padded, self.block + before + after)

    def _split(self, states: Tensor, size: int) -> Tensor:
        return states.unfold(2, size, self.block).permute(0, 2, 1, 4, 3).flatten(0, 1)

    def join(self, states: Tensor) -> Tensor:
        """Joins (batch * blocks, block, heads, head_dim) into (batch, steps, heads * head_dim)."""
        return states.reshape(self.batch_size, self.blocks * self.block, -1)[:, : self.steps]


def flash_window_attention(
    query: Tensor, key: Tensor, value: Tensor, window: tuple[int, int], lengths: Tensor | None
) -> Tensor:
    """Computes sliding-window attention with FlashAttention 2, which supports asymmetric windows.

    Args:
        query, key, value: (batch, heads, steps, head_dim) in float16 or bfloat16.
        window: keys that a query sees to its left and right, inclusive.
        lengths: (batch,) real steps of each item, or None.

    Returns:
        (batch, steps, heads * head_dim).

    Raises:
        ImportError: if the package flash_attn is not installed.
        ValueError: if the dtype is another one. Casting silently to float16 would change tokens.
    """
    if flash_attn_varlen_func is None:
        raise ImportError(
            "flash_attention_2 needs the package flash_attn: install it, or load the model with "
            'attn_implementation="sdpa".'
        )
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"flash_attention_2 computes in float16 or bfloat16, not {query.dtype}; load the model with "
            'dtype=torch.bfloat16, or with attn_implementation="sdpa" for exact tokens.'
        )
    batch, heads, steps, head_dim = query.shape
    lengths = torch.full((batch,), steps, device=query.device) if lengths is None else lengths
    real = real_steps(lengths, steps)
    packed = [states.transpose(1, 2)[real] for states in (query, key, value)]
    ends = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    attended = flash_attn_varlen_func(*packed, ends, ends, steps, steps, window_size=window)
    output = query.new_zeros(batch, steps, heads, head_dim)
    output[real] = attended
    return output.flatten(2)


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **kwargs
) -> tuple[Tensor, Tensor]:
    """Computes attention in plain PyTorch; returns (batch, steps, heads, head_dim) and the attention weights."""
    weights = torch.softmax(query @ key.transpose(-1, -2) * scaling + attention_mask, dim=-1)
    return (weights @ value).transpose(1, 2), weights


def flex_attention_on_cpu(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: BlockMask, scaling: float, **kwargs
) -> tuple[Tensor, None]:
    """Computes FlexAttention uncompiled: compiled for the CPU by PyTorch, it fails when lengths vary."""
    return flex_attention(query, key, value, block_mask=attention_mask, scale=scaling).transpose(1, 2), None


def attention_function(implementation: str, device: torch.device) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Returns the function that computes attention within blocks."""
    if implementation == "flex_attention" and device.type == "cpu":
        return flex_attention_on_cpu
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)


class TaaeAttention(nn.Module):
    """Multi-head sliding-window attention with normalised queries and keys and rotary positions."""

    def __init__(self, config: TaaeConfig, width: int):
        super().__init__()
        self.config = config
        self.window = config.attention_window
        self.head_dim = min(config.head_dim, width)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.qk_norm_eps)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.qk_norm_eps)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.stream_name = ""  # the module's path, set by the model
        self.is_causal = False  # the window decides what is seen; attention functions must not add a causal mask

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        blocks: WindowBlocks | None = None,
        lengths: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Maps (batch, steps, width) to the same shape. `blocks` is None for FlashAttention, which needs none."""
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for states in self.qkv_proj(hidden_states).chunk(3, dim=-1)
        )
        query = apply_rotary(self.q_norm(query), *position_embeddings)
        key = apply_rotary(self.k_norm(key), *position_embeddings)
        if blocks is None:
            # CUDA autocast, as in training, leaves normalised queries and keys in float32.
            query, key = query.to(value.dtype), key.to(value.dtype)
            return self.o_proj(flash_window_attention(query, key, value, self.window, lengths))
        if past is not None:
            key = past.prepend(f"{self.stream_name}.key", key, self.window[0], dim=2)
            value = past.prepend(f"{self.stream_name}.value", value, self.window[0], dim=2)
        attention = attention_function(blocks.implementation, query.device)
        attended, _ = attention(
            self,
            blocks.split_queries(query),
            blocks.split_keys(key),
            blocks.split_keys(value),
            blocks.mask,
            scaling=self.head_dim**-0.5,
        )
        return self.o_proj(blocks.join(attended))
