"""A run's settings and its result, the content of result.json."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt


@dataclass
class Budget:
    """Size and training of a language model: with the same, presets and layouts can be compared.

    A step hears the same frames of the same clips whatever the preset and layout, if the corpora have the same clips.

    Args:
        layers: the transformer's layers.
        hidden_size: the transformer's width; its feed-forward layers are four times as wide.
        heads: attention heads.
        crop_frames: the most frames in a sequence, at 25 a second.
        batch_size: sequences in a step, on each GPU if there are several.
        max_steps: optimiser steps.
        learning_rate: the highest learning rate; it warms up over a tenth of the steps, then falls to zero along a
            cosine.
        bf16: train in bfloat16: true, false, or auto, where the device is quicker with it.
        checkpoint_every: steps between checkpoints.
        seed: the seed of weights, order and samples.
    """

    layers: PositiveInt = 4
    hidden_size: PositiveInt = 256
    heads: PositiveInt = 4
    crop_frames: PositiveInt = 250
    batch_size: PositiveInt = 8
    max_steps: PositiveInt = 2_000
    learning_rate: PositiveFloat = 1e-3
    bf16: bool | Literal["auto"] = "auto"
    checkpoint_every: PositiveInt = 500
    seed: int = 0


@dataclass
class Settings:
    """A run.

    Args:
        train: tokens to train on: folders that `taae tokenize` wrote, or names of such data sets on the Hub.
        validation: others, of the same preset and codec.
        output_dir: folder for checkpoints, model, samples and result; an interrupted run in it goes on.
        bottleneck: the preset that both are expected to have; None takes that of `train`.
        layout: order of a frame's tokens, `interleaved` or `delay`.
        texts: put texts before speech: a column of the corpora, or a Parquet file with columns id and text.
        codec: the codec's folder or name, to decode samples with; None takes that of `taae`.
        samples: the number of samples of each kind; 0 needs no codec.
        budget: size and training.
    """

    train: list[str]
    validation: list[str]
    output_dir: str
    bottleneck: str | None = None
    layout: str = "interleaved"
    texts: str | None = None
    codec: str | None = None
    samples: NonNegativeInt = 2
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class BitRates:
    """Bits per second of speech that a model has not heard.

    Args:
        free: the rate over all tokens.
        grammar: the rate over those that the grammar allows, which is what generation draws from.
        seconds: the speech that was measured.
    """

    free: float
    grammar: float
    seconds: float


@dataclass(frozen=True)
class Parameters:
    """A language model's parameters.

    Args:
        transformer: those besides the embeddings.
        embeddings: those of the embeddings.
    """

    transformer: int
    embeddings: int


@dataclass(frozen=True)
class Counts:
    """The sequences of a run.

    Args:
        train: those to train on.
        validation: those to measure with.
    """

    train: int
    validation: int


@dataclass(frozen=True)
class Sample:
    """A piece of speech by the model.

    Args:
        file: its path in the run's folder.
        text: the text that it says, or that its beginning says.
        frames: its length.
    """

    file: str
    text: str
    frames: int


@dataclass(frozen=True)
class Result:
    """A run's result.

    Args:
        codec: the identity of the codec whose tokens the model learnt.
        bottleneck: the tokens' preset.
        layout: the order of a frame's tokens.
        texts: true if there was text before speech.
        nominal_bit_rate: bits per second if all tokens were equally likely.
        bit_rate: bits per second with the model's predictions.
        parameters: the model's size.
        sequences: the numbers of sequences.
        budget: size and training.
        samples: the speech that the model made.
        precision: the precision of its training, and why; empty in results from before it was noted.
    """

    codec: str
    bottleneck: str
    layout: str
    texts: bool
    nominal_bit_rate: float
    bit_rate: BitRates
    parameters: Parameters
    sequences: Counts
    budget: Budget
    samples: list[Sample]
    precision: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the result as a dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Result":
        """Reads a result."""
        parts = {
            "bit_rate": BitRates(**content["bit_rate"]),
            "parameters": Parameters(**content["parameters"]),
            "sequences": Counts(**content["sequences"]),
            "budget": Budget(**content["budget"]),
            "samples": [Sample(**sample) for sample in content["samples"]],
        }
        return cls(**content | parts)
