"""The CTC head of a run: its term of the codec's loss, and its error rate."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from modeling_taae.configuration_taae import NAMED_SIZES
from training.auxiliary import Companion
from training.ctc import CTCHead, error_rate, split_units
from training.recipe import Recipe
from training.transcribed import TranscribedSpeech, first_utterances


class Reader:
    """A CTC head that trains with the codec, on utterances of its own beside the codec's crops.

    Args:
        recipe: of the run; has a CTC head.
        accelerator: of the run.
        extractor: which rate and loudness to decode to.
        latent_dim: of the codec.

    Raises:
        CorpusError: if a corpus cannot be read, or has no texts.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, extractor: TaaeFeatureExtractor, latent_dim: int):
        settings = recipe.ctc
        self.accelerator, self.settings, self.workers = accelerator, settings, recipe.data.workers
        self.speech = TranscribedSpeech(settings, extractor, recipe.seed)
        self.head = self._build(recipe, latent_dim)
        self.companion = Companion(self.head, "ctc_head", settings.learning_rate, recipe, accelerator)
        self.validation = []
        if settings.validation is not None and accelerator.is_main_process:
            count = recipe.validation.utterances
            self.validation = list(first_utterances(settings.validation, settings, extractor, count))

    def _build(self, recipe: Recipe, latent_dim: int) -> CTCHead:
        symbols, units = self.speech.symbols(), recipe.ctc.units
        if recipe.size not in NAMED_SIZES and (found := CTCHead.from_pretrained(recipe.size)):
            if found.units == units and set(symbols) <= set(found.symbols):
                self.accelerator.print(f"The CTC head starts from {recipe.size}.")
                return found
            self.accelerator.print(f"The CTC head of {recipe.size} lacks some of the symbols here: it starts afresh.")
        return CTCHead(symbols, units, latent_dim, recipe.ctc.hidden_size)

    def batches(self, shares: list[range]) -> Iterable[dict]:
        """The utterances of the given numbers, a batch for each share."""
        return DataLoader(
            self.speech,
            batch_sampler=shares,
            collate_fn=self.speech.collate,
            num_workers=self.workers,
            generator=torch.Generator(),
        )

    def loss(self, model: TaaeModel, batch: dict) -> torch.Tensor:
        """The head's loss on a batch, with gradients for the head and for the encoder; a scalar."""
        device = self.accelerator.device
        with self.accelerator.autocast():
            encoded = model.encode(batch["input_values"].to(device), batch["padding_mask"].to(device))
        frames = encoded.audio_codes_mask.sum(1)
        return self.head.loss(encoded.latents, frames, batch["texts"], self.settings.ignored)

    @torch.no_grad()
    def validate(self, model: TaaeModel) -> dict[str, float]:
        """`symbol_error_rate` on the validation utterances, if there are any."""
        pairs = []
        for samples, text in self.validation:
            latents = model.encode(torch.from_numpy(samples)[None, None].to(self.accelerator.device)).latents
            pairs.append((split_units(text, self.settings.units, self.settings.ignored), self.head.read(latents)))
        return {"symbol_error_rate": error_rate(pairs)} if pairs else {}
