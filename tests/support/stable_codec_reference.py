"""The network once more, as short and slow as it can be said: functions of a stable-codec state dict, a T × T mask.

It shares no code with the package, keeps the original names, computes in float64 and knows the optional parts. The
parity tests prove it on recorded outputs of the public implementation; other tests then compare the package with it
where nothing was recorded: other windows, widths, heads, strides and options.
"""

import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
HEAD_DIM = 128
DILATIONS = (1, 3, 9)


@dataclass(frozen=True)
class Shape:
    """What the sections of a `model_config.json` say."""

    patch_size: int = 8
    channels: int = 16
    c_mults: tuple[int, ...] = (1, 2)
    strides: tuple[int, ...] = (2, 2)
    encoder_depths: tuple[int, ...] = (1, 1)
    decoder_depths: tuple[int, ...] = (1, 1)
    latent_dim: int = 6
    sliding_window: tuple[int, int] = (3, 4)
    use_snake: bool = False
    use_dilated_conv: bool = False
    conformer: bool = False
    layer_scale: bool = True
    soft_clip: bool = False

    @property
    def widths(self) -> list[int]:
        return [multiple * self.channels for multiple in self.c_mults]

    @property
    def hop_length(self) -> int:
        return self.patch_size * math.prod(self.strides)

    @classmethod
    def of(cls, config: dict) -> "Shape":
        """The shape that a `model_config.json` describes."""
        model = config["model"]
        options = dict(model["encoder"]["config"])
        options["encoder_depths"] = options.pop("transformer_depths")
        options["decoder_depths"] = model["decoder"]["config"]["transformer_depths"]
        options["patch_size"] = options.pop("in_channels")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})

    def model_config(self) -> dict:
        """The `model_config.json` of this shape, all options spelt out."""
        names = ("channels", "latent_dim", "use_snake", "use_dilated_conv", "conformer", "layer_scale")
        side = {name: getattr(self, name) for name in names}
        side |= {name: list(getattr(self, name)) for name in ("c_mults", "strides", "sliding_window")}
        encoder = {**side, "in_channels": self.patch_size, "transformer_depths": list(self.encoder_depths)}
        decoder = {**side, "out_channels": self.patch_size, "transformer_depths": list(self.decoder_depths)}
        return {
            "model_type": "autoencoder",
            "sample_rate": 16_000,
            "audio_channels": 1,
            "model": {
                "encoder": {"type": "taae", "config": encoder},
                "decoder": {"type": "taae", "config": decoder, "soft_clip": self.soft_clip},
                "bottleneck": {
                    "type": "dithered_fsq",
                    "config": {"dim": self.latent_dim, "levels": 17, "num_codebooks": 1, "noise_dropout": 0.5},
                },
                "pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": self.patch_size}},
                "latent_dim": self.latent_dim,
                "downsampling_ratio": self.hop_length,
                "io_channels": 1,
            },
        }


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict, constant buffers included."""
    shapes: dict[str, tuple[int, ...]] = {}
    widths, depth = shape.widths, len(shape.widths)

    def convolution(name: str, outputs: int, inputs: int, kernel: int, bias: int = 0) -> None:
        shapes[f"{name}.weight_g"] = (outputs, 1, 1)
        shapes[f"{name}.weight_v"] = (outputs, inputs, kernel)
        if bias:
            shapes[f"{name}.bias"] = (bias,)

    def snake(name: str, width: int) -> None:
        if shape.use_snake:
            shapes[f"{name}.alpha"] = shapes[f"{name}.beta"] = (width,)

    def units(name: str, first: int, width: int) -> None:
        for index in range(first, first + len(DILATIONS)) if shape.use_dilated_conv else ():
            snake(f"{name}.layers.{index}.layers.0", width)
            convolution(f"{name}.layers.{index}.layers.1", width, width, 7, bias=width)
            snake(f"{name}.layers.{index}.layers.2", width)
            convolution(f"{name}.layers.{index}.layers.3", width, width, 1, bias=width)

    def layers(name: str, width: int, count: int) -> None:
        for index in range(1, count + 1):
            shapes.update({f"{name}.{index}.{key}": size for key, size in layer_shapes(shape, width).items()})

    convolution("encoder.layers.0", widths[0], shape.patch_size, 7, bias=widths[0])
    convolution("decoder.layers.0", widths[-1], shape.latent_dim, 3, bias=widths[-1])
    for block, stride in enumerate(shape.strides):
        name, position = f"encoder.layers.{block + 1}", 3 if shape.use_dilated_conv else 0
        before, width = widths[max(block - 1, 0)], widths[block]
        units(name, 0, before)
        snake(f"{name}.layers.{position}", before)
        if stride > 1:
            convolution(f"{name}.layers.{position + 1}", width, before, 2 * stride, bias=width)
        layers(f"{name}.layers.{position + 2}", width, shape.encoder_depths[block])
        name = f"decoder.layers.{depth - block}"
        layers(f"{name}.layers.0", width, shape.decoder_depths[block])
        snake(f"{name}.layers.1", width)
        if stride > 1:
            convolution(f"{name}.layers.2", width, before, 2 * stride, bias=before)
        units(name, 3, before)
    snake(f"encoder.layers.{depth + 1}", widths[-1])
    snake(f"decoder.layers.{depth + 1}", widths[0])
    convolution(f"encoder.layers.{depth + 2}", shape.latent_dim, widths[-1], 3, bias=shape.latent_dim)
    convolution(f"decoder.layers.{depth + 2}", shape.patch_size, widths[0], 7)
    return shapes


def layer_shapes(shape: Shape, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes inside one transformer layer."""
    head = min(HEAD_DIM, width)
    norms = ["pre_norm", "ff_norm"] + ["conformer.in_norm", "conformer.mid_norm"] * shape.conformer
    shapes = {f"{norm}.{name}": (width,) for norm in norms for name in ("gamma", "beta")}
    shapes |= {f"self_attn.{norm}.{name}": (head,) for norm in ("q_norm", "k_norm") for name in ("weight", "bias")}
    shapes["self_attn.to_qkv.weight"] = (3 * width, width)
    shapes["self_attn.to_out.weight"] = (width, width)
    shapes["ff.ff.0.proj.weight"], shapes["ff.ff.0.proj.bias"] = (8 * width, width), (8 * width,)
    shapes["ff.ff.2.weight"], shapes["ff.ff.2.bias"] = (width, 4 * width), (width,)
    shapes["rope.inv_freq"] = (head // 4,)
    if shape.conformer:
        shapes["conformer.pointwise_conv.weight"] = shapes["conformer.pointwise_conv_2.weight"] = (width, width, 1)
        shapes["conformer.glu.proj.weight"], shapes["conformer.glu.proj.bias"] = (2 * width, width), (2 * width,)
        shapes["conformer.depthwise_conv.weight"] = (width, 1, 17)
    if shape.layer_scale:
        branches = ["self_attn_scale", "ff_scale"] + ["conformer_scale"] * shape.conformer
        shapes |= {f"{branch}.scale": (width,) for branch in branches}
    return shapes


def recipe_state(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    """Every parameter drawn at random from its name and a seed, as the recorded fixtures' recipe has it."""
    last = max(int(key.split(".")[2]) for key in shapes)
    bases = {"encoder.layers.0": 3.0, f"encoder.layers.{last}": 0.7, f"decoder.layers.{last}": 0.12}
    return {key: _draw(key, tuple(size), seed, bases) for key, size in shapes.items()}


def _draw(key: str, size: tuple[int, ...], seed: int, bases: dict[str, float]) -> Tensor:
    if key.endswith("_norm.beta"):
        return torch.zeros(size)
    if key.endswith("inv_freq"):
        dim = 2 * size[0]
        return 1 / 10_000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    noise = np.random.RandomState((seed * 1_000_003 + zlib.crc32(key.encode())) % 2**32).standard_normal(size)
    owner, _, kind = key.rpartition(".")
    if kind == "weight_g":
        # The recorded recipe knows no residual units; small ones keep the network well-conditioned.
        base = 0.2 if re.fullmatch(r"\w+(\.layers\.\d){3}", owner) else bases.get(owner, 1.3)
        values = base * (1 + 0.2 * noise)
    elif owner.endswith(("q_norm", "k_norm")) and kind == "weight":
        values = 1.2 + 0.1 * noise
    elif kind in ("weight", "weight_v"):
        values = noise / math.sqrt(math.prod(size[1:]))
    elif kind == "gamma":
        values = 1 + 0.1 * noise
    elif kind == "scale":
        values = 0.5 * (1 + 0.3 * noise)
    else:  # biases, and Snake's two parameters, which are not in the recorded recipe either
        values = (0.1 if kind == "bias" else 0.3) * noise
    tensor = torch.from_numpy(values).to(torch.float32)
    return tensor.to(torch.bfloat16).to(torch.float32) if tensor.numel() > 4096 else tensor


def encode(state: State, shape: Shape, audio: Tensor) -> Tensor:
    """Latents (batch, latent_dim, frames) in float64 of audio (batch, 1, samples), samples a multiple of the hop."""
    state = {key: tensor.double() for key, tensor in state.items()}
    x = audio.double().reshape(len(audio), -1, shape.patch_size).transpose(1, 2)
    x = _convolution(state, "encoder.layers.0", x, padding=3)
    depth, units = len(shape.strides), 3 if shape.use_dilated_conv else 0
    for block, stride in enumerate(shape.strides):
        name = f"encoder.layers.{block + 1}.layers"
        for unit, dilation in zip(range(units), DILATIONS, strict=False):
            x = _residual_unit(state, f"{name}.{unit}.layers", x, dilation)
        x = _snake(state, f"{name}.{units}", x)
        if stride > 1:
            x = _convolution(state, f"{name}.{units + 1}", x, stride=stride, padding=math.ceil(stride / 2))
        x = _transformer(state, f"{name}.{units + 2}", x, shape.encoder_depths[block], shape.sliding_window)
    x = _snake(state, f"encoder.layers.{depth + 1}", x)
    return _convolution(state, f"encoder.layers.{depth + 2}", x, padding=1)


def decode(state: State, shape: Shape, codes: Tensor) -> Tensor:
    """Audio (batch, 1, samples) in float64 of codes (batch, latent_dim, frames)."""
    state = {key: tensor.double() for key, tensor in state.items()}
    x = _convolution(state, "decoder.layers.0", codes.double(), padding=1)
    depth = len(shape.strides)
    for block, stride in reversed(list(enumerate(shape.strides))):
        name = f"decoder.layers.{depth - block}.layers"
        x = _transformer(state, f"{name}.0", x, shape.decoder_depths[block], shape.sliding_window)
        x = _snake(state, f"{name}.1", x)
        if stride > 1:
            weight, bias = _weight(state, f"{name}.2"), state[f"{name}.2.bias"]
            x = F.conv_transpose1d(x, weight, bias, stride=stride, padding=math.ceil(stride / 2))
        for unit, dilation in enumerate(DILATIONS if shape.use_dilated_conv else ()):
            x = _residual_unit(state, f"{name}.{3 + unit}.layers", x, dilation)
    x = _snake(state, f"decoder.layers.{depth + 1}", x)
    x = _convolution(state, f"decoder.layers.{depth + 2}", x, padding=3)
    audio = x.transpose(1, 2).reshape(len(x), 1, -1)
    return torch.tanh(audio) if shape.soft_clip else audio


def window_mask(steps: int, window: tuple[int, int]) -> Tensor:
    """Boolean (steps, steps), true where the query of a row sees the key of a column."""
    offset = torch.arange(steps) - torch.arange(steps)[:, None]
    return (offset >= -window[0]) & (offset <= window[1])


def rotate(heads: Tensor) -> Tensor:
    """Rotary positions on (…, steps, head_dim): pairs in the first half of the head are complex numbers, turned."""
    steps, head_dim = heads.shape[-2:]
    pairs = head_dim // 4
    turned = torch.complex(heads[..., :pairs], heads[..., pairs : 2 * pairs])
    frequencies = 10_000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    turned = turned * torch.polar(torch.ones((), dtype=torch.float64), torch.arange(steps)[:, None] * frequencies)
    return torch.cat([turned.real, turned.imag, heads[..., 2 * pairs :]], dim=-1)


def attention(state: State, name: str, x: Tensor, window: tuple[int, int], head_dim: int = HEAD_DIM) -> Tensor:
    """Attention over a window, (batch, steps, width) -> the same shape, with a whole T × T matrix of scores."""
    batch, steps, width = x.shape
    head_dim = min(head_dim, width)
    query, key, value = (
        (x @ state[f"{name}.to_qkv.weight"].T).view(batch, steps, 3, -1, head_dim).permute(2, 0, 3, 1, 4)
    )
    query, key = (
        rotate(F.layer_norm(heads, (head_dim,), state[f"{name}.{norm}.weight"], state[f"{name}.{norm}.bias"], 1e-6))
        for heads, norm in ((query, "q_norm"), (key, "k_norm"))
    )
    scores = (query @ key.mT / math.sqrt(head_dim)).masked_fill(~window_mask(steps, window), -math.inf)
    attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, steps, width)
    return attended @ state[f"{name}.to_out.weight"].T


def _transformer(state: State, name: str, x: Tensor, depth: int, window: tuple[int, int]) -> Tensor:
    x = x.transpose(1, 2)
    for layer in range(1, depth + 1):
        prefix = f"{name}.{layer}"
        one = torch.ones((), dtype=x.dtype)
        attended = attention(state, f"{prefix}.self_attn", _norm(state, f"{prefix}.pre_norm", x), window)
        x = x + attended * state.get(f"{prefix}.self_attn_scale.scale", one)
        if f"{prefix}.conformer.glu.proj.weight" in state:
            x = x + _conformer(state, f"{prefix}.conformer", x) * state.get(f"{prefix}.conformer_scale.scale", one)
        hidden = _gated(state, f"{prefix}.ff.ff.0.proj", _norm(state, f"{prefix}.ff_norm", x))
        hidden = hidden @ state[f"{prefix}.ff.ff.2.weight"].T + state[f"{prefix}.ff.ff.2.bias"]
        x = x + hidden * state.get(f"{prefix}.ff_scale.scale", one)
    return x.transpose(1, 2)


def _conformer(state: State, name: str, x: Tensor) -> Tensor:
    x = _norm(state, f"{name}.in_norm", x) @ state[f"{name}.pointwise_conv.weight"][:, :, 0].T
    x = _gated(state, f"{name}.glu.proj", x).transpose(1, 2)
    x = F.conv1d(x, state[f"{name}.depthwise_conv.weight"], padding=8, groups=x.shape[1]).transpose(1, 2)
    return F.silu(_norm(state, f"{name}.mid_norm", x)) @ state[f"{name}.pointwise_conv_2.weight"][:, :, 0].T


def _gated(state: State, name: str, x: Tensor) -> Tensor:
    value, gate = (x @ state[f"{name}.weight"].T + state[f"{name}.bias"]).chunk(2, dim=-1)
    return value * gate * torch.sigmoid(gate)


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.gamma"], None, 1e-2)


def _snake(state: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.alpha" not in state:
        return x
    alpha, beta = state[f"{name}.alpha"][:, None].exp(), state[f"{name}.beta"][:, None].exp()
    return x + torch.sin(x * alpha) ** 2 / (beta + 1e-9)


def _residual_unit(state: State, name: str, x: Tensor, dilation: int) -> Tensor:
    def activation(position: int, values: Tensor) -> Tensor:
        has_snake = f"{name}.{position}.alpha" in state
        return _snake(state, f"{name}.{position}", values) if has_snake else F.elu(values)

    hidden = _convolution(state, f"{name}.1", activation(0, x), dilation=dilation, padding=3 * dilation)
    return x + _convolution(state, f"{name}.3", activation(2, hidden))


def _convolution(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    return F.conv1d(x, _weight(state, name), state.get(f"{name}.bias"), **options)


def _weight(state: State, name: str) -> Tensor:
    direction = state[f"{name}.weight_v"]
    return state[f"{name}.weight_g"] * direction / direction.norm(dim=(1, 2), keepdim=True)
