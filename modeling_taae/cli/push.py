"""`taae push`: a model, tokens or a Space to the Hugging Face Hub.

Nothing is sent before the folder was found fit to be published (`publication.py`) and the Hub was asked what is there.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import TaaeInputError, one_line
from ..hub.checks import LEFT_OUT, PACKAGE, Publication, inspect

# Of an earlier version, these would be loaded beside those of the new one, or instead of them.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*.parquet")
MAIN = "main"

LOG_IN = "log in with `hf auth login` or set HF_TOKEN to a token that may write"
RESUME = "push again later: what has arrived is not sent twice"
REFUSALS = {
    401: f"the token was not accepted; {LOG_IN}",
    403: f"this token may not write there; choose a repository of your own, or {LOG_IN}",
    404: "there is no such repository or revision; check the name",
}


class PushError(RuntimeError):
    """A push that the Hub, or the way to it, did not allow; the message says what to do."""


@dataclass(frozen=True)
class Destination:
    """A repository, as it is on the Hub or would be made."""

    repo: str  # owner/name
    exists: bool
    private: bool
    obsolete: list[str]  # what the push takes away


def run(args: argparse.Namespace) -> int:
    """Pushes as the arguments say and returns the exit status: 1 where the Hub refuses or cannot be reached.

    Raises:
        TaaeInputError: if the folder cannot be published or an argument cannot be used.
    """
    try:
        push_folder(args.folder, args.repo, not args.public, args.revision, args.message, args.dry_run)
    except PushError as error:
        if args.debug:
            raise
        print(f"taae: error: {error}", file=sys.stderr)
        return 1
    return 0


def push_folder(
    folder: str | Path,
    repo: str,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> str | None:
    """Publishes a folder with a model, with tokens of `taae tokenize`, or with a Space, and prints what it does.

    Args:
        folder: the folder, which is checked first.
        repo: `owner/name`, or a name among one's own; made if it does not exist.
        private: whether only its owner sees it.
        revision: branch to push to, made if it does not exist; None for main.
        message: of the commit.
        dry_run: whether to check and tell all, and to send nothing.

    Returns:
        The address of the commit; None for a dry run.

    Raises:
        TaaeInputError: if the folder cannot be published, or `repo` is no name.
        PushError: if the Hub refuses or cannot be reached, or has the repository in public while `private` is set.
    """
    publication = inspect(folder)
    print(describe_contents(publication), flush=True)
    destination = look_up(publication, repo, private, revision)
    print(describe_destination(publication, destination, revision), flush=True)
    if dry_run:
        return None
    url = send(publication, destination, revision, message or f"Upload {publication.folder.resolve().name}")
    print(url)
    return url


def look_up(publication: Publication, repo: str, private: bool, revision: str | None) -> Destination:
    """Asks the Hub who we are and what it has under a name."""
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
        except RevisionNotFoundError:  # a branch that would be made of main
            files = api.list_repo_files(repo, repo_type=publication.repo_type)
    if private and not info.private:
        raise PushError(f"{repo}: is public already; push with --public, or to another repository")
    obsolete = [
        file for file in filter_repo_objects(files, allow_patterns=[*REPLACED]) if file not in publication.files
    ]
    return Destination(repo, exists=True, private=info.private, obsolete=obsolete)


def send(publication: Publication, destination: Destination, revision: str | None, message: str) -> str:
    """Makes the repository and the branch if need be, commits all files, and returns the commit's address."""
    from huggingface_hub import HfApi

    api, repo, repo_type = HfApi(), destination.repo, publication.repo_type
    with hub_errors(repo):
        if not destination.exists:
            api.create_repo(repo, repo_type=repo_type, private=destination.private, space_sdk=publication.sdk)
        # A pull request (refs/pr/1) is a revision too, but none that can be made so.
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
    """Turns what goes wrong between us and the Hub into one line that says what to do."""
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
        raise PushError(f"{repo}: nobody is logged in; {LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise PushError(f"{repo}: the Hub may not be asked, because HF_HUB_OFFLINE is set; unset it") from error
    # An upload that fails in a thread comes as a RuntimeError with the Hub's answer behind it; ValueError is for a card
    # whose header the Hub does not accept.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = (error.__cause__ or error) if isinstance(error, RuntimeError) else error
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            reason = REFUSALS.get(status, f"the Hub answered {status} ({one_line(cause)}); {RESUME}")
        elif isinstance(cause, HTTPError):
            reason = f"{constants.ENDPOINT} cannot be reached ({one_line(cause)}); {RESUME}"
        else:
            reason = one_line(cause)
        raise PushError(f"{repo}: {reason}") from error


def describe_contents(publication: Publication) -> str:
    """What would be sent: a line for each file and one for all."""
    lines = [f"{publication.folder}: {publication.summary}"]
    lines += [f"{size:>15,}  {name}" for name, size in publication.files.items()]
    lines.append(f"{sum(publication.files.values()):>15,}  bytes in {len(publication.files)} files")
    return "\n".join(lines)


def describe_destination(publication: Publication, destination: Destination, revision: str | None) -> str:
    """Where it would go, and what that would change there."""
    from huggingface_hub import constants

    prefix = constants.REPO_TYPES_URL_PREFIXES.get(publication.repo_type, "")
    state = "exists" if destination.exists else "new"
    visibility = "private" if destination.private else "public"
    lines = [
        f"to {constants.ENDPOINT}/{prefix}{destination.repo} ({state}, {visibility}), branch {revision or MAIN}",
        *(f"    takes away {name}" for name in destination.obsolete),
    ]
    return "\n".join(lines)
