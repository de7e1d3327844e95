"""Generates speech with a language model: from a text, from speech to continue, or from nothing."""

import sys
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel

from modeling_taae import TaaeProcessor
from modeling_taae.audio_io import read_audio, write_audio
from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError, one_line
from modeling_taae.files import is_standard_stream
from modeling_taae.identity import TokenSource
from modeling_taae.speech_streamer_taae import TaaeStreamer

# Fields of a language model's config with the origin of its tokens: the codec's identity, and all known facts.
CODEC_IDENTITY, TOKEN_SOURCE = "speech_codec", "speech_token_source"


@torch.no_grad()
def generate_speech(
    model: PreTrainedModel,
    processor: TaaeProcessor,
    text: str = "",
    prompt: Tensor | None = None,
    frames: int = 250,
    temperature: float = 1.0,
    streamer: TaaeStreamer | None = None,
) -> Tensor:
    """Generates speech with a language model, restricted by the grammar.

    Args:
        model: the language model.
        processor: its processor.
        text: the text before the speech.
        prompt: the speech's first frames, (tokens_per_frame, frames) int64.
        frames: largest number of frames.
        temperature: temperature of sampling; below 1, likely tokens become likelier.
        streamer: a streamer that decodes the speech during generation.

    Returns:
        Codes (tokens_per_frame, frames) int64, the prompt included.
    """
    vocabulary, known = processor.vocabulary, 0 if prompt is None else prompt.shape[1]
    ids = processor(text + processor.audio_bos_token, return_tensors="pt")["input_ids"]
    if prompt is not None:
        stages, places = vocabulary.order(known)
        # With a delay, the prompt's last tokens would show that no frame follows, so they are left out.
        open_tokens = int((places + vocabulary.delay * stages < known).sum())
        ids = torch.cat([ids, vocabulary.span(prompt)[None, 1 : 1 + open_tokens]], dim=1)
    generated = model.generate(
        ids.to(model.device),
        attention_mask=torch.ones_like(ids).to(model.device),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=(frames + vocabulary.delay * (vocabulary.stages - 1)) * vocabulary.stages,
        eos_token_id=processor.audio_eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        logits_processor=[processor.grammar],
        streamer=streamer,
    )
    # At the limit the span is still open; the repair ends it after the last whole frame.
    codes = cast(np.ndarray, processor.parse(generated[0], errors="repair").segments[-1])
    return codes[:, : known + frames]


def token_source(language_model: PreTrainedModel) -> TokenSource | None:
    """Returns the origin of a language model's tokens; None if its configuration does not give it."""
    config = language_model.config
    identity = getattr(config, CODEC_IDENTITY, None)
    content = getattr(config, TOKEN_SOURCE, None) or {"identity": identity}
    return None if content["identity"] is None else TokenSource.from_json(content)


def load_speaker(folder: str) -> tuple[PreTrainedModel, TaaeProcessor]:
    """Returns a language model and its processor.

    Raises:
        TaaeInputError: if the folder does not hold both.
    """
    try:
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    # Damaged files make their readers raise errors of many types.
    except Exception as error:
        raise TaaeInputError(
            f"{folder}: no language model with a TaaeProcessor could be loaded from there ({one_line(error)}); "
            "expected the folder `model` of a run of train_speech_lm.py"
        ) from error
    if not isinstance(processor, TaaeProcessor):
        raise TaaeInputError(f"{folder}: its processor is a {type(processor).__name__}, not a TaaeProcessor")
    return model.eval(), processor


def speak(
    model: str,
    output: str | Path,
    text: str = "",
    prompt: str | Path | None = None,
    codec: str | None = None,
    seconds: float = 10.0,
    temperature: float = 1.0,
    seed: int = 0,
) -> None:
    """Generates speech with a language model and writes it to an audio file.

    Args:
        model: folder of a language model and its processor.
        output: audio file to write, .wav or .flac; `-` streams 16-bit samples to standard output.
        text: the text to say, for a model that was trained with texts.
        prompt: audio file with speech to continue.
        codec: folder or Hub name of the codec whose tokens the model was trained on; None for the default of `taae`.
        seconds: longest duration, in seconds.
        temperature: temperature of sampling; below 1, less varied.
        seed: seed of the random draws.

    Raises:
        TaaeInputError: if a model, the prompt or an option cannot be used.
    """
    language_model, processor = load_speaker(model)
    speech_codec = load_codec(codec)
    learnt, own = token_source(language_model), speech_codec.token_source(processor.bottleneck)
    if learnt is not None and not learnt.agrees_with(own):
        raise TaaeInputError(
            f"{model}: learnt the tokens of codec {learnt.identity}, but this codec is {own.identity}, which decodes "
            "them differently; choose the one it was trained for with --codec"
        )
    processor.audio_tokenizer = speech_codec.model
    rate, prompt_codes = speech_codec.extractor.sampling_rate, None
    if prompt:
        (prompt_codes,) = processor.encode_speech(read_audio(prompt, rate), rate)
    torch.manual_seed(seed)
    frames = max(1, round(seconds * speech_codec.model.config.frame_rate))
    streamer = SampleWriter(processor, skip_prompt=False) if is_standard_stream(output) else None
    try:
        codes = generate_speech(language_model, processor, text, prompt_codes, frames, temperature, streamer)
    except ValueError as error:
        raise TaaeInputError(f"{text!r}: cannot be said ({one_line(error)})") from error
    if streamer is None:
        (waveform,) = processor.decode_speech([codes])
        write_audio(output, cast(np.ndarray, waveform), rate)


class SampleWriter(TaaeStreamer):
    """Writes speech to standard output while it is generated: mono samples of 16 bits, little-endian."""

    def on_audio(self, waveform: np.ndarray, stream_end: bool = False) -> None:
        """Writes a waveform, (samples,) float32."""
        samples = (np.clip(waveform, -1, 1) * 32767).round().astype("<i2")
        sys.stdout.buffer.write(samples.tobytes())
        sys.stdout.buffer.flush()
