"""The bottleneck: recorded tokens and codes, presets and stages, tokens that are refused, and what training does."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import make_audio, make_model
from torch import Tensor

from modeling_taae.quantization_taae import (
    BOTTLENECK_PRESETS,
    NATIVE,
    FiniteScalarQuantizer,
    ResidualFSQ,
    dither,
    resolve_bottleneck,
)

RECORDED = load_file(Path(__file__).parents[1] / "fixtures" / "fsq" / "fsq.safetensors")
LEVELS = (17,) * 6
ALL_BOTTLENECKS = [*BOTTLENECK_PRESETS, NATIVE]
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}


def bottleneck(name: str | list) -> ResidualFSQ:
    return resolve_bottleneck(name, LEVELS)


@pytest.mark.parametrize("clip", ["random", "boundary"])
@pytest.mark.parametrize("name", BOTTLENECK_PRESETS)
def test_recorded_tokens_and_codes_of_the_presets(clip: str, name: str) -> None:
    tokens = bottleneck(name).encode(RECORDED[f"{clip}/latents"])
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, RECORDED[f"{clip}/{name}/tokens"].transpose(1, 2))
    assert torch.equal(bottleneck(name).decode(tokens), RECORDED[f"{clip}/{name}/codes"])


@pytest.mark.parametrize("clip", ["random", "boundary"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_recorded_tokens_of_the_training_grid_in_each_dtype(clip: str, dtype: str) -> None:
    tokens = bottleneck(NATIVE).encode(RECORDED[f"{clip}/latents"].to(DTYPES[dtype]))
    assert torch.equal(tokens, RECORDED[f"{clip}/fsq17/tokens_from_{dtype}"].transpose(1, 2))


@pytest.mark.parametrize("clip", ["random", "boundary"])
def test_recorded_codes_of_the_training_grid(clip: str) -> None:
    tokens = RECORDED[f"{clip}/fsq17/tokens_from_fp32"].transpose(1, 2)
    assert torch.equal(bottleneck(NATIVE).decode(tokens), RECORDED[f"{clip}/fsq17/codes_from_tokens"])


@pytest.mark.parametrize(
    ("levels", "scale"), [(17, 1), (6, 1), (5, 1), (5, 0.25), (3, 1), (3, 0.5), (3, 0.25), (3, 0.125)]
)
def test_recorded_rounding_ties(levels: int, scale: float) -> None:
    stem = f"ties/{levels}@{float(scale)}"
    stage = FiniteScalarQuantizer((levels,), scale)
    digits = stage.quantize(RECORDED[f"{stem}/z_fp64"][None, None])
    assert torch.equal(digits[0, 0], RECORDED[f"{stem}/level_index"])
    codes = stage.dequantize(digits, torch.float64)[0, 0]
    # The 6-level grid is recorded after float32, in which its step is rounded.
    torch.testing.assert_close(codes.float(), RECORDED[f"{stem}/code"].float(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["2x15625_700bps", "4x729_1000bps"])
def test_the_finer_presets_give_exactly_the_code_of_the_training_grid(name: str) -> None:
    latents = torch.randn(4, 6, 500, generator=torch.Generator().manual_seed(1)).double()
    native = bottleneck(NATIVE)
    assert torch.equal(bottleneck(name).decode(bottleneck(name).encode(latents)), native.decode(native.encode(latents)))


@pytest.mark.parametrize(
    ("name", "sizes", "bits_per_second"),
    [
        ("1x46656_400bps", (46_656,), 387.7),
        ("2x15625_700bps", (15_625,) * 2, 696.6),
        ("4x729_1000bps", (729,) * 4, 951.0),
        (NATIVE, (24_137_569,), 613.1),
    ],
)
def test_vocabularies_and_rates(name: str, sizes: tuple[int, ...], bits_per_second: float) -> None:
    assert bottleneck(name).codebook_sizes == sizes
    assert bottleneck(name).bits_per_frame * 25 == pytest.approx(bits_per_second, abs=0.05)


@pytest.mark.parametrize("name", ALL_BOTTLENECKS)
def test_any_token_decodes_to_the_grid_and_packs_back(name: str) -> None:
    sizes = torch.tensor(bottleneck(name).codebook_sizes)
    generator = torch.Generator().manual_seed(2)
    tokens = (torch.rand(3, len(sizes), 400, generator=generator, dtype=torch.float64) * sizes[:, None]).long()
    tokens[0, :, 0], tokens[0, :, 1] = 0, sizes - 1
    codes = bottleneck(name).decode(tokens)
    reach = sum(stage.scale for stage in bottleneck(name).stages)
    assert codes.shape == (3, 6, 400)
    assert codes.dtype == torch.float32
    assert codes[0, :, 0].tolist() == pytest.approx([-reach] * 6)
    assert codes[0, :, 1].tolist() == pytest.approx([reach] * 6)
    for index, stage in enumerate(bottleneck(name).stages):
        assert torch.equal(stage.pack(stage.unpack(tokens[:, index])), tokens[:, index])


def test_dimension_zero_is_least_significant() -> None:
    digits = torch.tensor([1, 2, 3, 4, 5, 6])[None, :, None]
    token = FiniteScalarQuantizer(LEVELS).pack(digits).item()
    assert token == sum(digit * 17**power for power, digit in enumerate([1, 2, 3, 4, 5, 6]))


def test_tokens_beyond_the_precision_of_float32_survive() -> None:
    """24,137,569 codes need more than the 24 bits of a float32."""
    stage = FiniteScalarQuantizer(LEVELS)
    tokens = torch.arange(2**24 - 3, 2**24 + 5)[None]
    assert torch.equal(stage.pack(stage.unpack(tokens)), tokens)


def test_a_list_of_stages_is_the_preset_it_spells_out() -> None:
    latents = RECORDED["random/latents"]
    stages = [([5] * 6, 1.0), ([5] * 6, 0.25)]
    assert torch.equal(bottleneck(stages).encode(latents), bottleneck("2x15625_700bps").encode(latents))


def test_stages_may_differ_per_dimension() -> None:
    stages = [([2, 3, 4, 5, 6, 7], 1.0), ([9, 2, 2, 2, 2, 3], 0.3)]
    quantizer = bottleneck(stages)
    assert quantizer.codebook_sizes == (5040, 432)
    latents = torch.randn(1, 6, 300, generator=torch.Generator().manual_seed(3))
    error = (quantizer.decode(quantizer.encode(latents)) - torch.tanh(latents)).abs().amax(dim=(0, 2))
    # What the first grid leaves is at most half its step; the second grid takes off what it reaches of it.
    left = torch.tensor([1 / (levels - 1) for levels in stages[0][0]])
    bound = torch.maximum(left - 0.3, torch.tensor([0.3 / (levels - 1) for levels in stages[1][0]]))
    assert (error <= bound + 1e-6).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("2x15625", "no bottleneck named '2x15625'.*1x46656_400bps.*native"),
        ([], "at least one stage"),
        ([([5] * 6, 1.0), ([5] * 5, 0.25)], "6 latent dimensions"),
        ([([1] * 6, 1.0)], "each at least 2"),
        ([([5] * 6, 0.0)], "positive scale"),
        ([([5] * 6, math.nan)], "positive scale"),
        ([([5.5] * 6, 1.0)], "list of .levels of each dimension, scale. stages"),
        ([5, 5], "list of .levels of each dimension, scale. stages"),
        ([([5] * 6,)], "list of .levels of each dimension, scale. stages"),
        ([([5] * 6, "wide")], "list of .levels of each dimension, scale. stages"),
        (17, "list of .levels of each dimension, scale. stages"),
        ([([2**11] * 6, 1.0)], "do not fit an int64"),
    ],
)
def test_wrong_bottlenecks_are_refused(wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bottleneck(wrong)


@pytest.mark.parametrize("name", ALL_BOTTLENECKS)
def test_tokens_out_of_range_are_refused_and_named(name: str) -> None:
    size = bottleneck(name).codebook_sizes[-1]
    stage = len(bottleneck(name).stages) - 1
    for wrong in (-1, size, 2**40):
        tokens = torch.zeros(2, stage + 1, 5, dtype=torch.int64)
        tokens[1, stage, 3] = wrong
        with pytest.raises(ValueError, match=f"Token {wrong} of item 1, stage {stage}, frame 3 .* 0 to {size - 1}"):
            bottleneck(name).decode(tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 2, 5), "must be integers, not torch.float32"),
        (torch.zeros(1, 2, 5, dtype=torch.bool), "must be integers, not torch.bool"),
        (torch.zeros(1, 5, 2, dtype=torch.int64), r"\(batch, 2, frames\), not \(1, 5, 2\)"),
        (torch.zeros(2, 5, dtype=torch.int64), r"\(batch, 2, frames\), not \(2, 5\)"),
        (torch.zeros(1, 1, 2, 5, dtype=torch.int64), r"\(batch, 2, frames\), not \(1, 1, 2, 5\)"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bottleneck("2x15625_700bps").decode(tokens)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_narrow_integer_tokens_decode(dtype: torch.dtype) -> None:
    tokens = torch.tensor([[[0, 1, 100, 127]]])
    quantizer = bottleneck("1x46656_400bps")
    assert torch.equal(quantizer.decode(tokens.to(dtype)), quantizer.decode(tokens))


def test_padded_frames_may_hold_anything() -> None:
    model = make_model()
    tokens = torch.tensor([[[1, 2, 3, 4]], [[5, 6, -7, 2**40]]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        audio = model.decode(tokens, audio_codes_mask=mask).audio_values
        alone = model.decode(tokens[1:, :, :2]).audio_values
    torch.testing.assert_close(audio[1:, :, : alone.shape[-1]], alone, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="out of range"):
        model.decode(tokens)
    with pytest.raises(ValueError, match="mask"):
        model.decode(tokens, audio_codes_mask=mask[:, :3])


@pytest.mark.parametrize("name", ALL_BOTTLENECKS)
def test_the_model_takes_every_bottleneck(name: str) -> None:
    model = make_model()
    with torch.no_grad():
        encoded = model.encode(make_audio(2, 320), bottleneck=name)
        decoded = model.decode(encoded.audio_codes, bottleneck=name)
    assert encoded.audio_codes.shape == (2, len(bottleneck(name).stages), 10)
    assert torch.equal(encoded.audio_codes, bottleneck(name).encode(encoded.latents))
    assert decoded.audio_values.shape == (2, 1, 320)


def test_half_precision_latents_are_quantised_in_float64() -> None:
    """bfloat16 has 8 bits: in it, most of the 257 levels of this grid could not be told apart."""
    latents = torch.linspace(-2, 2, 4000).to(torch.bfloat16)[None, None].expand(1, 6, -1)
    tokens = resolve_bottleneck([([257] * 6, 1.0)], LEVELS).encode(latents)
    digits = torch.round((torch.tanh(latents.double()) + 1) * 128).long()
    assert torch.equal(tokens, (digits * 257 ** torch.arange(6)[:, None]).sum(dim=1, keepdim=True))


class TestDither:
    """The bottleneck of training, on one frame per item, so that there are many independent items."""

    items = 40_000

    def make(self, levels: tuple[int, ...], noise: float, rounding: float) -> tuple[Tensor, Tensor]:
        torch.manual_seed(4)
        latents = torch.randn(self.items, 6, 2)
        return torch.tanh(latents), dither(latents, levels, noise, rounding)

    def test_shares_are_those_asked_for(self) -> None:
        values, codes = self.make((17,), noise=0.5, rounding=0.3)
        on_grid = ((codes * 8 - (codes * 8).round()).abs() < 1e-4).flatten(1).all(dim=1)
        untouched = (codes == values).flatten(1).all(dim=1)
        assert on_grid.float().mean().item() == pytest.approx(0.3, abs=0.01)
        assert untouched.float().mean().item() == pytest.approx(0.2, abs=0.01)
        assert not (on_grid & untouched).any()

    @pytest.mark.parametrize("levels", [5, 6, 17])
    def test_noise_is_uniform_within_half_a_step_and_differs_per_element(self, levels: int) -> None:
        values, codes = self.make((levels,), noise=1.0, rounding=0.0)
        noise = (codes - values) * (levels - 1) / 2
        assert noise.abs().max().item() == pytest.approx(0.5, abs=1e-3)
        assert noise.mean().item() == pytest.approx(0, abs=0.005)
        assert noise.var().item() == pytest.approx(1 / 12, abs=0.002)
        first, second = noise[:, 0, 0], noise[:, 5, 1]
        assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.02
        assert codes.abs().max() > 1  # values beyond the grid are not clamped

    @pytest.mark.parametrize("levels", [5, 6, 17])
    def test_rounding_gives_the_grid_that_tokens_use(self, levels: int) -> None:
        values, codes = self.make((levels,), noise=0.0, rounding=1.0)
        quantizer = resolve_bottleneck([([levels] * 6, 1.0)], LEVELS)
        # Both squash for themselves; only ties could tell them apart.
        expected = quantizer.decode(quantizer.encode(torch.atanh(values.double())))
        assert ((codes - expected).abs() < 1e-5).float().mean() > 0.9999

    def test_levels_are_drawn_evenly_and_per_item(self) -> None:
        choices = (5, 9, 17)
        values, codes = self.make(choices, noise=0.0, rounding=1.0)
        fits = [
            ((codes + 1) * (levels - 1) / 2 - ((codes + 1) * (levels - 1) / 2).round()).abs().flatten(1).amax(1) < 1e-4
            for levels in choices
        ]
        # The coarser grids are part of the finer ones, so nearly all codes that fit them were drawn from them.
        assert fits[0].float().mean().item() == pytest.approx(1 / 3, abs=0.015)
        assert fits[1].float().mean().item() == pytest.approx(2 / 3, abs=0.015)
        assert fits[2].all()

    @pytest.mark.parametrize(("noise", "rounding"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
    def test_gradients_pass_straight_through(self, noise: float, rounding: float) -> None:
        latents = torch.randn(50, 6, 3, requires_grad=True)
        dither(latents, (5, 17), noise, rounding).sum().backward()
        torch.testing.assert_close(latents.grad, 1 - torch.tanh(latents.detach()).square())
