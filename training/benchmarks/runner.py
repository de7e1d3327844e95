"""Runs a measurement of a model's folder on speech: its command line, its results file, its place on a page."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_taae.errors import TaaeInputError, one_line
from modeling_taae.evaluation.report import between
from modeling_taae.evaluation.tables import environment
from modeling_taae.files import write_bytes
from training.benchmarks.tools import used_features

Results = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A measurement of a model on speech.

    Args:
        script: name of its script.
        description: what it does, in a line.
        file: name of its results in the model's folder `results`.
        measure: takes the parsed options, among them `folder`, `speech` and `limit`, and returns the results.
        markdown: makes a text of the results; None prints nothing.
        page: the page that shows the text.
        place: the lines around the text on the page; `{name}` in the first is the model's.
    """

    script: str
    description: str
    file: str
    measure: Callable[[argparse.Namespace], Results]
    markdown: Callable[[Results], str] | None = None
    page: Path | None = None
    place: tuple[str, str] = ("", "")

    def filled_page(self, name: str, results: Results) -> str | None:
        """Returns the page with a model's text filled in; None where it has no place for this model's."""
        if self.page is None or self.markdown is None:
            return None
        return between((self.place[0].format(name=name), self.place[1]), self.page, self.markdown(results))

    def parser(self) -> argparse.ArgumentParser:
        """Makes the parser of the options that all measurements have."""
        parser = argparse.ArgumentParser(prog=self.script, description=self.description)
        parser.add_argument("folder", type=Path, help="the model's folder")
        parser.add_argument("--speech", nargs="+", required=True, metavar="FILES", help="speech to measure on")
        parser.add_argument("--limit", type=int, metavar="N", help="the first N utterances only")
        return parser

    def run(self, arguments: list[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
        """Measures, writes, prints, and returns the exit status: 2 where there is nothing to measure with.

        Args:
            arguments: the command line's; None takes those of the process.
            parser: a parser with further options.
        """
        options = (parser or self.parser()).parse_args(arguments)
        try:
            results = self.measure(options)
        except TaaeInputError as error:
            print(f"{self.script}: error: {one_line(error)}", file=sys.stderr)
            return 2
        content = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        write_bytes(options.folder / "results" / self.file, content.encode())
        if self.page is not None and (filled := self.filled_page(options.folder.resolve().name, results)) is not None:
            write_bytes(self.page, filled.encode())
        if self.markdown is not None:
            print(self.markdown(results))
        return 0


def machine() -> dict[str, Any]:
    """Returns the machine, with those features of its processor that decide how fast matrix products are."""
    return {**environment(), "features": used_features()}


def processor_text(told: dict[str, Any]) -> str:
    """Returns a machine's processor with its features, as far as they were noted."""
    features = told.get("features")
    return f"{told['processor']} with {', '.join(features)}" if features else str(told["processor"])
