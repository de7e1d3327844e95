"""Measures the size of `.taae` files: `python training/measure.py file_sizes FOLDER --speech FILES`.

Encodes speech with every bottleneck. Writes each clip as files of version 1 and, with the model's prior, of version 2,
reads them back, and fails if one differs. Writes results/entropy.json in the model's folder, and the table in
docs/taae_format.md if that page has a place for the model.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from modeling_taae.codec import Codec, load_codec
from modeling_taae.entropy.prior import PRIOR_FILE, EntropyPrior
from modeling_taae.entropy.statistics import token_statistics
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.report import table
from modeling_taae.taae_file import CODED_BOTTLENECKS, TaaeFile, pack_tokens
from training.benchmarks.runner import ROOT, Measurement, clips_of


def measure(codec: Codec, prior: EntropyPrior, clips: list[TaaeFile]) -> dict:
    """Sizes of the files of clips at one bottleneck.

    Returns:
        `nominal_bit_rate`, the rate if all tokens were equally likely. `entropy_bit_rate` and `conditional_bit_rate`,
        the entropy of these tokens' digits alone and given the digit of the previous frame. `version_1` and
        `version_2`, each with `payload` (only the tokens) and `file`, which have `bytes`, `bit_rate` and `saved`, a
        share of the nominal rate. `joined`, the same for one file with all clips. All rates are in bit/s.

    Raises:
        TaaeInputError: if a file that is read back differs from what was written.
    """
    first, seconds = clips[0], sum(clip.duration for clip in clips)

    def rates(sizes: list[int]) -> dict:
        rate = 8 * sum(sizes) / seconds
        return {"bytes": sum(sizes), "bit_rate": rate, "saved": 1 - rate / first.bit_rate}

    packed, coded = [clip.to_bytes() for clip in clips], [clip.to_bytes(prior) for clip in clips]
    for clip, files in zip(clips, zip(packed, coded, strict=True), strict=True):
        for file in files:
            if not np.array_equal(TaaeFile.from_bytes(file, prior).audio_codes, clip.audio_codes):
                raise TaaeInputError(
                    "a file that was read back differs from what was written; this is a bug in the entropy coder"
                )
    payloads = [len(prior.encode(clip.audio_codes, str(clip.bottleneck)) or b"") for clip in clips]
    statistics = token_statistics(
        [clip.audio_codes for clip in clips], codec.model.bottleneck(first.bottleneck), codec.model.config.frame_rate
    )
    joined = np.concatenate([clip.audio_codes for clip in clips], axis=1)
    whole = replace(first, audio_codes=joined, num_samples=joined.shape[1] * first.hop_length)
    return {
        "nominal_bit_rate": first.bit_rate,
        "entropy_bit_rate": statistics["entropy_bit_rate"],
        "conditional_bit_rate": statistics["conditional_bit_rate"],
        "version_1": {
            "payload": rates([len(pack_tokens(clip.audio_codes, clip.vocabulary_sizes)) for clip in clips]),
            "file": rates([len(file) for file in packed]),
        },
        "version_2": {
            "payload": rates(payloads),
            "file": rates([len(file) for file in coded]),
            "joined": rates([len(whole.to_bytes(prior))]),
        },
    }


def measure_all(codec: Codec, sources: list[str], limit: int | None) -> dict:
    """Sizes of the files of speech by bottleneck, with the facts of the measurement.

    Raises:
        TaaeInputError: if the model has no prior, or there is no readable speech.
    """
    if (prior := codec.prior) is None:
        raise TaaeInputError(f"{codec.folder}: has no {PRIOR_FILE}; make it with training/make_entropy_prior.py")
    bottlenecks = [name for name in CODED_BOTTLENECKS if prior.can_encode(name)]
    if not bottlenecks:
        raise TaaeInputError("the range encoder is missing; install the package constriction")
    clips: dict[str, list[TaaeFile]] = {name: [] for name in bottlenecks}
    for audio in clips_of(codec, sources, limit):
        for name in bottlenecks:
            clips[name].append(codec.encode(audio, name))
    heard = clips[bottlenecks[0]]
    return {
        "model_identity": codec.identity,
        "prior_identity": prior.identity,
        "speech": [Path(source).name for source in sources],
        "utterances": len(heard),
        "seconds": sum(clip.duration for clip in heard),
        "frames": sum(clip.frames for clip in heard),
        "bottlenecks": {name: measure(codec, prior, clips[name]) for name in bottlenecks},
    }


def entropy_table(results: dict) -> str:
    """The results as Markdown."""
    heading = ["bit/s", "nominal", "version 1", "version 2", "its tokens", "files save", "tokens save", "in one file"]
    rows = []
    for name, sizes in results["bottlenecks"].items():
        payload, file, joined = (sizes["version_2"][part] for part in ("payload", "file", "joined"))
        rates = (payload["bit_rate"], joined["bit_rate"])
        files = (sizes["nominal_bit_rate"], sizes["version_1"]["file"]["bit_rate"], file["bit_rate"])
        tokens, together = (f"{rate:.0f}" for rate in rates)
        saved = (f"{100 * part['saved']:.1f} %" for part in (file, payload))
        rows.append([f"`{name}`", *(f"{rate:.0f}" for rate in files), tokens, *saved, together])
    return (
        f"{table(heading, rows)}\n\n"
        f"{results['utterances']} utterances of {', '.join(f'`{name}`' for name in results['speech'])}, "
        f"{results['seconds'] / 60:.1f} minutes: whole files, an utterance each, and in version 2 "
        "their tokens alone; what either saves of the nominal rate; and all tokens in one file of version 2. "
        f"Model {results['model_identity']}, prior {results['prior_identity']}."
    )


MEASUREMENT = Measurement(
    "file_sizes",
    "Measures the size of `.taae` files.",
    "entropy.json",
    lambda options: measure_all(load_codec(str(options.folder), device="cpu"), options.speech, options.limit),
    entropy_table,
    ROOT / "docs" / "taae_format.md",
    "entropy",
)
main = MEASUREMENT.run
