"""Codecs under evaluation: TAAE itself and its peers, behind one pair of methods, `encode` and `decode`.

Every codec is given the same float32 clip at 16 kHz and returns one; what it does in between (resampling, 16-bit
samples, delay) is its own affair, is undone here, and is told in its `facts`.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from ..codec import Codec
from ..errors import TaaeInputError
from ..taae_file import TaaeFile, format_bottleneck, pack_tokens

SAMPLING_RATE = 16_000
# A codec's delay is searched for up to here, on speech whose level is compared millisecond by millisecond.
LONGEST_DELAY = 0.15
ENVELOPE_STEP = SAMPLING_RATE // 1000
# Below this correlation of waveforms a codec does not keep the phase, below that of levels it gives noise.
KEPT_PHASE, KEPT_LEVEL = 0.5, 0.5
# What codecs raise at a clip that they cannot take.
CODEC_ERRORS = (RuntimeError, ValueError, OSError)


@dataclass(frozen=True)
class Encoded:
    """One encoded clip.

    Args:
        content: what `decode` takes.
        payload_bytes: size of the coded speech alone.
        file_bytes: size of what would be stored or sent, with header, container and checksum.
        codes: (tokens_per_frame, frames) int64, where the codec has tokens.
    """

    content: Any
    payload_bytes: int
    file_bytes: int
    codes: np.ndarray | None = None


class System(Protocol):
    """A codec under evaluation.

    Attributes:
        name: what tables call it.
        nominal_bit_rate: in bit/s, as its makers count it.
        delay: by how many samples its output lags; None where that is to be estimated.
        facts: what a reader must know to repeat the figures, JSON values by name.
    """

    name: str
    nominal_bit_rate: float
    delay: int | None
    facts: dict[str, Any]

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes a clip, (samples,) float32 at 16 kHz."""

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes to (samples,) float32 at 16 kHz, delayed and longer or shorter than the clip as it comes."""


class TaaeSystem:
    """A TAAE model with one of its bottlenecks.

    Args:
        codec: the model; its extractor must leave the level alone, because clips come normalised.
        bottleneck: as the model's methods take it, None for the model's own.
        name: of the model.
    """

    delay = 0  # a frame's audio comes out where it went in

    def __init__(self, codec: Codec, bottleneck: str | list | None, name: str):
        model = codec.model
        self.codec = codec
        self.bottleneck = model.config.bottleneck if bottleneck is None else bottleneck
        self.quantizer = model.bottleneck(bottleneck)
        self.name = f"{name} {format_bottleneck(self.bottleneck)}"
        self.nominal_bit_rate = self.quantizer.bits_per_frame * model.config.frame_rate
        self.facts = {
            "kind": "TAAE",
            "model_identity": codec.identity,
            "bottleneck": format_bottleneck(self.bottleneck),
            "parameters": model.num_parameters(),
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "file": ".taae of version 1, header and checksum included",
        }

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes to a `.taae` file of version 1, which needs no entropy prior."""
        encoded = self.codec.encode(audio, self.bottleneck)
        payload = pack_tokens(encoded.audio_codes, encoded.vocabulary_sizes)
        return Encoded(encoded, len(payload), len(encoded.to_bytes()), encoded.audio_codes)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes a `.taae` file's content."""
        content: TaaeFile = encoded.content
        return self.codec.decode(content)


class Codec2System:
    """Codec2 through its tools c2enc and c2dec, which work at 8 kHz.

    Args:
        mode: as the tools call it: 3200, 2400, 1600, 1400, 1300, 1200, 700C or 450.
    """

    tools = ("c2enc", "c2dec")
    package = "codec2"
    delay = None

    def __init__(self, mode: str):
        self.mode = mode
        self.name = f"codec2-{mode}"
        self.nominal_bit_rate = float(mode.rstrip("C"))
        self.facts = {
            "kind": "Codec2",
            "resampling": "soxr, 16 kHz to 8 kHz before and back after, 16-bit samples",
            "file": "bare frames, each in whole bytes as c2enc writes them",
        }

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes to bare frames; the last, incomplete one is filled up with zeros."""
        narrow = soxr.resample(audio, SAMPLING_RATE, 8_000)
        # The tool drops an incomplete frame, of at most 40 ms.
        narrow = np.pad(narrow, (0, -len(narrow) % 320))
        content = run_tool(["c2enc", self.mode, "-", "-"], pcm_bytes(narrow))
        return Encoded(content, len(content), len(content))

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes frames and resamples."""
        output = run_tool(["c2dec", self.mode, "-", "-"], encoded.content)
        return soxr.resample(pcm_samples(output), 8_000, SAMPLING_RATE)


class OpusSystem:
    """Opus through opusenc and opusdec, at the longest frames, which suit low rates best.

    Args:
        kilobits: target bit rate in kbit/s; Opus's variable rate comes out near it.
    """

    tools = ("opusenc", "opusdec")
    package = "opus-tools"
    delay = None

    def __init__(self, kilobits: str):
        self.kilobits = kilobits
        self.name = f"opus-{kilobits}k"
        self.nominal_bit_rate = 1000 * float(kilobits)
        self.facts = {
            "kind": "Opus",
            "settings": f"--bitrate {kilobits} --framesize 60 --comp 10, 16-bit samples",
            "resampling": "none outside the tools",
            "file": "Ogg, comments left out",
        }

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes to an Ogg file."""
        options = f"--quiet --raw --raw-rate {SAMPLING_RATE} --raw-chan 1 --serial 1 --discard-comments --padding 0"
        rate = f"--bitrate {self.kilobits} --framesize 60 --comp 10"
        content = run_tool(["opusenc", *options.split(), *rate.split(), "-", "-"], pcm_bytes(audio))
        return Encoded(content, ogg_payload_bytes(content), len(content))

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes an Ogg file; the tool undoes the codec's delay."""
        command = ["opusdec", "--quiet", "--rate", str(SAMPLING_RATE), "--no-dither", "-", "-"]
        return pcm_samples(run_tool(command, encoded.content))


class PcmSystem:
    """No codec: the reference in 16-bit samples, which shows what the metrics give at best."""

    tools: tuple[str, ...] = ()
    package = ""
    delay = 0

    def __init__(self, bits: str):
        self.name = f"pcm{bits}"
        self.nominal_bit_rate = float(bits) * SAMPLING_RATE
        self.facts = {"kind": "PCM", "file": "bare samples"}

    def encode(self, audio: np.ndarray) -> Encoded:
        """Rounds to 16 bits."""
        content = pcm_bytes(audio)
        return Encoded(content, len(content), len(content))

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Back to floats."""
        return pcm_samples(encoded.content)


PEERS = {
    r"pcm(16)": PcmSystem,
    r"codec2-(3200|2400|1600|1400|1300|1200|700C|450)": Codec2System,
    r"opus-(\d+(?:\.\d+)?)k": OpusSystem,
}


def make_peer(name: str, device: str = "cpu") -> System:
    """The codec that a name on the command line stands for.

    Args:
        name: of a codec with command-line tools, such as codec2-700C, or of a Transformers codec.
        device: for the latter.

    Raises:
        TaaeInputError: if there is none of that name, or it cannot be loaded.
        MissingToolError: if its tools are not installed.
    """
    for pattern, kind in PEERS.items():
        if match := re.fullmatch(pattern, name):
            if missing := [tool for tool in kind.tools if shutil.which(tool) is None]:
                raise MissingToolError(
                    f"{name}: left out, because {' and '.join(missing)} cannot be found; "
                    f"install them, on Debian with `apt-get install {kind.package}`"
                )
            return kind(match[1])
    if "/" in name or Path(name.partition("?")[0]).is_dir():
        from .transformers_codecs import TransformersSystem

        return TransformersSystem(name, device)
    raise TaaeInputError(
        f"--peers {name}: is no codec known here; expected codec2-700C, opus-6k, or the folder or Hub name of a "
        "Transformers codec"
    )


class MissingToolError(TaaeInputError):
    """A peer whose command-line tools are not installed."""


def run_tool(command: list[str], content: bytes) -> bytes:
    """Pipes bytes through a program.

    Raises:
        RuntimeError: if the program fails.
    """
    result = subprocess.run(command, input=content, capture_output=True)
    if result.returncode or not result.stdout:
        complaint = result.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{command[0]} failed: {complaint[-1] if complaint else f'status {result.returncode}'}")
    return result.stdout


def pcm_bytes(audio: np.ndarray) -> bytes:
    """(samples,) float -> 16-bit little-endian samples."""
    return np.clip(np.rint(audio * 2.0**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()


def pcm_samples(content: bytes) -> np.ndarray:
    """16-bit little-endian samples, after a WAV header if there is one -> (samples,) float32."""
    if content[:4] == b"RIFF":
        content = content[content.index(b"data") + 8 :]
    return np.frombuffer(content[: len(content) // 2 * 2], "<i2").astype(np.float32) / 2**15


def ogg_payload_bytes(content: bytes) -> int:
    """Bytes in the packets of an Ogg Opus file after its two header packets, which have pages of their own."""
    position, pages = 0, []
    while position < len(content):
        segments = content[position + 26]
        body = sum(content[position + 27 : position + 27 + segments])
        pages.append(body)
        position += 27 + segments + body
    return sum(pages[2:])


def estimate_delay(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """By how many samples decoded clips lag behind their references, one figure for all of them.

    The cross-correlations of the waveforms, normalised per clip, are added up; where their peak is low, as with
    vocoders, those of the log energy in windows of 10 ms, to the millisecond; where that is low too, 0.

    Args:
        pairs: reference and decoded clip, each (samples,) at 16 kHz.
    """
    pairs = list(pairs)
    if not pairs:
        return 0
    longest = int(LONGEST_DELAY * SAMPLING_RATE)
    correlation = np.mean([cross_correlation(*pair, longest) for pair in pairs], axis=0)
    if correlation.max() >= KEPT_PHASE:
        return int(correlation.argmax()) - longest
    longest //= ENVELOPE_STEP
    levels = ((log_energy(reference), log_energy(decoded)) for reference, decoded in pairs)
    correlation = np.mean([cross_correlation(*pair, longest) for pair in levels], axis=0)
    if correlation.max() < KEPT_LEVEL:
        return 0
    return (int(correlation.argmax()) - longest) * ENVELOPE_STEP


def cross_correlation(reference: np.ndarray, decoded: np.ndarray, longest: int) -> np.ndarray:
    """Correlation coefficients at lags from -longest to +longest: (2 * longest + 1,)."""
    size = 2 ** (len(reference) + len(decoded) - 1).bit_length()
    spectra = [np.fft.rfft(signal - signal.mean(), size) for signal in (reference, decoded)]
    correlation = np.fft.irfft(spectra[1] * spectra[0].conj(), size)
    scale = np.sqrt(np.square(reference - reference.mean()).sum() * np.square(decoded - decoded.mean()).sum())
    return np.roll(correlation, longest)[: 2 * longest + 1] / max(scale, 1e-12)


def log_energy(audio: np.ndarray) -> np.ndarray:
    """(samples,) -> natural log of the energy in Hann windows of 10 ms, a millisecond apart."""
    window = np.hanning(10 * ENVELOPE_STEP)
    return np.log(np.convolve(np.square(audio), window / window.sum(), mode="same")[::ENVELOPE_STEP] + 1e-5)


def align(decoded: np.ndarray, delay: int, samples: int) -> np.ndarray:
    """Drops a delay and cuts or zero-pads to a number of samples."""
    decoded = decoded[delay:] if delay >= 0 else np.pad(decoded, (-delay, 0))
    return np.pad(decoded[:samples], (0, max(samples - len(decoded), 0)))


def model_name(model: str) -> str:
    """Returns what tables call a model: the last part of its folder or Hub name; its run's for a `model` folder."""
    if not Path(model).is_dir():
        return model.split("/")[-1]
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "model" else folder.name
