"""Entropy coding of tokens: what a clip's tokens so far make likely takes fewer bits than what comes as a surprise.

Tokens spell digits of a grid. A small network predicts each digit from those of the last frames and from those before
it in its own frame, and a range coder turns predictions and digits into bytes. The network starts from what other
speech taught it (see `entropy_prior.py`); while it codes a clip, the coder learns which digits this clip prefers.

Encoder and decoder have to arrive at the same predictions on any machine, so nothing is ever rounded on the way: the
network's weights, and what it is given, are multiples of small powers of two, of which float64 holds all sums and
products exactly, in whatever order they are made. From its scores on, everything is a whole number.
"""

import io
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from constriction.stream.queue import RangeEncoder

# What the network is given counts in 1 / 256, its weights in 1 / 64, and so its biases in 1 / (256 * 64). Behind four
# layers that makes multiples of 2^-32. With activations and weights as small as they are, sums stay below 2^18.
VALUE_UNIT = 256
WEIGHT_UNIT = 64
LARGEST_ACTIVATION = 128
# Scores, which are base-2 logarithms, count in 1 / 256.
SCORE_UNIT = 256
# Probabilities count in 2^-24, the range coder's own unit.
PROBABILITY_BITS = 24
# How fast the coder learns from a clip: by 1/16 of the difference between what came and what was expected.
LEARNING_SHIFT = 4


def powers() -> np.ndarray:
    """2^(24 - i / 256) for every i up to the first that gives zero: int64."""
    # None of these is near a half, so each machine rounds them alike.
    octave = np.array([round(2 ** (PROBABILITY_BITS - i / SCORE_UNIT)) for i in range(SCORE_UNIT)], dtype=np.int64)
    return (octave >> np.arange(PROBABILITY_BITS + 2)[:, None]).ravel()


POWERS = powers()


def digit_values(levels: int) -> np.ndarray:
    """What the network is given for each digit: (levels,) float64 from -1 to 1, multiples of 1 / 256."""
    return (2 * np.arange(levels) - (levels - 1)) * VALUE_UNIT // (levels - 1) / VALUE_UNIT


def activate(sums: np.ndarray) -> np.ndarray:
    """What a layer passes on of its sums: nothing negative, and nothing so large that it would not be exact."""
    return np.minimum(np.maximum(sums, 0), LARGEST_ACTIVATION)


def likelihoods(scores: np.ndarray) -> np.ndarray:
    """Scores -> how likely each digit is: (…, levels) int64, 2^24 for the likeliest."""
    return POWERS[np.minimum(scores.max(axis=-1, keepdims=True) - scores, len(POWERS) - 1)]


@dataclass(frozen=True)
class DigitPredictor:
    """The network that predicts digits.

    Two layers see the digits of the last frames. One more layer for each dimension, which also sees the digits of the
    dimensions before it, leads to the scores of its digits: base-2 logarithms of probabilities, up to a constant.

    Args:
        recent: (hidden, past * dimensions), from the last frames, the oldest first.
        context: (context, hidden).
        head: (dimensions * width, context).
        earlier: (dimensions * width, dimensions), from the digits of this frame; zero but for dimensions before.
        output: (dimensions, levels, width).
        recent_bias, context_bias, head_bias, output_bias: of these layers, without the last axis.

    All are float64, weights multiples of 1 / 64 below 2 and biases of 1 / (256 * 64).
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
        """Digits of a frame."""
        return self.output.shape[0]

    @property
    def levels(self) -> int:
        """Values that a digit can have."""
        return self.output.shape[1]

    @property
    def past(self) -> int:
        """Frames that it looks back."""
        return self.recent.shape[1] // self.dimensions

    @cached_property
    def values(self) -> np.ndarray:
        """What it is given for each digit: (levels,)."""
        return digit_values(self.levels)

    def begin(self, recent: np.ndarray) -> np.ndarray:
        """What the last frames contribute to each dimension's layer.

        Args:
            recent: (frames, past * dimensions) values of the frames before each.

        Returns:
            (frames, dimensions * width).
        """
        hidden = activate(recent @ self.recent.T + self.recent_bias)
        hidden = activate(hidden @ self.context.T + self.context_bias)
        return hidden @ self.head.T + self.head_bias

    def scores(self, sums: np.ndarray, dimension: int) -> np.ndarray:
        """The scores of a dimension's digits.

        Args:
            sums: (…, dimensions * width), what last frames and dimensions before contribute.
            dimension: which.

        Returns:
            (…, levels) int64.
        """
        width = self.output.shape[2]
        inputs = activate(sums[..., dimension * width : (dimension + 1) * width])
        scores = inputs @ self.output[dimension].T + self.output_bias[dimension]
        return np.floor(scores * SCORE_UNIT).astype(np.int64)


class Spelling(NamedTuple):
    """How the tokens of a bottleneck spell the digits of a grid, the same in each dimension.

    Some digits are spelt in two ways, one for each half of their cell: the stages of a residual bottleneck tell on
    which side of a grid point a latent lay, although its code is the same. So that tokens come back as they were,
    *variants* are coded: digits, with both spellings of those that have two.

    Args:
        levels: of each stage.
        stage_digits: (stages, variants), how each variant is spelt.
        digits: (variants,), which digit each variant is, in ascending order.
        shares: (variants,), 2 for a digit's only spelling, 1 for each of two, which are equally likely.
    """

    levels: tuple[int, ...]
    stage_digits: np.ndarray
    digits: np.ndarray
    shares: np.ndarray

    def to_variants(self, tokens: np.ndarray, dimensions: int) -> np.ndarray | None:
        """Tokens (stages, frames) as variants (frames, dimensions); None if there is one that no audio gives."""
        places = np.cumprod([1, *self.levels])
        table = np.full(places[-1], -1)
        table[places[:-1] @ self.stage_digits] = np.arange(len(self.digits))
        spelt = np.zeros((tokens.shape[1], dimensions), dtype=np.int64)
        for stage, levels, place in zip(tokens, self.levels, places, strict=False):
            spelt += place * (stage[:, None] // bases(levels, dimensions) % levels)
        variants = table[spelt]
        return None if (variants < 0).any() else variants

    def to_tokens(self, variants: np.ndarray) -> np.ndarray:
        """Variants (frames, dimensions) as tokens (stages, frames) int64."""
        stages = zip(self.stage_digits, self.levels, strict=True)
        return np.stack([digits[variants] @ bases(levels, variants.shape[1]) for digits, levels in stages])


def bases(levels: int, dimensions: int) -> np.ndarray:
    """What a digit of each dimension counts in a token: (dimensions,) int64."""
    return levels ** np.arange(dimensions, dtype=np.int64)


@lru_cache
def spelling_of(bottleneck: str, levels: int, dimensions: int) -> Spelling:
    """How a bottleneck spells the digits of a grid with so many levels in each dimension."""
    import torch

    from ..quantization_taae import resolve_bottleneck

    quantizer = resolve_bottleneck(bottleneck, (levels,) * dimensions)
    # The middle of each half of each cell. The outermost halves lie beyond the grid, where no latent gets.
    halves = (-1 + (torch.arange(2 * levels, dtype=torch.float64) - 0.5) / (levels - 1)).clamp(-1, 1)
    tokens = quantizer.encode(torch.atanh(halves).expand(1, dimensions, -1))
    digits = [stage.unpack(tokens[:, index])[0, 0].numpy() for index, stage in enumerate(quantizer.stages)]
    lower, upper = np.stack(digits)[:, ::2], np.stack(digits)[:, 1::2]
    differ = (lower != upper).any(axis=0)
    distinct = np.stack([np.ones(levels, dtype=bool), differ], axis=1)
    return Spelling(
        levels=tuple(stage.levels[0] for stage in quantizer.stages),
        stage_digits=np.stack([lower, upper], axis=2)[:, distinct],
        digits=np.nonzero(distinct)[0],
        shares=np.repeat(2 - differ, 1 + differ),
    )


class ClipCoder:
    """Codes one clip, block by block; encoder and decoder each start from a fresh one.

    It remembers the last frames and what it has learnt: a correction of the scores, (dimensions, levels) in 2^-24.
    """

    def __init__(self, predictor: DigitPredictor, spelling: Spelling):
        self.predictor, self.spelling = predictor, spelling
        self.recent = np.zeros((predictor.past, predictor.dimensions))
        self.learnt = np.zeros((predictor.dimensions, predictor.levels), dtype=np.int64)

    def encode(self, variants: np.ndarray) -> bytes:
        """Codes the next block: variants (frames, dimensions) -> bytes."""
        import constriction

        digits = self.spelling.digits[variants]
        frames = zip(self._block_scores(digits), digits, strict=True)
        likely = np.stack([self._learn(scores, frame_digits) for scores, frame_digits in frames])
        # In C order, which the encoder takes for granted.
        probabilities = self._probabilities(likely).astype(np.float64, order="C").reshape(variants.size, -1)
        coder = constriction.stream.queue.RangeEncoder()
        model = constriction.stream.model.Categorical(perfect=False)
        coder.encode(variants.astype(np.int32).ravel(), model, probabilities)
        return shortest(coder)

    def decode(self, data: bytes, frames: int) -> np.ndarray:
        """Reads what [`~ClipCoder.encode`] wrote: variants (frames, dimensions).

        Raises:
            ValueError: if no encoder wrote this, as far as one can see.
        """
        predictor, decoder = self.predictor, RangeDecoder(data)
        variants = np.zeros((frames, predictor.dimensions), dtype=np.int64)
        for frame in variants:
            (sums,) = predictor.begin(self.recent.reshape(1, -1))
            correction = self._correction()
            scores = np.zeros_like(correction)
            for dimension in range(predictor.dimensions):
                scores[dimension] = predictor.scores(sums, dimension)
                likely = likelihoods(scores[dimension] + correction[dimension])
                frame[dimension] = decoder.decode(self._probabilities(likely))
                value = predictor.values[self.spelling.digits[frame[dimension]]]
                sums += value * predictor.earlier[:, dimension]
            digits = self.spelling.digits[frame]
            self._learn(scores, digits)
            self.recent = np.concatenate([self.recent[1:], predictor.values[digits][None]])
        return variants

    def _block_scores(self, digits: np.ndarray) -> np.ndarray:
        """Scores of a block whose digits are known: (frames, dimensions) -> (frames, dimensions, levels)."""
        predictor, values = self.predictor, self.predictor.values[digits]
        history = np.concatenate([self.recent, values])
        self.recent = history[len(digits) :]
        windows = np.concatenate([history[i : i + len(digits)] for i in range(predictor.past)], axis=1)
        sums = predictor.begin(windows) + values @ predictor.earlier.T
        return np.stack([predictor.scores(sums, dimension) for dimension in range(predictor.dimensions)], axis=1)

    def _correction(self) -> np.ndarray:
        return self.learnt * SCORE_UNIT >> PROBABILITY_BITS

    def _learn(self, scores: np.ndarray, digits: np.ndarray) -> np.ndarray:
        """How likely each digit of a frame was, (dimensions, levels); and learns from those that came."""
        likely = likelihoods(scores + self._correction())
        expected = (likely << PROBABILITY_BITS) // likely.sum(axis=1, keepdims=True)
        self.learnt -= expected >> LEARNING_SHIFT
        self.learnt[np.arange(len(digits)), digits] += 1 << PROBABILITY_BITS - LEARNING_SHIFT
        return likely

    def _probabilities(self, likely: np.ndarray) -> np.ndarray:
        """How likely each digit is, (…, levels), as probabilities of variants in 2^-24: (…, variants) int64.

        Each is one less than it could be: so much the range coder adds, which leaves nothing impossible.
        """
        probabilities = np.cumsum(likely[..., self.spelling.digits] * self.spelling.shares, axis=-1)
        total = (1 << PROBABILITY_BITS) - len(self.spelling.digits)
        probabilities = probabilities * total // probabilities[..., -1:]
        probabilities[..., 1:] -= probabilities[..., :-1].copy()
        return probabilities


class RangeDecoder:
    """Decodes what constriction's range encoder wrote, and finds zeros behind it.

    Here rather than there, so that files can be read on machines for which that package is not built. Its range has 64
    bits; words of 32 bits follow as it narrows, each with its most significant byte first.
    """

    def __init__(self, data: bytes):
        self.words = io.BytesIO(data)
        self.range, self.offset = (1 << 64) - 1, self._word() << 32 | self._word()

    def _word(self) -> int:
        return int.from_bytes(self.words.read(4).ljust(4, b"\0"))

    def decode(self, probabilities: np.ndarray) -> int:
        """The next symbol.

        Args:
            probabilities: (symbols,) int64, each one less than it is in 2^-24.

        Raises:
            ValueError: if no encoder can have got here.
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


def shortest(coder: "RangeEncoder") -> bytes:
    """The fewest bytes from which a decoder that finds zeros behind them gets what an encoder wrote."""
    words, (lower, size) = coder.pos()
    data = coder.get_compressed().astype(">u4").tobytes().ljust(4 * words + 8, b"\0")
    # Any number from the lower end of the encoder's range up will do, of as many digits as these.
    number = int.from_bytes(data)
    lower = number - (number - lower) % (1 << 64)
    candidates = (-(-lower >> bits) << bits for bits in range(64, -1, -8))
    return next(number for number in candidates if number < lower + size).to_bytes(len(data)).rstrip(b"\0")
