"""The manifest: a line of JSON for each source of speech. Replace lines to train on sources in your language."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

from modeling_taae.errors import TaaeInputError

MANIFEST = Path(__file__).with_name("manifest.jsonl")
KEPT_ASIDE = Path(__file__).with_name("kept_aside.json")
READERS = ("common_voice", "plain", "words")


@dataclass(frozen=True)
class SourceEntry:
    """A source of speech: recordings in a public Git repository.

    Args:
        name: name of the entry, and of its shards.
        repository: `owner/name` on GitHub, or an address that `git fetch` takes.
        commit: the full hash of the commit that is read.
        pattern: regular expression of the recordings' paths.
        reader: "plain" (a file is an utterance), "words" (single words, which are joined), or "common_voice" (speakers
            and texts are in Mozilla's tables).
        language: language code; `{folder}` in it stands for the first folder of a path.
        source: name of the source in cards and rows.
        license: licence of the recordings, an SPDX identifier.
        attribution: attribution that the licence requires.
        tables: Mozilla's tables for "common_voice"; `{folder}` as above. Those named "invalidated" are left out.
        speaker: the one speaker of all recordings.
        speaker_pattern: regular expression whose first group matches the speaker in a path.
        speaker_prefix: prefix of the speakers that `speaker_pattern` finds.
        gender: "f" or "m" if all recordings have the same.
        min_range_db: smallest level difference between loud and quiet frames, in dB. Recordings below it are left out
            as noisy.
        min_band_db: lowest level at 6 to 7 kHz relative to 0.1 to 4 kHz, in dB. Recordings below it are left out as
            narrow-band.
        notes: notes for readers.
    """

    name: str
    repository: str
    commit: str
    pattern: str
    reader: str
    language: str
    source: str
    license: str
    attribution: str
    tables: list[str] = field(default_factory=list)
    speaker: str = ""
    speaker_pattern: str = ""
    speaker_prefix: str = ""
    gender: str = ""
    min_range_db: float = 25.0
    min_band_db: float = -46.0
    notes: str = ""

    @classmethod
    def from_json(cls, line: str, place: str) -> Self:
        """Reads a line of a manifest.

        Args:
            line: the line.
            place: the line's place, for errors.

        Raises:
            TaaeInputError: if the line is not an entry.
        """
        try:
            values = json.loads(line)
            if unknown := sorted(values.keys() - {each.name for each in fields(cls)}):
                raise TypeError(f"unknown field {unknown[0]!r}")
            entry = cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise TaaeInputError(f"{place}: is not an entry of a manifest ({error})") from error
        if entry.reader not in READERS:
            raise TaaeInputError(f"{place}: unknown reader {entry.reader!r}; choose from {', '.join(READERS)}")
        return entry


def read_manifest(file: Path = MANIFEST) -> dict[str, SourceEntry]:
    """Reads the entries of a manifest, by name.

    Raises:
        TaaeInputError: if it cannot be read, or a line is not an entry.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaaeInputError(
            f"{file}: cannot be read ({error}); expected a manifest, with a line of JSON for each source"
        ) from error
    entries = [SourceEntry.from_json(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    return {entry.name: entry for entry in entries}


def read_kept_aside(file: Path = KEPT_ASIDE) -> dict[str, set[str]]:
    """Reads the speakers kept out of training: those of the `test` part, and those of no part (`never`).

    Raises:
        TaaeInputError: if the list cannot be read.
    """
    try:
        return {part: set(speakers) for part, speakers in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise TaaeInputError(f"{file}: cannot be read as lists of speakers by part ({error})") from error
