"""Recipes: all settings of a training run, as typed fields.

A recipe is a YAML file. Any field can be overridden on the command line by its dotted name
(`--optimizer.learning_rate 3e-4`). Unknown fields and values of a wrong type are rejected before anything is loaded.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

PROGRAM = "train.py"
EXAMPLE = "training/recipes/nano.yaml"


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message says which part and why."""


@dataclass
class CorpusConfig:
    """One source of speech.

    Args:
        source: recordings, Parquet files, WebDataset archives or a list of recordings, as a path, folder or glob
            pattern, or the name of a data set on the Hub.
        subset: the subset of a Hub data set that has several, such as a language.
        split: the split of a Hub data set.
        audio_column: the column with the audio's bytes or path.
        weight: the relative frequency of draws from this corpus.
        audio_root: a folder outside of the source that may hold recordings named in its tables.
        channel: the channel of recordings to read, counted from 1; None averages all.
    """

    source: str
    subset: str | None = None
    split: str = "train"
    audio_column: str = "audio"
    weight: float = 1.0
    audio_root: str | None = None
    channel: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.source[:1] in ("[", "{") and self.source[-1:] in ("]", "}") and '"' in self.source:
            raise RecipeError(
                f"{self.source} is no corpus; expected a path or a name, or a mapping with source and optionally "
                "subset, split, audio_column and weight."
            )


if TYPE_CHECKING:
    from typing import TypeAlias

    OneCorpus: TypeAlias = CorpusConfig
    SomeCorpora: TypeAlias = list[CorpusConfig]
else:  # in recipes and on the command line, a string stands for the corpus of that source
    OneCorpus, SomeCorpora = CorpusConfig | str, list[CorpusConfig | str] | str


def named_corpora(corpora: "list[CorpusConfig] | list[CorpusConfig | str] | str") -> list[CorpusConfig]:
    """Returns corpora, each of which may be given as only its source."""
    listed = [corpora] if isinstance(corpora, str) else corpora
    return [CorpusConfig(corpus) if isinstance(corpus, str) else corpus for corpus in listed]


@dataclass
class AugmentationConfig:
    """Augmentation of training crops. Each change is drawn independently for each crop.

    Args:
        level: largest gain up or down, in dB; crops never clip.
        probability: share of the crops that each of the following changes applies to.
        probabilities: shares of single changes by name, such as `{speed: 0.9}`, which override `probability`; the
            share of `level` is 1 by default.
        speed: largest change of speed and pitch; 0.1 is up to 1.1 times as fast or as slow.
        polarity: whether to invert the waveform.
        equalization: largest gain up or down of an equaliser's bands, in dB.
        noise: folder of recordings to add; None adds none.
        noise_snr: lowest and highest signal-to-noise ratio, in dB.
        room: folder of room impulse responses; None applies none.
    """

    level: NonNegativeFloat = 5.0
    probability: ClosedUnitInterval = 0.5
    probabilities: dict[str, ClosedUnitInterval] = field(default_factory=dict)
    speed: NonNegativeFloat = 0.0
    polarity: bool = False
    equalization: NonNegativeFloat = 0.0
    noise: str | None = None
    noise_snr: tuple[float, float] = (5.0, 30.0)
    room: str | None = None


@dataclass
class DataConfig:
    """Training data.

    Args:
        corpora: the sources of speech.
        crop_frames: length of a training crop, in token frames of 40 ms.
        augmentation: augmentation of the crops.
        streaming: whether to read the corpora during training instead of decoding them to disk first.
        shuffle_buffer: rows in the shuffle buffer when streaming.
        workers: processes that decode the corpora, and then prepare batches during training; with 0, the training
            process does both. None uses the free cores: with a GPU all but one, else none. At most 1 when streaming, so
            that a run can resume exactly.
    """

    corpora: SomeCorpora = field(default_factory=list)
    crop_frames: PositiveInt = 32
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    streaming: bool = False
    shuffle_buffer: PositiveInt = 2_000
    workers: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        self.corpora = named_corpora(self.corpora)


@dataclass
class LossConfig:
    """Weights of the losses.

    Args:
        log_mel: L1 distance of log10-mel spectra, summed over resolutions.
        magnitude: L1 distance of spectral magnitudes relative to the reference's mean, summed over resolutions.
        waveform: L1 distance of samples relative to the reference's mean, at the start of the run.
        waveform_decay_steps: steps in which the weight of the waveform term decays linearly to 0.
        adversarial: hinge loss of decoded audio, if the recipe has a discriminator.
        feature_matching: L1 distance of the discriminator's features, normalised per layer, if there is one.
        perceptual: L1 distance of a recogniser's features, normalised per layer, if the recipe has one.
        ctc: loss of the CTC head per symbol, if the recipe has one.
    """

    log_mel: float = 1.0
    magnitude: float = 0.5
    waveform: float = 1.0
    waveform_decay_steps: int = 5_000
    adversarial: float = 1.0
    feature_matching: float = 10.0
    perceptual: float = 1.0
    ctc: float = 1.0


@dataclass
class DiscriminatorConfig:
    """The multi-resolution complex STFT discriminator. Betas, weight decay, clipping and decay are the codec's.

    By default, the first three fields have TAAE's values; EnCodec has 32 channels, FFT sizes 2048, 1024, 512, 256, 128,
    and exponent 1.

    Args:
        channels: width of each resolution's layers.
        fft_sizes: FFT size of each resolution, in samples; the hop is half of it.
        exponent: power to which magnitudes of the spectra are raised.
        learning_rate: the learning rate between warm-up and decay.
        start_step: first step with the discriminator; before it, the codec trains only on its other losses.
        update_every: steps of the codec per step of the discriminator.
        resolutions_per_step: number of resolutions drawn at random for each step; None uses all.
    """

    channels: int = 256
    fft_sizes: list[int] = field(default_factory=lambda: [78, 126, 206, 334, 542, 876, 1418, 2296])
    exponent: float = 0.5
    learning_rate: float = 3e-4
    start_step: int = 0
    update_every: PositiveInt = 1
    resolutions_per_step: PositiveInt | None = None


@dataclass
class PerceptualConfig:
    """The network whose features the perceptual loss compares.

    Args:
        model: folder or Hub name of a speech encoder that reads waveforms, such as WavLM or HuBERT, or of a Whisper
            model; TAAE uses microsoft/wavlm-large.
        layers: indices of the compared hidden states, from 0, the input of the first layer; None compares all. With
            Whisper, layers above the last one are not computed.
    """

    model: str
    layers: list[int] | None = None


@dataclass
class CTCConfig:
    """A CTC head that predicts text from the latents, on whole utterances in addition to the crops.

    Args:
        corpora: recordings with texts.
        text_column: the column with the texts, in the corpora or in `transcripts`; None takes the first column with a
            usual name, such as text, sentence or transcription.
        transcripts: a Parquet file with the texts by `id`, if the corpora have no column of texts.
        units: "characters" of the text, or "symbols" separated by spaces, such as phonemes.
        ignored: units that are not part of the text, such as marks between words.
        batch_size: utterances per process and forward pass.
        max_seconds: longest duration; longer recordings are left out.
        hidden_size: width of the head.
        learning_rate: the head's learning rate between warm-up and decay.
        validation: recordings with texts, never trained on, for the error rate at validations; None measures none.
    """

    corpora: SomeCorpora
    text_column: str | None = None
    transcripts: str | None = None
    units: Literal["characters", "symbols"] = "characters"
    ignored: list[str] = field(default_factory=list)
    batch_size: PositiveInt = 4
    max_seconds: float = 12.0
    hidden_size: PositiveInt = 256
    learning_rate: float = 1e-3
    validation: OneCorpus | None = None

    def __post_init__(self) -> None:
        self.corpora = named_corpora(self.corpora)
        self.validation = None if self.validation is None else named_corpora([self.validation])[0]


@dataclass
class OptimizerConfig:
    """AdamW and its learning rate: warm-up, constant, decay to zero over the last steps.

    Args:
        learning_rate: the learning rate between warm-up and decay.
        betas: AdamW's averaging factors.
        weight_decay: AdamW's weight decay.
        warmup_steps: steps of the linear warm-up from zero.
        decay_steps: last steps of the run, in which the rate decays to zero along a cosine.
        max_grad_norm: norm to which larger gradients are scaled down.
        ema_decay: averaging factor of the published weights, per update.
        ema_every: steps between updates of the average, which covers about ema_every / (1 - ema_decay) steps.
        divergence_ratio: multiple of the lowest averaged log-mel loss so far at which the run stops.
    """

    learning_rate: PositiveFloat = 6e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: NonNegativeInt = 500
    decay_steps: NonNegativeInt = 4_000
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: ClosedUnitInterval = 0.99
    ema_every: PositiveInt = 8
    divergence_ratio: float = 2.0


@dataclass
class ValidationConfig:
    """Validation during a run.

    Args:
        corpus: speech that is never trained on; None validates nothing.
        every: steps between validations.
        utterances: number of scored utterances, from the start of the corpus; the loss is also computed on as many
            utterances of the training corpora, to show overfitting.
        bottleneck: the preset that is scored.
        samples: number of utterances to keep as sound and spectrogram.
        judges: whether the installed networks of `taae evaluate` score words, voice and naturalness too.
    """

    corpus: OneCorpus | None = None
    every: PositiveInt = 2_000
    utterances: PositiveInt = 30
    bottleneck: str = "1x46656_400bps"
    samples: int = 3
    judges: bool = False

    def __post_init__(self) -> None:
        self.corpus = None if self.corpus is None else named_corpora([self.corpus])[0]


@dataclass
class HubConfig:
    """Publication of the trained model at the end of the run, with a card that shows its figures.

    Args:
        repo: `owner/name` on the Hugging Face Hub, or the name of a repository of one's own; created if it does not
            exist.
        license: the weights' licence, as an identifier of the Hub, such as cc-by-4.0.
        license_file: the file with the text of that licence.
        private: whether only its owner sees it.
    """

    repo: str
    license: str
    license_file: str
    private: bool = True


@dataclass
class Recipe:
    """A training run.

    Args:
        output_dir: folder for checkpoints, logs and the trained model.
        size: a named size (nano, small, 240m, 480m, 950m) to train from scratch, or a folder or Hub name of a TAAE
            model to start from.
        config: fields of the model's configuration that differ from the named size.
        freeze_encoder: whether to train only the decoder, so that tokens stay exactly the same.
        data: the training data.
        losses: the weights of the losses.
        discriminator: the discriminator; None leaves out the adversarial losses. It starts from the one published
            beside the model in `size`, if there is one.
        perceptual: the network of the perceptual loss; None leaves it out.
        ctc: a CTC head that predicts text from the latents; None leaves it out. It starts from the one published beside
            the model in `size`, if there is one.
        optimizer: the optimiser and its learning rate.
        validation: the validation during the run.
        hub: the repository for the trained model; None does not publish it.
        max_steps: number of optimiser steps.
        batch_size: crops per process and forward pass.
        gradient_accumulation_steps: forward passes per optimiser step.
        processes: number of processes that share each batch on a CPU; None chooses the fastest number. A launcher, such
            as `accelerate launch`, overrides it and gives each of its processes its own batch.
        mixed_precision: precision of activations; weights are kept in float32. "auto" chooses bfloat16 if the machine
            computes faster with it, else float32.
        attn_implementation: attention in training; "auto" chooses the fastest on the machine.
        gradient_checkpointing: whether to recompute activations instead of storing them, for large models.
        compile: whether to compile each transformer layer.
        cuda_graph: whether to replay forward and backward passes as a CUDA graph; for reconstruction losses, on one
            GPU.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: number of the newest checkpoints to keep.
        log_every: steps between entries in the log.
        tracker: an Accelerate tracker.
        seed: seed of weights, crops and noise.
        dry_run: whether to only estimate the memory and time of the run, from a few steps on noise.
    """

    output_dir: str = "runs/taae"
    size: str = "nano"
    config: dict[str, Any] = field(default_factory=dict)
    freeze_encoder: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig | None = None
    perceptual: PerceptualConfig | None = None
    ctc: CTCConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    hub: HubConfig | None = None
    max_steps: PositiveInt = 100_000
    batch_size: PositiveInt = 4
    gradient_accumulation_steps: PositiveInt = 1
    processes: PositiveInt | None = None
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    attn_implementation: str = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graph: bool = False
    checkpoint_every: PositiveInt = 1_000
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 50
    tracker: str = "tensorboard"
    seed: NonNegativeInt = 0
    dry_run: bool = False


class RecipeParser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the error and exits with status 2."""
        print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def parse_recipe(arguments: list[str]) -> Recipe:
    """Parses `RECIPE.yaml [--any.recipe.key value ...]`; a mistake ends the program with status 2 and one line."""
    parser = RecipeParser(
        prog=PROGRAM,
        usage="python training/train.py RECIPE.yaml [--any.recipe.key value ...]",
        description="Train or fine-tune a TAAE speech codec. The recipe is a YAML file of the fields below; "
        "each can be overridden on the command line. On GPUs, start it with `accelerate launch` instead of `python`.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", action="config", help="the recipe; may also be given first, without --recipe")
    parser.add_class_arguments(Recipe, as_group=False)
    if arguments and not arguments[0].startswith("-"):
        if not Path(arguments[0]).is_file():
            parser.error(f"{arguments[0]}: there is no such recipe; expected a YAML file, such as {EXAMPLE}")
        arguments = ["--recipe", *arguments]
    try:
        parsed = parser.parse_args(arguments)
        del parsed["recipe"]
        return Recipe(**parser.instantiate(parsed))
    except RecipeError as error:
        parser.error(str(error))
