"""Turns a corpus of recorded speech into a data set of tokens, from the sources to the card."""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from .. import __version__
from ..audio_io import averaged_note
from ..codec import Codec, chosen_bottleneck, default_model, load_codec
from ..data.readers import UNIT_ROWS
from ..data.sources import Corpus
from ..errors import TaaeInputError, as_text
from ..files import as_json
from ..taae_file import format_bottleneck, parse_bottleneck
from .card import relicensed, token_card
from .encoder import CorpusEncoder, Encoding, Part
from .folder import Assembled, TokenFolder
from .manifest import CARD, REPORT, BottleneckFacts, Manifest, ModelFacts, Plan, SourceFacts
from .ray_workers import RayWorkers, Weights
from .report import Report, Speed
from .verification import open_token_folder

# Default number of threads that read audio, by type of device; for a GPU, one is not enough.
READERS = {"cpu": 1}
DEFAULT_READERS = 8


def tokenize_corpus(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    model: str | None = None,
    *,
    bottleneck: str | list | tuple | None = None,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    loudness: bool = True,
    split: str | None = None,
    subset: str | None = None,
    audio_column: str = "audio",
    id_column: str | None = None,
    audio_root: str | None = None,
    channel: int | None = None,
    shortest: float = 0.4,
    shard_hours: float = 100.0,
    readers: int | None = None,
    unit_rows: int = UNIT_ROWS,
    units_together: int | None = None,
    block_seconds: float | None = None,
    license: str | None = None,
    price_per_hour: float | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> Manifest:
    """Tokenises a corpus into a folder that `datasets.load_dataset` reads, as `taae tokenize` does.

    An interrupted run continues when it is called again with the same arguments. A complete folder is checked against
    its manifest, and nothing is encoded again.

    Args:
        sources: recordings, Parquet files, WebDataset archives, lists of recordings, folders of all these, patterns of
            their names, or names of data sets on the Hub; one or several.
        output: the folder to make.
        model: a model's folder or its name on the Hub; None for the default of `taae`.
        bottleneck: a preset's name, `"native"`, or stages, also as text; None for the model's own.
        device: a torch device, such as `"cuda:0"`; None for CUDA if available, else the CPU.
        dtype: the model's dtype: `"float32"`, `"bfloat16"` or `"float16"`.
        compile: true to compile the model's layers (see [`Codec.compiled`]).
        loudness: whether to normalise clips to the model's loudness.
        split: the split of a data set, and of the output; None for `"train"`.
        subset: the subset of a data set that has several.
        audio_column: the column with the audio.
        id_column: the column with ids; None for `id`, `utterance_id` or `segment_id`, if there is one.
        audio_root: a folder outside of the sources that may hold recordings named in them.
        channel: the channel of recordings to read, counted from 1; None for the mean of all.
        shortest: minimum duration in seconds; shorter clips are rejected.
        shard_hours: hours of audio in a shard.
        readers: the number of threads that decode audio; None for 8 with a GPU, else 1.
        unit_rows: the minimum number of rows of a unit, if the source does not fix it. An interrupted run repeats its
            unfinished units. A folder must be continued with the same number.
        units_together: the number of units encoded as one stream of clips; None for 1 on a CPU, else 64.
        block_seconds: the audio encoded in one batch, in seconds; less needs less GPU memory. None for 160 on a GPU and
            for single clips on a CPU.
        license: the licence of the recordings, as an identifier of the Hub, for the card.
        price_per_hour: the price of a GPU or core, for the report.
        ray: the address of a Ray cluster, `"auto"`, or `"local"` for the cores or GPUs of this machine.
        workers: the number of workers on the cluster; None for one per GPU, or per core.

    Returns:
        The folder's manifest, which is also in its manifest.json.

    Raises:
        TaaeInputError: if the model, a source, the folder or an argument cannot be used, no row could be tokenised, or
            a complete folder does not hold what its manifest lists.
    """
    if workers is not None and ray is None:
        raise TaaeInputError("--workers: works only with --ray; add --ray local for workers on this machine")
    names = [os.fspath(name) for name in ([sources] if isinstance(sources, str | Path) else sources)]
    check_output(names, output)
    corpus = Corpus(
        names, audio_column, id_column, split, subset, audio_root=audio_root, channel=channel, unit_rows=unit_rows
    )
    model = located(model or default_model())
    with RayWorkers(ray, workers, device) if ray else nullcontext() as cluster:
        codec = load_codec(model, "cpu" if cluster else device, loudness)
        kind = cluster.device if cluster else codec.model.device.type
        stages, read_by = chosen_bottleneck(codec, bottleneck), readers or READERS.get(kind, DEFAULT_READERS)
        encoding = Encoding(stages, dtype, shortest, read_by, units_together, compile, block_seconds)
        plan = Plan(
            model=codec.identity,
            bottleneck=format_bottleneck(stages),
            loudness=codec.extractor.target_loudness,
            dtype=dtype,
            device=kind,
            source=[f"{source['fingerprint']}-{source['units']}" for source in corpus.sources],
            split=split or "train",
            subset=subset,
            audio_column=audio_column,
            id_column=id_column,
            shortest=shortest,
            shard_hours=shard_hours,
            channel=channel,
            compile=compile,
        )
        with TokenFolder(Path(output), plan, len(corpus)) as folder:
            if folder.complete:
                return complete_folder(folder, license)
            units = folder.missing(corpus.schema)
            parts: Iterator[Part]
            if cluster:
                speed = Speed(kind, cluster.workers)
                parts = cluster.parts(corpus, encoding, Weights(model, codec.identity, loudness), units)
            else:
                speed = Speed(kind, 1, torch.get_num_threads() if kind == "cpu" else 1)
                parts = CorpusEncoder(corpus, encoding, codec).parts(units)
            for part in speed.measured(parts, len(corpus), done=len(corpus) - len(units)):
                folder.add(part)
            assembled = folder.assemble(plan.split, shard_hours)
            manifest = make_manifest(plan, codec, model, corpus, assembled)
            notes = [*corpus.notes, *([averaged_note(assembled.averaged)] if assembled.averaged else [])]
            report = replace(speed.report(price_per_hour), notes=tuple(notes))
            finish(folder, manifest, report, license)
    return manifest


def check_output(sources: list[str], output: str | Path) -> None:
    """Rejects an output folder inside a source, which would then read its own tokens.

    Raises:
        TaaeInputError: if it lies in a source.
    """
    for source in sources:
        if os.path.isdir(source) and Path(os.path.abspath(output)).is_relative_to(os.path.abspath(source)):
            raise TaaeInputError(f"-o {output}: is in {source}, which is read; choose a folder outside of it")


def located(model: str) -> str:
    """Returns a model's Hub name, or its folder as an absolute path, because workers may run in another folder."""
    return os.path.abspath(model) if os.path.isdir(model) else model


def complete_folder(folder: TokenFolder, license: str | None) -> Manifest:
    """Checks a complete folder, writes the licence into its card if one is given, and returns its manifest.

    Raises:
        TaaeInputError: if it does not hold what its manifest lists.
    """
    manifest = open_token_folder(folder.path)
    if license is not None:
        folder.write(folder.path / CARD, relicensed(folder.path / CARD, license))
    return manifest


def make_manifest(plan: Plan, codec: Codec, model: str, corpus: Corpus, assembled: Assembled) -> Manifest:
    """Returns the manifest of a folder whose shards are written."""
    config, quantizer = codec.model.config, codec.model.bottleneck(parse_bottleneck(plan.bottleneck))
    source = codec.token_source(parse_bottleneck(plan.bottleneck))
    name = as_text(Path(model).resolve().name) if os.path.isdir(model) else model
    return Manifest(
        versions={"modeling_taae": __version__, "torch": torch.__version__},
        model=ModelFacts(
            name=name,
            identity=codec.identity,
            sampling_rate=config.sampling_rate,
            hop_length=config.hop_length,
            frame_rate=config.frame_rate,
            token_identity=source.token_identity,
            ancestors=list(source.ancestors),
        ),
        bottleneck=BottleneckFacts(
            name=plan.bottleneck,
            vocabulary_sizes=list(quantizer.codebook_sizes),
            bit_rate=round(quantizer.bits_per_frame * config.frame_rate, 1),
        ),
        sources=[SourceFacts(**source) for source in corpus.sources],
        plan=plan,
        columns=assembled.columns,
        fingerprint=assembled.fingerprint,
        shards=assembled.shards,
        rejected=assembled.rejected,
    )


def finish(folder: TokenFolder, manifest: Manifest, report: Report, license: str | None) -> None:
    """Writes report, card and manifest of a folder, the manifest last.

    Raises:
        TaaeInputError: if one cannot be written.
    """
    folder.write(folder.path / REPORT, as_json(report.to_json()))
    folder.finish(token_card(folder.path.resolve().name, manifest, license), manifest)
