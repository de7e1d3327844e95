"""Runs measurements: their command line, their results file, and their place on a page."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from modeling_taae.codec import Codec
from modeling_taae.data.utterances import Utterances
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.report import between
from modeling_taae.evaluation.tables import environment
from modeling_taae.files import as_json, write_bytes
from training.benchmarks.tools import used_features
from training.commands import exit_status

ROOT = Path(__file__).resolve().parents[2]
Results = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A measurement of a model on speech.

    Args:
        name: name of the measurement and of its module.
        description: description in a line.
        file: name of the results in the model's folder `results`.
        measure: function that takes the parsed options, among them `folder`, `speech` and `limit`, and returns the
            results.
        markdown: function that turns the results into text; None prints nothing.
        page: page that shows the text, in `docs/`.
        tag: tag of the text on the page (see [`markers`]).
        add_options: function that adds further options to the parser.
    """

    name: str
    description: str
    file: str
    measure: Callable[[argparse.Namespace], Results]
    markdown: Callable[[Results], str] | None = None
    page: Path | None = None
    tag: str = ""
    add_options: Callable[[argparse.ArgumentParser], None] | None = None

    def filled_page(self, name: str, results: Results) -> str | None:
        """Returns the page with a model's text filled in; None if the page has no place for the model."""
        if self.page is None or self.markdown is None:
            return None
        return between(markers(self.tag, f"benchmarks/{self.name}.py of {name}"), self.page, self.markdown(results))

    def run(self, arguments: list[str]) -> int:
        """Measures, writes, prints, and returns the exit status: 2 if the model or the speech cannot be used."""
        parser = argparse.ArgumentParser(prog=f"measure.py {self.name}", description=self.description)
        parser.add_argument("folder", type=Path, help="folder of a model")
        parser.add_argument("--speech", nargs="+", required=True, metavar="FILES", help="speech to measure on")
        parser.add_argument("--limit", type=int, metavar="N", help="measure only the first N utterances")
        if self.add_options is not None:
            self.add_options(parser)
        options = parser.parse_args(arguments)
        return exit_status(parser.prog, lambda: self._measure(options))

    def _measure(self, options: argparse.Namespace) -> None:
        results = self.measure(options)
        write_bytes(options.folder / "results" / self.file, as_json(results))
        if self.page is not None and (filled := self.filled_page(options.folder.resolve().name, results)) is not None:
            write_bytes(self.page, filled.encode())
        if self.markdown is not None:
            print(self.markdown(results))


def clips_of(codec: Codec, sources: list[str], limit: int | None) -> Iterator[np.ndarray]:
    """Returns an iterator over the readable clips of speech, (samples,) float32 at the codec's rate.

    Raises:
        TaaeInputError: if a source is empty; after the last clip, if none could be read.
    """
    utterances = Utterances(sources, codec.extractor.sampling_rate, limit)

    def clips() -> Iterator[np.ndarray]:
        found = False
        for utterance in tqdm(utterances, unit="clip", disable=None):
            if utterance.audio is not None:
                found = True
                yield utterance.audio
        if not found:
            raise TaaeInputError(f"{', '.join(sources)}: holds no speech that can be read")

    return clips()


def markers(tag: str, script: str) -> tuple[str, str]:
    """Returns the lines around a text that a script of `training/` writes into a page."""
    return f"<!-- {tag}: written by training/{script} -->\n", f"<!-- /{tag} -->"


def with_tables(readme: Path, tables: str, markers: tuple[str, str]) -> str:
    """Returns a text with the tables between its markers replaced.

    Raises:
        ValueError: if it lacks the markers.
    """
    if (text := between(markers, readme, tables)) is None:
        raise ValueError(f"{readme} has no lines {markers[0].strip()} and {markers[1]} to put the tables between.")
    return text


def machine() -> dict[str, Any]:
    """Returns the machine, with the processor features that determine the speed of matrix products."""
    return {**environment(), "features": used_features()}


def processor_text(told: dict[str, Any]) -> str:
    """Returns a machine's processor with its features, if they were recorded."""
    features = told.get("features")
    return f"{told['processor']} with {', '.join(features)}" if features else str(told["processor"])
