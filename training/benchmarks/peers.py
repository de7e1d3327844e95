"""The benchmark's section that compares this codec with others of Transformers, at their published sizes.

Weights are random, because speed does not depend on them. Each codec gets a clip at its sampling rate. The codecs take
turns, so that other work on the machine affects all of them alike.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from statistics import median

import torch
from torch import Tensor, nn
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from training.benchmarks.tools import FLOAT32, Bench, random_model
from training.dry_run import PeakMemory

CLIP_SECONDS = 10.0
OURS = ("nano", "950m")
ROUNDS = 5


@dataclass(frozen=True)
class Peer:
    """A codec with functions to encode and decode.

    Args:
        name: name in the table.
        model: the model, in evaluation mode.
        sampling_rate: sampling rate, in Hz.
        encode: function that takes audio (1, 1, samples) and returns the input of `decode`.
        decode: function that takes the output of `encode`.
    """

    name: str
    model: nn.Module
    sampling_rate: int
    encode: Callable[[Tensor], object]
    decode: Callable[..., object]


def our_codec(size: str, device: torch.device) -> Peer:
    """Returns this codec in a named size."""
    model = random_model(size, FLOAT32, device)
    return Peer(f"TAAE {size}", model, model.config.sampling_rate, lambda x: model.encode(x).audio_codes, model.decode)


def encodec(device: torch.device) -> Peer:
    """Returns EnCodec for 24 kHz, at 1.5 kbit/s."""
    model = EncodecModel(EncodecConfig()).eval().to(device)

    def encode(audio: Tensor) -> tuple[Tensor, list]:
        encoded = model.encode(audio, bandwidth=1.5)
        return encoded.audio_codes, encoded.audio_scales

    name = "EnCodec, 24 kHz, 1.5 kbit/s"
    return Peer(name, model, model.config.sampling_rate, encode, lambda encoded: model.decode(*encoded))


def dac(device: torch.device) -> Peer:
    """Returns DAC for 16 kHz, with two codebooks: 1 kbit/s."""
    model = DacModel(DacConfig()).eval().to(device)

    def encode(audio: Tensor) -> Tensor:
        return model.encode(audio, n_quantizers=2).audio_codes

    def decode(codes: Tensor) -> object:
        return model.decode(audio_codes=codes)

    return Peer("DAC, 16 kHz, 1 kbit/s", model, model.config.sampling_rate, encode, decode)


def mimi(device: torch.device) -> Peer:
    """Returns Mimi, with eight codebooks: 1.1 kbit/s."""
    model = MimiModel(MimiConfig()).eval().to(device)

    def encode(audio: Tensor) -> Tensor:
        return model.encode(audio, num_quantizers=8).audio_codes

    return Peer("Mimi, 24 kHz, 1.1 kbit/s", model, model.config.sampling_rate, encode, model.decode)


PEERS: dict[str, Callable[[torch.device], Peer]] = {
    **{f"TAAE {size}": partial(our_codec, size) for size in OURS},
    "EnCodec": encodec,
    "DAC": dac,
    "Mimi": mimi,
}


def peer_rows(bench: Bench, names: Iterable[str] = tuple(PEERS), clip_seconds: float = CLIP_SECONDS) -> Iterator[dict]:
    """Time of encoding and decoding a clip with each codec in float32, and memory.

    Args:
        bench: the machine under test.
        names: codecs, keys of `PEERS`.
        clip_seconds: length of the clip, in seconds.
    """
    memory = {name: peer_memory(name, clip_seconds, bench.device, torch.get_num_threads()) for name in names}
    peers = {name: PEERS[name](bench.device) for name in names}
    seconds: dict[tuple[str, str], list[float]] = {}
    with torch.inference_mode():
        clips = {name: noise(peer, clip_seconds, bench.device) for name, peer in peers.items()}
        encoded = {name: peer.encode(clips[name]) for name, peer in peers.items()}
        for name, peer in peers.items():
            peer.decode(encoded[name])  # like the encoding before it, a warm-up
        for _ in range(ROUNDS):
            for name, peer in peers.items():
                for direction, value in (("encode", clips[name]), ("decode", encoded[name])):
                    call = getattr(peer, direction)
                    _, took = bench.timed(lambda: call(value))  # noqa: B023
                    seconds.setdefault((name, direction), []).append(took)
    for name, peer in peers.items():
        yield {
            "codec": peer.name,
            "M parameters": sum(parameter.numel() for parameter in peer.model.parameters()) / 1e6,
            "encode: real-time factor": median(seconds[name, "encode"]) / clip_seconds,
            "decode: real-time factor": median(seconds[name, "decode"]) / clip_seconds,
            "memory in GB, all told": memory[name],
        }


def noise(peer: Peer, seconds: float, device: torch.device) -> Tensor:
    """Returns a clip for a codec, (1, 1, samples)."""
    return 0.1 * torch.randn(1, 1, round(seconds * peer.sampling_rate), device=device)


def peer_memory(name: str, seconds: float, device: torch.device, threads: int) -> float:
    """Returns the peak memory, in GB, of encoding and decoding a clip with a codec in a separate process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure_memory, name, seconds, device, threads).result()


def _measure_memory(name: str, seconds: float, device: torch.device, threads: int) -> float:
    torch.set_num_threads(threads)
    with PeakMemory(device) as memory, torch.inference_mode():
        peer = PEERS[name](device)
        peer.decode(peer.encode(noise(peer, seconds, device)))
    return memory.peak / 1e9
