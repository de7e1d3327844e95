"""Options of commands whose settings are a dataclass."""

from typing import TypeVar

from jsonargparse import ArgumentParser

Settings = TypeVar("Settings")


def parse_settings(kind: type[Settings], program: str, arguments: list[str] | None) -> Settings:
    """Reads a dataclass from the command line; exits with status 2 and one line on a mistake.

    Args:
        kind: the dataclass; its fields are the options, its docstring is their help.
        program: the command's name.
        arguments: the arguments without the command's name; None for the process's own.
    """
    parser = ArgumentParser(prog=program, description=kind.__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_class_arguments(kind, as_group=False)
    return kind(**parser.instantiate(parser.parse_args(arguments)))
