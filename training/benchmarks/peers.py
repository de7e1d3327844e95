"""The benchmark's section that compares this codec with others of Transformers, at their published sizes.

Weights are random, because speed does not depend on them. Each codec gets a clip at its sampling rate. The codecs take
turns, so that other work on the machine affects all of them alike.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from torch import nn
from transformers import AutoModel, DacConfig, EncodecConfig, MimiConfig, PretrainedConfig

from training.benchmarks.tools import FLOAT32, Bench, in_own_process, random_model
from training.dry_run import PeakMemory

CLIP_SECONDS = 10.0
ROUNDS = 5


@dataclass(frozen=True)
class Peer:
    """A codec with the common interface of Transformers.

    Args:
        name: name in the table.
        make: function that makes the model on a device, in evaluation mode.
        options: options of `encode`, which choose the bit rate.
    """

    name: str
    make: Callable[[torch.device], nn.Module]
    options: dict[str, float] = field(default_factory=dict)


PEERS = {
    "TAAE nano": Peer("TAAE nano", partial(random_model, "nano", FLOAT32)),
    "TAAE 950m": Peer("TAAE 950m", partial(random_model, "950m", FLOAT32)),
    "EnCodec": Peer("EnCodec, 24 kHz, 1.5 kbit/s", lambda device: made(EncodecConfig(), device), {"bandwidth": 1.5}),
    "DAC": Peer("DAC, 16 kHz, 1 kbit/s", lambda device: made(DacConfig(), device), {"n_quantizers": 2}),
    "Mimi": Peer("Mimi, 24 kHz, 1.1 kbit/s", lambda device: made(MimiConfig(), device), {"num_quantizers": 8}),
}


def made(config: PretrainedConfig, device: torch.device) -> nn.Module:
    """Returns a model with random weights, in evaluation mode."""
    return AutoModel.from_config(config).eval().to(device)


class Run:
    """A codec with a clip of noise at its sampling rate.

    Args:
        peer: the codec.
        seconds: length of the clip, in seconds.
        device: device that computes.
    """

    def __init__(self, peer: Peer, seconds: float, device: torch.device):
        self.peer, self.model = peer, peer.make(device)
        self.clip = 0.1 * torch.randn(1, 1, round(seconds * self.model.config.sampling_rate), device=device)
        self.encode()

    def encode(self) -> None:
        """Encodes the clip; keeps what `decode` takes."""
        encoded = self.model.encode(self.clip, **self.peer.options)
        self.encoded = {name: encoded[name] for name in ("audio_codes", "audio_scales") if name in encoded}

    def decode(self) -> None:
        """Decodes the tokens."""
        self.model.decode(**self.encoded)


def peer_rows(bench: Bench, names: Iterable[str] = tuple(PEERS), clip_seconds: float = CLIP_SECONDS) -> Iterator[dict]:
    """Time of encoding and decoding a clip with each codec in float32, and memory.

    Args:
        bench: the machine under test.
        names: codecs, keys of `PEERS`.
        clip_seconds: length of the clip, in seconds.
    """
    memory = {name: in_own_process(peer_memory, name, clip_seconds, bench.device) for name in names}
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with torch.inference_mode():
        runs = {name: Run(PEERS[name], clip_seconds, bench.device) for name in names}
        for run in runs.values():
            run.decode()  # like the encoding before it, a warm-up
        for _ in range(ROUNDS):
            for name, run in runs.items():
                seconds[name, "encode"].append(bench.timed(run.encode)[1])
                seconds[name, "decode"].append(bench.timed(run.decode)[1])
    for name, run in runs.items():
        yield {
            "codec": run.peer.name,
            "M parameters": sum(parameter.numel() for parameter in run.model.parameters()) / 1e6,
            "encode: real-time factor": median(seconds[name, "encode"]) / clip_seconds,
            "decode: real-time factor": median(seconds[name, "decode"]) / clip_seconds,
            "memory in GB, all told": memory[name],
        }


def peer_memory(name: str, seconds: float, device: torch.device) -> float:
    """Returns the peak memory, in GB, of encoding and decoding a clip with a codec."""
    with PeakMemory(device) as memory, torch.inference_mode():
        Run(PEERS[name], seconds, device).decode()
    return memory.peak / 1e9
