"""Converts text and speech to ids of a language model, and ids back to text and speech."""

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

# The number of embedding rows is a multiple of this, which suits the matrix units of GPUs.
ROWS_MULTIPLE = 64
# Arguments that `__call__` handles itself, after it has put speech in place of the placeholders.
PADDING_ARGUMENTS = ("padding", "padding_side", "max_length", "pad_to_multiple_of")
CALL_ARGUMENTS = (*PADDING_ARGUMENTS, "sampling_rate", "return_tensors")


@dataclass
class ParsedSequence:
    """Text and speech of a sequence of ids.

    Args:
        segments: text and speech in order: text as str, speech as its codes, (tokens_per_frame, frames) int64.
        repairs: faults of the ids and how each was repaired, one sentence per fault.
    """

    segments: list[str | Tensor]
    repairs: list[str]


class TaaeProcessor(ProcessorMixin):
    r"""
    Combines the feature extractor, the codec and a language model's tokenizer, so that the language model can read and
    write speech.

    Adds to the tokenizer, unless it has them already: a token for each code of a bottleneck preset, markers for the
    beginning and the end of speech, and a placeholder for templates. They are saved and loaded with the tokenizer.

    Args:
        feature_extractor (`TaaeFeatureExtractor`):
            The codec's feature extractor.
        tokenizer (`PreTrainedTokenizerBase`):
            The language model's tokenizer. Tokens are added to it.
        audio_tokenizer (`TaaeModel`, *optional*):
            The codec. It is needed to encode or decode waveforms, not for codes made beforehand. It is not saved with
            the processor, because it has a folder of its own: set `processor.audio_tokenizer` after loading.
        bottleneck (`str`, defaults to `"1x46656_400bps"`):
            The preset whose tokens are added: 46,656 of them, 2 × 15,625 (`"2x15625_700bps"`) or 4 × 729
            (`"4x729_1000bps"`). The codec encodes and decodes with it.
        layout (`str`, defaults to `"interleaved"`):
            The order of a frame's tokens, `"interleaved"` or `"delay"`: see [`SpeechVocabulary`].
        chat_template (`str` or `dict`, *optional*):
            Chat template that replaces the tokenizer's.

    Raises:
        ValueError: if the preset or the layout is unknown, the preset is `"native"`, which is too large for a
            vocabulary, or the tokenizer has the speech tokens of another preset.

    Example:

    ```python
    >>> processor = TaaeProcessor(extractor, tokenizer, audio_tokenizer=codec, bottleneck="2x15625_700bps")
    >>> processor.resize_token_embeddings(language_model)
    >>> text = f"{processor.audio_token} says hello."
    >>> inputs = processor(text, audio=speech, sampling_rate=16_000, return_tensors="pt")
    >>> processor.parse(inputs["input_ids"][0]).segments
    [tensor([[…]]), ' says hello.']
    ```"""

    # A slot keeps the codec out of __dict__, which Transformers copies whenever it saves or prints a processor.
    # Transformers can save the codec's name instead, but such a processor does not load without this package.
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
        """The tokenizer's chat template."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, chat_template: str | dict | None) -> None:
        self.tokenizer.chat_template = chat_template

    @property
    def model_input_names(self) -> list[str]:
        """Names of a language model's inputs: the tokenizer's."""
        return self.tokenizer.model_input_names

    @property
    def grammar(self) -> SpeechGrammar:
        """Logits processor for `generate(logits_processor=[processor.grammar])`: allows only parsable sequences."""
        return SpeechGrammar(self.vocabulary, len(self.tokenizer))

    def resize_token_embeddings(self, language_model: PreTrainedModel) -> None:
        """Resizes a language model's token embeddings, input and output, tied or not, to hold the speech tokens.

        New rows are the mean of the trained rows, so that predictions of text change as little as possible. The number
        of rows becomes a multiple of 64. Transformers' `mean_resizing` draws new rows around the mean instead: the
        draws differ from it by a 30,000th of the rows' spread and need a factorised covariance.

        Rows that belong to no token of the tokenizer count as new. A model that already has rows for all speech tokens
        keeps them, because they may be trained.

        Args:
            language_model: the model, changed in place.
        """
        rows = language_model.get_input_embeddings().weight.shape[0]
        trained = rows if rows >= self.vocabulary.ranges[-1].stop else self.vocabulary.first_id
        needed = max(rows, len(self.tokenizer))
        # Rounded up here: given pad_to_multiple_of, Marian pads its embeddings and not its bias.
        language_model.resize_token_embeddings(needed + -needed % ROWS_MULTIPLE, mean_resizing=False)
        for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            for parameter in layer.parameters() if layer is not None else ():
                parameter.data[trained:] = parameter.data[:trained].mean(dim=0, dtype=torch.float32)

    grow_embeddings = resize_token_embeddings  # its name in version 0.1.0

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
            text: one text or a list, with `processor.audio_token` as the placeholder of each clip.
            audio: one mono clip or a list of them, as for [`TaaeFeatureExtractor`]: one for each placeholder, in the
                order of the texts.
            audio_codes: codes instead of audio, (tokens_per_frame, frames) for one clip or a list of such, as the
                codec's `encode` returns them for this processor's bottleneck.
            audio_codes_mask: mask of a padded batch of `audio_codes`, as `encode` returns it: (batch, frames), or
                (frames,) for one clip. Frames with 0 are left out.
            sampling_rate: the audio's rate, in Hz.
            return_tensors: `"pt"`, `"np"`, or None for lists.
            kwargs: arguments of the tokenizer. `padding`, `padding_side`, `max_length` and `pad_to_multiple_of` count
                the speech tokens in; there is no truncation.

        Returns:
            `input_ids` and `attention_mask` (batch, length), and anything else that the tokenizer returns.

        Raises:
            ValueError: if the numbers of placeholders and clips differ, codes do not fit the bottleneck, both audio and
                audio_codes are given, or there is audio but no codec.
        """
        if audio is not None and audio_codes is not None:
            raise ValueError("Pass speech as audio or as audio_codes, not as both.")
        if audio is not None and audio_codes_mask is not None:
            raise ValueError("audio_codes_mask goes with audio_codes; leave it out for audio.")
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

        A message's content is text or a list of parts, `{"type": "text", "text": …}` and `{"type": "audio", "audio":
        …}`. The audio is a waveform; a waveform with its rate, as `(array, rate)` or in the two forms of `datasets`; or
        a file's name, address or content (bytes or base64). Pass codes as `"audio_codes"`. The keys `"path"`, `"url"`,
        `"base64"`, `"audio_url"` and `"input_audio"` of other interfaces are read too; keys that hold None are ignored.
        The template receives the parts joined into one text, so any text template works.

        Args:
            conversation: one conversation or a list.
            chat_template: a template, or the name of one of the tokenizer's, in place of its default.
            tokenize: whether to return ids rather than text.
            return_dict: whether to return everything that `__call__` returns rather than only the ids.
            processor_kwargs: arguments of `__call__`, such as `sampling_rate` and `padding`; they may also be passed
                directly.
            kwargs: arguments of the tokenizer's `apply_chat_template`, such as `add_generation_prompt`.

        Raises:
            ValueError: if there is no chat template, a part has another type, or `__call__` would raise it.
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
        """Encodes clips and returns the codes of each, (tokens_per_frame, frames) int64.

        Args:
            audio: one mono clip or a list of them, as for [`TaaeFeatureExtractor`].
            sampling_rate: the audio's rate, in Hz.

        Raises:
            ValueError: if there is no codec, or the feature extractor rejects the audio.
        """
        if isinstance(audio, (list, tuple)) and not audio:
            return []
        codec = self._codec()
        inputs = self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt").to(codec.device)
        with torch.no_grad():
            encoded = codec.encode(**inputs, bottleneck=self.bottleneck)
        return _as_list(encoded.audio_codes.cpu(), encoded.audio_codes_mask.cpu())

    def decode_speech(self, segments: Sequence[str | Tensor]) -> list[str | np.ndarray]:
        """Returns the segments of [`~TaaeProcessor.parse`] with speech decoded to waveforms, (samples,) float32.

        Raises:
            ValueError: if there is no codec.
        """
        decoded_segments = [each if isinstance(each, str) else torch.as_tensor(each) for each in segments]
        spoken = [position for position, segment in enumerate(decoded_segments) if not isinstance(segment, str)]
        if not spoken:
            return decoded_segments
        codec = self._codec()
        clips = [decoded_segments[position] for position in spoken]
        lengths = torch.tensor([codes.shape[1] for codes in clips])
        codes = pad_sequence([codes.T for codes in clips], batch_first=True).transpose(1, 2)
        mask = torch.arange(codes.shape[2]) < lengths[:, None]
        with torch.no_grad():
            decoded = codec.decode(codes.to(codec.device), mask.to(codec.device), bottleneck=self.bottleneck)
        samples = (lengths * codec.config.hop_length).tolist()
        for position, audio, length in zip(spoken, decoded.audio_values, samples, strict=True):
            decoded_segments[position] = audio[0, :length].float().cpu().numpy()
        return decoded_segments

    def parse(self, ids: Tensor | np.ndarray | Sequence[int], errors: str = "strict") -> ParsedSequence:
        """Reads one sequence of ids, such as a row that `generate` returns, as text and speech.

        The tokenizer's special tokens are left out of the text, and so are segments of text that hold nothing else.
        Each segment of text is decoded by itself: tokenizers that drop a leading space, such as sentencepiece's, drop
        it after speech too.

        Args:
            ids: (length,) integers, the prompt included.
            errors: handling of malformed ids, such as an incomplete frame, a stage out of turn, text within speech, a
                missing marker or codes that audio cannot have. `"strict"` raises an error; `"repair"` keeps complete
                frames and lists its repairs in `repairs` (see [`SpeechReader`]).

        Raises:
            ValueError: if `ids` is not a sequence of ids, or it is malformed and errors are strict.
        """
        ids = torch.as_tensor(ids).cpu()
        ids = ids if ids.numel() else ids.to(torch.int64)  # an empty list makes a tensor of floats
        if ids.ndim != 1 or ids.dtype.is_floating_point or (ids < 0).any():
            raise ValueError(
                f"parse takes one sequence of ids, (length,) non-negative integers; got shape {tuple(ids.shape)}, "
                f"{ids.dtype}. Pass the rows of a batch one by one."
            )
        reader = SpeechReader(self.vocabulary, ids.to(torch.int64), errors)
        segments = []
        for kind, content in reader.read():
            segment = self.tokenizer.decode(content.tolist(), skip_special_tokens=True) if kind == "text" else content
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
                f"{extractor.hop_length}; use the extractor of the codec's folder."
            )
        return self.audio_tokenizer

    def _join_parts(self, message: dict, audio_parts: list[dict]) -> dict:
        """Returns a message with its parts joined to one text, and appends its speech parts to `audio_parts`."""
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
        """Returns the codes of message parts that hold speech; encodes waveforms and files in one batch."""
        found = [speech_of(part) for part in parts]
        codes = [speech if key == "audio_codes" else None for key, speech in found]
        to_encode = [index for index, (key, _) in enumerate(found) if key != "audio_codes"]
        if to_encode:
            rate = self.feature_extractor.sampling_rate
            clips = [waveform_of(found[index][1], rate, sampling_rate) for index in to_encode]
            for index, clip_codes in zip(to_encode, self.encode_speech(clips), strict=True):
                codes[index] = clip_codes
        return codes

    def _put_speech(
        self, encoding: BatchEncoding, clips: list, padding: dict, return_tensors: str | None
    ) -> BatchFeature:
        """Replaces each placeholder by its clip's span, and pads.

        Other values of a placeholder, such as its mask, are repeated over the span.
        """
        found = sum(ids.count(self.audio_token_id) for ids in encoding["input_ids"])
        if found != len(clips):
            raise ValueError(
                f"There are {found} placeholders {self.audio_token} in the text, but {len(clips)} clips: pass one clip "
                "for each, in the order of the texts."
            )
        spans = iter([self.vocabulary.span(codes).tolist() for codes in clips])
        filled: dict[str, list] = {name: [] for name in encoding}
        for row, ids in enumerate(encoding["input_ids"]):
            parts = [next(spans) if token == self.audio_token_id else [token] for token in ids]
            for name, values in filled.items():
                expanded = [[value] * len(part) for value, part in zip(encoding[name][row], parts, strict=True)]
                values.append(list(chain.from_iterable(parts if name == "input_ids" else expanded)))
        padded = self.tokenizer.pad(filled, padding=padding.pop("padding", False), **padding, verbose=False)
        left = (padding.get("padding_side") or self.tokenizer.padding_side) == "left"
        for values in padded.values():
            # The tokenizer pads only its own inputs, not others such as the mask of an assistant's words.
            for row, (value, ids) in enumerate(zip(values, padded["input_ids"], strict=True)):
                missing = [0] * (len(ids) - len(value))
                values[row] = missing + value if left else value + missing
        return BatchFeature(dict(padded), tensor_type=return_tensors)


def _as_list(audio_codes: Tensor | np.ndarray | Sequence | None, mask: Tensor | None = None) -> list:
    """Returns a list of clips for an argument that is None, one clip, (tokens_per_frame, frames), or several."""
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
    """Returns the number of dimensions of an array or of nested lists, which may hold arrays."""
    if isinstance(codes, (list, tuple)):
        return 1 + (_dimensions(codes[0]) if codes else 0)
    return getattr(codes, "ndim", 0)


def _refuse_truncation(arguments: dict) -> None:
    if arguments.pop("truncation", None):
        raise ValueError("Truncation could cut speech within a frame; pass shorter texts and clips instead.")


def _add_speech_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> int:
    """Adds the tokens to the tokenizer unless it has them, and returns the id of the first.

    Raises:
        ValueError: if it has the tokens of another preset, or does not give them new, consecutive ids.
    """
    vocabulary = tokenizer.get_vocab()
    present = {token for token in vocabulary if token.startswith(PREFIX)}
    if present and present != set(tokens):
        raise ValueError(
            f"The tokenizer has {len(present)} speech tokens already, of another bottleneck than this one with its "
            f"{len(tokens)}: use the bottleneck they were made for, or the original tokenizer."
        )
    if not present:
        tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    taken = max((index for token, index in vocabulary.items() if token not in present), default=-1)
    if ids != list(range(ids[0], ids[0] + len(ids))) or (not present and ids[0] <= taken):
        raise ValueError(
            f"The tokenizer gave the speech tokens ids from {ids[0]} on that are not consecutive or belong to other "
            f"tokens (up to {taken}): its vocabulary has gaps, which is not supported."
        )
    return ids[0]


__all__ = ["ParsedSequence", "TaaeProcessor"]
