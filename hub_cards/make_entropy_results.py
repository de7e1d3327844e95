"""Measures how small `.taae` files are: `python hub_cards/make_entropy_results.py FOLDER --speech FILES`.

Encodes speech with every bottleneck, writes each clip as files of version 1 and, with the model's prior, of version 2,
and reads them back; what does not come back as it was is an error. Writes results/entropy.json in the model's folder.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from modeling_taae.audio_io import TaaeInputError, write_bytes
from modeling_taae.codec import Codec, load_codec
from modeling_taae.entropy_prior import PRIOR_FILE, EntropyPrior
from modeling_taae.taae_file import CODED_BOTTLENECKS, TaaeFile, pack_tokens
from modeling_taae.token_statistics import token_statistics
from modeling_taae.utterances import Utterances


def measure(codec: Codec, prior: EntropyPrior, clips: list[TaaeFile]) -> dict:
    """Sizes of clips of one bottleneck as files.

    Returns:
        `nominal_bit_rate`, were all tokens equally likely; `entropy_bit_rate` and `conditional_bit_rate`, of each digit
        by itself and given that of the frame before, from the statistics of these very tokens; of each version, under
        `version_1` and `version_2`, `payload` (tokens alone) and `file` with `bytes`, `bit_rate` and `saved`, the share
        of the nominal rate; and `joined`, the same of one file that holds all clips. All rates are in bit/s.

    Raises:
        TaaeInputError: if a file is not read as it was written.
    """
    first, seconds = clips[0], sum(clip.duration for clip in clips)

    def rates(sizes: list[int]) -> dict:
        rate = 8 * sum(sizes) / seconds
        return {"bytes": sum(sizes), "bit_rate": rate, "saved": 1 - rate / first.bit_rate}

    packed, coded = [clip.to_bytes() for clip in clips], [clip.to_bytes(prior) for clip in clips]
    for clip, files in zip(clips, zip(packed, coded, strict=True), strict=True):
        for file in files:
            if not np.array_equal(TaaeFile.from_bytes(file, prior).audio_codes, clip.audio_codes):
                raise TaaeInputError("a file is not read as it was written; this is a defect of the coder")
    payloads = [len(prior.encode(clip.audio_codes, clip.bottleneck)) for clip in clips]
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
    """Sizes of speech as files, by bottleneck, and what they were measured on.

    Raises:
        TaaeInputError: if the model has no prior, or there is no speech to be read.
    """
    if (prior := codec.prior) is None:
        raise TaaeInputError(f"{codec.folder}: has no {PRIOR_FILE}; make it with training/make_entropy_prior.py")
    bottlenecks = [name for name in CODED_BOTTLENECKS if prior.can_encode(name)]
    if not bottlenecks:
        raise TaaeInputError("the range encoder is missing; install the package constriction")
    clips = {name: [] for name in bottlenecks}
    for utterance in tqdm(Utterances(sources, codec.extractor.sampling_rate, limit), unit="clip", disable=None):
        for name in bottlenecks if utterance.audio is not None else ():
            clips[name].append(codec.encode(utterance.audio, name))
    if not (heard := clips[bottlenecks[0]]):
        raise TaaeInputError(f"{', '.join(sources)}: holds no speech that can be read")
    return {
        "model_identity": codec.identity,
        "prior_identity": prior.identity,
        "speech": [Path(source).name for source in sources],
        "utterances": len(heard),
        "seconds": sum(clip.duration for clip in heard),
        "frames": sum(clip.frames for clip in heard),
        "bottlenecks": {name: measure(codec, prior, clips[name]) for name in bottlenecks},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and returns the exit status: 2 where that is not possible."""
    parser = argparse.ArgumentParser(prog="make_entropy_results.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("--speech", nargs="+", required=True, metavar="FILES", help="that the prior has not seen")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N utterances only")
    options = parser.parse_args(arguments)
    try:
        results = measure_all(load_codec(str(options.folder), device="cpu"), options.speech, options.limit)
    except TaaeInputError as error:
        print(f"make_entropy_results.py: error: {error}", file=sys.stderr)
        return 2
    write_bytes(options.folder / "results" / "entropy.json", (json.dumps(results, indent=1) + "\n").encode())
    for name, sizes in results["bottlenecks"].items():
        coded = sizes["version_2"]
        print(
            f"{name:15}  nominal {sizes['nominal_bit_rate']:6.1f}  payload {coded['payload']['bit_rate']:6.1f}  "
            f"file {coded['file']['bit_rate']:6.1f}  joined {coded['joined']['bit_rate']:6.1f} bit/s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
