"""Publishes a folder with a model, with tokens or with a Space on the Hugging Face Hub.

Nothing is sent before `checks.inspect` has checked the folder and the Hub has answered what the repository holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import TaaeInputError, one_line
from .checks import LEFT_OUT, PACKAGE, Publication, inspect

# Files of an earlier version that would be loaded together with the new ones, or instead of them.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*.parquet")
MAIN = "main"

LOG_IN = "log in with `hf auth login` or set HF_TOKEN to a token that may write"
RESUME = "push again later: files that have arrived are not sent twice"
REFUSALS = {
    401: f"the token was not accepted; {LOG_IN}",
    403: f"this token may not write there; choose a repository of your own, or {LOG_IN}",
    404: "there is no such repository or revision; check the name",
}


class PushError(RuntimeError):
    """A push that failed at the Hub or on the way to it; the message says what to do."""


class NoLoginError(PushError):
    """A push without a token for the Hub."""


@dataclass(frozen=True)
class Destination:
    """A repository on the Hub, existing or to be created."""

    repo: str  # owner/name
    exists: bool
    private: bool
    obsolete: list[str]  # files that the push deletes


def push_folder(
    folder: str | Path,
    repo: str,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> str | None:
    """Publishes a folder with a model, with tokens of `taae tokenize`, or with a Space.

    Args:
        folder: the folder, which is checked first.
        repo: `owner/name`, or the name of a repository of one's own; created if it does not exist.
        private: whether only its owner sees it.
        revision: the branch to push to, created if it does not exist; None for main.
        message: the commit's message.
        dry_run: whether to check everything but send nothing. Without a login, a dry run checks only the folder.
        report: a function that receives the list of files, the destination, and the commit's address.

    Returns:
        The address of the commit; None for a dry run.

    Raises:
        TaaeInputError: if the folder cannot be published, or `repo` is no valid name.
        PushError: if the Hub refuses or cannot be reached, or the repository is public while `private` is set.
    """
    publication = inspect(folder)
    report(describe_contents(publication))
    try:
        destination = look_up(publication, repo, private, revision)
    except NoLoginError:
        if not dry_run:
            raise
        report(f"The folder can be published. Not checked: {repo} on the Hub, because nobody is logged in; {LOG_IN}.")
        return None
    report(describe_destination(publication, destination, revision))
    if dry_run:
        return None
    url = send(publication, destination, revision, message or f"Upload {publication.folder.resolve().name}")
    report(url)
    return url


def look_up(publication: Publication, repo: str, private: bool, revision: str | None) -> Destination:
    """Asks the Hub for the token's owner and for the repository's state.

    Raises:
        PushError: if it does not answer, or the repository is public while `private` is set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    api = HfApi()
    with hub_errors(repo):
        owner = api.whoami()["name"]
        repo = repo if "/" in repo else f"{owner}/{repo}"
        try:
            info = api.repo_info(repo, repo_type=publication.repo_type)
        except RepositoryNotFoundError:
            return Destination(repo, exists=False, private=private, obsolete=[])
        try:
            files = api.list_repo_files(repo, repo_type=publication.repo_type, revision=revision)
        except RevisionNotFoundError:  # the branch would be created from main
            files = api.list_repo_files(repo, repo_type=publication.repo_type)
    if private and not info.private:
        raise PushError(f"{repo}: is public already; push with --public, or to another repository")
    obsolete = [
        file for file in filter_repo_objects(files, allow_patterns=[*REPLACED]) if file not in publication.files
    ]
    return Destination(repo, exists=True, private=info.private, obsolete=obsolete)


def send(publication: Publication, destination: Destination, revision: str | None, message: str) -> str:
    """Commits all files, creating the repository and the branch if necessary, and returns the commit's address."""
    from huggingface_hub import HfApi

    api, repo, repo_type = HfApi(), destination.repo, publication.repo_type
    with hub_errors(repo):
        if not destination.exists:
            api.create_repo(repo, repo_type=repo_type, private=destination.private, space_sdk=publication.sdk)
        # A pull request (refs/pr/1) is a revision too, but cannot be created like a branch.
        if revision not in (None, MAIN) and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
        where = {"repo_id": repo, "repo_type": repo_type, "revision": revision}
        if publication.with_package:  # before the program that imports it
            options = {"folder_path": PACKAGE, "path_in_repo": PACKAGE.name, "ignore_patterns": [*LEFT_OUT]}
            api.upload_folder(**where, **options, commit_message=f"{message} (package)")
        commit = api.upload_folder(
            **where,
            folder_path=publication.folder,
            commit_message=message,
            ignore_patterns=[*LEFT_OUT],
            delete_patterns=[*REPLACED],
        )
    return commit.commit_url


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Converts errors of the network and the Hub to one line that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HFValidationError as error:
        raise TaaeInputError(f"{repo}: is no name for a repository ({one_line(error)}); expected owner/name") from error
    except LocalTokenNotFoundError as error:
        raise NoLoginError(f"{repo}: nobody is logged in; {LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise PushError(f"{repo}: the Hub may not be asked, because HF_HUB_OFFLINE is set; unset it") from error
    # An upload that fails in a thread raises a RuntimeError caused by the Hub's answer; a card whose header the Hub
    # rejects raises a ValueError.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause: BaseException = (error.__cause__ or error) if isinstance(error, RuntimeError) else error
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            reason = REFUSALS.get(status, f"the Hub answered {status} ({one_line(cause)}); {RESUME}")
        elif isinstance(cause, HTTPError):
            reason = f"{constants.ENDPOINT} cannot be reached ({one_line(cause)}); {RESUME}"
        else:
            reason = one_line(cause)
        raise PushError(f"{repo}: {reason}") from error


def describe_contents(publication: Publication) -> str:
    """Lists the files that would be sent, one per line, and their total size."""
    lines = [f"{publication.folder}: {publication.summary}"]
    lines += [f"{size:>15,}  {name}" for name, size in publication.files.items()]
    lines.append(f"{sum(publication.files.values()):>15,}  bytes in {len(publication.files)} files")
    return "\n".join(lines)


def describe_destination(publication: Publication, destination: Destination, revision: str | None) -> str:
    """Describes the destination, and the files there that would be deleted."""
    from huggingface_hub import constants

    prefix = constants.REPO_TYPES_URL_PREFIXES.get(publication.repo_type, "")
    state = "exists" if destination.exists else "new"
    visibility = "private" if destination.private else "public"
    lines = [
        f"to {constants.ENDPOINT}/{prefix}{destination.repo} ({state}, {visibility}), branch {revision or MAIN}",
        *(f"    takes away {name}" for name in destination.obsolete),
    ]
    return "\n".join(lines)
