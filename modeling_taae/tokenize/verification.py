"""Verifies a complete token folder against its manifest: no shard is missing, changed, misplaced or unlisted."""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download
from tqdm import tqdm

from ..errors import TaaeInputError, as_text, one_line
from ..files import sha256
from .manifest import MANIFEST, Manifest, Shard, read_manifest

DATA = "data"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
LFS_POINTER = b"version https://git-lfs"
SHOWN = 3  # problems that a message names


def find_tokens(name: str | Path) -> Path:
    """Returns the folder of a corpus of tokens, after downloading it if it is on the Hub.

    Args:
        name: a folder that `taae tokenize` wrote, or a data set's name on the Hub, `owner/name`.

    Raises:
        TaaeInputError: if there is neither.
    """
    if os.path.isdir(name):
        return Path(name)
    if not HUB_NAME.fullmatch(str(name)):
        raise TaaeInputError(f"{name}: is no folder; expected one of `taae tokenize`, or a name on the Hub, owner/name")
    try:
        patterns = [MANIFEST, f"{DATA}/*.parquet"]
        return Path(snapshot_download(str(name), repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # huggingface_hub and its dependencies raise errors of many types
        raise TaaeInputError(
            f"{name}: is no folder, and cannot be downloaded from the Hub ({one_line(error)}); check the name and the "
            "network"
        ) from error


def open_token_folder(folder: str | Path, checked: bool = True) -> Manifest:
    """Returns the manifest of a complete token folder whose shards are those that the manifest lists.

    Args:
        folder: a folder that `taae tokenize` wrote, or that [`find_tokens`] returned.
        checked: whether to compare the shards with the manifest; among several processes, one need do it.

    Raises:
        TaaeInputError: if it is not complete, or [`verify_shards`] fails.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise TaaeInputError(
            f"{folder}: is no complete corpus of tokens; make or finish it with `taae tokenize SPEECH -o {folder}`"
        )
    if checked:
        verify_shards(folder, manifest)
    return manifest


def verify_shards(folder: str | Path, manifest: Manifest) -> None:
    """Checks a token folder's shards against its manifest, reading all bytes.

    Raises:
        TaaeInputError: if a shard is missing or changed, lies outside of the folder, or is not in the manifest.
    """
    if problems := problems_of(Path(folder), manifest):
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise TaaeInputError(
            f"{folder}: does not hold what its {MANIFEST} lists ({'; '.join(problems[:SHOWN])}{more}); restore the "
            "folder, or tokenise into a new one"
        )


def problems_of(folder: Path, manifest: Manifest) -> list[str]:
    """Returns what is wrong with a token folder's shards, after reading all bytes."""
    progress = tqdm(manifest.shards, desc=f"Checking {folder.name}", unit="shard", delay=2, disable=None)
    problems = [problem for shard in progress if (problem := shard_problem(folder, shard))]
    listed = {shard.file for shard in manifest.shards}
    files = [path.relative_to(folder).as_posix() for path in sorted((folder / DATA).rglob("*.parquet"))]
    problems += [f"{as_text(file)} is not in {MANIFEST}" for file in files if file not in listed]
    if fingerprint_of([shard.sha256 for shard in manifest.shards]) != manifest.fingerprint:
        problems.append("its fingerprint is not that of its shards")
    return problems


def shard_problem(folder: Path, shard: Shard) -> str:
    """Returns what is wrong with a shard; empty if nothing is."""
    parts = PurePosixPath(shard.file).parts
    inside = parts[:1] == (DATA,) and ".." not in parts and "\\" not in shard.file and "\0" not in shard.file
    path = folder / shard.file
    # The Hub's cache holds links to its blobs.
    homes = [folder.resolve() / DATA, *([folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
    if not inside or (path.exists() and not any(path.resolve().is_relative_to(home.resolve()) for home in homes)):
        return f"{shard.file[:80]!r} lies outside of the folder {DATA}"
    if not path.is_file():
        return f"{shard.file} is missing"
    if path.stat().st_size != shard.bytes:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{shard.file} is a pointer of Git LFS; fetch its content with `git lfs pull`"
        return f"{shard.file} has {path.stat().st_size:,} bytes, not {shard.bytes:,}"
    return "" if sha256(path) == shard.sha256 else f"{shard.file} has another content"


def fingerprint_of(checksums: list[str]) -> str:
    """Returns the fingerprint of a folder's shards: the start of a SHA-256 over their checksums.

    It is part of the shards' names and of the card's pattern for them, because `datasets` confuses folders with the
    same name and pattern: it would return the cached content of the other.
    """
    return hashlib.sha256("".join(checksums).encode()).hexdigest()[:16]
