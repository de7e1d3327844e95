"""Writes the cards of folders from their content: `python hub_cards/make_card.py hub_cards/taae-* hub_cards/metrics/*`.

A folder holds a model that was trained here (`model_card.py`), a converted one, a metric (`metric_card.py`) or the
Space (`space_card.py`). `taae tokenize` writes the cards of tokens. `--check` writes nothing and fails if a card is
out of date.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout's hub_cards/ is not installed

from hub_cards.cards.metric_card import is_metric, metric_files
from hub_cards.cards.model_card import CardError, model_files
from hub_cards.cards.space_card import space_files
from modeling_taae.codec import load_codec
from modeling_taae.files import write_bytes
from modeling_taae.hub.conversion import CONVERSION, conversion_card


def make_files(folder: Path) -> dict[Path, str]:
    """Returns the files to write for a folder, by path.

    Raises:
        CardError: if something is missing for the card, or the folder is of an unknown kind.
    """
    if is_metric(folder):
        return metric_files(folder)
    if (folder / CONVERSION).is_file():
        return {folder / "README.md": conversion_card(folder, load_codec(str(folder), device="cpu").model)}
    if (folder / "config.json").is_file():
        return model_files(folder)
    if (folder / "app.py").is_file():
        return space_files(folder)
    raise CardError(f"{folder}: contains nothing to make a card of; expected a model, a metric or a Space")


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks, and returns the exit status: 1 if a check fails, 2 if a card cannot be made."""
    parser = argparse.ArgumentParser(prog="make_card.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a model, a metric or a Space"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything would change")
    options = parser.parse_args(arguments)
    changed = []
    try:
        for folder in options.folders:  # one by one, because several models write into the project's README
            files = make_files(folder)
            changes = [path for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text]
            for path in () if options.check else changes:
                write_bytes(path, files[path].encode())
            changed += changes
    except ValueError as error:
        print(f"make_card.py: error: {error}", file=sys.stderr)
        return 2
    for path in changed if options.check else ():
        print(f"make_card.py: {path} is out of date; run `make card`", file=sys.stderr)
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
