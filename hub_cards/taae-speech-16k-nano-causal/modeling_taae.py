"""TAAE: a transformer auto-encoder with an FSQ bottleneck for speech at 400 to 950 bit/s (arXiv 2411.19842).

Signal path: audio -> patches -> encoder -> latents -> FSQ -> codes -> decoder -> patches -> audio. The audio is
(batch, 1, samples), convolutions see (batch, channels, steps), transformer layers (batch, steps, channels).

`lengths` (batch,) is the number of real steps of each item at the rate of the tensor it goes with, or None where all
steps are real. What lies beyond an item's length is zero at the input of every convolution and hidden from attention,
so that an item of a padded batch comes out as it does alone. `past` is what a stream through a causal model remembers;
it stands where zeros stand before the beginning of a recording.
"""

import math
from dataclasses import dataclass, replace
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .checks_taae import checked
from .configuration_taae import TaaeConfig
from .convolution_taae import TaaeConv1d, TaaeConvTranspose1d, TaaeSnake, real_steps, residual_units, zero_padding
from .quantization_taae import ResidualFSQ, dither, resolve_bottleneck, straight_through
from .streaming_taae import Past, StreamingState
from .transformer_taae import TaaeLayerScale, TaaeTransformer

# What torch calls the two parts that weight norm splits a weight into.
MAGNITUDE, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


@dataclass
class TaaeEncoderOutput(ModelOutput):
    """
    Args:
        audio_codes (`torch.LongTensor` of shape `(batch, tokens_per_frame, frames)`):
            Tokens of the bottleneck.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, frames)`):
            1 where a frame holds audio of its item, 0 where it is padding.
        latents (`torch.FloatTensor` of shape `(batch, latent_dim, frames)`):
            Output of the encoder, before the hyperbolic tangent; zero in padded frames.
        state (`StreamingState`, *optional*):
            What to give to the next call, if this one was given a state.
    """

    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    latents: Tensor | None = None
    state: StreamingState | None = None


@dataclass
class TaaeDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, frames * hop_length)`):
            Decoded audio, zero in padded frames.
        state (`StreamingState`, *optional*):
            What to give to the next call, if this one was given a state.
    """

    audio_values: Tensor | None = None
    state: StreamingState | None = None


@dataclass
class TaaeOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, samples)`):
            Decoded audio, cut to the length of the input.
        audio_codes (`torch.LongTensor` of shape `(batch, tokens_per_frame, frames)`, *optional*):
            Tokens of the bottleneck; None in training mode, where latents are dithered instead of tokenised.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, frames)`):
            1 where a frame holds audio of its item, 0 where it is padding.
        latents (`torch.FloatTensor` of shape `(batch, latent_dim, frames)`):
            Output of the encoder, before the hyperbolic tangent.
    """

    audio_values: Tensor | None = None
    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    latents: Tensor | None = None


class TaaeEncoderBlock(nn.Module):
    """Residual units (optional), Snake (optional), strided convolution (if the stride is not 1), transformer layers."""

    def __init__(self, config: TaaeConfig, in_width: int, width: int, stride: int, depth: int):
        super().__init__()
        self.residual_units = residual_units(config, in_width)
        self.activation = TaaeSnake(in_width) if config.use_snake else nn.Identity()
        self.downsample = None
        if stride > 1:
            self.downsample = TaaeConv1d(in_width, width, 2 * stride, stride=stride, causal=config.causal)
        self.transformer = TaaeTransformer(config, width, depth)

    def forward(
        self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, in_width, steps) -> (batch, width, steps / stride), and the lengths at that rate.

        This is what the transformer layers are to be given. The encoder calls them, when it has let go of the input,
        which is the larger one.
        """
        for unit in self.residual_units:
            hidden_states = unit(hidden_states, lengths, past)
        hidden_states = self.activation(hidden_states)
        if self.downsample is not None:
            hidden_states = self.downsample(hidden_states, lengths, past)
            lengths = self.downsample.output_lengths(lengths)
        return hidden_states, lengths


class TaaeDecoderBlock(nn.Module):
    """Transformer layers, Snake (optional), transposed convolution (stride above 1), residual units (optional)."""

    def __init__(self, config: TaaeConfig, width: int, out_width: int, stride: int, depth: int):
        super().__init__()
        self.transformer = TaaeTransformer(config, width, depth)
        self.activation = TaaeSnake(width) if config.use_snake else nn.Identity()
        self.upsample = TaaeConvTranspose1d(width, out_width, stride, config.causal) if stride > 1 else None
        self.residual_units = residual_units(config, out_width)

    def forward(
        self, hidden_states: Tensor, lengths: Tensor | None = None, past: Past | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, width, steps) -> (batch, out_width, steps * stride), and the lengths at that rate."""
        hidden_states = self.activation(self.transformer(hidden_states, lengths, past))
        if self.upsample is not None:
            hidden_states = self.upsample(hidden_states, lengths, past)
            lengths = self.upsample.output_lengths(lengths)
        for unit in self.residual_units:
            hidden_states = unit(hidden_states, lengths, past)
        return hidden_states, lengths


class TaaeEncoder(nn.Module):
    """Patches to latents."""

    def __init__(self, config: TaaeConfig):
        super().__init__()
        widths = config.hidden_sizes
        self.patch_size = config.patch_size
        self.conv_in = TaaeConv1d(config.patch_size, widths[0], kernel_size=7, causal=config.causal)
        self.blocks = nn.ModuleList(
            TaaeEncoderBlock(config, widths[max(i - 1, 0)], widths[i], config.strides[i], config.encoder_depths[i])
            for i in range(len(widths))
        )
        self.activation = TaaeSnake(widths[-1]) if config.use_snake else nn.Identity()
        self.conv_out = TaaeConv1d(widths[-1], config.latent_dim, kernel_size=3, causal=config.causal)

    def forward(self, audio: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, 1, frames * hop_length) with `lengths` in patches -> (batch, latent_dim, frames)."""
        hidden_states = audio.reshape(audio.shape[0], -1, self.patch_size).transpose(1, 2)
        hidden_states = self.conv_in(hidden_states, lengths, past)
        for block in self.blocks:
            hidden_states, lengths = block(hidden_states, lengths, past)
            hidden_states = block.transformer(hidden_states, lengths, past)
        return zero_padding(self.conv_out(self.activation(hidden_states), lengths, past), lengths)


class TaaeDecoder(nn.Module):
    """Codes to patches."""

    def __init__(self, config: TaaeConfig):
        super().__init__()
        widths = config.hidden_sizes
        self.soft_clip = config.soft_clip
        self.conv_in = TaaeConv1d(config.latent_dim, widths[-1], kernel_size=3, causal=config.causal)
        self.blocks = nn.ModuleList(
            TaaeDecoderBlock(config, widths[i], widths[max(i - 1, 0)], config.strides[i], config.decoder_depths[i])
            for i in reversed(range(len(widths)))
        )
        self.activation = TaaeSnake(widths[0]) if config.use_snake else nn.Identity()
        self.conv_out = TaaeConv1d(widths[0], config.patch_size, kernel_size=7, bias=False, causal=config.causal)

    def forward(self, codes: Tensor, lengths: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(batch, latent_dim, frames) with `lengths` in frames -> (batch, 1, frames * hop_length)."""
        hidden_states = self.conv_in(codes, lengths, past)
        for block in self.blocks:
            hidden_states, lengths = block(hidden_states, lengths, past)
        patches = zero_padding(self.conv_out(self.activation(hidden_states), lengths, past), lengths)
        audio = patches.transpose(1, 2).reshape(codes.shape[0], 1, -1)
        return torch.tanh(audio) if self.soft_clip else audio


class TaaeModel(PreTrainedAudioTokenizerBase):
    """The transformer auto-encoder: speech to tokens and back.

    A model is made and loaded with fused weights. Training wants [`~TaaeModel.apply_weight_norm`] first;
    `save_pretrained` always writes fused weights.
    """

    config_class = TaaeConfig
    config: TaaeConfig
    base_model_prefix = "taae"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TaaeEncoder", "TaaeDecoder"]  # masks are made once for all layers, and stay on one device
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: TaaeConfig):
        super().__init__(config)
        self.encoder = TaaeEncoder(config)
        self.decoder = TaaeDecoder(config)
        for name, module in self.named_modules():
            if hasattr(module, "stream_name"):
                module.stream_name = name
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
            if getattr(module, "starts_at_zero", False):
                init.zeros_(module.weight)
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(module.weight)[0])
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, TaaeLayerScale):
            init.constant_(module.scale, module.initial_scale)
        elif isinstance(module, TaaeSnake):
            init.zeros_(module.alpha)
            init.zeros_(module.beta)

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "TaaeModel":
        """As for any model of Transformers, but in float32 unless told otherwise: less moves tokens."""
        if "torch_dtype" not in kwargs:  # as `dtype` was called once
            kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(*args, **kwargs)

    def get_input_embeddings(self) -> None:
        """Returns None, for quantisers that ask: audio has no table of embeddings."""

    def bottleneck(self, bottleneck: str | list | tuple | None = None) -> ResidualFSQ:
        """The bottleneck that an argument of `encode` or `decode` stands for; None is the config's own.

        Raises:
            ValueError: if the name is unknown, or the stages do not fit the latent dimensions.
        """
        return resolve_bottleneck(bottleneck, self.config.quantization_levels, default=self.config.bottleneck)

    def streaming_state(self, batch_size: int = 1) -> StreamingState:
        """Returns the initial state of a stream through `encode` or `decode` of a causal model.

        Args:
            batch_size: number of streams that run side by side.

        Raises:
            ValueError: if the model is not causal.
        """
        return StreamingState.start(self.config, batch_size, self.device, self.dtype)

    @can_return_tuple
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bottleneck: str | list | tuple | None = None,
        state: StreamingState | None = None,
        final: bool = False,
    ) -> TaaeEncoderOutput:
        """Turns audio into tokens.

        With a `state`, `input_values` are the next samples of a stream, any number of them, and the tokens are those of
        the frames that they complete: none, perhaps. No gradient is computed.

        Args:
            input_values: (batch, 1, samples) at `config.sampling_rate`; zero-padded to whole frames here if need be.
            padding_mask: (batch, samples), 1 for each item's own samples, which come first, 0 for padding.
            bottleneck: a preset's name, `"native"`, a list of `(levels, scale)` stages, or None for the config's.
            state: the stream's state, from `streaming_state` or the `state` of the last call's output.
            final: whether the stream ends here: its last frame is made whole with zeros, if there is one to be. What is
                given to the state after that goes on behind these zeros, unless it is reset.

        Raises:
            ValueError: if a shape, the mask, the bottleneck or the state is wrong, or audio is of integers, NaN or
                infinite.
        """
        quantizer = self.bottleneck(bottleneck)
        if state is not None:
            latents, state = self._encode_chunk(input_values, padding_mask, state, final)
            lengths = None
        elif final:
            raise ValueError("final=True ends a stream, so it needs the stream's state.")
        else:
            latents, lengths = self._encode_latents(input_values, padding_mask)
        mask = _frame_mask(latents, lengths)
        return TaaeEncoderOutput(
            audio_codes=quantizer.encode(latents), audio_codes_mask=mask, latents=latents, state=state
        )

    @can_return_tuple
    def decode(
        self,
        audio_codes: Tensor | None = None,
        audio_codes_mask: Tensor | None = None,
        bottleneck: str | list | tuple | None = None,
        latents: Tensor | None = None,
        state: StreamingState | None = None,
    ) -> TaaeDecoderOutput:
        """Turns tokens, or continuous latents, into audio.

        With a `state` they are the next frames of a stream, any number of them. No gradient is computed.

        Args:
            audio_codes: (batch, tokens_per_frame, frames) integers, as `encode` returns them.
            audio_codes_mask: (batch, frames), 1 for each item's own frames, which come first, 0 for padding.
            bottleneck: the one that made the tokens; latents have none.
            latents: (batch, latent_dim, frames) in place of tokens: decoded through the hyperbolic tangent, unrounded.
            state: the stream's state, from `streaming_state` or the `state` of the last call's output.

        Raises:
            ValueError: if neither or both of tokens and latents are given, latents with a bottleneck, or their shape or
                range or the state is wrong.
        """
        if (audio_codes is None) == (latents is None):
            raise ValueError(
                "decode takes either audio_codes or latents, and one of them. Of what encode returns, pass audio_codes "
                "and audio_codes_mask."
            )
        if latents is not None and bottleneck is not None:
            raise ValueError("latents are decoded unrounded, so they go with no bottleneck; leave it out.")
        lengths = None if audio_codes_mask is None else _mask_lengths(audio_codes_mask, "audio_codes_mask")
        if latents is None:
            _check_tensor(audio_codes, "audio_codes", "(batch, tokens_per_frame, frames)")
            codes = self.bottleneck(bottleneck).decode(audio_codes, audio_codes_mask)
        else:
            codes = self._squash(latents, audio_codes_mask)
        if audio_codes_mask is not None and audio_codes_mask.shape != (codes.shape[0], codes.shape[2]):
            raise ValueError(
                f"The audio_codes_mask of codes {tuple(codes.shape)} is (batch, frames), "
                f"not {tuple(audio_codes_mask.shape)}."
            )
        if state is not None:
            audio, state = self._decode_chunk(codes.to(self.dtype), audio_codes_mask, state)
            return TaaeDecoderOutput(audio_values=audio, state=state)
        if 0 in codes.shape:
            raise ValueError("There is no frame to decode.")
        return TaaeDecoderOutput(audio_values=self.decoder(codes.to(self.dtype), lengths))

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bottleneck: str | list | tuple | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TaaeOutput:
        """Encodes and decodes, cutting the audio to the input's length.

        Gradients flow back to the audio in both modes. In training mode the bottleneck is the paper's noisy one
        (section 3.2), and there are no tokens. In evaluation mode latents are rounded and their gradient passes
        straight through, so that a frozen codec can stand in a loss or after a network that is trained.

        Args:
            input_values: (batch, 1, samples) at `config.sampling_rate`.
            padding_mask: (batch, samples), 1 for each item's own samples, which come first, 0 for padding.
            bottleneck: see `encode`; not used in training mode.
            kwargs: what Transformers passes to any model, such as `output_hidden_states`; there is nothing to output.

        Raises:
            TypeError: if there is no such argument.
            ValueError: if a shape, the mask or the bottleneck is wrong, or audio is of integers, NaN or infinite.
        """
        if unknown := sorted(kwargs.keys() - TransformersKwargs.__annotations__.keys()):
            raise TypeError(
                f"forward has no argument {unknown[0]!r}. The mask is called padding_mask; streams go through encode "
                "and decode."
            )
        latents, lengths = self._encode_latents(input_values, padding_mask)
        if self.training:
            tokens, codes = None, self._dither(latents)
        else:
            quantizer = self.bottleneck(bottleneck)
            tokens = quantizer.encode(latents)
            codes = straight_through(quantizer.decode(tokens), latents)
        audio = self.decoder(codes.to(latents.dtype), lengths)[..., : input_values.shape[-1]]
        if padding_mask is not None:
            audio = audio.masked_fill(~padding_mask.to(audio.device).bool()[:, None, : audio.shape[-1]], 0)
        return TaaeOutput(
            audio_values=audio, audio_codes=tokens, audio_codes_mask=_frame_mask(latents, lengths), latents=latents
        )

    def _squash(self, latents: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the codes that a bottleneck without rounding makes of latents, after checking these."""
        _check_tensor(latents, "latents", f"(batch, {self.config.latent_dim}, frames)")
        if latents.ndim != 3 or latents.shape[1] != self.config.latent_dim:
            raise ValueError(f"latents must be (batch, {self.config.latent_dim}, frames), not {tuple(latents.shape)}.")
        if not latents.is_floating_point():
            raise ValueError(f"latents must be floats, not {latents.dtype}; tokens go in as audio_codes.")
        codes = torch.tanh(latents)
        if mask is not None and mask.shape == (latents.shape[0], latents.shape[2]):
            codes = codes.masked_fill(~mask.bool()[:, None], 0)
        return codes + checked(codes, "check_latents")

    def _dither(self, latents: Tensor) -> Tensor:
        config = self.config
        return dither(
            latents, config.training_levels, config.training_noise_probability, config.training_rounding_probability
        )

    def _encode_latents(self, input_values: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Latents (batch, latent_dim, frames) and each item's number of frames (None where all are real)."""
        _check_tensor(input_values, "input_values", "(batch, 1, samples)")
        if input_values.ndim != 3 or input_values.shape[1] != 1 or 0 in input_values.shape:
            raise ValueError(
                f"input_values must be (batch, 1, samples) with at least one sample, not {tuple(input_values.shape)}."
            )
        _check_floating(input_values)
        frames = None
        if padding_mask is not None:
            _check_tensor(padding_mask, "padding_mask", "(batch, samples)")
            if padding_mask.shape != (input_values.shape[0], input_values.shape[2]):
                raise ValueError(
                    f"The padding_mask of input_values {tuple(input_values.shape)} is (batch, samples), "
                    f"not {tuple(padding_mask.shape)}."
                )
            samples = _mask_lengths(padding_mask, "padding_mask")
            input_values = zero_padding(input_values, samples)
            frames = self._whole_frames(samples)
        # The reference drops what does not fill its strides; a whole frame keeps it.
        missing = self._whole_frames(input_values.shape[-1]) * self.config.hop_length - input_values.shape[-1]
        # Padding copies even if nothing is missing; a compiler would make a graph of its own for that.
        if torch.compiler.is_compiling() or missing:
            input_values = F.pad(input_values, (0, missing))
        patches = None if frames is None else frames * (self.config.hop_length // self.config.patch_size)
        return self.encoder(input_values.to(self.dtype), patches), frames

    def _whole_frames(self, samples: int | Tensor) -> int | Tensor:
        """Frames that hold so many samples."""
        # Not -(-samples // hop_length), which ONNX would round towards zero.
        return (samples + self.config.hop_length - 1) // self.config.hop_length

    @torch.no_grad()
    def _encode_chunk(
        self, chunk: Tensor, padding_mask: Tensor | None, state: StreamingState, final: bool
    ) -> tuple[Tensor, StreamingState]:
        """Latents (batch, latent_dim, frames) of the frames that are complete now, and the next state."""
        if padding_mask is not None and not padding_mask.all():
            raise ValueError(
                "A stream has no padding_mask: it takes what has come, so give each chunk without padding."
            )
        _check_tensor(chunk, "input_values", "(batch, 1, samples)")
        if chunk.ndim != 3 or chunk.shape[1] != 1:
            raise ValueError(f"A chunk of a stream must be (batch, 1, samples), not {tuple(chunk.shape)}.")
        _check_floating(chunk)
        state.check(self.config, chunk.shape[0], self.device, self.dtype, "encode")
        audio, waiting = state.complete_frames(chunk.to(self.dtype), self.config.hop_length, final)
        frames = audio.shape[-1] // self.config.hop_length
        if frames == 0:
            latents = audio.new_zeros(chunk.shape[0], self.config.latent_dim, 0)
            return latents, replace(state, samples=waiting, method="encode")
        past = state.past(frames)
        latents = self.encoder(audio, past=past)
        return latents, state.after(past, samples=waiting, method="encode")

    @torch.no_grad()
    def _decode_chunk(
        self, codes: Tensor, audio_codes_mask: Tensor | None, state: StreamingState
    ) -> tuple[Tensor, StreamingState]:
        """Audio (batch, 1, frames * hop_length) of codes (batch, latent_dim, frames), and the next state."""
        if audio_codes_mask is not None and not audio_codes_mask.all():
            raise ValueError("A stream has no audio_codes_mask: give the frames that have come, without padding.")
        state.check(self.config, codes.shape[0], self.device, self.dtype, "decode")
        if codes.shape[-1] == 0:
            return codes.new_zeros(codes.shape[0], 1, 0), replace(state, method="decode")
        past = state.past(codes.shape[-1])
        audio = self.decoder(codes, past=past)
        return audio, state.after(past, method="decode")

    def apply_weight_norm(self) -> "TaaeModel":
        """Splits each convolution's weight into direction and magnitude, for training. Changes no output."""
        for module in self._convolutions():
            if not parametrize.is_parametrized(module, "weight"):
                parametrizations.weight_norm(module, "weight")
        return self

    def remove_weight_norm(self) -> "TaaeModel":
        """Fuses each convolution's direction and magnitude back into one weight, for use. Changes no output."""
        for module in self._convolutions():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return self

    def fused_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """A state dict of this model, its own by default, as it is without weight norm, whether or not it has that."""
        state = dict(self.state_dict() if state_dict is None else state_dict)
        for name in [name.removesuffix(MAGNITUDE) for name in state if name.endswith(MAGNITUDE)]:
            magnitude, direction = state.pop(name + MAGNITUDE), state.pop(name + DIRECTION)
            state[f"{name}.weight"] = torch._weight_norm(direction, magnitude, 0)
        return state

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs,
    ) -> None:
        """Writes config, code and fused weights, so that the folder loads with and without this package installed."""
        name = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        self.config.auto_map = {"AutoModel": name, "AutoModelForAudioTokenization": name}
        super().save_pretrained(save_directory, is_main_process, self.fused_state_dict(state_dict), **kwargs)

    def _convolutions(self) -> list[nn.Module]:
        convolutions = (nn.Conv1d, nn.ConvTranspose1d)
        # The depthwise convolution of a Conformer module is not weight-normalised in the reference.
        return [m for m in self.modules() if isinstance(m, convolutions) and m.groups == 1]


def _check_tensor(value: object, name: str, shape: str) -> None:
    if isinstance(value, ModelOutput):
        raise TypeError(f"{name} is a {type(value).__name__}; pass its field of that name, a tensor {shape}.")
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {shape}, not {type(value).__name__}; try torch.as_tensor.")


def _check_floating(input_values: Tensor) -> None:
    if not input_values.is_floating_point():
        raise ValueError(
            f"input_values must be floats with full scale at 1, not {input_values.dtype}: the feature extractor makes "
            "them of integers."
        )


def _mask_lengths(mask: Tensor, name: str) -> Tensor:
    """Real steps of each item from a (batch, steps) mask of ones, then zeros."""
    _check_tensor(mask, name, "(batch, steps)")
    if mask.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (batch, steps), not shape {tuple(mask.shape)}.")
    mask = mask.bool()
    return mask.sum(dim=1) + checked(mask, "check_right_padding")


def _frame_mask(latents: Tensor, lengths: Tensor | None) -> Tensor:
    """(batch, frames) int64, 1 where a frame is real."""
    if lengths is None:
        return torch.ones(latents.shape[0], latents.shape[-1], dtype=torch.int64, device=latents.device)
    return real_steps(lengths, latents.shape[-1]).to(torch.int64)


__all__ = ["TaaeModel"]
