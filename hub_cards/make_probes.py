"""Probes what a model's tokens carry: `python hub_cards/make_probes.py FOLDER --speech FILES [--phonemes …]`.

Language, gender and speaker are told from the tokens of whole utterances, phonemes from their sequence. Writes
results/probes.json in the model's folder.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from pyarrow import parquet
from tqdm import tqdm

from modeling_taae.audio_io import TaaeInputError, write_bytes
from modeling_taae.codec import Codec, load_codec
from modeling_taae.probes import classify, digit_features, mel_features, phoneme_error_rate, pooled
from modeling_taae.utterances import Utterances

# Speakers with fewer utterances cannot be learnt and tested.
FEWEST_UTTERANCES = 4


def features_of(codec: Codec, sources: list[str], limit: int | None) -> list[dict]:
    """Facts and features of each utterance: `tokens` and `log-mel`, each (frames, features)."""
    rate, hop_length = codec.model.config.sampling_rate, codec.model.config.hop_length
    quantizer, rows = codec.model.bottleneck(None), []
    utterances = Utterances(sources, rate, limit)
    for utterance in tqdm(utterances, unit="clip", disable=None):
        if utterance.audio is None:
            continue
        heard = codec.extractor(utterance.audio, sampling_rate=rate)["input_values"][0, 0, : len(utterance.audio)]
        tokens = digit_features(codec.encode(utterance.audio).audio_codes, quantizer)
        features = {"tokens": tokens, "log-mel": mel_features(heard.numpy(), hop_length)}
        rows.append({"id": utterance.id, **utterance.facts, **features})
    return rows


def probe_utterances(rows: list[dict]) -> dict:
    """Language, gender and speaker from pooled features; the first two across speakers."""
    results = {}
    for fact in ("language", "gender", "speaker"):
        told = [row for row in rows if fact in row]
        if fact == "speaker":
            names = [row[fact] for row in told]
            told = [row for row in told if names.count(row[fact]) >= FEWEST_UTTERANCES]
        labels = [row[fact] for row in told]
        groups = [row["id"] if fact == "speaker" else row.get("speaker", row["id"]) for row in told]
        if len(set(labels)) < 2:
            continue
        for kind in ("tokens", "log-mel"):
            features = np.stack([pooled(row[kind]) for row in told])
            results.setdefault(fact, {})[kind] = classify(features, labels, groups)
    return results


def probe_phonemes(known: list[dict], unknown: list[dict], phonemes: dict[str, list[str]]) -> dict:
    """Phoneme error rates from sequences of features.

    Raises:
        TaaeInputError: if there are no phonemes of these utterances.
    """
    known, unknown = ([row for row in rows if row["id"] in phonemes] for rows in (known, unknown))
    if not known or not unknown:
        raise TaaeInputError("--phonemes: has no phonemes of the utterances to train or to test on; check the ids")
    return {
        kind: phoneme_error_rate(*([(row[kind], phonemes[row["id"]]) for row in rows] for rows in (known, unknown)))
        for kind in ("tokens", "log-mel")
    }


def read_phonemes(table: str, source: str) -> dict[str, list[str]]:
    """Phonemes by utterance, stress marks and word boundaries left out."""
    rows = parquet.read_table(table, columns=["id", "source", "phonemes"]).to_pylist()
    told = {row["id"]: row["phonemes"] for row in rows if row["source"] == source and row["phonemes"]}
    return {name: [phone.strip("012") for phone in text.split() if phone != "|"] for name, text in told.items()}


def main(arguments: list[str] | None = None) -> int:
    """Probes, writes and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make_probes.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument(
        "--speech", nargs="+", required=True, metavar="FILES", help="utterances to classify and test on"
    )
    parser.add_argument("--phonemes", metavar="FILE", help="Parquet file with columns id, source and phonemes")
    parser.add_argument("--source", default="speechocean762", help="whose phonemes (default: speechocean762)")
    parser.add_argument(
        "--train", nargs="+", default=[], metavar="FILES", help="utterances to train the phoneme probe on"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N utterances of each only")
    options = parser.parse_args(arguments)
    try:
        codec = load_codec(str(options.folder), device="cpu")
        rows = features_of(codec, options.speech, options.limit)
        results = {"model_identity": codec.identity, "bottleneck": codec.model.config.bottleneck}
        results |= probe_utterances(rows)
        if options.phonemes:
            known = features_of(codec, options.train, options.limit)
            results["phonemes"] = probe_phonemes(known, rows, read_phonemes(options.phonemes, options.source))
    except TaaeInputError as error:
        print(f"make_probes.py: error: {error}", file=sys.stderr)
        return 2
    content = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_bytes(options.folder / "results" / "probes.json", content.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
