"""A padded batch equals its items alone: lengths from one sample to a minute, garbage in the padding, every option.

Sums in another order differ by about 1e-6, so a digit may differ where its latent lies on a rounding tie. Each such
digit is shown to be one.
"""

import pytest
import torch
from support.rounding_ties import count_ties
from support.tiny_models import VARIANTS, make_audio, make_model
from torch import Tensor

from modeling_taae import TaaeConfig, TaaeModel
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS

GARBAGE = {"noise": 3.0, "NaN": float("nan"), "infinity": float("inf")}


def pad(items: list[Tensor], garbage: float) -> tuple[Tensor, Tensor]:
    """A batch of (samples,) items with `garbage` beyond their ends, and its padding mask."""
    longest = max(map(len, items))
    batch, mask = torch.full((len(items), 1, longest), garbage), torch.zeros(len(items), longest, dtype=torch.int64)
    for row, item in enumerate(items):
        batch[row, 0, : len(item)], mask[row, : len(item)] = item, 1
    return batch, mask


def assert_encodes_as_alone(model: TaaeModel, lengths: list[int], garbage: float, bottleneck: str = "native") -> int:
    items = [make_audio(1, length, seed)[0, 0] for seed, length in enumerate(lengths)]
    batch, mask = pad(items, garbage)
    quantizer, ties = model.bottleneck(bottleneck), 0
    with torch.no_grad():
        together = model.encode(batch, mask, bottleneck=bottleneck)
    assert together.audio_codes_mask.sum(dim=1).tolist() == [-(-n // model.config.hop_length) for n in lengths]
    for row, item in enumerate(items):
        with torch.no_grad():
            alone = model.encode(item[None, None], bottleneck=bottleneck)
        frames = alone.latents.shape[-1]
        assert together.audio_codes_mask[row].tolist() == [1] * frames + [0] * (together.latents.shape[-1] - frames)
        torch.testing.assert_close(together.latents[row : row + 1, :, :frames], alone.latents, rtol=1e-5, atol=1e-5)
        assert not together.latents[row, :, frames:].any()
        ties += count_ties(together.audio_codes[row : row + 1, :, :frames], alone.audio_codes, alone.latents, quantizer)
    return ties


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_encoding(variant: str, garbage: str) -> None:
    model = make_model(**VARIANTS[variant])
    hop = model.config.hop_length
    lengths = [23 * hop + 1, 12 * hop, 12 * hop - 1, hop + 1, hop, 1]
    assert assert_encodes_as_alone(model, lengths, GARBAGE[garbage]) <= 1


@pytest.mark.parametrize("bottleneck", BOTTLENECK_PRESETS)
def test_encoding_with_each_preset(bottleneck: str) -> None:
    assert assert_encodes_as_alone(make_model(), [700, 433, 32, 5], GARBAGE["noise"], bottleneck) <= 1


@pytest.mark.parametrize("order", [1, -1])
def test_encoding_one_sample_beside_a_minute(order: int) -> None:
    """At the published rates and window; 36,000 digits, of which one in some hundred thousand may be a tie."""
    rates = {"patch_size": 320, "hidden_sizes": (16, 16), "strides": (1, 2), "sliding_window": (63, 64)}
    lengths = [1, 639, 641, 16_000, 100_000, 960_000][::order]
    assert assert_encodes_as_alone(make_model(**rates), lengths, GARBAGE["NaN"]) <= 2


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_encoding_with_other_attention_implementations(implementation: str) -> None:
    model = make_model()
    model.set_attn_implementation(implementation)
    assert assert_encodes_as_alone(model, [700, 433, 32, 5], GARBAGE["NaN"]) <= 1


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_a_row_without_audio(implementation: str) -> None:
    """It stands in for a clip where a batch must have its usual shape."""
    model = make_model()
    model.set_attn_implementation(implementation)
    batch, mask = pad([make_audio(1, length, length)[0, 0] for length in (700, 5)], GARBAGE["NaN"])
    with torch.no_grad():
        expected = model.encode(batch, mask)
        longer = model.encode(torch.cat([batch, batch[:1]]), torch.cat([mask, torch.zeros_like(mask[:1])]))
    torch.testing.assert_close(longer.latents[:2], expected.latents, rtol=1e-5, atol=1e-5)
    assert not longer.latents[2].any() and not longer.audio_codes_mask[2].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding(variant: str) -> None:
    model = make_model(**VARIANTS[variant])
    frames = [19, 8, 1]
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 46_656, (3, 1, 19), generator=generator)
    mask = torch.arange(19) < torch.tensor(frames)[:, None]
    codes[~mask[:, None]] = -5
    with torch.no_grad():
        together = model.decode(codes, audio_codes_mask=mask.long()).audio_values
        for row, length in enumerate(frames):
            alone = model.decode(codes[row : row + 1, :, :length]).audio_values
            samples = alone.shape[-1]
            torch.testing.assert_close(together[row : row + 1, :, :samples], alone, rtol=0, atol=2e-6)
            assert not together[row, :, samples:].any()


@pytest.mark.parametrize("variant", ["plain", "odd strides", "everything"])
def test_decoding_latents(variant: str) -> None:
    model = make_model(**VARIANTS[variant])
    latents = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    with torch.no_grad():
        alone = model.decode(latents=latents[1:, :, :4]).audio_values
        latents[1, :, 4:] = torch.nan
        together = model.decode(latents=latents, audio_codes_mask=mask).audio_values
    torch.testing.assert_close(together[1:, :, : alone.shape[-1]], alone, rtol=0, atol=2e-6)
    assert not together[1, :, alone.shape[-1] :].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_cuts_to_the_input_and_is_silent_in_the_padding(variant: str) -> None:
    model = make_model(**VARIANTS[variant])
    items = [make_audio(1, length, length)[0, 0] for length in (10 * model.config.hop_length - 3, 77, 1)]
    batch, mask = pad(items, GARBAGE["NaN"])
    with torch.no_grad():
        output = model(batch, mask, bottleneck="native")
    # Odd strides that are not causal decode to fewer samples than frames × hop.
    whole = model.config.causal or all(stride % 2 == 0 or stride == 1 for stride in model.config.strides)
    assert output.audio_values.shape == batch.shape or not whole
    for row, item in enumerate(items):
        with torch.no_grad():
            alone = model(item[None, None], bottleneck="native").audio_values
        assert alone.shape[-1] == len(item) or not whole
        torch.testing.assert_close(output.audio_values[row, :, : alone.shape[-1]], alone[0], rtol=0, atol=2e-6)
        assert not output.audio_values[row, :, len(item) :].any()


def test_a_mask_of_ones_changes_nothing() -> None:
    model, audio = make_model(), make_audio(2, 333)
    with torch.no_grad():
        expected, output = model(audio), model(audio, torch.ones(2, 333))
    torch.testing.assert_close(output.latents, expected.latents, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.audio_values, expected.audio_values, rtol=0, atol=1e-6)
    assert torch.equal(output.audio_codes_mask, expected.audio_codes_mask)


def test_zeros_up_to_the_hop_are_audio_and_zeros_beyond_are_not() -> None:
    """What the public implementation does with the former, and what its lack of masks does to the latter."""
    model, hop = make_model(), make_model().config.hop_length
    audio = make_audio(1, 5 * hop - 7)
    with torch.no_grad():
        cut = model.encode(audio).latents
        padded = model.encode(torch.nn.functional.pad(audio, (0, 7))).latents
        longer = model.encode(torch.nn.functional.pad(audio, (0, 7 + 2 * hop))).latents
    assert torch.equal(cut, padded)
    assert (longer[..., :5] - cut).abs().max() > 1e-2


def test_tokens_do_not_depend_on_the_batch_at_the_published_shape() -> None:
    """Two heads of the published size: widths at which matrix products block differently for other batch sizes."""
    config = TaaeConfig(hidden_sizes=(256, 256), encoder_depths=(1, 1), decoder_depths=(0, 0))
    torch.manual_seed(3)
    model = TaaeModel(config).eval()
    assert assert_encodes_as_alone(model, [32_000, 20_001, 640], GARBAGE["NaN"]) <= 1
