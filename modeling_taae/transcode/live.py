"""Converts a live signal to tokens or audio, frame by frame, for `taae stream`.

Each step is a generator that reads from the step before it, so that a frame is written as soon as its last sample has
been read. `taae_file.py` defines the layout of a stream of tokens.
"""

import io
import math
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..audio_io import UNKNOWN_SIZE, to_pcm16
from ..codec import Codec, exact_convolutions
from ..errors import TaaeInputError
from ..taae_file import STREAM_MAGIC, PackedHeader, TaaeFileError, pack_tokens, unpack_tokens

READ_SIZE = 1 << 16
RAW_ENCODINGS = {"s16le": "<i2", "f32le": "<f4"}
# Format tag and bits per sample of a WAV header; with tag 0xFFFE the actual tag comes later.
WAV_ENCODINGS = {(1, 16): "s16le", (3, 32): "f32le"}
WAV_EXTENSIBLE = 0xFFFE


class SampleFormat(NamedTuple):
    """The layout of samples: their encoding, interleaved channels, and size in bytes (infinite if unknown)."""

    encoding: str
    channels: int = 1
    size: float = math.inf


def check_causal(codec: Codec) -> None:
    """Checks that a model can stream.

    Raises:
        TaaeInputError: if the model is not causal.
    """
    if not codec.model.config.causal:
        raise TaaeInputError(
            "this model looks ahead, so it cannot stream; choose a causal one with --model, or use `taae encode`"
        )


def stream(
    codec: Codec,
    source: BinaryIO,
    sink: BinaryIO,
    input_format: str = "auto",
    output_format: str = "s16le",
    bottleneck: str | list | tuple | None = None,
    gain: float = 0.0,
    force: bool = False,
) -> None:
    """Encodes and decodes a live signal, writing each frame as soon as its last sample has arrived.

    Args:
        codec: causal model and feature extractor.
        source: the stream to read: WAV, raw mono samples at the model's rate, or tokens that [`stream`] wrote.
        sink: the stream to write.
        input_format: `s16le` or `f32le` for raw samples; `auto` for WAV or tokens, told apart by their first bytes.
        output_format: `s16le` or `f32le` for raw samples; `tokens` for a stream of tokens.
        bottleneck: a bottleneck as `TaaeModel.encode` takes it; None for the model's own, or for the one in the header
            of a stream of tokens.
        gain: amplification of the input, in dB.
        force: whether to decode the tokens of another model.

    Raises:
        TaaeInputError: if the model is not causal, or the input is damaged or does not fit the arguments.
    """
    check_causal(codec)
    beginning = source.read(4) if input_format == "auto" else b""
    if beginning == STREAM_MAGIC:
        if output_format == "tokens" or bottleneck is not None or gain:
            raise TaaeInputError(
                "standard input: is a stream of tokens, which becomes audio with the bottleneck that it names; "
                "expected no --bottleneck, --gain or --output tokens"
            )
        header = PackedHeader.read_stream(source, beginning)
        if not force:
            codec.check_identity("standard input", header.model_identity)
        codec.check_format(header.sampling_rate, header.hop_length)
        write_samples(sink, decode_stream(codec, read_tokens(source, header), header.bottleneck), output_format)
        return
    rate = codec.model.config.sampling_rate
    layout = read_wav_header(source, beginning, rate) if input_format == "auto" else SampleFormat(input_format)
    samples = CountedSamples(read_samples(source, layout), 10 ** (gain / 20))
    tokens = encode_stream(codec, samples, bottleneck)
    if output_format == "tokens":
        write_tokens(sink, tokens, stream_header(codec, bottleneck))
    else:
        write_samples(sink, samples.cut(decode_stream(codec, tokens, bottleneck)), output_format)


def read_wav_header(source: BinaryIO, beginning: bytes, sampling_rate: int) -> SampleFormat:
    """Reads a WAV header up to the samples.

    Args:
        source: the stream of bytes.
        beginning: its first four bytes, which have been read already.
        sampling_rate: the model's sampling rate in Hz, which the samples must have.

    Raises:
        TaaeInputError: if it is no WAV header, or has another rate or an unsupported sample format.
    """
    if not beginning:
        raise TaaeInputError("standard input: is empty (0 bytes); expected audio or tokens")
    if beginning != b"RIFF" or source.read(8)[4:] != b"WAVE":
        raise TaaeInputError(
            "standard input: is neither WAV nor a stream of tokens; for raw samples, say --input s16le or f32le; "
            "decode .taae files with `taae decode`"
        )
    layout = None
    while len(head := source.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"data" and layout is not None:
            return layout._replace(size=size if 0 < size < UNKNOWN_SIZE else math.inf)  # 0: not known yet
        body = source.read(size + size % 2)
        if name == b"fmt " and len(body) >= 16:
            tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
            if tag == WAV_EXTENSIBLE and len(body) >= 26:
                (tag,) = struct.unpack_from("<H", body, 24)
            if (tag, bits) not in WAV_ENCODINGS or rate != sampling_rate or channels == 0:
                raise TaaeInputError(
                    f"standard input: is WAV with {bits}-bit samples of format {tag}, {channels} channels, at "
                    f"{rate} Hz; expected 16-bit integers or 32-bit floats at {sampling_rate} Hz: convert it on the "
                    f"way, for example with sox -t wav - -t wav -b 16 -r {sampling_rate} -"
                )
            layout = SampleFormat(WAV_ENCODINGS[tag, bits], channels)
    raise TaaeInputError("standard input: ends within its WAV header; expected samples after it")


def read_samples(source: BinaryIO, layout: SampleFormat) -> Iterator[np.ndarray]:
    """Yields samples as they arrive, with the channels averaged: (samples,) float32, full scale at 1.

    Raises:
        TaaeInputError: if a sample is NaN or infinite, or the input ends within a sample or before the size in its
            header.
    """
    width = layout.channels * np.dtype(RAW_ENCODINGS[layout.encoding]).itemsize
    scale = 2.0**-15 if layout.encoding == "s16le" else 1.0
    waiting, missing = b"", layout.size
    while missing and (data := cast(io.BufferedReader, source).read1(int(min(READ_SIZE, missing)))):
        missing -= len(data)
        waiting += data
        whole = len(waiting) // width * width
        interleaved = np.frombuffer(waiting[:whole], RAW_ENCODINGS[layout.encoding]).astype(np.float32)
        waiting = waiting[whole:]
        if not np.isfinite(interleaved).all():
            raise TaaeInputError("standard input: contains NaN or infinite samples")
        yield (interleaved * np.float32(scale)).reshape(-1, layout.channels).mean(axis=1)
    if waiting or 0 < missing < math.inf:
        raise TaaeInputError(
            f"standard input: is truncated ({len(waiting)} bytes of a sample are left over at its end)"
            if waiting
            else f"standard input: is truncated (its header promises {missing} bytes more)"
        )


class CountedSamples:
    """Amplifies and counts chunks of samples, so that the decoded audio can be cut to the same length."""

    def __init__(self, chunks: Iterable[np.ndarray], gain: float = 1.0):
        self.chunks, self.gain, self.count = chunks, np.float32(gain), 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for chunk in self.chunks:
            self.count += len(chunk)
            yield self.gain * chunk

    def cut(self, decoded: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields decoded audio without the padding of the last frame."""
        position = 0
        for audio in decoded:
            yield audio[: self.count - position]
            position += len(audio)


def encode_stream(
    codec: Codec, chunks: Iterable[np.ndarray], bottleneck: str | list | tuple | None
) -> Iterator[Tensor]:
    """Yields the tokens of the frames that each chunk completes, then those of the rest.

    Args:
        codec: causal model and feature extractor.
        chunks: chunks of samples, each (samples,) float32.
        bottleneck: a bottleneck as `TaaeModel.encode` takes it.

    Yields:
        (1, tokens_per_frame, frames) int64.
    """
    state = codec.model.streaming_state()
    for chunk in chunks:
        samples = torch.from_numpy(chunk)[None, None].to(codec.model.device)
        with exact_convolutions():
            encoded = codec.model.encode(samples, bottleneck=bottleneck, state=state)
        state = encoded.state
        yield encoded.audio_codes
    nothing = torch.zeros(1, 1, 0, device=codec.model.device)
    with exact_convolutions():
        encoded = codec.model.encode(nothing, bottleneck=bottleneck, state=state, final=True)
    yield encoded.audio_codes


def decode_stream(
    codec: Codec, tokens: Iterable[Tensor], bottleneck: str | list | tuple | None
) -> Iterator[np.ndarray]:
    """Yields audio (samples,) float32 for tokens (1, tokens_per_frame, frames) as they arrive.

    Raises:
        TaaeInputError: if a token is out of range for the model.
    """
    state = codec.model.streaming_state()
    for codes in tokens:
        try:
            with exact_convolutions():
                decoded = codec.model.decode(codes.to(codec.model.device), bottleneck=bottleneck, state=state)
        except ValueError as error:
            raise TaaeInputError(f"the tokens do not fit this model ({error})") from error
        state = decoded.state
        yield decoded.audio_values[0, 0].float().cpu().numpy()


def stream_header(codec: Codec, bottleneck: str | list | tuple | None) -> PackedHeader:
    """Returns the header of a stream of tokens of this model."""
    config = codec.model.config
    return PackedHeader(
        model_identity=codec.file_identity,
        sampling_rate=config.sampling_rate,
        hop_length=config.hop_length,
        num_samples=0,
        bottleneck=config.bottleneck if bottleneck is None else bottleneck,
        vocabulary_sizes=codec.model.bottleneck(bottleneck).codebook_sizes,
    )


def write_tokens(sink: BinaryIO, tokens: Iterable[Tensor], header: PackedHeader) -> None:
    """Writes a stream of tokens, each frame in whole bytes."""
    sink.write(header.stream_header())
    sink.flush()
    for codes in tokens:
        for frame in codes[0].cpu().numpy().T:
            sink.write(pack_tokens(frame[:, None], header.vocabulary_sizes))
        sink.flush()


def read_tokens(source: BinaryIO, header: PackedHeader) -> Iterator[Tensor]:
    """Yields the tokens (1, tokens_per_frame, 1) of each frame as it arrives.

    Raises:
        TaaeFileError: if the stream ends within a frame.
    """
    while data := source.read(header.frame_bytes):
        if len(data) < header.frame_bytes:
            raise TaaeFileError("standard input: is truncated (it ends within a frame)")
        yield torch.from_numpy(unpack_tokens(data, header.vocabulary_sizes, frames=1))[None]


def write_samples(sink: BinaryIO, audio: Iterable[np.ndarray], encoding: str) -> None:
    """Writes raw samples, each chunk at once."""
    for chunk in audio:
        sink.write((to_pcm16(chunk) if encoding == "s16le" else chunk).astype(RAW_ENCODINGS[encoding]).tobytes())
        sink.flush()
