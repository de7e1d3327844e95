"""Exported files do what the model does, at any length and batch; what does not is not kept.

Sums in another order differ by about 1e-6, so a digit may differ where its latent lies on a rounding tie. Each such
digit is shown to be one.
"""

import functools
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.rounding_ties import count_ties
from support.tiny_models import make_audio, make_model

from modeling_taae import TaaeFeatureExtractor, TaaeModel, cli
from modeling_taae.cli import export as export_command
from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.export import export
from modeling_taae.export.runtime import ExportedCodec
from modeling_taae.taae_file import model_identity
from training.benchmarks import exports
from training.benchmarks import inference as benchmark_inference
from training.benchmarks.runner import markers
from training.benchmarks.tools import Bench

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")

HUB_CARDS = Path(__file__).parents[2] / "hub_cards"
BOTTLENECK = "2x15625_700bps"
HOP = 16
SMALL = {"hidden_sizes": (16,), "strides": (2,), "encoder_depths": (1,), "decoder_depths": (1,)}


@pytest.fixture(scope="module")
def model() -> TaaeModel:
    return make_model(bottleneck=BOTTLENECK, **SMALL)


@pytest.fixture(scope="module")
def folder(model: TaaeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    TaaeFeatureExtractor(hop_length=HOP, target_loudness=-23.0).save_pretrained(folder)
    return folder


def once_for_each_side(trace: Callable) -> Callable:
    """The function, which remembers what it gave for an encoder and for a decoder."""
    made = {}

    def remember(side: torch.nn.Module):
        if type(side) not in made:
            made[type(side)] = trace(side)
        return made[type(side)]

    return remember


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of each format, in folders of its name; no weights are too few to be rounded."""
    target = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "FEWEST_ROUNDED", 1)
        # Tracing takes most of the time, and is the same for each format.
        for name in ("export_program", "export_onnx"):
            patch.setattr(export, name, once_for_each_side(getattr(export, name)))
        for name in export.FORMATS:
            command = ["export", str(folder), "-o", str(target / name), "--format", name, "--bottleneck", BOTTLENECK]
            assert cli.main(command) == 0
    return target


@pytest.fixture(scope="module")
def rounded(model: TaaeModel) -> TaaeModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "FEWEST_ROUNDED", 1)
        return export.round_weights(model)


@pytest.fixture(scope="module", params=export.FORMATS)
def pair(request, exported: Path, model: TaaeModel, rounded: TaaeModel) -> tuple[ExportedCodec, TaaeModel]:
    """An exported codec, and the model whose tokens it should give."""
    codec = ExportedCodec.load(exported / request.param, threads=1, trust_code=True)
    return codec, rounded if request.param == "onnx-int8" else model


@pytest.mark.parametrize(
    "lengths",
    [[1], [HOP], [HOP + 1], [12 * HOP], [200 * HOP - 3], [1, 77, 30 * HOP], [50 * HOP, 13 * HOP + 5, 12 * HOP, HOP]],
)
def test_any_length_and_batch(pair: tuple[ExportedCodec, TaaeModel], lengths: list[int]) -> None:
    codec, model = pair
    audio = make_audio(len(lengths), max(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(torch.int32)
    audio[~mask.bool()[:, None]] = torch.nan
    with torch.no_grad():
        expected = model.encode(audio, mask, bottleneck=BOTTLENECK)
        decoded = model.decode(expected.audio_codes, expected.audio_codes_mask, bottleneck=BOTTLENECK).audio_values
    encoded = codec.encode(audio.numpy(), mask.numpy())
    assert encoded.audio_codes.dtype == np.int64
    assert np.array_equal(encoded.audio_codes_mask, expected.audio_codes_mask)
    np.testing.assert_allclose(encoded.latents, expected.latents, rtol=1e-5, atol=1e-5)
    tokens = torch.from_numpy(encoded.audio_codes)
    assert count_ties(tokens, expected.audio_codes, expected.latents, model.bottleneck(BOTTLENECK)) <= 1
    audio_values = codec.decode(expected.audio_codes.numpy(), expected.audio_codes_mask.numpy())
    np.testing.assert_allclose(audio_values, decoded, rtol=0, atol=5e-6)


def test_masks_may_be_left_out(pair: tuple[ExportedCodec, TaaeModel]) -> None:
    codec, model = pair
    audio = make_audio(2, 333)
    with torch.no_grad():
        latents = model.encode(audio, bottleneck=BOTTLENECK).latents
    encoded = codec.encode(audio.numpy())
    np.testing.assert_allclose(encoded.latents, latents, rtol=1e-5, atol=1e-5)
    assert codec.decode(encoded.audio_codes).shape == (2, 1, encoded.audio_codes.shape[-1] * HOP)


def test_attention_stays_within_its_window(pair: tuple[ExportedCodec, TaaeModel]) -> None:
    """Over 60,000 steps; one mask for all of them would take 14 GB."""
    codec, model = pair
    audio = make_audio(1, 60_000 * HOP)
    with torch.no_grad():
        latents = model.encode(audio).latents
    np.testing.assert_allclose(codec.encode(audio.numpy()).latents, latents, rtol=1e-5, atol=1e-5)


def test_what_the_feature_extractor_returns_is_what_the_encoder_takes(exported: Path, folder: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "onnx" / "encoder.onnx")
    extractor = TaaeFeatureExtractor.from_pretrained(folder)
    clips = [np.full(100, 0.1), np.full(55, 0.1)]
    codes, mask, latents = session.run(None, dict(extractor(clips, sampling_rate=16_000, return_tensors="np")))
    assert (codes.shape, mask.tolist(), latents.shape) == ((2, 2, 7), [[1] * 7, [1] * 4 + [0] * 3], (2, 6, 7))


def test_files_say_what_they_are(pair: tuple[ExportedCodec, TaaeModel]) -> None:
    codec, model = pair
    assert codec.metadata.pop("format") in export.FORMATS
    assert codec.metadata == {
        "model_identity": model_identity(model),
        "bottleneck": BOTTLENECK,
        "vocabulary_sizes": "15625 15625",
        "sampling_rate": "16000",
        "hop_length": "16",
        "target_loudness": "-23.0",
    }


def test_rounded_weights_are_a_model_of_their_own(model: TaaeModel, rounded: TaaeModel) -> None:
    assert model_identity(rounded) != model_identity(model)


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_onnx_files_are_valid_and_tell_nothing_of_this_machine(exported: Path, name: str, side: str) -> None:
    path = exported / name / f"{side}.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert str(Path(export.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_weights_of_eight_bits_are_stored_as_such(exported: Path, side: str) -> None:
    initializers = onnx.load(exported / "onnx-int8" / f"{side}.onnx").graph.initializer
    weights = [one for one in initializers if one.name.endswith(".int8")]
    # Input and output convolutions, resampling, and four matrices of a transformer layer.
    assert len(weights) == 7
    assert {one.data_type for one in weights} == {onnx.TensorProto.INT8}
    floats = [one for one in initializers if one.data_type == onnx.TensorProto.FLOAT and np.prod(one.dims) > 128]
    assert all(one.name.endswith(".scale") for one in floats)


def test_weights_are_rounded_to_the_nearest_of_255(model: TaaeModel, rounded: TaaeModel) -> None:
    for name, module in model.named_modules():
        if isinstance(module, tuple(export.LAYERS)):
            inputs = 0 if isinstance(module, torch.nn.ConvTranspose1d) else 1
            weight = module.weight.detach()
            step = weight.abs().amax(dim=inputs, keepdim=True) / 127
            assert ((rounded.get_submodule(name).weight - weight).abs() <= step * 0.501).all()
            assert not torch.equal(rounded.get_submodule(name).weight, weight)


def test_a_channel_of_zeros_stays_zero() -> None:
    integers, scales = export.to_int8(np.array([[0.0, 0.0], [0.5, -1.0]], np.float32), 1)
    assert integers.tolist() == [[0, 0], [64, -127]]
    assert (integers * scales)[0].tolist() == [0, 0]


def test_few_weights_stay_as_they_are(model: TaaeModel) -> None:
    assert model_identity(export.round_weights(model)) == model_identity(model)


def test_activations_of_eight_bits_are_near(exported: Path, rounded: TaaeModel) -> None:
    audio = make_audio(1, 200 * HOP)
    with torch.no_grad():
        latents = rounded.encode(audio).latents
    encoded = ExportedCodec.load(exported / "onnx-int8", threads=1, fast=True).encode(audio.numpy())
    error = torch.from_numpy(encoded.latents) - latents
    assert 0 < error.square().mean() < 0.01 * latents.square().mean()


class TestFailures:
    def command(self, folder: Path, target: Path, *options: str) -> list[str]:
        return ["export", str(folder), "-o", str(target), "--format", "torch-export", *options]

    def test_files_that_do_something_else_are_not_kept(
        self, exported: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        def write_those_of_another_model(side, path: Path, *arguments) -> None:
            shutil.copy(exported / "torch-export" / path.name, path)

        other = shutil.copytree(folder, tmp_path / "other")
        make_model(seed=1, **SMALL).save_pretrained(other)
        monkeypatch.setattr(export, "write_side", write_those_of_another_model)
        target = tmp_path / "target"
        target.mkdir()
        (target / "encoder.pt2").write_bytes(b"of before")
        assert cli.main(self.command(other, target, "--bottleneck", BOTTLENECK)) == 1
        assert "are not the model: they differ in latents, tokens, audio" in capsys.readouterr().err
        assert [path.name for path in target.iterdir()] == ["encoder.pt2"]
        assert (target / "encoder.pt2").read_bytes() == b"of before"

    def test_an_interrupted_export_leaves_nothing(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(side, path, *arguments):
            path.write_bytes(b"half of it")
            raise KeyboardInterrupt

        monkeypatch.setattr(export, "write_side", interrupt)
        assert cli.main(self.command(folder, tmp_path / "new")) == 130
        assert list((tmp_path / "new").iterdir()) == []

    def test_another_format_takes_the_place_of_the_first(
        self, exported: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With files that are there already: what counts here is which of them stay."""
        own = tmp_path / "both" / "encoder.py"
        own.parent.mkdir()
        own.write_text("of somebody else")
        for name in ("onnx", "torch-export", "onnx"):
            copy = functools.partial(shutil.copytree, exported / name, dirs_exist_ok=True)
            monkeypatch.setattr(export, "write_sides", lambda codec, target, *_, copy=copy: copy(target))
            assert cli.main(["export", str(folder), "-o", str(tmp_path / "both"), "--format", name]) == 0
            ExportedCodec.load(tmp_path / "both", trust_code=True)
            assert {path.name for path in own.parent.iterdir()} == {own.name, *os.listdir(exported / name)}

    def test_a_bottleneck_that_does_not_exist(self, folder: Path, tmp_path: Path, capsys) -> None:
        assert cli.main(self.command(folder, tmp_path, "--bottleneck", "3x9")) == 2
        assert "--bottleneck: There is no bottleneck named '3x9'" in capsys.readouterr().err

    def test_a_target_that_is_a_file(self, folder: Path, tmp_path: Path, capsys) -> None:
        (tmp_path / "file").touch()
        assert cli.main(self.command(folder, tmp_path / "file")) == 2
        assert "cannot be written" in capsys.readouterr().err

    def test_missing_packages_are_named(self) -> None:
        with pytest.raises(TaaeInputError, match=r"needs no_such_package; run `pip install 'modeling_taae\[export\]'`"):
            export_command.check_packages("onnx", ("onnx", "no_such_package"))
        export_command.check_packages("torch-export", ("no_such_package",))

    def test_a_folder_without_a_pair(self, exported: Path, tmp_path: Path) -> None:
        with pytest.raises(TaaeInputError, match="expected one exported encoder, .* found none"):
            ExportedCodec.load(tmp_path)
        shutil.copy(exported / "onnx" / "encoder.onnx", tmp_path)
        with pytest.raises(TaaeInputError, match=r"decoder.onnx: cannot be loaded"):
            ExportedCodec.load(tmp_path)
        shutil.copy(exported / "onnx-int8" / "decoder.onnx", tmp_path)
        with pytest.raises(TaaeInputError, match="encoder and decoder are not of the same export"):
            ExportedCodec.load(tmp_path)
        shutil.copy(exported / "torch-export" / "encoder.pt2", tmp_path)
        with pytest.raises(TaaeInputError, match=r"found encoder.onnx, encoder.pt2"):
            ExportedCodec.load(tmp_path)

    @pytest.mark.parametrize("name", export.FORMATS)
    def test_a_truncated_file(self, exported: Path, tmp_path: Path, name: str) -> None:
        for path in (exported / name).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes()[:1000])
        with pytest.raises(TaaeInputError, match="cannot be loaded"):
            ExportedCodec.load(tmp_path, trust_code=True)

    def test_programs_are_loaded_where_their_author_is_trusted(self, tmp_path: Path) -> None:
        class Command:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "code ran"),)

        for name in ("encoder", "decoder"):
            with zipfile.ZipFile(tmp_path / f"{name}.pt2", "w") as archive:
                archive.writestr("data.pkl", pickle.dumps(Command()))
        with pytest.raises(TaaeInputError, match=r"encoder\.pt2: .*can run any code.*trust_code=True"):
            ExportedCodec.load(tmp_path)
        assert not (tmp_path / "code ran").exists()


def test_one_graph_serves_each_frame_of_a_stream() -> None:
    """`torch.compile(fullgraph=True)`: one for the first frame, which has no past, and one for all others."""
    model, graphs = make_model(causal=True, **SMALL), []

    def run_as_is(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compile_frame = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend=run_as_is)
    encode, decode = compile_frame(model.encode), compile_frame(model.decode)
    audio, frames = make_audio(1, 5 * model.config.hop_length), []
    encoder_state, decoder_state = model.streaming_state(), model.streaming_state()
    for frame in audio.split(model.config.hop_length, dim=-1):
        encoded = encode(frame, state=encoder_state)
        decoded = decode(encoded.audio_codes, state=decoder_state)
        encoder_state, decoder_state = encoded.state, decoded.state
        frames.append(decoded.audio_values)
    assert len(graphs) == 4
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(frames, dim=-1), model(audio).audio_values, rtol=0, atol=2e-6)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells how much memory is not of files")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_mapped_into_memory_not_copied(tmp_path: Path, dtype: torch.dtype) -> None:
    def memory() -> int:
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["RssAnon"].split()[0]) * 1024

    make_model(**{**SMALL, "hidden_sizes": (768,), "head_dim": 128}).to(dtype).save_pretrained(tmp_path)
    before = memory()
    model = TaaeModel.from_pretrained(tmp_path, dtype=dtype)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert weights > 20e6
    assert memory() - before < 0.3 * weights


def test_every_way_is_measured(exported: Path, folder: Path, tmp_path: Path, capsys) -> None:
    def copy_exported(codec, target: Path, file_format: str) -> None:
        shutil.copytree(exported / file_format, target)

    measurement = replace(
        exports.MEASUREMENT,
        measure=lambda options: exports.measure(options.folder, options.speech, None, ("stoi",), copy_exported),
        page=tmp_path / "export.md",
    )
    start, end = markers(measurement.tag, "benchmarks/exports.py of tiny")
    measurement.page.write_text(f"before\n{start}old\n{end}\nafter\n")
    tiny = shutil.copytree(folder, tmp_path / "tiny")
    soundfile.write(tmp_path / "speech.wav", make_audio(1, 16_000)[0, 0].numpy(), 16_000)
    assert measurement.run([str(tiny), "--speech", str(tmp_path / "speech.wav")]) == 0
    results = json.loads((tiny / "results" / "export.json").read_text())
    equal = {way["name"]: way["equal_tokens"] for way in results["ways"]}
    assert equal.pop("PyTorch, float32") == 1
    assert min(equal.pop("onnx"), equal.pop("torch-export")) > 0.99
    assert set(equal) == {"PyTorch, bfloat16", "onnx-int8", "onnx-int8, activations in 8 bits"}
    assert all(0.5 < share < 1 for share in equal.values()) and len(set(equal.values())) == 3
    assert all(min(way["bytes"]) > 0 and way["encode_time"] > 0 and way["decode_time"] > 0 for way in results["ways"])
    table = capsys.readouterr().out.strip()
    page = (tmp_path / "export.md").read_text()
    assert table in page
    assert (page[:7], page[-6:], "old" in page) == ("before\n", "after\n", False)


def test_the_benchmark_tells_what_eight_bits_change(exported: Path, model: TaaeModel, monkeypatch) -> None:
    def copy_exported(codec, target: Path, file_format: str, *others) -> None:
        shutil.copytree(exported / file_format, target, dirs_exist_ok=True)

    monkeypatch.setattr(benchmark_inference, "write_sides", copy_exported)
    monkeypatch.setattr(benchmark_inference, "random_model", lambda *_, **__: model)
    monkeypatch.setattr(benchmark_inference, "IN_EIGHT_BITS", ("tiny",))
    encoding, decoding = benchmark_inference.eight_bit_rows(Bench(repeat_for=0.0))
    assert (encoding["direction"], decoding["direction"]) == ("encode", "decode")
    assert 0.5 < encoding["equal tokens"] < 1 and decoding["equal tokens"] is None
    assert encoding["audio: signal to error in dB"] is None and 10 < decoding["audio: signal to error in dB"] < 60


def test_speech_that_is_missing(folder: Path, capsys) -> None:
    assert exports.MEASUREMENT.run([str(folder), "--speech", "nowhere.parquet"]) == 2
    assert "nowhere.parquet: no such file" in capsys.readouterr().err


def test_the_page_says_what_was_measured_of_the_published_weights() -> None:
    folder = HUB_CARDS / "taae-speech-16k-nano"
    results = json.loads((folder / "results" / "export.json").read_text(encoding="utf-8"))
    assert results["model_identity"] == load_codec(str(folder), device="cpu").identity
    page = exports.MEASUREMENT.page.read_text(encoding="utf-8")
    assert exports.MEASUREMENT.filled_page(folder.name, results) == page
