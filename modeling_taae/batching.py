"""Encodes many clips in blocks of fixed shape: a clip gets the same tokens whatever else is encoded, in any order.

Matrix products, convolutions and attention sum in an order that depends on the shape of their inputs. In a padded
batch a latent therefore differs by about 1e-6 from what it is alone, and its token flips where it lies on a rounding
tie. Here the shape in which a clip is computed depends on the clip's own length alone. One machine and build, with one
number of threads, therefore gives a clip the same tokens every time.

- On a CPU a block is a single clip at its own length. It shares no product with another clip, so nothing is assumed
  about the kernels. Compared with the best padded batches, on one thread, the model of 13M parameters takes 1.6 times
  as long for clips of 2.5 s, which is 4 ms for each second of speech, 1.2 times at 6 s and 1.1 times at 14 s; layers of
  the 950M model take 1.1 times as long at 6 s (`training/benchmarks/determinism.py`). Finer blocks cost more. Products
  over tiles of steps do, because a clip's last tile is never full. Windows of audio do, because each needs its
  receptive field on both sides, which is 9 s with 13M parameters and 61 s with 950M.
- On a GPU, which one clip leaves idle, lengths are rounded up to whole seconds, and a block holds as many clips of one
  such length as make up a fixed number of seconds. The last blocks are filled up with empty rows. This relies on
  kernels that treat all rows of a tensor alike, which a test checks where there is a GPU.

The cost is small, so this is the only mode.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar, cast

import numpy as np

from .codec import Codec
from .taae_file import TaaeFile

Item = TypeVar("Item")
Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)

# Seconds of audio in a block of several clips on a GPU; on a CPU each clip is a block by itself.
BLOCK_SECONDS = 160
# Seconds of audio that may wait for others of their length before a block is filled up with empty rows.
WAITING_SECONDS = 3600


class BlockShape(NamedTuple):
    """The shape in which clips of one length are computed: clips at once, and samples to which each is padded."""

    rows: int
    samples: int


def encode_clips(
    codec: Codec,
    clips: Iterable[tuple[Key, np.ndarray]],
    bottleneck: str | list | tuple | None = None,
    on_error: Callable[[Key, Exception], None] | None = None,
    block_seconds: float | None = None,
) -> Iterator[tuple[Key, TaaeFile]]:
    """Encodes clips as they come, whatever their lengths and their number.

    Args:
        codec: model and feature extractor.
        clips: the clips, each with a key: (samples,) float32 mono at the model's rate, at least one sample. They are
            taken as they are needed; on a GPU up to an hour of them waits for others of the same length.
        bottleneck: a bottleneck as `TaaeModel.encode` takes it; None for the model's own.
        on_error: called with the key of each clip that could not be encoded and the error, while the others go on;
            None raises the error.
        block_seconds: seconds of audio in a block of several clips of one length, less where memory is short; None for
            160 on a GPU, and for single clips on a CPU.

    Yields:
        Each clip's key with its tokens; on a GPU the order differs from that of the clips.
    """

    def shape(samples: int) -> BlockShape:
        return block_shape(samples, codec, block_seconds)

    def encode(block: list[tuple[Key, np.ndarray]], rows: int, samples: int) -> Iterator[tuple[Key, TaaeFile]]:
        try:
            encoded = codec.encode_block([audio for _, audio in block], rows, samples, bottleneck)
        except Exception as error:
            if on_error is None:
                raise
            if len(block) == 1:
                on_error(block[0][0], error)
                return
        else:
            yield from zip([key for key, _ in block], encoded, strict=True)
            return
        # One clip caused the error; encoded one by one, the others get the same tokens as without it.
        for clip in block:
            yield from encode([clip], rows, samples)

    for (rows, samples), block in blocks(clips, shape, WAITING_SECONDS * codec.model.config.sampling_rate):
        yield from encode(block, rows, samples)


def block_shape(samples: int, codec: Codec, block_seconds: float | None = None) -> BlockShape:
    """Returns the shape of the block in which the model's device computes a clip of `samples` samples."""
    config = codec.model.config
    frames = -(-samples // config.hop_length)
    if block_seconds is None and codec.model.device.type == "cpu":
        return BlockShape(1, frames * config.hop_length)
    whole_second = round(config.frame_rate)
    frames = -(-frames // whole_second) * whole_second
    return BlockShape(
        max(1, int((block_seconds or BLOCK_SECONDS) * config.frame_rate) // frames), frames * config.hop_length
    )


def blocks(
    clips: Iterable[tuple[Key, np.ndarray]], shape_of: Callable[[int], BlockShape], most_waiting: int
) -> Iterator[tuple[BlockShape, list[tuple[Key, np.ndarray]]]]:
    """Yields blocks of clips of one shape, each as soon as it is full.

    Args:
        clips: the clips, as [`encode_clips`] takes them.
        shape_of: function that returns the shape of the block for a clip's number of samples.
        most_waiting: maximum samples in blocks that are not full; beyond it, the fullest block is yielded.
    """
    waiting: dict[BlockShape, list[tuple[Key, np.ndarray]]] = defaultdict(list)
    samples = 0
    for clip in clips:
        shape = shape_of(len(clip[1]))
        waiting[shape].append(clip)
        samples += len(clip[1])
        if samples > most_waiting:
            shape = max(waiting, key=lambda shape: len(waiting[shape]) / shape.rows)
        if len(waiting[shape]) == shape.rows or samples > most_waiting:
            block = waiting.pop(shape)
            samples -= sum(len(audio) for _, audio in block)
            yield shape, block
    yield from waiting.items()


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yields items; a thread reads the next one while the caller works on the last."""
    iterator, end = iter(items), cast(Item, object())
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, iterator, end)
        while (item := ahead.result()) is not end:
            ahead = thread.submit(next, iterator, end)
            yield item


def mapped_ahead(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Maps in an executor, at most `ahead` items ahead, so that not all are in memory at once."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(executor.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
