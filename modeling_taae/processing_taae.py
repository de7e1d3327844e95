"""Text and speech for a language model: both to ids, and ids back to both."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BatchEncoding,
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SequenceFeatureExtractor,
)

from .chat_parts_taae import SPEECH_TYPES, speech_of, waveform_of
from .speech_grammar_taae import SpeechGrammar, SpeechReader
from .speech_vocabulary_taae import AUDIO_TOKEN, BEGIN_TOKEN, END_TOKEN, PREFIX, SpeechVocabulary

# Rows of the embeddings come in multiples of this, as matrix units of GPUs like it.
ROWS_MULTIPLE = 64
# What `__call__` does itself, after speech has taken the placeholders' places; the rest goes to the tokenizer.
PADDING_ARGUMENTS = ("padding", "padding_side", "max_length", "pad_to_multiple_of")
CALL_ARGUMENTS = (*PADDING_ARGUMENTS, "sampling_rate", "return_tensors")


@dataclass
class ParsedSequence:
    """What a sequence of ids says.

    Args:
        segments: text and speech in order, text as str and speech as its codes, (tokens_per_frame, frames) int64.
        repairs: what was wrong with the ids and what was done about it, a sentence each.
    """

    segments: list[str | Tensor]
    repairs: list[str]


class TaaeProcessor(ProcessorMixin):
    r"""
    Lets a language model of text read and write speech: the feature extractor, the codec and the model's own tokenizer
    in one.

    The tokenizer gets a token for each code of a bottleneck preset, markers for the beginning and the end of speech and
    a placeholder for templates, unless it has them already. They are real tokens of it, saved and loaded with it.

    Args:
        feature_extractor (`TaaeFeatureExtractor`):
            The codec's.
        tokenizer (`PreTrainedTokenizerBase`):
            The language model's. Tokens are added to it.
        audio_tokenizer (`TaaeModel`, *optional*):
            The codec. It is needed where waveforms are encoded or decoded, and not for codes made beforehand. It has a
            folder of its own, so it is not saved with the processor: set `processor.audio_tokenizer` after loading.
        bottleneck (`str`, defaults to `"1x46656_400bps"`):
            The preset whose tokens are added: 46,656 of them, 2 × 15,625 (`"2x15625_700bps"`) or 4 × 729
            (`"4x729_1000bps"`). All of the codec's `encode` and `decode` goes through it.
        layout (`str`, defaults to `"interleaved"`):
            The order of a frame's tokens, `"interleaved"` or `"delay"`: see [`SpeechVocabulary`].
        chat_template (`str` or `dict`, *optional*):
            In place of the tokenizer's.

    Raises:
        ValueError: if there is no such preset or layout, it is `"native"`, too large for a vocabulary, or the tokenizer
            has the speech tokens of another preset.

    Example:

    ```python
    >>> processor = TaaeProcessor(extractor, tokenizer, audio_tokenizer=codec, bottleneck="2x15625_700bps")
    >>> processor.grow_embeddings(language_model)
    >>> text = f"{processor.audio_token} says hello."
    >>> inputs = processor(text, audio=speech, sampling_rate=16_000, return_tensors="pt")
    >>> processor.parse(inputs["input_ids"][0]).segments
    [tensor([[…]]), ' says hello.']
    ```"""

    # Outside of __dict__, which Transformers copies, the codec with it, whenever it saves or prints a processor. Its
    # own way of saving a codec's name cannot be used: what it writes does not load where this package is not installed.
    __slots__ = ("audio_tokenizer",)

    def __init__(
        self,
        feature_extractor: SequenceFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        audio_tokenizer: PreTrainedModel | None = None,
        bottleneck: str = "1x46656_400bps",
        layout: str = "interleaved",
        chat_template: str | dict | None = None,
    ):
        self.tokenizer = tokenizer
        chat_template = tokenizer.chat_template if chat_template is None else chat_template
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.audio_tokenizer = audio_tokenizer
        self.bottleneck = bottleneck
        self.layout = layout
        first_id = _add_speech_tokens(tokenizer, SpeechVocabulary(bottleneck, layout).tokens)
        self.vocabulary = SpeechVocabulary(bottleneck, layout, first_id)
        self.audio_token, self.audio_bos_token, self.audio_eos_token = AUDIO_TOKEN, BEGIN_TOKEN, END_TOKEN
        self.audio_token_id = self.vocabulary.audio_id
        self.audio_bos_token_id = self.vocabulary.begin_id
        self.audio_eos_token_id = self.vocabulary.end_id

    @property
    def chat_template(self) -> str | dict | None:
        """The tokenizer's."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, chat_template: str | dict | None) -> None:
        self.tokenizer.chat_template = chat_template

    @property
    def model_input_names(self) -> list[str]:
        """What a language model is given: the tokenizer's."""
        return self.tokenizer.model_input_names

    @property
    def grammar(self) -> SpeechGrammar:
        """For `generate(logits_processor=[processor.grammar])`: text and speech that can be read back, nothing else."""
        return SpeechGrammar(self.vocabulary, len(self.tokenizer))

    def grow_embeddings(self, language_model: PreTrainedModel) -> None:
        """Resizes a language model's token embeddings, input and output, tied or not, to hold the speech tokens.

        New rows are the mean of the trained rows, so that the model's predictions of text change as little as possible.
        The number of rows becomes a multiple of 64. Transformers' `mean_resizing` draws new rows around the mean
        instead: the draws stray by a 30,000th of the rows' spread, and need a factorised covariance.

        Rows that belong to no token of the tokenizer count as new. A model that has rows for all speech tokens keeps
        them, because they may be trained.

        Args:
            language_model: the model, which is changed.
        """
        rows = language_model.get_input_embeddings().weight.shape[0]
        trained = rows if rows >= self.vocabulary.ranges[-1].stop else self.vocabulary.first_id
        needed = max(rows, len(self.tokenizer))
        # Rounded up here: given pad_to_multiple_of, Marian pads its embeddings and not its bias.
        language_model.resize_token_embeddings(needed + -needed % ROWS_MULTIPLE, mean_resizing=False)
        for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            for parameter in layer.parameters() if layer is not None else ():
                parameter.data[trained:] = parameter.data[:trained].mean(dim=0, dtype=torch.float32)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: np.ndarray | Tensor | Sequence | None = None,
        audio_codes: Tensor | np.ndarray | Sequence | None = None,
        audio_codes_mask: Tensor | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Turns texts with placeholders for speech into ids.

        Args:
            text: one text or a list, in which `processor.audio_token` stands where speech goes.
            audio: one mono clip or a list of them, as for [`TaaeFeatureExtractor`]: one for each placeholder, in the
                order of the texts.
            audio_codes: codes in place of audio, (tokens_per_frame, frames) of a clip or a list of such, as `encode`
                of the codec returns them for the bottleneck of this processor.
            audio_codes_mask: mask of a padded batch of `audio_codes`, as `encode` returns it beside them, (batch,
                frames), or (frames,) for one clip: frames that it does not mark are left out.
            sampling_rate: the audio's rate, in Hz.
            return_tensors: `"pt"`, `"np"`, or None for lists.
            kwargs: the tokenizer's. `padding`, `padding_side`, `max_length` and `pad_to_multiple_of` count the
                speech tokens in; there is no truncation.

        Returns:
            `input_ids` and `attention_mask` (batch, length), and what else the tokenizer was asked for.

        Raises:
            ValueError: if placeholders and clips differ in number, codes do not fit the bottleneck, both audio and
                audio_codes are given, or there is audio but no codec.
        """
        if audio is not None and audio_codes is not None:
            raise ValueError("Speech is given as audio or as audio_codes, not as both.")
        if audio is not None and audio_codes_mask is not None:
            raise ValueError("audio_codes_mask goes with audio_codes; audio has none.")
        _refuse_truncation(kwargs)
        padding = {name: kwargs.pop(name) for name in PADDING_ARGUMENTS if name in kwargs}
        clips = _as_list(audio_codes, audio_codes_mask) if audio is None else self.encode_speech(audio, sampling_rate)
        encoding = self.tokenizer([text] if isinstance(text, str) else list(text), **kwargs)
        return self._put_speech(encoding, clips, padding, return_tensors)

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ) -> str | list[str] | BatchFeature | list[list[int]] | Tensor:
        """Renders conversations, whose messages may hold speech, with the tokenizer's chat template.

        A message's content is text, or a list of parts: `{"type": "text", "text": …}` and `{"type": "audio", "audio":
        …}`. The audio is a waveform; a waveform with its rate, as `(array, rate)`, as `datasets` gives it or as its
        decoder; a file's name, address or content (bytes or base64). Codes go in as `"audio_codes"`. The keys `"path"`,
        `"url"`, `"base64"`, `"audio_url"` and `"input_audio"` of other interfaces are read too, and keys that hold None
        are not looked at. The template is given the parts joined into one text, so that any template for text will do.

        Args:
            conversation: one conversation or a list.
            chat_template: a template, or the name of one of the tokenizer's, in place of its default.
            tokenize: whether to return ids rather than text.
            return_dict: whether to return all that `__call__` returns rather than the ids alone.
            processor_kwargs: arguments of `__call__`, such as `sampling_rate` and `padding`, which may also stand among
                the others.
            kwargs: arguments of the tokenizer's `apply_chat_template`, such as `add_generation_prompt`.

        Raises:
            ValueError: if there is no chat template, a part is of another type, or as for `__call__`.
        """
        call = {name: kwargs.pop(name) for name in CALL_ARGUMENTS if name in kwargs} | (processor_kwargs or {})
        _refuse_truncation(kwargs)
        _refuse_truncation(call)
        if not conversation:
            raise ValueError("The conversation is empty; it needs at least one message.")
        batched = isinstance(conversation[0], (list, tuple))
        conversations = conversation if batched else [conversation]
        parts: list[dict] = []
        messages = [[self._join_parts(message, parts) for message in each] for each in conversations]
        if not tokenize:
            texts = self.tokenizer.apply_chat_template(messages, chat_template=chat_template, tokenize=False, **kwargs)
            return texts if batched else texts[0]
        encoding = self.tokenizer.apply_chat_template(
            messages, chat_template=chat_template, tokenize=True, return_dict=True, **kwargs
        )
        clips = self._encode_parts(parts, call.pop("sampling_rate", None))
        return_tensors = call.pop("return_tensors", None)
        inputs = self._put_speech(encoding, clips, call, return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def encode_speech(self, audio: np.ndarray | Tensor | Sequence, sampling_rate: int | None = None) -> list[Tensor]:
        """Codes of clips, each (tokens_per_frame, frames) int64.

        Args:
            audio: one mono clip or a list of them, as for [`TaaeFeatureExtractor`].
            sampling_rate: the audio's rate, in Hz.

        Raises:
            ValueError: if there is no codec, or as for the feature extractor.
        """
        if isinstance(audio, (list, tuple)) and not audio:
            return []
        codec = self._codec()
        inputs = self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt").to(codec.device)
        with torch.no_grad():
            encoded = codec.encode(**inputs, bottleneck=self.bottleneck)
        return _as_list(encoded.audio_codes.cpu(), encoded.audio_codes_mask.cpu())

    def decode_speech(self, segments: Sequence[str | Tensor]) -> list[str | np.ndarray]:
        """The segments of [`~TaaeProcessor.parse`] with speech as waveforms, (samples,) float32.

        Raises:
            ValueError: if there is no codec.
        """
        heard = [segment if isinstance(segment, str) else torch.as_tensor(segment) for segment in segments]
        spoken = [position for position, segment in enumerate(heard) if not isinstance(segment, str)]
        if not spoken:
            return heard
        codec = self._codec()
        lengths = torch.tensor([heard[position].shape[1] for position in spoken])
        codes = pad_sequence([heard[position].T for position in spoken], batch_first=True).transpose(1, 2)
        mask = torch.arange(codes.shape[2]) < lengths[:, None]
        with torch.no_grad():
            decoded = codec.decode(codes.to(codec.device), mask.to(codec.device), bottleneck=self.bottleneck)
        samples = (lengths * codec.config.hop_length).tolist()
        for position, audio, length in zip(spoken, decoded.audio_values, samples, strict=True):
            heard[position] = audio[0, :length].float().cpu().numpy()
        return heard

    def parse(self, ids: Tensor | np.ndarray | Sequence[int], errors: str = "strict") -> ParsedSequence:
        """Reads one sequence of ids, such as a row that `generate` returns, as text and speech.

        Special tokens of the tokenizer are left out of the text, and so is text that consists of nothing else. Pieces
        of text are decoded one by one: a tokenizer that drops the space its text begins with, as those of sentencepiece
        do, drops it after speech too.

        Args:
            ids: (length,) integers, the prompt included.
            errors: what to do where the ids are not well-formed: a frame is cut, a stage is not the one whose turn it
                is, text stands within speech, a marker is missing, or codes are such as no audio has. `"strict"` raises
                an error; `"repair"` keeps what is whole, and says in `repairs` what was done (see [`SpeechReader`]).

        Raises:
            ValueError: if the ids are not a sequence of ids, or errors are strict and it is not well-formed.
        """
        ids = torch.as_tensor(ids).cpu()
        ids = ids if ids.numel() else ids.to(torch.int64)  # an empty list makes a tensor of floats
        if ids.ndim != 1 or ids.dtype.is_floating_point or (ids < 0).any():
            raise ValueError(
                f"parse takes one sequence of ids, (length,) integers from 0 up; got shape {tuple(ids.shape)}, "
                f"{ids.dtype}. Pass the rows of a batch one by one."
            )
        reader = SpeechReader(self.vocabulary, ids.to(torch.int64), errors)
        segments = []
        for kind, piece in reader.read():
            segment = self.tokenizer.decode(piece.tolist(), skip_special_tokens=True) if kind == "text" else piece
            if len(segment):
                segments.append(segment)
        return ParsedSequence(segments, reader.repairs)

    def _codec(self) -> PreTrainedModel:
        if self.audio_tokenizer is None:
            raise ValueError(
                "This processor has no codec to encode or decode speech with: set processor.audio_tokenizer to a "
                "TaaeModel, or pass audio_codes in place of audio."
            )
        config, extractor = self.audio_tokenizer.config, self.feature_extractor
        if (config.sampling_rate, config.hop_length) != (extractor.sampling_rate, extractor.hop_length):
            raise ValueError(
                f"The codec reads {config.sampling_rate} Hz in frames of {config.hop_length} samples, and this "
                f"processor's feature extractor prepares {extractor.sampling_rate} Hz in frames of "
                f"{extractor.hop_length}; take the extractor of the codec's folder."
            )
        return self.audio_tokenizer

    def _join_parts(self, message: dict, audio_parts: list[dict]) -> dict:
        """A message whose content is one text; its parts that are speech are appended to `audio_parts`."""
        if not isinstance(message.get("content"), (list, tuple)):
            return message
        texts = []
        for part in message["content"]:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif kind in SPEECH_TYPES:
                texts.append(self.audio_token)
                audio_parts.append(part)
            elif kind == "text":
                raise ValueError(f"A part of type text has no text, but {part.get('text')!r}.")
            else:
                raise ValueError(f"A part of a message is of type text or audio, not {kind!r}.")
        return {**message, "content": "".join(texts)}

    def _encode_parts(self, parts: list[dict], sampling_rate: int | None) -> list:
        """Returns the codes of the speech in parts of messages; waveforms and files are encoded in one batch."""
        found = [speech_of(part) for part in parts]
        codes = [speech if key == "audio_codes" else None for key, speech in found]
        sounding = [index for index, (key, _) in enumerate(found) if key != "audio_codes"]
        if sounding:
            rate = self.feature_extractor.sampling_rate
            clips = [waveform_of(found[index][1], rate, sampling_rate) for index in sounding]
            for index, clip_codes in zip(sounding, self.encode_speech(clips), strict=True):
                codes[index] = clip_codes
        return codes

    def _put_speech(
        self, encoding: BatchEncoding, clips: list, padding: dict, return_tensors: str | None
    ) -> BatchFeature:
        """Puts each clip's span in its placeholder's place and pads.

        What the encoding says of a placeholder besides its id, as a mask does, holds for the whole span.
        """
        found = sum(ids.count(self.audio_token_id) for ids in encoding["input_ids"])
        if found != len(clips):
            raise ValueError(
                f"There are {found} placeholders {self.audio_token} in the text, but {len(clips)} clips: pass one for "
                "each, in the order of the texts."
            )
        spans = iter([self.vocabulary.span(codes).tolist() for codes in clips])
        filled: dict[str, list] = {name: [] for name in encoding}
        for row, ids in enumerate(encoding["input_ids"]):
            pieces = [next(spans) if token == self.audio_token_id else [token] for token in ids]
            for name, values in filled.items():
                expanded = [[value] * len(piece) for value, piece in zip(encoding[name][row], pieces, strict=True)]
                values.append(list(chain.from_iterable(pieces if name == "input_ids" else expanded)))
        padded = self.tokenizer.pad(filled, padding=padding.pop("padding", False), **padding, verbose=False)
        left = (padding.get("padding_side") or self.tokenizer.padding_side) == "left"
        for values in padded.values():
            # The tokenizer does not pad what is not its own, such as the mask of an assistant's words.
            for row, (value, ids) in enumerate(zip(values, padded["input_ids"], strict=True)):
                missing = [0] * (len(ids) - len(value))
                values[row] = missing + value if left else value + missing
        return BatchFeature(dict(padded), tensor_type=return_tensors)


def _as_list(audio_codes: Tensor | np.ndarray | Sequence | None, mask: Tensor | None = None) -> list:
    """The clips of an argument that is one clip, (tokens_per_frame, frames), several, perhaps padded, or None."""
    if audio_codes is None:
        return []
    clips = [audio_codes] if _dimensions(audio_codes) == 2 else list(audio_codes)
    if mask is None:
        return clips
    clips, mask = [torch.as_tensor(codes) for codes in clips], torch.atleast_2d(torch.as_tensor(mask)).bool()
    if [len(real) for real in mask] != [codes.shape[-1] for codes in clips]:
        raise ValueError(
            f"The audio_codes_mask of {len(clips)} clips is (batch, frames), as encode returns it, "
            f"not {tuple(mask.shape)}."
        )
    return [codes[:, real] for codes, real in zip(clips, mask, strict=True)]


def _dimensions(codes: Tensor | np.ndarray | Sequence) -> int:
    """Returns the number of dimensions of an array, or of nested lists, perhaps of arrays."""
    if isinstance(codes, (list, tuple)):
        return 1 + (_dimensions(codes[0]) if codes else 0)
    return getattr(codes, "ndim", 0)


def _refuse_truncation(arguments: dict) -> None:
    if arguments.pop("truncation", None):
        raise ValueError("Truncation could cut speech within a frame; pass shorter texts and clips instead.")


def _add_speech_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> int:
    """Adds the tokens to the tokenizer, unless it has them, and returns the first one's id.

    Raises:
        ValueError: if it has the tokens of another preset, or does not give them consecutive ids of their own.
    """
    vocabulary = tokenizer.get_vocab()
    present = {token for token in vocabulary if token.startswith(PREFIX)}
    if present and present != set(tokens):
        raise ValueError(
            f"The tokenizer has {len(present)} speech tokens already, of another bottleneck than this one with its "
            f"{len(tokens)}: take the bottleneck they were made for, or the tokenizer as it was before."
        )
    if not present:
        tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    taken = max((index for token, index in vocabulary.items() if token not in present), default=-1)
    if ids != list(range(ids[0], ids[0] + len(ids))) or (not present and ids[0] <= taken):
        raise ValueError(
            f"The tokenizer gave the speech tokens ids from {ids[0]} on that are not consecutive or belong to others "
            f"(up to {taken}): its vocabulary has gaps, which this cannot work with."
        )
    return ids[0]


__all__ = ["ParsedSequence", "TaaeProcessor"]
