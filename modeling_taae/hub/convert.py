"""Converts stable-codec checkpoints, as stable-audio-tools writes them, to this package's format.

It first makes a model with the described configuration and looks up each of its parameters in the checkpoint.
Parameters that are missing, left over or of another shape are reported by their names in the checkpoint.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..configuration_taae import TaaeConfig
from ..errors import TaaeInputError, one_line
from ..feature_extraction_taae import TaaeFeatureExtractor
from ..files import completed
from ..modeling_taae import TaaeModel
from .conversion import write_provenance

CONFIG_NAME = "model_config.json"
MODEL_CONFIG = "config.json"  # of the converted model

# Prefixes of the model's weights, the best first: published models have the averaged weights of a training checkpoint.
PREFIXES = ("autoencoder_ema.ema_model.", "autoencoder.", "")

# The type of each part of the model, and the options allowed beside and inside its "config".
PARTS = {"encoder": "taae", "decoder": "taae", "bottleneck": "dithered_fsq", "pretransform": "patched"}
MODEL_OPTIONS = {*PARTS, "latent_dim", "downsampling_ratio", "io_channels", "in_channels", "out_channels"}
PART_OPTIONS = {"type", "config", "requires_grad"}
SHARED_OPTIONS = {"channels", "c_mults", "strides", "latent_dim", "sliding_window"}  # must agree on both sides
FLAGS = {"use_snake": False, "use_dilated_conv": False, "conformer": False, "layer_scale": True}
SIDE_OPTIONS = {*SHARED_OPTIONS, *FLAGS, "transformer_depths", "checkpointing"}
CONFIG_OPTIONS = {
    "encoder": SIDE_OPTIONS | {"in_channels"},
    "decoder": SIDE_OPTIONS | {"out_channels", "soft_clip"},
    "bottleneck": {"dim", "levels", "num_codebooks", "noise_dropout", "dither_inference"},
    "pretransform": {"channels", "patch_size"},
}

# Names inside a transformer layer: ours, theirs.
LAYER_NAMES = {
    "attention_norm.weight": "pre_norm.gamma",
    "attention.qkv_proj.weight": "self_attn.to_qkv.weight",
    "attention.o_proj.weight": "self_attn.to_out.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.q_norm.bias": "self_attn.q_norm.bias",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention.k_norm.bias": "self_attn.k_norm.bias",
    "attention_scale.scale": "self_attn_scale.scale",
    "conformer.in_norm.weight": "conformer.in_norm.gamma",
    "conformer.pointwise_conv1.weight": "conformer.pointwise_conv.weight",
    "conformer.glu.weight": "conformer.glu.proj.weight",
    "conformer.glu.bias": "conformer.glu.proj.bias",
    "conformer.depthwise_conv.weight": "conformer.depthwise_conv.weight",
    "conformer.mid_norm.weight": "conformer.mid_norm.gamma",
    "conformer.pointwise_conv2.weight": "conformer.pointwise_conv_2.weight",
    "conformer_scale.scale": "conformer_scale.scale",
    "feed_forward_norm.weight": "ff_norm.gamma",
    "feed_forward.up_proj.weight": "ff.ff.0.proj.weight",
    "feed_forward.up_proj.bias": "ff.ff.0.proj.bias",
    "feed_forward.down_proj.weight": "ff.ff.2.weight",
    "feed_forward.down_proj.bias": "ff.ff.2.bias",
    "feed_forward_scale.scale": "ff_scale.scale",
}
UNIT_POSITIONS = {"activation1": 0, "conv1": 1, "activation2": 2, "conv2": 3}


class ConversionError(TaaeInputError):
    """A checkpoint that cannot be converted; the message says what was found and what was expected."""


def convert_checkpoint(source: str | Path, destination: str | Path) -> TaaeModel:
    """Converts a stable-codec folder to a folder that `AutoModel.from_pretrained` loads.

    Args:
        source: folder with `model_config.json` and one `.safetensors` or `.ckpt` file of weights.
        destination: folder to write, with configs, code, fused float32 weights, their licence and a card.

    Returns:
        The converted model.

    Raises:
        ConversionError: if a file is missing or cannot be written, or a key, an option or a shape does not fit TAAE.
    """
    source, destination = Path(source), Path(destination)
    if destination.resolve() == source.resolve():
        raise ConversionError(f"{destination}: is the checkpoint itself; choose another folder to write to")
    config = convert_config(_read_description(source))
    weights = _weights_file(source)
    state = convert_state_dict(read_state_dict(weights), config)
    with torch.device("meta"):  # without memory or random numbers, because each parameter is replaced
        model = TaaeModel(config)
    model.load_state_dict(state, assign=True)
    extractor = TaaeFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.hop_length)
    try:
        with completed(destination, MODEL_CONFIG) as folder:
            model.save_pretrained(folder)
            extractor.save_pretrained(folder)
            (destination / MODEL_CONFIG).unlink(missing_ok=True)
            write_provenance(source, weights, source / CONFIG_NAME, destination, model)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConversionError(f"{destination}: cannot be written ({reason})") from error
    return model.eval()


def _read_description(folder: Path) -> dict:
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise ConversionError(f"{file}: does not exist; a stable-codec folder has one beside its weights")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{file}: cannot be read as JSON ({error})") from error


def _weights_file(folder: Path) -> Path:
    for pattern in ("*.safetensors", "*.ckpt"):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(file.name for file in files)
            raise ConversionError(f"{folder}: holds several weight files ({names}); leave the one to convert")
    raise ConversionError(f"{folder}: holds no .safetensors and no .ckpt file")


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint in float32, with training prefixes removed from their names.

    Pickled files are read with `weights_only=True`, so that no code in them is executed.

    Raises:
        ConversionError: if the file cannot be read or holds no TAAE weights.
    """
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
            state = dict(state.get("state_dict", state))
    except Exception as error:  # readers raise errors of many types
        # The first line is the reason; PyTorch's other lines advise to load the pickle unsafely.
        reason = str(error).strip().partition("\n")[0]
        raise ConversionError(f"{file}: cannot be read as weights ({reason})") from error
    for prefix in PREFIXES:
        # A training checkpoint also holds other networks, such as discriminators.
        found = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if any(key.startswith("encoder.") for key in found):
            foreign = [key for key, tensor in found.items() if not isinstance(tensor, Tensor)]
            if foreign:
                raise ConversionError(f"{file}: holds something other than tensors under {_listed(foreign)}")
            return {key: tensor.to(torch.float32) for key, tensor in found.items()}
    raise ConversionError(f"{file}: has no key that starts with 'encoder.', so it is no TAAE checkpoint")


def convert_config(description: dict) -> TaaeConfig:
    """Converts the content of a `model_config.json` to a configuration.

    Raises:
        ConversionError: if an option is missing, unknown or unsupported, or encoder and decoder disagree.
    """
    model = _required(description, "model", "the file")
    _check_known(model, MODEL_OPTIONS, "model")
    parts = {name: _part(model, name) for name in PARTS}
    encoder, decoder, bottleneck, pretransform = parts.values()
    common = {name: _agreed(encoder, decoder, name) for name in sorted(SHARED_OPTIONS)}
    flags = {name: bool(_agreed(encoder, decoder, name)) for name in FLAGS}
    _check_bottleneck(bottleneck, common["latent_dim"])
    channels = {pretransform.get("channels", 1), description.get("audio_channels", 1), model.get("io_channels", 1)}
    if channels != {1}:
        raise ConversionError(f"{CONFIG_NAME}: describes {max(channels)} audio channels; TAAE is mono")
    try:
        config = TaaeConfig(
            sampling_rate=_required(description, "sample_rate", "the file"),
            patch_size=_required(pretransform, "patch_size", "pretransform"),
            hidden_sizes=[multiple * common["channels"] for multiple in common["c_mults"]],
            strides=common["strides"],
            encoder_depths=_required(encoder, "transformer_depths", "encoder"),
            decoder_depths=_required(decoder, "transformer_depths", "decoder"),
            sliding_window=common["sliding_window"],
            latent_dim=common["latent_dim"],
            quantization_levels=_required(bottleneck, "levels", "bottleneck"),
            bottleneck=TaaeConfig.bottleneck if common["latent_dim"] == TaaeConfig.latent_dim else "native",
            layer_scale_initial_scale=TaaeConfig.layer_scale_initial_scale if flags["layer_scale"] else None,
            use_snake=flags["use_snake"],
            use_dilated_conv=flags["use_dilated_conv"],
            use_conformer=flags["conformer"],
            soft_clip=bool(model["decoder"].get("soft_clip", decoder.get("soft_clip", False))),
            dtype="float32",
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{CONFIG_NAME}: does not describe a TAAE ({error})") from error
    if model.get("downsampling_ratio", config.hop_length) != config.hop_length:
        raise ConversionError(
            f"{CONFIG_NAME}: its downsampling_ratio {model['downsampling_ratio']} is not patch_size times strides, "
            f"{config.hop_length}"
        )
    return config


def _required(options: dict, name: str, where: str) -> Any:
    if not isinstance(options, dict) or options.get(name) is None:
        raise ConversionError(f"{CONFIG_NAME}: {where} has no {name}")
    return options[name]


def _check_known(options: dict, known: set[str], where: str) -> None:
    if not isinstance(options, dict):
        raise ConversionError(f"{CONFIG_NAME}: {where} is not an object")
    unknown = options.keys() - known
    if unknown:
        raise ConversionError(f"{CONFIG_NAME}: {where} has unknown options: {_listed(unknown)}")


def _part(model: dict, name: str) -> dict:
    """Returns the "config" of one part of the model, after checking its type and the names of its options."""
    part = _required(model, name, "model")
    _check_known(part, PART_OPTIONS | ({"soft_clip"} if name == "decoder" else set()), name)
    if part.get("type", PARTS[name]) != PARTS[name]:
        raise ConversionError(f"{CONFIG_NAME}: the {name} is of type {part['type']!r}; TAAE has {PARTS[name]!r}")
    options = _required(part, "config", name)
    _check_known(options, CONFIG_OPTIONS[name], name)
    return options


def _agreed(encoder: dict, decoder: dict, name: str) -> Any:
    """Returns the value of an option that encoder and decoder share, or the public implementation's default."""
    defaults = {**FLAGS, "sliding_window": list(cast(tuple[int, int], TaaeConfig.sliding_window))}
    ours, theirs = encoder.get(name, defaults.get(name)), decoder.get(name, defaults.get(name))
    if ours != theirs:
        raise ConversionError(f"{CONFIG_NAME}: {name} is {ours} in the encoder and {theirs} in the decoder")
    if ours is None and name == "sliding_window":
        raise ConversionError(f"{CONFIG_NAME}: sliding_window is null, for global attention; TAAE has [left, right]")
    return _required(encoder, name, "encoder") if ours is None else ours


def _check_bottleneck(options: dict, latent_dim: int) -> None:
    if options.get("num_codebooks", 1) != 1:
        raise ConversionError(f"{CONFIG_NAME}: the bottleneck has {options['num_codebooks']} codebooks; TAAE has 1")
    if options.get("dim", latent_dim) != latent_dim:
        raise ConversionError(
            f"{CONFIG_NAME}: the bottleneck has {options['dim']} dimensions and the encoder's latents {latent_dim}"
        )


def convert_state_dict(state: dict[str, Tensor], config: TaaeConfig) -> dict[str, Tensor]:
    """Renames the tensors of a stable-codec state dict, fuses weight norm and leaves out constant buffers.

    Raises:
        ConversionError: if keys are missing, unknown or of another shape; names them.
    """
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in TaaeModel(config).state_dict().items()}
    names = {stable_codec_name(name, config): name for name in expected}
    state = {key: tensor for key, tensor in state.items() if not _is_constant_buffer(key, tensor)}
    state = _fuse_weight_norm(state, names)
    converted = {names[key]: _reduce_kernel(key, state[key]) for key in names.keys() & state.keys()}
    shapes = [
        f"{key} {tuple(converted[name].shape)} instead of {tuple(expected[name])}"
        for key, name in names.items()
        if name in converted and converted[name].shape != expected[name]
    ]
    problems = {"unknown": state.keys() - names.keys(), "missing": names.keys() - state.keys(), "misshapen": shapes}
    if any(problems.values()):
        found = "; ".join(f"{what}: {_listed(keys)}" for what, keys in problems.items() if keys)
        raise ConversionError(f"the weights are not those that {CONFIG_NAME} describes - {found}")
    return {name: converted[name].contiguous() for name in expected}


def stable_codec_name(name: str, config: TaaeConfig) -> str:
    """Returns a parameter's name in a stable-codec state dict, with `weight` for a pair `weight_v`, `weight_g`.

    >>> stable_codec_name("encoder.blocks.1.transformer.layers.0.attention_norm.weight", TaaeConfig())
    'encoder.layers.2.layers.2.1.pre_norm.gamma'
    """
    side, _, rest = name.partition(".")
    blocks = len(config.strides)
    outer = {"conv_in": 0, "activation": blocks + 1, "conv_out": blocks + 2}
    module, _, parameter = rest.partition(".")
    if module in outer:
        return f"{side}.layers.{outer[module]}.{parameter}"
    block, module, rest = _groups(r"blocks\.(\d+)\.(\w+)\.(.+)", rest)
    stem, position = f"{side}.layers.{int(block) + 1}.layers", _positions(side, config.use_dilated_conv)[module]
    if module in ("activation", "downsample", "upsample"):
        return f"{stem}.{position}.{rest}"
    index, rest = _groups(r"(?:layers\.)?(\d+)\.(.+)", rest)
    if module == "transformer":
        return f"{stem}.{position}.{int(index) + 1}.{LAYER_NAMES[rest]}"
    part, _, parameter = rest.partition(".")
    return f"{stem}.{position + int(index)}.layers.{UNIT_POSITIONS[part]}.{parameter}"


def _groups(pattern: str, name: str) -> tuple[str, ...]:
    """Returns the parts of a parameter's name.

    Raises:
        ValueError: if the name has another form.
    """
    match = re.fullmatch(pattern, name)
    if match is None:
        raise ValueError(f"{name!r} is no parameter of TAAE")
    return match.groups()


def _positions(side: str, dilated: bool) -> dict[str, int]:
    """Returns the positions of a block's parts in the checkpoint; each of its three residual units has one."""
    if side == "decoder":
        return {"transformer": 0, "activation": 1, "upsample": 2, "residual_units": 3}
    first = 3 if dilated else 0
    return {"residual_units": 0, "activation": first, "downsample": first + 1, "transformer": first + 2}


def _is_constant_buffer(key: str, tensor: Tensor) -> bool:
    if key.endswith("_norm.beta"):
        if tensor.any():
            raise ConversionError(f"{key} is not zero; TAAE's layer norms have no bias")
        return True
    if key.endswith("rope.inv_freq"):
        expected = TaaeConfig.rope_theta ** -(torch.arange(len(tensor)) / len(tensor))
        if not torch.allclose(tensor, expected, rtol=1e-2):  # stored in bfloat16 by some
            raise ConversionError(f"{key} holds other rotary frequencies than those of base {TaaeConfig.rope_theta:g}")
        return True
    return False


def _fuse_weight_norm(state: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Fuses direction and magnitude of each convolution into one weight; unexpected pairs are left as they are."""
    state = dict(state)
    for key in expected:
        if {f"{key}_v", f"{key}_g"} <= state.keys():
            direction, magnitude = state.pop(f"{key}_v").double(), state.pop(f"{key}_g").double()
            norm = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.ndim)), keepdim=True)
            state[key] = (magnitude * direction / norm).to(torch.float32)
    return state


def _reduce_kernel(key: str, tensor: Tensor) -> Tensor:
    """Removes the kernel dimension of the Conformer's pointwise convolutions, which are linear layers here."""
    return tensor.squeeze(-1) if ".conformer.pointwise_conv" in key else tensor


def _listed(names: Iterable[str], limit: int = 10) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
