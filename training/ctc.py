"""The CTC stage: a head predicts text from the latents before the bottleneck, which makes tokens more phonetic.

This stage was added to TAAE after the paper, for speech language models. It works for any language, because its symbols
are those of the transcripts. `CTCHead` is the network; `CTCReader` trains it together with the codec, on whole
utterances instead of crops.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from modeling_taae.configuration_taae import NAMED_SIZES
from training.auxiliary import AuxiliaryNetwork, PublishedModule
from training.batches import batches_of
from training.model import start_of
from training.recipe import CTCConfig, Recipe
from training.transcribed import TranscribedSpeech, first_utterances, split_units

BLANK = 0


class CTCHead(PublishedModule):
    """Predicts symbols at each frame with a hyperbolic tangent and a perceptron with one hidden layer.

    Args:
        symbols: all symbols of the transcripts.
        units: the kind of symbols, see `split_units`.
        latent_dim: dimensions of the latents.
        hidden_size: width of the hidden layer.
    """

    file_name = "ctc_head"

    def __init__(self, symbols: Sequence[str], units: str, latent_dim: int, hidden_size: int):
        super().__init__()
        self.config = {
            "symbols": list(symbols),
            "units": units,
            "latent_dim": latent_dim,
            "hidden_size": hidden_size,
        }
        self.symbols, self.units = list(symbols), units
        self.index = {symbol: number for number, symbol in enumerate(symbols, start=BLANK + 1)}
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, len(symbols) + 1)
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, latent_dim, frames) -> log-probabilities (batch, frames, symbols + 1), of the blank first."""
        return self.layers(torch.tanh(latents.float()).transpose(1, 2)).float().log_softmax(-1)

    def encode(self, text: str, ignored: Collection[str] = ()) -> list[int]:
        """Returns the indices of a text's symbols, without ignored and unknown ones."""
        return [self.index[unit] for unit in split_units(text, self.units, ignored) if unit in self.index]

    def loss(self, latents: Tensor, frames: Tensor, texts: Sequence[str], ignored: Collection[str] = ()) -> Tensor:
        """Returns the connectionist temporal classification loss per symbol, a scalar.

        Args:
            latents: (batch, latent_dim, frames).
            frames: (batch,) real frames of each item. An item with fewer frames than symbols counts as zero.
            texts: one for each item.
            ignored: symbols that are not part of the texts.
        """
        targets = [torch.tensor(self.encode(text, ignored), device=latents.device) for text in texts]
        lengths = torch.tensor([len(target) for target in targets], device=latents.device)
        return F.ctc_loss(
            self(latents).transpose(0, 1), torch.cat(targets), frames, lengths, blank=BLANK, zero_infinity=True
        )

    @torch.no_grad()
    def read(self, latents: Tensor) -> list[str]:
        """Returns the likeliest symbols of one item (1, latent_dim, frames), repetitions merged and blanks left out."""
        best = self(latents)[0].argmax(-1).unique_consecutive()
        return [self.symbols[number - 1] for number in best.tolist() if number != BLANK]


class CTCReader(AuxiliaryNetwork[CTCHead]):
    """A CTC head that trains with the codec, on separate utterances in addition to the codec's crops.

    Args:
        recipe: the run's recipe; it has a CTC head.
        accelerator: the run's accelerator.
        extractor: the codec's feature extractor, for rate and loudness.
        latent_dim: dimensions of the codec's latents.

    Raises:
        CorpusError: if a corpus cannot be read, or has no texts.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, extractor: TaaeFeatureExtractor, latent_dim: int):
        settings = self.settings = required(recipe)
        self.speech = TranscribedSpeech(settings, extractor, recipe.seed, recipe.data.workers or 0)
        head = make_head(recipe, accelerator, self.speech.symbols(), latent_dim)
        super().__init__(head, settings.learning_rate, recipe, accelerator)
        self.validation: list[tuple[np.ndarray, str]] = []
        if settings.validation is not None and accelerator.is_main_process:
            count = recipe.validation.utterances
            self.validation = list(first_utterances(settings.validation, settings, extractor, count))

    def batches(self, shares: list[range], workers: int) -> Iterable[dict]:
        """Yields a batch for each share, with the utterances at the share's indices."""
        return batches_of(self.speech, shares, workers, self.speech.collate)

    def loss(self, model: TaaeModel, batch: dict) -> Tensor:
        """Returns the head's loss on a batch, with gradients for the head and for the encoder; a scalar."""
        device = self.accelerator.device
        with self.accelerator.autocast():
            encoded = model.encode(batch["input_values"].to(device), batch["padding_mask"].to(device))
        frames = encoded.audio_codes_mask.sum(1)
        return self.module.loss(encoded.latents, frames, batch["texts"], self.settings.ignored)

    @torch.no_grad()
    def validate(self, model: TaaeModel) -> dict[str, float]:
        """Returns `symbol_error_rate` on the validation utterances, if there are any."""
        pairs = []
        for samples, text in self.validation:
            latents = model.encode(torch.from_numpy(samples)[None, None].to(self.accelerator.device)).latents
            pairs.append((split_units(text, self.settings.units, self.settings.ignored), self.module.read(latents)))
        return {"symbol_error_rate": error_rate(pairs)} if pairs else {}


def required(recipe: Recipe) -> CTCConfig:
    """Returns the recipe's settings of the head."""
    if recipe.ctc is None:
        raise ValueError("The recipe has no CTC head.")
    return recipe.ctc


def make_head(recipe: Recipe, accelerator: Accelerator, symbols: list[str], latent_dim: int) -> CTCHead:
    """Returns the head published beside the model that the run starts from, if it has all symbols, else a new one."""
    settings = required(recipe)
    if (start := start_of(recipe)) not in NAMED_SIZES and (found := CTCHead.from_pretrained(start)):
        if found.units == settings.units and set(symbols) <= set(found.symbols):
            accelerator.print(f"The CTC head starts from {start}.")
            return found
        accelerator.print(f"The CTC head of {start} lacks some of the symbols here: it starts from random weights.")
    return CTCHead(symbols, settings.units, latent_dim, settings.hidden_size)


def error_rate(pairs: Iterable[tuple[Sequence, Sequence]]) -> float:
    """Returns insertions, deletions and substitutions from references to hypotheses, per symbol of all references."""
    distances = symbols = 0
    for reference, hypothesis in pairs:
        distances += Levenshtein.distance(reference, hypothesis)
        symbols += len(reference)
    return distances / max(symbols, 1)
