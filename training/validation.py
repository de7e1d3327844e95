"""Validation during a run: quality, use of the codebook, and overfitting, with sound and spectrograms."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from modeling_taae.audio.spectrum import FULL_SCALE_DB, RANGE_DB, spectrum
from modeling_taae.entropy.statistics import token_statistics
from modeling_taae.evaluation.judges import Judge, JudgedClip, choose_judges
from modeling_taae.evaluation.metrics import score
from modeling_taae.evaluation.results import Score
from modeling_taae.evaluation.tables import mean_with_interval
from training.data import CorpusError, validation_clips, validation_utterances
from training.recipe import Recipe

Loss = Callable[[Tensor, Tensor], dict[str, Tensor]]  # a function of decoded audio and its reference


class Validator:
    """Scores a model on a few utterances that it is never trained on, and on as many training utterances.

    Args:
        recipe: the recipe, with the corpora, the number of utterances and the bottleneck.
        extractor: the feature extractor whose rate and loudness to decode to.
        device: the judges' device, as torch spells it.

    Raises:
        CorpusError: if a corpus cannot be read, or none of its first utterances can be decoded.
    """

    def __init__(self, recipe: Recipe, extractor: TaaeFeatureExtractor, device: str = "cpu"):
        self.settings, self.samples_dir = recipe.validation, Path(recipe.output_dir) / "samples"
        self.sampling_rate = extractor.sampling_rate
        if self.settings.corpus is None:
            raise CorpusError("The recipe names no validation.corpus.")
        count, corpora = self.settings.utterances, recipe.data.corpora
        share, streaming = -(-count // max(len(corpora), 1)), recipe.data.streaming
        self.utterances = list(validation_utterances(self.settings.corpus, extractor, count, streaming))
        if not self.utterances:
            raise CorpusError(f"No utterance of {self.settings.corpus.source!r} can be decoded and scored.")
        seen = (validation_clips(corpus, extractor, share, streaming) for corpus in corpora)
        self.seen_clips = list(chain(*seen))[:count]
        self.judges = load_judges(device) if self.settings.judges else []

    @torch.no_grad()
    def run(self, model: TaaeModel, loss: Loss, accelerator: Accelerator, step: int) -> dict[str, float]:
        """Returns means over the utterances by name; writes sounds and pictures of the first few to disk and trackers.

        Args:
            model: the model, in evaluation mode.
            loss: a function that returns the terms, and their sum as `"loss"`.
            accelerator: the run's accelerator, for its trackers.
            step: the run's step, for the trackers.
        """
        scores, codes, judged = [], [], []
        for index, utterance in enumerate(tqdm(self.utterances, desc="Validation", leave=False)):
            clip = utterance.audio
            terms, decoded, tokens = self._reconstruct(model, loss, clip)
            scores.append(score(clip, decoded) | terms)
            codes.append(tokens)
            judged.append(JudgedClip(clip, decoded, utterance.facts))
            if index < self.settings.samples:
                self._show(index, clip, decoded, accelerator, step)
        means = {name: float(np.nanmean([row[name] for row in scores])) for name in scores[0]}
        means |= judged_means(self.judges, judged)
        seen = float(np.mean([self._reconstruct(model, loss, clip)[0]["loss"] for clip in self.seen_clips]))
        means |= {"loss_on_training_speech": seen, "gap": means["loss"] - seen}
        return means | codebook_use(model, codes, self.settings.bottleneck)

    def _reconstruct(self, model: TaaeModel, loss: Loss, clip: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
        """Returns the terms of the loss, the decoded clip (samples,) and its tokens (tokens_per_frame, frames)."""
        audio = torch.from_numpy(clip)[None, None].to(model.device)
        output = model(audio, bottleneck=self.settings.bottleneck)
        decoded = output.audio_values.float()
        terms = {name: value.item() for name, value in loss(decoded, audio).items()}
        return terms, decoded[0, 0].cpu().numpy(), output.audio_codes[0].cpu().numpy()

    def _show(self, index: int, clip: np.ndarray, decoded: np.ndarray, accelerator: Accelerator, step: int) -> None:
        folder = self.samples_dir / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{index}-original.wav", clip, self.sampling_rate)
        soundfile.write(folder / f"{index}-decoded.wav", decoded.clip(-1, 1), self.sampling_rate)
        picture = np.concatenate([spectrogram(clip), spectrogram(decoded)])
        for tracker in accelerator.trackers:
            # Only TensorBoard needs the order of the axes.
            axes = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images({f"validation/{index}": picture[None, :, :, None]}, step=step, **axes)
            if tracker.name == "tensorboard":
                for name, sound in (("original", clip), ("decoded", decoded)):
                    tracker.writer.add_audio(f"validation/{index}-{name}", sound, step, self.sampling_rate)


def load_judges(device: str) -> list[Judge]:
    """Loads the judges that are installed, and says in a line which are not; the run draws what it would without."""
    with torch.random.fork_rng(devices=()):
        _, judges, left_out = choose_judges(None, device=device)
    for line in left_out:
        tqdm.write(f"validation.judges: {line}")
    return judges


def judged_means(judges: Sequence[Judge], clips: Sequence[JudgedClip]) -> dict[str, float]:
    """Returns the judges' means over clips; errors and words are each added up before they are divided."""
    scores: defaultdict[str, list[Score]] = defaultdict(list)
    for judge in judges:
        for found in judge.judge(clips):
            for name, value in found.items():
                scores[name].append(value)
    means = {name: mean_with_interval(values).mean for name, values in scores.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def codebook_use(model: TaaeModel, codes: list[np.ndarray], bottleneck: str) -> dict[str, float]:
    """Returns statistics of the tokens of some clips, each (tokens_per_frame, frames).

    Returns:
        `tokens_used` (distinct tokens, all stages), `digit_entropy` (mean share of its maximum) and the same per stage
        and dimension as `digit_entropy_STAGE_DIMENSION`, `entropy_bit_rate` in bit/s.
    """
    statistics = token_statistics(codes, model.bottleneck(bottleneck), model.config.frame_rate)
    entropies = {
        f"digit_entropy_{stage}_{dimension}": entropy
        for stage, entry in enumerate(statistics["stages"])
        for dimension, entropy in enumerate(entry["digit_entropy"])
    }
    return {
        "tokens_used": float(sum(entry["used"] for entry in statistics["stages"])),
        "entropy_bit_rate": statistics["entropy_bit_rate"],
        "digit_entropy": float(np.mean(list(entropies.values()))),
        **entropies,
    }


def spectrogram(clip: np.ndarray) -> np.ndarray:
    """Draws (samples,) as grey levels (frequencies, frames) uint8, black at 80 dB below a full-scale sine."""
    levels = (spectrum(clip) - FULL_SCALE_DB) / RANGE_DB + 1
    return (255 * levels.clip(0, 1)).astype(np.uint8)[::-1]
