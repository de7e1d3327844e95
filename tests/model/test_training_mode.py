"""What a training loop relies on: gradients everywhere, a noisy bottleneck, weight norm that comes and goes."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.tiny_models import TINY, VARIANTS, make_audio, make_model
from torch.nn.utils import parametrize

from modeling_taae import TaaeConfig, TaaeModel
from modeling_taae.transformer_taae import TaaeLayerScale, TaaeTransformerLayer

TRAINABLE = {name: {**options, "training_levels": (17,)} for name, options in VARIANTS.items()}


@pytest.mark.parametrize("variant", TRAINABLE)
def test_gradients_reach_every_parameter(variant: str) -> None:
    model = make_model(**TRAINABLE[variant]).apply_weight_norm().train()
    output = model(make_audio(4, 10 * model.config.hop_length))
    assert output.audio_codes is None
    output.audio_values.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_gradients_pass_each_kind_of_bottleneck(shares: tuple[float, float]) -> None:
    noise, rounding = shares
    model = make_model(training_noise_probability=noise, training_rounding_probability=rounding).train()
    model(make_audio(2, 320)).audio_values.square().mean().backward()
    assert model.encoder.conv_in.weight.grad.abs().max() > 0


def test_training_forward_draws_noise_and_evaluation_does_not() -> None:
    model, audio = make_model(), make_audio(2, 320)
    with torch.no_grad():
        assert torch.equal(model(audio).audio_values, model(audio).audio_values)
        model.train()
        first, second = model(audio), model(audio)
    assert torch.equal(first.latents, second.latents)
    assert not torch.equal(first.audio_values, second.audio_values)


def test_without_noise_and_rounding_training_decodes_the_latents_as_they_are() -> None:
    model = make_model(training_noise_probability=0.0, training_rounding_probability=0.0).train()
    with torch.no_grad():
        output = model(make_audio(2, 320))
        expected = model.decode(latents=output.latents).audio_values
    torch.testing.assert_close(output.audio_values, expected, rtol=0, atol=1e-6)


def test_garbage_in_the_padding_leaves_gradients_alone() -> None:
    def gradients(garbage: float) -> list[torch.Tensor]:
        model = make_model().train()
        audio, mask = make_audio(2, 320), torch.ones(2, 320)
        mask[1, 100:] = 0
        audio[1, :, 100:] = garbage
        torch.manual_seed(5)
        model(audio, mask).audio_values.square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    for clean, dirty in zip(gradients(0.0), gradients(float("nan")), strict=True):
        assert torch.equal(clean, dirty)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        model(make_audio(2, 320)).audio_values.square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("variant", ["plain", "everything"])
def test_a_step_in_mixed_precision(variant: str) -> None:
    model = make_model(**VARIANTS[variant]).apply_weight_norm().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(make_audio(2, 10 * model.config.hop_length), torch.ones(2, 10 * model.config.hop_length))
    output.audio_values.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


class TestWeightNorm:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_it_comes_and_goes_without_changing_the_output(self, variant: str) -> None:
        model = make_model(**VARIANTS[variant])
        audio = make_audio(1, 10 * model.config.hop_length)
        with torch.no_grad():
            expected = model(audio).audio_values
            names = model.state_dict().keys()
            torch.testing.assert_close(model.apply_weight_norm()(audio).audio_values, expected, rtol=0, atol=1e-5)
            assert model.state_dict().keys() != names
            torch.testing.assert_close(model.remove_weight_norm()(audio).audio_values, expected, rtol=0, atol=1e-5)
        assert model.state_dict().keys() == names

    def test_it_covers_every_convolution_but_the_depthwise_one(self) -> None:
        model = make_model(**VARIANTS["everything"]).apply_weight_norm()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                assert parametrize.is_parametrized(module, "weight") == ("depthwise" not in name), name

    def test_the_norm_is_taken_over_all_dimensions_but_the_first(self) -> None:
        """Also where the first one is the input channel, in the transposed convolution."""
        model = make_model().apply_weight_norm()
        upsample = model.decoder.blocks[0].upsample
        magnitude = upsample.parametrizations.weight.original0
        assert magnitude.shape == (upsample.in_channels, 1, 1)
        torch.testing.assert_close(magnitude.flatten(), upsample.weight.flatten(1).norm(dim=1))

    def test_applying_it_twice_is_applying_it_once(self) -> None:
        once, twice = make_model().apply_weight_norm(), make_model().apply_weight_norm().apply_weight_norm()
        assert once.state_dict().keys() == twice.state_dict().keys()

    def test_a_model_saved_amid_training_loads_fused_and_trains_on(self, tmp_path: Path) -> None:
        model = make_model().apply_weight_norm()
        with torch.no_grad():
            model.encoder.conv_in.parametrizations.weight.original0.mul_(1.5)
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert set(file.keys()) == make_model().state_dict().keys()
        assert parametrize.is_parametrized(model.encoder.conv_in, "weight")
        audio = make_audio(1, 320)
        with torch.no_grad():
            loaded = TaaeModel.from_pretrained(tmp_path)
            torch.testing.assert_close(loaded(audio).audio_values, model(audio).audio_values, rtol=0, atol=1e-6)
            assert (loaded(audio).latents - make_model()(audio).latents).abs().max() > 1e-2


class TestInitialisation:
    def test_layer_scale_starts_at_its_initial_value(self) -> None:
        model = TaaeModel(TaaeConfig(**{**TINY, "layer_scale_initial_scale": 1e-5}))
        scales = [module for module in model.modules() if isinstance(module, TaaeLayerScale)]
        assert len(scales) == 8
        for module in scales:
            torch.testing.assert_close(module.scale, torch.full_like(module.scale, 1e-5))

    def test_without_layer_scale_each_layer_starts_as_the_identity(self) -> None:
        model = TaaeModel(TaaeConfig(**{**TINY, "layer_scale_initial_scale": None}))
        layers = [module for module in model.modules() if isinstance(module, TaaeTransformerLayer)]
        assert layers
        for layer in layers:
            assert not layer.attention.o_proj.weight.any()
            assert not layer.feed_forward.down_proj.weight.any()
            assert layer.attention.qkv_proj.weight.any()
