"""Lets a language model speak: `python training/speech_lm/speak.py MODEL "Good morning." -o speech.wav`.

MODEL is a folder that `train_speech_lm.py` wrote, or any other with a language model and its TaaeProcessor. Without a
text it says something; with `--prompt speech.wav` it goes on from there.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's training/ is not installed

from modeling_taae import TaaeProcessor
from modeling_taae.audio_io import read_audio, write_audio
from modeling_taae.cli.options import number
from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError, one_line

# Where a language model's config says which codec's tokens it learnt.
CODEC_IDENTITY = "speech_codec"


@torch.no_grad()
def generate_speech(
    model: PreTrainedModel,
    processor: TaaeProcessor,
    text: str = "",
    prompt: Tensor | None = None,
    frames: int = 250,
    temperature: float = 1.0,
) -> Tensor:
    """Speech by a language model, kept on the grammar.

    Args:
        model: the language model.
        processor: its processor.
        text: what comes before the speech.
        prompt: the speech's first frames, (tokens_per_frame, frames) int64.
        frames: the most that it says.
        temperature: below 1, likely tokens become more so.

    Returns:
        Codes (tokens_per_frame, frames) int64, the prompt included.
    """
    vocabulary, known = processor.vocabulary, 0 if prompt is None else prompt.shape[1]
    ids = processor(text + processor.audio_bos_token, return_tensors="pt")["input_ids"]
    if prompt is not None:
        stages, places = vocabulary.order(known)
        # Of stages that lag, the tokens after the last frame's stage 0 and its step would say that no frame follows.
        open_tokens = int((places + vocabulary.lag * stages < known).sum())
        ids = torch.cat([ids, vocabulary.span(prompt)[None, 1 : 1 + open_tokens]], dim=1)
    generated = model.generate(
        ids.to(model.device),
        attention_mask=torch.ones_like(ids).to(model.device),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=(frames + vocabulary.lag * (vocabulary.stages - 1)) * vocabulary.stages,
        eos_token_id=processor.audio_eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        logits_processor=[processor.grammar],
    )
    # At the limit the span is still open: it is ended behind the last whole frame.
    return processor.parse(generated[0], errors="repair").segments[-1][:, : known + frames]


def load_speaker(folder: str) -> tuple[PreTrainedModel, TaaeProcessor]:
    """A language model and its processor.

    Raises:
        TaaeInputError: if the folder does not hold both.
    """
    try:
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    # Damaged files raise whatever their reader raises.
    except Exception as error:
        raise TaaeInputError(
            f"{folder}: no language model with a TaaeProcessor could be loaded from there ({one_line(error)}); "
            "expected the folder `model` of a run of train_speech_lm.py"
        ) from error
    if not isinstance(processor, TaaeProcessor):
        raise TaaeInputError(f"{folder}: its processor is a {type(processor).__name__}, not a TaaeProcessor")
    return model.eval(), processor


def speak(options: argparse.Namespace) -> None:
    """Loads, speaks and writes.

    Raises:
        TaaeInputError: if a model, the prompt or an option cannot be used.
    """
    model, processor = load_speaker(options.model)
    codec = load_codec(options.codec)
    if (wanted := getattr(model.config, CODEC_IDENTITY, codec.identity)) != codec.identity:
        raise TaaeInputError(
            f"{options.model}: learnt the tokens of codec {wanted}, but this codec is {codec.identity}, to which they "
            "mean something else; choose the one it was trained for with --codec"
        )
    processor.audio_tokenizer = codec.model
    rate, prompt = codec.extractor.sampling_rate, None
    if options.prompt:
        (prompt,) = processor.encode_speech(read_audio(options.prompt, rate), rate)
    torch.manual_seed(options.seed)
    frames = max(1, round(options.seconds * codec.model.config.frame_rate))
    try:
        codes = generate_speech(model, processor, options.text, prompt, frames, options.temperature)
    except ValueError as error:
        raise TaaeInputError(f"{options.text!r}: cannot be said ({one_line(error)})") from error
    (waveform,) = processor.decode_speech([codes])
    write_audio(options.output, waveform, rate)


def main(arguments: list[str] | None = None) -> int:
    """Speaks, writes and returns the exit status: 2 where that is not possible."""
    parser = argparse.ArgumentParser(prog="speak.py", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the language model")
    parser.add_argument("text", nargs="?", default="", help="to be said, by a model that was trained with texts")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=".wav or .flac")
    parser.add_argument("--prompt", metavar="FILE", help="speech to go on from")
    parser.add_argument("--codec", metavar="M", help="that the tokens are of (default: as for `taae`)")
    longest = "the most that it says (default: 10)"
    parser.add_argument("--seconds", type=number(0.01, 3600), default=10.0, metavar="S", help=longest)
    varied = "below 1, less varied (default: 1)"
    parser.add_argument("--temperature", type=number(0.01, 100), default=1.0, metavar="T", help=varied)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one, another voice (default: 0)")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    try:
        speak(options)
    except TaaeInputError as error:
        print(f"speak.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
