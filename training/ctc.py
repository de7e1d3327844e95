"""The CTC head: reads text off the latents, before the bottleneck, which makes tokens more phonetic.

A stage of TAAE after its paper, for speech language models. Any language: the symbols are those of the transcripts.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import cached_file

WEIGHTS_NAME, CONFIG_NAME = "ctc_head.safetensors", "ctc_head.json"
BLANK = 0


def split_units(text: str, units: str, ignored: Collection[str] = ()) -> list[str]:
    """The symbols of a text: its characters in lower case, or what stands between spaces, such as phonemes."""
    found = text.strip().lower() if units == "characters" else text.split()
    return [unit for unit in found if unit not in ignored]


class CTCHead(nn.Module):
    """Hyperbolic tangent, then a perceptron with one hidden layer, at each frame.

    Args:
        symbols: of the transcripts.
        units: how texts are split into symbols, see `split_units`.
        latent_dim: dimensions of the latents.
        hidden_size: width of the hidden layer.
    """

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
        """Numbers of a text's symbols; those to be ignored, and those that the head does not know, are left out."""
        return [self.index[unit] for unit in split_units(text, self.units, ignored) if unit in self.index]

    def loss(self, latents: Tensor, frames: Tensor, texts: Sequence[str], ignored: Collection[str] = ()) -> Tensor:
        """Connectionist temporal classification loss per symbol, a scalar.

        Args:
            latents: (batch, latent_dim, frames).
            frames: (batch,) real frames of each item. An item with fewer frames than symbols counts as zero.
            texts: of each item.
            ignored: symbols that are no part of them.
        """
        targets = [torch.tensor(self.encode(text, ignored), device=latents.device) for text in texts]
        lengths = torch.tensor([len(target) for target in targets], device=latents.device)
        return F.ctc_loss(
            self(latents).transpose(0, 1), torch.cat(targets), frames, lengths, blank=BLANK, zero_infinity=True
        )

    @torch.no_grad()
    def read(self, latents: Tensor) -> list[str]:
        """The likeliest symbols, repetitions merged and blanks left out, of one item (1, latent_dim, frames)."""
        best = self(latents)[0].argmax(-1).unique_consecutive()
        return [self.symbols[number - 1] for number in best.tolist() if number != BLANK]

    def save_pretrained(self, folder: Path) -> None:
        """Writes `ctc_head.safetensors` and `ctc_head.json` beside a published model."""
        save_file(self.state_dict(), folder / WEIGHTS_NAME)
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def from_pretrained(cls, folder_or_name: str | Path) -> "CTCHead | None":
        """The head that was published beside a model, in a folder or on the Hub; None if there is none."""
        config, weights = (
            cached_file(str(folder_or_name), name, _raise_exceptions_for_missing_entries=False)
            for name in (CONFIG_NAME, WEIGHTS_NAME)
        )
        if config is None or weights is None:
            return None
        head = cls(**json.loads(Path(config).read_text()))
        head.load_state_dict(load_file(weights))
        return head


def error_rate(pairs: Iterable[tuple[Sequence, Sequence]]) -> float:
    """Insertions, deletions and substitutions from references to hypotheses, per symbol of all references."""
    distances = symbols = 0
    for reference, hypothesis in pairs:
        distances += edit_distance(reference, hypothesis)
        symbols += len(reference)
    return distances / max(symbols, 1)


def edit_distance(reference: Sequence, hypothesis: Sequence) -> int:
    """Levenshtein distance of two sequences."""
    row = list(range(len(hypothesis) + 1))
    for i, symbol in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != other))
    return row[-1]
