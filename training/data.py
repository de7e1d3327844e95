"""From data sets of recorded speech to training crops.

Audio is kept as bytes by `datasets`, decoded as the command line does, and brought to the loudness that the feature
extractor gives at inference. What cannot be decoded, or is cut short, is counted and left out.

Which crop comes n-th in a run follows from the seed and n alone, so a run that resumes goes on with exactly the crops
that it would have seen. `TrainingCrops` decodes its corpora once, to disk; `StreamedCrops` reads them as it goes.
"""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Audio, Dataset, Features, IterableDataset, LargeList, Value, interleave_datasets, load_dataset
from datasets.distributed import split_dataset_by_node
from tqdm import tqdm

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.audio_io import to_pcm16
from modeling_taae.data.utterances import Origin, decode_cell, fault, files_of, matching_paths
from modeling_taae.errors import TaaeInputError, one_line
from modeling_taae.feature_extraction_taae import GATING_BLOCK, normalize_loudness
from training.augmentation import INT16_FULL_SCALE, Augmenter
from training.recipe import CorpusConfig, DataConfig, RecipeError

LONGEST_VALIDATION = 20  # seconds, of which all at once are scored
DECODED_AT_ONCE = 4  # recordings, which can be hours long
# Not the Audio feature, which wants torchcodec even for undecoded audio, as soon as streams are interleaved.
AUDIO_BYTES = {"bytes": Value("binary"), "path": Value("string")}
DECODED = Features({"samples": LargeList(Value("int16"))})


class CorpusError(RecipeError):
    """A corpus that cannot be trained on; the message says which and why."""


def load_corpus(
    corpus: CorpusConfig, streaming: bool = False, columns: Sequence[str] = ()
) -> Dataset | IterableDataset:
    """The rows of a corpus with their audio as bytes, and with other columns if they are named.

    Raises:
        CorpusError: if there is nothing to read or no such column.
    """
    try:
        rows = open_corpus(corpus, streaming)
        found = rows.column_names or list(next(iter(rows), {}))
    except Exception as error:  # datasets raises many types; each means that there is nothing to train on
        raise CorpusError(f"No corpus at {corpus.source!r}: {one_line(error)}") from error
    wanted = [corpus.audio_column, *columns]
    for column in wanted:
        if column not in found:
            raise CorpusError(f"{corpus.source!r} has no column {column!r}; it has {', '.join(found)}.")
    return with_audio_bytes(rows.select_columns(wanted), corpus)


def open_corpus(corpus: CorpusConfig, streaming: bool) -> Dataset | IterableDataset:
    """The rows of Parquet files, of recordings by their names, or of a data set on the Hub.

    Raises:
        TaaeInputError: if there is no such file, or a folder holds nothing, or Parquet files beside recordings.
    """
    paths = matching_paths(corpus.source)
    if not paths:
        return load_dataset(corpus.source, corpus.subset, split=corpus.split, streaming=streaming)
    files = [file for path in paths for file in files_of(path)]
    if not files:
        raise TaaeInputError("it is a folder without recordings and Parquet files")
    tables = [str(file) for _, file in files if file.suffix == ".parquet"]
    if tables and len(tables) < len(files):
        raise TaaeInputError("it holds Parquet files and recordings; name one kind with a pattern, such as *.parquet")
    if tables:
        return load_dataset("parquet", data_files=tables, split="train", streaming=streaming)
    # Size and time, so that `datasets` decodes again what has changed.
    listed = [(name, str(file.resolve()), file.stat().st_size, file.stat().st_mtime) for name, file in files]
    features = Features({"id": Value("string"), corpus.audio_column: AUDIO_BYTES})
    recordings = {"files": listed, "audio_column": corpus.audio_column}
    rows = Dataset.from_generator(recording_rows, features, gen_kwargs=recordings)
    return rows.to_iterable_dataset() if streaming else rows


def recording_rows(files: list[tuple], audio_column: str) -> Iterator[dict]:
    """A row for each recording, by its name and path."""
    for name, path, *_ in files:
        yield {"id": name, audio_column: {"bytes": None, "path": path}}


def with_audio_bytes(rows: Dataset | IterableDataset, corpus: CorpusConfig) -> Dataset | IterableDataset:
    """The same rows, with a column of audio, however a data set holds it, as bytes or path.

    Raises:
        CorpusError: if the column holds something else.
    """
    column = corpus.audio_column
    if rows.features is None:  # of a stream that does not tell before it is read
        return rows.cast_column(column, AUDIO_BYTES)
    kind = rows.features[column]
    if kind == AUDIO_BYTES:
        return rows
    if isinstance(kind, Value) and kind.dtype in ("string", "large_string", "binary", "large_binary"):
        features = Features({**rows.features, column: AUDIO_BYTES})
        return rows.map(audio_cell, fn_kwargs={"audio_column": column}, features=features)
    if isinstance(kind, Audio) or (isinstance(kind, dict) and kind.keys() == AUDIO_BYTES.keys()):
        return rows.cast_column(column, AUDIO_BYTES)
    raise CorpusError(
        f"The column {column!r} of {corpus.source!r} holds {kind}; expected the bytes or the path of audio files."
    )


def corpus_origin(corpus: CorpusConfig) -> Origin:
    """What the cells of a corpus may name."""
    paths = matching_paths(corpus.source)
    if not paths:
        return Origin(dataset=corpus.source)
    files = [file for path in paths for _, file in files_of(path)]
    if not any(file.suffix == ".parquet" for file in files):
        return Origin(Path(os.path.abspath(os.sep)))  # recordings that were found, wherever links lead
    folders = {path if path.is_dir() else path.parent for path in paths}
    return Origin(Path(os.path.commonpath(map(os.path.abspath, folders))))


def audio_cell(row: dict, audio_column: str) -> dict:
    """A row whose audio is bare bytes, or a bare path, as a dictionary of both."""
    value = row[audio_column]
    is_path = isinstance(value, str)
    return {audio_column: {"bytes": None if is_path else value, "path": value if is_path else None}}


def decode_row(
    audio: dict | None, sampling_rate: int, target_loudness: float | None, origin: Origin
) -> np.ndarray | None:
    """One row's audio as (samples,) int16 at a rate in Hz and a loudness in LUFS; None if it cannot be decoded."""
    try:
        samples = decode_cell(audio, "", sampling_rate, origin)
    except (TaaeInputError, OSError):
        return None
    if target_loudness is not None:
        samples = normalize_loudness(samples, sampling_rate, target_loudness)
    return to_pcm16(samples)


def decode_batch(
    batch: dict, audio_column: str, sampling_rate: int, target_loudness: float | None, origin: Origin
) -> dict:
    """Rows of encoded audio -> as many rows of samples as can be decoded."""
    decoded = (decode_row(audio, sampling_rate, target_loudness, origin) for audio in batch[audio_column])
    return {"samples": [samples for samples in decoded if samples is not None]}


def with_origin(rows: IterableDataset, number: int) -> IterableDataset:
    """Rows that say which corpus they are of, which is lost when streams are interleaved."""
    return rows.map(lambda row: {"corpus": number})


class DecodedCorpus:
    """A decoded corpus on disk, from which any stretch of audio is about equally likely to be drawn.

    Args:
        corpus: what to decode.
        extractor: which rate and loudness to decode to.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        CorpusError: if nothing in it can be decoded, or all of it is silent.
    """

    def __init__(self, corpus: CorpusConfig, extractor: TaaeFeatureExtractor, workers: int = 0):
        rows = load_corpus(corpus)
        decoded = rows.map(
            decode_batch,
            batched=True,
            batch_size=DECODED_AT_ONCE,
            remove_columns=[corpus.audio_column],
            features=DECODED,
            # Plain values, so that `datasets` finds what an earlier run has decoded.
            fn_kwargs={
                "audio_column": corpus.audio_column,
                "sampling_rate": extractor.sampling_rate,
                "target_loudness": extractor.target_loudness,
                "origin": corpus_origin(corpus),
            },
            num_proc=min(workers, len(rows)) or None,
            desc=f"Decoding {corpus.source}",
        )
        self.skipped = len(rows) - len(decoded)
        self.decoded = decoded
        lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in self.column.chunks] or [[]])
        if lengths.sum() == 0:
            raise CorpusError(f"{corpus.source!r} holds no audio that can be decoded ({self.skipped} rows skipped).")
        if not any(chunk.values.to_numpy().any() for chunk in self.column.chunks):
            raise CorpusError(f"{corpus.source!r} is silent throughout.")
        self.ends = np.cumsum(lengths)

    @property
    def column(self) -> pa.ChunkedArray:
        """The samples of each recording. Not kept: workers would be sent all of it, and not where it lies on disk."""
        return self.decoded.data.column("samples")

    @property
    def samples(self) -> int:
        """Samples in all."""
        return int(self.ends[-1])

    def recording(self, generator: np.random.Generator) -> np.ndarray:
        """A recording, (samples,) int16, drawn at random in proportion to its length."""
        row = int(np.searchsorted(self.ends, generator.integers(self.samples), side="right"))
        return self.column[row].values.to_numpy()


class TrainingCrops(torch.utils.data.Dataset):
    """Training crops, (1, samples) float32, from corpora that are decoded to disk first: crop n is item n, without end.

    Args:
        data: corpora, crop length and augmentation.
        extractor: which rate and loudness to decode to.
        seed: of the sequence.

    Raises:
        CorpusError: if there is nothing to train on.
        AugmentationError: if there is nothing to augment with.
    """

    def __init__(self, data: DataConfig, extractor: TaaeFeatureExtractor, seed: int):
        self.corpora = [DecodedCorpus(corpus, extractor, data.workers) for corpus in data.corpora]
        self.probabilities = corpus_probabilities(data.corpora)
        self.crop_length = data.crop_frames * extractor.hop_length
        self.augmenter, self.seed = Augmenter(data.augmentation, extractor.sampling_rate), seed

    @property
    def skipped(self) -> int:
        """Rows that could not be decoded."""
        return sum(corpus.skipped for corpus in self.corpora)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Crop `index`, whichever process asks for it."""
        generator = np.random.default_rng((self.seed, index))
        corpus = self.corpora[generator.choice(len(self.corpora), p=self.probabilities)]
        return self.augmenter.draw(corpus.recording(generator), generator, self.crop_length)


class StreamedCrops(torch.utils.data.IterableDataset):
    """Training crops of one process, (1, samples) float32, from corpora that are read as training goes: one crop a row.

    Rows come in the order of a shuffle buffer. A row that cannot be decoded gives silence in its place, which keeps the
    count of rows, and so the place to resume at, right, and is counted; the rows before that place are read again, but
    not decoded.

    Args:
        data: corpora, crop length and augmentation.
        extractor: which rate and loudness to decode to.
        seed: of the sequence.
        process, processes: which share of the rows to read, of how many.
        first: the crop to start with.

    Raises:
        CorpusError: if there is nothing to train on.
        AugmentationError: if there is nothing to augment with.
    """

    def __init__(
        self, data: DataConfig, extractor: TaaeFeatureExtractor, seed: int, process: int, processes: int, first: int
    ):
        # Columns of one name, whatever each corpus calls them, so that they can be interleaved.
        streams = [
            with_origin(load_corpus(corpus, streaming=True).rename_column(corpus.audio_column, "crop_source"), number)
            for number, corpus in enumerate(data.corpora)
        ]
        self.origins = list(map(corpus_origin, data.corpora))
        rows = interleave_datasets(
            streams,
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
        """The crops from the first on, without end.

        Raises:
            CorpusError: after a round of the corpora in which no row came, or none that could be decoded.
        """
        index = 0
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            start, tried, skipped = index, 0, 0
            for row in self.rows:
                if index >= self.first:
                    samples = decode_row(row["crop_source"], *self.target, self.origins[row["corpus"]])
                    tried, skipped = tried + 1, skipped + (samples is None)
                    yield self._crop(index, samples)
                index += 1
            self._check_round(index - start, tried, skipped)

    def _crop(self, index: int, samples: np.ndarray | None) -> torch.Tensor:
        generator = np.random.default_rng((self.seed, self.process, index))
        recording = np.zeros(0, np.int16) if samples is None else samples
        return self.augmenter.draw(recording, generator, self.crop_length)

    def _check_round(self, rows: int, tried: int, skipped: int) -> None:
        share = f"the share of process {self.process + 1} of {self.processes}"
        if rows == 0:
            raise CorpusError(f"There is no row of the corpora in {share}; they are empty, or have too few rows.")
        if skipped == rows:
            raise CorpusError(f"No audio can be decoded of {rows} rows in {share}.")
        if skipped:
            tqdm.write(f"{skipped} of {tried} recordings could not be decoded in {share}.", file=sys.stderr)


def corpus_probabilities(corpora: list[CorpusConfig]) -> np.ndarray:
    """How often to draw from each corpus, in sum 1.

    Raises:
        CorpusError: if there is no corpus, or the weights are not all positive.
    """
    if not corpora:
        raise CorpusError("The recipe names no corpus; list at least one under data.corpora.")
    weights = np.array([corpus.weight for corpus in corpora], dtype=np.float64)
    if not (weights > 0).all():
        raise CorpusError(f"The weights of corpora must be positive, not {weights.tolist()}.")
    return weights / weights.sum()


def validation_clips(
    corpus: CorpusConfig, extractor: TaaeFeatureExtractor, utterances: int, streaming: bool = False
) -> Iterator[np.ndarray]:
    """The first utterances of a corpus as (samples,) float32 at the model's rate, loudness and full scale of 1.

    Of long recordings it is the beginning. Those that cannot be scored, because they are undecodable, silent or too
    short, are left out.
    """
    rows = load_corpus(corpus, streaming)
    origin = corpus_origin(corpus)
    for row in rows.take(utterances):
        samples = decode_row(row[corpus.audio_column], extractor.sampling_rate, extractor.target_loudness, origin)
        if samples is None:
            continue
        clip = samples[: LONGEST_VALIDATION * extractor.sampling_rate].astype(np.float32) / INT16_FULL_SCALE
        if not fault(clip, extractor.sampling_rate, GATING_BLOCK):
            yield clip
