"""Facts about `.taae` files and models, for `taae info`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..codec import Codec, named_bottlenecks
from ..files import read_bytes
from ..taae_file import CodedHeader, TaaeFile, format_bottleneck, naming, read_header


@dataclass(frozen=True)
class FileInfo:
    """Facts about a `.taae` file.

    Args:
        num_samples: length of the audio in samples.
        sampling_rate: samples per second, in Hz.
        bottleneck: the bottleneck as text.
        num_bytes: size of the file.
        prior_identity: identity of the prior that coded the tokens; None for a file of version 1.
        packed: the tokens of a file of version 1; None for version 2, whose tokens need the model's prior.
    """

    num_samples: int
    sampling_rate: int
    bottleneck: str
    num_bytes: int
    prior_identity: str | None = None
    packed: TaaeFile | None = None

    @classmethod
    def read(cls, source: str | Path) -> "FileInfo":
        """Reads the facts of a file without its model; `-` is standard input.

        Raises:
            TaaeInputError: if it cannot be read; a TaaeFileError if it is no valid `.taae` file.
        """
        data = read_bytes(source)
        with naming(source):
            _, header = read_header(data)
            coded = isinstance(header, CodedHeader)
            return cls(
                header.num_samples,
                header.sampling_rate,
                format_bottleneck(header.bottleneck),
                len(data),
                prior_identity=header.prior_identity if isinstance(header, CodedHeader) else None,
                packed=None if coded else TaaeFile.from_bytes(data),
            )

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yields the facts as names and values, for people."""
        samples, rate = self.num_samples, self.sampling_rate
        yield "duration", f"{samples / rate:.2f} s ({samples:,} samples at {rate:,} Hz)"
        yield "bottleneck", self.bottleneck
        bit_rate = 8 * self.num_bytes * rate / samples
        yield "file", f"{self.num_bytes:,} bytes, {bit_rate:.1f} bit/s with header and checksum"
        if self.packed is None:
            yield "version", "2, entropy-coded"
            yield "entropy prior", str(self.prior_identity)
            return
        yield "version", "1, packed"
        yield "frames", f"{self.packed.frames:,} at {rate / self.packed.hop_length:g} Hz"
        yield "vocabulary", " + ".join(f"{size:,}" for size in self.packed.vocabulary_sizes)
        yield "bit rate", f"{self.packed.bit_rate:.1f} bit/s"
        yield "model identity", self.packed.model_identity


def model_rows(codec: Codec) -> Iterator[tuple[str, str]]:
    """Yields the facts about a model as names and values, for people."""
    config, target = codec.model.config, codec.extractor.target_loudness
    yield "parameters", f"{codec.model.num_parameters():,}"
    yield "frame rate", f"{config.frame_rate:g} Hz ({config.hop_length:,} samples at {config.sampling_rate:,} Hz)"
    yield "causal", "yes" if config.causal else "no"
    yield "loudness", "as it is" if target is None else f"{target:g} LUFS"
    yield "model identity", codec.identity
    yield "entropy prior", "none" if codec.prior is None else codec.prior.identity
    yield "default bottleneck", format_bottleneck(config.bottleneck)
    for name, quantizer in named_bottlenecks(codec.model).items():
        yield name, f"{quantizer.bits_per_frame * config.frame_rate:.1f} bit/s"
