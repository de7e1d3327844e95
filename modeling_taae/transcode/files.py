"""Converts audio files to `.taae` files and back, for `taae encode`, `taae decode` and `taae reconstruct`."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ..audio_io import read_audio, write_audio
from ..batching import encode_clips, read_ahead
from ..codec import Codec
from ..entropy.prior import EntropyPrior
from ..files import display_name
from ..modeling_taae import TaaeModel
from ..taae_file import TaaeFile
from .job import Job, OnError


def encode_files(
    codec: Codec,
    jobs: Iterable[Job],
    bottleneck: str | list | tuple | None = None,
    on_error: OnError | None = None,
    read: Callable[[Path, int], np.ndarray] = read_audio,
    block_seconds: float | None = None,
) -> Iterator[Job]:
    """Encodes audio files into `.taae` files, each with the tokens that it gets alone.

    Args:
        codec: model and feature extractor.
        jobs: the audio files and their targets.
        bottleneck: a bottleneck as `TaaeModel.encode` takes it; None for the model's own.
        on_error: called with each job that failed and the error, while the others go on; None raises the error.
        read: the function that reads an audio file at a sampling rate.
        block_seconds: see [`encode_clips`].

    Yields:
        Each job once its target is in place; on a GPU the order differs from that of the jobs.

    Raises:
        TaaeInputError: if a file cannot be read or written, and there is no `on_error`.
    """
    failing = _Failing(on_error)

    def clips() -> Iterator[tuple[Job, np.ndarray]]:
        for job in jobs:
            with failing.reported(job):
                yield job, read(job.source, codec.model.config.sampling_rate)

    for job, encoded in encode_clips(codec, read_ahead(clips()), bottleneck, on_error, block_seconds):
        with failing.reported(job):
            encoded.save(job.target, codec.prior)
            yield job


def decode_files(
    codec: Codec,
    jobs: Iterable[Job],
    prior: EntropyPrior | None = None,
    force: bool = False,
    on_error: OnError | None = None,
) -> Iterator[Job]:
    """Decodes `.taae` files into audio files.

    Args:
        codec: model and feature extractor.
        jobs: the `.taae` files and their targets, which end in .wav or .flac.
        prior: the prior of the model that encoded; None for the codec's own.
        force: whether to decode the tokens of another model.
        on_error: see [`encode_files`].

    Yields:
        Each job once its target is in place.

    Raises:
        TaaeInputError: if a file cannot be read, decoded or written, and there is no `on_error`.
    """
    prior = codec.prior if prior is None else prior
    failing = _Failing(on_error)
    for job in jobs:
        with failing.reported(job):
            encoded = TaaeFile.load(job.source, prior)
            if not force:
                codec.check_identity(display_name(job.source), encoded.model_identity)
            write_audio(job.target, codec.decode(encoded), codec.model.config.sampling_rate)
            yield job


def reconstruct_files(
    codec: Codec,
    jobs: Iterable[Job],
    bottleneck: str | list | tuple | None = None,
    on_error: OnError | None = None,
    read: Callable[[Path, int], np.ndarray] = read_audio,
) -> Iterator[Job]:
    """Encodes audio files and writes the decoded audio; arguments, results and errors as for [`encode_files`]."""
    rate, failing = codec.model.config.sampling_rate, _Failing(on_error)
    for job in jobs:
        with failing.reported(job):
            encoded = codec.encode(read(job.source, rate), bottleneck)
            write_audio(job.target, codec.decode(encoded), rate)
            yield job


@contextmanager
def layer_progress(model: TaaeModel, report: Callable[[float], None]) -> Iterator[None]:
    """Reports the progress of a running encoder or decoder, as the completed share of its transformer layers' work.

    Args:
        model: the model to watch; its results do not change.
        report: called with a share from 0 to 1 after each layer; for long recordings, after each chunk in a layer.
    """
    rates = [math.prod(model.config.strides[block + 1 :]) for block in range(len(model.config.strides))]
    sides = (
        _Work(model.encoder, list(model.encoder.blocks), rates, model.config.hop_length, report),
        _Work(model.decoder, list(reversed(model.decoder.blocks)), rates, 1, report),
    )
    try:
        yield
    finally:
        for handle in (handle for side in sides for handle in side.handles):
            handle.remove()


class _Work:
    """Counts the work of an encoder or a decoder while its layers run.

    Args:
        network: the encoder or decoder, whose input has `hop_length` steps per frame of tokens.
        blocks: its blocks, in the order of the encoder.
        rates: steps per frame in the transformer layers of each block.
        hop_length: steps per frame at the network's input.
        report: called with the share of the work that is done.
    """

    def __init__(
        self, network: nn.Module, blocks: list, rates: list[int], hop_length: int, report: Callable[[float], None]
    ):
        sizes = [sum(value.numel() for value in block.transformer.parameters()) for block in blocks]
        per_frame = sum(size * rate for size, rate in zip(sizes, rates, strict=True))
        self.per_step: dict[nn.Module, float] = {
            layer: size / len(block.transformer.layers) / per_frame
            for block, size in zip(blocks, sizes, strict=True)
            for layer in block.transformer.layers
        }
        self.hop_length, self.report, self.done, self.frames = hop_length, report, 0.0, 1.0
        self.handles = [network.register_forward_pre_hook(self._begin)]
        self.handles += [layer.register_forward_hook(self._count) for layer in self.per_step]

    def _begin(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.done, self.frames = 0.0, inputs[0].shape[0] * inputs[0].shape[-1] / self.hop_length

    def _count(self, layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        self.done += self.per_step[layer] * inputs[0].shape[:-1].numel() / self.frames
        self.report(min(self.done, 1.0))


class _Failing:
    """Passes the errors of single jobs to a function, or raises them if there is none."""

    def __init__(self, on_error: OnError | None):
        self.on_error = on_error

    @contextmanager
    def reported(self, job: Job) -> Iterator[None]:
        """Reports an error raised within as the failure of a job."""
        try:
            yield
        except Exception as error:
            if self.on_error is None:
                raise
            self.on_error(job, error)
