"""Recipes: everything that a training run depends on, as typed fields with one place for each.

A recipe is a YAML file; any field of it can be overridden on the command line by its dotted name
(`--optimizer.learning_rate 3e-4`). Unknown fields and ill-typed values are refused before anything is loaded.
"""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

PROGRAM = "train.py"


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message says which part and why."""


@dataclass
class CorpusConfig:
    """One source of speech.

    Args:
        source: recordings, Parquet files, WebDataset archives or a list of recordings, as a path, folder or glob
            pattern, or the name of a data set on the Hub.
        subset: which subset of a Hub data set that has several, such as a language.
        split: which split of a Hub data set.
        audio_column: column that holds the audio's bytes or path.
        weight: how often to draw from this corpus, relative to the others.
        audio_root: a folder outside of the source in which recordings may lie that its tables name.
        channel: the channel of recordings to read, from 1; None averages all.
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
                f"{self.source} is no corpus; expected a path or a name, or a mapping with source and perhaps subset, "
                "split, audio_column and weight."
            )


if TYPE_CHECKING:
    from typing import TypeAlias

    OneCorpus: TypeAlias = CorpusConfig
    SomeCorpora: TypeAlias = list[CorpusConfig]
else:  # in recipes and on the command line, a string stands for the corpus of that source
    OneCorpus, SomeCorpora = CorpusConfig | str, list[CorpusConfig | str] | str


def named_corpora(corpora: "list[CorpusConfig] | list[CorpusConfig | str] | str") -> list[CorpusConfig]:
    """Returns corpora, of which any may be given as its source alone."""
    listed = [corpora] if isinstance(corpora, str) else corpora
    return [CorpusConfig(corpus) if isinstance(corpus, str) else corpus for corpus in listed]


@dataclass
class AugmentationConfig:
    """How training crops are changed. Which changes a crop gets is drawn for each of them by itself.

    Args:
        level: largest gain either way, in dB; crops are never made to clip.
        probability: share of the crops that each of the following changes.
        probabilities: shares of single changes by their names, such as `{speed: 0.9}`, in place of `probability`; the
            share of `level` is 1.
        speed: largest change of speed and pitch; 0.1 is up to 1.1 times as fast or as slow.
        polarity: turn the waveform upside down.
        equalization: largest gain either way of the bands of an equaliser, in dB.
        noise: folder of recordings to add; None adds none.
        noise_snr: lowest and highest ratio of speech to noise, in dB.
        room: folder of impulse responses to convolve with; None convolves with none.
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
    """What the model trains on.

    Args:
        corpora: where the speech comes from.
        crop_frames: length of a training crop, in token frames of 40 ms.
        augmentation: how crops are changed.
        streaming: read the corpora as training goes, instead of decoding them to disk first.
        shuffle_buffer: rows in the shuffle buffer when streaming.
        workers: processes that decode the corpora, and then prepare batches beside the training loop; 0 does both in
            it. None takes the cores that are free on the machine: with a GPU all but one, else none. At most 1 when
            streaming, so that a run can resume where it was.
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
    """Weights of the losses, all in one place.

    Args:
        log_mel: L1 distance of log10-mel spectra, summed over resolutions.
        magnitude: L1 distance of spectral magnitudes relative to the reference's mean, summed over resolutions.
        waveform: L1 distance of samples relative to the reference's mean, at the start.
        waveform_decay_steps: steps in which the waveform term decays linearly to nothing.
        adversarial: hinge loss of decoded audio, if the recipe has a discriminator.
        feature_matching: L1 distance of the discriminator's features, normalised per layer, if there is one.
        perceptual: L1 distance of a recogniser's features, normalised per layer, if the recipe names one.
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
    """The multi-resolution complex STFT discriminator; betas, weight decay, clipping and decay are the codec's.

    The defaults of the first three are TAAE's changes; EnCodec has 32 channels, FFT sizes 2048, 1024, 512, 256, 128,
    and exponent 1.

    Args:
        channels: width of each resolution's layers.
        fft_sizes: FFT size of each resolution, in samples; the hop is half of it.
        exponent: magnitudes of the spectra are raised to this power.
        learning_rate: the constant one.
        start_step: before it, the codec trains on its other losses alone.
        update_every: the codec's steps per step of the discriminator.
        resolutions_per_step: how many resolutions to draw at random for each step; None takes all.
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
        model: an encoder of speech that reads waveforms, such as WavLM or HuBERT, or a Whisper model, as a folder or a
            name on the Hub; TAAE uses microsoft/wavlm-large.
        layers: numbers of hidden states, from 0, the input of the first layer; None takes all. With Whisper, layers
            above the last of them cost nothing.
    """

    model: str
    layers: list[int] | None = None


@dataclass
class CTCConfig:
    """A head that reads text off the latents, on whole utterances of its own beside the crops.

    Args:
        corpora: recordings with texts.
        text_column: the column that holds the texts, of the corpora or of `transcripts`; None takes the first with a
            usual name, such as text, sentence or transcription.
        transcripts: a Parquet file with the texts by `id`, if they are no column of the corpora.
        units: "characters" of the text, or "symbols" that stand between spaces, such as phonemes.
        ignored: units that are no part of the text, such as marks between words.
        batch_size: utterances per process and forward pass.
        max_seconds: longer recordings are left out.
        hidden_size: width of the head.
        learning_rate: the head's learning rate, which is constant.
        validation: recordings with texts, never trained on, for the error rate at the run's validations; None measures
            none.
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
        learning_rate: the constant one.
        betas: AdamW's averaging factors.
        weight_decay: AdamW's weight decay.
        warmup_steps: linear warm-up from zero.
        decay_steps: the last steps of the run, in which the rate falls to zero along a cosine.
        max_grad_norm: gradients are scaled down to this norm.
        ema_decay: averaging factor of the published weights, per update.
        ema_every: steps between updates of the average; both look back about ema_every / (1 - ema_decay) steps.
        divergence_ratio: the run stops if its averaged log-mel loss rises to this multiple of the lowest so far.
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
    """How a run is watched.

    Args:
        corpus: speech that is never trained on; None validates nothing.
        every: steps between validations.
        utterances: how many to score, from the start of the corpus; the loss is also taken on as many of the training
            corpora, to see the gap.
        bottleneck: the token preset that is scored.
        samples: how many of them to keep as sound and spectrogram.
    """

    corpus: OneCorpus | None = None
    every: PositiveInt = 2_000
    utterances: PositiveInt = 30
    bottleneck: str = "1x46656_400bps"
    samples: int = 3

    def __post_init__(self) -> None:
        self.corpus = None if self.corpus is None else named_corpora([self.corpus])[0]


@dataclass
class HubConfig:
    """Where the trained model is published, when the run is over, with a card that shows its figures.

    Args:
        repo: `owner/name` on the Hugging Face Hub, or a name among one's own; made if it does not exist.
        license: the weights' licence, as the Hub calls it, such as cc-by-4.0.
        license_file: the text of that licence.
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
        output_dir: where checkpoints, logs and the trained model go.
        size: a named size (nano, small, 240m, 480m, 950m) to train from scratch, or a folder or Hub name of a TAAE
            model to start from.
        config: fields of the model's configuration that differ from the named size.
        freeze_encoder: train the decoder alone, so that the tokens stay bit for bit what they are.
        data: what to train on.
        losses: what to minimise.
        discriminator: trains against the codec; None leaves the adversarial losses out. Starts from the one published
            beside the model in `size`, if there is one.
        perceptual: what the perceptual loss listens with; None leaves it out.
        ctc: a head that reads text off the latents; None leaves it out. Starts from the one published beside the model
            in `size`, if there is one.
        optimizer: how.
        validation: how to watch.
        hub: where to publish the model at the end; None keeps it here.
        max_steps: optimiser steps in all.
        batch_size: crops per process and forward pass.
        gradient_accumulation_steps: forward passes per optimiser step.
        processes: number of processes that share each batch on a CPU; None takes as many as pay. A launcher, such as
            `accelerate launch`, overrides it, and gives each of its processes a batch of its own.
        mixed_precision: precision of activations; weights are kept in float32. "auto" takes bfloat16 where the machine
            computes faster with it, and float32 elsewhere.
        attn_implementation: attention in training; "auto" takes what is fastest on the machine.
        gradient_checkpointing: compute activations twice instead of keeping them, for large models.
        compile: compile each transformer layer.
        cuda_graph: replay forward and backward passes as a CUDA graph; for reconstruction losses, on one GPU.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest checkpoints stay.
        log_every: steps between entries in the log.
        tracker: an Accelerate tracker.
        seed: seed of weights, crops and noise.
        dry_run: tell what the run would take of memory and time, from a few steps on noise, and write nothing.
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
        """Tells what is wrong and exits with status 2."""
        print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def parse_recipe(arguments: list[str]) -> Recipe:
    """Reads `RECIPE.yaml [--any.recipe.key value ...]`; exits with status 2 and one line on a mistake."""
    parser = RecipeParser(
        prog=PROGRAM,
        usage="python training/train.py RECIPE.yaml [--any.recipe.key value ...]",
        description="Train or fine-tune a TAAE speech codec. The recipe is a YAML file of the fields below; "
        "each can be overridden on the command line. On GPUs, start it with `accelerate launch` instead of `python`.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", action="config", help="the recipe; may stand first, without --recipe")
    parser.add_class_arguments(Recipe, as_group=False)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--recipe", *arguments]
    try:
        parsed = parser.parse_args(arguments)
        del parsed["recipe"]
        return Recipe(**parser.instantiate(parsed))
    except RecipeError as error:
        parser.error(str(error))
