"""The prior in a model's folder, and the entropy coding of whole clips with it.

A *prior* holds the context models for a model's tokens (see `coding.py`). `training/make_entropy_prior.py` trains it on
other speech. It belongs to the model whose tokens it was trained on.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import TaaeInputError, one_line
from ..files import write_bytes
from .coding import VALUE_UNIT, WEIGHT_UNIT, ClipCoder, ContextModel, SymbolMapping, symbol_mapping

PRIOR_FILE = "entropy_prior.safetensors"
FORMAT = "1"

# The grid on which each bottleneck's tokens are coded. The 700 and 1000 presets are the native grid, split into stages.
GRIDS = {
    "native": "native",
    "1x46656_400bps": "1x46656_400bps",
    "2x15625_700bps": "native",
    "4x729_1000bps": "native",
}

# Frames of a block: a decoder can read a block as soon as it has the block's last byte.
BLOCK_FRAMES = 256
# A digit takes at most 24 bits, so two bytes hold the size of any block.
BLOCK_SIZE = struct.Struct("<H")


@dataclass(frozen=True)
class EntropyPrior:
    """The context models for a model's tokens, one for each grid.

    Args:
        model_identity: the identity of the model whose tokens it was trained on, 16 hexadecimal digits.
        sampling_rate: the model's sampling rate, in Hz.
        hop_length: the model's samples per frame.
        predictors: the context model of each grid, by the grid's name, a value of `GRIDS`.
    """

    model_identity: str
    sampling_rate: int
    hop_length: int
    predictors: dict[str, ContextModel]

    @cached_property
    def identity(self) -> str:
        """Identity of the prior, the model's included: 8 hexadecimal digits."""
        digest = hashlib.sha256(repr(sorted(self._metadata().items())).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.shape}\n".encode() + tensor.astype("<i4").tobytes())
        return digest.hexdigest()[:8]

    def can_encode(self, bottleneck: str | list | tuple) -> bool:
        """Returns whether the prior has a context model for a bottleneck and the range encoder is installed."""
        known = isinstance(bottleneck, str) and GRIDS.get(bottleneck) in self.predictors
        return known and find_spec("constriction") is not None

    def vocabulary_sizes(self, bottleneck: str) -> tuple[int, ...]:
        """Returns the number of distinct tokens of each stage of a bottleneck for which there is a context model."""
        predictor, mapping = self._model_and_mapping(bottleneck)
        return tuple(levels**predictor.dimensions for levels in mapping.levels)

    def encode(self, tokens: np.ndarray, bottleneck: str) -> bytes | None:
        """Codes a clip, for a bottleneck that the prior [`~EntropyPrior.can_encode`].

        The size of each block except the last precedes it in two bytes.

        Args:
            tokens: (tokens_per_frame, frames) int64.

        Returns:
            The bytes; None if audio cannot give one of the tokens.
        """
        predictor, mapping = self._model_and_mapping(bottleneck)
        symbols = mapping.to_symbols(tokens, predictor.dimensions)
        if symbols is None:
            return None
        coder = ClipCoder(predictor, mapping)
        blocks = [coder.encode(symbols[i : i + BLOCK_FRAMES]) for i in range(0, len(symbols), BLOCK_FRAMES)]
        return b"".join(BLOCK_SIZE.pack(len(block)) + block for block in blocks[:-1]) + blocks[-1]

    def decode(self, source: BinaryIO, bottleneck: str, frames: int) -> Iterator[np.ndarray]:
        """Decodes the output of [`~EntropyPrior.encode`] block by block, up to the end of the source.

        Args:
            source: the stream of bytes.
            bottleneck: the bottleneck of the tokens.
            frames: the number of frames.

        Yields:
            (tokens_per_frame, frames of the block) int64.

        Raises:
            ValueError, struct.error: if it ends before the last block, or the bytes cannot come from an encoder.
        """
        predictor, mapping = self._model_and_mapping(bottleneck)
        coder = ClipCoder(predictor, mapping)
        while frames > BLOCK_FRAMES:
            (size,) = BLOCK_SIZE.unpack(source.read(BLOCK_SIZE.size))
            if len(block := source.read(size)) < size:
                raise ValueError("a block of tokens is cut short")
            yield mapping.to_tokens(coder.decode(block, BLOCK_FRAMES))
            frames -= BLOCK_FRAMES
        yield mapping.to_tokens(coder.decode(source.read(), frames))

    def _model_and_mapping(self, bottleneck: str) -> tuple[ContextModel, SymbolMapping]:
        predictor = self.predictors[GRIDS[bottleneck]]
        return predictor, symbol_mapping(bottleneck, predictor.levels, predictor.dimensions)

    def _metadata(self) -> dict[str, str]:
        facts = ("model_identity", "sampling_rate", "hop_length")
        return {"format": FORMAT, **{name: str(getattr(self, name)) for name in facts}}

    def _tensors(self) -> dict[str, np.ndarray]:
        """Returns weights in 8 bits and biases in 32, by grid and name."""
        return {
            f"{grid}.{field.name}": (getattr(predictor, field.name) * unit_of(field.name)).astype(
                np.int32 if field.name.endswith("bias") else np.int8
            )
            for grid, predictor in self.predictors.items()
            for field in fields(predictor)
        }

    def save(self, folder: str | Path) -> None:
        """Writes the prior into a model's folder."""
        from safetensors.numpy import save

        write_bytes(Path(folder) / PRIOR_FILE, save(self._tensors(), self._metadata()))

    @classmethod
    def load(cls, folder: str | Path) -> "EntropyPrior":
        """Reads the prior of a model's folder.

        Raises:
            TaaeInputError: if there is no prior, or none that this release reads.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / PRIOR_FILE
        try:
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata() or {}
                if facts.get("format") != FORMAT:
                    raise ValueError(f"its format is {facts.get('format')}, this release reads {FORMAT}")
                names = file.keys()
                tensors = {name: file.get_tensor(name) / unit_of(name) for name in names}
            grids = sorted({name.partition(".")[0] for name in tensors})
            layers = [field.name for field in fields(ContextModel)]
            predictors = {grid: ContextModel(*(tensors[f"{grid}.{layer}"] for layer in layers)) for grid in grids}
            return cls(facts["model_identity"], int(facts["sampling_rate"]), int(facts["hop_length"]), predictors)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TaaeInputError(
                f"{path}: is no prior for entropy coding ({one_line(error)}); make it again with "
                "training/make_entropy_prior.py, or delete it to do without"
            ) from error


def unit_of(name: str) -> int:
    """Returns the stored value that stands for 1 in a tensor."""
    return WEIGHT_UNIT * VALUE_UNIT if name.endswith("bias") else WEIGHT_UNIT


def find_prior(folder: str | Path) -> EntropyPrior | None:
    """Returns the prior of a model's folder, if it has one."""
    return EntropyPrior.load(folder) if (Path(folder) / PRIOR_FILE).is_file() else None
