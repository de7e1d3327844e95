"""Compiled layers: the same tokens, as few graphs as possible, and nothing that depends on what came before."""

import numpy as np
import pytest
import torch
from support.tiny_models import make_model

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.batching import encode_clips
from modeling_taae.codec import Codec
from modeling_taae.evaluation.codecs import TaaeSystem
from modeling_taae.identity import model_identity

pytestmark = pytest.mark.slow  # for it compiles


class Graphs(list):
    """A backend that runs graphs as they are, and keeps them."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        self.append(graph)
        return graph


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


@pytest.fixture
def codec(tmp_path) -> Codec:
    torch.manual_seed(0)
    model = make_model(hidden_sizes=(16, 24), strides=(2, 2), encoder_depths=(1, 2), decoder_depths=(2, 1))
    extractor = TaaeFeatureExtractor(hop_length=model.config.hop_length, target_loudness=None)
    return Codec(model.eval(), extractor, model_identity(model), tmp_path)


def clips_of(frames: list[int], hop_length: int) -> list[tuple[int, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        (number, generator.normal(0, 0.1, length * hop_length - length % 3).astype(np.float32))
        for number, length in enumerate(frames)
    ]


def test_a_corpus_of_random_lengths_has_the_same_tokens_and_one_graph_a_width(codec):
    graphs = Graphs()
    lengths = [int(length) for length in np.random.default_rng(1).integers(1, 120, 30)]
    clips = clips_of([*lengths, 2, 3, 4], codec.model.config.hop_length)
    found = {key: encoded.audio_codes for key, encoded in encode_clips(codec.compiled(graphs), clips)}
    for key, encoded in encode_clips(codec, clips):
        np.testing.assert_array_equal(found[key], encoded.audio_codes)
    assert len(graphs) == 2


def test_blocks_of_several_clips_have_one_graph_more(codec):
    """As on a GPU, where they share their length."""
    graphs, hop = Graphs(), codec.model.config.hop_length
    compiled = codec.compiled(graphs)
    for rows, frames in ((1, 9), (4, 30), (2, 75), (3, 12), (1, 80)):
        clips = [audio for _, audio in clips_of([frames] * rows, hop)]
        found = compiled.encode_block(clips, rows + 1 if rows > 1 else 1, frames * hop)
        expected = codec.encode_block(clips, rows + 1 if rows > 1 else 1, frames * hop)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.audio_codes, theirs.audio_codes)
    assert len(graphs) == 4


def test_what_is_decoded_does_not_depend_on_what_was_decoded_before(codec):
    graphs = Graphs()
    encoded = [codec.encode(audio) for _, audio in clips_of([40, 7, 90], codec.model.config.hop_length)]
    compiled = codec.compiled(graphs)
    first = [compiled.decode(file) for file in encoded]
    torch.compiler.reset()
    again = [compiled.decode(file) for file in reversed(encoded)]
    for ours, theirs, file in zip(first, reversed(again), encoded, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(ours, codec.decode(file), rtol=0, atol=1e-5)
    assert len(graphs) == 4


def test_the_codec_that_was_given_stays_as_it_is(codec):
    compiled = codec.compiled(Graphs())
    assert compiled.identity == codec.identity and model_identity(compiled.model) == codec.identity
    ours, theirs = (dict(each.model.named_parameters()) for each in (compiled, codec))
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    layers = [module for module in codec.model.modules() if getattr(module, "_compiled_call_impl", None)]
    assert not layers and not any(getattr(module, "uniform_blocks", False) for module in codec.model.modules())


def test_more_graphs_than_expected_are_an_error_and_not_a_slow_corpus(codec, monkeypatch):
    monkeypatch.setattr("modeling_taae.compilation.MOST_GRAPHS", 1)
    with pytest.raises(Exception, match="recompile_limit"):
        codec.compiled(Graphs()).encode(np.zeros(640, np.float32))


def test_an_evaluation_says_that_layers_are_compiled(codec):
    """So that rows of a run without are not used again."""
    assert "compiled" not in TaaeSystem(codec, None, "tiny").facts
    assert TaaeSystem(codec.compiled(Graphs()), None, "tiny").facts["compiled"] is True
