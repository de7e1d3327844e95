"""Makes training shards of public speech: `python training/corpora/prepare.py NAME … -o FOLDER`.

NAME is an entry of the manifest, which lies beside this file or is named with --manifest. Its repository is fetched
with git at the manifest's commit, or read from a local copy (--git). Recordings are converted to mono and 16 kHz, and
trimmed; broken ones are left out and counted. FOLDER receives Parquet shards with the columns audio, id, speaker_id,
language, source, license, gender, duration, native_sampling_rate, joined, kind and text. It also receives NAME.json
with the licence, attribution and counts; model cards copy them.

Test speakers are left out: those listed in kept_aside.json, and those of the files named with --held_out.
"""

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
from pyarrow import parquet
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's training/ is not installed

from modeling_taae.audio_io import sound_file
from modeling_taae.errors import TaaeInputError
from modeling_taae.files import as_json, write_bytes
from training.corpora.cleaning import LONGEST, RATE, clipped_share, fault, parts, resampled, trimmed
from training.corpora.manifest import KEPT_ASIDE, MANIFEST, SourceEntry, read_kept_aside, read_manifest
from training.corpora.recordings import Recording, recordings_of
from training.corpora.repository import GitFiles, files_of

SHARD_SECONDS = 2 * 3600
JOINED_SECONDS, FADE = 7, 160  # seconds of recordings that are joined from words, and samples of a fade
LEAST_SECONDS = {"words": 0.4}  # shortest recording, by reader; 1 for the others
CODECS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
SCHEMA = pa.schema(
    [
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *((name, pa.string()) for name in ("id", "speaker_id", "language", "source", "license", "gender")),
        ("duration", pa.float32()),
        ("native_sampling_rate", pa.int32()),
        ("joined", pa.int32()),
        ("kind", pa.string()),
        ("text", pa.string()),
    ]
)


@dataclass(frozen=True)
class Choice:
    """The recordings of a source to take.

    Args:
        part: "train" takes all but the speakers kept aside. The name of a list in `kept_aside`, such as "test", takes
            only its speakers.
        kept_aside: speakers kept out of training, by part.
        held_out_speakers, held_out_ids: further speakers and recordings to leave out.
        skipped_languages: languages to leave out.
        max_speaker_minutes: maximum minutes of one speaker; None takes all.
        limit: maximum number of recordings; None takes all.
    """

    part: str = "train"
    kept_aside: dict[str, set[str]] = field(default_factory=dict)
    held_out_speakers: frozenset[str] = frozenset()
    held_out_ids: frozenset[str] = frozenset()
    skipped_languages: frozenset[str] = frozenset()
    max_speaker_minutes: float | None = None
    limit: int | None = None

    def refusal(self, recording: Recording, seconds: dict[str, float]) -> str | None:
        """Returns why a recording is not taken; None if it is.

        Args:
            recording: the recording.
            seconds: seconds taken of each speaker so far.
        """
        if recording.language in self.skipped_languages:
            return "language left out"
        if recording.id in self.held_out_ids or recording.speaker in self.held_out_speakers:
            return "held out"
        if self.part == "train":
            if any(recording.speaker in speakers for speakers in self.kept_aside.values()):
                return "speaker kept aside"
        elif recording.speaker not in self.kept_aside[self.part]:
            return "speaker of another part"
        limit = self.max_speaker_minutes
        if limit is not None and recording.speaker and seconds.get(recording.speaker, 0.0) > 60 * limit:
            return "speaker has enough"
        return None


@dataclass
class PreparedSource:
    """The summary of a prepared source, written as NAME.json beside its shards.

    Args:
        name: name of the entry.
        source, license, attribution, repository, commit: the manifest's fields.
        recordings: number of recordings in the repository.
        rows: number of rows in the shards.
        hours: duration of the rows.
        speakers: number of known speakers.
        languages: languages of the rows.
        left_out: number of recordings, or parts of recordings, that were left out, by reason.
    """

    name: str
    source: str
    license: str
    attribution: str
    repository: str
    commit: str
    recordings: int
    rows: int
    hours: float
    speakers: int
    languages: list[str]
    left_out: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        return (
            f"{self.name}: {self.rows:,} rows, {self.hours:.2f} hours, {self.speakers:,} speakers, "
            f"{len(self.languages)} language{'s' * (len(self.languages) != 1)} of {self.recordings:,} recordings"
            + (f"; left out: {left_out}" if left_out else "")
        )


def prepare_source(
    entry: SourceEntry, files: GitFiles, output: Path, choice: Choice | None = None, codec: str = "flac"
) -> PreparedSource:
    """Makes shards of a source.

    Args:
        entry: the source.
        files: files of its repository.
        output: folder for the shards, created if missing.
        choice: recordings to take; None takes all.
        codec: "flac", or "opus" for a sixth of the size.

    Raises:
        TaaeInputError: if no recording is left, or the choice names an unknown part.
    """
    choice = choice or Choice()
    if choice.part != "train" and choice.part not in choice.kept_aside:
        raise TaaeInputError(f"There is no part {choice.part!r}; choose train or {', '.join(choice.kept_aside)}.")
    recordings = recordings_of(entry, files)
    # Shuffled, so that the first recordings, and any shard, are a fair sample.
    np.random.default_rng(0).shuffle(recordings)  # type: ignore[arg-type]
    left_out: Counter[str] = Counter()
    found = cleaned(entry, files, recordings, choice, left_out)
    rows = [row_of(entry, each, codec) for each in (joined(found) if entry.reader == "words" else found)]
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no path fits its pattern"
        raise TaaeInputError(f"{entry.name}: nothing is left of {len(recordings)} recordings ({reasons})")
    write_shards(rows, output, entry.name)
    prepared = PreparedSource(
        entry.name,
        entry.source,
        entry.license,
        entry.attribution,
        entry.repository,
        entry.commit,
        len(recordings),
        len(rows),
        round(sum(row["duration"] for row in rows) / 3600, 4),
        len({row["speaker_id"] for row in rows} - {""}),
        sorted({row["language"] for row in rows}),
        dict(left_out),
    )
    write_bytes(output / f"{entry.name}.json", as_json(prepared.to_json()))
    return prepared


@dataclass
class CleanRecording:
    """A cleaned recording, ready for training.

    Args:
        about: description of the original recording.
        id: id of the row; a part of a recording has its own.
        samples: (samples,) float32 at 16 kHz.
        native_rate: original sampling rate, in Hz.
        joined: number of recordings joined into it.
    """

    about: Recording
    id: str
    samples: np.ndarray
    native_rate: int
    joined: int = 1


def cleaned(
    entry: SourceEntry, files: GitFiles, recordings: list[Recording], choice: Choice, left_out: Counter[str]
) -> Iterator[CleanRecording]:
    """Yields the chosen recordings that are fit for training, and counts the others by reason."""
    seconds: dict[str, float] = {}
    seen: set[bytes] = set()
    taken, least = 0, LEAST_SECONDS.get(entry.reader, 1.0)
    for recording in tqdm(recordings, entry.name, unit="recording", disable=None):
        if taken == choice.limit:
            return
        if (reason := choice.refusal(recording, seconds)) is not None:
            left_out[reason] += 1
            continue
        content = files.read(recording.path)
        if content is None or content in seen:
            left_out["missing" if content is None else "duplicate"] += 1
            continue
        seen.add(content)
        try:
            original, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError):
            left_out["cannot be decoded"] += 1
            continue
        mono = original.mean(axis=1)
        samples, clipped = trimmed(resampled(mono, rate)), clipped_share(mono)
        cut = len(samples) > LONGEST
        for number, part in enumerate(parts(samples)):
            if (reason := fault(part, clipped, entry.min_range_db, entry.min_band_db, least)) is not None:
                left_out[reason] += 1
                continue
            seconds[recording.speaker] = seconds.get(recording.speaker, 0.0) + len(part) / RATE
            taken += 1
            yield CleanRecording(recording, f"{recording.id}_{number}" if cut else recording.id, part, rate)


def joined(words: Iterable[CleanRecording]) -> Iterator[CleanRecording]:
    """Joins words of one speaker and language to recordings of several seconds."""
    waiting: dict[tuple[str, str], list[CleanRecording]] = {}
    for word in words:
        group = waiting.setdefault((word.about.speaker, word.about.language), [])
        group.append(word)
        if sum(len(each.samples) for each in group) > JOINED_SECONDS * RATE:
            yield join(group)
            group.clear()
    yield from (join(group) for group in waiting.values() if group)


def join(words: list[CleanRecording]) -> CleanRecording:
    """Joins words one after the other, each faded in and out."""
    rising = np.linspace(0, 1, FADE, dtype=np.float32)
    faded = []
    for word in words:
        samples = word.samples.copy()
        samples[:FADE] *= rising
        samples[-FADE:] *= rising[::-1]
        faded.append(samples)
    first = words[0]
    return CleanRecording(first.about, first.id, np.concatenate(faded), first.native_rate, len(words))


def row_of(entry: SourceEntry, recording: CleanRecording, codec: str) -> dict[str, Any]:
    """Makes a row of a shard. Parts and joined words have no text, because the original text does not match them."""
    container, subtype = CODECS[codec]
    encoded, about = sound_file(recording.samples, RATE, container, subtype), recording.about
    whole = recording.id == about.id and recording.joined == 1
    return {
        "audio": {"bytes": encoded, "path": f"{recording.id}.{container.lower()}"},
        "id": recording.id,
        "speaker_id": about.speaker,
        "language": about.language,
        "source": entry.source,
        "license": entry.license,
        "gender": about.gender,
        "duration": len(recording.samples) / RATE,
        "native_sampling_rate": recording.native_rate,
        "joined": recording.joined,
        "kind": "speech",
        "text": about.text if whole else None,
    }


def write_shards(rows: list[dict[str, Any]], output: Path, name: str) -> None:
    """Shuffles rows and writes shards of about two hours, which replace those of an earlier preparation."""
    order = np.random.default_rng(1).permutation(len(rows))
    shards = max(1, round(sum(row["duration"] for row in rows) / SHARD_SECONDS))
    written = set()
    for number, chosen in enumerate(np.array_split(order, shards)):
        content = io.BytesIO()
        table = pa.Table.from_pylist([rows[index] for index in chosen], schema=SCHEMA)
        parquet.write_table(table, content, compression="none")
        target = output / f"{name}-{number:05d}-of-{shards:05d}.parquet"
        write_bytes(target, content.getvalue())
        written.add(target)
    for old in set(output.glob(f"{name}-[0-9]*-of-*.parquet")) - written:
        old.unlink()


def held_out(files: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Reads the speakers and the ids of Parquet files with test data.

    Raises:
        TaaeInputError: if a file has no such columns.
    """
    speakers: set[str] = set()
    ids: set[str] = set()
    for file in files:
        try:
            table = parquet.read_table(file, columns=["id", "speaker_id"])
        except (OSError, pa.ArrowException, KeyError) as error:
            raise TaaeInputError(f"{file}: cannot be read as Parquet with id and speaker_id ({error})") from error
        speakers |= set(filter(None, table["speaker_id"].to_pylist()))
        ids |= set(table["id"].to_pylist())
    return frozenset(speakers), frozenset(ids)


def make_parser() -> argparse.ArgumentParser:
    """Makes the command's parser."""
    parser = argparse.ArgumentParser(prog="prepare.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries of the manifest (default: list them)")
    parser.add_argument("-o", "--output", type=Path, default=Path("speech"), metavar="FOLDER", help="for shards")
    parser.add_argument(
        "--manifest",
        type=Path,
        default=MANIFEST,
        metavar="FILE",
        help="manifest to read (default: the one beside this script)",
    )
    parser.add_argument(
        "--git", type=Path, metavar="FOLDER", help="local copy of the repository; needs exactly one NAME"
    )
    parser.add_argument("--newest", action="store_true", help="take the newest commit of --git")
    parser.add_argument(
        "--codec", choices=sorted(CODECS), default="flac", help="audio format of the shards (default: flac)"
    )
    parser.add_argument("--part", default="train", help="train, or a list in --kept_aside, such as test")
    parser.add_argument("--kept_aside", type=Path, default=KEPT_ASIDE, metavar="FILE", help="JSON lists of speakers")
    parser.add_argument(
        "--held_out",
        nargs="+",
        default=[],
        metavar="FILE",
        help="Parquet files with test data; their speakers are left out",
    )
    parser.add_argument("--skip_languages", nargs="+", default=[], metavar="CODE", help="languages to leave out")
    parser.add_argument("--max_speaker_minutes", type=float, metavar="M", help="maximum minutes of one speaker")
    parser.add_argument("--limit", type=int, metavar="N", help="maximum recordings of each source")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prepares sources, or lists them, and returns the exit status: 2 for an error."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.git and len(options.names) != 1:
        parser.error("--git needs exactly one NAME")
    try:
        entries = read_manifest(options.manifest)
        if unknown := sorted(set(options.names) - entries.keys()):
            raise TaaeInputError(f"{options.manifest} has no {unknown[0]!r}, only {', '.join(entries)}")
        if not options.names:
            for entry in entries.values():
                print(json.dumps({"name": entry.name, "license": entry.license, "attribution": entry.attribution}))
        speakers, ids = held_out(options.held_out)
        skipped, aside = frozenset(options.skip_languages), read_kept_aside(options.kept_aside)
        limits = (options.max_speaker_minutes, options.limit)
        choice = Choice(options.part, aside, speakers, ids, skipped, *limits)
        for name in options.names:
            entry = entries[name]
            with files_of(entry.repository, entry.commit, options.git, options.newest) as files:
                print(prepare_source(entry, files, options.output, choice, options.codec))
    except (TaaeInputError, OSError) as error:
        print(f"prepare.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
