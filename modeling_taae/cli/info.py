"""`taae info`: describes a `.taae` file or a model."""

import argparse
import os
from pathlib import Path

SUMMARY = "describe a .taae file or a model"
EXAMPLES = """\
  taae info speech.taae
  taae info hub_cards/taae-speech-16k-nano"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    help_text = "a .taae file, -, a model's folder or its Hub name"
    parser.add_argument("subject", metavar="FILE_OR_MODEL", help=help_text)


def run(args: argparse.Namespace) -> int:
    """Prints the facts and returns the exit status."""
    from ..audio_io import AUDIO_SUFFIXES
    from ..errors import TaaeInputError
    from ..files import is_standard_stream
    from .progress import telling

    subject = args.subject
    is_file = is_standard_stream(subject) or os.path.isfile(subject) or subject.endswith(".taae")
    if not is_file and Path(subject).suffix.lower() in AUDIO_SUFFIXES:
        raise TaaeInputError(f"{subject}: is no file; expected a .taae file, or a model's folder or Hub name")
    with telling("reading the file" if is_file else "loading the model", args.patience):
        from ..codec import load_codec
        from ..transcode.info import FileInfo, model_rows

        rows = list(FileInfo.read(subject).rows() if is_file else model_rows(load_codec(subject, device="cpu")))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0
