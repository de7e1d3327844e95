"""Baseline codecs: Codec2, Opus with and without its neural decoder, Lyra, and codecs of Transformers."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from ..errors import TaaeInputError, one_line
from .alignment import SAMPLING_RATE
from .codecs import Encoded, PcmSystem, System, pcm_bytes, pcm_samples


class MissingToolError(TaaeInputError):
    """A baseline codec whose programs, packages or models are not installed; the message says how to get them."""


class Codec2System:
    """Codec2 through its tools c2enc and c2dec, which work at 8 kHz.

    Args:
        mode: the tools' name of the mode: 3200, 2400, 1600, 1400, 1300, 1200, 700C or 450.

    Raises:
        MissingToolError: if the tools are not installed.
    """

    tools = ("c2enc", "c2dec")
    package = "codec2"
    delay = None

    def __init__(self, mode: str):
        self.mode = mode
        self.name = f"codec2-{mode}"
        need_tools(self.name, self.tools, self.package)
        self.nominal_bit_rate = float(mode.rstrip("C"))
        self.facts: dict[str, Any] = {
            "kind": "Codec2",
            "resampling": "soxr, 16 kHz to 8 kHz before and back after, 16-bit samples",
            "file": "bare frames, each in whole bytes as c2enc writes them",
        }

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes to bare frames; an incomplete last frame is zero-padded."""
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
    """Opus through opusenc and opusdec, with the longest frames, which are best at low rates.

    Args:
        kilobits: target bit rate in kbit/s; the actual, variable rate is close to it.

    Raises:
        MissingToolError: if the tools are not installed.
    """

    tools: tuple[str, ...] = ("opusenc", "opusdec")
    package = "opus-tools"
    delay: int | None = None
    # Options of opusenc besides the rate, as in the facts and on the command line.
    settings = "--framesize 60 --comp 10"

    def __init__(self, kilobits: str):
        self.kilobits = kilobits
        self.name = f"opus-{kilobits}k"
        need_tools(self.name, self.tools, self.package)
        self.nominal_bit_rate = 1000 * float(kilobits)
        self.facts: dict[str, Any] = {
            "kind": "Opus",
            "settings": f"--bitrate {kilobits} {self.settings}, 16-bit samples",
            "resampling": "none outside the tools",
            "file": "Ogg, comments left out",
        }

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes to an Ogg file."""
        options = f"--quiet --raw --raw-rate {SAMPLING_RATE} --raw-chan 1 --serial 1 --discard-comments --padding 0"
        rate = f"--bitrate {self.kilobits} {self.settings}"
        content = run_tool(["opusenc", *options.split(), *rate.split(), "-", "-"], pcm_bytes(audio))
        return Encoded(content, sum(map(len, ogg_packets(content)[2:])), len(content))

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes an Ogg file; the tool undoes the codec's delay."""
        command = ["opusdec", "--quiet", "--rate", str(SAMPLING_RATE), "--no-dither", "-", "-"]
        return pcm_samples(run_tool(command, encoded.content))


class NeuralOpusSystem(OpusSystem):
    """Opus whose decoder enhances speech with a network, NoLACE of libopus 1.5 (Büthe et al., 2023, arXiv 2309.14521).

    The decoder is the WebAssembly build in the npm package @wasm-audio-decoders/opus-ml, run by Node. NoLACE needs SILK
    in wide band, so the encoder is fixed to it; otherwise opusenc would leave it at low rates.

    Args:
        kilobits: target bit rate in kbit/s.

    Raises:
        MissingToolError: if opusenc, node or the npm package is not installed.
    """

    tools = ("opusenc", "node")
    package = "opus-tools nodejs npm"
    settings = "--speech --framesize 60 --vbr --set-ctl-int 4008=1103"  # 4008=1103: OPUS_SET_BANDWIDTH, wide band
    script = Path(__file__).with_name("opus_nolace.mjs")

    def __init__(self, kilobits: str):
        super().__init__(kilobits)
        self.name += "-nolace"
        try:
            version = run_tool(["node", str(self.script), "version"], b"").decode()
        except RuntimeError as error:
            raise MissingToolError(
                f"{self.name}: left out, because its decoder does not run ({one_line(error)}); install it "
                "here with `npm install @wasm-audio-decoders/opus-ml`, or name its node_modules in $NODE_PATH"
            ) from error
        self.facts |= {"kind": "Opus with NoLACE", "decoder": f"@wasm-audio-decoders/opus-ml {version}"}

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes the packets of an Ogg file with NoLACE."""
        head, _, *packets = ogg_packets(encoded.content)
        samples_before = int.from_bytes(head[10:12], "little") * SAMPLING_RATE // 48_000
        content = b"".join(len(packet).to_bytes(4, "little") + packet for packet in packets)
        output = run_tool(["node", str(self.script), "decode", str(SAMPLING_RATE)], content)
        return np.frombuffer(output, "<f4")[samples_before:]


PEERS: dict[str, type] = {
    r"pcm(16)": PcmSystem,
    r"codec2-(3200|2400|1600|1400|1300|1200|700C|450)": Codec2System,
    r"opus-(\d+(?:\.\d+)?)k": OpusSystem,
    r"opus-(\d+(?:\.\d+)?)k-nolace": NeuralOpusSystem,
}


def make_peer(name: str, device: str = "cpu") -> System:
    """Returns the codec for a name on the command line.

    Args:
        name: the name of a codec, such as codec2-700C, opus-6k-nolace or lyra-3.2k; or the folder or Hub name of a
            Transformers codec.
        device: the torch device of a Transformers codec.

    Raises:
        TaaeInputError: if there is no such codec, or it cannot be loaded.
        MissingToolError: if programs, packages or models that it needs are missing.
    """
    for pattern, kind in PEERS.items():
        if match := re.fullmatch(pattern, name):
            return kind(match[1])
    if match := re.fullmatch(r"lyra-(3\.2|6|9\.2)k", name):
        from .lyra import LyraSystem

        return LyraSystem(match[1])
    if "/" in name or Path(name.partition("?")[0]).is_dir():
        from .transformers_codecs import TransformersSystem

        return TransformersSystem(name, device)
    raise TaaeInputError(
        f"--peers {name}: is no codec known here; expected codec2-700C, opus-6k, opus-6k-nolace, lyra-3.2k, or the "
        "folder or Hub name of a Transformers codec"
    )


def available_peers(names: Iterable[str], device: str = "cpu") -> tuple[list[System], list[str]]:
    """Returns the codecs of these names that can run here, and a line for each one that was left out.

    Raises:
        TaaeInputError: if there is no codec of a name, or a model cannot be loaded.
    """
    peers: list[System] = []
    left_out = []
    for name in dict.fromkeys(names):
        try:
            peers.append(make_peer(name, device))
        except MissingToolError as error:
            left_out.append(one_line(error))
    return peers, left_out


def need_tools(name: str, tools: Iterable[str], package: str) -> None:
    """Checks that programs are installed.

    Raises:
        MissingToolError: if one is missing.
    """
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise MissingToolError(
            f"{name}: left out, because {' and '.join(missing)} cannot be found; "
            f"install them, on Debian with `apt-get install {package}`"
        )


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


def ogg_packets(content: bytes) -> list[bytes]:
    """Returns the packets of an Ogg file with one stream; for Opus, two headers followed by the coded frames."""
    packets, packet, position = [], b"", 0
    while position < len(content):
        segments = content[position + 26]
        sizes = content[position + 27 : position + 27 + segments]
        position += 27 + segments
        for size in sizes:
            packet += content[position : position + size]
            position += size
            if size < 255:  # a packet ends with the first segment that is not full
                packets.append(packet)
                packet = b""
    return packets
