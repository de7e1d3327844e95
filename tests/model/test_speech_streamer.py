"""Speech that sounds while it is generated: what a streamer yields, against the whole sequence decoded at once."""

import numpy as np
import pytest
import torch
from support.tiny_language_models import byte_tokenizer, language_model
from support.tiny_models import make_audio, make_model

from modeling_taae import TaaeFeatureExtractor, TaaeProcessor
from modeling_taae.speech_streamer_taae import TaaeStreamer


def make_processor(causal: bool, bottleneck: str = "4x729_1000bps", layout: str = "interleaved") -> TaaeProcessor:
    codec = make_model(causal=causal)
    extractor = TaaeFeatureExtractor(hop_length=codec.config.hop_length, target_loudness=None)
    return TaaeProcessor(extractor, byte_tokenizer(), codec, bottleneck=bottleneck, layout=layout)


def speech_codes(processor: TaaeProcessor, frames: int, seed: int = 0) -> torch.Tensor:
    """Codes that audio has, (tokens_per_frame, frames)."""
    audio = make_audio(1, frames * processor.audio_tokenizer.config.hop_length, seed)
    with torch.no_grad():
        return processor.audio_tokenizer.encode(audio, bottleneck=processor.bottleneck).audio_codes[0]


def streamed(streamer: TaaeStreamer, ids: torch.Tensor, prompt: int) -> list[np.ndarray]:
    """The waveforms of ids that come one by one behind a prompt of so many."""
    streamer.put(ids[None, :prompt])
    for index in ids[prompt:]:
        streamer.put(index[None])
    streamer.end()
    return list(streamer)


class TestWaveforms:
    @pytest.mark.parametrize("layout", ["interleaved", "delay"])
    def test_causal_frames_come_at_once_and_are_those_of_the_whole(self, layout):
        processor = make_processor(True, layout=layout)
        codes = speech_codes(processor, 12)
        (whole,) = processor.decode_speech([codes])
        ids = processor.vocabulary.span(codes)
        heard = streamed(TaaeStreamer(processor), ids, 1)
        assert len(heard) == 12
        np.testing.assert_allclose(np.concatenate(heard), whole, atol=1e-5)

    def test_causal_speech_of_the_prompt_is_gone_on_from(self):
        processor = make_processor(True)
        codes = speech_codes(processor, 9)
        (whole,) = processor.decode_speech([codes])
        ids, hop = processor.vocabulary.span(codes), processor.audio_tokenizer.config.hop_length
        heard = np.concatenate(streamed(TaaeStreamer(processor), ids, 1 + 4 * 4))
        np.testing.assert_allclose(heard, whole[4 * hop :], atol=1e-5)
        told = np.concatenate(streamed(TaaeStreamer(processor, skip_prompt=False), ids, 1 + 4 * 4))
        np.testing.assert_allclose(told, whole, atol=1e-5)

    def test_chunks_of_others_equal_the_whole_with_all_of_the_context(self):
        processor = make_processor(False)
        codes = speech_codes(processor, 40)
        (whole,) = processor.decode_speech([codes])
        ids = processor.vocabulary.span(codes)
        heard = streamed(TaaeStreamer(processor, chunk_frames=7, context_frames=(40, 40)), ids, 1)
        np.testing.assert_allclose(np.concatenate(heard), whole, atol=1e-5)
        near = streamed(TaaeStreamer(processor, chunk_frames=7, context_frames=(20, 10)), ids, 1)
        assert [len(waveform) for waveform in near[:3]] == [7 * processor.audio_tokenizer.config.hop_length] * 3
        np.testing.assert_allclose(np.concatenate(near), whole, atol=0.05)

    def test_several_spans_with_text_between_and_one_that_is_cut(self):
        processor = make_processor(True)
        one, two = speech_codes(processor, 3), speech_codes(processor, 5, seed=1)
        text = processor.tokenizer("and", return_tensors="pt")["input_ids"][0]
        cut = processor.vocabulary.span(two)[:-2]  # without the end, and without the last frame's last token
        ids = torch.cat([text, processor.vocabulary.span(one), text, cut])
        heard = np.concatenate(streamed(TaaeStreamer(processor), ids, len(text)))
        expected = processor.decode_speech([one, two[:, :4]])
        np.testing.assert_allclose(heard, np.concatenate(expected), atol=1e-5)

    def test_several_sequences_are_refused(self):
        with pytest.raises(ValueError, match="one sequence at a time, not 2"):
            TaaeStreamer(make_processor(True)).put(torch.zeros(2, 3, dtype=torch.int64))
        processor = make_processor(True)
        processor.audio_tokenizer = None
        with pytest.raises(ValueError, match="no codec"):
            TaaeStreamer(processor)


class TestGeneration:
    @pytest.fixture(params=[True, False], ids=["causal", "not causal"])
    def speaker(self, request) -> tuple:
        processor = make_processor(request.param)
        model = language_model(len(processor.tokenizer))
        processor.resize_token_embeddings(model)
        return processor, model, processor(f"hi {processor.audio_bos_token}", return_tensors="pt")

    def test_what_is_heard_is_what_was_generated(self, speaker):
        processor, model, prompt = speaker
        options = {
            "do_sample": True,
            "top_k": 0,
            "max_new_tokens": 41,
            "pad_token_id": processor.tokenizer.pad_token_id,
        }
        streamer = TaaeStreamer(processor, context_frames=(20, 20))
        for seed in range(2):  # a streamer can be used again
            torch.manual_seed(seed)
            heard = np.concatenate(list(streamer.run(model, **prompt, **options)))
            torch.manual_seed(seed)
            grammar = {"logits_processor": [processor.grammar], "eos_token_id": processor.audio_eos_token_id}
            ids = model.generate(**prompt, **options, **grammar)
            (waveform,) = processor.decode_speech(processor.parse(ids[0], errors="repair").segments[-1:])
            np.testing.assert_allclose(heard, waveform, atol=1e-5)

    def test_errors_are_raised_where_one_listens(self, speaker):
        processor, model, prompt = speaker
        with pytest.raises(ValueError):
            list(TaaeStreamer(processor).run(model, **prompt, max_new_tokens=-1))

    def test_who_stops_listening_stops_the_generation(self, speaker):
        processor, model, prompt = speaker
        calls = []
        model.register_forward_hook(lambda *_: calls.append(1))
        sound = TaaeStreamer(processor, chunk_frames=1, context_frames=(0, 0)).run(
            model, **prompt, do_sample=True, max_new_tokens=2000, min_new_tokens=2000
        )
        next(sound)
        sound.close()
        assert len(calls) < 1000
