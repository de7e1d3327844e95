"""Files of one commit of a Git repository, local or fetched, read without a work tree."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_taae.errors import TaaeInputError

LFS_POINTER = b"version https://git-lfs"


class GitFiles:
    """The files of a commit.

    Args:
        folder: a Git directory, bare or with a work tree.
        commit: a hash, or "HEAD".

    Raises:
        TaaeInputError: if there is no such repository or commit.
    """

    def __init__(self, folder: Path, commit: str):
        self.folder, self.blobs = folder, {}
        listing = git("-C", str(folder), "ls-tree", "-r", "-z", commit)
        for line in listing.decode("utf-8", "surrogateescape").split("\0"):
            head, tab, path = line.partition("\t")
            if tab and head.split()[1] == "blob":
                self.blobs[path] = head.split()[2]
        self.reader = subprocess.Popen(
            ["git", "-C", str(folder), "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self, path: str) -> bytes | None:
        """Returns a file's content; None if the repository lacks it, or has only a pointer to it."""
        if path not in self.blobs or self.reader.stdin is None or self.reader.stdout is None:
            return None
        self.reader.stdin.write(f"{self.blobs[path]}\n".encode())
        self.reader.stdin.flush()
        head = self.reader.stdout.readline().split()
        if len(head) < 3:  # "missing"
            return None
        content = self.reader.stdout.read(int(head[2]))
        self.reader.stdout.read(1)  # a line break
        return None if content.startswith(LFS_POINTER) else content

    def close(self) -> None:
        """Ends the reading process."""
        self.reader.kill()
        self.reader.communicate()


@contextmanager
def files_of(repository: str, commit: str, local: Path | None = None, newest: bool = False) -> Iterator[GitFiles]:
    """Opens a commit of a local repository, or fetches it into a temporary folder.

    Args:
        repository: `owner/name` on GitHub, or an address that `git fetch` takes.
        commit: the commit's hash.
        local: a Git directory with the commit; None fetches it.
        newest: whether to take the newest commit of the local directory instead.

    Raises:
        TaaeInputError: if the repository cannot be fetched, or lacks the commit.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = local or fetch(repository, commit, Path(temporary))
        files = GitFiles(folder, "HEAD" if newest else commit)
        try:
            yield files
        finally:
            files.close()


def fetch(repository: str, commit: str, folder: Path) -> Path:
    """Fetches one commit of a repository, without its history, into an empty folder.

    Raises:
        TaaeInputError: if it cannot be fetched.
    """
    address = f"https://github.com/{repository}" if repository.count("/") == 1 else repository
    git("init", "--quiet", "--bare", str(folder))
    git("-C", str(folder), "fetch", "--quiet", "--depth", "1", address, commit)
    return folder


def git(*arguments: str) -> bytes:
    """Runs git and returns what it prints.

    Raises:
        TaaeInputError: if it fails, or is not installed.
    """
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise TaaeInputError("git is not installed; install it, or name a local copy with --git") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no reason given"]
        command = next(each for each in arguments if each in ("init", "fetch", "ls-tree"))
        raise TaaeInputError(f"git {command} {arguments[-1]}: {reason[0]}") from error
