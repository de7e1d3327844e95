"""Speech that sounds while a language model still generates it.

`generate` hands each new id to a streamer. [`TaaeStreamer`] collects the ids of speech, and decodes their frames once
they are complete.
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

# Seconds of a codec that is not causal: decoded at a time, and around that, before and after.
CHUNK_SECONDS, BEFORE_SECONDS, AFTER_SECONDS = 1.0, 3.0, 1.0


class TaaeStreamer(BaseStreamer):
    r"""
    Decodes speech while `generate` runs: for `generate(streamer=…)`, in the manner of Transformers' `TextStreamer`.

    Iterating over it yields waveforms, (samples,) float32, and ends with the generation, which runs in another thread.
    [`~TaaeStreamer.run`] does both. A subclass may override [`~TaaeStreamer.on_audio`] instead, and needs no thread.

    A causal codec decodes each frame as it comes, and all waveforms together are those of the whole sequence. Another
    codec decodes chunks with the frames around them: what lies further away does not reach the sound, so that it is
    not quite that of the whole sequence, and is late by a chunk and the frames behind it.

    The ids should follow the grammar (`logits_processor=[processor.grammar]`). One sequence at a time is streamed.

    Args:
        processor (`TaaeProcessor`):
            The language model's, with the codec as its `audio_tokenizer`.
        skip_prompt (`bool`, defaults to `True`):
            Whether speech of the prompt, which generation goes on from, is left out.
        chunk_frames (`int`, *optional*):
            Frames that are decoded at a time; 1 for a causal codec, else those of a second.
        context_frames (`tuple[int, int]`, *optional*):
            Frames before and after a chunk that are decoded with it, by a codec that is not causal; by default those of
            three seconds and one.
        timeout (`float`, *optional*):
            Seconds after which an iteration in vain raises `queue.Empty`; None waits.

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
        """Forgets the span."""
        self.inside = False
        self.stages: list[list[int]] = [[] for _ in range(self.processor.vocabulary.stages)]
        self.done = 0  # frames that were decoded or left out
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
        """Takes each waveform as it is decoded: puts it into the queue that iteration reads.

        Args:
            waveform: (samples,) float32 at the codec's rate; none at the end.
            stream_end: true at the end of the generation.
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

        An error of `generate` is raised here. If the iteration is left early, generation stops.

        Args:
            language_model: the language model.
            arguments: arguments of its `generate`. The grammar and the end marker are added unless they are given.
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
            except BaseException as error:  # whatever it is, the iteration must end and raise it
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
        """Decodes the chunks that are complete, and at the end of the span what is left."""
        whole = min(map(len, self.stages))
        before, after = self.context_frames
        while (ready := whole - self.done) > 0 and (final or silent or ready >= self.chunk_frames + after):
            count = ready if silent else min(ready, self.chunk_frames)
            if final and ready - count < after:  # the rest has no more context to wait for
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
