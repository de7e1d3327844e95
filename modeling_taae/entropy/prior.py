"""What a model's folder holds for entropy coding, and the coding of whole clips with it.

A *prior* is a network that predicts the digits of the model's tokens (see `entropy_coding.py`), trained on those of
other speech by `training/make_entropy_prior.py`. It belongs to the weights whose tokens it learnt from.
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
from .coding import VALUE_UNIT, WEIGHT_UNIT, ClipCoder, DigitPredictor, Spelling, spelling_of

PRIOR_FILE = "entropy_prior.safetensors"
FORMAT = "1"

# On which grid the tokens of a bottleneck are coded. The 700 and 1000 presets are the native grid in other words.
GRIDS = {
    "native": "native",
    "1x46656_400bps": "1x46656_400bps",
    "2x15625_700bps": "native",
    "4x729_1000bps": "native",
}

# Frames that are coded together: a decoder has the first of them when it has the block's last byte.
BLOCK_FRAMES = 256
# A digit takes at most 24 bits, so two bytes can tell the size of any block.
BLOCK_SIZE = struct.Struct("<H")


@dataclass(frozen=True)
class EntropyPrior:
    """What a model's folder holds for entropy coding: a predictor for each grid.

    Args:
        model_identity: of the model whose tokens it was trained on, 16 hexadecimal digits.
        sampling_rate: of the model, in Hz.
        hop_length: samples per frame of the model.
        predictors: by the name of the grid, a value of `GRIDS`.
    """

    model_identity: str
    sampling_rate: int
    hop_length: int
    predictors: dict[str, DigitPredictor]

    @cached_property
    def identity(self) -> str:
        """What tells one prior from another, the model included: 8 hexadecimal digits."""
        digest = hashlib.sha256(repr(sorted(self._metadata().items())).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.shape}\n".encode() + tensor.astype("<i4").tobytes())
        return digest.hexdigest()[:8]

    def can_encode(self, bottleneck: str | list | tuple | tuple) -> bool:
        """Whether it knows the grid of a bottleneck, and the range encoder is installed."""
        known = isinstance(bottleneck, str) and GRIDS.get(bottleneck) in self.predictors
        return known and find_spec("constriction") is not None

    def vocabulary_sizes(self, bottleneck: str) -> tuple[int, ...]:
        """Number of distinct tokens of each stage of a bottleneck whose grid it knows."""
        predictor, spelling = self._how_to_code(bottleneck)
        return tuple(levels**predictor.dimensions for levels in spelling.levels)

    def encode(self, tokens: np.ndarray, bottleneck: str) -> bytes | None:
        """Codes a clip of a bottleneck that it [`~EntropyPrior.can_encode`].

        Each block but the last comes after its number of bytes, in two bytes.

        Args:
            tokens: (tokens_per_frame, frames) int64.

        Returns:
            The bytes; None if there is a token that no audio gives, as may come from elsewhere.
        """
        predictor, spelling = self._how_to_code(bottleneck)
        variants = spelling.to_variants(tokens, predictor.dimensions)
        if variants is None:
            return None
        coder = ClipCoder(predictor, spelling)
        blocks = [coder.encode(variants[i : i + BLOCK_FRAMES]) for i in range(0, len(variants), BLOCK_FRAMES)]
        return b"".join(BLOCK_SIZE.pack(len(block)) + block for block in blocks[:-1]) + blocks[-1]

    def decode(self, source: BinaryIO, bottleneck: str, frames: int) -> Iterator[np.ndarray]:
        """Reads what [`~EntropyPrior.encode`] wrote, block by block as the bytes come; the last one ends the source.

        Args:
            source: of the bytes.
            bottleneck: that was encoded.
            frames: that were encoded.

        Yields:
            (tokens_per_frame, frames of the block) int64.

        Raises:
            ValueError, struct.error: if it ends before the last block, or no encoder wrote it, as far as one can see.
        """
        predictor, spelling = self._how_to_code(bottleneck)
        coder = ClipCoder(predictor, spelling)
        while frames > BLOCK_FRAMES:
            (size,) = BLOCK_SIZE.unpack(source.read(BLOCK_SIZE.size))
            if len(block := source.read(size)) < size:
                raise ValueError("a block of tokens is cut short")
            yield spelling.to_tokens(coder.decode(block, BLOCK_FRAMES))
            frames -= BLOCK_FRAMES
        yield spelling.to_tokens(coder.decode(source.read(), frames))

    def _how_to_code(self, bottleneck: str) -> tuple[DigitPredictor, Spelling]:
        predictor = self.predictors[GRIDS[bottleneck]]
        return predictor, spelling_of(bottleneck, predictor.levels, predictor.dimensions)

    def _metadata(self) -> dict[str, str]:
        facts = ("model_identity", "sampling_rate", "hop_length")
        return {"format": FORMAT, **{name: str(getattr(self, name)) for name in facts}}

    def _tensors(self) -> dict[str, np.ndarray]:
        """Weights in 8 bits and biases in 32, by grid and name."""
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
            TaaeInputError: if there is none that this release reads.
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
            layers = [field.name for field in fields(DigitPredictor)]
            predictors = {grid: DigitPredictor(*(tensors[f"{grid}.{layer}"] for layer in layers)) for grid in grids}
            return cls(facts["model_identity"], int(facts["sampling_rate"]), int(facts["hop_length"]), predictors)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TaaeInputError(
                f"{path}: is no prior for entropy coding ({one_line(error)}); make it again with "
                "training/make_entropy_prior.py, or delete it to do without"
            ) from error


def unit_of(name: str) -> int:
    """How many make one in a stored tensor."""
    return WEIGHT_UNIT * VALUE_UNIT if name.endswith("bias") else WEIGHT_UNIT


def find_prior(folder: str | Path) -> EntropyPrior | None:
    """The prior of a model's folder, if it has one."""
    return EntropyPrior.load(folder) if (Path(folder) / PRIOR_FILE).is_file() else None
