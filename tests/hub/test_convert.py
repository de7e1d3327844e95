"""Stable-codec folders become ours: every way they are stored, every option, and every way they can be wrong."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import stable_codec_reference as reference
from support.parity import PORTABLE, assert_reproduces, read_weights
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel

from modeling_taae import TaaeConfig, TaaeModel
from modeling_taae.errors import TaaeInputError
from modeling_taae.hub.convert import ConversionError, convert_checkpoint, convert_config, stable_codec_name

SHAPE = reference.Shape()
OPTIONAL_PARTS = {
    "Snake": {"use_snake": True, "strides": (1, 2), "c_mults": (1, 1)},
    "dilated": {"use_dilated_conv": True},
    "Conformer": {"conformer": True},
    "soft clip": {"soft_clip": True},
    "no layer scale": {"layer_scale": False},
    "everything": {
        "use_snake": True,
        "use_dilated_conv": True,
        "conformer": True,
        "soft_clip": True,
        "layer_scale": False,
        "strides": (3, 2),
    },
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    return reference.recipe_state(reference.tensor_shapes(SHAPE), seed=1)


@pytest.fixture
def description() -> dict:
    return SHAPE.model_config()


def write_folder(folder: Path, description: dict, state: dict[str, Tensor] | None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(description))
    if state is not None:
        save_file(state, folder / "model.safetensors")
    return folder


def portable_description() -> dict:
    return json.loads((PORTABLE / "model_config.json").read_text())


def with_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A training checkpoint: the averaged weights are the good ones, and more is in it than the model."""
    averaged = {f"autoencoder_ema.ema_model.{key}": tensor for key, tensor in state.items()}
    current = {f"autoencoder.{key}": tensor + 1 for key, tensor in state.items()}
    others = {"autoencoder_ema.step": torch.tensor(7), "discriminator.layers.0.weight": torch.ones(3)}
    return {**current, **averaged, **others}


WAYS_TO_STORE = {
    "flat": lambda state: state,
    "with prefixes": with_prefixes,
    "without an average": lambda state: {f"autoencoder.{key}": tensor for key, tensor in state.items()},
}


@pytest.mark.parametrize("storage", WAYS_TO_STORE)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_every_way_to_store_the_weights_gives_the_recorded_tokens(tmp_path: Path, storage: str, suffix: str) -> None:
    state = WAYS_TO_STORE[storage](read_weights(PORTABLE))
    source = write_folder(tmp_path / "source", portable_description(), state=None)
    if suffix == ".safetensors":
        save_file(state, source / "model.safetensors")
    else:
        torch.save({"state_dict": state, "epoch": 3, "optimizer_states": []}, source / "last.ckpt")
    convert_checkpoint(source, tmp_path / "converted")
    assert_reproduces(AutoModel.from_pretrained(tmp_path / "converted"), PORTABLE, "a_0p64s")


def test_the_converted_folder_is_complete(tmp_path: Path, description: dict, state: dict[str, Tensor]) -> None:
    returned = convert_checkpoint(write_folder(tmp_path / "source", description, state), tmp_path / "a" / "new folder")
    loaded = AutoModel.from_pretrained(tmp_path / "a" / "new folder")
    assert not returned.training
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, returned.state_dict()[name]), name
    config = json.loads((tmp_path / "a" / "new folder" / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["model_type"] == "taae"
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "a" / "new folder")
    assert (extractor.sampling_rate, extractor.hop_length) == (16_000, SHAPE.hop_length)


@pytest.mark.parametrize("name", OPTIONAL_PARTS)
def test_optional_parts_compute_what_the_independent_network_does(tmp_path: Path, name: str) -> None:
    shape = reference.Shape(**OPTIONAL_PARTS[name])
    state = reference.recipe_state(reference.tensor_shapes(shape), seed=5)
    convert_checkpoint(write_folder(tmp_path / "source", shape.model_config(), state), tmp_path / "converted")
    model = AutoModel.from_pretrained(tmp_path / "converted")
    audio = torch.randn(2, 1, 11 * shape.hop_length, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoded = model.encode(audio, bottleneck="native")
        decoded = model.decode(encoded.audio_codes, bottleneck="native").audio_values
    expected = reference.encode(state, shape, audio)
    codes = torch.round(torch.tanh(expected) * 8) / 8
    torch.testing.assert_close(encoded.latents, expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoded, reference.decode(state, shape, codes).float(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shape", [SHAPE, reference.Shape(**OPTIONAL_PARTS["everything"])])
def test_our_names_and_theirs_are_one_to_one(shape: reference.Shape) -> None:
    config = convert_config(shape.model_config())
    names = [stable_codec_name(name, config) for name in TaaeModel(config).state_dict()]
    buffers = ("_norm.beta", ".inv_freq", ".weight_g")
    theirs = [key.replace("weight_v", "weight") for key in reference.tensor_shapes(shape) if not key.endswith(buffers)]
    assert sorted(names) == sorted(theirs)


def test_weights_that_are_fused_already_convert(tmp_path: Path, description: dict, state: dict[str, Tensor]) -> None:
    normalised = convert_checkpoint(write_folder(tmp_path / "a", description, state), tmp_path / "from a")
    for key in [key for key in state if key.endswith("weight_v")]:
        direction, magnitude = state.pop(key), state.pop(key.replace("_v", "_g"))
        state[key.removesuffix("_v")] = magnitude * direction / direction.norm(dim=(1, 2), keepdim=True)
    fused = convert_checkpoint(write_folder(tmp_path / "b", description, state), tmp_path / "from b")
    for name, tensor in normalised.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], tensor)


def test_stored_in_half_precision_the_weights_become_float32(
    tmp_path: Path, description: dict, state: dict[str, Tensor]
) -> None:
    state = {key: tensor.to(torch.bfloat16) for key, tensor in state.items()}
    model = convert_checkpoint(write_folder(tmp_path / "source", description, state), tmp_path / "converted")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_the_published_config_is_the_default_one() -> None:
    shape = reference.Shape(
        patch_size=320,
        channels=1024,
        c_mults=(1, 1),
        strides=(1, 2),
        encoder_depths=(8, 20),
        decoder_depths=(8, 20),
        sliding_window=(63, 64),
    )
    config, default = convert_config(shape.model_config()).to_dict(), TaaeConfig().to_dict()
    assert config.pop("dtype") == "float32"
    default.pop("dtype", None)
    assert config == default


def test_options_left_out_have_the_public_defaults(description: dict) -> None:
    for side in ("encoder", "decoder"):
        for option in ("sliding_window", "use_snake", "use_dilated_conv", "conformer", "layer_scale"):
            del description["model"][side]["config"][option]
    config = convert_config(description)
    assert tuple(config.sliding_window) == (63, 64)
    assert not (config.use_snake or config.use_dilated_conv or config.use_conformer or config.soft_clip)
    assert config.layer_scale_initial_scale is not None


def test_other_latent_dimensions_use_the_training_grid() -> None:
    config = convert_config(reference.Shape(latent_dim=4).model_config())
    assert TaaeModel(config).encode(torch.zeros(1, 1, 64)).audio_codes.shape == (1, 1, 2)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, description: dict) -> None:
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    source = write_folder(tmp_path / "source", description, state=None)
    torch.save({"state_dict": {"encoder.layers.0.bias": Malicious()}}, source / "model.ckpt")
    with pytest.raises(ConversionError, match=r"model\.ckpt: cannot be read as weights"):
        convert_checkpoint(source, tmp_path / "converted")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "converted").exists()


def set_option(path: str, value: object):
    """A change to a `model_config.json`: sets the option at a dotted path, or deletes it where the value is None."""

    def change(description: dict) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            description = description[parent]
        if value is None:
            del description[name]
        else:
            description[name] = value

    return change


BAD_CONFIGS = {
    "unknown encoder option": (set_option("model.encoder.config.dropout", 0.1), "encoder has unknown options: dropout"),
    "unknown decoder option": (set_option("model.decoder.config.rope", 1), "decoder has unknown options: rope"),
    "unknown bottleneck option": (set_option("model.bottleneck.config.beam", 1), "bottleneck has unknown .* beam"),
    "unknown model option": (set_option("model.conditioner", {}), "model has unknown options: conditioner"),
    "unknown part option": (set_option("model.encoder.lora", {}), "encoder has unknown options: lora"),
    "another encoder": (set_option("model.encoder.type", "oobleck"), "encoder is of type 'oobleck'"),
    "another bottleneck": (set_option("model.bottleneck.type", "vae"), "bottleneck is of type 'vae'"),
    "no bottleneck": (set_option("model.bottleneck", None), "model has no bottleneck"),
    "no model": (set_option("model", None), "has no model"),
    "no strides": (set_option("model.encoder.config.strides", None), r"strides is None in the encoder and \[2, 2\]"),
    "no depths": (set_option("model.decoder.config.transformer_depths", None), "decoder has no transformer_depths"),
    "no levels": (set_option("model.bottleneck.config.levels", None), "bottleneck has no levels"),
    "no rate": (set_option("sample_rate", None), "has no sample_rate"),
    "sides that differ": (set_option("model.decoder.config.strides", [1, 2]), "strides is .* in the encoder"),
    "depths of too few blocks": (set_option("model.encoder.config.transformer_depths", [1]), "one entry per block"),
    "several codebooks": (set_option("model.bottleneck.config.num_codebooks", 2), "2 codebooks"),
    "another bottleneck size": (set_option("model.bottleneck.config.dim", 8), "8 dimensions"),
    "stereo": (set_option("audio_channels", 2), "2 audio channels"),
    "another hop": (set_option("model.downsampling_ratio", 640), "downsampling_ratio 640"),
    "a part that is no object": (set_option("model.encoder", [1]), "encoder is not an object"),
    "a model that is no object": (set_option("model", "taae"), "model is not an object"),
    "strides that are no numbers": (set_option("model.pretransform.config.patch_size", "x"), "not describe a TAAE"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_config_errors_name_the_culprit(description: dict, name: str) -> None:
    change, message = BAD_CONFIGS[name]
    change(description)
    with pytest.raises(ConversionError, match=message):
        convert_config(description)


@pytest.mark.parametrize("window", [None, [-1, -1]])
def test_global_attention_is_refused(description: dict, window: list | None) -> None:
    for side in ("encoder", "decoder"):
        description["model"][side]["config"]["sliding_window"] = window
    with pytest.raises(ConversionError, match="sliding_window"):
        convert_config(description)


@pytest.mark.parametrize("option", ["use_snake", "use_dilated_conv", "conformer", "layer_scale"])
def test_options_that_contradict_the_weights_are_an_error(
    tmp_path: Path, description: dict, state: dict[str, Tensor], option: str
) -> None:
    for side in ("encoder", "decoder"):
        description["model"][side]["config"][option] = not description["model"][side]["config"][option]
    with pytest.raises(ConversionError, match="the weights are not those that model_config.json describes"):
        convert_checkpoint(write_folder(tmp_path / "source", description, state), tmp_path / "converted")


BAD_STATES = {
    "unknown key": (
        lambda state: state.update({"encoder.layers.1.layers.2.1.adapter.weight": torch.ones(2)}),
        r"unknown: encoder\.layers\.1\.layers\.2\.1\.adapter\.weight",
    ),
    "unknown part": (lambda state: state.update({"quantizer.scale": torch.ones(2)}), r"unknown: quantizer\.scale"),
    "missing key": (
        lambda state: state.pop("decoder.layers.2.layers.0.1.ff_norm.gamma"),
        r"missing: decoder\.layers\.2\.layers\.0\.1\.ff_norm\.gamma",
    ),
    "missing magnitude": (lambda state: state.pop("encoder.layers.0.weight_g"), r"encoder\.layers\.0\.weight"),
    "another shape": (
        lambda state: state.update({"encoder.layers.0.bias": torch.ones(5)}),
        r"misshapen: encoder\.layers\.0\.bias \(5,\) instead of \(16,\)",
    ),
    "a norm with a bias": (
        lambda state: state["encoder.layers.1.layers.2.1.pre_norm.beta"].add_(1),
        r"pre_norm\.beta is not zero",
    ),
    "another rotary base": (
        lambda state: state["encoder.layers.1.layers.2.1.rope.inv_freq"].pow_(2),
        r"rope\.inv_freq holds other rotary frequencies",
    ),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_weight_errors_name_the_key(tmp_path: Path, description: dict, state: dict[str, Tensor], name: str) -> None:
    change, message = BAD_STATES[name]
    change(state)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(write_folder(tmp_path / "source", description, state), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_folders_that_are_no_checkpoints(tmp_path: Path, description: dict, state: dict[str, Tensor]) -> None:
    def error(source: Path, destination: Path = tmp_path / "converted") -> str:
        with pytest.raises(ConversionError) as caught:
            convert_checkpoint(source, destination)
        return str(caught.value)

    assert "model_config.json: does not exist" in error(tmp_path / "nowhere")
    broken = write_folder(tmp_path / "broken", description, state)
    (broken / "model_config.json").write_text("{")
    assert "cannot be read as JSON" in error(broken)
    assert "holds no .safetensors and no .ckpt" in error(write_folder(tmp_path / "empty", description, None))
    several = write_folder(tmp_path / "several", description, state)
    save_file(state, several / "other.safetensors")
    assert "model.safetensors, other.safetensors" in error(several)
    truncated = write_folder(tmp_path / "truncated", description, state)
    os.truncate(truncated / "model.safetensors", 1000)
    assert "model.safetensors: cannot be read as weights" in error(truncated)
    foreign = write_folder(tmp_path / "foreign", description, {"decoder.weight": torch.ones(1)})
    assert "no key that starts with 'encoder.'" in error(foreign)
    listed = write_folder(tmp_path / "listed", description, None)
    torch.save([1, 2], listed / "model.ckpt")
    assert "cannot be read as weights" in error(listed)
    scalars = write_folder(tmp_path / "scalars", description, None)
    torch.save({"encoder.layers.0.bias": 3}, scalars / "model.ckpt")
    assert "other than tensors under encoder.layers.0.bias" in error(scalars)


def test_bad_destinations(tmp_path: Path, description: dict, state: dict[str, Tensor]) -> None:
    source = write_folder(tmp_path / "source", description, state)
    before = (source / "model.safetensors").read_bytes()
    with pytest.raises(ConversionError, match="is the checkpoint itself"):
        convert_checkpoint(source, tmp_path / "other" / ".." / "source")
    assert (source / "model.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConversionError, match="cannot be written"):
        convert_checkpoint(source, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_errors_are_the_users_to_mend() -> None:
    """The command line turns this type into one line and exit status 2."""
    assert issubclass(ConversionError, TaaeInputError)


def test_converting_leaves_the_description_as_it_was(description: dict) -> None:
    before = copy.deepcopy(description)
    convert_config(description)
    assert description == before
