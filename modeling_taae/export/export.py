"""Exports the encoder and the decoder of a model as files that run without this package: ONNX or `torch.export`.

The encoder takes the feature extractor's output and returns the output of `encode`; the decoder takes that and returns
audio. Both have a fixed bottleneck, take any number of items and samples, and respect padding masks. Their metadata, as
strings, hold the other facts needed to use them: `format`, `model_identity`, `bottleneck`, `vocabulary_sizes`,
`sampling_rate` (Hz), `hop_length` (samples per frame) and `target_loudness` (LUFS, or `none`).

With 8-bit weights the files are a quarter as large. They count as a different model with its own identity;
[`round_weights`] returns that model in PyTorch.
"""

import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from tqdm import tqdm

from ..codec import Codec
from ..errors import TaaeInputError
from ..identity import model_identity
from ..modeling_taae import TaaeModel
from ..taae_file import format_bottleneck
from .runtime import CHECKSUM, DATA_SUFFIX, METADATA_FILE, NO_CHECKSUM, ExportedCodec, write_checksum

if TYPE_CHECKING:
    import onnx_ir
    from torch.onnx import ONNXProgram

Bottleneck = str | list | tuple | None

# Each format with the suffix of its files.
FORMATS = {"onnx": ".onnx", "onnx-int8": ".onnx", "torch-export": ".pt2"}
# Suffixes of all files of an export.
SUFFIXES = {*FORMATS.values(), f".onnx{DATA_SUFFIX}"}
# The dimension of the input channels in the weights of each type of layer, and of each ONNX operator.
LAYERS = {nn.Linear: 1, nn.Conv1d: 1, nn.ConvTranspose1d: 0}
OPERATORS = {"MatMul": 0, "Conv": 1, "ConvTranspose": 0}
# Smaller weights stay in float32: they are next to the latents, where rounding matters most and saves little.
FEWEST_ROUNDED = 2**15
# Largest difference of a latent or a sample that another order of summation may cause.
TOLERANCE = 1e-4


class ExportError(RuntimeError):
    """An export that does not give the model's results."""


class Encoding(nn.Module):
    """The exported encoder of a model, with its bottleneck."""

    inputs = {"input_values": {0: "batch", 2: "samples"}, "padding_mask": {0: "batch", 1: "samples"}}
    outputs = ("audio_codes", "audio_codes_mask", "latents")

    def __init__(self, model: TaaeModel, bottleneck: Bottleneck):
        super().__init__()
        self.model, self.bottleneck = one_side(model, "encoder"), bottleneck

    def forward(self, input_values: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        """Returns tokens, their mask and latents for (batch, 1, samples) audio and its (batch, samples) int32 mask."""
        return self.model.encode(input_values, padding_mask, bottleneck=self.bottleneck, return_dict=False)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to export with."""
        samples = 20 * self.model.config.hop_length - 1
        return torch.zeros(2, 1, samples), torch.ones(2, samples, dtype=torch.int32)


class Decoding(nn.Module):
    """The exported decoder of a model, with its bottleneck."""

    inputs = {"audio_codes": {0: "batch", 2: "frames"}, "audio_codes_mask": {0: "batch", 1: "frames"}}
    outputs = ("audio_values",)

    def __init__(self, model: TaaeModel, bottleneck: Bottleneck):
        super().__init__()
        self.model, self.bottleneck = one_side(model, "decoder"), bottleneck

    def forward(self, audio_codes: Tensor, audio_codes_mask: Tensor) -> Tensor:
        """Decodes (batch, tokens_per_frame, frames) tokens with their (batch, frames) mask, both int64."""
        return self.model.decode(audio_codes, audio_codes_mask, bottleneck=self.bottleneck).audio_values

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to export with."""
        tokens_per_frame = len(self.model.bottleneck(self.bottleneck).stages)
        return torch.zeros(2, tokens_per_frame, 20, dtype=torch.int64), torch.ones(2, 20, dtype=torch.int64)


SIDES: dict[str, type[Encoding] | type[Decoding]] = {"encoder": Encoding, "decoder": Decoding}


def one_side(model: TaaeModel, name: str) -> TaaeModel:
    """Returns the model with only its encoder or its decoder, sharing the weights."""
    side = copy.copy(model)
    side._modules = {name: model._modules[name]}
    return side


def export_program(side: Encoding | Decoding) -> ExportedProgram:
    """Returns a program of `torch.export` for any number of items and at least two frames."""
    shapes = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in side.inputs.items()}
    with torch.no_grad(), quiet():
        return torch.export.export(side.eval(), side.example(), dynamic_shapes=shapes)


def export_onnx(side: Encoding | Decoding) -> "ONNXProgram":
    """Returns an ONNX graph for any number of items and frames."""
    program = export_program(side)
    names = {"input_names": list(side.inputs), "output_names": list(side.outputs), "dynamic_shapes": side.inputs}
    with quiet():
        onnx_program = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    # Remove source locations with this machine's paths from the operators; they are a twentieth of a small model.
    for node in onnx_program.model.graph.all_nodes():
        for part in (node, *node.outputs):
            part.metadata_props.clear()
    return onnx_program


def to_int8(weights: np.ndarray, input_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantises weights to integers from -127 to 127; returns them and float32 scales that broadcast to the weights.

    There is one scale for each output channel, and for each step of a kernel.

    Args:
        weights: a layer's weights.
        input_channels: the dimension that shares a scale.
    """
    largest = np.abs(weights).max(axis=input_channels, keepdims=True)
    scales = np.where(largest == 0, 1, largest / 127).astype(np.float32)
    return np.rint(weights / scales).astype(np.int8), scales


def round_weights(model: TaaeModel) -> TaaeModel:
    """Returns a copy of the model with weights rounded to 8 bits."""
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        input_channels = next((axis for layer, axis in LAYERS.items() if isinstance(module, layer)), None)
        if input_channels is not None and module.weight.numel() >= FEWEST_ROUNDED:
            integers, scales = to_int8(module.weight.detach().numpy(), input_channels)
            module.weight.data = torch.from_numpy(integers * scales)
    return rounded


def store_in_int8(model: "onnx_ir.Model") -> None:
    """Replaces the weights of an ONNX graph by integers and scales, in place; the runtime multiplies them.

    Matrices use DequantizeLinear, which onnxruntime can also compute as a product in 8 bits. Convolutions use Cast and
    Mul, because their scales differ in two dimensions and DequantizeLinear supports one.
    """
    import onnx_ir as ir

    graph = model.graph
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in OPERATORS else None
        if weight is None or weight.const_value is None or weight.const_value.size < FEWEST_ROUNDED:
            continue
        integers, scales = to_int8(weight.const_value.numpy(), OPERATORS[node.op_type])
        matrix, tape = node.op_type == "MatMul", ir.tape.Tape()
        integers = tape.initializer(ir.tensor(integers), f"{weight.name}.int8")
        scales = tape.initializer(ir.tensor(scales[0] if matrix else scales), f"{weight.name}.scale")
        if matrix:
            product = tape.op("DequantizeLinear", [integers, scales], {"axis": 1})
        else:
            product = tape.op("Mul", [tape.op("Cast", [integers], {"to": ir.DataType.FLOAT}), scales])
        for value in tape.initializers:
            graph.register_initializer(value)
        graph.insert_before(node, tape.nodes)
        node.replace_input_with(1, product)
        del graph.initializers[weight.name]


def metadata_of(codec: Codec, bottleneck: Bottleneck, file_format: str, identity: str) -> dict[str, str]:
    """Returns an exported file's metadata."""
    config, loudness = codec.model.config, codec.extractor.target_loudness
    return {
        "format": file_format,
        "model_identity": identity,
        "bottleneck": format_bottleneck(config.bottleneck if bottleneck is None else bottleneck),
        "vocabulary_sizes": " ".join(map(str, codec.model.bottleneck(bottleneck).codebook_sizes)),
        "sampling_rate": str(config.sampling_rate),
        "hop_length": str(config.hop_length),
        "target_loudness": "none" if loudness is None else str(loudness),
    }


def write_side(side: Encoding | Decoding, path: Path, file_format: str, metadata: dict[str, str]) -> None:
    """Writes an encoder or decoder; for ONNX over 1.5 GB, the weights go into a second file."""
    if file_format == "torch-export":
        with quiet():
            torch.export.save(export_program(side), path, extra_files={METADATA_FILE: json.dumps(metadata)})
        return
    program = export_onnx(side)
    program.model.metadata_props.update({**metadata, CHECKSUM: NO_CHECKSUM})
    if file_format == "onnx-int8":
        store_in_int8(program.model)
    program.save(path)
    write_checksum(path)


def write_sides(codec: Codec, folder: Path, file_format: str, bottleneck: Bottleneck, identity: str) -> None:
    """Writes encoder and decoder to an existing folder, unchecked; `identity` is that of their weights."""
    metadata = metadata_of(codec, bottleneck, file_format, identity)
    for name, side in tqdm(SIDES.items(), unit="file", disable=None):
        path = Path(folder, name).with_suffix(FORMATS[file_format])
        write_side(side(codec.model, bottleneck), path, file_format, metadata)


@dataclass(frozen=True)
class Agreement:
    """The agreement of an exported codec with its model on a signal.

    Args:
        tokens: number of compared tokens.
        differing: number of tokens that differ, all at rounding ties.
        signal_to_error: ratio of the decoded audio to the difference between both decoders, in dB.
    """

    tokens: int
    differing: int
    signal_to_error: float


def compare(codec: ExportedCodec, model: TaaeModel, bottleneck: Bottleneck) -> Agreement:
    """Runs an exported codec and its model on a batch of two lengths.

    Raises:
        ExportError: if latents or samples differ more than another order of summation explains, or tokens differ more
            than such latents explain.
    """
    audio, mask = signal(model)
    with torch.inference_mode():
        expected = model.encode(audio, mask, bottleneck=bottleneck)
        decoded = model.decode(expected.audio_codes, expected.audio_codes_mask, bottleneck=bottleneck).audio_values
    encoded = codec.encode(audio.numpy(), mask.numpy())
    codes, codes_mask = expected.audio_codes.numpy(), expected.audio_codes_mask.numpy()
    error = torch.from_numpy(codec.decode(codes, codes_mask)) - decoded
    quantizer = model.bottleneck(bottleneck)
    lowest, highest = (
        quantizer.decode(quantizer.encode(expected.latents + shift)) for shift in (-TOLERANCE, TOLERANCE)
    )
    values = quantizer.decode(torch.from_numpy(encoded.audio_codes))
    wrong = {
        "masks": not np.array_equal(encoded.audio_codes_mask, codes_mask),
        "latents": not np.allclose(encoded.latents, expected.latents, rtol=TOLERANCE, atol=TOLERANCE),
        "tokens": not ((lowest <= values) & (values <= highest)).all(),
        "audio": not error.abs().max() <= TOLERANCE * max(1, decoded.abs().max()),
    }
    if any(wrong.values()):
        names = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
        raise ExportError(f"the exported files are not the model: they differ in {names}; nothing was kept")
    ratio = 10 * torch.log10(decoded.square().sum() / error.square().sum()).item()
    return Agreement(codes.size, int((encoded.audio_codes != codes).sum()), ratio)


def signal(model: TaaeModel) -> tuple[Tensor, Tensor]:
    """Returns a batch of three seconds of noise that swells and fades and a shorter copy of it, and their mask."""
    rate = model.config.sampling_rate
    time = torch.arange(3 * rate - 1) / rate
    noise = torch.randn(2, 1, len(time), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(len(time)) < torch.tensor([[len(time)], [rate]])).to(torch.int32)
    return 0.2 * noise * torch.sin(2 * torch.pi * time).square() * mask[:, None], mask


def export_codec(codec: Codec, folder: Path, file_format: str, bottleneck: Bottleneck = None) -> Agreement:
    """Exports `encoder` and `decoder` to a folder after checking that they give the model's results.

    Args:
        codec: the model, in float32 on the CPU, with its feature extractor.
        folder: the folder, made if it does not exist; an earlier export in it is replaced.
        file_format: one of `FORMATS`.
        bottleneck: see `TaaeModel.encode`.

    Returns:
        The agreement with the model, or with that of [`round_weights`] for 8-bit weights.

    Raises:
        TaaeInputError: if the folder cannot be written.
        ExportError: if the files do not give the model's results.
    """
    model, identity = codec.model, codec.identity
    if file_format == "onnx-int8":
        expected = round_weights(model)
        identity = model_identity(expected)
    else:
        expected = model
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
            write_sides(codec, Path(temporary), file_format, bottleneck, identity)
            agreement = compare(ExportedCodec.load(temporary, trust_code=True), expected, bottleneck)
            written = [path.name for path in Path(temporary).iterdir()]
            for name in written:
                os.replace(Path(temporary, name), folder / name)
            for name in {f"{side}{suffix}" for side in SIDES for suffix in SUFFIXES}.difference(written):
                Path(folder, name).unlink(missing_ok=True)
    except OSError as error:
        raise TaaeInputError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another with -o"
        ) from error
    return agreement


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the log messages of exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)
