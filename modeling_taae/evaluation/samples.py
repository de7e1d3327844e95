"""A few utterances through every codec, to listen to: for the HTML report and for listening tests."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..data.utterances import Utterances
from .conditions import Conditions
from .run import Evaluation, normalized, reconstruct

REFERENCE = "reference"


@dataclass(frozen=True)
class Sample:
    """One utterance and what the codecs make of it.

    Args:
        id: the utterance's.
        facts: its language, source, speaker and text, as far as they are known.
        clips: (samples,) float32 at 16 kHz by system, the reference first; a codec that failed has none.
    """

    id: str
    facts: dict[str, str]
    clips: dict[str, np.ndarray]


def make_samples(utterances: Utterances | Conditions, evaluation: Evaluation, count: int) -> list[Sample]:
    """Runs the codecs once more on a few utterances, of as many sources and languages as there are.

    Args:
        utterances: the data.
        evaluation: the run, for its systems and their delays.
        count: how many.
    """
    wanted = varied_ids(next(iter(evaluation.rows.values())), count)
    samples = {}
    for utterance in utterances:
        if len(samples) == len(wanted):
            break
        if utterance.id not in wanted:
            continue
        reference = normalized(utterance, evaluation.target_loudness)
        clips = {REFERENCE: reference}
        for system in evaluation.systems:
            _, decoded = reconstruct(system, utterance, reference, evaluation.delays[system.name])
            if decoded is not None:
                clips[system.name] = decoded
        samples[utterance.id] = Sample(utterance.id, utterance.facts, clips)
    return [samples[name] for name in wanted]


def varied_ids(rows: list[dict], count: int) -> list[str]:
    """Ids of the first utterance of each source and language, then the second ones, and so on."""
    seen: Counter[tuple] = Counter()
    ranked = []
    for place, row in enumerate(rows):
        kind = row.get("source"), row.get("language")
        ranked.append((seen[kind], place, row["id"]))
        seen[kind] += 1
    return [name for _, _, name in sorted(ranked)[:count]]
