"""Attention over the window: equal to a whole T × T matrix, in linear memory, at any position, however implemented."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import stable_codec_reference as reference
from support.tiny_models import VARIANTS, make_audio, make_model
from torch import Tensor

from modeling_taae import TaaeConfig, attention_taae
from modeling_taae.attention_taae import TaaeAttention, WindowBlocks, apply_rotary, rotary_embedding

ROOT = Path(__file__).resolve().parents[2]
WINDOWS = [(3, 4), (0, 0), (5, 0), (0, 2), (1, 7), (100, 90)]
IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")


def make_attention(width: int, head_dim: int, window: tuple[int, int], implementation: str = "sdpa") -> TaaeAttention:
    config = TaaeConfig(hidden_sizes=(width,), strides=(1,), encoder_depths=(1,), decoder_depths=(1,))
    config.head_dim, config.sliding_window, config._attn_implementation = head_dim, window, implementation
    attention = TaaeAttention(config, width)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in attention.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / width**0.5 if parameter.ndim > 1 else 1 + 0.3 * noise)
    return attention.eval()


def attend(attention: TaaeAttention, states: Tensor, lengths: Tensor | None = None) -> Tensor:
    positions = rotary_embedding(states.shape[1], attention.head_dim // 2, 10_000.0, states.device)
    implementation = attention.config._attn_implementation
    blocks = None
    if implementation != "flash_attention_2":
        blocks = WindowBlocks(attention.window, states, lengths, implementation)
    with torch.no_grad():
        return attention(states, positions, blocks, lengths)


def attend_to_everything(attention: TaaeAttention, states: Tensor) -> Tensor:
    """The same with a T × T mask, by the independent network."""
    names = {"qkv_proj": "to_qkv", "o_proj": "to_out"}
    state = {}
    for name, tensor in attention.state_dict().items():
        module, parameter = name.split(".")
        state[f"self_attn.{names.get(module, module)}.{parameter}"] = tensor.double()
    window, head_dim = attention.window, attention.head_dim
    return reference.attention(state, "self_attn", states.double(), window, head_dim).float()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", WINDOWS)
def test_each_window_at_lengths_around_its_blocks(window: tuple[int, int], implementation: str) -> None:
    attention = make_attention(16, 8, window, implementation)
    block = sum(window) + 1
    lengths = {1, 2, block - 1, block, block + 1, 2 * block - 1, 2 * block, 2 * block + 1, 3 * block + 2}
    for steps in sorted(lengths - {0})[:: 1 if implementation == "sdpa" else 3]:
        states = torch.randn(2, steps, 16, generator=torch.Generator().manual_seed(steps))
        expected = attend_to_everything(attention, states)
        torch.testing.assert_close(attend(attention, states), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("width", "head_dim"), [(16, 16), (24, 8), (64, 4), (12, 128)])
def test_batch_sizes_and_head_counts(batch: int, width: int, head_dim: int) -> None:
    attention = make_attention(width, head_dim, window=(3, 4))
    states = torch.randn(batch, 21, width, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(attend(attention, states), attend_to_everything(attention, states), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_item_of_a_batch_attends_as_it_does_alone(implementation: str) -> None:
    attention = make_attention(16, 8, (3, 4), implementation)
    lengths = torch.tensor([30, 17, 8, 1])
    states = torch.randn(4, 30, 16, generator=torch.Generator().manual_seed(8))
    together = attend(attention, states, lengths)
    assert together.isfinite().all()
    for item, length in enumerate(lengths):
        alone = attend_to_everything(attention, states[item : item + 1, :length])
        torch.testing.assert_close(together[item : item + 1, :length], alone, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("variant", ["plain", "causal", "odd strides"])
def test_implementations_agree_in_the_whole_model(variant: str, implementation: str) -> None:
    model = make_model(**VARIANTS[variant])
    hop = model.config.hop_length
    audio, mask = make_audio(2, 40 * hop), torch.ones(2, 40 * hop)
    mask[1, 13 * hop + 1 :] = 0
    with torch.no_grad():
        expected = model(audio, mask)
        model.set_attn_implementation(implementation)
        output = model(audio, mask)
    torch.testing.assert_close(output.latents, expected.latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.audio_values, expected.audio_values, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_memory_grows_linearly_with_length() -> None:
    """An hour at 25 Hz is 90,000 steps: a T × T mask would take 8 GB as booleans, and scores 32 GB."""
    script = """
import re
import torch
from modeling_taae import TaaeConfig, TaaeModel

def peak():  # of this process alone: what getrusage tells begins with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20

torch.set_num_threads(1)
config = TaaeConfig(patch_size=640, hidden_sizes=(8,), strides=(1,), encoder_depths=(1,), decoder_depths=(1,))
model = TaaeModel(config).eval()
before = peak()
with torch.no_grad():
    output = model(torch.randn(1, 1, 3600 * 16_000))
assert output.audio_values.isfinite().all()
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.2 < float(run.stdout) < 3  # the audio itself takes 0.21


def test_rotary_positions_are_relative_after_half_an_hour() -> None:
    """Angles in float32 would be off by 5e-3 there, and scores with them."""
    shift, steps, dim = 90_000, 64, 64
    cosines, sines = rotary_embedding(shift + steps, dim, 10_000.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(9)
    query, key = torch.randn(2, 1, 1, steps, 2 * dim, generator=generator)

    def scores(start: int) -> Tensor:
        window = slice(start, start + steps)
        return (
            apply_rotary(query, cosines[window], sines[window]) @ apply_rotary(key, cosines[window], sines[window]).mT
        )

    torch.testing.assert_close(scores(shift), scores(0), rtol=0, atol=3e-5)
    angles = torch.arange(shift, shift + steps)[:, None].double() / 10_000.0 ** (torch.arange(0, dim, 2).double() / dim)
    torch.testing.assert_close(cosines[shift:, : dim // 2].double(), angles.cos(), rtol=0, atol=1e-7)
    torch.testing.assert_close(sines[shift:, dim // 2 :].double(), angles.sin(), rtol=0, atol=1e-7)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """What FlashAttention documents for its function of this signature, said slowly: (total steps, heads, head_dim).

    Sequences lie one after the other and end where `cu_seqlens` say; query i sees keys i - left to i + right.
    """
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert cu_seqlens_q[-1] == len(query) == len(key) == len(value)
    assert cu_seqlens_q.diff().max() <= max_seqlen_q == max_seqlen_k
    output = torch.full_like(query, math.nan)
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        own = slice(start, end)
        q, k, v = (states[own].transpose(0, 1).float() for states in (query, key, value))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~reference.window_mask(end - start, window_size), -math.inf)
        output[own] = (scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype)
    return output


class TestFlashAttention:
    """How sequences are packed for FlashAttention. Its kernel needs a GPU: a slow function stands in for it here."""

    @pytest.fixture(autouse=True)
    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention_taae, "flash_attn_varlen_func", varlen_attention)

    @pytest.mark.parametrize("window", [(3, 4), (5, 0)])
    @pytest.mark.parametrize("lengths", [None, (20, 20, 20), (20, 7, 1)])
    def test_packing_gives_what_blocks_give(self, window: tuple[int, int], lengths: tuple | None) -> None:
        states = torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(10)).to(torch.bfloat16)
        lengths = None if lengths is None else torch.tensor(lengths)
        flash = make_attention(16, 8, window, "flash_attention_2").to(torch.bfloat16)
        sdpa = make_attention(16, 8, window).to(torch.bfloat16)
        output, expected = attend(flash, states, lengths), attend(sdpa, states, lengths)
        real = torch.ones(3, 20, dtype=bool) if lengths is None else torch.arange(20) < lengths[:, None]
        torch.testing.assert_close(output[real], expected[real], rtol=0.05, atol=0.05)
        assert not output[~real].any()
        # A window off by one would show: it moves the output by far more than bfloat16 does.
        wider = make_attention(16, 8, (window[0], window[1] + 1)).to(torch.bfloat16)
        assert (attend(wider, states, lengths)[real] - expected[real]).abs().max() > 0.2

    def test_queries_and_keys_that_autocast_leaves_in_float32(self) -> None:
        """As on CUDA, where layer norms are computed and left in float32."""
        states = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(11))
        flash = make_attention(16, 8, (3, 4), "flash_attention_2")
        for norm in (flash.q_norm, flash.k_norm):
            norm.register_forward_hook(lambda module, inputs, output: output.float())
        with torch.autocast("cpu", torch.bfloat16):
            assert attend(flash, states, None).dtype == torch.bfloat16

    def test_the_whole_model_takes_that_path(self) -> None:
        model = make_model().to(torch.bfloat16)
        audio, mask = make_audio(2, 640), torch.ones(2, 640)
        mask[1, 200:] = 0
        with torch.no_grad():
            expected = model.encode(audio, mask).latents
            model.config._attn_implementation = "flash_attention_2"
            latents = model.encode(audio, mask).latents
        assert latents.isfinite().all()
        assert (latents - expected).abs().mean() < 0.05 * expected.abs().mean()

    def test_float32_is_refused_instead_of_rounded(self) -> None:
        model = make_model()
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match='float32; load the model with dtype=torch.bfloat16, or with .*"sdpa"'):
            model.encode(make_audio(1, 64))


@pytest.mark.skipif(attention_taae.flash_attn_varlen_func is not None, reason="flash_attn is installed here")
class TestWithoutFlashAttention:
    def test_asking_for_it_is_an_error_that_names_the_package(self) -> None:
        with pytest.raises(ImportError, match="FlashAttention2.*installed"):
            make_model().set_attn_implementation("flash_attention_2")

    def test_other_sources_of_it_are_an_error_too(self) -> None:
        """Transformers may put a kernel of the Hub in its place, which takes no window such as ours."""
        model = make_model().to(torch.bfloat16)
        model.config._attn_implementation = "kernels-community/flash-attn2"
        with pytest.raises(ImportError, match='needs the package flash_attn.*"sdpa"'):
            model.encode(make_audio(1, 64))


def test_an_unknown_implementation_is_an_error() -> None:
    with pytest.raises(ValueError, match="not supported"):
        make_model().set_attn_implementation("quick_attention")
