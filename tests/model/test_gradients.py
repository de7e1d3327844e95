"""Gradients through a model in evaluation mode: a frozen codec in a loss, or behind a network that is trained."""

import pytest
import torch
from support.tiny_models import VARIANTS, make_audio, make_model
from torch import nn

from modeling_taae.quantization_taae import straight_through

BOTTLENECKS = ["1x46656_400bps", "2x15625_700bps", "native", [([3] * 6, 1.0), ([4] * 6, 0.3)]]


@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=str)
@pytest.mark.parametrize("variant", ["plain", "causal", "everything"])
def test_gradients_reach_audio_and_encoder_and_values_stay(variant: str, bottleneck: str | list) -> None:
    model, audio = make_model(**VARIANTS[variant]), make_audio(2, 301)
    with torch.no_grad():
        encoded = model.encode(audio, bottleneck=bottleneck)
        plain = model.decode(encoded.audio_codes, bottleneck=bottleneck).audio_values[..., :301]
        expected = model(audio, bottleneck=bottleneck)
    output = model(audio.requires_grad_(), bottleneck=bottleneck)
    assert torch.equal(output.audio_codes, encoded.audio_codes)
    assert torch.equal(output.audio_values, plain) and torch.equal(expected.audio_values, plain)
    output.audio_values.square().mean().backward()
    assert audio.grad.isfinite().all() and audio.grad.any(dim=-1).all()
    assert model.encoder.conv_in.weight.grad.any() and model.decoder.conv_in.weight.grad.any()


def test_the_gradient_is_that_of_unrounded_latents_where_rounding_changes_nothing() -> None:
    model = make_model()
    codes = model.bottleneck("native").decode(torch.arange(12).reshape(1, 1, 12) * 1_000_003)
    latents = torch.atanh(codes.clamp(-0.999, 0.999)).requires_grad_()
    (through,) = torch.autograd.grad(straight_through(codes, latents).sin().sum(), latents)
    expected = codes.cos() * (1 - torch.tanh(latents).square())
    torch.testing.assert_close(through, expected.detach())


def test_padding_gets_no_gradient() -> None:
    model, audio, mask = make_model(), make_audio(2, 320).requires_grad_(), torch.ones(2, 320)
    mask[1, 100:] = 0
    model(audio, mask).audio_values.square().sum().backward()
    assert audio.grad[0].any() and audio.grad[1, 0, :100].any() and not audio.grad[1, 0, 100:].any()


def test_half_precision() -> None:
    model, audio = make_model().to(torch.bfloat16), make_audio(1, 320).to(torch.bfloat16).requires_grad_()
    model(audio).audio_values.float().square().mean().backward()
    assert audio.grad.isfinite().all() and audio.grad.any()


def test_an_enhancer_learns_through_a_frozen_codec() -> None:
    """A gain in front of the codec learns to undo what was done to the audio, from the codec's output alone."""
    codec = make_model().requires_grad_(False)
    clean = make_audio(4, 640)
    with torch.no_grad():
        target = codec(clean, bottleneck="native").audio_values
    enhancer = nn.Conv1d(1, 1, 1, bias=False)
    nn.init.ones_(enhancer.weight)
    optimizer = torch.optim.Adam(enhancer.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = (codec(enhancer(0.3 * clean), bottleneck="native").audio_values - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert 2.5 < enhancer.weight.item() < 4
    assert all(parameter.grad is None for parameter in codec.parameters())
