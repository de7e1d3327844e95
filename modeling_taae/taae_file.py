"""The `.taae` file: the tokens of one clip and all that is needed to decode them, in as few bytes as whole bits allow.

Version 1, little-endian throughout:

| bytes | content |
|---|---|
| 4 | magic, `TAAE` |
| 1 | version, 1 |
| 8 | identity of the model that encoded (see [`model_identity`]) |
| 4 | sampling rate in Hz |
| 4 | samples per frame |
| 8 | number of samples |
| 2 + n | bottleneck as text (see [`format_bottleneck`]), after its length |
| 1 + 8 k | number k of tokens per frame, then the vocabulary size of each |
| rest | tokens, frame by frame, each in the fewest bits that hold its vocabulary, lowest bit first |
| 4 | CRC-32 of everything before |

Magic, version and checksum are the same in every version; what lies between belongs to the version.

A stream of tokens, which `taae stream` writes and reads, has no length that could be known at its start, and has to be
readable up to any frame. It begins as a file does, with `TAAS` for its magic, 0 for the number of samples, and the
CRC-32 of this beginning behind it; then each frame follows as it would stand in a file of one frame, in whole bytes.
"""

import hashlib
import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from .audio_io import TaaeInputError, display_name, read_bytes, write_bytes

if TYPE_CHECKING:
    from .modeling_taae import TaaeModel

MAGIC = b"TAAE"
STREAM_MAGIC = b"TAAS"
VERSION = 1
PREAMBLE = struct.Struct("<4sB")
HEADER = struct.Struct("<8sIIQH")
CHECKSUM = struct.Struct("<I")

Stages = list[tuple[list[int], float]]


class TaaeFileError(TaaeInputError):
    """Bytes that are no valid `.taae` file, or tokens that cannot be one."""


def model_identity(model: "TaaeModel") -> str:
    """What tells one model's weights from another's: 16 hexadecimal digits.

    It is the start of the SHA-256 over the names, shapes and float32 values of the model's tensors, sorted by name.
    Equal values give the same identity whether they are stored in float32 or less, and whether weight norm is split
    into direction and magnitude or fused.

    Args:
        model: a model on any device, with its weights loaded.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.fused_state_dict().items()):
        values = tensor.detach().cpu().float().contiguous().numpy()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.astype("<f4", copy=False).data)
    return digest.hexdigest()[:16]


def format_bottleneck(bottleneck: str | list | tuple) -> str:
    """A bottleneck as text: a name as it is, stages as `5,5,5,5,5,5@1.0/5,5,5,5,5,5@0.25` (levels `@` scale)."""
    if isinstance(bottleneck, str):
        return bottleneck
    return "/".join(f"{','.join(str(int(level)) for level in levels)}@{float(scale)}" for levels, scale in bottleneck)


def parse_bottleneck(text: str) -> str | Stages:
    """What [`format_bottleneck`] wrote, in the form that the model's methods take.

    Raises:
        TaaeInputError: if stages are misspelt. Whether a name exists is for the model to say.
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


class Description(NamedTuple):
    """What stands in front of the tokens, and how to decode them; the fields are those of a [`TaaeFile`]."""

    model_identity: str
    sampling_rate: int
    hop_length: int
    num_samples: int
    bottleneck: str | Stages
    vocabulary_sizes: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """What lies between version and tokens."""
        text, sizes = format_bottleneck(self.bottleneck).encode(), self.vocabulary_sizes
        identity = bytes.fromhex(self.model_identity)
        header = HEADER.pack(identity, self.sampling_rate, self.hop_length, self.num_samples, len(text))
        return header + text + struct.pack(f"<B{len(sizes)}Q", len(sizes), *sizes)

    @classmethod
    def read(cls, source: BinaryIO) -> "Description":
        """Reads what [`~Description.to_bytes`] wrote, and no byte more.

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
        """Bytes of one frame of a stream."""
        return -(-sum(map(token_bits, self.vocabulary_sizes)) // 8)

    def stream_header(self) -> bytes:
        """What a stream of tokens begins with."""
        header = PREAMBLE.pack(STREAM_MAGIC, VERSION) + self.to_bytes()
        return header + CHECKSUM.pack(zlib.crc32(header))

    @classmethod
    def read_stream(cls, source: BinaryIO, beginning: bytes = b"") -> "Description":
        """Reads what a stream of tokens begins with, of which some bytes may have been read already.

        Raises:
            TaaeFileError: if it is no stream of tokens, or one of another version, or damaged.
        """
        preamble = beginning + source.read(PREAMBLE.size - len(beginning))
        if preamble[: len(MAGIC)] != STREAM_MAGIC:
            raise TaaeFileError("this is no stream of tokens; expected one that `taae stream` wrote")
        if preamble[len(MAGIC) :] != bytes([VERSION]):
            raise TaaeFileError(f"this stream has another version than {VERSION}; update the package")
        try:
            description = cls.read(source)
            (checksum,) = CHECKSUM.unpack(source.read(CHECKSUM.size))
        except (struct.error, ValueError) as error:
            raise TaaeFileError(f"the stream's header is truncated or corrupt ({error})") from error
        if (
            checksum != zlib.crc32(preamble + description.to_bytes())
            or min(description.vocabulary_sizes, default=0) < 2
        ):
            raise TaaeFileError("the stream's header is corrupt (wrong checksum); send it again from its start")
        return description


@dataclass(frozen=True, eq=False)
class TaaeFile:
    """One encoded clip.

    Args:
        audio_codes: (tokens_per_frame, frames) int64.
        vocabulary_sizes: number of distinct tokens of each of the tokens of a frame.
        bottleneck: a preset's name, `"native"`, or a list of `(levels, scale)` stages.
        num_samples: length of the audio in samples; the last frame may be part padding.
        hop_length: samples per frame.
        sampling_rate: samples per second, in Hz.
        model_identity: of the model that encoded, 16 hexadecimal digits.

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
        # Python's integers: a vocabulary may have 2^63 tokens, one more than int64 can say.
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
        """Information in the tokens were all of them equally likely, in bit/s."""
        bits_per_frame = sum(math.log2(size) for size in self.vocabulary_sizes)
        return bits_per_frame * self.sampling_rate / self.hop_length

    def to_bytes(self) -> bytes:
        """The file's content."""
        description = Description(*(getattr(self, name) for name in Description._fields))
        content = PREAMBLE.pack(MAGIC, VERSION) + description.to_bytes()
        content += pack_tokens(self.audio_codes, self.vocabulary_sizes)
        return content + CHECKSUM.pack(zlib.crc32(content))

    @classmethod
    def from_bytes(cls, data: bytes) -> "TaaeFile":
        """Reads what [`~TaaeFile.to_bytes`] wrote.

        Raises:
            TaaeFileError: if the bytes are foreign, of another version, truncated or changed in any way.
        """
        if data[: len(MAGIC)] != MAGIC:
            hint = "; a stream of tokens goes to `taae stream`" if data[: len(MAGIC)] == STREAM_MAGIC else ""
            raise TaaeFileError(f"this is not a .taae file; expected one that `taae encode` wrote{hint}")
        if len(data) < PREAMBLE.size + CHECKSUM.size:
            raise TaaeFileError("this file is truncated; copy it or encode the audio again")
        version = data[len(MAGIC)]
        if version != VERSION:
            raise TaaeFileError(
                f"this file has format version {version}, this release reads version {VERSION}; update the package"
            )
        content, checksum = data[: -CHECKSUM.size], data[-CHECKSUM.size :]
        if CHECKSUM.unpack(checksum)[0] != zlib.crc32(content):
            raise TaaeFileError("this file is truncated or corrupt (wrong checksum); copy it or encode the audio again")
        try:
            return cls._from_content(content)
        # The checksum is right, so another program wrote this, and not by the rules.
        except (struct.error, ValueError, ZeroDivisionError) as error:
            raise TaaeFileError(
                f"this file is malformed ({error}); expected a file that `taae encode` wrote"
            ) from error

    @classmethod
    def _from_content(cls, content: bytes) -> "TaaeFile":
        source = io.BytesIO(content[PREAMBLE.size :])
        description = Description.read(source)
        frames = -(-description.num_samples // description.hop_length)
        codes = unpack_tokens(source.read(), description.vocabulary_sizes, frames)
        return cls(audio_codes=codes, **description._asdict())

    def save(self, target: str | Path) -> None:
        """Writes the file, replacing an existing one in one step; `-` is standard output.

        Raises:
            TaaeInputError: if the target cannot be written.
        """
        write_bytes(target, self.to_bytes())

    @classmethod
    def load(cls, source: str | Path) -> "TaaeFile":
        """Reads a file; `-` is standard input.

        Raises:
            TaaeInputError: if it cannot be read; a TaaeFileError if it is no valid `.taae` file.
        """
        data = read_bytes(source)
        try:
            return cls.from_bytes(data)
        except TaaeFileError as error:
            raise TaaeFileError(f"{display_name(source)}: {error}") from error


def token_bits(vocabulary_size: int) -> int:
    """The fewest whole bits that hold any token of a vocabulary."""
    return (vocabulary_size - 1).bit_length()


def pack_tokens(tokens: np.ndarray, vocabulary_sizes: tuple[int, ...]) -> bytes:
    """Writes (tokens_per_frame, frames) int64 frame by frame, each token in its fewest bits, lowest bit first."""
    bits = [
        (stage[:, None] >> np.arange(token_bits(size)) & 1).astype(np.uint8)
        for stage, size in zip(tokens, vocabulary_sizes, strict=True)
    ]
    return np.packbits(np.concatenate(bits, axis=1), bitorder="little").tobytes()


def unpack_tokens(payload: bytes, vocabulary_sizes: tuple[int, ...], frames: int) -> np.ndarray:
    """Reads what [`pack_tokens`] wrote: (tokens_per_frame, frames) int64.

    Raises:
        TaaeFileError: if the payload has another length than so many frames need, or a vocabulary has no choice.
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
