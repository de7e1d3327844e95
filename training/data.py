"""Draws training crops from corpora of recorded speech.

Speech is read as in all commands (`modeling_taae.data`), decoded, and normalised to the loudness of the feature
extractor at inference. Recordings that cannot be decoded, or are truncated, are counted and left out.

The n-th crop of a run depends only on the seed and n, so a resumed run continues with exactly the crops that it would
have seen. `TrainingCrops` decodes its corpora once, to disk; `StreamedCrops` reads them during training.
"""

import itertools
import json
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, IterableDataset, Value, interleave_datasets
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetGenerationError
from datasets.io.generator import GeneratorDatasetInputStream
from pyarrow import compute
from tqdm import tqdm

from modeling_taae import TaaeFeatureExtractor, __version__
from modeling_taae.audio_io import averaged_note, to_pcm16
from modeling_taae.batching import mapped_ahead
from modeling_taae.data.decode import decode_row, fault
from modeling_taae.data.row import Row
from modeling_taae.data.sources import Corpus
from modeling_taae.errors import TaaeInputError, one_line
from modeling_taae.feature_extraction_taae import GATING_BLOCK, normalize_loudness
from training.augmentation import INT16_FULL_SCALE, Augmenter
from training.recipe import CorpusConfig, DataConfig, RecipeError

LONGEST_VALIDATION = 20  # longest validation clip in seconds; clips are scored whole
DECODED_AT_ONCE = 4  # recordings in memory, because they can be hours long
# Samples are int16, in bytes; none if `problem` gives a reason. Columns are JSON.
DECODED = Features(
    {
        "id": Value("string"),
        "columns": Value("string"),
        "samples": Value("large_binary"),
        "problem": Value("string"),
        "averaged": Value("bool"),
    }
)
# Rows in a form that streams of `datasets` can hold.
PICKLED = Features({"row": Value("binary")})


class CorpusError(RecipeError):
    """A corpus that cannot be trained on; the message gives the corpus and the reason."""


def open_corpus(corpus: CorpusConfig, streamed: bool = False) -> Corpus:
    """Opens a corpus of a recipe.

    Args:
        corpus: the corpus's entry in the recipe.
        streamed: whether a data set on the Hub is streamed rather than downloaded first.

    Raises:
        CorpusError: if there is nothing to read.
    """
    try:
        return Corpus(
            [corpus.source],
            corpus.audio_column,
            subset=corpus.subset,
            hub_split=corpus.split,
            audio_root=corpus.audio_root,
            channel=corpus.channel,
            names_by_source=True,
            streamed=streamed,
        )
    except TaaeInputError as error:
        raise CorpusError(f"No corpus at {corpus.source!r}: {one_line(error)}") from error


def rows_of(corpus: Corpus, units: Iterable[int]) -> Iterator[Row]:
    """Yields the rows of units of a corpus.

    Raises:
        CorpusError: if a source can no longer be read.
    """
    try:
        for unit in units:
            yield from corpus.rows(unit)
    except TaaeInputError as error:
        raise CorpusError(one_line(error)) from error


class Pcm(NamedTuple):
    """A decoded recording.

    Args:
        samples: (samples,) int16.
        problem: the reason why there are no samples; empty if there are.
        averaged: whether several channels were averaged.
    """

    samples: np.ndarray
    problem: str = ""
    averaged: bool = False


def decode_to_pcm(row: Row, sampling_rate: int, target_loudness: float | None) -> Pcm:
    """Decodes a row.

    Args:
        row: the recording.
        sampling_rate: the rate to decode to, in Hz.
        target_loudness: the loudness to normalise to, in LUFS; None leaves it unchanged.

    Raises:
        CorpusError: if it cannot be read for a reason other than its content, so that a later run may succeed.
    """
    try:
        recording = decode_row(row, sampling_rate)
    except TaaeInputError as error:
        return Pcm(np.zeros(0, np.int16), one_line(error).removeprefix(f"{row.id}: "))
    except OSError as error:
        raise CorpusError(
            f"{row.id}: cannot be read ({error.strerror or one_line(error)}); correct this, then start the run again"
        ) from error
    samples = recording.audio
    if target_loudness is not None:
        samples = normalize_loudness(samples, sampling_rate, target_loudness)
    return Pcm(to_pcm16(samples), averaged=recording.averaged)


def decode_for_disk(row: Row, sampling_rate: int, target_loudness: float | None) -> dict[str, Any]:
    """Returns a row of a decoded corpus (see `DECODED`)."""
    samples, problem, averaged = decode_to_pcm(row, sampling_rate, target_loudness)
    columns = json.dumps({name: value for name, value in row.columns.items() if isinstance(value, str | int)})
    return {
        "id": row.id,
        "columns": columns,
        "samples": samples.tobytes(),
        "problem": problem,
        "averaged": averaged,
    }


def decoded_rows(corpus: Corpus, source: str, decode: Callable[[Row], dict], workers: int) -> Iterator[dict]:
    """Yields the rows of a corpus, decoded by several processes, in their order."""
    rows = tqdm(rows_of(corpus, range(len(corpus))), f"Decoding {source}", corpus.known_rows, disable=None)
    if workers < 2:
        yield from map(decode, rows)
        return
    with ProcessPoolExecutor(workers) as executor:
        yield from mapped_ahead(executor, decode, rows, 2 * workers)


def counted(problems: list[str]) -> str:
    """Returns the number of recordings that are left out for each kind of reason, with one full example of each."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.partition(":")[0].partition(" (")[0], []).append(problem)
    return "; ".join(f"{len(each)} × {each[0]}" for each in kinds.values()) or "it has no rows"


class DecodedCorpus:
    """A decoded corpus on disk; all of its audio is about equally likely to be drawn.

    It is decoded again if one of its files has another size or modification time, or a missing file has appeared.

    Args:
        corpus: the corpus to decode.
        extractor: the feature extractor whose rate and loudness to decode to.
        workers: processes that decode; 0 decodes in this one.

    Attributes:
        decoded: all rows, including those without samples.
        problems: the reasons why recordings are left out.
        averaged: the number of recordings whose channels were averaged.
        notes: lines about files of the corpus that are not read.

    Raises:
        CorpusError: if it cannot be read, nothing in it can be decoded, or all of it is silent.
    """

    def __init__(self, corpus: CorpusConfig, extractor: TaaeFeatureExtractor, workers: int = 0):
        opened, target = open_corpus(corpus), (extractor.sampling_rate, extractor.target_loudness)
        self.notes = opened.notes
        decode = partial(decode_for_disk, sampling_rate=target[0], target_loudness=target[1])
        try:
            self.decoded = Dataset.from_generator(
                decoded_rows,
                features=DECODED,
                gen_kwargs={"corpus": opened, "source": corpus.source, "decode": decode, "workers": workers},
                fingerprint=f"taae-{__version__}-2-{opened.fingerprint()}-{target[0]}-{target[1]}",
                writer_batch_size=DECODED_AT_ONCE,
            )
        except DatasetGenerationError as error:
            raise CorpusError(one_line(error.__cause__ or error)) from error
        self.problems = [problem for problem in self.decoded["problem"] if problem]
        self.averaged = sum(self.decoded["averaged"])
        lengths = np.concatenate([compute.binary_length(chunk).to_numpy() for chunk in self.column.chunks] or [[]])
        if lengths.sum() == 0:
            raise CorpusError(
                f"{corpus.source!r} holds no audio that can be decoded ({self.skipped} rows skipped): "
                f"{counted(self.problems)}."
            )
        if not any(self.samples_of(row).any() for row in range(len(self.decoded))):
            raise CorpusError(f"{corpus.source!r} is silent throughout.")
        self.ends = np.cumsum(lengths // 2)

    @property
    def column(self) -> pa.ChunkedArray:
        """The samples of each recording; not stored, because pickling for workers would then copy all samples."""
        return self.decoded.data.column("samples")

    @property
    def skipped(self) -> int:
        """The number of rows that could not be decoded."""
        return len(self.problems)

    @property
    def samples(self) -> int:
        """The total number of samples."""
        return int(self.ends[-1])

    def samples_of(self, row: int) -> np.ndarray:
        """Returns the recording of a row, (samples,) int16, empty if it could not be decoded."""
        return np.frombuffer(self.column[row].as_buffer(), np.int16)

    def recording(self, generator: np.random.Generator) -> np.ndarray:
        """Draws a recording, (samples,) int16, with a probability proportional to its length."""
        return self.samples_of(int(np.searchsorted(self.ends, generator.integers(self.samples), side="right")))


class TrainingCrops(torch.utils.data.Dataset):
    """Training crops, (1, samples) float32, from corpora that are decoded to disk first; crop n is item n, endlessly.

    Args:
        data: corpora, crop length and augmentation.
        extractor: the feature extractor whose rate and loudness to decode to.
        seed: the sequence's seed.

    Raises:
        CorpusError: if there is nothing to train on.
        AugmentationError: if there is nothing to augment with.
    """

    def __init__(self, data: DataConfig, extractor: TaaeFeatureExtractor, seed: int):
        self.corpora = [DecodedCorpus(corpus, extractor, data.workers or 0) for corpus in data.corpora]
        self.probabilities = corpus_probabilities(data.corpora)
        self.crop_length = data.crop_frames * extractor.hop_length
        self.augmenter, self.seed = Augmenter(data.augmentation, extractor.sampling_rate), seed

    @property
    def skipped(self) -> int:
        """The number of rows that could not be decoded."""
        return sum(corpus.skipped for corpus in self.corpora)

    @property
    def averaged(self) -> int:
        """The number of recordings whose channels were averaged."""
        return sum(corpus.averaged for corpus in self.corpora)

    @property
    def reasons(self) -> str:
        """The reasons why rows could not be decoded, with their numbers."""
        return counted([problem for corpus in self.corpora for problem in corpus.problems])

    def __getitem__(self, index: int) -> torch.Tensor:
        """Returns crop `index`, the same in every process."""
        generator = np.random.default_rng((self.seed, index))
        corpus = self.corpora[generator.choice(len(self.corpora), p=self.probabilities)]
        return self.augmenter.draw(corpus.recording(generator), generator, self.crop_length)


class StreamedCrops(torch.utils.data.IterableDataset):
    """Training crops of one process, (1, samples) float32, one per row, from corpora that are read during training.

    Rows come in the order of a shuffle buffer. A row that cannot be decoded is counted and replaced by silence, so that
    a run resumes at the right row. A resumed run reads the earlier rows again, but does not decode them.

    Args:
        data: corpora, crop length and augmentation.
        extractor: the feature extractor whose rate and loudness to decode to.
        seed: the sequence's seed.
        process, processes: the index of this process and the number of processes; each reads a share of the rows.
        first: the index of the crop to start with.

    Raises:
        CorpusError: if there is nothing to train on.
        AugmentationError: if there is nothing to augment with.
    """

    def __init__(
        self, data: DataConfig, extractor: TaaeFeatureExtractor, seed: int, process: int, processes: int, first: int
    ):
        corpora = [open_corpus(corpus, streamed=True) for corpus in data.corpora]
        self.notes = [note for corpus in corpora for note in corpus.notes]
        rows = interleave_datasets(
            list(map(stream_of, corpora)),
            probabilities=list(corpus_probabilities(data.corpora)),
            seed=seed,
            stopping_strategy="all_exhausted",
        )
        rows = rows.shuffle(seed=seed, buffer_size=data.shuffle_buffer)
        self.rows = split_dataset_by_node(rows, rank=process, world_size=processes)
        self.target = extractor.sampling_rate, extractor.target_loudness
        self.augmenter = Augmenter(data.augmentation, extractor.sampling_rate)
        self.crop_length = data.crop_frames * extractor.hop_length
        self.seed, self.process, self.processes, self.first = seed, process, processes, first

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yields the crops from the first one on, endlessly.

        Raises:
            CorpusError: if a full pass over the corpora gave no row, or none that can be decoded.
        """
        index = 0
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            start, tried, averaged = index, 0, 0
            problems: list[str] = []
            for row in self.rows:
                if index >= self.first:
                    samples, problem, is_averaged = decode_to_pcm(pickle.loads(row["row"]), *self.target)
                    tried, averaged = tried + 1, averaged + is_averaged
                    problems += [problem] if problem else []
                    generator = np.random.default_rng((self.seed, self.process, index))
                    yield self.augmenter.draw(samples, generator, self.crop_length)
                index += 1
            self._check_round(index - start, tried, problems)
            if averaged and not epoch:
                tqdm.write(averaged_note(averaged), file=sys.stderr)

    def _check_round(self, rows: int, tried: int, problems: list[str]) -> None:
        share = f"the share of process {self.process + 1} of {self.processes}"
        if rows == 0:
            raise CorpusError(f"There is no row of the corpora in {share}; they are empty, or have too few rows.")
        if len(problems) == rows:
            raise CorpusError(f"No audio can be decoded of {rows} rows in {share} ({counted(problems)}).")
        if problems:
            message = f"{len(problems)} of {tried} recordings could not be decoded in {share}: {counted(problems)}."
            tqdm.write(message, file=sys.stderr)


def stream_of(corpus: Corpus) -> IterableDataset:
    """Returns the rows of a corpus as a stream of `datasets`, which shuffles the corpus's files and then its rows."""
    # Not `IterableDataset.from_generator`, which hashes the corpus: that takes minutes for a million recordings.
    return GeneratorDatasetInputStream(
        pickled_rows,
        PICKLED,
        streaming=True,
        gen_kwargs={"corpus": corpus, "shards": corpus.shards()},
        fingerprint=corpus.fingerprint(),
    ).read()


def pickled_rows(corpus: Corpus, shards: list[list[int]]) -> Iterator[dict[str, bytes]]:
    """Yields the rows of some of a corpus's shards."""
    for row in rows_of(corpus, itertools.chain.from_iterable(shards)):
        yield {"row": pickle.dumps(row)}


def corpus_probabilities(corpora: list[CorpusConfig]) -> np.ndarray:
    """Returns the share of crops from each corpus, (corpora,) float64, which sum to 1.

    Raises:
        CorpusError: if there is no corpus, or the weights are not all positive.
    """
    if not corpora:
        raise CorpusError("The recipe names no corpus; list at least one under data.corpora.")
    weights = np.array([corpus.weight for corpus in corpora], dtype=np.float64)
    if not (weights > 0).all():
        raise CorpusError(f"The weights of corpora must be positive, not {weights.tolist()}.")
    return weights / weights.sum()


class ValidationClip(NamedTuple):
    """An utterance of validation, (samples,) float32, and what is known of it, such as its text and language."""

    audio: np.ndarray
    facts: Mapping[str, str]


def validation_clips(
    corpus: CorpusConfig, extractor: TaaeFeatureExtractor, utterances: int, streaming: bool = False
) -> Iterator[np.ndarray]:
    """Yields the audio of [`validation_utterances`]."""
    for utterance in validation_utterances(corpus, extractor, utterances, streaming):
        yield utterance.audio


def validation_utterances(
    corpus: CorpusConfig, extractor: TaaeFeatureExtractor, utterances: int, streaming: bool = False
) -> Iterator[ValidationClip]:
    """Yields the first utterances of a corpus, (samples,) float32 at the model's rate and loudness, full scale 1.

    Long recordings are cut to their beginning, and lose their text. Recordings that cannot be decoded, are silent or
    too short are left out.

    Args:
        corpus: the corpus.
        extractor: the feature extractor whose rate and loudness to decode to.
        utterances: number of rows to take from the start.
        streaming: whether a data set on the Hub is streamed rather than downloaded first.

    Raises:
        CorpusError: if the corpus cannot be read.
    """
    opened, longest = open_corpus(corpus, streaming), LONGEST_VALIDATION * extractor.sampling_rate
    for row in itertools.islice(rows_of(opened, range(len(opened))), utterances):
        samples, problem, _ = decode_to_pcm(row, extractor.sampling_rate, extractor.target_loudness)
        clip = samples[:longest].astype(np.float32) / INT16_FULL_SCALE
        if not problem and not fault(clip, extractor.sampling_rate, GATING_BLOCK):
            facts = {name: value for name, value in row.facts.items() if name != "text" or len(samples) <= longest}
            yield ValidationClip(clip, facts)
