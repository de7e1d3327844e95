"""The causal variant: a frame depends on no sample after its own; the default network's window looks ahead."""

import pytest
import torch
from support.tiny_models import VARIANTS, make_audio, make_model

CAUSAL = [name for name, options in VARIANTS.items() if options.get("causal")]
FRAMES = 17


@pytest.mark.parametrize("variant", CAUSAL)
@pytest.mark.parametrize("frame", [0, 1, 8, FRAMES - 1])
def test_the_past_of_the_encoder_ignores_the_future(variant: str, frame: int) -> None:
    model = make_model(**VARIANTS[variant])
    hop = model.config.hop_length
    audio = make_audio(1, FRAMES * hop)
    changed = audio.clone()
    changed[..., frame * hop :] += make_audio(1, (FRAMES - frame) * hop, seed=1)
    with torch.no_grad():
        before, after = model.encode(audio), model.encode(changed)
    torch.testing.assert_close(after.latents[..., :frame], before.latents[..., :frame], rtol=0, atol=1e-6)
    assert (after.latents[..., frame] - before.latents[..., frame]).abs().max() > 1e-2


@pytest.mark.parametrize("variant", CAUSAL)
@pytest.mark.parametrize("frame", [0, 1, 8, FRAMES - 1])
def test_the_past_of_the_decoder_ignores_the_future(variant: str, frame: int) -> None:
    model = make_model(**VARIANTS[variant])
    sample = frame * model.config.hop_length
    latents = torch.randn(1, 6, FRAMES, generator=torch.Generator().manual_seed(2))
    changed = latents.clone()
    changed[..., frame:] *= -1
    with torch.no_grad():
        before, after = model.decode(latents=latents).audio_values, model.decode(latents=changed).audio_values
    assert before.shape == (1, 1, FRAMES * model.config.hop_length)
    torch.testing.assert_close(after[..., :sample], before[..., :sample], rtol=0, atol=1e-6)
    assert (after[..., sample:] - before[..., sample:]).abs().max() > 1e-2


@pytest.mark.parametrize("variant", CAUSAL)
def test_a_prefix_encodes_and_decodes_as_part_of_the_whole(variant: str) -> None:
    """What streaming rests on."""
    model = make_model(**VARIANTS[variant])
    hop = model.config.hop_length
    audio = make_audio(1, FRAMES * hop)
    with torch.no_grad():
        whole, prefix = model(audio), model(audio[..., : 9 * hop])
    assert torch.equal(prefix.audio_codes, whole.audio_codes[..., :9])
    torch.testing.assert_close(prefix.audio_values, whole.audio_values[..., : 9 * hop], rtol=0, atol=2e-6)


def test_the_right_half_of_the_window_is_ignored() -> None:
    narrow, wide = make_model(causal=True, sliding_window=(5, 0)), make_model(causal=True, sliding_window=(5, 6))
    audio = make_audio(1, 640)
    with torch.no_grad():
        assert torch.equal(narrow.encode(audio).latents, wide.encode(audio).latents)


def test_the_default_network_is_not_causal() -> None:
    model = make_model()
    audio = make_audio(1, FRAMES * model.config.hop_length)
    changed = audio.clone()
    changed[..., -1] += 1
    with torch.no_grad():
        difference = (model.encode(audio).latents - model.encode(changed).latents).abs().amax(dim=(0, 1))
    assert difference[-1] > 1e-2
    assert difference[-3] > 1e-4
