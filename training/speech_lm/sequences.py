"""From a corpus of speech tokens to sequences that a language model learns from.

A sequence is a text, if texts are asked for, and a span of speech (see `SpeechVocabulary`): the language model learns
to predict the tokens of the span and its end marker.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from modeling_taae import TaaeProcessor
from modeling_taae.data.utterances import read_transcripts
from modeling_taae.errors import TaaeInputError
from modeling_taae.files import read_json
from modeling_taae.identity import TokenSource
from modeling_taae.speech_vocabulary_taae import SpeechVocabulary
from modeling_taae.tokenize.folder import MANIFEST

# Labels that count for nothing, as Transformers spells it.
IGNORED = -100


@dataclass(frozen=True)
class TokenCorpus:
    """A corpus that `taae tokenize` wrote, with the texts of its clips where they are asked for.

    Args:
        folder: of the corpus.
        texts: None for speech alone, else a column of the corpus, or a Parquet file with columns id and text.

    Raises:
        TaaeInputError: if there is no complete corpus, or a language model cannot have its tokens.
    """

    folder: Path
    texts: str | None = None

    def __post_init__(self):
        if not self.manifest:
            raise TaaeInputError(
                f"{self.folder}: is no complete corpus of tokens; make it, or finish it, with "
                f"`taae tokenize SPEECH -o {self.folder}`"
            )
        try:
            SpeechVocabulary(self.bottleneck)
        except ValueError as error:
            raise TaaeInputError(f"{self.folder}: {error} Tokenise with one of these as --bottleneck") from error

    @cached_property
    def manifest(self) -> dict:
        """What `taae tokenize` says of the corpus; empty where it has not finished."""
        return read_json(self.folder / MANIFEST)

    @property
    def bottleneck(self) -> str:
        """The preset of its tokens."""
        return self.manifest["bottleneck"]["name"]

    @property
    def nominal_bit_rate(self) -> float:
        """Of its tokens, were all equally likely, in bit/s."""
        return self.manifest["bottleneck"]["bit_rate"]

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.manifest["model"]["frame_rate"]

    @property
    def source(self) -> TokenSource:
        """What made the tokens."""
        return TokenSource.from_json(self.manifest["model"])

    @cached_property
    def rows(self) -> Dataset:
        """Rows with `id`, `codes` (frames, tokens_per_frame), `frames`, and the column of texts if that is one."""
        files = [str(self.folder / shard["file"]) for shard in self.manifest["shards"]]
        rows = Dataset.from_parquet(files)
        columns = ["id", "codes", "frames"]
        if self.texts is not None and not self._texts_are_a_file:
            if self.texts not in rows.column_names:
                raise TaaeInputError(
                    f"{self.folder}: has no column {self.texts!r}, only {', '.join(rows.column_names)}; name the "
                    "column of the texts, or a Parquet file with columns id and text"
                )
            columns.append(self.texts)
        return rows.select_columns(columns)

    @property
    def _texts_are_a_file(self) -> bool:
        return self.texts is not None and self.texts.endswith(".parquet")

    def text_of_rows(self) -> list[str]:
        """The text of each row, empty where it has none.

        Raises:
            TaaeInputError: if there is no such column or file.
        """
        if self.texts is None:
            return [""] * len(self.rows)
        if self._texts_are_a_file:
            known = read_transcripts(self.texts)
            return [known.get(name, "") for name in self.rows["id"]]
        texts = ["" if text is None else text for text in self.rows[self.texts]]
        if any(isinstance(text, bytes) for text in texts):
            raise TaaeInputError(f"{self.folder}: column {self.texts} holds bytes; expected texts")
        return [str(text).strip() for text in texts]


class SpeechSequences(torch.utils.data.Dataset):
    """The sequences of a corpus.

    Without texts, clips are cut into pieces of at most `crop_frames` whole frames, each a span of its own. With texts,
    each clip stands whole behind its text; clips that are longer, or have no text, are left out.

    Args:
        corpus: the clips.
        processor: for their preset.
        crop_frames: the most frames of a sequence.

    Raises:
        TaaeInputError: if the corpus has another preset than the processor, or no sequence remains.
    """

    def __init__(self, corpus: TokenCorpus, processor: TaaeProcessor, crop_frames: int):
        if corpus.bottleneck != processor.bottleneck:
            raise TaaeInputError(
                f"{corpus.folder}: holds tokens of {corpus.bottleneck}, but {processor.bottleneck} was expected, as in "
                "the corpus to train on; tokenise both with the same --bottleneck"
            )
        self.corpus, self.processor, self.crop_frames = corpus, processor, crop_frames
        self.texts = corpus.text_of_rows()
        # Row and first frame of each piece.
        self.pieces: list[tuple[int, int]] = []
        for row, frames in enumerate(corpus.rows["frames"]):
            if corpus.texts is None:
                self.pieces += [(row, start) for start in range(0, frames, crop_frames)]
            elif self.texts[row] and frames <= crop_frames:
                self.pieces.append((row, 0))
        self.left_out = len(self.texts) - len({row for row, _ in self.pieces})
        if not self.pieces:
            wanted = "" if corpus.texts is None else f" that has a text and is at most {crop_frames} frames long"
            raise TaaeInputError(f"{corpus.folder}: has no clip{wanted}; there is nothing to learn from")

    def __len__(self) -> int:
        return len(self.pieces)

    def clip(self, index: int) -> tuple[str, Tensor]:
        """Text and codes (tokens_per_frame, frames) int64 of a sequence."""
        row, start = self.pieces[index]
        return self.texts[row], torch.tensor(self.corpus.rows[row]["codes"][start : start + self.crop_frames]).T

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`input_ids` (length,) int64, and `labels`: the same from the span's first token on, to be predicted."""
        text, codes = self.clip(index)
        inputs = self.processor(text + self.processor.audio_token, audio_codes=codes, return_tensors="pt")
        ids = inputs["input_ids"][0]
        speech_begins = int((ids == self.processor.audio_bos_token_id).nonzero()[0]) + 1
        return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(len(ids)) < speech_begins, IGNORED)}

    def collate(self, sequences: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch: `input_ids`, `labels` and `attention_mask`, each (batch, length) int64, padded on the right."""
        lengths = torch.tensor([len(sequence["input_ids"]) for sequence in sequences])
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED}
        padded = {
            name: pad_sequence([sequence[name] for sequence in sequences], batch_first=True, padding_value=value)
            for name, value in fill.items()
        }
        return padded | {"attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long()}


def character_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token for each character of texts in lower case, which is enough for a model that only ever reads such."""
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    characters = sorted({character for text in texts for character in normalizer.normalize_str(text)})
    vocabulary = {token: index for index, token in enumerate([*special.values(), *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
