"""Whole utterances with their texts, for the CTC head."""

import json
from collections.abc import Callable, Collection, Iterator

import numpy as np
import torch

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.data.row import Row
from modeling_taae.data.utterances import read_transcripts
from modeling_taae.errors import TaaeInputError, one_line
from training.augmentation import INT16_FULL_SCALE
from training.data import CorpusError, DecodedCorpus, corpus_probabilities, decode_to_pcm, open_corpus, rows_of
from training.recipe import CorpusConfig, CTCConfig

ATTEMPTS = 100  # draws without a usable recording after which a corpus is given up


def split_units(text: str, units: str, ignored: Collection[str] = ()) -> list[str]:
    """Splits a text into symbols: its characters in lower case, or symbols separated by spaces, such as phonemes."""
    found = text.strip().lower() if units == "characters" else text.split()
    return [unit for unit in found if unit not in ignored]


class TranscribedCorpus:
    """The recordings of a corpus that have a text, decoded on disk.

    Args:
        corpus: the recordings.
        settings: the column or file of the texts.
        extractor: the feature extractor whose rate and loudness to decode to.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        CorpusError: if it cannot be read, or no recording has a text.
    """

    def __init__(self, corpus: CorpusConfig, settings: CTCConfig, extractor: TaaeFeatureExtractor, workers: int = 0):
        self.source, self.longest = corpus.source, settings.max_seconds * extractor.sampling_rate
        self.max_seconds, self.decoded = settings.max_seconds, DecodedCorpus(corpus, extractor, workers)
        rows = self.decoded.decoded.select_columns(["id", "columns"])
        text_of = text_reader(settings)
        texts = [text_of(Row(row["id"], "", columns=json.loads(row["columns"]))) for row in rows]
        self.kept = [row for row, text in enumerate(texts) if text]
        self.texts = [text for text in texts if text]
        if not self.kept:
            columns = dict.fromkeys(name for row in rows for name in json.loads(row["columns"]))
            raise without_text(corpus, settings, list(columns))

    def utterance(self, number: int) -> tuple[np.ndarray, str] | None:
        """Returns a recording (samples,) float32 and its text; None if it is too long or could not be decoded."""
        samples = self.decoded.samples_of(self.kept[number])
        if not 0 < len(samples) <= self.longest:
            return None
        return samples.astype(np.float32) / INT16_FULL_SCALE, self.texts[number]


def text_reader(settings: CTCConfig) -> Callable[[Row], str | None]:
    """Returns a function that returns the text of a row, None if it has none.

    Raises:
        CorpusError: if a file of texts cannot be read.
    """
    texts = None
    if settings.transcripts is not None:
        column = settings.text_column or "text"
        try:
            texts = read_transcripts(settings.transcripts, column)
        except TaaeInputError as error:
            reason = one_line(error.__cause__ or error)
            raise CorpusError(
                f"Cannot read the columns 'id' and {column!r} of {settings.transcripts!r}: {reason}"
            ) from error

    def text_of(row: Row) -> str | None:
        text = row.text(settings.text_column) if texts is None else texts.get(row.id)
        return text if text and split_units(text, settings.units, settings.ignored) else None

    return text_of


def without_text(corpus: CorpusConfig, settings: CTCConfig, columns: list[str]) -> CorpusError:
    """Returns the error for a corpus without texts, which lists its columns."""
    there = ", ".join(columns) or "none"
    if settings.transcripts is not None:
        return CorpusError(f"No recording of {corpus.source!r} has its id in {settings.transcripts!r}.")
    if settings.text_column is None:
        return CorpusError(
            f"{corpus.source!r} has no texts under a usual name, such as text, sentence or transcription; its columns "
            f"are {there}. Name the one with the texts: ctc.text_column."
        )
    if settings.text_column not in columns:
        return CorpusError(f"{corpus.source!r} has no column {settings.text_column!r}; it has {there}.")
    return CorpusError(f"No recording of {corpus.source!r} has a text in {settings.text_column!r}.")


class TranscribedSpeech(torch.utils.data.Dataset):
    """Random utterances; the n-th one depends only on the seed and n.

    Args:
        settings: the corpora and the column or file of their texts.
        extractor: the feature extractor whose rate and loudness to decode to.
        seed: the sequence's seed.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        CorpusError: if there is nothing to draw from.
    """

    def __init__(self, settings: CTCConfig, extractor: TaaeFeatureExtractor, seed: int, workers: int = 0):
        self.corpora = [TranscribedCorpus(corpus, settings, extractor, workers) for corpus in settings.corpora]
        self.probabilities = corpus_probabilities(settings.corpora)
        self.extractor, self.seed, self.settings = extractor, seed, settings

    def symbols(self) -> list[str]:
        """Returns all symbols of all texts, sorted."""
        units, ignored = self.settings.units, self.settings.ignored
        texts = (text for corpus in self.corpora for text in corpus.texts)
        return sorted({symbol for text in texts for symbol in split_units(text, units, ignored)})

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """Returns utterance `index`: (samples,) float32 and its text."""
        generator = np.random.default_rng((self.seed, index))
        corpus = self.corpora[generator.choice(len(self.corpora), p=self.probabilities)]
        for _ in range(ATTEMPTS):
            drawn = corpus.utterance(int(generator.integers(len(corpus.texts))))
            if drawn is not None:
                return drawn
        raise CorpusError(
            f"{ATTEMPTS} recordings of {corpus.source!r} in a row cannot be decoded, or are longer than "
            f"ctc.max_seconds, {corpus.max_seconds:g}."
        )

    def collate(self, utterances: list[tuple[np.ndarray, str]]) -> dict:
        """Returns a batch: `input_values` (batch, 1, samples), `padding_mask` (batch, samples), and `texts`."""
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
    """Yields the first utterances of a corpus that have a text, at most `count`.

    Raises:
        CorpusError: if it cannot be read, or none of its recordings has a text.
    """
    opened, text_of = open_corpus(corpus), text_reader(settings)
    columns: dict[str, None] = {}
    has_texts = False
    for row in rows_of(opened, range(len(opened))):
        columns |= dict.fromkeys(row.columns)
        if count == 0:
            return
        if (text := text_of(row)) is None:
            continue
        has_texts = True
        samples, problem, _ = decode_to_pcm(row, extractor.sampling_rate, extractor.target_loudness)
        if not problem and len(samples) <= settings.max_seconds * extractor.sampling_rate:
            count -= 1
            yield samples.astype(np.float32) / INT16_FULL_SCALE, text
    if not has_texts:
        raise without_text(corpus, settings, list(columns))
