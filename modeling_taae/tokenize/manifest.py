"""The manifest of a token folder: its sources, its settings, and the content of each of its files.

Each class is a part of `manifest.json`, except for [`Reject`], a line of `rejects.jsonl`. `to_json` returns it as a
dictionary for JSON; `from_json` reads that dictionary.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import TaaeInputError, one_line
from ..files import read_json
from ..identity import TokenSource
from ..records import read_fields

FORMAT = "taae tokens, version 1"
MANIFEST, REJECTS, CARD, REPORT = "manifest.json", "rejects.jsonl", "README.md", "report.json"


@dataclass(frozen=True)
class ModelFacts:
    """The model that made the tokens.

    Args:
        name: the name of its folder, or its name on the Hub.
        identity: the identity of its weights.
        sampling_rate: samples per second, in Hz.
        hop_length: samples per frame.
        frame_rate: frames per second, in Hz.
        token_identity: the identity of the tokens; None in older manifests.
        ancestors: the identities of the models with the same tokens, oldest first.
    """

    name: str
    identity: str
    sampling_rate: int
    hop_length: int
    frame_rate: float
    token_identity: str | None = None
    ancestors: list[str] = field(default_factory=list)

    @property
    def token_source(self) -> TokenSource:
        """The source of the tokens: model, encoder and grid."""
        return TokenSource(self.identity, self.token_identity, tuple(self.ancestors))

    def to_json(self) -> dict[str, Any]:
        """Returns the model as a dictionary, without unknown values."""
        content = asdict(self)
        return {name: value for name, value in content.items() if value is not None and value != []}


@dataclass(frozen=True)
class BottleneckFacts:
    """The bottleneck that made the tokens.

    Args:
        name: a preset's name, `"native"`, or stages as text.
        vocabulary_sizes: the number of codes of each stage.
        bit_rate: bits per second if all codes were equally likely.
    """

    name: str
    vocabulary_sizes: list[int]
    bit_rate: float


@dataclass(frozen=True)
class SourceFacts:
    """A source of the corpus.

    Args:
        name: the name of its file or folder, or its name on the Hub.
        units: the number of its units.
        fingerprint: a text that changes with the source's content.
    """

    name: str
    units: int
    fingerprint: str


@dataclass(frozen=True)
class Shard:
    """A Parquet file of tokens.

    Args:
        file: its path in the folder.
        rows: the number of its rows.
        frames: the number of frames in all rows.
        seconds: the audio in all rows, in seconds.
        bytes: its size in bytes.
        sha256: the checksum of its content.
    """

    file: str
    rows: int
    frames: int
    seconds: float
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Reject:
    """A row without tokens.

    Args:
        id: the row's id.
        source: the file that contains the row.
        reason: the reason why it has no tokens: a kind, a colon and details.
    """

    id: str
    source: str
    reason: str

    @property
    def kind(self) -> str:
        """The kind of the reason, such as `bad audio`."""
        return self.reason.split(":")[0]

    def to_json(self) -> dict[str, str]:
        """Returns the reject as a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """The settings that the shards depend on; they must not change while a folder is being made.

    Args:
        model: the identity of the model's weights.
        bottleneck: a preset's name, `"native"`, or stages as text.
        loudness: the loudness to which clips are normalised, in LUFS; None if they are left unchanged.
        dtype: the model's dtype.
        device: the type of device that the model runs on.
        source: the fingerprint of each source, and the number of its units.
        split: the split's name.
        subset: the data set's subset.
        audio_column: the column with the audio.
        id_column: the column with ids, if it was named.
        shortest: minimum duration in seconds; shorter clips are rejected.
        shard_hours: hours of audio in a shard.
        channel: the channel of recordings that was read, counted from 1; None for the mean of all.
        compile: whether the model's layers were compiled.
    """

    model: str
    bottleneck: str
    loudness: float | None
    dtype: str
    device: str
    source: list[str]
    split: str
    subset: str | None
    audio_column: str
    id_column: str | None
    shortest: float
    shard_hours: float
    channel: int | None = None
    compile: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as a dictionary with readable names."""
        # Later settings are left out at their defaults, as in the plans of versions that do not know them.
        values = {name: value for name, value in asdict(self).items() if LATER.get(name, ...) != value}
        return {PLAN_NAMES.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Plan":
        """Reads a plan."""
        named = {field.name: PLAN_NAMES.get(field.name, field.name) for field in fields(cls)}
        return cls(**read_fields(cls, {field: content[name] for field, name in named.items() if name in content}))


LATER = {"channel": None, "compile": False}  # settings that plans of earlier versions do not have, with their defaults
PLAN_NAMES = {
    "audio_column": "audio column",
    "id_column": "id column",
    "shortest": "minimum of seconds",
    "shard_hours": "number of hours in a shard",
}


@dataclass(frozen=True)
class Manifest:
    """A complete corpus of tokens.

    Args:
        versions: the versions of the packages that made it.
        model: the model.
        bottleneck: the bottleneck.
        sources: the sources.
        plan: the settings.
        columns: the names of the shards' columns.
        fingerprint: the start of a SHA-256 over the shards' checksums; it is part of the shards' names.
        shards: the files.
        rejected: the number of rejected rows for each kind of reason.
        format: the manifest's own version.
    """

    versions: dict[str, str]
    model: ModelFacts
    bottleneck: BottleneckFacts
    sources: list[SourceFacts]
    plan: Plan
    columns: list[str]
    fingerprint: str
    shards: list[Shard]
    rejected: dict[str, int]
    format: str = FORMAT

    @property
    def split(self) -> str:
        """The split's name."""
        return self.plan.split

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def frames(self) -> int:
        """The number of frames."""
        return sum(shard.frames for shard in self.shards)

    @property
    def seconds(self) -> float:
        """The audio in all rows, in seconds."""
        return round(sum(shard.seconds for shard in self.shards), 3)

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as a dictionary."""
        return {
            "format": self.format,
            "versions": self.versions,
            "model": self.model.to_json(),
            "bottleneck": asdict(self.bottleneck),
            "sources": [asdict(source) for source in self.sources],
            "plan": self.plan.to_json(),
            "split": self.split,
            "columns": self.columns,
            "rows": self.rows,
            "frames": self.frames,
            "seconds": self.seconds,
            "fingerprint": self.fingerprint,
            "shards": [asdict(shard) for shard in self.shards],
            "rejected": self.rejected,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Manifest":
        """Reads a manifest.

        Raises:
            ValueError: if it has another format, or its parts contradict each other.
            KeyError, TypeError, AttributeError: if a part is missing, or of another type.
        """
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        manifest = cls(**read_fields(cls, content))
        told_twice = {name: content[name] for name in ("split", "rows", "frames", "seconds")}
        told_twice |= {"model": manifest.plan.model, "bottleneck": manifest.plan.bottleneck}
        computed = {name: getattr(manifest, name) for name in ("split", "rows", "frames", "seconds")}
        computed |= {"model": manifest.model.identity, "bottleneck": manifest.bottleneck.name}
        if differing := [name for name, value in told_twice.items() if value != computed[name]]:
            raise ValueError(f"it contradicts itself about {', '.join(differing)}")
        return manifest


def read_manifest(folder: str | Path) -> Manifest | None:
    """Reads a token folder's manifest; None if there is none, as in an incomplete folder.

    Raises:
        TaaeInputError: if it is damaged, or was written by another program.
    """
    path = Path(folder) / MANIFEST
    if not (content := read_json(path)):
        return None
    try:
        return Manifest.from_json(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"it has no {error.args[0]!r}" if isinstance(error, KeyError) else one_line(error)
        raise TaaeInputError(
            f"{path}: is no manifest of `taae tokenize` ({reason}); restore it, or make the folder again"
        ) from error
