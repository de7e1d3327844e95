"""Entropy coding of tokens: the more likely a token is in its context, the fewer bits it takes.

A token holds one digit of a grid per latent dimension. A context model, a small network, predicts each digit from the
last frames and from the earlier digits of the same frame. A range coder turns predictions and symbols into bytes. The
network is trained on other speech (see `prior.py`); within a clip, the coder also adapts to the clip's own digits.

Encoder and decoder must make the same predictions on every machine, so no step rounds: the network's weights and inputs
are multiples of small powers of two, whose sums and products float64 holds exactly, in whatever order they are
computed. From the scores on, everything is a whole number.
"""

import io
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from constriction.stream.queue import RangeEncoder

# The network's inputs are multiples of 1 / 256, its weights of 1 / 64, its biases of 1 / (256 * 64). After four layers
# all values are multiples of 2^-32. Activations and weights are small enough for sums to stay below 2^18.
VALUE_UNIT = 256
WEIGHT_UNIT = 64
LARGEST_ACTIVATION = 128
# Scores are base-2 logarithms in units of 1 / 256.
SCORE_UNIT = 256
# Probabilities are in units of 2^-24, as in the range coder.
PROBABILITY_BITS = 24
# Learning rate within a clip: 1/16 of the difference between the actual digit and its predicted probability.
LEARNING_SHIFT = 4


def powers() -> np.ndarray:
    """Returns 2^(24 - i / 256) for every i up to the first that gives zero: int64."""
    # No value is close to a half, so every machine rounds it the same way.
    octave = np.array([round(2 ** (PROBABILITY_BITS - i / SCORE_UNIT)) for i in range(SCORE_UNIT)], dtype=np.int64)
    return (octave >> np.arange(PROBABILITY_BITS + 2)[:, None]).ravel()


POWERS = powers()


def digit_values(levels: int) -> np.ndarray:
    """Returns the network's input for each digit: (levels,) float64 from -1 to 1, multiples of 1 / 256."""
    return (2 * np.arange(levels) - (levels - 1)) * VALUE_UNIT // (levels - 1) / VALUE_UNIT


def clipped_relu(sums: np.ndarray) -> np.ndarray:
    """Applies the activation of every layer: ReLU with an upper limit, so that all values stay exact."""
    return np.minimum(np.maximum(sums, 0), LARGEST_ACTIVATION)


def likelihoods(scores: np.ndarray) -> np.ndarray:
    """Converts scores to relative probabilities: (…, levels) int64, 2^24 for the likeliest digit."""
    return POWERS[np.minimum(scores.max(axis=-1, keepdims=True) - scores, len(POWERS) - 1)]


@dataclass(frozen=True)
class ContextModel:
    """The network that predicts digits.

    Two layers read the digits of the last frames. A third layer for each dimension also reads the digits of the
    dimensions before it. An output layer gives the scores of the dimension's digits: base-2 logarithms of their
    probabilities, up to a constant.

    Args:
        recent: (hidden, past * dimensions) weights for the last frames, the oldest first.
        context: (context, hidden) weights.
        head: (dimensions * width, context) weights.
        earlier: (dimensions * width, dimensions) weights for this frame's digits; zero except for earlier dimensions.
        output: (dimensions, levels, width) weights.
        recent_bias, context_bias, head_bias, output_bias: the layers' biases, shaped as the weights without last axis.

    All are float64; weights are multiples of 1 / 64 below 2, biases of 1 / (256 * 64).
    """

    recent: np.ndarray
    recent_bias: np.ndarray
    context: np.ndarray
    context_bias: np.ndarray
    head: np.ndarray
    head_bias: np.ndarray
    earlier: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray

    @property
    def dimensions(self) -> int:
        """Number of digits in a frame."""
        return self.output.shape[0]

    @property
    def levels(self) -> int:
        """Number of values of a digit."""
        return self.output.shape[1]

    @property
    def past(self) -> int:
        """Number of previous frames that it reads."""
        return self.recent.shape[1] // self.dimensions

    @cached_property
    def values(self) -> np.ndarray:
        """The network's input for each digit: (levels,)."""
        return digit_values(self.levels)

    def context_sums(self, recent: np.ndarray) -> np.ndarray:
        """Returns the contribution of the last frames to each dimension's layer.

        Args:
            recent: (frames, past * dimensions) inputs: the digits of the frames before each frame.

        Returns:
            (frames, dimensions * width).
        """
        hidden = clipped_relu(recent @ self.recent.T + self.recent_bias)
        hidden = clipped_relu(hidden @ self.context.T + self.context_bias)
        return hidden @ self.head.T + self.head_bias

    def scores(self, sums: np.ndarray, dimension: int) -> np.ndarray:
        """Returns the scores of a dimension's digits.

        Args:
            sums: (…, dimensions * width) contributions of the last frames and of the earlier dimensions.
            dimension: the dimension.

        Returns:
            (…, levels) int64.
        """
        width = self.output.shape[2]
        inputs = clipped_relu(sums[..., dimension * width : (dimension + 1) * width])
        scores = inputs @ self.output[dimension].T + self.output_bias[dimension]
        return np.floor(scores * SCORE_UNIT).astype(np.int64)


class SymbolMapping(NamedTuple):
    """Maps the tokens of a bottleneck to the symbols that are coded, the same in each dimension, and back.

    A residual bottleneck can write one grid value as two different stage tokens, depending on the side of the grid
    point on which the latent lay. Both are symbols, so that decoding restores the exact tokens. The alphabet is
    therefore the grid's digits, with two symbols for such a digit.

    Args:
        levels: the levels of each stage.
        stage_digits: (stages, symbols), the digit of each stage for each symbol.
        digits: (symbols,), the grid's digit for each symbol, in ascending order.
        weights: (symbols,), 2 for a digit's only symbol and 1 for each of two, which are equally likely.
    """

    levels: tuple[int, ...]
    stage_digits: np.ndarray
    digits: np.ndarray
    weights: np.ndarray

    def to_symbols(self, tokens: np.ndarray, dimensions: int) -> np.ndarray | None:
        """Maps tokens (stages, frames) to symbols (frames, dimensions); None if audio cannot give one of the tokens."""
        places = np.cumprod([1, *self.levels])
        table = np.full(places[-1], -1)
        table[places[:-1] @ self.stage_digits] = np.arange(len(self.digits))
        combined = np.zeros((tokens.shape[1], dimensions), dtype=np.int64)
        for stage, levels, place in zip(tokens, self.levels, places, strict=False):
            combined += place * (stage[:, None] // place_values(levels, dimensions) % levels)
        symbols = table[combined]
        return None if (symbols < 0).any() else symbols

    def to_tokens(self, symbols: np.ndarray) -> np.ndarray:
        """Maps symbols (frames, dimensions) to tokens (stages, frames) int64."""
        stages = zip(self.stage_digits, self.levels, strict=True)
        return np.stack([digits[symbols] @ place_values(levels, symbols.shape[1]) for digits, levels in stages])


def place_values(levels: int, dimensions: int) -> np.ndarray:
    """Returns the place value of each dimension's digit in a token: (dimensions,) int64."""
    return levels ** np.arange(dimensions, dtype=np.int64)


@lru_cache
def symbol_mapping(bottleneck: str, levels: int, dimensions: int) -> SymbolMapping:
    """Returns the symbol mapping of a bottleneck on a grid with `levels` levels in each dimension."""
    import torch

    from ..quantization_taae import resolve_bottleneck

    quantizer = resolve_bottleneck(bottleneck, (levels,) * dimensions)
    # The middle of each half of each quantisation cell. The outermost halves lie beyond the grid, where no latents are.
    halves = (-1 + (torch.arange(2 * levels, dtype=torch.float64) - 0.5) / (levels - 1)).clamp(-1, 1)
    tokens = quantizer.encode(torch.atanh(halves).expand(1, dimensions, -1))
    digits = [stage.unpack(tokens[:, index])[0, 0].numpy() for index, stage in enumerate(quantizer.stages)]
    lower, upper = np.stack(digits)[:, ::2], np.stack(digits)[:, 1::2]
    differ = (lower != upper).any(axis=0)
    distinct = np.stack([np.ones(levels, dtype=bool), differ], axis=1)
    return SymbolMapping(
        levels=tuple(stage.levels[0] for stage in quantizer.stages),
        stage_digits=np.stack([lower, upper], axis=2)[:, distinct],
        digits=np.nonzero(distinct)[0],
        weights=np.repeat(2 - differ, 1 + differ),
    )


class ClipCoder:
    """Codes one clip, block by block; encoder and decoder each start from a new one.

    Its state consists of the last frames and a correction of the scores learnt from the clip, (dimensions, levels) in
    units of 2^-24.
    """

    def __init__(self, predictor: ContextModel, mapping: SymbolMapping):
        self.predictor, self.mapping = predictor, mapping
        self.recent = np.zeros((predictor.past, predictor.dimensions))
        self.learnt = np.zeros((predictor.dimensions, predictor.levels), dtype=np.int64)

    def encode(self, symbols: np.ndarray) -> bytes:
        """Codes the next block: symbols (frames, dimensions) to bytes."""
        import constriction

        digits = self.mapping.digits[symbols]
        frames = zip(self._block_scores(digits), digits, strict=True)
        likely = np.stack([self._learn(scores, frame_digits) for scores, frame_digits in frames])
        # The encoder expects C order.
        probabilities = self._probabilities(likely).astype(np.float64, order="C").reshape(symbols.size, -1)
        coder = constriction.stream.queue.RangeEncoder()
        model = constriction.stream.model.Categorical(perfect=False)
        coder.encode(symbols.astype(np.int32).ravel(), model, probabilities)
        return shortest_bytes(coder)

    def decode(self, data: bytes, frames: int) -> np.ndarray:
        """Reads what [`~ClipCoder.encode`] wrote: symbols (frames, dimensions).

        Raises:
            ValueError: if the bytes cannot come from an encoder.
        """
        predictor, decoder = self.predictor, RangeDecoder(data)
        symbols = np.zeros((frames, predictor.dimensions), dtype=np.int64)
        for frame in symbols:
            (sums,) = predictor.context_sums(self.recent.reshape(1, -1))
            correction = self._correction()
            scores = np.zeros_like(correction)
            for dimension in range(predictor.dimensions):
                scores[dimension] = predictor.scores(sums, dimension)
                likely = likelihoods(scores[dimension] + correction[dimension])
                frame[dimension] = decoder.decode(self._probabilities(likely))
                value = predictor.values[self.mapping.digits[frame[dimension]]]
                sums += value * predictor.earlier[:, dimension]
            digits = self.mapping.digits[frame]
            self._learn(scores, digits)
            self.recent = np.concatenate([self.recent[1:], predictor.values[digits][None]])
        return symbols

    def _block_scores(self, digits: np.ndarray) -> np.ndarray:
        """Returns the scores of a block of known digits: (frames, dimensions) to (frames, dimensions, levels)."""
        predictor, values = self.predictor, self.predictor.values[digits]
        history = np.concatenate([self.recent, values])
        self.recent = history[len(digits) :]
        windows = np.concatenate([history[i : i + len(digits)] for i in range(predictor.past)], axis=1)
        sums = predictor.context_sums(windows) + values @ predictor.earlier.T
        return np.stack([predictor.scores(sums, dimension) for dimension in range(predictor.dimensions)], axis=1)

    def _correction(self) -> np.ndarray:
        return self.learnt * SCORE_UNIT >> PROBABILITY_BITS

    def _learn(self, scores: np.ndarray, digits: np.ndarray) -> np.ndarray:
        """Returns the relative probabilities of a frame's digits, (dimensions, levels), and learns from the digits."""
        likely = likelihoods(scores + self._correction())
        expected = (likely << PROBABILITY_BITS) // likely.sum(axis=1, keepdims=True)
        self.learnt -= expected >> LEARNING_SHIFT
        self.learnt[np.arange(len(digits)), digits] += 1 << PROBABILITY_BITS - LEARNING_SHIFT
        return likely

    def _probabilities(self, likely: np.ndarray) -> np.ndarray:
        """Converts relative probabilities of digits, (…, levels), to those of symbols in 2^-24: (…, symbols) int64.

        Each is lowered by one: the range coder adds one, so that no symbol is impossible.
        """
        probabilities = np.cumsum(likely[..., self.mapping.digits] * self.mapping.weights, axis=-1)
        total = (1 << PROBABILITY_BITS) - len(self.mapping.digits)
        probabilities = probabilities * total // probabilities[..., -1:]
        probabilities[..., 1:] -= probabilities[..., :-1].copy()
        return probabilities


class RangeDecoder:
    """Decodes the output of constriction's range encoder, reading zeros after its end.

    Having our own, files can be read on machines for which constriction is not built. The range has 64 bits; as it
    narrows, words of 32 bits are read, most significant byte first.
    """

    def __init__(self, data: bytes):
        self.words = io.BytesIO(data)
        self.range, self.offset = (1 << 64) - 1, self._word() << 32 | self._word()

    def _word(self) -> int:
        return int.from_bytes(self.words.read(4).ljust(4, b"\0"))

    def decode(self, probabilities: np.ndarray) -> int:
        """Decodes the next symbol.

        Args:
            probabilities: (symbols,) int64 in 2^-24, each lowered by one.

        Raises:
            ValueError: if no encoder can have written these bytes.
        """
        unit = self.range >> PROBABILITY_BITS
        for symbol, probability in enumerate(probabilities.tolist()):
            size = unit * (probability + 1)
            if self.offset < size:
                self._narrow(size)
                return symbol
            self.offset -= size
        raise ValueError("a block of tokens cannot be decoded")

    def _narrow(self, size: int) -> None:
        self.range = size
        if size < 1 << 32:
            self.range, self.offset = size << 32, self.offset << 32 | self._word()


def shortest_bytes(coder: "RangeEncoder") -> bytes:
    """Returns the fewest bytes from which a decoder that reads zeros after their end restores the symbols."""
    words, (lower, size) = coder.pos()
    data = coder.get_compressed().astype(">u4").tobytes().ljust(4 * words + 8, b"\0")
    # Any number within the encoder's final range decodes to the same symbols.
    number = int.from_bytes(data)
    lower = number - (number - lower) % (1 << 64)
    candidates = (-(-lower >> bits) << bits for bits in range(64, -1, -8))
    return next(number for number in candidates if number < lower + size).to_bytes(len(data)).rstrip(b"\0")
