"""Runs an evaluation: every codec on every utterance, scored, and stored so that an interrupted run resumes.

The reference of every comparison is the model's input: the utterance in mono, at the model's rate, normalised to the
loudness of its feature extractor. All codecs get exactly the same clip.
"""

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import length_hint
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..data.utterances import Utterance
from ..errors import TaaeInputError, one_line
from ..feature_extraction_taae import normalize_loudness
from . import tables
from .alignment import SAMPLING_RATE, align, estimate_delay
from .codecs import CODEC_ERRORS, ORIGINAL, Encoded, OriginalSystem, System, TaaeSystem
from .conditions import PLAIN, PacketLoss, Tandem, silence_level
from .judges import Judge
from .metrics import ALL_METRICS, Metric, score
from .results import Intervals, Problem, Reference, Results, Row, Sample, Speed
from .rows import RowStore, row_key, settings_key
from .scoring import Scorer, metric_workers

# Number of utterances, from the start of the data, on which delays are estimated.
CALIBRATION_UTTERANCES = 16
SPEED_REPETITIONS = 5
REFERENCE = "reference"


def evaluate_codecs(
    data: Iterable[Utterance],
    systems: Sequence[System],
    metrics: Sequence[str] = tuple(ALL_METRICS),
    judges: Sequence[Judge] = (),
    *,
    folder: Path | None = None,
    target_loudness: float | None = None,
    tandem: int | None = None,
    packet_loss: Iterable[float] = (),
    samples: int = 0,
    speed_seconds: float | None = None,
    workers: int = 1,
    sources: Sequence[str] = (),
    added: Mapping[str, Sequence[str]] | None = None,
) -> Results:
    """Runs every codec on every utterance, scores the decoded clips, and summarises the scores.

    The data are read once, and each codec runs once on each clip. If there is a folder, rows are appended to its
    `rows.jsonl` as they are made. A row of an earlier run is reused if its audio, codec, settings and metrics are the
    same.

    Args:
        data: the utterances, unchanged or under [`Conditions`].
        systems: the codecs.
        metrics: names of metrics, of `ALL_METRICS`.
        judges: networks that also score, in this process (see [`choose_judges`]).
        folder: the folder for rows, made if it does not exist; None keeps no rows.
        target_loudness: loudness in LUFS to which utterances are normalised; None leaves them unchanged.
        tandem: number of passes for a test of each codec applied repeatedly; None for no such test.
        packet_loss: shares of lost frames, for tests of each TAAE codec.
        samples: number of utterances to keep for listening, from as many sources and languages as possible.
        speed_seconds: duration of the clip on which speed is measured; None measures no speed.
        workers: number of processes that compute metrics; with 1, this process computes them.
        sources: names of the data, for the results.
        added: sounds that the conditions add, such as noise, with the names of their files.

    Raises:
        TaaeInputError: if there is no utterance to score, two codecs have one name, a metric's package is missing, or
            rows cannot be written.
    """
    check_names(systems)
    check_metrics(metrics)
    run = Run(systems, metrics, judges, target_loudness, samples)
    with tqdm(unit="clip", desc="Measuring delays", disable=None) as progress:
        utterances = run.calibrate(data)
        run.add_trials(tandem, packet_loss)
        progress.total = length_hint(data) * len(run.systems) or None
        progress.set_description("Scoring")
        with RowStore(folder) as store, metric_workers(workers) as submit:
            scorer = Scorer(store, judges, submit, lookahead=2 * workers)
            for row in run.score(utterances, store, scorer):
                run.rows[row.system].append(row)
                progress.update(row.system != ORIGINAL)
            store.keep(row.key for rows in run.rows.values() for row in rows)
        if speed_seconds is not None:
            progress.set_description("Measuring speed")
        return run.results(speed_seconds, sources, added or {})


class Coded(NamedTuple):
    """A coded clip: its encoded form and the decoded samples, with the codec's delay; or the reason why it failed."""

    encoded: Encoded | None
    decoded: np.ndarray | None
    error: str = ""


class Run:
    """A running evaluation.

    Args:
        systems, metrics, judges, target_loudness, samples: see [`evaluate_codecs`].
    """

    def __init__(
        self,
        systems: Sequence[System],
        metrics: Sequence[str],
        judges: Sequence[Judge],
        target_loudness: float | None,
        samples: int,
    ):
        self.systems = list(systems)
        self.judges, self.target_loudness = judges, target_loudness
        self.metrics: dict[str, Metric] = {name: ALL_METRICS[name] for name in metrics}
        for judge in judges:
            self.metrics |= judge.metrics
        self.delays: dict[str, int] = {}
        self.rows: dict[str, list[Row]] = {system.name: [] for system in systems}
        self.problems: list[Problem] = []
        self.count = 0  # utterances as recorded, scored or not
        self.heard = SampleCollector(samples)
        self.head: list[np.ndarray] = []  # clips from the start of the data, for delays and speed
        self.coded: dict[tuple[str, int], Coded] = {}  # clips of the head that codecs have run on, by name and place

    @property
    def absolute_metrics(self) -> list[str]:
        """The metrics without a reference, which can also score the originals."""
        return [name for name, metric in self.metrics.items() if not metric.needs_reference]

    def calibrate(self, data: Iterable[Utterance]) -> Iterator[Utterance]:
        """Estimates delays on the first utterances, and returns all of them.

        Raises:
            TaaeInputError: if none can be scored.
        """
        utterances, head = iter(data), []
        for utterance in utterances:
            head.append(utterance)
            if utterance.audio is not None:
                self.head.append(self.reference(utterance))
            if len(self.head) == CALIBRATION_UTTERANCES:
                break
        if not self.head:
            reasons = "; ".join(f"{each.id}: {each.problem}" for each in head[:3])
            raise TaaeInputError(f"none of the {len(head)} utterances can be scored ({reasons}); check the data")
        for system in self.systems:
            self.delays[system.name] = self._delay(system) if system.delay is None else system.delay
        return chain(head, utterances)

    def _delay(self, system: System) -> int:
        pairs = []
        for place, clip in enumerate(self.head):
            coded = self.coded[system.name, place] = run_codec(system, clip)
            if coded.decoded is not None:
                pairs.append((clip, coded.decoded))
        return estimate_delay(pairs)

    def add_trials(self, tandem: int | None, packet_loss: Iterable[float]) -> None:
        """Adds codecs applied repeatedly, and codecs with lost frames.

        Raises:
            TaaeInputError: if two codecs have the same name.
        """
        trials: list[System] = []
        if tandem is not None:
            trials += [Tandem(system, tandem, self.delays[system.name]) for system in self.systems]
        ours: list[TaaeSystem] = [system for system in self.systems if isinstance(system, TaaeSystem)]
        trials += [PacketLoss(system, share) for system in ours for share in dict.fromkeys(packet_loss)]
        check_names([*self.systems, *trials])
        self.systems += trials
        for trial in trials:
            self.delays[trial.name] = trial.delay or 0
            self.rows[trial.name] = []

    def score(self, utterances: Iterable[Utterance], store: RowStore, scorer: Scorer) -> Iterator[Row]:
        """Yields the rows of all utterances and codecs, in that order."""
        scored = list(self.systems)
        if self.absolute_metrics or any("speaker_similarity" in judge.metrics for judge in self.judges):
            original = OriginalSystem()
            scored.append(original)
            self.rows[ORIGINAL], self.delays[ORIGINAL] = [], 0
        place = -1
        keys = {
            system.name: settings_key(system, self.delays[system.name], self._metrics_of(system), self.judges)
            for system in scored
        }
        for utterance in utterances:
            plain = utterance.facts.get("condition", PLAIN) == PLAIN
            self.count += plain
            if utterance.problem:
                self.problems.append(Problem(utterance.id, utterance.problem))
            if utterance.audio is None:
                continue
            place, reference = place + 1, self.reference(utterance)
            self.heard.offer(utterance, reference)
            for system in scored if plain else self.systems:
                key = row_key(keys[system.name], utterance, reference)
                self._score_clip(system, key, utterance, reference, place, store.rows.get(key), scorer)
                yield from scorer.ready()
        yield from scorer.rest()

    def _score_clip(
        self,
        system: System,
        key: str,
        utterance: Utterance,
        reference: np.ndarray,
        place: int,
        known: Row | None,
        scorer: Scorer,
    ) -> None:
        """Runs a codec on a clip, unless its row is known and its sound is not needed, and passes it to the scorer."""
        wanted = self.heard.wants(utterance) and system.name != ORIGINAL
        coded = self.coded.pop((system.name, place), None)
        if known is not None and not wanted:
            scorer.add_known(known)
            return
        encoded, decoded, error = coded or run_codec(system, reference)
        if decoded is not None:
            decoded = align(decoded, self.delays[system.name], len(reference)).astype(np.float32)
            if wanted:
                self.heard.keep(utterance, system.name, decoded)
        if known is not None:
            scorer.add_known(known)
            return
        row = Row(utterance.id, system.name, len(reference) / SAMPLING_RATE, utterance.facts, error=error, key=key)
        row.metrics = dict.fromkeys(self._metrics_of(system))
        if encoded is not None and system.name != ORIGINAL:
            row.payload_bytes, row.file_bytes = encoded.payload_bytes, encoded.file_bytes
            row.codes = None if encoded.codes is None else encoded.codes.tolist()
        scorer.add(row, reference, decoded, original=system.name == ORIGINAL)

    def _metrics_of(self, system: System) -> list[str]:
        return self.absolute_metrics if system.name == ORIGINAL else list(self.metrics)

    def reference(self, utterance: Utterance) -> np.ndarray:
        """Returns an utterance's clip at the target loudness: (samples,) float32."""
        assert utterance.audio is not None
        if self.target_loudness is None:
            return utterance.audio
        return normalize_loudness(utterance.audio, SAMPLING_RATE, self.target_loudness)

    def results(
        self, speed_seconds: float | None, sources: Sequence[str], added: Mapping[str, Sequence[str]]
    ) -> Results:
        """Returns the results; see [`evaluate_codecs`]."""
        speed = {} if speed_seconds is None else speeds(self.systems, self.head, speed_seconds)
        originals = self.rows.pop(ORIGINAL, None)
        names = list(self.metrics)
        summaries = [
            tables.system_summary(
                system,
                self.rows[system.name],
                names,
                self.delays[system.name],
                silence_level(system),
                speed.get(system.name),
            )
            for system in self.systems
        ]
        results = Results(
            data=tables.describe_data(sources, added, self.count, next(iter(self.rows.values()))),
            reference=Reference(SAMPLING_RATE, self.target_loudness),
            metrics={name: tables.metric_facts(metric) for name, metric in self.metrics.items()},
            judges={name: value for judge in self.judges for name, value in judge.facts.items()},
            intervals=Intervals("percentile bootstrap over utterances", tables.LEVEL, tables.RESAMPLES, tables.SEED),
            systems=summaries,
            problems=self.problems
            + [problem for rows in self.rows.values() for problem in tables.problems_of(rows, self.metrics)],
            environment=tables.environment(),
            originals=None if originals is None else tables.originals(originals, self.absolute_metrics),
        )
        # Rounded as in results.json, so that reports made from either are equal.
        results = Results.from_json(results.to_json())
        results.rows = self.rows | ({} if originals is None else {ORIGINAL: originals})
        results.samples = self.heard.samples()
        return results


class SampleCollector:
    """Selects a few utterances to listen to, from as many sources and languages as possible.

    It takes the first utterance of each source and language, then the second ones, and so on. Until the end of the
    data, it keeps the best so far.

    Args:
        count: number of utterances.
    """

    def __init__(self, count: int):
        self.count = count
        self.seen: Counter[tuple[str | None, str | None]] = Counter()
        # The worst first, as a heap wants it: negative rank within its kind and place in the data, and the id.
        self.best: list[tuple[int, int, str]] = []
        self.kept: dict[str, Sample] = {}
        self.place = 0

    def offer(self, utterance: Utterance, reference: np.ndarray) -> None:
        """Takes an utterance without a condition, if it is among the best so far."""
        if utterance.facts.get("condition", PLAIN) != PLAIN or not self.count:
            return
        kind = utterance.facts.get("source"), utterance.facts.get("language")
        entry = -self.seen[kind], -self.place, utterance.id
        self.seen[kind] += 1
        self.place += 1
        if len(self.best) < self.count:
            heapq.heappush(self.best, entry)
        else:
            _, _, worst = heapq.heappushpop(self.best, entry)
            if worst == utterance.id:
                return
            del self.kept[worst]
        self.kept[utterance.id] = Sample(utterance.id, utterance.facts, {REFERENCE: reference})

    def wants(self, utterance: Utterance) -> bool:
        """Returns whether an utterance is among the best so far."""
        return utterance.id in self.kept

    def keep(self, utterance: Utterance, system: str, decoded: np.ndarray) -> None:
        """Stores a codec's output for an utterance."""
        self.kept[utterance.id].clips[system] = decoded

    def samples(self) -> list[Sample]:
        """Returns the selected utterances in the order in which they were taken."""
        return [self.kept[name] for _, _, name in sorted(self.best, reverse=True)]


def run_codec(system: System, clip: np.ndarray) -> Coded:
    """Encodes and decodes a clip."""
    try:
        encoded = system.encode(clip)
        decoded = system.decode(encoded)
    except CODEC_ERRORS as error:
        return Coded(None, None, one_line(error))
    if not np.isfinite(decoded).all():
        return Coded(None, None, "the decoded audio contains NaN or infinite samples")
    return Coded(encoded, decoded)


def check_names(systems: Sequence[System]) -> None:
    """Checks that the names of codecs differ.

    Raises:
        TaaeInputError: if two have the same name.
    """
    counts = Counter(system.name for system in systems)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise TaaeInputError(
            f"{', '.join(repeated)}: several codecs have this name, and would be one in the results; evaluate them in "
            "separate runs, or rename a folder"
        )


def check_metrics(names: Sequence[str]) -> None:
    """Tries each metric on half a second of noise, so that a missing package is noticed at once.

    Raises:
        TaaeInputError: if a metric is unknown, or its package is not installed.
    """
    if unknown := [name for name in names if name not in ALL_METRICS]:
        raise TaaeInputError(f"{' '.join(unknown)}: no metric is called this; choose from {', '.join(ALL_METRICS)}")
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLING_RATE // 2).astype(np.float32)
    try:
        score(noise, noise[::-1].copy(), names)
    except ImportError as error:
        raise TaaeInputError(
            f"a metric needs a package that is not installed ({one_line(error)}); install all of them with "
            "`pip install 'modeling_taae[eval]'`, or choose others with --metrics"
        ) from error


def speeds(systems: Iterable[System], clips: Sequence[np.ndarray], seconds: float) -> dict[str, Speed]:
    """Measures the speed of each codec; returns it by name, without codecs that fail."""
    measured = {}
    clip = np.resize(np.concatenate(clips), int(seconds * SAMPLING_RATE))
    for system in systems:
        with suppress(*CODEC_ERRORS):
            measured[system.name] = measure_speed(system, clip)
    return measured


def measure_speed(system: System, clip: np.ndarray) -> Speed:
    """Measures real-time factors of a single clip: medians after a warm-up run.

    Programs that are started for each clip are measured including their start.
    """
    seconds = len(clip) / SAMPLING_RATE
    encoding, decoding = [], []
    for _ in range(SPEED_REPETITIONS + 1):
        start = time.perf_counter()
        encoded = system.encode(clip)
        middle = time.perf_counter()
        system.decode(encoded)
        encoding.append((middle - start) / seconds)
        decoding.append((time.perf_counter() - middle) / seconds)
    return Speed(median(encoding[1:]), median(decoding[1:]), seconds)
