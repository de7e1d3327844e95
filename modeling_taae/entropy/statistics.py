"""Statistics of tokens: entropies, and how many of the possible tokens are used.

All entropies are plug-in estimates from the given tokens. They are too low if there are few tokens, and optimistic as
bit rates, because a coder's statistics would come from other speech.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..quantization_taae import ResidualFSQ


def token_statistics(codes: Sequence[np.ndarray], quantizer: ResidualFSQ, frame_rate: float) -> dict:
    """Computes statistics of the tokens of several clips.

    Args:
        codes: (tokens_per_frame, frames) int64 of each clip.
        quantizer: the bottleneck that made them.
        frame_rate: frames per second.

    Returns:
        - `frames`: the number of frames.
        - `stages`: for each stage `vocabulary`, `used` (distinct tokens) and `digit_entropy` (per dimension, divided by
          its maximum).
        - `entropy`: bits per frame, summed over all digits as if they were independent.
        - `conditional_entropy`: the same, given the same digit of the frame before.
        - `entropy_bit_rate`, `conditional_bit_rate`: both in bit/s.
    """
    stages, entropy, conditional = [], 0.0, 0.0
    for index, stage in enumerate(quantizer.stages):
        digits = [stage.unpack(torch.from_numpy(clip[index][None]))[0].numpy() for clip in codes]
        entropies = np.array([digit_entropy(digits, d, levels) for d, levels in enumerate(stage.levels)])
        entropy += entropies.sum()
        conditional += sum(conditional_digit_entropy(digits, d, levels) for d, levels in enumerate(stage.levels))
        stages.append(
            {
                "vocabulary": stage.codebook_size,
                "used": len(np.unique(np.concatenate([clip[index] for clip in codes]))),
                "digit_entropy": (entropies / np.log2(stage.levels)).tolist(),
            }
        )
    return {
        "frames": int(sum(clip.shape[1] for clip in codes)),
        "stages": stages,
        "entropy": float(entropy),
        "conditional_entropy": float(conditional),
        "entropy_bit_rate": float(entropy * frame_rate),
        "conditional_bit_rate": float(conditional * frame_rate),
    }


def digit_entropy(digits: Sequence[np.ndarray], dimension: int, levels: int) -> float:
    """Returns the entropy of one dimension's digits in bit; `digits` holds each clip's (dimensions, frames)."""
    return entropy_of_counts(np.sum([np.bincount(clip[dimension], minlength=levels) for clip in digits], axis=0))


def conditional_digit_entropy(digits: Sequence[np.ndarray], dimension: int, levels: int) -> float:
    """Returns the entropy of one dimension's digits in bit, given the previous frame; first frames do not count."""
    pairs = np.zeros(levels * levels, dtype=np.int64)
    for clip in digits:
        before, after = clip[dimension, :-1], clip[dimension, 1:]
        pairs += np.bincount(before * levels + after, minlength=levels * levels)
    return entropy_of_counts(pairs) - entropy_of_counts(pairs.reshape(levels, levels).sum(axis=1))


def entropy_of_counts(counts: np.ndarray) -> float:
    """Returns the entropy in bit of a distribution given by counts; 0 if all counts are 0."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float((shares * np.log2(1 / shares)).sum())
