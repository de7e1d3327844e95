"""Converts stable-codec checkpoints, as stable-audio-tools writes them, to this package's format."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .configuration_taae import TaaeConfig
from .feature_extraction_taae import TaaeFeatureExtractor
from .modeling_taae import TaaeModel

# The averaged weights of a training checkpoint come first: they are the ones that get published.
PREFIXES = ("autoencoder_ema.ema_model.", "autoencoder.", "")

SIDE_OPTIONS = {
    *("channels", "c_mults", "strides", "transformer_depths", "latent_dim", "sliding_window"),
    *("use_snake", "use_dilated_conv", "conformer", "layer_scale"),
}
KNOWN_OPTIONS = {
    "encoder": SIDE_OPTIONS | {"in_channels"},
    "decoder": SIDE_OPTIONS | {"out_channels", "soft_clip"},
    "bottleneck": {"dim", "levels", "num_codebooks", "noise_dropout", "dither_inference"},
    "pretransform": {"channels", "patch_size"},
}

# Names inside a transformer layer: theirs, ours.
LAYER_NAMES = {
    "pre_norm.gamma": "attention_norm.weight",
    "self_attn.to_qkv.weight": "attention.qkv_proj.weight",
    "self_attn.to_out.weight": "attention.o_proj.weight",
    "self_attn.q_norm.weight": "attention.q_norm.weight",
    "self_attn.q_norm.bias": "attention.q_norm.bias",
    "self_attn.k_norm.weight": "attention.k_norm.weight",
    "self_attn.k_norm.bias": "attention.k_norm.bias",
    "self_attn_scale.scale": "attention_scale.scale",
    "conformer.in_norm.gamma": "conformer.in_norm.weight",
    "conformer.pointwise_conv.weight": "conformer.pointwise_conv1.weight",
    "conformer.glu.proj.weight": "conformer.glu.weight",
    "conformer.glu.proj.bias": "conformer.glu.bias",
    "conformer.depthwise_conv.weight": "conformer.depthwise_conv.weight",
    "conformer.mid_norm.gamma": "conformer.mid_norm.weight",
    "conformer.pointwise_conv_2.weight": "conformer.pointwise_conv2.weight",
    "conformer_scale.scale": "conformer_scale.scale",
    "ff_norm.gamma": "feed_forward_norm.weight",
    "ff.ff.0.proj.weight": "feed_forward.up_proj.weight",
    "ff.ff.0.proj.bias": "feed_forward.up_proj.bias",
    "ff.ff.2.weight": "feed_forward.down_proj.weight",
    "ff.ff.2.bias": "feed_forward.down_proj.bias",
    "ff_scale.scale": "feed_forward_scale.scale",
}
UNIT_NAMES = {"0": "activation1", "1": "conv1", "2": "activation2", "3": "conv2"}


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message says what was found and what was expected."""


def convert_checkpoint(source: str | Path, destination: str | Path) -> TaaeModel:
    """Converts a stable-codec folder to a folder that `AutoModel.from_pretrained` loads.

    Args:
        source: folder with `model_config.json` and one `.safetensors` or `.ckpt` file of weights.
        destination: folder to write config, preprocessor config, code and fused float32 weights to.

    Returns:
        The converted model.

    Raises:
        ConversionError: if a file is missing, or a key, an option or a shape is not one of TAAE.
    """
    source = Path(source)
    config_file = source / "model_config.json"
    if not config_file.is_file():
        raise ConversionError(f"{config_file} does not exist; a stable-codec folder has one beside its weights.")
    try:
        description = json.loads(config_file.read_text())
    except ValueError as error:
        raise ConversionError(f"{config_file} is not JSON: {error}") from error
    state = read_state_dict(_weights_file(source))
    config = convert_config(description, state)
    model = TaaeModel(config)
    _load(model, convert_state_dict(state, config))
    model.save_pretrained(destination)
    TaaeFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.hop_length).save_pretrained(destination)
    return model


def _weights_file(folder: Path) -> Path:
    for pattern in ("*.safetensors", "*.ckpt"):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(file.name for file in files)
            raise ConversionError(f"{folder} holds several weight files ({names}); leave the one to convert.")
    raise ConversionError(f"{folder} holds no .safetensors and no .ckpt file.")


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint under their names in the model, training prefixes removed, in float32.

    Pickled files are read with `weights_only=True`, so that nothing in them is executed.

    Raises:
        ConversionError: if the file cannot be read or holds no TAAE weights.
    """
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
    except Exception as error:  # the readers raise many types, and all of them mean the same to the user
        raise ConversionError(f"{file} cannot be read as weights: {error}") from error
    for prefix in PREFIXES:
        # Training checkpoints hold discriminators, optimisers and more beside the model: only the sides count there.
        sides = (f"{prefix}encoder.", f"{prefix}decoder.") if prefix else ("",)
        found = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(sides)}
        if any(key.startswith("encoder.") for key in found):
            return {key: tensor.to(torch.float32) for key, tensor in found.items()}
    raise ConversionError(f"{file} has no key that starts with 'encoder.'; it is no TAAE checkpoint.")


def convert_config(description: dict, state: dict[str, Tensor]) -> TaaeConfig:
    """Our configuration for a `model_config.json` and the weights that go with it.

    Raises:
        ConversionError: if an option is unknown, the two sides disagree, or an option disagrees with the weights.
    """
    try:
        sections = {name: description["model"][name] for name in KNOWN_OPTIONS}
        options = {name: section["config"] for name, section in sections.items()}
        encoder, decoder = options["encoder"], options["decoder"]
        _check_known(sections, options)
        blocks = len(encoder["strides"])
        layer_scale = any(key.endswith("self_attn_scale.scale") for key in state)
        found = {
            "use_snake": f"encoder.layers.{blocks + 1}.alpha" in state,
            "use_dilated_conv": any(re.fullmatch(r"encoder\.layers\.1\.layers\.0\.layers\.1\..*", key) for key in state),
            "conformer": any(".conformer." in key for key in state),
            "layer_scale": layer_scale,
        }
        for side in (encoder, decoder):
            wrong = [name for name, value in found.items() if bool(side.get(name, value)) != value]
            if wrong:
                raise ConversionError(f"The config and the weights disagree on {', '.join(wrong)}.")
        for name in ("channels", "c_mults", "strides", "latent_dim", "sliding_window"):
            if encoder.get(name) != decoder.get(name):
                raise ConversionError(
                    f"The encoder's and the decoder's {name} differ ({encoder.get(name)}, {decoder.get(name)})."
                )
        levels = options["bottleneck"]["levels"]
        return TaaeConfig(
            sampling_rate=description["sample_rate"],
            patch_size=options["pretransform"]["patch_size"],
            hidden_sizes=[multiple * encoder["channels"] for multiple in encoder["c_mults"]],
            strides=encoder["strides"],
            encoder_depths=encoder["transformer_depths"],
            decoder_depths=decoder["transformer_depths"],
            sliding_window=encoder.get("sliding_window", (63, 64)),
            latent_dim=encoder["latent_dim"],
            quantization_levels=levels if isinstance(levels, int) else tuple(levels),
            layer_scale_initial_scale=1e-5 if layer_scale else None,
            use_snake=found["use_snake"],
            use_dilated_conv=found["use_dilated_conv"],
            use_conformer=found["conformer"],
            soft_clip=bool(sections["decoder"].get("soft_clip", decoder.get("soft_clip", False))),
            dtype="float32",
        )
    except (KeyError, TypeError) as error:
        raise ConversionError(f"model_config.json is not that of a TAAE auto-encoder: {error!r}.") from error


def _check_known(sections: dict, options: dict) -> None:
    for name, type_name in (("encoder", "taae"), ("decoder", "taae"), ("bottleneck", "dithered_fsq"), ("pretransform", "patched")):
        if sections[name].get("type", type_name) != type_name:
            raise ConversionError(f"The {name} is of type {sections[name]['type']!r}; TAAE has {type_name!r}.")
        unknown = sorted(set(options[name]) - KNOWN_OPTIONS[name])
        if unknown:
            raise ConversionError(f"model_config.json has unknown {name} options: {', '.join(unknown)}.")
    if options["bottleneck"].get("num_codebooks", 1) != 1:
        raise ConversionError("Bottlenecks with several codebooks are not TAAE's.")


def convert_state_dict(state: dict[str, Tensor], config: TaaeConfig) -> dict[str, Tensor]:
    """Our names for a stable-codec state dict, weight norm fused and constant buffers left out.

    Raises:
        ConversionError: naming the keys that are not TAAE's.
    """
    converted, unknown = {}, []
    for key, tensor in state.items():
        if _is_constant_buffer(key, tensor):
            continue
        name = _convert_name(key, len(config.strides), config.use_dilated_conv)
        if name is None:
            unknown.append(key)
        elif name.endswith(".weight_v"):
            magnitude = state.get(key.removesuffix("v") + "g")
            if magnitude is None:
                raise ConversionError(f"{key} has no magnitude beside it ({key.removesuffix('v')}g).")
            converted[name.removesuffix("_v")] = torch._weight_norm(tensor, magnitude, 0)
        elif not name.endswith(".weight_g"):
            # The Conformer's pointwise convolutions have a kernel of one step; ours are linear layers.
            converted[name] = tensor.squeeze(-1) if ".pointwise_conv" in name and tensor.ndim == 3 else tensor
    if unknown:
        raise ConversionError(f"The checkpoint has unknown keys: {', '.join(sorted(unknown))}.")
    return converted


def _is_constant_buffer(key: str, tensor: Tensor) -> bool:
    if key.endswith("_norm.beta"):
        if tensor.any():
            raise ConversionError(f"{key} is not zero; TAAE's layer norms have no bias.")
        return True
    if key.endswith("rope.inv_freq"):
        dim = 2 * len(tensor)
        if not torch.allclose(tensor, 10_000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim), rtol=1e-3):
            raise ConversionError(f"{key} are not the rotary frequencies of base 10000.")
        return True
    return False


def _convert_name(key: str, blocks: int, dilated: bool) -> str | None:
    """Our name for one key, with `weight_v` and `weight_g` for the halves of a normalised weight; None if unknown."""
    match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", key)
    if match is None:
        return None
    side, index, rest = match[1], int(match[2]), match[3]
    if index == 0:
        return f"{side}.conv_in.{rest}"
    if index == blocks + 1:
        return f"{side}.activation.{rest}"
    if index == blocks + 2:
        return f"{side}.conv_out.{rest}"
    inner = re.fullmatch(r"layers\.(\d+)\.(.+)", rest)
    if inner is None or index > blocks:
        return None
    name = _convert_block_name(side, int(inner[1]), inner[2], dilated)
    return None if name is None else f"{side}.blocks.{index - 1}.{name}"


def _convert_block_name(side: str, position: int, rest: str, dilated: bool) -> str | None:
    units = 3 if dilated else 0
    if side == "encoder":
        roles = ["unit"] * units + ["activation", "downsample", "layer"]
    else:
        roles = ["layer", "activation", "upsample"] + ["unit"] * units
    if position >= len(roles):
        return None
    role = roles[position]
    if role == "layer":
        layer, _, name = rest.partition(".")
        if name not in LAYER_NAMES or not layer.isdigit():
            return None
        return f"transformer.layers.{int(layer) - 1}.{LAYER_NAMES[name]}"
    if role == "unit":
        match = re.fullmatch(r"layers\.([0-3])\.(.+)", rest)
        return match and f"residual_units.{position % 3}.{UNIT_NAMES[match[1]]}.{match[2]}"
    return f"{role}.{rest}"


def _load(model: TaaeModel, state: dict[str, Tensor]) -> None:
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unknown", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ConversionError(f"The weights do not fit the config (in our names) - {'; '.join(problems)}.")
    model.load_state_dict(state)
