"""`taae tokenize`: turns a corpus of recorded speech into a data set of tokens."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .options import (
    COMPILE_HELP,
    SHORTEST,
    add_corpus_options,
    add_encoding_options,
    add_model_options,
    number,
    split_name,
    whole_number,
)

if TYPE_CHECKING:
    from ..tokenize import Manifest
    from ..tokenize.report import Report

SUMMARY = "turn a corpus into a data set of tokens"
EXAMPLES = """\
  taae tokenize recordings/ -o tokens                        a folder of audio, searched to any depth
  taae tokenize 'train-*.parquet' -o tokens --bottleneck 2x15625_700bps
  taae tokenize shards/ -o tokens --ray local                WebDataset tars, on all cores or GPUs of this machine
  taae tokenize facebook/voxpopuli --subset nl --split train -o tokens --ray head-node:6379

To resume an interrupted run, give the same command again, with or without --ray. The machines of a Ray cluster need
this package, and the source and the model at the same paths. If the cluster requires a token, set RAY_AUTH_MODE=token.

Sources
  folder     audio, Parquet and .tar files at any depth, with their texts and other facts: metadata.csv, .jsonl or
             .parquet with a column file_name; a.txt or a.json beside a.wav; the lists and folders of Common Voice,
             LJSpeech, LibriSpeech, VCTK, NeMo, Moshi and Kaldi; and folders of `save_to_disk` of `datasets`. A row
             with an offset and a duration is that part of its file. With --split, the folder is read as a data set
  list       .csv, .tsv, .jsonl or .json with a column of file names: only the files that it names
  .parquet   a column holds audio: the bytes or paths of files, the Audio feature of `datasets`, or samples beside
             their sampling_rate
  .tar       WebDataset: a.flac is a recording, a.json, a.txt and a.cls describe it; also .tar.gz, .tar.xz
  NAME       a data set on the Hub, which is streamed

Only files below the source or --audio-root are opened, whatever its tables name. Files in a folder that are not read,
such as a .zip, are listed.

Output
  data/          Parquet: id, codes (frames x tokens per frame), frames, duration in seconds, and the source's columns
                 except the audio; columns with one of these names are kept as source_codes, source_duration, ...
  manifest.json  model, settings, counts, checksums
  README.md      the data set's card; load_dataset("tokens") works, and so does `taae push tokens ...`
  rejects.jsonl  rows without tokens: id, source and reason, which is one of missing, bad audio (not decodable, cut off,
                 not finite), bad text (of an archive), too short, silent, or damaged (the rest of a Parquet or tar
                 file cannot be read)
  report.json    the speed of the run

A row's id is the source's if it has one, else the file's name and the row's position in it. If several rows have the
same id, the second becomes id#2, and so on. A file that several sources name is read once."""
EXTRA = "data"
INTERRUPTED = "the same command resumes from here"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_model_options(parser)
    add_encoding_options(parser)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="audio, Parquet or .tar files, folders of them, or a Hub data set")
    add("-o", "--output", metavar="DIR", required=True, help="folder to make; an interrupted run in it is resumed")
    add("--split", type=split_name, help="split of a data set, and name of the output's split (default: train)")
    add_corpus_options(parser)
    add("--id-column", metavar="C", help="column with ids (default: id, utterance_id or segment_id if there is one)")
    add("--min-seconds", type=number(0), default=0.4, metavar="S", help="reject shorter clips (default: 0.4)")
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="dtype of the model: bfloat16 is faster on a GPU and changes some tokens (default: float32)",
    )
    add("--compile", action="store_true", help=COMPILE_HELP)
    add(
        "--readers",
        type=whole_number(1),
        metavar="N",
        help="threads that decode audio (default: 8 with a GPU, else 1)",
    )
    add(
        "--shard-hours",
        type=number(SHORTEST),
        default=100.0,
        metavar="H",
        help="hours of audio per file (default: 100)",
    )
    add("--license", metavar="L", help="licence of the recordings, as an identifier of the Hub: cc-by-4.0, ...")
    add("--ray", metavar="ADDRESS", help="use a Ray cluster: its head's address, auto, or local for this machine")
    add("--workers", type=whole_number(1), metavar="N", help="number with --ray (default: all GPUs, or all cores)")
    price = "price per hour of a GPU or core, to estimate the cost of a million hours"
    add("--price-per-hour", type=number(0), metavar="P", help=price)


def run(args: argparse.Namespace) -> int:
    """Tokenises as the arguments say and returns the exit status.

    Raises:
        TaaeInputError: if the model, a source, the folder or an option cannot be used, or no row could be tokenised.
    """
    from .progress import telling

    with telling("starting", args.patience):
        from ..files import read_json
        from ..tokenize import read_manifest, tokenize_corpus
        from ..tokenize.manifest import REPORT
        from ..tokenize.report import Report

    was_complete = read_manifest(args.output) is not None
    manifest = tokenize_corpus(
        args.sources,
        args.output,
        args.model,
        bottleneck=args.bottleneck,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        loudness=args.loudness,
        split=args.split,
        subset=args.subset,
        audio_column=args.audio_column,
        id_column=args.id_column,
        audio_root=args.audio_root,
        channel=args.channel,
        shortest=args.min_seconds,
        shard_hours=args.shard_hours,
        readers=args.readers,
        license=args.license,
        price_per_hour=args.price_per_hour,
        ray=args.ray,
        workers=args.workers,
    )
    if was_complete:
        print(f"{args.output}: is complete, nothing is left to do")
        return 0
    report = Report.from_json(read_json(Path(args.output) / REPORT))
    print(*summary(args.output, manifest, report), sep="\n")
    if args.license is None:
        print("no licence is named, so these tokens cannot be pushed to the Hub; give the same command with --license")
    return 0


def summary(output: str, manifest: "Manifest", report: "Report") -> Iterator[str]:
    """Yields a few lines about what was done and how fast."""
    from ..errors import printable
    from ..tokenize.manifest import REJECTS

    rows, shards, hours = manifest.rows, len(manifest.shards), manifest.seconds / 3600
    yield f"{output}: {rows:,} rows, {hours:,.2f} hours of speech, {shards:,} shard{'s' if shards > 1 else ''}"
    if manifest.rejected:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in manifest.rejected.items())
        yield f"rejected: {reasons}; see {Path(output) / REJECTS}"
    yield from map(printable, report.notes)
    if (speed := report.measured) is not None:
        unit, million = report.unit, speed.million_hours
        yield (
            f"speed: {speed.speed:,.1f} seconds of audio a second, {speed.speed_per_unit:,.1f} per {unit} without "
            f"start-up; the model was busy for {speed.model_busy_share:.0%} of the time"
        )
        if million.cost is not None:
            work = f"{million.unit_hours:,.0f} hours of a {unit}"
            yield f"a million hours would take {work}, and cost {million.cost:,.2f}"
