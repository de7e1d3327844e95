"""Exports that were damaged, mixed up or crafted are refused; what is loaded gives the model's tokens."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzz.mutations import damage
from support.tiny_models import make_audio, make_model

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.export.export import export_codec
from modeling_taae.export.runtime import CHECKSUM, NO_CHECKSUM, ExportedCodec, told_checksum, write_checksum

AUDIO = make_audio(1, 3000).numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model = make_model(hidden_sizes=(16,), strides=(2,), encoder_depths=(1,), decoder_depths=(1,))  # quick to export
    model.save_pretrained(folder)
    TaaeFeatureExtractor(hop_length=model.config.hop_length).save_pretrained(folder)
    export_codec(load_codec(str(folder), "cpu"), folder / "onnx", "onnx")
    return folder / "onnx"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def heard(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    codec = ExportedCodec.load(folder, threads=1)
    codes = codec.encode(AUDIO).audio_codes
    return codes, codec.decode(codes)


@pytest.mark.parametrize("side", ["encoder.onnx", "decoder.onnx"])
def test_a_damaged_export_is_refused(whole: Path, copy: Path, side: str) -> None:
    import random

    content = (whole / side).read_bytes()
    codes, audio = heard(whole)
    for seed in range(60):
        data = damage(content, random.Random(seed))
        (copy / side).write_bytes(data)
        try:
            found = heard(copy)
        except TaaeInputError as error:
            assert "\n" not in str(error)
        else:
            assert data == content and np.array_equal(found[0], codes) and np.array_equal(found[1], audio)


def changed(path: Path, change) -> None:
    """Changes a graph, and makes its checksum anew, as only somebody who wants to can."""
    model = onnx.load(path)
    change(model)
    for entry in model.metadata_props:
        if entry.key == CHECKSUM:
            entry.value = NO_CHECKSUM
    onnx.save(model, path)
    write_checksum(path)


def store_elsewhere(place: str):
    def change(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        size = len(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": place, "offset": "0", "length": str(size)}.items():
            entry = weight.external_data.add()
            entry.key, entry.value = key, value

    return change


@pytest.mark.parametrize("place", ["../secret", "absolute", "link"])
def test_weights_outside_the_folder_are_not_read(copy: Path, place: str) -> None:
    secret = copy.parent / "secret"
    secret.write_bytes(bytes(1 << 20))
    (copy / "link").symlink_to(secret)
    changed(copy / "encoder.onnx", store_elsewhere(str(secret) if place == "absolute" else place))
    with pytest.raises(TaaeInputError, match=r"encoder\.onnx: cannot be loaded"):
        ExportedCodec.load(copy)


def test_an_operator_that_does_not_exist_is_refused(copy: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain, model.graph.node[0].op_type = "somebody.else", "RunThis"

    changed(copy / "decoder.onnx", change)
    with pytest.raises(TaaeInputError, match=r"decoder\.onnx: cannot be loaded"):
        ExportedCodec.load(copy)


def test_sides_of_two_exports_are_refused(copy: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            entry.value = "another" if entry.key == "model_identity" else entry.value

    changed(copy / "decoder.onnx", change)
    with pytest.raises(TaaeInputError, match="not of the same export"):
        ExportedCodec.load(copy)


def test_an_export_of_an_earlier_version_is_read(whole: Path, copy: Path) -> None:
    for path in copy.iterdir():
        model = onnx.load(path)
        kept = [entry for entry in model.metadata_props if entry.key != CHECKSUM]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        onnx.save(model, path)
        assert told_checksum(path) is None
    assert all(map(np.array_equal, heard(copy), heard(whole)))
