"""Tiny priors for entropy coding with random weights: what they predict is of no use, but exact."""

import numpy as np

from modeling_taae.entropy.coding import VALUE_UNIT, WEIGHT_UNIT, ContextModel
from modeling_taae.entropy.prior import EntropyPrior

HIDDEN, WIDTH, PAST = 8, 4, 3


def make_predictor(levels: int, dimensions: int = 6, seed: int = 0, largest: int = 40) -> ContextModel:
    """A predictor whose weights are up to so many 64ths."""
    generator = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return generator.integers(-largest, largest, shape, endpoint=True) / WEIGHT_UNIT

    def biases(*shape: int) -> np.ndarray:
        unit = WEIGHT_UNIT * VALUE_UNIT
        return generator.integers(-unit, unit, shape, endpoint=True) / unit

    before = np.tril(np.ones((dimensions, dimensions)), -1).repeat(WIDTH, axis=0)
    return ContextModel(
        recent=weights(HIDDEN, PAST * dimensions),
        recent_bias=biases(HIDDEN),
        context=weights(HIDDEN, HIDDEN),
        context_bias=biases(HIDDEN),
        head=weights(dimensions * WIDTH, HIDDEN),
        head_bias=biases(dimensions * WIDTH),
        earlier=weights(dimensions * WIDTH, dimensions) * before,
        output=weights(dimensions, levels, WIDTH),
        output_bias=biases(dimensions, levels),
    )


def make_prior(model_identity: str = "0123456789abcdef", seed: int = 0) -> EntropyPrior:
    """A prior of a model with the published grid and frames."""
    predictors = {"native": make_predictor(17, seed=seed), "1x46656_400bps": make_predictor(6, seed=seed)}
    return EntropyPrior(model_identity, sampling_rate=16_000, hop_length=640, predictors=predictors)
