"""The grammar of speech within text, for generating and for parsing.

A sequence consists of text and spans of speech. A span is the begin marker, one or more tokens in the order of the
layout (see [`SpeechVocabulary`]), and the end marker.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

from .speech_vocabulary_taae import SpeechVocabulary


class SpeechGrammar(LogitsProcessor):
    """Restricts a language model to sequences that can be parsed, with codes that audio can have.

    Within a span it allows tokens of the next stage, and the end marker once all frames are complete. Outside of spans
    it allows everything but speech tokens. It never allows embedding rows without a token. It keeps no state, so it
    works with batches, left padding and beam search. A prompt may end within a span if that span follows the grammar,
    which [`TaaeProcessor.parse`] checks.

    Args:
        vocabulary: the speech tokens.
        num_tokens: number of tokens of the tokenizer, the speech tokens included.
    """

    def __init__(self, vocabulary: SpeechVocabulary, num_tokens: int):
        self.vocabulary = vocabulary
        self.num_tokens = num_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Sets the scores (batch, vocabulary) of tokens that may not follow ids (batch, length) to minus infinity.

        Raises:
            ValueError: if the model has too few embedding rows for the tokens.
        """
        vocabulary = self.vocabulary
        if scores.shape[1] < self.num_tokens:
            raise ValueError(
                f"The model scores {scores.shape[1]} tokens, but the tokenizer has {self.num_tokens}: let "
                "TaaeProcessor.resize_token_embeddings make room for the speech tokens first."
            )
        positions = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        # One more column, because generation from embeddings starts without any ids.
        begun = F.pad((input_ids == vocabulary.begin_id) * positions, (1, 0)).amax(dim=1)
        ended = F.pad((input_ids == vocabulary.end_id) * positions, (1, 0)).amax(dim=1)
        inside = begun > ended
        stages = vocabulary.stages_of(input_ids).masked_fill(positions <= begun[:, None], -1)
        counts = torch.stack([(stages == k).sum(dim=1) for k in range(vocabulary.stages)], dim=1)
        may_continue, may_end = self._next(counts)

        ids = torch.arange(scores.shape[1], device=scores.device)
        ranges = vocabulary.ranges
        text = (ids < vocabulary.first_id) | ((ids >= ranges[-1].stop) & (ids < self.num_tokens))
        allowed = (text | (ids == vocabulary.begin_id)) & ~inside[:, None]
        allowed[:, vocabulary.end_id] = inside & may_end
        for stage, ids_of_stage in enumerate(ranges):
            earlier = self._earlier_codes(input_ids, stages, counts, stage)
            in_turn = inside & may_continue[:, stage]
            mask = vocabulary.valid_codes.mask(earlier) & in_turn[:, None]
            allowed[:, ids_of_stage.start : ids_of_stage.stop] = mask
        scores = scores.masked_fill(~allowed, -torch.inf)
        # If other processors have masked everything that the grammar allows, as `min_new_tokens` masks the end of
        # speech, what the grammar allows is restored.
        return torch.where((scores == -torch.inf).all(dim=1, keepdim=True) & allowed, 0.0, scores)

    def _next(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which tokens may follow in a span, given its number of tokens of each stage, (batch, stages) int64.

        Returns:
            The stages that may follow, (batch, stages) bool, and whether the end may follow, (batch,) bool.
        """
        delay, num_stages = self.vocabulary.delay, self.vocabulary.stages
        stages = torch.arange(num_stages, device=counts.device)
        begun = counts[:, :1]
        # Position of each stage's next token; a stage with fewer tokens than stage 0 has a frame to complete.
        place = (counts + delay * stages) * num_stages + stages
        waiting = counts < begun
        first = place.masked_fill(~waiting, torch.iinfo(place.dtype).max).argmin(dim=1)
        to_complete = waiting & (stages == first[:, None])
        # A new frame may begin if its token comes next, unless an earlier token has shown that no more frames follow.
        last_frame = ((counts > 0) & (counts + delay * stages > begun)).any(dim=1)
        new_frame = ~(waiting & (place < place[:, :1])).any(dim=1) & ~last_frame
        may_continue = to_complete | (new_frame[:, None] & (stages == 0))
        return may_continue, ~waiting.any(dim=1) & (begun[:, 0] > 0)

    def _earlier_codes(self, input_ids: Tensor, stages: Tensor, counts: Tensor, stage: int) -> Tensor:
        """Returns the earlier stages' codes of a stage's next frame, (batch, stage) int64; 0 if there are none yet."""
        codes = self.vocabulary.codes_of(input_ids, stages.clamp(min=0))
        earlier = [torch.zeros_like(counts[:, :0])]
        for k in range(stage):
            of_stage = stages == k
            wanted = of_stage & (of_stage.cumsum(dim=1) == counts[:, stage, None] + 1)
            earlier.append((codes * wanted).sum(dim=1, keepdim=True))
        return torch.cat(earlier, dim=1)


class SpeechReader:
    """Cuts one sequence of ids into text and speech.

    Args:
        vocabulary: the speech tokens.
        ids: (length,) int64. Repeated end markers at the end are padding: `generate` pads with the end-of-sequence
            token if there is no padding token.
        errors: `"strict"` to raise an error at malformed input, `"repair"` to repair it: a missing marker is added and
            a surplus one left out; text before a span's end marker, frames that lack a stage and tokens out of turn are
            left out; codes that audio cannot have become the nearest valid ones.

    Raises:
        ValueError: if `errors` is neither.
    """

    def __init__(self, vocabulary: SpeechVocabulary, ids: Tensor, errors: str = "strict"):
        if errors not in ("strict", "repair"):
            raise ValueError(f'errors is "strict" or "repair", not {errors!r}.')
        self.vocabulary = vocabulary
        self.ids = ids[: len(ids) - self._padding(ids)]
        self.errors = errors
        self.repairs: list[str] = []
        self.segments: list[tuple[str, Tensor]] = []
        # Positions of the open span's tokens; None between spans.
        self.span: list[range] | None = None

    def _padding(self, ids: Tensor) -> int:
        others = (ids != self.vocabulary.end_id).nonzero()[:, 0]
        end_markers = len(ids) - 1 - int(others[-1]) if len(others) else 0
        return max(end_markers - 1, 0)

    def read(self) -> list[tuple[str, Tensor]]:
        """Returns the segments in order: ("text", ids) or ("speech", codes (tokens_per_frame, frames)).

        Raises:
            ValueError: if errors are strict and the sequence is malformed; gives the position.
        """
        for kind, run, has_end in self._runs():
            if kind == "begin":
                self._begin(run.start)
            elif kind == "end":
                self._end(run.start)
            elif kind == "speech":
                self._speech(run)
            elif self.span is not None and has_end:
                self._report(run.start, "text within speech", f"{len(run)} tokens of it were left out")
            else:
                self._text(run)
        if self.span is not None:
            self._report(len(self.ids), "the sequence stops within speech", "the speech was ended there")
            self._close(len(self.ids))
        return self.segments

    def _runs(self) -> list[tuple[str, range, bool]]:
        """Returns runs of one kind as (kind, positions, whether the next marker is an end); a marker is its own run."""
        kinds = (self.vocabulary.stages_of(self.ids) >= 0).long()
        kinds = kinds.masked_fill(self.ids == self.vocabulary.begin_id, 2)
        kinds = kinds.masked_fill(self.ids == self.vocabulary.end_id, 3)
        starts = [0] + (((kinds[1:] != kinds[:-1]) | (kinds[1:] >= 2)).nonzero()[:, 0] + 1).tolist()
        runs, has_end, stop = [], False, len(kinds)
        for start in reversed(starts if stop else []):
            kind = ("text", "speech", "begin", "end")[int(kinds[start])]
            runs.append((kind, range(start, stop), has_end))
            has_end = kind == "end" or (has_end and kind != "begin")
            stop = start
        return runs[::-1]

    def _begin(self, position: int) -> None:
        if self.span is not None:
            self._report(position, "speech begins within speech", "what came before was ended")
            self._close(position)
        self.span = []

    def _end(self, position: int) -> None:
        if self.span is None:
            self._report(position, "speech ends that has not begun", "the marker was left out")
        else:
            self._close(position)

    def _speech(self, run: range) -> None:
        if self.span is None:
            problem = "speech tokens outside of speech; was the prompt, with its begin marker, left out?"
            self._report(run.start, problem, "a begin was added before them")
            self.span = []
        self.span.append(run)

    def _text(self, run: range) -> None:
        if self.span is not None:
            self._report(run.start, "text within speech, which has no end", "the speech was ended before it")
            self._close(run.start)
        ids = self.ids[run.start : run.stop]
        if self.segments and self.segments[-1][0] == "text":
            ids = torch.cat([self.segments.pop()[1], ids])
        self.segments.append(("text", ids))

    def _close(self, stop: int) -> None:
        """Closes the open span, which stops at this position, and adds its codes to the segments."""
        runs, self.span = self.span, None
        if not runs:
            self._report(stop, "speech without a frame", "it was left out")
            return
        codes = self._frames(torch.cat([torch.arange(run.start, run.stop) for run in runs]), stop)
        possible = self.vocabulary.valid_codes.contains(codes)
        if not possible.all():
            wrong = (~possible).nonzero()[:, 0]
            problem = f"of the speech before it, {len(wrong)} frames have codes that no audio has, first {wrong[0]}"
            self._report(stop, problem, "they got the nearest codes that audio has")
            codes = self.vocabulary.valid_codes.nearest(codes)
        if codes.shape[1]:
            self.segments.append(("speech", codes))

    def _frames(self, positions: Tensor, stop: int) -> Tensor:
        """Returns the codes of one span's tokens, which are at these positions: (tokens_per_frame, frames)."""
        ids = self.ids[positions]
        stages = self.vocabulary.stages_of(ids)
        codes = self.vocabulary.codes_of(ids, stages)
        expected, frames = self.vocabulary.order(int((stages == 0).sum()))
        common = min(len(stages), len(expected))
        wrong = [*(stages[:common] != expected[:common]).nonzero()[:, 0].tolist(), common][0]
        if wrong == len(stages) == len(expected):
            table = torch.empty(self.vocabulary.stages, len(codes) // self.vocabulary.stages, dtype=torch.int64)
            table[stages, frames] = codes
            return table
        table = self._whole_frames(stages, codes)
        kept = f"the {table.shape[1]} whole frames of this speech were kept"
        due = f"stage {expected[wrong]}" if wrong < len(expected) else "another frame or the end"
        if wrong < len(stages):
            self._report(int(positions[wrong]), f"a token of stage {stages[wrong]} where {due} is due", kept)
        else:
            self._report(stop, f"the speech before it ends in a cut frame, where {due} is due", kept)
        return table

    def _whole_frames(self, stages: Tensor, codes: Tensor) -> Tensor:
        """Returns the codes of the frames that have all their stages, (tokens_per_frame, frames).

        A step begins wherever the stage does not rise, so a missing or surplus token in one step does not shift others.
        """
        steps = torch.zeros_like(stages)
        steps[1:] = (stages[1:] <= stages[:-1]).cumsum(dim=0)
        frames = steps - self.vocabulary.delay * stages
        table = torch.full((self.vocabulary.stages, int(steps[-1]) + 1), -1)
        real = frames >= 0
        table[stages[real], frames[real]] = codes[real]
        return table[:, (table >= 0).all(dim=0)]

    def _report(self, position: int, problem: str, repair: str) -> None:
        if self.errors == "strict":
            raise ValueError(f'Position {position}: {problem}. With errors="repair" it would be repaired: {repair}.')
        self.repairs.append(f"Position {position}: {problem}; {repair}.")


__all__ = ["SpeechGrammar", "SpeechReader"]
