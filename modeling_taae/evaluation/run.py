"""Evaluation: every codec on every utterance, scored, and written down so that an interrupted run goes on.

The reference of every comparison is the utterance as the model hears it: mono, at the model's rate, brought to the
loudness that its feature extractor asks for. Peers are given exactly the same clip.
"""

import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.utterances import Utterance, Utterances
from ..errors import TaaeInputError, one_line
from ..feature_extraction_taae import normalize_loudness
from .codecs import CODEC_ERRORS, System, align, estimate_delay
from .conditions import Conditions, silence_level
from .metrics import ALL_METRICS, SAMPLING_RATE, Metric, score
from .model_metrics import Judge

ROWS_FILE = "rows.jsonl"
# Delays are estimated on so many utterances from the start of the data, speed on so much speech, so many times.
CALIBRATION_UTTERANCES = 16
SPEED_SECONDS, SPEED_REPETITIONS = 10.0, 5


@dataclass
class Evaluation:
    """What a run has found, before anything is averaged.

    Args:
        systems: the codecs, in order.
        metrics: the metrics by name, those of the judges included.
        rows: of each system, by its name, one row per utterance that could be scored (see [`score_utterance`]).
        utterances: id and facts of every utterance, scored or not; `problem` where there is one.
        target_loudness: of the reference, in LUFS; None if the level was left as it is.
        judges: networks that score as well.
        delays: of each system, by its name, in samples.
        speed: of each system, by its name (see [`measure_speed`]).
        silence: of each system, by its name, what silence becomes (see [`silence_level`]).
    """

    systems: list[System]
    metrics: dict[str, Metric]
    target_loudness: float | None
    judges: Sequence[Judge] = ()
    rows: dict[str, list[dict]] = field(default_factory=dict)
    utterances: list[dict] = field(default_factory=list)
    delays: dict[str, int] = field(default_factory=dict)
    speed: dict[str, dict] = field(default_factory=dict)
    silence: dict[str, float | None] = field(default_factory=dict)


def evaluate(
    utterances: Utterances | Conditions,
    systems: list[System],
    folder: Path,
    metrics: list[str],
    target_loudness: float | None,
    judges: Sequence[Judge] = (),
    workers: int = 1,
    speed: bool = True,
) -> Evaluation:
    """Runs every system on every utterance.

    Rows are appended to `rows.jsonl` in the folder as they are made. A row that is there from an earlier run is used
    again if it was made of the same audio by the same system, settings and metrics.

    Args:
        utterances: the data.
        systems: what to evaluate.
        folder: for results; made if need be.
        metrics: names of the metrics, of `ALL_METRICS`.
        target_loudness: what utterances are brought to, in LUFS; None leaves them as they are.
        judges: networks that score as well, in this process.
        workers: processes that compute metrics; 1 computes them in this one.
        speed: whether to measure speed at the end.

    Raises:
        TaaeInputError: if there is no utterance to score, or two systems have one name.
    """
    counts = Counter(system.name for system in systems)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise TaaeInputError(
            f"{', '.join(repeated)}: several codecs have this name, and would be one in the results; evaluate them in "
            "runs of their own, or rename a folder"
        )
    known = {name: ALL_METRICS[name] for name in metrics}
    for judge in judges:
        known |= judge.metrics
    result = Evaluation(systems, known, target_loudness, judges)
    clips = references(utterances, target_loudness, CALIBRATION_UTTERANCES)
    if not clips:
        reasons = "; ".join(f"{utterance.id}: {utterance.problem}" for utterance in islice(utterances, 3))
        raise TaaeInputError(f"none of the {len(utterances)} utterances can be scored ({reasons}); check the data")
    for system in systems:
        if system.delay is None:
            system.delay = estimate_delay(passages(system, clips))
    result.delays = {system.name: system.delay for system in systems}
    result.rows = {system.name: [] for system in systems}
    total = len(utterances) * len(systems) or None
    with (
        RowStore(folder / ROWS_FILE) as store,
        scoring(workers) as submit,
        tqdm(total=total, unit="clip", desc="Scoring", disable=None) as progress,
    ):
        for row in make_rows(utterances, result, store, submit, lookahead=2 * workers):
            result.rows[row["system"]].append(row)
            progress.update()
        store.keep(row["key"] for rows in result.rows.values() for row in rows)
    result.silence = {system.name: silence_level(system) for system in systems}
    if speed:
        result.speed = speeds(systems, clips)
    return result


def make_rows(
    utterances: Utterances | Conditions,
    result: Evaluation,
    store: "RowStore",
    submit: Callable[..., Future],
    lookahead: int,
) -> Iterator[dict]:
    """Rows of all utterances and systems, in that order; while metrics are computed, later clips are encoded.

    Args:
        utterances: the data; each is added to `result.utterances`.
        result: the run.
        store: rows that exist already, and where new ones go.
        submit: as an executor's.
        lookahead: rows that may wait for their metrics.
    """
    keys = {system.name: settings_key(system, result) for system in result.systems}
    names = [name for name in result.metrics if name in ALL_METRICS]
    waiting: deque[tuple[dict, Future | None]] = deque()

    def finish(row: dict, scores: Future | None) -> dict:
        if scores is not None:
            row["metrics"] |= finite(scores.result())
            store.append(row)
        return row

    for utterance in utterances:
        problem = {"problem": utterance.problem} if utterance.problem else {}
        result.utterances.append({"id": utterance.id, **utterance.facts, **problem})
        if utterance.audio is None:
            continue
        reference = normalized(utterance, result.target_loudness)
        for system in result.systems:
            key = row_key(keys[system.name], utterance, reference)
            if key in store.rows:
                waiting.append((store.rows[key], None))
            else:
                row, decoded = reconstruct(system, utterance, reference, result.delays[system.name])
                row = {"key": key} | row | {"metrics": dict.fromkeys(result.metrics)}
                if decoded is None:
                    waiting.append((row, call_now(dict)))
                else:
                    waiting.append((row, submit(score, reference, decoded, names)))
                    row["metrics"] |= judged(result.judges, reference, decoded, utterance.facts.get("text"))
            while len(waiting) > lookahead:
                yield finish(*waiting.popleft())
    while waiting:
        yield finish(*waiting.popleft())


def references(utterances: Utterances | Conditions, target_loudness: float | None, count: int) -> list[np.ndarray]:
    """The first utterances that can be scored, as they are compared with."""
    clips = []
    for utterance in utterances:
        if utterance.audio is not None:
            clips.append(normalized(utterance, target_loudness))
        if len(clips) == count:
            break
    return clips


def passages(system: System, clips: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clips with what a codec makes of them, where it does not fail; where it does, its rows will say so."""
    for clip in clips:
        with suppress(*CODEC_ERRORS):
            yield clip, system.decode(system.encode(clip))


def normalized(utterance: Utterance, target_loudness: float | None) -> np.ndarray:
    """(samples,) float32 at the loudness in LUFS that codecs are given."""
    if target_loudness is None:
        return utterance.audio
    return normalize_loudness(utterance.audio, SAMPLING_RATE, target_loudness)


def reconstruct(
    system: System, utterance: Utterance, reference: np.ndarray, delay: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Encodes and decodes one utterance.

    Returns:
        The row, without metrics: id, facts, length in seconds, sizes in bytes and tokens; and the decoded clip, aligned
        and as long as the reference. Where the codec fails, the row's `error` says why and there is no clip.
    """
    row = {"id": utterance.id, "system": system.name, **utterance.facts, "seconds": len(reference) / SAMPLING_RATE}
    try:
        encoded = system.encode(reference)
        decoded = align(system.decode(encoded), delay, len(reference)).astype(np.float32)
    except CODEC_ERRORS as error:
        return row | {"error": one_line(error)}, None
    if not np.isfinite(decoded).all():
        return row | {"error": "the decoded audio contains NaN or infinite samples"}, None
    row |= {"payload_bytes": encoded.payload_bytes, "file_bytes": encoded.file_bytes}
    return row | ({} if encoded.codes is None else {"codes": encoded.codes.tolist()}), decoded


def judged(
    judges: Sequence[Judge], reference: np.ndarray, decoded: np.ndarray, text: str | None
) -> dict[str, float | list[int] | None]:
    """What all judges say of one clip."""
    scores = {}
    for judge in judges:
        scores |= judge.judge(reference, decoded, text)
    return scores


def finite(scores: dict[str, float]) -> dict[str, float | None]:
    """Scores as JSON can hold them: None in place of what is not a finite number."""
    return {name: value if np.isfinite(value) else None for name, value in scores.items()}


def settings_key(system: System, evaluation: Evaluation) -> str:
    """What a system's figures depend on beside the audio, as text."""
    judges = [judge.facts for judge in evaluation.judges]
    settings = [system.name, system.facts, evaluation.delays[system.name], list(evaluation.metrics), judges]
    return json.dumps(settings, sort_keys=True)


def row_key(settings: str, utterance: Utterance, reference: np.ndarray) -> str:
    """What a row is found again by: a hash of settings, of what is known of the utterance, and of its audio."""
    facts = json.dumps(utterance.facts, sort_keys=True)
    digest = hashlib.sha256(f"{settings}\n{utterance.id}\n{facts}\n".encode())
    digest.update(np.ascontiguousarray(reference).data)
    return digest.hexdigest()[:20]


class RowStore:
    """Rows in a JSON-lines file, each written as soon as it is there.

    Args:
        path: the file; a last line that an interruption cut short is dropped, and so are clips at which a codec failed,
            to be tried again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, dict] = {}

    def __enter__(self) -> "RowStore":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                    if "error" not in row:
                        self.rows[row["key"]] = row
                except (ValueError, KeyError, TypeError):
                    continue
            self.keep(list(self.rows))
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, row: dict) -> None:
        """Writes a row."""
        self.rows[row["key"]] = row
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.file.flush()

    def keep(self, keys: Iterator[str] | list[str]) -> None:
        """Writes the file anew with these rows alone, in this order."""
        partial = self.path.with_suffix(".partial")
        lines = (json.dumps(self.rows[key], ensure_ascii=False) + "\n" for key in keys)
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(partial, self.path)


@contextmanager
def scoring(workers: int) -> Iterator[Callable[..., Future]]:
    """A function that computes in other processes, or at once and here if there is one worker."""
    if workers <= 1:
        yield call_now
        return
    # Not forked: torch's threads do not survive that.
    pool: Executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def call_now(function: Callable, *arguments: Any) -> Future:
    """Calls a function and returns what an executor would."""
    future: Future = Future()
    future.set_result(function(*arguments))
    return future


def start_worker() -> None:
    """Keeps a worker from starting a thread per core, and from staying when its parent was killed."""
    import torch

    torch.set_num_threads(1)
    Thread(target=end_with, args=(parent_process(),), daemon=True).start()


def end_with(parent: BaseProcess) -> None:
    """Ends this process as soon as another has ended."""
    parent.join()
    os._exit(1)


def speeds(systems: list[System], clips: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """The speed of each system by its name; those that fail have none."""
    measured = {}
    for system in systems:
        with suppress(*CODEC_ERRORS):
            measured[system.name] = measure_speed(system, clips)
    return measured


def measure_speed(system: System, clips: list[np.ndarray]) -> dict[str, float]:
    """Real-time factors, seconds of work per second of speech, of single clips: medians after a run to warm up.

    Returns:
        `encode_rtf`, `decode_rtf`, and `seconds`, the clip's length. Programs that are started for each clip count with
        their start.
    """
    samples = int(SPEED_SECONDS * SAMPLING_RATE)
    clip = np.resize(np.concatenate(clips), samples)
    times: dict[str, list[float]] = {"encode_rtf": [], "decode_rtf": []}
    for _ in range(SPEED_REPETITIONS + 1):
        start = time.perf_counter()
        encoded = system.encode(clip)
        middle = time.perf_counter()
        system.decode(encoded)
        times["encode_rtf"].append((middle - start) / SPEED_SECONDS)
        times["decode_rtf"].append((time.perf_counter() - middle) / SPEED_SECONDS)
    return {name: median(values[1:]) for name, values in times.items()} | {"seconds": SPEED_SECONDS}


def check_metrics(names: list[str]) -> None:
    """Tries each metric on half a second of noise, so that a missing package shows before the work.

    Raises:
        TaaeInputError: if a metric is unknown, or its package is not installed.
    """
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLING_RATE // 2).astype(np.float32)
    unknown = [name for name in names if name not in ALL_METRICS]
    if unknown:
        raise TaaeInputError(f"--metrics {' '.join(unknown)}: not known; choose from {', '.join(ALL_METRICS)}")
    try:
        score(noise, noise[::-1].copy(), names)
    except ImportError as error:
        raise TaaeInputError(
            f"a metric needs a package that is not installed ({one_line(error)}); install all of them with "
            "`pip install 'modeling_taae[eval]'`, or choose others with --metrics"
        ) from error
