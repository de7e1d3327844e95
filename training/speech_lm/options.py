"""Options of commands whose settings are a dataclass."""

from collections.abc import Mapping
from typing import TypeVar

from jsonargparse import ArgumentParser

Settings = TypeVar("Settings")
NONE: Mapping[str, str] = {}


def parse_settings(
    kind: type[Settings], program: str, arguments: list[str] | None, several: Mapping[str, str] = NONE
) -> Settings:
    """Reads a dataclass from the command line; a mistake ends the program with status 2 and one line.

    Args:
        kind: the dataclass; its fields are the options, its docstring is their help.
        program: the command's name.
        arguments: the arguments without the command's name; None for those of the process.
        several: the fields that take one or more values after their option, with their help.
    """
    parser = ArgumentParser(prog=program, description=(kind.__doc__ or "").splitlines()[0], allow_abbrev=False)
    for name, explanation in several.items():
        parser.add_argument(f"--{name}", nargs="+", type=str, required=True, help=explanation)
    parser.add_class_arguments(kind, as_group=False, skip={*several})
    return kind(**parser.instantiate(parser.parse_args(arguments)))
