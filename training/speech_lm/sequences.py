"""Makes training sequences for a language model from a corpus of speech tokens.

A sequence is an optional text and a span of speech (see `SpeechVocabulary`). The language model learns to predict the
tokens of the span and its end marker.
"""

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from modeling_taae import TaaeProcessor
from modeling_taae.errors import TaaeInputError
from training.speech_lm.corpora import TokenCorpus

# The label that Transformers ignores.
IGNORED = -100


class SpeechSequences(torch.utils.data.Dataset):
    """The sequences of a corpus.

    Without texts, clips are cut into crops of at most `crop_frames` whole frames, each a separate span. With texts,
    each whole clip follows its text; clips that are longer, or have no text, are left out.

    Args:
        corpus: the clips.
        processor: a processor for the clips' preset.
        crop_frames: largest number of frames of a sequence.

    Raises:
        TaaeInputError: if the corpus has another preset than the processor, or no sequence remains.
    """

    def __init__(self, corpus: TokenCorpus, processor: TaaeProcessor, crop_frames: int):
        if corpus.bottleneck != processor.bottleneck:
            raise TaaeInputError(
                f"{corpus.name}: holds tokens of {corpus.bottleneck}, but {processor.bottleneck} was expected, as in "
                "the corpus to train on; tokenise both with the same --bottleneck"
            )
        self.corpus, self.processor, self.crop_frames = corpus, processor, crop_frames
        self.texts = corpus.text_of_rows()
        # Row and first frame of each crop.
        self.crops: list[tuple[int, int]] = []
        for row, frames in enumerate(corpus.rows["frames"]):
            if corpus.texts is None:
                self.crops += [(row, start) for start in range(0, frames, crop_frames)]
            elif self.texts[row] and frames <= crop_frames:
                self.crops.append((row, 0))
        self.left_out = len(self.texts) - len({row for row, _ in self.crops})
        if not self.crops:
            wanted = "" if corpus.texts is None else f" that has a text and is at most {crop_frames} frames long"
            raise TaaeInputError(f"{corpus.name}: has no clip{wanted}; there is nothing to learn from")

    def __len__(self) -> int:
        return len(self.crops)

    def clip(self, index: int) -> tuple[str, Tensor]:
        """Returns a sequence's text and codes, (tokens_per_frame, frames) int64."""
        row, start = self.crops[index]
        return self.texts[row], torch.tensor(self.corpus.rows[row]["codes"][start : start + self.crop_frames]).T

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Returns `input_ids` (length,) int64, and `labels`, the same from the span's first token on."""
        text, codes = self.clip(index)
        inputs = self.processor(text + self.processor.audio_token, audio_codes=codes, return_tensors="pt")
        ids = inputs["input_ids"][0]
        speech_begins = int((ids == self.processor.audio_bos_token_id).nonzero()[0]) + 1
        return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(len(ids)) < speech_begins, IGNORED)}

    def collate(self, sequences: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pads on the right: `input_ids`, `labels` and `attention_mask`, each (batch, length) int64."""
        lengths = torch.tensor([len(sequence["input_ids"]) for sequence in sequences])
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED}
        padded = {
            name: pad_sequence([sequence[name] for sequence in sequences], batch_first=True, padding_value=value)
            for name, value in fill.items()
        }
        return padded | {"attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long()}


def character_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer for texts in lower case, with a token for each character in them."""
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    characters = sorted({character for text in texts for character in normalizer.normalize_str(text)})
    vocabulary = {token: index for index, token in enumerate([*special.values(), *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
