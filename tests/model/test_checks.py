"""What is refused, in eager and in compiled models, and whether it says what is expected."""

import numpy as np
import pytest
import torch
from support.tiny_models import make_audio, make_model


def run_as_is(graph, inputs):
    """A backend that runs the graph instead of compiling it."""
    return graph.forward


SMALL = {"hidden_sizes": (16,), "strides": (2,), "encoder_depths": (1,), "decoder_depths": (1,)}


@pytest.fixture(scope="module", params=["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def methods(request):
    """Encode, decode and forward of a tiny model."""
    model = make_model(**SMALL)
    functions = (model.encode, model.decode, model)
    if request.param == "eager":
        return functions
    torch._dynamo.reset()
    return [torch.compile(function, fullgraph=True, dynamic=True, backend=run_as_is) for function in functions]


def test_what_cannot_be_right_is_refused(methods):
    encode, decode, forward = methods
    audio, tokens, latents = make_audio(2, 320), torch.zeros(2, 1, 10, dtype=torch.int64), torch.zeros(2, 6, 10)
    broken, left, ragged = audio.clone(), torch.ones(2, 320), torch.ones(2, 10)
    broken[1, 0, 100] = float("nan")
    left[0, :50] = 0
    ragged[1, 5] = 0
    high, low, gone = tokens.clone(), tokens.clone(), latents.clone()
    high[1, 0, 4], low[0, 0, 9], gone[1, 2, 3] = 99_999_999, -5, float("nan")
    with torch.no_grad():
        for method in (encode, forward):
            with pytest.raises(ValueError, match="latents of item 1 are NaN"):
                method(broken)
            with pytest.raises(ValueError, match="ones followed by zeros"):
                method(audio, left)
        with pytest.raises(ValueError, match="Token 99999999 of item 1, stage 0, frame 4 is out of range"):
            decode(high)
        with pytest.raises(ValueError, match="Token -5 of item 0, stage 0, frame 9 is out of range"):
            decode(low)
        with pytest.raises(ValueError, match="ones followed by zeros"):
            decode(tokens, ragged)
        with pytest.raises(ValueError, match="latents of item 1 are NaN from frame 3 on"):
            decode(latents=gone)


def test_what_is_right_stays(methods):
    encode, decode, forward = methods
    model, audio, mask = make_model(**SMALL), make_audio(2, 320), torch.ones(2, 320)
    mask[1, 200:] = 0
    with torch.no_grad():
        encoded, expected = encode(audio, mask), model.encode(audio, mask)
        assert torch.equal(encoded.audio_codes, expected.audio_codes)
        decoded = decode(encoded.audio_codes, encoded.audio_codes_mask).audio_values
        torch.testing.assert_close(decoded, model.decode(expected.audio_codes, expected.audio_codes_mask).audio_values)
        torch.testing.assert_close(forward(audio, mask).audio_values, model(audio, mask).audio_values)


@pytest.mark.slow
def test_an_inductor_graph_refuses_as_well():
    torch._dynamo.reset()
    model = make_model()
    decode = torch.compile(lambda tokens: model.bottleneck().decode(tokens), fullgraph=True)
    tokens = torch.zeros(1, 1, 3, dtype=torch.int64)
    assert torch.equal(decode(tokens), model.bottleneck().decode(tokens))
    with pytest.raises(ValueError, match="Token 46656 of item 0"):
        decode(tokens + 46_656)


def test_nan_in_the_padding_of_latents_is_not_looked_at():
    model, latents, mask = make_model(), torch.zeros(2, 6, 10), torch.ones(2, 10)
    latents[1, :, 7:], mask[1, 7:] = float("nan"), 0
    audio = model.decode(latents=latents, audio_codes_mask=mask).audio_values
    assert audio.isfinite().all()


@pytest.mark.parametrize("kind", [np.asarray, list, str, lambda _: None])
def test_other_types_are_told_what_is_expected(kind):
    model = make_model()
    with pytest.raises(TypeError, match=r"input_values must be a torch\.Tensor \(batch, 1, samples\), not"):
        model.encode(kind(make_audio(1, 64)))


def test_outputs_given_as_they_are():
    model = make_model()
    encoded = model.encode(make_audio(1, 64))
    with pytest.raises(TypeError, match="audio_codes is a TaaeEncoderOutput; pass its field of that name"):
        model.decode(encoded)
    with pytest.raises(ValueError, match="Of what encode returns, pass audio_codes and audio_codes_mask"):
        model.decode(**encoded)
    with pytest.raises(TypeError, match="audio_codes_mask must be a torch.Tensor"):
        model.decode(encoded.audio_codes, np.ones((1, 4)))
    with pytest.raises(TypeError, match="padding_mask must be a torch.Tensor"):
        model.encode(make_audio(1, 64), [[1] * 64])
    with pytest.raises(TypeError, match=r"latents must be a torch\.Tensor \(batch, 6, frames\), not ndarray"):
        model.decode(latents=np.zeros((1, 6, 3)))
    with pytest.raises(ValueError, match="latents must be floats"):
        model.decode(latents=torch.zeros(1, 6, 3, dtype=torch.int64))
