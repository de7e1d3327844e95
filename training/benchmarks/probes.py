"""Probes the content of a model's tokens: `python training/measure.py probes FOLDER --speech FILES [--phonemes …]`.

Predicts language, gender and speaker from the tokens of whole utterances, and phonemes from the sequence of tokens.
Languages of few speakers are left out, because a probe would recognize the voices instead. Writes results/probes.json
in the model's folder.
"""

import argparse
from collections import defaultdict
from collections.abc import Container
from pathlib import Path

import numpy as np
from pyarrow import parquet
from tqdm import tqdm

from modeling_taae.codec import Codec, load_codec
from modeling_taae.data.utterances import Utterances
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.probes import (
    FOLDS,
    classify,
    digit_features,
    mel_features,
    phoneme_error_rate,
    pooled,
)
from training.benchmarks.runner import Measurement

# Speakers with fewer utterances, and languages of fewer speakers than folds, cannot be both learned and tested.
FEWEST_UTTERANCES, FEWEST_SPEAKERS = 4, FOLDS
KINDS = ("tokens", "log-mel")
STRESS = "012"  # stress marks at the end of vowels, not part of a phoneme


def features_of(
    codec: Codec, sources: list[str], limit: int | None, wanted: Container[str] | None = None
) -> list[dict]:
    """Facts and features of each utterance: `tokens` and `log-mel`, each (frames, features).

    Args:
        codec: codec that makes the tokens.
        sources: files of utterances.
        limit: number of utterances from the start; None for all.
        wanted: ids of the utterances to take; None for all.
    """
    rate, hop_length = codec.model.config.sampling_rate, codec.model.config.hop_length
    quantizer, rows = codec.model.bottleneck(None), []
    utterances = Utterances(sources, rate, limit)
    for utterance in tqdm(utterances, unit="clip", disable=None):
        if utterance.audio is None or (wanted is not None and utterance.id not in wanted):
            continue
        heard = codec.extractor(utterance.audio, sampling_rate=rate)["input_values"][0, 0, : len(utterance.audio)]
        tokens = digit_features(codec.encode(utterance.audio).audio_codes, quantizer)
        features = {"tokens": tokens, "log-mel": mel_features(heard.numpy(), hop_length)}
        rows.append({"id": utterance.id, **utterance.facts, **features})
    return rows


def probe_utterances(rows: list[dict]) -> dict:
    """Predicts language, gender and speaker from pooled features; the first two for speakers not seen in training.

    Returns:
        For each fact with enough utterances: the result of [`classify`] by kind of features, and `labels`, the number
        of utterances by label.
    """
    results = {}
    for fact in ("language", "gender", "speaker"):
        told = often_enough([row for row in rows if fact in row], fact)
        labels = [row[fact] for row in told]
        groups = [speaker_of(row) if fact != "speaker" else row["id"] for row in told]
        if len(set(labels)) < 2:
            continue
        results[fact] = {"labels": {label: labels.count(label) for label in sorted(set(labels))}}
        for kind in KINDS:
            features = np.stack([pooled(row[kind]) for row in told])
            results[fact][kind] = classify(features, labels, groups)
    return results


def often_enough(rows: list[dict], fact: str) -> list[dict]:
    """The rows whose label has enough speakers, or whose speaker has enough utterances."""
    members = defaultdict(set)
    for row in rows:
        members[row[fact]].add(row["id"] if fact == "speaker" else speaker_of(row))
    fewest = FEWEST_UTTERANCES if fact == "speaker" else FEWEST_SPEAKERS
    return [row for row in rows if len(members[row[fact]]) >= fewest]


def speaker_of(row: dict) -> str:
    """The speaker; if unknown, a speaker for this utterance alone."""
    return row.get("speaker", row["id"])


def probe_phonemes(known: list[dict], unknown: list[dict], phonemes: dict[str, list[str]]) -> dict:
    """Phoneme error rates from sequences of features.

    Raises:
        TaaeInputError: if there are no phonemes of these utterances.
    """
    known, unknown = [row for row in known if row["id"] in phonemes], [row for row in unknown if row["id"] in phonemes]
    if not known or not unknown:
        raise TaaeInputError("--phonemes: has no phonemes for the training or the test utterances; check the ids")

    def spoken(rows: list[dict], kind: str) -> list[tuple[np.ndarray, list[str]]]:
        return [(row[kind], phonemes[row["id"]]) for row in rows]

    rates = {kind: phoneme_error_rate(spoken(known, kind), spoken(unknown, kind)) for kind in KINDS}
    return {"trained_on": len(known), **rates}


def read_phonemes(table: str, source: str | None = None) -> dict[str, list[str]]:
    """Reads phonemes by utterance, of one source or of all, without stress marks and word boundaries."""
    columns = ["id", "phonemes"] if source is None else ["id", "phonemes", "source"]
    rows = parquet.read_table(table, columns=columns).to_pylist()
    told = {row["id"]: row["phonemes"] for row in rows if row["phonemes"] and row.get("source") == source}
    return {name: [phone.strip(STRESS) for phone in text.split() if phone != "|"] for name, text in told.items()}


def measure(options: argparse.Namespace) -> dict:
    """Returns the content of probes.json.

    Raises:
        TaaeInputError: if there is no such model or speech, or the speech has no phonemes.
    """
    codec = load_codec(str(options.folder), device="cpu")
    rows = features_of(codec, options.speech, options.limit)
    results: dict = {"model_identity": codec.identity, "bottleneck": codec.model.config.bottleneck}
    results |= {"speech": [Path(name).name for name in options.speech], "utterances": len(rows)}
    results |= probe_utterances(rows)
    if options.phonemes:
        phonemes = read_phonemes(options.phonemes, options.source)
        known = features_of(codec, options.train, options.limit, wanted=phonemes)
        results["phonemes"] = {"source": options.source, **probe_phonemes(known, rows, phonemes)}
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the phoneme probe."""
    parser.add_argument("--phonemes", metavar="FILE", help="Parquet file with columns id, source and phonemes")
    parser.add_argument("--source", default="speechocean762", help="source of the phonemes (default: speechocean762)")
    known = "utterances to train the phoneme probe on"
    parser.add_argument("--train", nargs="+", default=[], metavar="FILES", help=known)


MEASUREMENT = Measurement(
    "probes", "Probes the content of a model's tokens.", "probes.json", measure, add_options=add_options
)
main = MEASUREMENT.run
