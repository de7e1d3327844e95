"""`taae push`: publishes a model, tokens or a Space on the Hugging Face Hub."""

import argparse
import sys

SUMMARY = "publish a model, tokens or a Space on the Hugging Face Hub"
EXAMPLES = """\
  taae push hub_cards/taae-speech-16k-nano me/taae-nano --dry-run     checks everything, lists the files
  taae push hub_cards/taae-speech-16k-nano me/taae-nano               private, until you make it public on its page
  taae push my_tokens/ me/my-tokens --public --message "All of May"

The folder holds a model, tokens of `taae tokenize`, or a Space. Log in first with `hf auth login`."""
EXTRA = "data"  # for tokens


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="a model with card, licence and results; or tokens; or a Space")
    add("repo", metavar="REPO", help="owner/name on the Hub, or a name of your own; created if it does not exist")
    add("--public", action="store_true", help="let everyone see it (default: private)")
    add("--revision", metavar="BRANCH", help="branch to push to, created if it does not exist (default: main)")
    add("--message", metavar="TEXT", help="message of the commit")
    add("--dry-run", action="store_true", help="check everything and list the files, but send nothing")


def run(args: argparse.Namespace) -> int:
    """Pushes as the arguments say and returns the exit status: 1 if the Hub refuses or cannot be reached.

    Raises:
        TaaeInputError: if the folder cannot be published or an argument cannot be used.
    """
    from .progress import telling

    with telling("starting", args.patience):
        from ..hub.push import PushError, push_folder

    try:
        push_folder(args.folder, args.repo, not args.public, args.revision, args.message, args.dry_run, report=say)
    except PushError as error:
        if args.debug:
            raise
        print(f"taae: error: {error}", file=sys.stderr)
        return 1
    return 0


def say(text: str) -> None:
    """Prints without buffering, because the Hub may take minutes to answer."""
    print(text, flush=True)
