"""TAAE: a transformer auto-encoder with an FSQ bottleneck for speech at 400 to 950 bit/s (arXiv 2411.19842).

Signal path: audio -> patches -> encoder -> latents -> FSQ -> codes -> decoder -> patches -> audio. The audio is
(batch, 1, samples), convolutions see (batch, channels, steps), transformer layers (batch, steps, channels).

`lengths` (batch,) is the number of real steps of each item at the rate of its tensor, or None if all steps are real.
Steps beyond it are zero at the input of every convolution and hidden from attention, so that an item gives the same
output in a padded batch as alone. `past` holds the steps that a stream through a causal model has kept; they replace
the zeros that precede a recording.
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

# torch's names of the two parts into which weight norm splits a weight.
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
            State to pass to the next call of a stream; None outside of streams.
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
            State to pass to the next call of a stream; None outside of streams.
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

        The encoder, not this block, runs the transformer layers on the result: by then the larger input is freed.
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
    """Encodes audio, cut into patches, into latents."""

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
    """Decodes codes into patches, joined to audio."""

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

    New and loaded models have fused weights. Call [`~TaaeModel.apply_weight_norm`] before training;
    `save_pretrained` always writes fused weights.
    """

    config_class = TaaeConfig
    config: TaaeConfig
    base_model_prefix = "taae"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TaaeEncoder", "TaaeDecoder"]  # all layers share one mask, on one device
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
        """Loads a model as Transformers does, but in float32 by default: lower precision changes tokens."""
        if "torch_dtype" not in kwargs:  # the former name of `dtype`
            kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(*args, **kwargs)

    def get_input_embeddings(self) -> None:
        """Returns None: audio has no table of embeddings. Quantisation libraries call this."""

    def bottleneck(self, bottleneck: str | list | tuple | None = None) -> ResidualFSQ:
        """Returns the bottleneck for an argument of `encode` or `decode`; None stands for the config's default.

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

        With a `state`, `input_values` is the next chunk of a stream, of any number of samples. The tokens are those of
        the frames that the chunk completes, possibly none. No gradient is computed.

        Args:
            input_values: (batch, 1, samples) at `config.sampling_rate`; zero-padded to whole frames if necessary.
            padding_mask: (batch, samples), 1 for each item's own samples, which come first, 0 for padding.
            bottleneck: a preset's name, `"native"`, a list of `(levels, scale)` stages, or None for the config's.
            state: the stream's state, from `streaming_state` or the `state` of the last call's output.
            final: whether the stream ends here. An incomplete last frame is padded with zeros. Audio that is encoded
                with the state after that continues behind these zeros, unless the state is reset.

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

        With a `state`, the tokens are the next frames of a stream, any number of them. No gradient is computed.

        Args:
            audio_codes: (batch, tokens_per_frame, frames) integers, as `encode` returns them.
            audio_codes_mask: (batch, frames), 1 for each item's own frames, which come first, 0 for padding.
            bottleneck: the bottleneck that made the tokens; leave it out for latents.
            latents: (batch, latent_dim, frames) instead of tokens, before the hyperbolic tangent; not rounded.
            state: the stream's state, from `streaming_state` or the `state` of the last call's output.

        Raises:
            ValueError: if not exactly one of tokens and latents is given, latents come with a bottleneck, or a shape, a
                token or the state is wrong.
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
            raise ValueError("There is no frame to decode; pass at least one.")
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

        Gradients flow back to the audio in both modes. In training mode the bottleneck adds noise (section 3.2) and
        gives no tokens. In evaluation mode latents are rounded with a straight-through gradient, so that a frozen codec
        can be part of a loss or follow a network that is trained.

        Args:
            input_values: (batch, 1, samples) at `config.sampling_rate`.
            padding_mask: (batch, samples), 1 for each item's own samples, which come first, 0 for padding.
            bottleneck: see `encode`; not used in training mode.
            kwargs: arguments that Transformers passes to any model, such as `output_hidden_states`; ignored.

        Raises:
            TypeError: if an argument is unknown.
            ValueError: if a shape, the mask or the bottleneck is wrong, or audio is of integers, NaN or infinite.
        """
        if unknown := sorted(kwargs.keys() - TransformersKwargs.__annotations__.keys()):
            raise TypeError(
                f"forward has no argument {unknown[0]!r}. The mask is called padding_mask; for streams use encode and "
                "decode."
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
        """Checks latents and returns their codes, (batch, latent_dim, frames), without rounding."""
        _check_tensor(latents, "latents", f"(batch, {self.config.latent_dim}, frames)")
        if latents.ndim != 3 or latents.shape[1] != self.config.latent_dim:
            raise ValueError(f"latents must be (batch, {self.config.latent_dim}, frames), not {tuple(latents.shape)}.")
        if not latents.is_floating_point():
            raise ValueError(f"latents must be floats, not {latents.dtype}; pass tokens as audio_codes.")
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
        """Returns latents (batch, latent_dim, frames) and each item's number of frames, None if all are real."""
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
        # The reference drops samples that do not fill its strides; padding to whole frames keeps them.
        missing = self._whole_frames(input_values.shape[-1]) * self.config.hop_length - input_values.shape[-1]
        # Padding copies even if nothing is missing, so skip it then; a compiler would make a second graph for that.
        if torch.compiler.is_compiling() or missing:
            input_values = F.pad(input_values, (0, missing))
        patches = None if frames is None else frames * (self.config.hop_length // self.config.patch_size)
        return self.encoder(input_values.to(self.dtype), patches), frames

    def _whole_frames(self, samples: int | Tensor) -> int | Tensor:
        """Returns the number of frames that hold so many samples."""
        # Not -(-samples // hop_length), which ONNX rounds towards zero.
        return (samples + self.config.hop_length - 1) // self.config.hop_length

    @torch.no_grad()
    def _encode_chunk(
        self, chunk: Tensor, padding_mask: Tensor | None, state: StreamingState, final: bool
    ) -> tuple[Tensor, StreamingState]:
        """Returns latents (batch, latent_dim, frames) of the frames that are complete now, and the next state."""
        if padding_mask is not None and not padding_mask.all():
            raise ValueError("A stream has no padding_mask: pass each chunk without padding.")
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
        """Decodes codes (batch, latent_dim, frames); returns (batch, 1, frames * hop_length) and the next state."""
        if audio_codes_mask is not None and not audio_codes_mask.all():
            raise ValueError("A stream has no audio_codes_mask: pass its next frames without padding.")
        state.check(self.config, codes.shape[0], self.device, self.dtype, "decode")
        if codes.shape[-1] == 0:
            return codes.new_zeros(codes.shape[0], 1, 0), replace(state, method="decode")
        past = state.past(codes.shape[-1])
        audio = self.decoder(codes, past=past)
        return audio, state.after(past, method="decode")

    def apply_weight_norm(self) -> "TaaeModel":
        """Splits each convolution's weight into direction and magnitude, for training. Outputs stay the same."""
        for module in self._convolutions():
            if not parametrize.is_parametrized(module, "weight"):
                parametrizations.weight_norm(module, "weight")
        return self

    def remove_weight_norm(self) -> "TaaeModel":
        """Fuses each convolution's direction and magnitude into one weight, for inference. Outputs stay the same."""
        for module in self._convolutions():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return self

    def fused_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Returns a state dict of this model, by default its current one, with weight norm fused if it has any."""
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
            f"input_values must be floats with full scale at 1, not {input_values.dtype}: the feature extractor "
            "converts integers."
        )


def _mask_lengths(mask: Tensor, name: str) -> Tensor:
    """Returns the number of real steps of each item, from a (batch, steps) mask of ones followed by zeros."""
    _check_tensor(mask, name, "(batch, steps)")
    if mask.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (batch, steps), not shape {tuple(mask.shape)}.")
    mask = mask.bool()
    return mask.sum(dim=1) + checked(mask, "check_right_padding")


def _frame_mask(latents: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns (batch, frames) int64, 1 where a frame is real."""
    if lengths is None:
        return torch.ones(latents.shape[0], latents.shape[-1], dtype=torch.int64, device=latents.device)
    return real_steps(lengths, latents.shape[-1]).to(torch.int64)


__all__ = ["TaaeModel"]
