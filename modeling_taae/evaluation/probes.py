"""What tokens carry: how well small models tell language, gender, speaker and phonemes from them.

Each probe runs on the digits of a model's tokens and, to compare, on log-mel spectra of the same frames. What a probe
does not find may be there all the same, for a larger one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from ..quantization_taae import ResidualFSQ
from .metrics import SAMPLING_RATE

MEL_BANDS, MEL_WINDOW = 80, 512
FOLDS, PENALTY = 5, 1e-2
# The phoneme probe: channels, passes over the data, learning rate, utterances at a time.
CHANNELS, EPOCHS, LEARNING_RATE, BATCH = 128, 20, 4e-3, 16


def digit_features(codes: np.ndarray, quantizer: ResidualFSQ) -> np.ndarray:
    """Digits of all stages and dimensions as zeros and ones: (tokens_per_frame, frames) -> (frames, features)."""
    columns = []
    for stage, tokens in zip(quantizer.stages, codes, strict=True):
        digits = stage.unpack(torch.from_numpy(tokens)[None])[0].numpy()
        columns += [np.eye(levels, dtype=np.float32)[row] for row, levels in zip(digits, stage.levels, strict=True)]
    return np.concatenate(columns, axis=1)


def mel_features(audio: np.ndarray, hop_length: int) -> np.ndarray:
    """Log-mel spectra, four to a token frame: (samples,) -> (frames, 4 * 80)."""
    hop = hop_length // 4
    frames = -(-len(audio) // hop_length)
    padded = np.pad(audio, (MEL_WINDOW // 2, frames * hop_length + MEL_WINDOW - len(audio)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, MEL_WINDOW)[::hop][: 4 * frames]
    filters = mel_filter_bank(MEL_WINDOW // 2 + 1, MEL_BANDS, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, "slaney", "slaney")
    magnitudes = np.abs(np.fft.rfft(windows * np.hanning(MEL_WINDOW)))
    return np.log(magnitudes @ filters + 1e-4).reshape(frames, -1).astype(np.float32)


def pooled(features: np.ndarray) -> np.ndarray:
    """Means and standard deviations over time: (frames, features) -> (2 * features,)."""
    return np.concatenate([features.mean(axis=0), features.std(axis=0)])


def classify(features: np.ndarray, labels: Sequence[str], groups: Sequence[str], seed: int = 0) -> dict:
    """Cross-validated accuracy of a linear classifier (logistic regression with a quadratic penalty).

    Args:
        features: (utterances, features).
        labels: what to tell of each utterance.
        groups: utterances of one group are all in one fold; their speakers, so that it is not the speaker who is told,
            or the utterances themselves.
        seed: of the folds.

    Returns:
        `accuracy`, and `chance`, the share of the most frequent label; `balanced_accuracy`, the mean over the labels,
        whose chance is one over `classes`; `utterances`.
    """
    names = sorted(set(labels))
    targets = np.array([names.index(label) for label in labels])
    members = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(members))
    fold_of = {members[place]: number % FOLDS for number, place in enumerate(order)}
    folds = np.array([fold_of[group] for group in groups])
    guesses = np.zeros_like(targets)
    for fold in sorted(set(folds.tolist())):
        held_out = folds == fold
        guesses[held_out] = linear_guesses(features[~held_out], targets[~held_out], features[held_out], len(names))
    recalls = [np.mean(guesses[targets == label] == label) for label in range(len(names))]
    return {
        "accuracy": float(np.mean(guesses == targets)),
        "chance": float(np.bincount(targets).max() / len(targets)),
        "balanced_accuracy": float(np.mean(recalls)),
        "classes": len(names),
        "utterances": len(targets),
    }


def linear_guesses(known: np.ndarray, targets: np.ndarray, unknown: np.ndarray, classes: int) -> np.ndarray:
    """Fits a logistic regression and applies it: (utterances, features) twice -> (utterances,) int64."""
    mean, deviation = known.mean(axis=0), known.std(axis=0) + 1e-4
    inputs, others = (torch.from_numpy((x - mean) / deviation).float() for x in (known, unknown))
    weights = torch.zeros(inputs.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    answers = torch.from_numpy(targets)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(inputs @ weights[:-1] + weights[-1], answers)
        value = value + PENALTY * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return (others @ weights[:-1] + weights[-1]).argmax(dim=1).numpy()


class PhonemeProbe(nn.Module):
    """Two convolutions over five frames, each with layer norm, and a linear layer, to be trained with CTC.

    Two outputs per frame, because there can be more phonemes than frames.

    Args:
        mean, deviation: of the features, (features,), which they are standardised by.
        phonemes: how many there are; label 0 is CTC's blank.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, phonemes: int):
        super().__init__()
        self.mean, self.deviation = mean, deviation
        self.convolutions = nn.ModuleList(nn.Conv1d(size, CHANNELS, 5, padding=2) for size in (len(mean), CHANNELS))
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in self.convolutions)
        self.output = nn.Linear(CHANNELS, 2 * (phonemes + 1))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, frames, features) -> (2 * frames, batch, phonemes + 1) log probabilities, as CTC wants them."""
        hidden = (features - self.mean) / self.deviation
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = nn.functional.gelu(norm(convolution(hidden.transpose(1, 2)).transpose(1, 2)))
        scores = self.output(hidden)
        return scores.reshape(scores.shape[0], 2 * scores.shape[1], -1).log_softmax(-1).transpose(0, 1)


Utterance = tuple[np.ndarray, list[str]]


def phoneme_error_rate(known: Sequence[Utterance], unknown: Sequence[Utterance], seed: int = 0) -> dict:
    """Trains a phoneme probe and tests it.

    Args:
        known, unknown: features, (frames, features), and phonemes of each utterance to train and to test on.
        seed: of weights and order.

    Returns:
        `phoneme_error_rate`: substitutions, deletions and insertions per phoneme; `chance`, that of guessing the most
        frequent phoneme as often as there are phonemes; `phonemes`, their number in the test; `utterances`.
    """
    from .model_metrics import word_errors

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
        spoken = " ".join(phonemes)
        count = word_errors(spoken, " ".join(decode(probe, features, names)))
        errors, length = errors + count.errors, length + count.length
        guessing += word_errors(spoken, " ".join([frequent] * len(phonemes))).errors
    rates = {"phoneme_error_rate": errors / length, "chance": guessing / length}
    return {**rates, "phonemes": length, "utterances": len(unknown)}


def train_probe(
    probe: PhonemeProbe, known: Sequence[Utterance], names: Sequence[str], generator: torch.Generator
) -> None:
    """Trains with CTC, in batches drawn at random."""
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
    """The best path: repetitions merged, blanks dropped."""
    path = probe(torch.from_numpy(features)[None])[:, 0].argmax(dim=-1).unique_consecutive().tolist()
    return [names[label - 1] for label in path if label]
