"""`taae push`: sends a model, tokens or a Space to the Hugging Face Hub."""

import argparse
import sys

from ..hub.push import PushError, push_folder


def run(args: argparse.Namespace) -> int:
    """Pushes as the arguments say and returns the exit status: 1 where the Hub refuses or cannot be reached.

    Raises:
        TaaeInputError: if the folder cannot be published or an argument cannot be used.
    """
    try:
        push_folder(args.folder, args.repo, not args.public, args.revision, args.message, args.dry_run, report=say)
    except PushError as error:
        if args.debug:
            raise
        print(f"taae: error: {error}", file=sys.stderr)
        return 1
    return 0


def say(text: str) -> None:
    """Prints at once, although the Hub may take minutes to answer."""
    print(text, flush=True)
