"""Decodes speech while a language model is still generating it.

`generate` passes each new id to a streamer. [`TaaeStreamer`] collects the ids of speech and decodes their frames as
soon as they are complete.
"""

from collections.abc import Iterator
from queue import Queue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .processing_taae import TaaeProcessor

# For a codec that is not causal: seconds decoded at a time, and seconds of context before and after them.
CHUNK_SECONDS, BEFORE_SECONDS, AFTER_SECONDS = 1.0, 3.0, 1.0


class TaaeStreamer(BaseStreamer):
    r"""
    Decodes speech while `generate(streamer=…)` runs, like Transformers' `TextStreamer` for text.

    Iterating over it yields waveforms, (samples,) float32, and ends with the generation, which runs in another thread.
    [`~TaaeStreamer.run`] does both. A subclass that overrides [`~TaaeStreamer.on_audio`] needs no thread.

    With a causal codec, each frame is decoded as it comes, and the waveforms joined equal the decoded sequence. Any
    other codec decodes chunks with some context on both sides. The result differs slightly from the decoded sequence,
    and it is delayed by a chunk and its right context.

    The ids should follow the grammar (`logits_processor=[processor.grammar]`). One sequence is streamed at a time.

    Args:
        processor (`TaaeProcessor`):
            The language model's processor, with the codec as its `audio_tokenizer`.
        skip_prompt (`bool`, defaults to `True`):
            Whether to leave out the speech of the prompt, which generation continues.
        chunk_frames (`int`, *optional*):
            Frames decoded at a time; by default 1 for a causal codec, else the frames of one second.
        context_frames (`tuple[int, int]`, *optional*):
            Frames of context before and after a chunk, for a codec that is not causal; by default the frames of three
            seconds and of one second.
        timeout (`float`, *optional*):
            Seconds to wait for the next waveform before raising `queue.Empty`; None waits without limit.

    Raises:
        ValueError: if the processor has no codec.

    Example:

    ```python
    >>> streamer = TaaeStreamer(processor)
    >>> prompt = processor(f"Good morning. {processor.audio_bos_token}", return_tensors="pt")
    >>> for waveform in streamer.run(language_model, **prompt, do_sample=True, max_new_tokens=200):
    ...     loudspeaker.write(waveform)
    ```"""

    def __init__(
        self,
        processor: TaaeProcessor,
        skip_prompt: bool = True,
        chunk_frames: int | None = None,
        context_frames: tuple[int, int] | None = None,
        timeout: float | None = None,
    ):
        if processor.audio_tokenizer is None:
            raise ValueError("This processor has no codec to decode speech with: set processor.audio_tokenizer.")
        self.processor, self.codec = processor, processor.audio_tokenizer
        config = self.codec.config
        default = 1 if config.causal else round(CHUNK_SECONDS * config.frame_rate)
        self.chunk_frames = default if chunk_frames is None else chunk_frames
        around = (round(BEFORE_SECONDS * config.frame_rate), round(AFTER_SECONDS * config.frame_rate))
        self.context_frames = (0, 0) if config.causal else (around if context_frames is None else context_frames)
        self.skip_prompt, self.timeout = skip_prompt, timeout
        self.queue: Queue[np.ndarray | None] = Queue()
        self.prompt_is_next = True
        self._close()

    def _close(self) -> None:
        """Discards the open span."""
        self.inside = False
        self.stages: list[list[int]] = [[] for _ in range(self.processor.vocabulary.stages)]
        self.done = 0  # frames that are decoded or skipped
        self.state = self.codec.streaming_state() if self.codec.config.causal else None

    def put(self, value: Tensor) -> None:
        """Takes the prompt, (1, length) int64, and then each new id, (1,) int64.

        Raises:
            ValueError: if there are several sequences.
        """
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"TaaeStreamer streams one sequence at a time, not {value.shape[0]}.")
        is_prompt, self.prompt_is_next = self.prompt_is_next, False
        silent = is_prompt and self.skip_prompt
        vocabulary = self.processor.vocabulary
        ids = value.flatten().cpu()
        stages = vocabulary.stages_of(ids)
        codes = vocabulary.codes_of(ids, stages.clamp(min=0))
        for index, stage, code in zip(ids.tolist(), stages.tolist(), codes.tolist(), strict=True):
            if index == vocabulary.begin_id:
                self._close()
                self.inside = True
            elif index == vocabulary.end_id and self.inside:
                self._decode(final=True, silent=silent)
                self._close()
            elif stage >= 0 and self.inside:
                self.stages[stage].append(code)
        if self.inside:
            self._decode(silent=silent)

    def end(self) -> None:
        """Decodes the whole frames of a span that is still open, and ends the iteration."""
        if self.inside:
            self._decode(final=True)
        self._close()
        self.prompt_is_next = True
        self.on_audio(np.zeros(0, np.float32), stream_end=True)

    def on_audio(self, waveform: np.ndarray, stream_end: bool = False) -> None:
        """Takes each waveform as it is decoded and puts it into the queue that iteration reads.

        Args:
            waveform: (samples,) float32 at the codec's rate; empty at the end.
            stream_end: whether generation has ended.
        """
        if len(waveform):
            self.queue.put(waveform)
        if stream_end:
            self.queue.put(None)

    def __iter__(self) -> Iterator[np.ndarray]:
        while (waveform := self.queue.get(timeout=self.timeout)) is not None:
            yield waveform

    def run(self, language_model: PreTrainedModel, **arguments: Any) -> Iterator[np.ndarray]:
        """Generates in a thread and yields waveforms as they come, (samples,) float32.

        An error in `generate` is raised here. Leaving the iteration early stops the generation.

        Args:
            language_model: the language model.
            arguments: arguments of its `generate`. By default, the grammar is the logits processor and the end marker
                of speech ends the generation.
        """
        stop, errors = Event(), []
        defaults = {
            "logits_processor": [self.processor.grammar],
            "eos_token_id": self.processor.audio_eos_token_id,
        }
        criteria = [*arguments.pop("stopping_criteria", []), _Stop(stop)]

        def generate() -> None:
            try:
                language_model.generate(**defaults | arguments, streamer=self, stopping_criteria=criteria)
            except BaseException as error:  # the iteration must end and raise any error
                errors.append(error)
                self._close()
                self.prompt_is_next = True
                self.queue.put(None)

        thread = Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from self
        finally:
            stop.set()
            thread.join()
            self.queue = Queue()
        if errors:
            raise errors[0]

    def _decode(self, final: bool = False, silent: bool = False) -> None:
        """Decodes the complete chunks, and at the end of the span the rest."""
        whole = min(map(len, self.stages))
        before, after = self.context_frames
        while (ready := whole - self.done) > 0 and (final or silent or ready >= self.chunk_frames + after):
            count = ready if silent else min(ready, self.chunk_frames)
            if final and ready - count < after:  # no more context will come for the rest
                count = ready
            self._emit(count, before, after, silent)

    @torch.no_grad()
    def _emit(self, count: int, before: int, after: int, silent: bool) -> None:
        first, hop = max(0, self.done - before), self.codec.config.hop_length
        last = self.done + count
        frames = [codes[first : last + after] for codes in self.stages]
        shortest = min(map(len, frames))
        codes = torch.tensor([stage[:shortest] for stage in frames], device=self.codec.device)[None]
        start, self.done = self.done - first, last
        if silent and self.state is None:
            return
        decoded = self.codec.decode(codes, bottleneck=self.processor.bottleneck, state=self.state)
        self.state = decoded.state if self.state is not None else None
        if not silent:
            audio = decoded.audio_values[0, 0, start * hop : (start + count) * hop]
            self.on_audio(audio.float().cpu().numpy())


class _Stop(StoppingCriteria):
    """Stops generation when an event is set."""

    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


__all__ = ["TaaeStreamer"]
