"""Measures how well a language model predicts speech, in bits per second."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_taae.speech_grammar_taae import SpeechGrammar
from training.speech_lm.results import BitRates
from training.speech_lm.sequences import IGNORED, SpeechSequences


@torch.no_grad()
def bits_per_second(model: PreTrainedModel, sequences: SpeechSequences) -> BitRates:
    """Returns the bits per second of speech for a coder that uses the model's predictions."""
    grammar, bits, frames = sequences.processor.grammar, {"free": 0.0, "grammar": 0.0}, 0
    for index in tqdm(range(len(sequences)), desc="Measuring", unit="clip", disable=None):
        sequence = sequences[index]
        ids, labels = sequence["input_ids"].to(model.device), sequence["labels"].to(model.device)
        scores = model(ids[None]).logits[0, :-1].float()
        for name, value in sequence_bits(grammar, ids, labels, scores).items():
            bits[name] += value
        frames += sequences.clip(index)[1].shape[1]
    seconds = frames / sequences.corpus.manifest.model.frame_rate
    return BitRates(bits["free"] / seconds, bits["grammar"] / seconds, seconds)


def sequence_bits(grammar: SpeechGrammar, ids: Tensor, labels: Tensor, scores: Tensor) -> dict[str, float]:
    """Returns the bits of a sequence's tokens that have labels: `free`, and with the `grammar`.

    Args:
        grammar: the grammar of the tokens.
        ids: (length,) int64.
        labels: (length,) int64.
        scores: (length - 1, vocabulary), scores of the tokens from the second on.
    """
    places = (labels[1:] != IGNORED).nonzero()[:, 0]
    wanted, scores = labels[1:][places], scores[places]
    # The grammar reads the ids so far: each row ends with the token before a measured one.
    offsets = places[:, None] - torch.arange(len(ids) - 1, device=ids.device).flip(0)
    prefixes = torch.where(offsets >= 0, ids[offsets.clamp(min=0)], 0)
    candidates = {"free": scores, "grammar": grammar(prefixes, scores)}
    return {name: F.cross_entropy(s, wanted, reduction="sum").item() / math.log(2) for name, s in candidates.items()}
