"""Long audio is processed layer by layer in pieces of time: equal to one pass, in little more than one copy of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.rounding_ties import count_ties
from support.tiny_models import VARIANTS, make_audio, make_model

from modeling_taae import TaaeModel, convolution_taae

ROOT = Path(__file__).resolve().parents[2]
WHOLE = 1 << 40


def assert_pieces_give_the_whole(model: TaaeModel, monkeypatch: pytest.MonkeyPatch, piece: int, masked: bool) -> None:
    hop = model.config.hop_length
    audio = make_audio(3, 61 * hop - 3)
    mask = torch.arange(audio.shape[-1]) < torch.tensor([[audio.shape[-1]], [30 * hop + 1], [1]]) if masked else None
    outputs = []
    for size in (WHOLE, piece):
        monkeypatch.setattr(convolution_taae, "CHUNK_STEPS", size)
        with torch.no_grad():
            encoded = model.encode(audio, mask, bottleneck="native")
            frames = encoded.audio_codes_mask if masked else None
            tokens = outputs[0][0].audio_codes if outputs else encoded.audio_codes
            outputs.append((encoded, model.decode(tokens, frames, bottleneck="native").audio_values))
    (whole, audio_of_whole), (pieces, audio_of_pieces) = outputs
    torch.testing.assert_close(pieces.latents, whole.latents, rtol=1e-5, atol=1e-5)
    assert count_ties(pieces.audio_codes, whole.audio_codes, whole.latents, model.bottleneck("native")) <= 1
    torch.testing.assert_close(audio_of_pieces, audio_of_whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("piece", "masked"), [(16, True), (37, False)])
def test_pieces_give_the_whole(variant: str, piece: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_pieces_give_the_whole(make_model(**VARIANTS[variant]), monkeypatch, piece, masked)


@pytest.mark.parametrize("piece", [1, 5, 64])
@pytest.mark.parametrize("window", [(0, 0), (20, 3), (0, 9)])
def test_pieces_shorter_than_the_window(window: tuple[int, int], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    depths = {"encoder_depths": (2, 2), "decoder_depths": (2, 2)}
    assert_pieces_give_the_whole(make_model(sliding_window=window, **depths), monkeypatch, piece, masked=True)


def test_with_gradients_it_is_processed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_taae, "CHUNK_STEPS", 4)
    model = make_model()
    model.encode(make_audio(1, 640)).latents.sum().backward()
    assert all(parameter.grad.any() for parameter in model.encoder.parameters())


@pytest.mark.slow
def test_memory_is_one_copy_of_the_widest_activations_and_the_next() -> None:
    """A transformer layer works in place, where in one pass it would make a dozen copies; a convolution makes one."""
    script = """
import resource
import torch
from modeling_taae import TaaeConfig
from modeling_taae.convolution_taae import TaaeConv1d
from modeling_taae.transformer_taae import TaaeTransformer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
config = TaaeConfig(hidden_sizes=(64, 64), head_dim=32)
config._attn_implementation = "sdpa"
transformer, convolution = TaaeTransformer(config, 64, 1), TaaeConv1d(64, 64, 7)
with torch.no_grad():
    for steps in (1 << 13, 1 << 17):
        before = peak()
        convolution(transformer(torch.randn(1, 64, steps)))
print((peak() - before) / (4 * 64 * steps))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 2.3
