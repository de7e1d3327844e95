"""`encode_clips`: a clip's latents are the same bits whatever else is encoded, and no more is read than needed."""

import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support.rounding_ties import count_ties
from torch import Tensor

from modeling_taae import convolution_taae
from modeling_taae.batching import BlockShape, blocks, encode_clips, read_ahead
from modeling_taae.codec import Codec, load_codec
from modeling_taae.taae_file import TaaeFile

NANO = Path(__file__).resolve().parents[2] / "hub_cards" / "taae-speech-16k-nano"
# In samples of 16 kHz: shorter than a frame, whole frames, one sample more, several of one rounded length.
LENGTHS = [1, 640, 641, 9_000, 16_000, 16_001, 23_000, 31_999, 40_000]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def tiny_codec(tiny_model_folder) -> Codec:
    return load_codec(str(tiny_model_folder), device="cpu")


@pytest.fixture(params=["tiny", "nano"])
def codec(request, tiny_codec) -> Codec:
    return tiny_codec if request.param == "tiny" else load_codec(str(NANO), device="cpu")


@pytest.fixture(params=[1, 2])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_clips(lengths: list[int] = LENGTHS) -> dict[int, np.ndarray]:
    """Noise whose level rises and falls, by its length."""
    generator = np.random.default_rng(0)
    return {n: (generator.normal(size=n) * np.sin(np.arange(n) / 3000) * 0.2).astype(np.float32) for n in lengths}


class Encoded(NamedTuple):
    latents: Tensor
    file: TaaeFile
    block: tuple[int, int]  # rows and frames of what it was computed in


def encode(
    codec: Codec, clips: list[tuple], bottleneck: str | None = None, block_seconds: float | None = None
) -> dict[int, Encoded]:
    """What `encode_clips` makes of clips, by key."""
    computed, found = [], {}
    hook = codec.model.encoder.register_forward_hook(lambda _, __, latents: computed.append(latents))
    for key, file in encode_clips(codec, clips, bottleneck, None, block_seconds):
        if computed:
            block = computed.pop()
            rows = iter(block)
        found[key] = Encoded(next(rows)[:, : file.frames], file, (block.shape[0], block.shape[2]))
    hook.remove()
    assert not computed
    return found


def groupings(clips: dict[int, np.ndarray]) -> list[list[list[tuple]]]:
    """The corpus in several ways, each in one or more goes: turned round, cut in two, and among as many others."""
    items = list(clips.items())
    shuffled = [items[index] for index in np.random.default_rng(1).permutation(len(items))]
    twins = [(f"twin of {key}", audio[::-1].copy()) for key, audio in items]
    among_others = [clip for pair in zip(twins, shuffled, strict=True) for clip in pair]
    return [[items[::-1]], [shuffled[:3], shuffled[3:]], [among_others]]


def in_goes(codec: Codec, goes: list[list[tuple]], keys: dict, *options: object) -> dict[int, Encoded]:
    """What comes of the clips with these keys, all of which have to be there."""
    found = {key: value for go in goes for key, value in encode(codec, go, *options).items() if key in keys}
    assert set(found) == set(keys)
    return found


def assert_same_bits(some: dict, others: dict) -> None:
    for key, encoded in some.items():
        assert torch.equal(encoded.latents, others[key].latents), key
        assert encoded.file.to_bytes() == others[key].file.to_bytes()


def test_the_same_bits_whatever_else_is_encoded(codec, threads) -> None:
    # Few in two threads, which crawl where both cores are busy with something else.
    clips = make_clips([1, 641, 9_000, 16_000, 39_999] if threads == 1 else [641, 3_000])
    alone = {key: encode(codec, [(key, audio)])[key] for key, audio in clips.items()}
    for goes in groupings(clips)[0 if threads == 1 else -1 :]:
        assert_same_bits(in_goes(codec, goes, clips), alone)


def test_one_clip_is_what_the_codec_makes_of_it(tiny_codec) -> None:
    """`taae encode` of one file, the Python interface and a corpus agree to the bit on a CPU."""
    clips = make_clips()
    for key, (_, encoded, _) in encode(tiny_codec, list(clips.items()), "native").items():
        assert encoded.to_bytes() == tiny_codec.encode(clips[key], "native").to_bytes()
        inputs = tiny_codec.extractor(clips[key], sampling_rate=16_000)
        with torch.no_grad():
            output = tiny_codec.model.encode(**inputs, bottleneck="native")
        assert np.array_equal(encoded.audio_codes, output.audio_codes[0].numpy())
        assert encoded.num_samples == key


def test_the_same_bits_of_what_is_processed_in_pieces(tiny_codec, monkeypatch) -> None:
    monkeypatch.setattr(convolution_taae, "CHUNK_STEPS", 48)
    clips = make_clips([700, 150_000, 640 * 200])
    alone = {key: encode(tiny_codec, [(key, audio)])[key] for key, audio in clips.items()}
    for goes in groupings(clips):
        assert_same_bits(in_goes(tiny_codec, goes, clips), alone)


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_of_several_clips(codec, device) -> None:
    """As on a GPU, where the same clip, in blocks of the same shape, has the same bits, whichever row it is in.

    Of a CPU, which has blocks of one clip, this is not promised.
    """
    codec.model.to(device)
    clips, quantizer = make_clips(), codec.model.bottleneck("native")
    alone = {key: encode(codec, [(key, audio)], "native", 8)[key] for key, audio in clips.items()}
    for goes in groupings(clips):
        for samples, encoded in in_goes(codec, goes, clips, "native", 8).items():
            seconds, reference = -(-samples // 16_000), alone[samples]
            assert encoded.block == reference.block == (8 // seconds, 25 * seconds)
            if device == "cuda":
                assert torch.equal(encoded.latents, reference.latents)
            torch.testing.assert_close(encoded.latents, reference.latents, rtol=1e-5, atol=1e-5)
            tokens = (torch.from_numpy(item.file.audio_codes)[None] for item in (encoded, reference))
            assert count_ties(*tokens, reference.latents[None].cpu(), quantizer) <= 1


class TestBlocks:
    """Which clips go together, of clips that are no more than their lengths."""

    @staticmethod
    def shape_of(samples: int) -> BlockShape:
        return BlockShape(12 // samples, samples)

    def blocks(self, lengths: list[int], most_waiting: int = 1000) -> list[tuple[int, list[int]]]:
        clips = ((number, np.zeros(length)) for number, length in enumerate(lengths))
        return [
            (shape.samples, [key for key, _ in block]) for shape, block in blocks(clips, self.shape_of, most_waiting)
        ]

    def test_full_ones_go_at_once_and_the_others_at_the_end(self):
        assert self.blocks([4, 6, 4, 3, 6, 4, 4]) == [(6, [1, 4]), (4, [0, 2, 5]), (3, [3]), (4, [6])]

    def test_the_fullest_goes_where_too_much_waits(self):
        assert self.blocks([2, 3, 2, 3, 3, 4], most_waiting=13)[0] == (3, [1, 3, 4])
        assert self.blocks([6, 4, 4], most_waiting=13)[0] == (4, [1, 2])

    def test_nothing_waits_without_end(self):
        read = []

        def endless() -> Iterator[tuple[int, np.ndarray]]:
            for number in count():
                read.append(number)
                yield number, np.zeros(1 + number % 6)

        taken = 0
        for _, block in islice(blocks(endless(), self.shape_of, 20), 50):
            taken += len(block)
            assert len(read) - taken <= 20

    def test_a_block_of_one_goes_in_order(self):
        clips = [(number, np.zeros(5 + number % 3)) for number in range(9)]
        found = [block for _, block in blocks(iter(clips), lambda samples: BlockShape(1, samples), 6)]
        assert [key for ((key, _),) in found] == list(range(9))


def test_clips_are_read_as_they_are_needed(tiny_codec) -> None:
    audio, read = make_clips([2_000])[2_000], []

    def endless() -> Iterator[tuple[int, np.ndarray]]:
        for number in count():
            read.append(number)
            yield number, audio

    assert [key for key, _ in islice(encode_clips(tiny_codec, endless()), 3)] == [0, 1, 2]
    assert len(read) == 3


@pytest.mark.parametrize("block_seconds", [None, 8])
def test_a_clip_that_cannot_be_encoded_fails_alone(tiny_codec, block_seconds) -> None:
    good = make_clips([2_000])[2_000]
    clips, failures = [("a", good), ("nan", good * np.nan), ("z", good)], {}
    encoded = dict(encode_clips(tiny_codec, clips, None, failures.__setitem__, block_seconds))
    assert list(encoded) == ["a", "z"] and list(failures) == ["nan"]
    (_, alone), *_ = encode_clips(tiny_codec, clips[:1])
    assert encoded["a"].to_bytes() == encoded["z"].to_bytes() == alone.to_bytes()


def test_why_a_clip_cannot_be_encoded(tiny_codec) -> None:
    good = make_clips([2_000])[2_000]
    clips = [("a", good), ("empty", good[:0]), ("nan", good * np.nan), ("z", good)]
    failures = {}
    assert [key for key, _ in encode_clips(tiny_codec, clips, None, failures.__setitem__)] == ["a", "z"]
    assert "is empty" in str(failures.pop("empty")) and "NaN" in str(failures.pop("nan")) and not failures
    with pytest.raises(ValueError, match="is empty"):
        list(encode_clips(tiny_codec, clips))


class TestReadAhead:
    def test_the_next_is_read_while_the_taker_works(self):
        read = [threading.Event() for _ in range(4)]

        def items() -> Iterator[int]:
            for number, event in enumerate(read):
                event.set()
                yield number

        for number in read_ahead(items()):
            if number + 1 < len(read):
                assert read[number + 1].wait(timeout=60)
            assert not any(event.is_set() for event in read[number + 2 :])

    def test_errors_come_after_what_was_read_before(self):
        def items() -> Iterator[int]:
            yield 1
            raise OSError("gone")

        ahead = read_ahead(items())
        assert next(ahead) == 1
        with pytest.raises(OSError, match="gone"):
            next(ahead)

    def test_nothing_goes_on_behind_a_taker_who_left(self):
        read = []

        def items() -> Iterator[int]:
            for number in count():
                read.append(number)
                yield number

        before = threading.active_count()
        ahead = read_ahead(items())
        next(ahead)
        ahead.close()
        assert len(read) == 2 and threading.active_count() == before

    def test_nothing_to_read(self):
        assert list(read_ahead([])) == []
