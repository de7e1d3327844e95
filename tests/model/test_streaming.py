"""A stream equals the whole recording: chunks of any size, every causal option, an hour; its state is small and safe.

Sums in another order differ by about 1e-6, so a digit may differ where its latent lies on a rounding tie. Each such
digit is shown to be one.
"""

import copy
import pickle
from collections.abc import Iterable

import pytest
import torch
from support.rounding_ties import count_ties
from support.tiny_models import VARIANTS, make_audio, make_model
from torch import Tensor

from modeling_taae import TaaeModel
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS
from modeling_taae.streaming_taae import StreamingState

CAUSAL = [name for name, options in VARIANTS.items() if options.get("causal")]
# One sample, primes around a frame, a frame, and several.
CHUNKS = {"a sample": 1, "a prime": 13, "another prime": 97, "a frame": None, "many frames": 501, "everything": 10_000}


def encode_stream(
    model: TaaeModel, chunks: Iterable[Tensor], bottleneck: str | None = None
) -> tuple[Tensor, Tensor, StreamingState]:
    """Tokens and latents of a stream of which these are the chunks, and its last state."""
    state, codes, latents = None, [], []
    for chunk in chunks:
        state = model.streaming_state(chunk.shape[0]) if state is None else state
        encoded = model.encode(chunk, bottleneck=bottleneck, state=state)
        assert encoded.audio_codes.shape[-1] == encoded.audio_codes_mask.shape[-1] == encoded.latents.shape[-1]
        state = encoded.state
        codes.append(encoded.audio_codes)
        latents.append(encoded.latents)
    encoded = model.encode(chunk[..., :0], bottleneck=bottleneck, state=state, final=True)
    codes, latents = [*codes, encoded.audio_codes], [*latents, encoded.latents]
    return torch.cat(codes, dim=-1), torch.cat(latents, dim=-1), encoded.state


def decode_stream(model: TaaeModel, chunks: Iterable[Tensor], bottleneck: str | None = None) -> Tensor:
    """Audio of a stream of tokens of which these are the chunks."""
    state, audio = None, []
    for chunk in chunks:
        state = model.streaming_state(chunk.shape[0]) if state is None else state
        decoded = model.decode(chunk, bottleneck=bottleneck, state=state)
        state = decoded.state
        audio.append(decoded.audio_values)
    return torch.cat(audio, dim=-1)


def assert_streams_as_a_whole(model: TaaeModel, audio: Tensor, size: int, bottleneck: str = "native") -> None:
    """`size` is that of the encoder's chunks, in samples; the decoder's have as many frames."""
    with torch.no_grad():
        whole = model.encode(audio, bottleneck=bottleneck)
        decoded = model.decode(whole.audio_codes, bottleneck=bottleneck).audio_values
    codes, latents, _ = encode_stream(model, audio.split(size, dim=-1), bottleneck)
    torch.testing.assert_close(latents, whole.latents, rtol=1e-5, atol=1e-5)
    assert count_ties(codes, whole.audio_codes, whole.latents, model.bottleneck(bottleneck)) <= 1
    streamed = decode_stream(model, whole.audio_codes.split(-(-size // model.config.hop_length), dim=-1), bottleneck)
    torch.testing.assert_close(streamed, decoded, rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", CAUSAL)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_of_any_size(variant: str, chunk: str) -> None:
    model = make_model(**VARIANTS[variant])
    hop = model.config.hop_length
    assert_streams_as_a_whole(model, make_audio(2, 23 * hop + 5), CHUNKS[chunk] or hop)


@pytest.mark.parametrize("window", [(0, 0), (1, 9), (12, 0), (100, 0)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_windows_and_attention_implementations(window: tuple[int, int], implementation: str) -> None:
    model = make_model(causal=True, sliding_window=window, encoder_depths=(2, 2), decoder_depths=(2, 2))
    model.set_attn_implementation(implementation)
    assert_streams_as_a_whole(model, make_audio(2, 40 * model.config.hop_length), size=155)


def test_flex_attention() -> None:
    model = make_model(causal=True, sliding_window=(9, 0))
    model.set_attn_implementation("flex_attention")
    assert_streams_as_a_whole(model, make_audio(2, 30 * model.config.hop_length), size=321)


def test_a_stream_needs_no_flash_attention() -> None:
    model, audio = make_model(causal=True), make_audio(1, 320)
    expected = model.encode(audio, state=model.streaming_state()).latents
    model.config._attn_implementation = "flash_attention_2"
    assert torch.equal(model.encode(audio, state=model.streaming_state()).latents, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_sizes": (8, 8, 24), "strides": (2, 1, 3), "encoder_depths": (0, 1, 2), "decoder_depths": (2, 0, 1)},
        {"hidden_sizes": (16, 16), "strides": (7, 1)},
        {"hidden_sizes": (16,), "strides": (1,), "encoder_depths": (0,), "decoder_depths": (0,)},
        {"use_dilated_conv": True, "strides": (3, 4)},
        {"use_conformer": True, "layer_scale_initial_scale": None},
    ],
    ids=["widths and depths", "stride one last", "no layers", "dilated", "conformer"],
)
def test_options(options: dict) -> None:
    model = make_model(causal=True, **options)
    assert_streams_as_a_whole(model, make_audio(1, 30 * model.config.hop_length + 1), size=101)


@pytest.mark.parametrize("bottleneck", BOTTLENECK_PRESETS)
def test_bottlenecks(bottleneck: str) -> None:
    assert_streams_as_a_whole(make_model(causal=True), make_audio(2, 700), size=41, bottleneck=bottleneck)


def test_ten_seconds_at_the_published_rates_frame_by_frame() -> None:
    model = make_model(causal=True, patch_size=320, hidden_sizes=(16, 16), strides=(1, 2), sliding_window=(63, 64))
    assert_streams_as_a_whole(model, make_audio(1, 160_000), size=640)


@pytest.mark.slow
def test_an_hour() -> None:
    """90,000 frames in chunks of all sizes up to a minute; 540,000 digits, of which a few may be ties."""
    options = {"patch_size": 320, "hidden_sizes": (8, 8), "strides": (1, 2), "sliding_window": (63, 64)}
    model = make_model(causal=True, **options)
    audio = make_audio(1, 3600 * 16_000)
    ends = torch.randint(1, audio.shape[-1], (120,), generator=torch.Generator().manual_seed(0)).unique().tolist()
    with torch.no_grad():
        whole = model.encode(audio, bottleneck="native")
        decoded = model.decode(whole.audio_codes, bottleneck="native").audio_values
    codes, latents, state = encode_stream(model, audio.tensor_split(ends, dim=-1), "native")
    torch.testing.assert_close(latents, whole.latents, rtol=0, atol=1e-5)
    assert count_ties(codes, whole.audio_codes, whole.latents, model.bottleneck("native")) <= 5
    streamed = decode_stream(model, whole.audio_codes.split(997, dim=-1), "native")
    torch.testing.assert_close(streamed, decoded, rtol=0, atol=1e-5)
    assert state.frames.tolist() == [90_000]


def tensors(state: StreamingState) -> list[Tensor]:
    return [state.samples, state.frames, *state.contexts.values()]


def stored_bytes(state: StreamingState) -> int:
    """Memory that a state holds on to, whatever its tensors are views of."""
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors(state))


class TestState:
    @pytest.mark.parametrize("variant", CAUSAL)
    def test_it_does_not_grow(self, variant: str) -> None:
        model = make_model(**VARIANTS[variant])
        hop = model.config.hop_length
        encoder = model.encode(make_audio(1, hop), state=model.streaming_state()).state
        decoder = model.decode(torch.zeros(1, 1, 1, dtype=torch.int64), state=model.streaming_state()).state
        sizes = stored_bytes(encoder), stored_bytes(decoder)
        for frames in (1, 60, 2):
            encoded = model.encode(make_audio(1, frames * hop), state=encoder)
            decoder = model.decode(encoded.audio_codes, state=decoder).state
            encoder = encoded.state
            assert (stored_bytes(encoder), stored_bytes(decoder)) == sizes
        assert encoder.samples.shape[-1] == 0
        assert model.encode(make_audio(1, hop - 1), state=encoder).state.samples.shape[-1] == hop - 1

    def test_its_size_is_that_of_what_the_modules_look_back_on(self) -> None:
        model = make_model(causal=True, hidden_sizes=(64, 64), head_dim=32, sliding_window=(63, 64))
        state = model.encode(make_audio(1, 320), state=model.streaming_state()).state
        keys_and_values = 2 * 63 * 64
        convolutions = 6 * 8 + 2 * (2 * 64) + 2 * 64  # the first, two that halve the rate, the last
        assert stored_bytes(state) == 4 * (2 * keys_and_values + convolutions) + 8

    def test_a_call_leaves_the_state_that_it_was_given_as_it_was(self) -> None:
        model = make_model(causal=True)
        state = model.encode(make_audio(2, 105), state=model.streaming_state(2)).state
        before = copy.deepcopy(state)
        first = model.encode(make_audio(2, 99, seed=1), state=state)
        assert state.method == before.method and state.contexts.keys() == before.contexts.keys()
        assert all(torch.equal(now, then) for now, then in zip(tensors(state), tensors(before), strict=True))
        second = model.encode(make_audio(2, 99, seed=1), state=state)
        assert torch.equal(first.latents, second.latents)

    def test_it_survives_pickling_and_moving(self) -> None:
        model = make_model(causal=True)
        state = model.encode(make_audio(1, 105), state=model.streaming_state()).state
        again = pickle.loads(pickle.dumps(state)).to("cpu")
        chunk = make_audio(1, 99, seed=1)
        assert torch.equal(model.encode(chunk, state=state).latents, model.encode(chunk, state=again).latents)
        moved = state.to("meta")
        assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
        assert {tensor.device.type for tensor in tensors(state)} == {"cpu"}

    def test_it_holds_no_gradient(self) -> None:
        model = make_model(causal=True)
        encoded = model.encode(make_audio(1, 105).requires_grad_(), state=model.streaming_state())
        assert not any(tensor.requires_grad for tensor in [encoded.latents, *tensors(encoded.state)])

    def test_it_works_in_inference_mode_and_out_of_it(self) -> None:
        model = make_model(causal=True)
        with torch.inference_mode():
            state = model.encode(make_audio(2, 64), state=model.streaming_state(2)).state
        state.reset(torch.tensor([True, False]))
        assert model.encode(make_audio(2, 64), state=state).latents.isfinite().all()


class TestReset:
    def test_a_stream_starts_anew_beside_one_that_goes_on(self) -> None:
        model = make_model(causal=True)
        first, second = make_audio(2, 320), make_audio(2, 320, seed=1)
        state = model.encode(first, state=model.streaming_state(2)).state
        assert state.reset(torch.tensor([False, True])) is state
        assert state.frames.tolist() == [10, 0]
        encoded = model.encode(second, state=state)
        assert encoded.state.frames.tolist() == [20, 10]
        with torch.no_grad():
            gone_on = model.encode(torch.cat([first, second], dim=-1)[:1]).latents[..., 10:]
            anew = model.encode(second[1:]).latents
        torch.testing.assert_close(encoded.latents, torch.cat([gone_on, anew]), rtol=1e-5, atol=1e-5)

    def test_a_decoder_starts_anew(self) -> None:
        model = make_model(causal=True)
        codes = torch.randint(0, 46_656, (2, 1, 9), generator=torch.Generator().manual_seed(3))
        state = model.decode(codes, state=model.streaming_state(2)).state.reset(torch.tensor([1, 0]))
        decoded = model.decode(codes, state=state).audio_values
        with torch.no_grad():
            anew = model.decode(codes[:1]).audio_values
            gone_on = model.decode(torch.cat([codes, codes], dim=-1)[1:]).audio_values[..., -anew.shape[-1] :]
        torch.testing.assert_close(decoded, torch.cat([anew, gone_on]), rtol=0, atol=2e-6)

    def test_another_stream_of_the_same_past_is_not_touched(self) -> None:
        model = make_model(causal=True)
        state = model.encode(make_audio(2, 320), state=model.streaming_state(2)).state
        waiting = model.encode(make_audio(2, 1), state=state).state  # shares the contexts
        state.reset()
        assert waiting.frames.tolist() == [10, 10] and all(context.any() for context in waiting.contexts.values())

    def test_within_a_frame_all_streams_can_start_anew_but_not_some(self) -> None:
        model = make_model(causal=True)
        state = model.encode(make_audio(2, 37), state=model.streaming_state(2)).state
        with pytest.raises(ValueError, match="5 samples wait .* reset some streams between frames, or all of them"):
            state.reset(torch.tensor([True, False]))
        assert state.frames.tolist() == [1, 1]
        state.reset(torch.tensor([False, False]))
        assert state.samples.shape[-1] == 5
        state.reset()
        assert state.samples.shape[-1] == 0 and state.frames.tolist() == [0, 0]

    def test_a_mask_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"mask of 2 streams is \(batch,\), not \(3,\)"):
            make_model(causal=True).streaming_state(2).reset(torch.ones(3))


class TestEnd:
    def test_the_last_frame_is_made_whole_with_zeros(self) -> None:
        model, audio = make_model(causal=True), make_audio(1, 75)
        encoded = model.encode(audio, state=model.streaming_state(), final=True)
        with torch.no_grad():
            assert torch.equal(encoded.audio_codes, model.encode(audio).audio_codes)
        assert encoded.audio_codes.shape[-1] == 3 and encoded.state.samples.shape[-1] == 0

    def test_there_is_no_frame_more_at_a_frame_boundary(self) -> None:
        model = make_model(causal=True)
        state = model.encode(make_audio(1, 64), state=model.streaming_state()).state
        encoded = model.encode(torch.zeros(1, 1, 0), bottleneck="4x729_1000bps", state=state, final=True)
        assert encoded.audio_codes.shape == (1, 4, 0) and encoded.audio_codes.dtype == torch.int64
        assert encoded.audio_codes_mask.shape == (1, 0) and encoded.latents.shape == (1, 6, 0)

    def test_nothing_at_all(self) -> None:
        model = make_model(causal=True)
        encoded = model.encode(torch.zeros(3, 1, 0), state=model.streaming_state(3), final=True)
        assert encoded.audio_codes.shape == (3, 1, 0)
        decoded = model.decode(encoded.audio_codes, state=model.streaming_state(3))
        assert decoded.audio_values.shape == (3, 1, 0) and decoded.state.method == "decode"

    def test_continuous_latents(self) -> None:
        model = make_model(causal=True)
        latents = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(2))
        first = model.decode(latents=latents[..., :4], state=model.streaming_state())
        second = model.decode(latents=latents[..., 4:], state=first.state)
        with torch.no_grad():
            expected = model.decode(latents=latents).audio_values
        streamed = torch.cat([first.audio_values, second.audio_values], dim=-1)
        torch.testing.assert_close(streamed, expected, rtol=0, atol=2e-6)


class TestErrors:
    def test_a_model_that_looks_ahead(self) -> None:
        with pytest.raises(ValueError, match="Only a causal model can stream"):
            make_model().streaming_state()

    def test_no_streams(self) -> None:
        with pytest.raises(ValueError, match="batch size of at least 1, not 0"):
            make_model(causal=True).streaming_state(0)

    def test_a_state_of_another_config(self) -> None:
        other = make_model(causal=True, strides=(2, 3), sliding_window=7)
        with pytest.raises(ValueError, match=r"a model with other strides, sliding_window; .* streaming_state\(\)"):
            make_model(causal=True).encode(make_audio(1, 5), state=other.streaming_state())

    def test_a_config_that_was_saved_and_loaded_is_the_same(self, tmp_path) -> None:
        model = make_model(causal=True)
        model.save_pretrained(tmp_path)
        encoded = TaaeModel.from_pretrained(tmp_path).encode(make_audio(1, 64), state=model.streaming_state())
        assert encoded.audio_codes.shape[-1] == 2

    def test_another_batch_size(self) -> None:
        model = make_model(causal=True)
        state = model.encode(make_audio(2, 32), state=model.streaming_state(2)).state
        with pytest.raises(ValueError, match="of 2 streams, and the chunk has 3 items"):
            model.encode(make_audio(3, 32), state=state)

    @pytest.mark.parametrize("samples", [1, 32])
    def test_the_encoder_s_state_for_the_decoder(self, samples: int) -> None:
        model = make_model(causal=True)
        state = model.encode(make_audio(1, samples), state=model.streaming_state()).state
        with pytest.raises(ValueError, match="one of encode, not of decode; keep one for each"):
            model.decode(torch.zeros(1, 1, 1, dtype=torch.int64), state=state)

    def test_the_decoder_s_state_for_the_encoder(self) -> None:
        model = make_model(causal=True)
        state = model.decode(torch.zeros(1, 1, 1, dtype=torch.int64), state=model.streaming_state()).state
        with pytest.raises(ValueError, match="one of decode, not of encode; keep one for each"):
            model.encode(make_audio(1, 1), state=state)

    def test_masks(self) -> None:
        model = make_model(causal=True)
        with pytest.raises(ValueError, match="no padding_mask"):
            model.encode(make_audio(1, 32), torch.arange(32)[None] < 20, state=model.streaming_state())
        with pytest.raises(ValueError, match="no audio_codes_mask"):
            codes = torch.zeros(1, 1, 1, dtype=torch.int64)
            model.decode(codes, torch.zeros(1, 1), state=model.streaming_state())
        # Ones are no padding: what an extractor and `encode` return goes through as it is.
        encoded = model.encode(make_audio(1, 32), torch.ones(1, 32), state=model.streaming_state())
        model.decode(encoded.audio_codes, encoded.audio_codes_mask, state=model.streaming_state())

    @pytest.mark.parametrize("shape", [(1, 2, 32), (1, 32), (32,)])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        model = make_model(causal=True)
        with pytest.raises(ValueError, match=r"chunk of a stream must be \(batch, 1, samples\)"):
            model.encode(torch.zeros(shape), state=model.streaming_state())

    def test_a_state_on_another_device(self) -> None:
        model = make_model(causal=True)
        with pytest.raises(ValueError, match="is on meta, the model on cpu"):
            model.encode(make_audio(1, 32), state=model.streaming_state().to("meta"))

    def test_a_state_of_a_model_in_another_precision(self) -> None:
        model = make_model(causal=True)
        state = model.encode(make_audio(1, 32), state=model.streaming_state()).state
        with pytest.raises(ValueError, match="in torch.float32, and this model is in torch.bfloat16"):
            model.to(torch.bfloat16).encode(make_audio(1, 32), state=state)

    def test_a_chunk_that_is_not_finite_can_be_left_out(self) -> None:
        model, (first, second) = make_model(causal=True), make_audio(1, 128).split(64, dim=-1)
        state = model.encode(first, state=model.streaming_state()).state
        with pytest.raises(ValueError, match="are NaN from frame 0 on"):
            model.encode(second * torch.nan, state=state)
        expected, _, _ = encode_stream(model, (first, second))
        assert torch.equal(model.encode(second, state=state).audio_codes, expected[..., -2:])

    def test_an_end_without_a_stream(self) -> None:
        with pytest.raises(ValueError, match="final=True ends a stream"):
            make_model(causal=True).encode(make_audio(1, 32), final=True)
