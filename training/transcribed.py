"""Whole utterances with their text, for the CTC head."""

from collections.abc import Collection, Iterator

import numpy as np
import pyarrow.parquet
import torch
from datasets import Dataset

from modeling_taae import TaaeFeatureExtractor
from training.augmentation import INT16_FULL_SCALE
from training.data import CorpusError, corpus_origin, corpus_probabilities, decode_row, load_corpus
from training.recipe import CorpusConfig, CTCConfig

ATTEMPTS = 100  # draws without a recording that can be used, after which a corpus is given up


def split_units(text: str, units: str, ignored: Collection[str] = ()) -> list[str]:
    """Splits a text into symbols: its characters in lower case, or what stands between spaces, such as phonemes."""
    found = text.strip().lower() if units == "characters" else text.split()
    return [unit for unit in found if unit not in ignored]


class TranscribedCorpus:
    """The recordings of a corpus that have a text.

    Args:
        corpus: the recordings.
        settings: where the texts are.

    Raises:
        CorpusError: if there is no such column, or no recording has a text.
    """

    def __init__(self, corpus: CorpusConfig, settings: CTCConfig):
        joined = settings.transcripts is not None
        rows = load_corpus(corpus, columns=["id" if joined else settings.text_column])
        if joined:
            texts = read_transcripts(settings.transcripts, settings.text_column)
            texts = [texts.get(identifier) for identifier in rows["id"]]
        else:
            texts = [None if text is None else str(text) for text in rows[settings.text_column]]
        kept = [row for row, text in enumerate(texts) if text and split_units(text, settings.units, settings.ignored)]
        if not kept:
            raise CorpusError(f"No recording of {corpus.source!r} has a text in {settings.text_column!r}.")
        self.rows: Dataset = rows.select(kept)
        self.texts = [texts[row] for row in kept]
        self.origin = corpus_origin(corpus)
        self.source, self.audio_column, self.max_seconds = corpus.source, corpus.audio_column, settings.max_seconds

    def utterance(self, row: int, extractor: TaaeFeatureExtractor) -> tuple[np.ndarray, str] | None:
        """A recording (samples,) float32 and its text; None if it is too long or cannot be decoded."""
        audio = self.rows[row][self.audio_column]
        samples = decode_row(audio, extractor.sampling_rate, extractor.target_loudness, self.origin)
        if samples is None or len(samples) > self.max_seconds * extractor.sampling_rate:
            return None
        return samples.astype(np.float32) / INT16_FULL_SCALE, self.texts[row]


def read_transcripts(file: str, text_column: str) -> dict[str, str]:
    """Texts by `id` from a Parquet file.

    Raises:
        CorpusError: if there is no such file or column.
    """
    try:
        table = pyarrow.parquet.read_table(file, columns=["id", text_column])
        return dict(zip(table["id"].to_pylist(), table[text_column].to_pylist(), strict=True))
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise CorpusError(
            f"Cannot read the columns 'id' and {text_column!r} of {file!r}: {str(error).splitlines()[0]}"
        ) from error


class TranscribedSpeech(torch.utils.data.Dataset):
    """Utterances drawn at random: which is the n-th follows from the seed and n alone.

    Args:
        settings: corpora and texts.
        extractor: which rate and loudness to decode to.
        seed: of the sequence.

    Raises:
        CorpusError: if there is nothing to draw from.
    """

    def __init__(self, settings: CTCConfig, extractor: TaaeFeatureExtractor, seed: int):
        self.corpora = [TranscribedCorpus(corpus, settings) for corpus in settings.corpora]
        self.probabilities = corpus_probabilities(settings.corpora)
        self.extractor, self.seed, self.settings = extractor, seed, settings

    def symbols(self) -> list[str]:
        """All symbols of all texts, sorted."""
        units, ignored = self.settings.units, self.settings.ignored
        texts = (text for corpus in self.corpora for text in corpus.texts)
        return sorted({symbol for text in texts for symbol in split_units(text, units, ignored)})

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """Utterance `index`: (samples,) float32 and its text."""
        generator = np.random.default_rng((self.seed, index))
        corpus = self.corpora[generator.choice(len(self.corpora), p=self.probabilities)]
        for _ in range(ATTEMPTS):
            drawn = corpus.utterance(int(generator.integers(len(corpus.texts))), self.extractor)
            if drawn is not None:
                return drawn
        raise CorpusError(
            f"{ATTEMPTS} recordings of {corpus.source!r} in a row cannot be decoded, or are longer than "
            f"ctc.max_seconds, {corpus.max_seconds:g}."
        )

    def collate(self, utterances: list[tuple[np.ndarray, str]]) -> dict:
        """A batch: `input_values` (batch, 1, samples), `padding_mask` (batch, samples), and `texts`."""
        hop = self.extractor.hop_length
        longest = -(-max(len(samples) for samples, _ in utterances) // hop) * hop
        padded = [np.pad(samples, (0, longest - len(samples))) for samples, _ in utterances]
        lengths = torch.tensor([len(samples) for samples, _ in utterances])
        return {
            "input_values": torch.from_numpy(np.stack(padded))[:, None],
            "padding_mask": torch.arange(longest) < lengths[:, None],
            "texts": [text for _, text in utterances],
        }


def first_utterances(
    corpus: CorpusConfig, settings: CTCConfig, extractor: TaaeFeatureExtractor, count: int
) -> Iterator[tuple[np.ndarray, str]]:
    """The first utterances of a corpus that have a text, as many as there are up to a count."""
    transcribed = TranscribedCorpus(corpus, settings)
    for row in range(len(transcribed.texts)):
        if count > 0 and (drawn := transcribed.utterance(row, extractor)) is not None:
            count -= 1
            yield drawn
