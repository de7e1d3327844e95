"""Configuration of TAAE, the transformer audio auto-encoder (arXiv 2411.19842)."""

import math

from transformers import PreTrainedConfig

# The sizes that the paper trains (its section on scaling), and two smaller ones for phones, browsers and CPUs.
NAMED_SIZES: dict[str, dict] = {
    "950m": {},
    "480m": {"encoder_depths": (4, 10), "decoder_depths": (4, 10)},
    "240m": {"encoder_depths": (2, 5), "decoder_depths": (2, 5)},
    "nano": {
        "patch_size": 160,
        "hidden_sizes": (256, 256, 256),
        "strides": (1, 2, 2),
        "encoder_depths": (0, 1, 3),
        "decoder_depths": (1, 2, 4),
        "layer_scale_initial_scale": 0.1,
    },
    "small": {
        "patch_size": 160,
        "hidden_sizes": (384, 384, 384),
        "strides": (1, 2, 2),
        "encoder_depths": (0, 2, 2),
        "decoder_depths": (2, 3, 3),
        "layer_scale_initial_scale": 0.1,
    },
}


# The range of each integer, bounds included. No machine holds a model beyond the upper bounds.
INTEGERS = {
    "sampling_rate": (1, 10**6),
    "patch_size": (1, 2**20),
    "head_dim": (1, 2**16),
    "intermediate_ratio": (1, 2**10),
    "latent_dim": (1, 2**10),
}
# The same for each entry of a tuple. A tuple has at most MOST_ENTRIES entries.
TUPLES = {
    "hidden_sizes": (1, 2**16),
    "strides": (1, 2**12),
    "encoder_depths": (0, 2**10),
    "decoder_depths": (0, 2**10),
    "sliding_window": (0, 2**24),
    "quantization_levels": (2, 2**16),
    "training_levels": (2, 2**16),
}
MOST_ENTRIES = 2**10
# Limits of a model's transformer layers and weights; the paper's largest model has a tenth of these weights.
MOST_LAYERS, MOST_WEIGHTS = 2**10, 10**10
# The upper bound of each positive number.
FLOATS = {"layer_scale_initial_scale": 1e6, "norm_eps": 1e6, "qk_norm_eps": 1e6, "rope_theta": 1e12}
SHARES = ("training_noise_probability", "training_rounding_probability")
SWITCHES = ("causal", "use_snake", "use_dilated_conv", "use_conformer", "soft_clip")


class TaaeConfig(PreTrainedConfig):
    r"""
    Configuration of a [`TaaeModel`]. The defaults are the published 950M model.

    Args:
        sampling_rate (`int`, defaults to 16000):
            Samples per second of the audio, in Hz.
        patch_size (`int`, defaults to 320):
            Samples folded into the channels of one patch, the unit that the first convolution reads.
        hidden_sizes (`tuple[int, ...]`, defaults to `(1024, 1024)`):
            Width of each block, in encoder order. The input convolution gives the first block's width; a block of
            stride 1 keeps the width of the block before it.
        strides (`tuple[int, ...]`, defaults to `(1, 2)`):
            Downsampling factor of each block, in encoder order; the decoder upsamples by the same factors, reversed.
            Choose 1 or even strides for a model that is not causal: with an odd one the decoder gives one step fewer,
            as the reference implementation does.
        encoder_depths, decoder_depths (`tuple[int, ...]`, default to `(8, 20)`):
            Transformer layers of each block, both in encoder order (the decoder runs them reversed). 0 is allowed.
        head_dim (`int`, defaults to 128):
            Dimension of an attention head; a block narrower than this has one head of its own width.
        intermediate_ratio (`int`, defaults to 4):
            Width of the gated feed-forward layer as a multiple of the block's width.
        sliding_window (`tuple[int, int]` or `int`, defaults to `(63, 64)`):
            Keys that a query sees to its left and to its right, besides its own; one number sets both. With
            `causal=True` the right half is ignored.
        causal (`bool`, defaults to `False`):
            The paper's streaming variant (appendix A.4): frame t depends on frames up to t only.
        latent_dim (`int`, defaults to 6):
            Dimensions of the bottleneck.
        quantization_levels (`int` or `tuple[int, ...]`, defaults to 17):
            Levels of the training grid per latent dimension; one number sets all dimensions.
        bottleneck (`str` or list of stages, defaults to `"1x46656_400bps"`):
            Default of `encode` and `decode`: a preset's name, `"native"` for the training grid, or a list of
            `(levels of each dimension, scale)` stages.
        layer_scale_initial_scale (`float` or `None`, defaults to 1e-5):
            Initial value of the LayerScale vectors; `None` leaves LayerScale out.
        norm_eps (`float`, defaults to 1e-2):
            Epsilon of the layer norms. The large value keeps silence from being scaled up to unit variance.
        qk_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the layer norms over each head of queries and keys.
        rope_theta (`float`, defaults to 10000.0):
            Base of the rotary position embedding, which rotates the first half of each head.
        use_snake (`bool`, defaults to `False`):
            Snake activations before the resampling convolutions and before the last convolution of each side.
        use_dilated_conv (`bool`, defaults to `False`):
            Three dilated residual units on the high-rate side of each block.
        use_conformer (`bool`, defaults to `False`):
            A Conformer convolution module between attention and feed-forward.
        soft_clip (`bool`, defaults to `False`):
            Hyperbolic tangent on the decoded audio.
        training_levels (`tuple[int, ...]`, defaults to `(5, 6, 9, 17)`):
            Numbers of levels that training draws from, per item, so that one model serves several bottlenecks.
        training_noise_probability (`float`, defaults to 0.5):
            Share of training items whose latents get uniform noise of half a quantisation step to either side.
        training_rounding_probability (`float`, defaults to 0.5):
            Share of training items whose latents are rounded, with a straight-through gradient. The other items stay
            continuous.
        token_ancestors (`dict`, *optional*):
            Models that this one was fine-tuned from and whose tokens it shares: their identities as `"models"`, oldest
            first, and the identity of their common `"encoder"`. The list is ignored if this model's encoder differs.

    Example:

    ```python
    >>> from modeling_taae import TaaeConfig, TaaeModel
    >>> model = TaaeModel(TaaeConfig.named("nano"))
    >>> model.config.hop_length, model.config.frame_rate
    (640, 25.0)
    ```"""

    model_type = "taae"

    sampling_rate: int = 16_000
    patch_size: int = 320
    hidden_sizes: tuple[int, ...] | list[int] = (1024, 1024)
    strides: tuple[int, ...] | list[int] = (1, 2)
    encoder_depths: tuple[int, ...] | list[int] = (8, 20)
    decoder_depths: tuple[int, ...] | list[int] = (8, 20)
    head_dim: int = 128
    intermediate_ratio: int = 4
    sliding_window: int | tuple[int, int] | list[int] = (63, 64)
    causal: bool = False
    latent_dim: int = 6
    quantization_levels: int | tuple[int, ...] | list[int] = 17
    bottleneck: str | list | tuple = "1x46656_400bps"
    layer_scale_initial_scale: float | None = 1e-5
    norm_eps: float = 1e-2
    qk_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    use_snake: bool = False
    use_dilated_conv: bool = False
    use_conformer: bool = False
    soft_clip: bool = False
    training_levels: tuple[int, ...] | list[int] = (5, 6, 9, 17)
    training_noise_probability: float = 0.5
    training_rounding_probability: float = 0.5
    token_ancestors: dict | None = None

    def __post_init__(self, **kwargs):
        if self._is_integer(self.quantization_levels) and self._is_integer(self.latent_dim):
            # A latent_dim beyond its range is rejected below.
            self.quantization_levels = (self.quantization_levels,) * min(self.latent_dim, MOST_ENTRIES)
        if self._is_integer(self.sliding_window):
            self.sliding_window = (self.sliding_window, self.sliding_window)
        self._check_types()
        super().__post_init__(**kwargs)
        self.validate_architecture()

    @staticmethod
    def _is_integer(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def _check_types(self) -> None:
        """Checks each field's type and range, and converts lists to tuples and integers to floats where needed.

        Raises:
            ValueError: naming the field, its value and what it should be.
        """
        for name in SWITCHES:
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        for name, (lowest, highest) in INTEGERS.items():
            value = getattr(self, name)
            self._require(
                name,
                self._is_integer(value) and lowest <= value <= highest,
                f"an integer of at least {lowest}, at most {highest}",
            )
        for name, (lowest, highest) in TUPLES.items():
            values = getattr(self, name)
            fits = isinstance(values, (list, tuple)) and len(values) <= MOST_ENTRIES
            fits = fits and all(self._is_integer(value) and lowest <= value <= highest for value in values)
            self._require(name, fits, f"integers of at least {lowest}, at most {highest}")
            setattr(self, name, tuple(values))
        for name in (*FLOATS, *SHARES):
            value, lowest, highest = getattr(self, name), 0 if name in SHARES else 5e-324, FLOATS.get(name, 1.0)
            if name == "layer_scale_initial_scale" and value is None:
                continue
            number = self._is_integer(value) or isinstance(value, float)
            self._require(name, number and lowest <= value <= highest, f"a number above 0, at most {highest:g}")
            setattr(self, name, float(value))
        self._require("bottleneck", isinstance(self.bottleneck, (str, list, tuple)), "a name or a list of stages")
        self._require("token_ancestors", self._lists_ancestors(), "what `list_ancestors` writes, or null")

    def _require(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            value = repr(getattr(self, name))
            raise ValueError(f"{name} must be {expected}, not {value[:80]}.")

    def _lists_ancestors(self) -> bool:
        if self.token_ancestors is None:
            return True
        listed = self.token_ancestors if isinstance(self.token_ancestors, dict) else {}
        models = listed.get("models")
        return isinstance(models, list) and all(isinstance(each, str) for each in (listed.get("encoder"), *models))

    @classmethod
    def named(cls, name: str, **overrides) -> "TaaeConfig":
        """Returns the configuration of a named size, such as `"950m"` or `"nano"`, with fields overridden.

        Raises:
            ValueError: if there is no size of that name.
        """
        if name not in NAMED_SIZES:
            raise ValueError(f"There is no TAAE size named {name!r}; choose one of {', '.join(NAMED_SIZES)}.")
        return cls(**{**NAMED_SIZES[name], **overrides})

    def validate_architecture(self) -> None:
        """Checks that the fields fit together.

        Raises:
            ValueError: naming the field, its value and what it should be.
        """
        per_block = ("hidden_sizes", "strides", "encoder_depths", "decoder_depths")
        blocks = len(self.strides)
        if blocks == 0 or any(len(getattr(self, name)) != blocks for name in per_block):
            lengths = ", ".join(f"{name} {len(getattr(self, name))}" for name in per_block)
            raise ValueError(
                f"{', '.join(per_block)} need one entry per block and at least one block; they have {lengths}."
            )
        for width in self.hidden_sizes:
            head_dim = min(self.head_dim, width)
            if width % head_dim or head_dim % 4:
                raise ValueError(
                    f"A block of width {width} cannot be split into heads of {head_dim} dimensions: head_dim must "
                    "divide the width and be a multiple of 4."
                )
        for previous, width, stride in zip(self.hidden_sizes, self.hidden_sizes[1:], self.strides[1:], strict=False):
            if stride == 1 and width != previous:
                raise ValueError(
                    f"A block of stride 1 has no convolution, so it cannot change the width from {previous} to {width}."
                )
        if len(self.sliding_window) != 2:
            raise ValueError(f"sliding_window is (left, right), both at least 0; got {self.sliding_window}.")
        if len(self.quantization_levels) != self.latent_dim:
            raise ValueError(
                f"quantization_levels needs one entry per latent dimension ({self.latent_dim}); "
                f"got {len(self.quantization_levels)}."
            )
        layers, weights = sum(self.encoder_depths) + sum(self.decoder_depths), self.least_weights
        if layers > MOST_LAYERS or weights > MOST_WEIGHTS:
            raise ValueError(
                f"encoder_depths, decoder_depths and hidden_sizes make {layers:,} transformer layers with {weights:,} "
                f"weights; at most {MOST_LAYERS:,} layers and {MOST_WEIGHTS:,} weights are allowed."
            )
        if not self.training_levels:
            raise ValueError("training_levels needs at least one grid.")
        shares = (self.training_noise_probability, self.training_rounding_probability)
        if sum(shares) > 1:
            raise ValueError(
                "training_noise_probability and training_rounding_probability must be at least 0 and at most 1 in sum; "
                f"got {shares}."
            )

    @property
    def least_weights(self) -> int:
        """Weights that a model has at least: those of its matrices and large convolutions."""
        widths = self.hidden_sizes
        layer = 4 + 3 * self.intermediate_ratio
        weights = 2 * 7 * self.patch_size * widths[0]
        for previous, width, stride in zip((widths[0], *widths), widths, self.strides, strict=False):
            weights += 2 * 2 * stride * previous * width * (stride > 1)
        depths = zip(widths, self.encoder_depths, self.decoder_depths, strict=True)
        return weights + sum(layer * width**2 * (encoder + decoder) for width, encoder, decoder in depths)

    @property
    def hop_length(self) -> int:
        """Samples per token frame."""
        return self.patch_size * math.prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Token frames per second, in Hz."""
        return self.sampling_rate / self.hop_length

    @property
    def attention_window(self) -> tuple[int, int]:
        """Keys that a query sees to its left and right; none to the right if the model is causal."""
        window = self.sliding_window
        left, right = (window, window) if isinstance(window, int) else window
        return (left, 0) if self.causal else (left, right)


__all__ = ["TaaeConfig"]
