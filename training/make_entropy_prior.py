"""Trains a model's prior for entropy coding: `python training/make_entropy_prior.py FOLDER SPEECH …`.

SPEECH is the speech that the model was trained on: Parquet files, audio files or folders of them. The command writes
entropy_prior.safetensors into the model's folder. A prior belongs to the weights whose tokens it was trained on, so it
must be made again when they change.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm, trange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from modeling_taae.codec import Codec, load_codec, named_bottlenecks
from modeling_taae.data.utterances import Utterances
from modeling_taae.entropy.coding import (
    LARGEST_ACTIVATION,
    VALUE_UNIT,
    WEIGHT_UNIT,
    ContextModel,
    digit_values,
)
from modeling_taae.entropy.prior import GRIDS, EntropyPrior
from modeling_taae.errors import TaaeInputError
from modeling_taae.quantization_taae import NATIVE, FiniteScalarQuantizer
from training.commands import exit_status

PAST, HIDDEN, WIDTH = 4, 128, 64
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 1024, 2e-3, 1e-2


class PredictorNetwork(nn.Module):
    """A trainable [`ContextModel`]: the same layers, with weights rounded as they will be stored.

    Args:
        dimensions: digits of a frame.
        levels: values of a digit.
    """

    def __init__(self, dimensions: int, levels: int):
        super().__init__()
        self.recent = nn.Linear(PAST * dimensions, HIDDEN)
        self.context = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, dimensions * WIDTH)
        self.earlier = nn.Linear(dimensions, dimensions * WIDTH, bias=False)
        self.output = nn.ModuleList([nn.Linear(WIDTH, levels) for _ in range(dimensions)])
        # A dimension sees only earlier dimensions.
        seen = torch.ones(dimensions, dimensions).tril(-1).repeat_interleave(WIDTH, dim=0)
        self.register_buffer("seen", seen)

    def forward(self, recent: Tensor, current: Tensor) -> Tensor:
        """Returns base-2 logarithms of the probabilities of a frame's digits, up to a constant.

        Args:
            recent: (batch, PAST * dimensions) values of the frames before, the oldest first.
            current: (batch, dimensions) values of the frame's digits.

        Returns:
            (batch, dimensions, levels).
        """
        hidden = activate(linear(self.recent, recent))
        hidden = activate(linear(self.context, hidden))
        sums = linear(self.head, hidden) + F.linear(current, straight_through(self.earlier.weight) * self.seen)
        parts = activate(sums).chunk(len(self.output), dim=1)
        return torch.stack([linear(*pair) for pair in zip(self.output, parts, strict=True)], dim=1)

    def to_predictor(self) -> ContextModel:
        """Returns the network in the form that the coder computes."""
        layers = {"recent": self.recent, "context": self.context, "head": self.head}
        arrays = {
            **{name: stored_weight(layer.weight) for name, layer in layers.items()},
            **{f"{name}_bias": stored_bias(layer.bias) for name, layer in layers.items()},
            "earlier": stored_weight(self.earlier.weight) * self.seen,
            "output": torch.stack([stored_weight(layer.weight) for layer in self.output]),
            "output_bias": torch.stack([stored_bias(layer.bias) for layer in self.output]),
        }
        return ContextModel(**{name: values.double().numpy() for name, values in arrays.items()})


def stored_weight(weight: Tensor) -> Tensor:
    """Rounds weights as they are stored, in 8 bits."""
    return (weight.detach() * WEIGHT_UNIT).round().clamp(-127, 127) / WEIGHT_UNIT


def stored_bias(bias: Tensor) -> Tensor:
    """Rounds biases as they are stored."""
    unit = WEIGHT_UNIT * VALUE_UNIT
    return (bias.detach() * unit).round() / unit


def straight_through(weight: Tensor) -> Tensor:
    """Rounds weights as they are stored, with a straight-through gradient."""
    return weight + (stored_weight(weight) - weight).detach()


def linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """Applies a linear layer with its weights rounded as they are stored."""
    return F.linear(inputs, straight_through(layer.weight), layer.bias)


def activate(sums: Tensor) -> Tensor:
    """Applies the activation of [`ContextModel`]."""
    return sums.clamp(0, LARGEST_ACTIVATION)


def grids_of(codec: Codec) -> dict[str, FiniteScalarQuantizer]:
    """Returns the grids on which tokens of the model can be coded.

    Raises:
        TaaeInputError: if its training grid differs between dimensions, which the coder does not support.
    """
    named = named_bottlenecks(codec.model)
    grids = {name: named[name].stages[0] for name in sorted(set(GRIDS.values())) if name in named}
    levels = grids[NATIVE].levels
    if len(set(levels)) > 1:
        raise TaaeInputError(f"this model's grid has {levels} levels; expected as many in each dimension")
    return grids


def digits_of_speech(codec: Codec, sources: list[str], limit: int | None = None) -> dict[str, list[np.ndarray]]:
    """Returns the digits of speech on each grid of the model: for each clip, (frames, dimensions) int64.

    Raises:
        TaaeInputError: if no speech can be read.
    """
    grids, rate = grids_of(codec), codec.extractor.sampling_rate
    digits: dict[str, list[np.ndarray]] = {name: [] for name in grids}
    for utterance in tqdm(Utterances(sources, rate, limit), unit="clip", disable=None):
        if utterance.audio is None:
            continue
        inputs = codec.extractor(utterance.audio, sampling_rate=rate, return_tensors="pt").to(codec.model.device)
        with torch.inference_mode():
            latents = codec.model.encode(**inputs).latents
        for name, grid in grids.items():
            tokens = codec.model.bottleneck(name).encode(latents)
            digits[name].append(grid.unpack(tokens[:, 0])[0].T.cpu().numpy())
    if not digits[NATIVE]:
        raise TaaeInputError(f"{', '.join(sources)}: holds no speech that can be read")
    return digits


def train_predictor(clips: list[np.ndarray], levels: int, steps: int, seed: int = 0) -> ContextModel:
    """Trains a network to predict the digits of clips, each (frames, dimensions) int64."""
    torch.manual_seed(seed)
    dimensions = clips[0].shape[1]
    network = PredictorNetwork(dimensions, levels)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    values, digits, current = lay_out(clips, digit_values(levels))
    past = torch.arange(-PAST, 0)
    progress = trange(steps, desc=f"{levels} levels", unit="step", disable=None)
    for step in progress:
        frames = current[torch.randint(len(current), (BATCH_SIZE,))]
        recent = values[frames[:, None] + past].flatten(1)
        scores = network(recent, values[frames])
        loss = F.cross_entropy(scores.flatten(0, 1) * math.log(2), digits[frames].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            progress.set_postfix(bits_per_frame=f"{dimensions * loss.item() / math.log(2):.2f}")
    return network.to_predictor()


def lay_out(clips: list[np.ndarray], digit_values: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Joins clips, each preceded by as many frames of zeros as the network looks back.

    Returns:
        (frames, dimensions) values in float32 and digits, and the indices of the frames that belong to clips.
    """
    before = np.zeros((PAST, clips[0].shape[1]))
    values = np.concatenate([part for clip in clips for part in (before, digit_values[clip])])
    digits = np.concatenate([part for clip in clips for part in (before, clip)])
    real = np.concatenate([np.arange(PAST + len(clip)) >= PAST for clip in clips])
    return torch.from_numpy(values).float(), torch.from_numpy(digits).long(), torch.from_numpy(np.nonzero(real)[0])


def make_prior(codec: Codec, sources: list[str], steps: int, limit: int | None = None) -> EntropyPrior:
    """Trains a prior for a model on speech.

    Raises:
        TaaeInputError: if the model's tokens cannot be coded, or no speech can be read.
    """
    clips = digits_of_speech(codec, sources, limit)
    predictors = {name: train_predictor(clips[name], grid.levels[0], steps) for name, grid in grids_of(codec).items()}
    config = codec.model.config
    return EntropyPrior(codec.file_identity, config.sampling_rate, config.hop_length, predictors)


def main(arguments: list[str] | None = None) -> int:
    """Trains and writes a prior, and returns the exit status: 2 if that is not possible."""
    parser = argparse.ArgumentParser(prog="make_entropy_prior.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the model's folder, such as hub_cards/taae-speech-16k-nano")
    parser.add_argument("speech", nargs="+", help="the model's training speech: Parquet or audio files, or folders")
    parser.add_argument("--steps", type=int, default=8000, help="training steps for each grid (default: 8000)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N utterances")
    options = parser.parse_args(arguments)

    def make() -> None:
        prior = make_prior(load_codec(str(options.folder)), options.speech, options.steps, options.limit)
        prior.save(options.folder)

    return exit_status(parser.prog, make)


if __name__ == "__main__":
    sys.exit(main())
