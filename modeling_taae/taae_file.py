"""The `.taae` file: the tokens of one clip and everything needed to decode them, in as few bytes as possible.

There are two versions, both little-endian; the shorter one is written. Version 1 packs the tokens:

| bytes | content |
|---|---|
| 4 | magic, `TAAE` |
| 1 | version, 1 |
| 8 | identity of the model that encoded (see [`model_identity`]) |
| 4 | sampling rate in Hz |
| 4 | samples per frame |
| 8 | number of samples |
| 2 + n | length of the bottleneck's text, then the text (see [`format_bottleneck`]) |
| 1 + 8 k | number k of tokens per frame, then the vocabulary size of each |
| rest | tokens, frame by frame, each in the fewest bits that hold its vocabulary, lowest bit first |
| 4 | CRC-32 of everything before |

Version 2 codes the tokens with the prior in the model's folder (see `entropy/prior.py`), which holds the other facts:

| bytes | content |
|---|---|
| 4 | magic, `TAAE` |
| 1 | version, 2 |
| 1 | bottleneck, as its index in `CODED_BOTTLENECKS` |
| 4 | identity of the prior, which also identifies the model |
| 2 | sampling rate in units of 25 Hz |
| 4 | number of samples |
| rest | tokens in blocks of 256 frames; the size of each block except the last precedes it in 2 bytes |
| 4 | CRC-32 of everything before |

Every version has magic, version and checksum at these places; the bytes between them depend on the version.

A stream of tokens, which `taae stream` writes and reads, has no known length and can be read up to any frame. Its
header is that of version 1 with the magic `TAAS` and 0 for the number of samples, followed by the header's CRC-32. Then
come the frames, each packed by itself into whole bytes.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import numpy as np

from .errors import TaaeInputError
from .files import display_name, read_bytes, write_bytes
from .identity import model_identity, weights_identity  # noqa: F401, where they are imported from of old

if TYPE_CHECKING:
    from .entropy.prior import EntropyPrior

MAGIC = b"TAAE"
STREAM_MAGIC = b"TAAS"
VERSION, CODED_VERSION = 1, 2
PREAMBLE = struct.Struct("<4sB")
HEADER = struct.Struct("<8sIIQH")
CODED_HEADER = struct.Struct("<B4sHI")
CHECKSUM = struct.Struct("<I")

# The index of each is part of the file format.
CODED_BOTTLENECKS = ("native", "1x46656_400bps", "2x15625_700bps", "4x729_1000bps")
# Divides all usual sampling rates, so that two bytes hold them.
RATE_UNIT = 25

Stages = list | tuple


class TaaeFileError(TaaeInputError):
    """Bytes that are no valid `.taae` file, or tokens that cannot be stored in one."""


def format_bottleneck(bottleneck: str | list | tuple) -> str:
    """Formats a bottleneck: a name unchanged, stages as `5,5,5,5,5,5@1.0/5,5,5,5,5,5@0.25` (levels `@` scale)."""
    if isinstance(bottleneck, str):
        return bottleneck
    return "/".join(f"{','.join(str(int(level)) for level in levels)}@{float(scale)}" for levels, scale in bottleneck)


def parse_bottleneck(text: str) -> str | Stages:
    """Parses the text that [`format_bottleneck`] returns into the form that the model's methods take.

    Raises:
        TaaeInputError: if stages are malformed. Names are checked by the model, not here.
    """
    if "@" not in text:
        return text
    try:
        stages = [stage.split("@") for stage in text.split("/")]
        return [([int(level) for level in levels.split(",")], float(scale)) for levels, scale in stages]
    except ValueError as error:
        raise TaaeInputError(
            f"{text!r} is no bottleneck; expected a preset's name, 'native', or stages such as "
            "5,5,5,5,5,5@1.0/5,5,5,5,5,5@0.25"
        ) from error


class PackedHeader(NamedTuple):
    """The header of packed tokens, with everything that decoding needs; its fields are those of a [`TaaeFile`]."""

    model_identity: str
    sampling_rate: int
    hop_length: int
    num_samples: int
    bottleneck: str | Stages
    vocabulary_sizes: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """Returns the bytes between version and tokens."""
        text, sizes = format_bottleneck(self.bottleneck).encode(), self.vocabulary_sizes
        identity = bytes.fromhex(self.model_identity)
        header = HEADER.pack(identity, self.sampling_rate, self.hop_length, self.num_samples, len(text))
        return header + text + struct.pack(f"<B{len(sizes)}Q", len(sizes), *sizes)

    @classmethod
    def read(cls, source: BinaryIO) -> "PackedHeader":
        """Reads the output of [`~PackedHeader.to_bytes`], and no byte more.

        Raises:
            struct.error, ValueError: if it is cut short or malformed.
        """
        identity, rate, hop_length, num_samples, text_length = HEADER.unpack(source.read(HEADER.size))
        bottleneck = parse_bottleneck(source.read(text_length).decode())
        (stages,) = struct.unpack("<B", source.read(1))
        sizes = struct.unpack(f"<{stages}Q", source.read(8 * stages))
        return cls(identity.hex(), rate, hop_length, num_samples, bottleneck, sizes)

    @property
    def frame_bytes(self) -> int:
        """Size of one frame of a stream in bytes."""
        return -(-sum(map(token_bits, self.vocabulary_sizes)) // 8)

    def stream_header(self) -> bytes:
        """Returns the header of a stream of tokens."""
        header = PREAMBLE.pack(STREAM_MAGIC, VERSION) + self.to_bytes()
        return header + CHECKSUM.pack(zlib.crc32(header))

    @classmethod
    def read_stream(cls, source: BinaryIO, beginning: bytes = b"") -> "PackedHeader":
        """Reads the header of a stream of tokens.

        Args:
            source: the stream of bytes.
            beginning: its first bytes, if they have been read already.

        Raises:
            TaaeFileError: if it is no stream of tokens, has another version, or is damaged.
        """
        preamble = beginning + source.read(PREAMBLE.size - len(beginning))
        if preamble[: len(MAGIC)] != STREAM_MAGIC:
            raise TaaeFileError("this is no stream of tokens; expected one that `taae stream` wrote")
        if preamble[len(MAGIC) :] != bytes([VERSION]):
            raise TaaeFileError(f"this stream has another version than {VERSION}; update the package")
        try:
            header = cls.read(source)
            (checksum,) = CHECKSUM.unpack(source.read(CHECKSUM.size))
        except (struct.error, ValueError) as error:
            raise TaaeFileError(f"the stream's header is truncated or corrupt ({error})") from error
        if checksum != zlib.crc32(preamble + header.to_bytes()) or min(header.vocabulary_sizes, default=0) < 2:
            raise TaaeFileError("the stream's header is corrupt (wrong checksum); send it again from its start")
        return header


class CodedHeader(NamedTuple):
    """The header of entropy-coded tokens: everything known about them without the prior."""

    bottleneck: str
    prior_identity: str
    sampling_rate: int
    num_samples: int

    def to_bytes(self) -> bytes:
        """Returns the bytes between version and tokens."""
        number, identity = CODED_BOTTLENECKS.index(self.bottleneck), bytes.fromhex(self.prior_identity)
        return CODED_HEADER.pack(number, identity, self.sampling_rate // RATE_UNIT, self.num_samples)

    @classmethod
    def read(cls, source: BinaryIO) -> "CodedHeader":
        """Reads the output of [`~CodedHeader.to_bytes`], and no byte more.

        Raises:
            struct.error, ValueError: if it is cut short or malformed.
        """
        number, identity, rate, num_samples = CODED_HEADER.unpack(source.read(CODED_HEADER.size))
        if number >= len(CODED_BOTTLENECKS) or rate == 0 or num_samples == 0:
            raise ValueError(f"there is no bottleneck {number} or no sound of {num_samples} samples at {rate} * 25 Hz")
        return cls(CODED_BOTTLENECKS[number], identity.hex(), rate * RATE_UNIT, num_samples)

    def check_prior(self, prior: "EntropyPrior | None") -> None:
        """Checks that the tokens were coded with this prior.

        Raises:
            TaaeFileError: if they were coded with another one, or the prior is None.
        """
        if prior is None:
            raise TaaeFileError(
                f"its tokens were coded with the prior {self.prior_identity}, and this model has none; choose the "
                "model that encoded with --model, or name it with --prior for another one to decode"
            )
        if prior.identity != self.prior_identity:
            raise TaaeFileError(
                f"its tokens were coded with the prior {self.prior_identity}, not with this model's "
                f"({prior.identity}); choose the model that encoded with --model, or name it with --prior for another "
                "one to decode"
            )


HEADERS: dict[int, type[PackedHeader] | type[CodedHeader]] = {
    VERSION: PackedHeader,
    CODED_VERSION: CodedHeader,
}


@dataclass(frozen=True, eq=False)
class TaaeFile:
    """One encoded clip.

    Args:
        audio_codes: (tokens_per_frame, frames) int64.
        vocabulary_sizes: vocabulary size of each of a frame's tokens.
        bottleneck: a preset's name, `"native"`, or a list of `(levels, scale)` stages.
        num_samples: length of the audio in samples; the last frame may be partly padding.
        hop_length: samples per frame.
        sampling_rate: samples per second, in Hz.
        model_identity: the identity of the model that encoded, 16 hexadecimal digits.

    Raises:
        TaaeFileError: if these do not fit together, or a token is out of its vocabulary's range.
    """

    audio_codes: np.ndarray
    vocabulary_sizes: tuple[int, ...]
    bottleneck: str | Stages
    num_samples: int
    hop_length: int
    sampling_rate: int
    model_identity: str

    def __post_init__(self):
        if min(self.num_samples, self.hop_length, self.sampling_rate) < 1:
            raise TaaeFileError("a clip needs at least one sample, at least one sample per frame and a sampling rate")
        expected = (len(self.vocabulary_sizes), self.frames)
        if self.audio_codes.shape != expected:
            raise TaaeFileError(
                f"{self.num_samples} samples at {self.hop_length} per frame need tokens of shape {expected}, "
                f"not {self.audio_codes.shape}"
            )
        # Python's integers: a vocabulary may have 2^63 tokens, one more than int64 can hold.
        for stage, (codes, size) in enumerate(zip(self.audio_codes, self.vocabulary_sizes, strict=True)):
            lowest, highest = int(codes.min()), int(codes.max())
            if lowest < 0 or highest >= size:
                raise TaaeFileError(f"tokens {lowest} to {highest} of stage {stage} are not all within 0 to {size - 1}")

    @property
    def frames(self) -> int:
        """Number of token frames."""
        return -(-self.num_samples // self.hop_length)

    @property
    def duration(self) -> float:
        """Length of the audio in seconds."""
        return self.num_samples / self.sampling_rate

    @property
    def bit_rate(self) -> float:
        """Information in the tokens if all were equally likely, in bit/s."""
        bits_per_frame = sum(math.log2(size) for size in self.vocabulary_sizes)
        return bits_per_frame * self.sampling_rate / self.hop_length

    def to_bytes(self, prior: "EntropyPrior | None" = None) -> bytes:
        """Returns the file's content in version 1, or in version 2 if that is shorter.

        Args:
            prior: the prior of the model that encoded; None for version 1.
        """
        versions = [self._packed()]
        if prior is not None and (coded := self._coded(prior)) is not None:
            versions.append(coded)
        content = min(versions, key=len)
        return content + CHECKSUM.pack(zlib.crc32(content))

    def _packed(self) -> bytes:
        header = PackedHeader(*(getattr(self, name) for name in PackedHeader._fields))
        tokens = pack_tokens(self.audio_codes, self.vocabulary_sizes)
        return PREAMBLE.pack(MAGIC, VERSION) + header.to_bytes() + tokens

    def _coded(self, prior: "EntropyPrior") -> bytes | None:
        """Returns version 2 without its checksum; None if version 2 cannot store these tokens or their header."""
        facts = (self.model_identity, self.sampling_rate, self.hop_length)
        if facts != (prior.model_identity, prior.sampling_rate, prior.hop_length):
            return None
        bottleneck = self.bottleneck
        if not isinstance(bottleneck, str) or not prior.can_encode(bottleneck):
            return None
        if prior.vocabulary_sizes(bottleneck) != self.vocabulary_sizes:
            return None
        if self.sampling_rate % RATE_UNIT or self.sampling_rate >= RATE_UNIT << 16 or self.num_samples >= 1 << 32:
            return None
        header = CodedHeader(bottleneck, prior.identity, self.sampling_rate, self.num_samples)
        tokens = prior.encode(self.audio_codes, bottleneck)
        return None if tokens is None else PREAMBLE.pack(MAGIC, CODED_VERSION) + header.to_bytes() + tokens

    @classmethod
    def from_bytes(cls, data: bytes, prior: "EntropyPrior | None" = None) -> "TaaeFile":
        """Reads the output of [`~TaaeFile.to_bytes`].

        Args:
            data: the content of a file of either version.
            prior: the prior of the model that encoded, which version 2 needs.

        Raises:
            TaaeFileError: if the bytes are no `.taae` file, of another version, truncated or changed in any way, or the
                prior is missing or not the one used for encoding.
        """
        source, header = read_header(data)
        if isinstance(header, CodedHeader):
            header.check_prior(prior)
            with refusing_malformed():
                return cls._decode(source, header, cast("EntropyPrior", prior))
        with refusing_malformed():
            frames = -(-header.num_samples // header.hop_length)
            codes = unpack_tokens(source.read(), header.vocabulary_sizes, frames)
            return cls(audio_codes=codes, **header._asdict())

    @classmethod
    def _decode(cls, source: BinaryIO, header: CodedHeader, prior: "EntropyPrior") -> "TaaeFile":
        frames = -(-header.num_samples // prior.hop_length)
        return cls(
            audio_codes=np.concatenate(list(prior.decode(source, header.bottleneck, frames)), axis=1),
            vocabulary_sizes=prior.vocabulary_sizes(header.bottleneck),
            bottleneck=header.bottleneck,
            num_samples=header.num_samples,
            hop_length=prior.hop_length,
            sampling_rate=header.sampling_rate,
            model_identity=prior.model_identity,
        )

    def save(self, target: str | Path, prior: "EntropyPrior | None" = None) -> None:
        """Writes the file, replacing an existing one in one step; `-` is standard output.

        Args:
            target: the path of the file.
            prior: the prior of the model that encoded; None for version 1.

        Raises:
            TaaeInputError: if the target cannot be written.
        """
        write_bytes(target, self.to_bytes(prior))

    @classmethod
    def load(cls, source: str | Path, prior: "EntropyPrior | None" = None) -> "TaaeFile":
        """Reads a file; `-` is standard input.

        Args:
            source: the path of the file.
            prior: the prior of the model that encoded, which version 2 needs.

        Raises:
            TaaeInputError: if it cannot be read; a TaaeFileError if it is no valid `.taae` file or needs another prior.
        """
        data = read_bytes(source)
        with naming(source):
            return cls.from_bytes(data, prior)


def read_header(data: bytes) -> tuple[BinaryIO, PackedHeader | CodedHeader]:
    """Reads a file's header; returns the stored tokens as a stream of bytes, and the header.

    Raises:
        TaaeFileError: if the bytes are no `.taae` file, of another version, truncated or changed in any way.
    """
    if data[: len(MAGIC)] != MAGIC:
        hint = "; a stream of tokens goes to `taae stream`" if data[: len(MAGIC)] == STREAM_MAGIC else ""
        raise TaaeFileError(f"this is not a .taae file; expected one that `taae encode` wrote{hint}")
    if len(data) < PREAMBLE.size + CHECKSUM.size:
        raise TaaeFileError("this file is truncated; copy it or encode the audio again")
    version = data[len(MAGIC)]
    if version not in HEADERS:
        raise TaaeFileError(
            f"this file has format version {version}, this release reads {' and '.join(map(str, HEADERS))}; "
            "update the package"
        )
    content, checksum = data[: -CHECKSUM.size], data[-CHECKSUM.size :]
    if CHECKSUM.unpack(checksum)[0] != zlib.crc32(content):
        raise TaaeFileError("this file is truncated or corrupt (wrong checksum); copy it or encode the audio again")
    source = io.BytesIO(content[PREAMBLE.size :])
    with refusing_malformed():
        return source, HEADERS[version].read(source)


@contextmanager
def refusing_malformed() -> Iterator[None]:
    """Turns errors in a file with a correct checksum into one that says that the file is malformed."""
    try:
        yield
    # Written by another program, against the format.
    except (struct.error, ValueError, ZeroDivisionError) as error:
        raise TaaeFileError(f"this file is malformed ({error}); expected a file that `taae encode` wrote") from error


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Puts the file's name in front of errors."""
    try:
        yield
    except TaaeFileError as error:
        raise TaaeFileError(f"{display_name(source)}: {error}") from error


def token_bits(vocabulary_size: int) -> int:
    """Returns the number of bits that hold any token of a vocabulary."""
    return (vocabulary_size - 1).bit_length()


def pack_tokens(tokens: np.ndarray, vocabulary_sizes: tuple[int, ...]) -> bytes:
    """Writes (tokens_per_frame, frames) int64 frame by frame, each token in its fewest bits, lowest bit first."""
    bits = [
        (stage[:, None] >> np.arange(token_bits(size)) & 1).astype(np.uint8)
        for stage, size in zip(tokens, vocabulary_sizes, strict=True)
    ]
    return np.packbits(np.concatenate(bits, axis=1), bitorder="little").tobytes()


def unpack_tokens(payload: bytes, vocabulary_sizes: tuple[int, ...], frames: int) -> np.ndarray:
    """Reads the output of [`pack_tokens`]: (tokens_per_frame, frames) int64.

    Raises:
        TaaeFileError: if the payload does not have the length of `frames` frames, or a vocabulary is smaller than 2.
    """
    if min(vocabulary_sizes, default=0) < 2:
        raise TaaeFileError(f"vocabularies of {vocabulary_sizes} tokens; expected at least one of at least 2")
    widths = [token_bits(size) for size in vocabulary_sizes]
    needed = -(-frames * sum(widths) // 8)
    if len(payload) != needed:
        raise TaaeFileError(f"{frames} frames take {needed} bytes, {len(payload)} are there")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), count=frames * sum(widths), bitorder="little")
    stages = np.split(bits.reshape(frames, sum(widths)), np.cumsum(widths)[:-1], axis=1)
    return np.stack([stage.astype(np.int64) @ (1 << np.arange(stage.shape[1])) for stage in stages])
