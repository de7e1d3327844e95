"""The discriminator, its losses, and where their gradients go."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from training.discriminator import (
    Adversary,
    DiscriminatorError,
    MultiResolutionDiscriminator,
    STFTDiscriminator,
    codec_hinge_loss,
    discriminator_hinge_loss,
    feature_matching_loss,
)
from training.recipe import DataConfig, DiscriminatorConfig, Recipe

HOP = 640


def make_adversary(**settings: object) -> Adversary:
    AcceleratorState._reset_state(reset_partial_state=True)
    discriminator = DiscriminatorConfig(**{"channels": 4, "fft_sizes": [78, 206, 542], **settings})
    return Adversary(Recipe(discriminator=discriminator, data=DataConfig(crop_frames=8)), Accelerator(cpu=True), HOP)


def random_audio(seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, 8 * HOP, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fft_size", [78, 126, 206, 2296])
def test_features_have_the_resolution_of_their_spectrum(fft_size):
    features = STFTDiscriminator(fft_size, channels=4, exponent=0.5)(random_audio(0))
    frames, frequencies = (8 * HOP - fft_size) // (fft_size // 2) + 1, fft_size // 2 + 1
    assert features[0].shape == (2, 4, frames, frequencies)
    assert features[-1].shape == (2, 1, frames, -(-frequencies // 8))
    assert len(features) == 6


def test_the_published_size_is_wide():
    discriminator = MultiResolutionDiscriminator([78, 126], channels=256, exponent=0.5)
    assert sum(p.numel() for p in discriminator.resolutions[0].parameters()) == 5_916_930


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_magnitudes_are_compressed_and_phases_kept(exponent):
    resolution, audio = STFTDiscriminator(206, channels=1, exponent=exponent), random_audio(0)
    plain, scaled = (torch.complex(*resolution.spectrum(gain * audio).unbind(1)) for gain in (1.0, 100.0))
    loud = plain.abs() > 0.25
    torch.testing.assert_close(
        (scaled / plain).abs()[loud], torch.full_like(plain.abs(), 100**exponent)[loud], rtol=0.02, atol=0
    )
    torch.testing.assert_close(scaled.angle()[loud], plain.angle()[loud], rtol=0, atol=1e-3)


def test_noise_reads_its_amplitude_at_every_resolution():
    noise = torch.randn(1, 1, 64_000, generator=torch.Generator().manual_seed(0))
    for fft_size in (78, 542, 2296):
        spectrum = STFTDiscriminator(fft_size, channels=1, exponent=1.0).spectrum(noise)
        assert spectrum.square().sum(1).mean().sqrt().item() == pytest.approx(1, abs=0.05)


def test_silence_has_finite_gradients():
    silence = torch.zeros(1, 1, 8 * HOP, requires_grad=True)
    features = MultiResolutionDiscriminator([78, 542], channels=4, exponent=0.5)(silence)
    codec_hinge_loss(features).backward()
    assert silence.grad.isfinite().all() and silence.grad.any()


def test_hinge_losses_are_those_of_their_definition():
    def logits(*values: float) -> list[list[torch.Tensor]]:
        return [[torch.tensor([[value]])] for value in values]

    assert codec_hinge_loss(logits(1.0, -3.0)) == 1.0
    assert discriminator_hinge_loss(logits(1.5, 0.0), logits(-2.0, 0.5)) == pytest.approx((0 + 0 + 1 + 1.5) / 2)


def test_feature_matching_weighs_every_layer_alike():
    real = [[torch.full((2, 3), 1.0), torch.full((2, 5), 1_000.0), torch.zeros(2, 1)]]
    decoded = [[torch.full((2, 3), 1.5), torch.full((2, 5), 1_100.0), torch.ones(2, 1)]]
    assert feature_matching_loss(real, decoded).item() == pytest.approx((0.5 + 0.1) / 2, abs=1e-4)
    assert feature_matching_loss(real, real) == 0


def test_neither_side_gets_gradients_of_the_other():
    adversary, codec = make_adversary(), torch.nn.Linear(HOP, HOP)
    audio = random_audio(0)
    decoded = codec(audio.unflatten(-1, (-1, HOP))).flatten(-2)
    terms, own = adversary.losses(decoded, audio, step=0)
    gathered = [parameter.grad.clone() for parameter in adversary.module.parameters()]
    assert any(gradient.any() for gradient in gathered)
    assert codec.weight.grad is None, "the discriminator's loss reached the codec"
    (terms["adversarial"] + terms["feature_matching"]).backward()
    assert codec.weight.grad.any()
    for parameter, gradient in zip(adversary.module.parameters(), gathered, strict=True):
        assert torch.equal(parameter.grad, gradient), "the codec's loss reached the discriminator"
    assert own["discriminator"] > 0


def test_a_discriminator_learns_to_tell_two_signals_apart():
    adversary = make_adversary(learning_rate=3e-3)
    adversary.recipe.optimizer.warmup_steps = 1
    audio = random_audio(0)
    decoded = audio.cumsum(-1) * 0.1
    losses = []
    for step in range(40):
        losses.append(adversary.losses(decoded, audio, step)[1]["discriminator"].item())
        adversary.update(step)
    assert losses[-1] < 0.5 * losses[0]


def test_resolutions_are_drawn_by_step_and_rest_otherwise():
    adversary = make_adversary(resolutions_per_step=1)
    draws = [adversary._draw(step) for step in range(30)]
    assert {index for draw in draws for index in draw} == {0, 1, 2}
    assert draws == [make_adversary(resolutions_per_step=1)._draw(step) for step in range(30)]
    adversary.losses(random_audio(0), random_audio(1), step=3)
    touched = [resolution.to_logits.bias.grad is not None for resolution in adversary.module.resolutions]
    assert touched == [index in draws[3] for index in range(3)]


def test_between_its_updates_a_discriminator_only_judges():
    adversary = make_adversary(update_every=2)
    terms, own = adversary.losses(random_audio(0), random_audio(1), step=2)
    assert terms.keys() == {"adversarial", "feature_matching"} and not own
    before = [parameter.clone() for parameter in adversary.module.parameters()]
    adversary.update(step=2)
    assert all(map(torch.equal, before, adversary.module.parameters()))


def test_before_its_start_a_discriminator_is_not_active():
    adversary = make_adversary(start_step=10)
    assert not adversary.active(9) and adversary.active(10)


def test_a_published_discriminator_is_found_again(tmp_path):
    discriminator = MultiResolutionDiscriminator([78, 126], channels=4, exponent=0.5)
    discriminator.save_pretrained(tmp_path)
    found = MultiResolutionDiscriminator.from_pretrained(tmp_path)
    audio = random_audio(0)
    assert torch.equal(found(audio)[1][-1], discriminator(audio)[1][-1])
    assert MultiResolutionDiscriminator.from_pretrained(tmp_path.parent) is None


@pytest.mark.parametrize("settings", [{"fft_sizes": []}, {"channels": 0}, {"fft_sizes": [1]}, {"fft_sizes": [8_192]}])
def test_discriminators_that_cannot_be_are_refused(settings):
    with pytest.raises(DiscriminatorError):
        make_adversary(**settings)
