"""Speech as tokens of a language model: which ids there are, in which order they stand, and which can occur.

A clip becomes one *span* in a sequence of text: a begin marker, its frames, an end marker. Each stage of the bottleneck
has a range of ids of its own, so that an id tells its stage.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .quantization_taae import BOTTLENECK_PRESETS, NATIVE, FiniteScalarQuantizer, ResidualFSQ

# Steps by which each stage lags behind the stage before it; see `SpeechVocabulary`.
LAYOUTS = {"interleaved": 0, "delay": 1}

PREFIX = "<|taae_"
AUDIO_TOKEN, BEGIN_TOKEN, END_TOKEN = MARKERS = ("<|taae_audio|>", "<|taae_begin|>", "<|taae_end|>")


@dataclass(frozen=True)
class SpeechVocabulary:
    """The speech tokens of a bottleneck preset within a language model's vocabulary.

    The ids are consecutive: the audio placeholder of templates, the begin and the end marker, then the tokens of stage
    0, of stage 1, and so on. A frame has one token of each stage, and a span lists the tokens of its frames in steps.
    Step s holds stage k of frame s - k * lag, for each stage k in ascending order that has such a frame:

    - `"interleaved"`, lag 0: a step is a frame.
    - `"delay"`, lag 1: a step is the newest frame's stage 0, the frame before's stage 1, and so on. Finer stages are
      thus predicted from coarser ones that lie ahead of them in time. Three frames of two stages, written as stage
      and frame, are 00 | 01 10 | 02 11 | 12. What lies before the first and after the last frame is left out, not
      padded: a step that begins with stage 1 says that no frame follows. Both layouts are equally long.

    With one stage a frame, the two are the same.

    Args:
        bottleneck: a preset's name.
        layout: `"interleaved"` or `"delay"`.
        first_id: id of the first of these tokens.

    Raises:
        ValueError: if there is no such preset or layout, or it is the training grid, too large for a vocabulary.
    """

    bottleneck: str
    layout: str = "interleaved"
    first_id: int = 0

    def __post_init__(self):
        if self.bottleneck == NATIVE:
            raise ValueError(
                "The native grid has 24,137,569 tokens, and a language model would need a row of its embeddings for "
                "each. '2x15625_700bps' and '4x729_1000bps' carry exactly the same audio in small vocabularies."
            )
        if self.bottleneck not in BOTTLENECK_PRESETS:
            raise ValueError(
                f"There are speech tokens for the bottlenecks {', '.join(BOTTLENECK_PRESETS)}, not {self.bottleneck!r}."
            )
        if self.layout not in LAYOUTS:
            raise ValueError(f"There is no layout {self.layout!r}; choose one of {', '.join(LAYOUTS)}.")

    @cached_property
    def quantizer(self) -> ResidualFSQ:
        """The bottleneck itself."""
        return ResidualFSQ(tuple(FiniteScalarQuantizer(*stage) for stage in BOTTLENECK_PRESETS[self.bottleneck]))

    @cached_property
    def producible(self) -> "ProducibleCodes":
        """Which codes audio can have."""
        return ProducibleCodes(self.quantizer)

    @property
    def stages(self) -> int:
        """Tokens per frame."""
        return len(self.quantizer.stages)

    @property
    def lag(self) -> int:
        """Steps by which each stage lags behind the stage before it."""
        return LAYOUTS[self.layout]

    @property
    def audio_id(self) -> int:
        """Id of the placeholder that stands for a clip in a text."""
        return self.first_id

    @property
    def begin_id(self) -> int:
        """Id of the marker before a span's frames."""
        return self.first_id + 1

    @property
    def end_id(self) -> int:
        """Id of the marker after a span's frames."""
        return self.first_id + 2

    @property
    def ranges(self) -> list[range]:
        """Ids of each stage."""
        sizes = self.quantizer.codebook_sizes
        starts = [self.first_id + len(MARKERS) + sum(sizes[:k]) for k in range(len(sizes))]
        return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]

    @property
    def tokens(self) -> list[str]:
        """The tokens as text, in the order of their ids: the markers, then `"<|taae_{stage}_{code}|>"`."""
        sizes = self.quantizer.codebook_sizes
        return [*MARKERS, *(f"{PREFIX}{k}_{code}|>" for k, size in enumerate(sizes) for code in range(size))]

    def stages_of(self, ids: Tensor) -> Tensor:
        """Stage of each id, -1 for those that are not a stage's: int64 of any shape -> the same shape."""
        ranges = self.ranges
        bounds = torch.tensor([ranges[0].start, *(ids_of_stage.stop for ids_of_stage in ranges)], device=ids.device)
        stages = torch.bucketize(ids.contiguous(), bounds, right=True) - 1
        return stages.masked_fill(stages == len(ranges), -1)

    def codes_of(self, ids: Tensor, stages: Tensor) -> Tensor:
        """Number of each id within its stage: ids and their stages, int64 of any shape -> the same shape."""
        starts = torch.tensor([ids_of_stage.start for ids_of_stage in self.ranges], device=ids.device)
        return ids - starts[stages]

    def order(self, frames: int) -> tuple[Tensor, Tensor]:
        """Stage and frame of each token of a span of so many frames, both (frames * stages,) int64."""
        stages = torch.arange(self.stages).repeat(frames)
        positions = torch.arange(frames).repeat_interleave(self.stages)
        order = torch.argsort((positions + self.lag * stages) * self.stages + stages)
        return stages[order], positions[order]

    def span(self, audio_codes: Tensor) -> Tensor:
        """The ids of a clip, markers included.

        Args:
            audio_codes: (stages, frames) integers, at least one frame: what [`TaaeModel.encode`] returns of an item.

        Returns:
            (stages * frames + 2,) int64.

        Raises:
            ValueError: if the codes have another shape or dtype, or one is out of its stage's range.
        """
        codes = self._checked(torch.as_tensor(audio_codes).cpu())
        stages, frames = self.order(codes.shape[1])
        starts = torch.tensor([ids_of_stage.start for ids_of_stage in self.ranges])
        ids = starts[stages] + codes[stages, frames]
        return torch.cat([torch.tensor([self.begin_id]), ids, torch.tensor([self.end_id])])

    def _checked(self, codes: Tensor) -> Tensor:
        if codes.dtype.is_floating_point or codes.dtype.is_complex or codes.dtype == torch.bool:
            raise ValueError(f"audio_codes must be integers, not {codes.dtype}.")
        if codes.ndim != 2 or codes.shape[0] != self.stages or codes.shape[1] == 0:
            raise ValueError(
                f"The audio_codes of one clip with {self.bottleneck} are ({self.stages}, frames) with at least one "
                f"frame, not {tuple(codes.shape)}. Transpose what is (frames, {self.stages})."
            )
        codes = codes.to(torch.int64)
        for stage, size in enumerate(self.quantizer.codebook_sizes):
            wrong = (codes[stage] < 0) | (codes[stage] >= size)
            if wrong.any():
                raise ValueError(
                    f"Code {codes[stage][wrong][0].item()} of stage {stage} is out of range: with {self.bottleneck} "
                    f"it has codes 0 to {size - 1}. Was the clip encoded with another bottleneck?"
                )
        return codes


class ProducibleCodes:
    """The codes that audio can have: not every combination of digits over the stages occurs.

    A stage quantises what the stages before it left, which near the grid's ends is less than its own grid is wide.
    What is left out is a matter of each dimension by itself: of the digits that the stages have there, audio gives 21
    of 25 combinations with `"2x15625_700bps"`, 31 of 81 with `"4x729_1000bps"` and all with `"1x46656_400bps"`.

    Args:
        quantizer: the bottleneck, with the same levels in each dimension.
    """

    def __init__(self, quantizer: ResidualFSQ):
        self.quantizer = quantizer
        self.levels = [stage.levels[0] for stage in quantizer.stages]
        self.dimensions = len(quantizer.stages[0].levels)
        combinations = torch.arange(math.prod(self.levels))
        self.all_digits = torch.stack([combinations // self._weight(k) % n for k, n in enumerate(self.levels)], dim=1)
        self.is_producible = torch.zeros(len(combinations), dtype=torch.bool)
        self.is_producible[self._combination(self._digits_of_audio())] = True
        self.next_digits = [self._next_digits(stage) for stage in range(len(self.levels))]

    def _weight(self, stage: int) -> int:
        return math.prod(self.levels[:stage])

    def _combination(self, digits: Tensor) -> Tensor:
        """One number for the digits of the first stages, stage 0 least significant: (…, stages) -> (…)."""
        return sum(digits[..., k] * self._weight(k) for k in range(digits.shape[-1]))

    def _digits_of_audio(self) -> Tensor:
        """Digits of one dimension, (values, stages) int64, for values all over the range of a latent."""
        # Odd multiples of 2^-10 lie on both sides of every rounding tie of the presets, and on none of them.
        values = torch.arange(-1023, 1024, 2, dtype=torch.float64) / 1024
        tokens = self.quantizer.encode(torch.atanh(values).expand(1, self.dimensions, -1))
        return self._digits(tokens[0])[0]

    def _digits(self, codes: Tensor) -> Tensor:
        """(stages, frames) int64 -> (dimensions, frames, stages) int64."""
        digits = [stage.unpack(codes[k][None])[0] for k, stage in enumerate(self.quantizer.stages)]
        return torch.stack(digits, dim=-1)

    def _next_digits(self, stage: int) -> Tensor:
        """Returns which digits may follow those of the stages before: (combinations of these, levels) bool."""
        digits = self.all_digits[self.is_producible]
        table = torch.zeros(self._weight(stage), self.levels[stage], dtype=torch.bool)
        table[self._combination(digits[:, :stage]), digits[:, stage]] = True
        # After digits that audio never has, as a prompt may hold them, nothing can be asked.
        table[~table.any(dim=1)] = True
        return table

    def mask(self, earlier_codes: Tensor) -> Tensor:
        """Returns which codes of the next stage can follow those of the earlier stages of the same frame.

        Args:
            earlier_codes: (batch, stages before it) int64.

        Returns:
            (batch, codes of the next stage) bool.
        """
        batch, stage = earlier_codes.shape
        before = torch.zeros(batch, self.dimensions, dtype=torch.int64, device=earlier_codes.device)
        for k in range(stage):
            digits = self.quantizer.stages[k].unpack(earlier_codes[:, k, None])[:, :, 0]
            before += digits * self._weight(k)
        allowed = self.next_digits[stage].to(earlier_codes.device)[before]
        # Dimension 0 is a code's least significant digit, so it comes last and varies fastest.
        mask = allowed[:, -1]
        for dimension in reversed(range(self.dimensions - 1)):
            mask = (mask[:, :, None] & allowed[:, dimension, None, :]).flatten(1)
        return mask

    def contains(self, codes: Tensor) -> Tensor:
        """Returns which frames have valid codes: (stages, frames) int64 -> (frames,) bool."""
        return self.is_producible[self._combination(self._digits(codes))].all(dim=0)

    def nearest(self, codes: Tensor) -> Tensor:
        """Codes that audio can have, with the values nearest to these codes': (stages, frames) int64 -> the same.

        Values within the grid stay what they are, so such a frame sounds the same; values beyond it are clamped.
        """
        values = self._values()
        distances = (values[:, None] - values[None, self.is_producible]).abs()
        nearest = self.is_producible.nonzero()[:, 0][distances.argmin(dim=1)]
        nearest = torch.where(self.is_producible, torch.arange(len(nearest)), nearest)
        digits = self.all_digits[nearest[self._combination(self._digits(codes))]]
        packed = [stage.pack(digits[None, ..., k])[0] for k, stage in enumerate(self.quantizer.stages)]
        return torch.stack(packed)

    def _values(self) -> Tensor:
        """Value of each combination of digits, (combinations,) float32."""
        stages = enumerate(self.quantizer.stages)
        return sum(stage.dequantize(self.all_digits[:, k].expand(1, 1, -1))[0, 0] for k, stage in stages)


__all__ = ["LAYOUTS", "ProducibleCodes", "SpeechVocabulary"]
