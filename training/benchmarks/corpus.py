"""The benchmark's section on many clips of random lengths, with and without compiled layers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.batching import encode_clips
from modeling_taae.codec import Codec
from modeling_taae.identity import model_identity
from training.benchmarks.tools import BFLOAT16, FLOAT32, Bench, name_of, random_model

# Sizes, precisions and numbers of clips, by type of device.
CORPORA = {
    "cpu": (("nano", FLOAT32, 60), ("240m", FLOAT32, 12)),
    "cuda": (("nano", FLOAT32, 4000), ("nano", BFLOAT16, 4000), ("950m", FLOAT32, 400), ("950m", BFLOAT16, 400)),
}
SECONDS = (1.0, 15.0)  # the shortest and the longest clip
COMPARED = 40  # clips whose tokens are compared with those of the CPU in float32


def corpus_rows(bench: Bench) -> Iterator[dict]:
    """Speed of tokenizing a corpus of noise after the first clips, which compile, and tokens equal to the CPU's."""
    for size, dtype, clips in CORPORA[bench.device.type]:
        corpus = noise_clips(clips)
        # With its initial layer scale of 1e-5, a layer would add next to nothing, and its rounding would not show.
        model = random_model(size, FLOAT32, torch.device("cpu"), layer_scale_initial_scale=1.0)
        extractor = TaaeFeatureExtractor(hop_length=model.config.hop_length, target_loudness=None)
        reference = Codec(model, extractor, model_identity(model), Path())
        expected = tokens_of(reference, corpus[:COMPARED])
        codec = Codec(random_model(size, dtype, bench.device), extractor, reference.identity, Path())
        codec.model.load_state_dict(model.state_dict())
        for layers, chosen in (("as they are", codec), ("compiled", codec.compiled())):
            _, first = bench.timed(lambda: tokens_of(chosen, corpus[:2]))  # noqa: B023
            tokens, took = bench.timed(lambda: tokens_of(chosen, corpus))  # noqa: B023
            pairs = [(tokens[key], codes) for key, codes in expected.items()]
            same = float(np.mean(np.concatenate([(ours == theirs).all(0) for ours, theirs in pairs])))
            yield {
                "size": size,
                "precision": name_of(dtype),
                "layers": layers,
                "clips": f"{clips} of {SECONDS[0]:g} to {SECONDS[1]:g} s",
                "first two clips, seconds": first,
                "real-time factor": took / sum(len(audio) / 16_000 for _, audio in corpus),
                "frames as on the CPU": same,
            }


def noise_clips(number: int) -> list[tuple[int, np.ndarray]]:
    """Returns clips of noise of random lengths, each with its number."""
    generator = np.random.default_rng(0)
    lengths = (16_000 * generator.uniform(*SECONDS, number)).astype(int)
    return [(key, generator.normal(0, 0.1, samples).astype(np.float32)) for key, samples in enumerate(lengths)]


def tokens_of(codec: Codec, clips: list[tuple[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """Returns the tokens of clips, (tokens per frame, frames) each, by their keys."""
    return {key: encoded.audio_codes for key, encoded in encode_clips(codec, clips)}
