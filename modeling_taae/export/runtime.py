"""Runs the files of `taae export` on arrays: ONNX in onnxruntime, programs of `torch.export` in torch."""

import hashlib
import json
import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import TaaeInputError, one_line

METADATA_FILE = "metadata.json"
# Suffix of programs of `torch.export`.
PROGRAM = ".pt2"

# Options of onnxruntime for 8-bit weights: convert them to float32 when they are loaded, ...
EXACT_OPTIONS = {"session.disable_quant_qdq": "1"}
# ... or compute in 8 bits, with activations rounded in blocks.
FAST_OPTIONS = {"session.qdq_matmulnbits_accuracy_level": "4", "session.qdq_matmulnbits_block_size": "128"}

# An entry of an ONNX file's metadata, as protobuf writes it: the file's checksum, made with zeros in its own place.
CHECKSUM = "sha256"
NO_CHECKSUM = "0" * 64
CHECKSUM_ENTRY = re.compile(rb"\n\x06sha256\x12@([0-9a-f]{64})")
DATA_SUFFIX = ".data"  # of large weights beside an ONNX file

Graph = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class EncodedArrays(NamedTuple):
    """The encoder's output, as that of `TaaeModel.encode`.

    Args:
        audio_codes: (batch, tokens_per_frame, frames) int64.
        audio_codes_mask: (batch, frames) int64, 1 where a frame holds audio of its item.
        latents: (batch, latent_dim, frames) float32.
    """

    audio_codes: np.ndarray
    audio_codes_mask: np.ndarray
    latents: np.ndarray


class ExportedCodec:
    """An exported encoder and decoder.

    Args:
        encoder, decoder: functions of named inputs.
        metadata: the files' metadata, see `modeling_taae.export.export`.
    """

    def __init__(self, encoder: Graph, decoder: Graph, metadata: dict[str, str]):
        self.encoder, self.decoder, self.metadata = encoder, decoder, metadata
        self.hop_length = int(metadata["hop_length"])

    @classmethod
    def load(
        cls, folder: str | Path, threads: int | None = None, fast: bool = False, trust_code: bool = False
    ) -> "ExportedCodec":
        """Loads encoder and decoder from a folder.

        Args:
            folder: the folder of `taae export -o`.
            threads: threads of onnxruntime; None for one per core. Programs of `torch.export` use
                `torch.set_num_threads`.
            fast: whether to multiply 8-bit weights with 8-bit activations, which changes some tokens. Otherwise weights
                are converted to float32 when they are loaded, and give the same tokens in any runtime.
            trust_code: whether to load programs of `torch.export` (.pt2) too. Loading one can run any code that its
                author put there, so set it only for files that you made or whose author you trust. ONNX files hold no
                code.

        Raises:
            TaaeInputError: if there is no such pair, the two come from different exports, or they are programs that are
                not trusted.
        """
        encoders = sorted(path for path in Path(folder).glob("encoder.*") if path.suffix in READERS)
        if len(encoders) != 1:
            found = ", ".join(path.name for path in encoders) or "none"
            raise TaaeInputError(
                f"{folder}: expected one exported encoder, encoder.onnx or encoder.pt2, found {found}; "
                "write one with `taae export`"
            )
        if encoders[0].suffix == PROGRAM and not trust_code:
            raise TaaeInputError(
                f"{encoders[0]}: is a program of torch.export, and loading one can run any code that its author put "
                "there; pass trust_code=True if you trust its author, or export to ONNX"
            )
        read, (path,) = READERS[encoders[0].suffix], encoders
        (encoder, metadata), (decoder, other) = (
            _read(read, side, threads, fast) for side in (path, path.with_stem("decoder"))
        )
        if metadata != other:
            raise TaaeInputError(f"{folder}: encoder and decoder are not of the same export; export the model again")
        return cls(encoder, decoder, metadata)

    def encode(self, input_values: np.ndarray, padding_mask: np.ndarray | None = None) -> EncodedArrays:
        """Turns audio into tokens.

        Args:
            input_values: (batch, 1, samples) float32, as the feature extractor returns it.
            padding_mask: (batch, samples), 1 for each item's own samples, which come first; None if all are real.

        Raises:
            ValueError: if audio is NaN or infinite, or the mask is not ones followed by zeros.
        """
        batch, _, samples = input_values.shape
        mask = checked_mask(padding_mask, (batch, samples)).astype(np.int32)
        # Only each item's own samples matter; padding may hold any value.
        if not np.isfinite(input_values[mask[:, None] == 1]).all():
            raise ValueError("input_values are NaN or infinite in places; remove these samples first")
        frames = -(-samples // self.hop_length)
        # A program of torch.export needs at least two frames; masked padding does not change the other frames.
        missing = max(2 * self.hop_length - samples, 0)
        inputs = {
            "input_values": np.pad(input_values, ((0, 0), (0, 0), (0, missing))),
            "padding_mask": np.pad(mask, ((0, 0), (0, missing))),
        }
        return EncodedArrays(*(output[..., :frames] for output in self.encoder(inputs)))

    def decode(self, audio_codes: np.ndarray, audio_codes_mask: np.ndarray | None = None) -> np.ndarray:
        """Turns tokens into audio, (batch, 1, frames * hop_length) float32.

        Args:
            audio_codes: (batch, tokens_per_frame, frames) int64.
            audio_codes_mask: (batch, frames), 1 for each item's own frames, which come first; None if all are real.

        Raises:
            ValueError: if a token is out of its vocabulary's range, or the mask is not ones followed by zeros.
        """
        batch, _, frames = audio_codes.shape
        mask = checked_mask(audio_codes_mask, (batch, frames))
        audio_codes = np.where(mask[:, None], audio_codes, 0)
        sizes = np.array([int(size) for size in self.metadata["vocabulary_sizes"].split()])[:, None]
        if audio_codes.shape[1] != len(sizes) or ((audio_codes < 0) | (audio_codes >= sizes)).any():
            raise ValueError(f"audio_codes are not tokens of this codec, whose vocabularies are {sizes[:, 0].tolist()}")
        missing = max(2 - frames, 0)
        inputs = {
            "audio_codes": np.pad(audio_codes, ((0, 0), (0, 0), (0, missing))),
            "audio_codes_mask": np.pad(mask, ((0, 0), (0, missing))),
        }
        (audio,) = self.decoder(inputs)
        return audio[..., : frames * self.hop_length]


def checked_mask(mask: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """Returns a mask as (batch, steps) int64, all ones if it is None.

    Raises:
        ValueError: if it has another shape, or is not ones followed by zeros.
    """
    ones = np.ones(shape, np.int64) if mask is None else (np.asarray(mask) != 0).astype(np.int64)
    if ones.shape != shape or (np.diff(ones, axis=1) > 0).any():
        raise ValueError(f"a mask of shape {shape} is needed, ones followed by zeros: pad on the right")
    return ones


def _read(read: Callable, path: Path, *options) -> tuple[Graph, dict[str, str]]:
    try:
        return read(path, *options)
    # Damaged files make their readers raise errors of many types.
    except Exception as error:
        raise TaaeInputError(
            f"{path}: cannot be loaded ({one_line(error)}); expected a file that `taae export` wrote"
        ) from error


def read_onnx(path: Path, threads: int | None, fast: bool) -> tuple[Graph, dict[str, str]]:
    """Returns an ONNX file as a function, and its metadata."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    for name, value in (FAST_OPTIONS if fast else EXACT_OPTIONS).items():
        options.add_session_config_entry(name, value)
    if (told := told_checksum(path)) is not None and told[0] != checksum(path, told[1]):
        raise ValueError("it is damaged: its checksum is that of another content")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    metadata.pop(CHECKSUM, None)  # files of earlier versions have none
    return lambda inputs: session.run(None, inputs), metadata


def told_checksum(path: Path) -> tuple[str, int] | None:
    """Returns the checksum that an ONNX file tells of itself, and its place; None if it tells none."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        entry = CHECKSUM_ENTRY.search(content)
        return None if entry is None else (entry[1].decode(), entry.start(1))


def checksum(path: Path, place: int) -> str:
    """Returns the SHA-256 of an ONNX file, with zeros in the place of its checksum, and of the weights beside it."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
        view[:place] as before,
        view[place + len(NO_CHECKSUM) :] as behind,
    ):
        for part in (before, NO_CHECKSUM.encode(), behind):
            digest.update(part)
    beside = path.with_name(path.name + DATA_SUFFIX)
    if beside.is_file():
        with beside.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def write_checksum(path: Path) -> None:
    """Writes the checksum of an ONNX file in its place, which holds zeros."""
    told = told_checksum(path)
    assert told is not None, "the metadata have an entry for it"
    content = checksum(path, told[1]).encode()
    with path.open("r+b") as file:
        file.seek(told[1])
        file.write(content)


def read_program(path: Path, threads: int | None, fast: bool) -> tuple[Graph, dict[str, str]]:
    """Returns a program of `torch.export` as a function, and its metadata."""
    import torch

    files = {METADATA_FILE: ""}
    module = torch.export.load(path, extra_files=files).module()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(*map(torch.from_numpy, inputs.values()))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run, json.loads(files[METADATA_FILE])


READERS = {".onnx": read_onnx, PROGRAM: read_program}
