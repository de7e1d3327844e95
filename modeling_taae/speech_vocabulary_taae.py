"""Speech tokens of a language model: their ids, their order and which of them are valid.

A clip becomes one *span* in a sequence of text: a begin marker, its frames, an end marker. Each stage of the bottleneck
has its own range of ids, so that an id determines its stage.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .quantization_taae import BOTTLENECK_PRESETS, NATIVE, FiniteScalarQuantizer, ResidualFSQ

# Steps by which each stage is delayed against the stage before it; see `SpeechVocabulary`.
LAYOUTS = {"interleaved": 0, "delay": 1}

PREFIX = "<|taae_"
AUDIO_TOKEN, BEGIN_TOKEN, END_TOKEN = MARKERS = ("<|taae_audio|>", "<|taae_begin|>", "<|taae_end|>")


@dataclass(frozen=True)
class SpeechVocabulary:
    """The speech tokens of a bottleneck preset within a language model's vocabulary.

    The ids are consecutive: the audio placeholder of templates, the begin marker, the end marker, then the tokens of
    stage 0, of stage 1, and so on. A frame has one token of each stage. A span lists its tokens in steps: step s holds
    stage k of frame s - k * delay, for each stage k in ascending order for which that frame exists.

    - `"interleaved"`, delay 0: a step is a frame.
    - `"delay"`, delay 1: a step is stage 0 of the newest frame, stage 1 of the frame before it, and so on. Finer stages
      are thus predicted from coarser ones of later frames. Three frames of two stages, written as stage and frame, are
      00 | 01 10 | 02 11 | 12. Steps are not padded at the beginning and the end, so a step that begins with stage 1
      shows that no frame follows. Both layouts are equally long.

    With one stage per frame, both layouts are the same.

    Args:
        bottleneck: a preset's name.
        layout: `"interleaved"` or `"delay"`.
        first_id: id of the first speech token.

    Raises:
        ValueError: if the preset or the layout is unknown, or the preset is the training grid, which is too large for a
            vocabulary.
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
    def valid_codes(self) -> "ValidCodes":
        """The codes that audio can have."""
        return ValidCodes(self.quantizer)

    @property
    def stages(self) -> int:
        """Tokens per frame."""
        return len(self.quantizer.stages)

    @property
    def delay(self) -> int:
        """Steps by which each stage is delayed against the stage before it."""
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
        """Returns the stage of each id, -1 for other ids: int64 of any shape -> the same shape."""
        ranges = self.ranges
        bounds = torch.tensor([ranges[0].start, *(ids_of_stage.stop for ids_of_stage in ranges)], device=ids.device)
        stages = torch.bucketize(ids.contiguous(), bounds, right=True) - 1
        return stages.masked_fill(stages == len(ranges), -1)

    def codes_of(self, ids: Tensor, stages: Tensor) -> Tensor:
        """Returns the code of each id, given the ids' stages: int64 of any shape -> the same shape."""
        starts = torch.tensor([ids_of_stage.start for ids_of_stage in self.ranges], device=ids.device)
        return ids - starts[stages]

    def order(self, frames: int) -> tuple[Tensor, Tensor]:
        """Returns the stage and the frame of each token of a span of `frames`, both (frames * stages,) int64."""
        stages = torch.arange(self.stages).repeat(frames)
        positions = torch.arange(frames).repeat_interleave(self.stages)
        order = torch.argsort((positions + self.delay * stages) * self.stages + stages)
        return stages[order], positions[order]

    def span(self, audio_codes: Tensor) -> Tensor:
        """Returns the ids of a clip, markers included.

        Args:
            audio_codes: (stages, frames) integers, at least one frame: one item of [`TaaeModel.encode`]'s codes.

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


class ValidCodes:
    """The codes that audio can have: not every combination of the stages' digits occurs.

    A stage quantises the residual of the stages before it. Near the ends of the grid the residual covers only part of
    the stage's own grid. Each dimension is independent: its stages' digits have 21 of 25 possible combinations with
    `"2x15625_700bps"`, 31 of 81 with `"4x729_1000bps"` and all with `"1x46656_400bps"`.

    Args:
        quantizer: the bottleneck, with the same levels in each dimension.
    """

    def __init__(self, quantizer: ResidualFSQ):
        self.quantizer = quantizer
        self.levels = [stage.levels[0] for stage in quantizer.stages]
        self.dimensions = len(quantizer.stages[0].levels)
        combinations = torch.arange(math.prod(self.levels))
        self.all_digits = torch.stack([combinations // self._weight(k) % n for k, n in enumerate(self.levels)], dim=1)
        self.is_valid = torch.zeros(len(combinations), dtype=torch.bool)
        self.is_valid[self._combination(self._digits_of_audio())] = True
        self.next_digits = [self._next_digits(stage) for stage in range(len(self.levels))]

    def _weight(self, stage: int) -> int:
        return math.prod(self.levels[:stage])

    def _combination(self, digits: Tensor) -> Tensor:
        """Packs the digits of the first stages into one number, stage 0 least significant: (…, stages) -> (…)."""
        return sum(digits[..., k] * self._weight(k) for k in range(digits.shape[-1]))

    def _digits_of_audio(self) -> Tensor:
        """Returns the digits of one dimension, (values, stages) int64, for values over the whole range of a latent."""
        # Odd multiples of 2^-10 lie on both sides of each rounding tie of the presets, and never on one.
        values = torch.arange(-1023, 1024, 2, dtype=torch.float64) / 1024
        tokens = self.quantizer.encode(torch.atanh(values).expand(1, self.dimensions, -1))
        return self._digits(tokens[0])[0]

    def _digits(self, codes: Tensor) -> Tensor:
        """Unpacks codes into digits: (stages, frames) int64 -> (dimensions, frames, stages) int64."""
        digits = [stage.unpack(codes[k][None])[0] for k, stage in enumerate(self.quantizer.stages)]
        return torch.stack(digits, dim=-1)

    def _next_digits(self, stage: int) -> Tensor:
        """Returns which digits may follow those of the earlier stages: (combinations of these, levels) bool."""
        digits = self.all_digits[self.is_valid]
        table = torch.zeros(self._weight(stage), self.levels[stage], dtype=torch.bool)
        table[self._combination(digits[:, :stage]), digits[:, stage]] = True
        # After digits that audio cannot have, which a prompt may hold, every digit is allowed.
        table[~table.any(dim=1)] = True
        return table

    def mask(self, earlier_codes: Tensor) -> Tensor:
        """Returns which codes of the next stage can follow those of the earlier stages of the same frame.

        Args:
            earlier_codes: (batch, earlier stages) int64.

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
        return self.is_valid[self._combination(self._digits(codes))].all(dim=0)

    def nearest(self, codes: Tensor) -> Tensor:
        """Returns the valid codes whose values are nearest to those of `codes`: (stages, frames) int64 -> the same.

        Values within the grid do not change, so such a frame sounds the same; values beyond it are clamped.
        """
        values = self._values()
        distances = (values[:, None] - values[None, self.is_valid]).abs()
        nearest = self.is_valid.nonzero()[:, 0][distances.argmin(dim=1)]
        nearest = torch.where(self.is_valid, torch.arange(len(nearest)), nearest)
        digits = self.all_digits[nearest[self._combination(self._digits(codes))]]
        packed = [stage.pack(digits[None, ..., k])[0] for k, stage in enumerate(self.quantizer.stages)]
        return torch.stack(packed)

    def _values(self) -> Tensor:
        """Returns the value of each combination of digits, (combinations,) float32."""
        stages = enumerate(self.quantizer.stages)
        return sum(stage.dequantize(self.all_digits[:, k].expand(1, 1, -1))[0, 0] for k, stage in stages)


__all__ = ["LAYOUTS", "ValidCodes", "SpeechVocabulary"]
