"""Probes tokens: measures how well small models predict language, gender, speaker and phonemes from them.

Each probe runs on the digits of a model's tokens and, for comparison, on log-mel spectra of the same frames. A larger
probe may find information that these do not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from ..quantization_taae import ResidualFSQ
from .alignment import SAMPLING_RATE

MEL_BANDS, MEL_WINDOW, MEL_FLOOR = 80, 512, 1e-4
FOLDS, PENALTY, STEPS = 5, 1e-2, 1_000
# The phoneme probe: channels, epochs, learning rate, and utterances in a batch.
CHANNELS, EPOCHS, LEARNING_RATE, BATCH = 128, 20, 4e-3, 16


def digit_features(codes: np.ndarray, quantizer: ResidualFSQ) -> np.ndarray:
    """Returns all digits one-hot encoded: (tokens_per_frame, frames) -> (frames, features)."""
    columns = []
    for stage, tokens in zip(quantizer.stages, codes, strict=True):
        digits = stage.unpack(torch.from_numpy(tokens)[None])[0].numpy()
        columns += [np.eye(levels, dtype=np.float32)[row] for row, levels in zip(digits, stage.levels, strict=True)]
    return np.concatenate(columns, axis=1)


def mel_features(audio: np.ndarray, hop_length: int) -> np.ndarray:
    """Returns log-mel spectra, four per token frame: (samples,) -> (frames, 4 * 80)."""
    hop = hop_length // 4
    frames = -(-len(audio) // hop_length)
    padded = np.pad(audio, (MEL_WINDOW // 2, frames * hop_length + MEL_WINDOW - len(audio)))
    filters = mel_filter_bank(MEL_WINDOW // 2 + 1, MEL_BANDS, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, "slaney", "slaney")
    window = window_function(MEL_WINDOW, "hann", periodic=False)
    mel = spectrogram(padded, window, MEL_WINDOW, hop, power=1.0, center=False, mel_filters=filters, mel_floor=0.0)
    return np.log(mel.T[: 4 * frames] + MEL_FLOOR).reshape(frames, -1).astype(np.float32)


def pooled(features: np.ndarray) -> np.ndarray:
    """Returns means and standard deviations over time: (frames, features) -> (2 * features,)."""
    return np.concatenate([features.mean(axis=0), features.std(axis=0)])


def classify(features: np.ndarray, labels: Sequence[str], groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Returns the cross-validated accuracy of a linear classifier (logistic regression with a quadratic penalty).

    Args:
        features: one row per utterance: (utterances, features).
        labels: the label of each utterance, to be predicted.
        groups: the group of each utterance; a group is never split between folds. Use speakers, so that the classifier
            cannot recognise them instead of the label, or the utterances themselves.
        seed: the seed of the folds.

    Returns:
        `accuracy`, and `chance`, the share of the most frequent label; `balanced_accuracy`, the mean over the labels,
        whose chance is one over `classes`; `utterances`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(FOLDS, len(set(groups)))
    # scikit-learn weighs the sum of the losses against half the penalty; our penalty is relative to their mean.
    strength = 1 / (2 * PENALTY * len(labels) * (1 - 1 / folds))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=STEPS))
    split = GroupKFold(folds, shuffle=True, random_state=seed)
    guesses = cross_val_predict(classifier, features, labels, groups=groups, cv=split)
    names, counts = np.unique(labels, return_counts=True)
    recalls = recall_score(labels, guesses, labels=names, average=None, zero_division=0.0)
    return {
        "accuracy": float(np.mean(guesses == np.asarray(labels))),
        "chance": float(counts.max() / len(labels)),
        "balanced_accuracy": float(np.mean(recalls)),
        "classes": len(names),
        "utterances": len(labels),
    }


class PhonemeProbe(nn.Module):
    """Predicts phonemes with two convolutions over five frames, each with layer norm, and a linear layer.

    It is trained with CTC and has two outputs per frame, because there can be more phonemes than frames.

    Args:
        mean, deviation: mean and standard deviation of the features, to standardise them: (features,).
        phonemes: number of phonemes; label 0 is CTC's blank.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, phonemes: int):
        super().__init__()
        self.mean, self.deviation = mean, deviation
        self.convolutions = nn.ModuleList(nn.Conv1d(size, CHANNELS, 5, padding=2) for size in (len(mean), CHANNELS))
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in self.convolutions)
        self.output = nn.Linear(CHANNELS, 2 * (phonemes + 1))

    def forward(self, features: Tensor) -> Tensor:
        """Returns log probabilities for CTC: (batch, frames, features) -> (2 * frames, batch, phonemes + 1)."""
        hidden = (features - self.mean) / self.deviation
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = nn.functional.gelu(norm(convolution(hidden.transpose(1, 2)).transpose(1, 2)))
        scores = self.output(hidden)
        return scores.reshape(scores.shape[0], 2 * scores.shape[1], -1).log_softmax(-1).transpose(0, 1)


Utterance = tuple[np.ndarray, list[str]]


def phoneme_error_rate(known: Sequence[Utterance], unknown: Sequence[Utterance], seed: int = 0) -> dict[str, Any]:
    """Trains a phoneme probe and tests it.

    Args:
        known, unknown: training and test utterances: the features, (frames, features), and the phonemes of each.
        seed: the seed of weights and order.

    Returns:
        `phoneme_error_rate`: substitutions, deletions and insertions per phoneme; `chance`, the error rate of guessing
        the most frequent phoneme as often as there are phonemes; `phonemes`, their number in the test; `utterances`.
    """
    from rapidfuzz.distance import Levenshtein

    names = sorted({phoneme for _, phonemes in known for phoneme in phonemes})
    frames = torch.from_numpy(np.concatenate([features for features, _ in known]))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = PhonemeProbe(frames.mean(dim=0), frames.std(dim=0) + 1e-4, len(names))
    train_probe(probe, known, names, generator)
    frequent = max(names, key=[phoneme for _, phonemes in known for phoneme in phonemes].count)
    errors = length = guessing = 0
    for features, phonemes in unknown:
        errors += Levenshtein.distance(phonemes, decode(probe, features, names))
        guessing += Levenshtein.distance(phonemes, [frequent] * len(phonemes))
        length += len(phonemes)
    rates = {"phoneme_error_rate": errors / length, "chance": guessing / length}
    return {**rates, "phonemes": length, "utterances": len(unknown)}


def train_probe(
    probe: PhonemeProbe, known: Sequence[Utterance], names: Sequence[str], generator: torch.Generator
) -> None:
    """Trains a probe with CTC on random batches."""
    numbers = {name: place + 1 for place, name in enumerate(names)}
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE)
    steps = EPOCHS * -(-len(known) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for places in torch.randperm(len(known), generator=generator).split(BATCH):
            batch = [known[place] for place in places.tolist()]
            features = nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x, _ in batch], batch_first=True)
            targets = torch.tensor([numbers[name] for _, phonemes in batch for name in phonemes])
            loss = nn.functional.ctc_loss(
                probe(features),
                targets,
                torch.tensor([2 * len(x) for x, _ in batch]),
                torch.tensor([len(phonemes) for _, phonemes in batch]),
                zero_infinity=True,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def decode(probe: PhonemeProbe, features: np.ndarray, names: Sequence[str]) -> list[str]:
    """Returns the phonemes of the best path, with repetitions merged and blanks dropped."""
    path = probe(torch.from_numpy(features)[None])[:, 0].argmax(dim=-1).unique_consecutive().tolist()
    return [names[label - 1] for label in path if label]
