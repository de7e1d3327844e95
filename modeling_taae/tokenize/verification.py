"""A finished token folder against its manifest: no file is missing, changed, foreign or elsewhere."""

import hashlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ..errors import TaaeInputError, as_text
from .manifest import MANIFEST, Manifest, Shard, read_manifest

DATA = "data"
LFS_POINTER = b"version https://git-lfs"
SHOWN = 3  # problems that a message names


def open_token_folder(folder: str | Path) -> Manifest:
    """Returns the manifest of a complete token folder whose shards are those that the manifest lists.

    Args:
        folder: a folder that `taae tokenize` wrote.

    Raises:
        TaaeInputError: if it is not complete, or as for [`verify_shards`].
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise TaaeInputError(
            f"{folder}: is no complete corpus of tokens; make it, or finish it, with `taae tokenize SPEECH -o {folder}`"
        )
    verify_shards(folder, manifest)
    return manifest


def verify_shards(folder: str | Path, manifest: Manifest) -> None:
    """Checks a token folder's shards against its manifest: all of their bytes are read.

    Raises:
        TaaeInputError: if a shard is missing or changed, lies outside of the folder, or is not in the manifest.
    """
    folder = Path(folder)
    progress = tqdm(manifest.shards, desc=f"Checking {folder.name}", unit="shard", delay=2, disable=None)
    problems = [problem for shard in progress if (problem := shard_problem(folder, shard))]
    listed = {shard.file for shard in manifest.shards}
    files = [path.relative_to(folder).as_posix() for path in sorted((folder / DATA).rglob("*.parquet"))]
    problems += [f"{as_text(file)} is not in it" for file in files if file not in listed]
    if fingerprint_of([shard.sha256 for shard in manifest.shards]) != manifest.fingerprint:
        problems.append("its fingerprint is not that of its shards")
    if problems:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise TaaeInputError(
            f"{folder}: does not hold what its {MANIFEST} lists ({'; '.join(problems[:SHOWN])}{more}); restore the "
            "folder from where it came from, or tokenise into a new one"
        )


def shard_problem(folder: Path, shard: Shard) -> str:
    """Returns what is wrong with a shard; empty if nothing is."""
    parts = PurePosixPath(shard.file).parts
    inside = parts[:1] == (DATA,) and ".." not in parts and "\\" not in shard.file and "\0" not in shard.file
    path = folder / shard.file
    if not inside or (path.exists() and not path.resolve().is_relative_to(folder.resolve() / DATA)):
        return f"{shard.file!r} lies outside of the folder {DATA}"
    if not path.is_file():
        return f"{shard.file} is missing"
    with path.open("rb") as file:
        if path.stat().st_size != shard.bytes:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{shard.file} is a pointer of Git LFS, whose content `git lfs pull` brings"
            return f"{shard.file} has {path.stat().st_size:,} bytes, not {shard.bytes:,}"
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            return f"{shard.file} has another content"
    return ""


def fingerprint_of(checksums: list[str]) -> str:
    """Returns what tells a folder's shards from all others: the start of the SHA-256 over theirs.

    It is in the shards' names, and so in the card's pattern of them, because `datasets` takes folders of one name and
    one pattern for the same, and would give what it has cached of the other.
    """
    return hashlib.sha256("".join(checksums).encode()).hexdigest()[:16]
