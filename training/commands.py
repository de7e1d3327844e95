"""What the commands of this folder share: options, exit statuses, and the running of the module that a word names.

It imports nothing slow, so that help and mistakes in options come at once.
"""

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TypeVar

from jsonargparse import ArgumentParser

from modeling_taae.errors import TaaeInputError, one_line

Settings = TypeVar("Settings")
NONE: Mapping[str, str] = {}


def exit_status(program: str, command: Callable[[], object], interrupted: str = "", telling: bool = True) -> int:
    """Runs a command; bad input is reported in one line on standard error.

    Args:
        program: the program's name.
        command: the command, without arguments.
        interrupted: what to print after Ctrl-C; empty prints nothing.
        telling: whether this process reports, as one of several does.

    Returns:
        0, or 2 for bad input, 130 after Ctrl-C, and 141 after a broken pipe, as in `… | head`.
    """
    try:
        command()
        sys.stdout.flush()
    except TaaeInputError as error:
        if telling:
            print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if telling and interrupted:
            print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        return 141
    return 0


def tell_loading(program: str) -> None:
    """Says on a terminal that libraries and models are being loaded, which takes seconds; in the first process only."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"{program}: loading …", file=sys.stderr, flush=True)


def dispatch(script: str, package: str, names: Mapping[str, str], arguments: list[str]) -> int:
    """Runs `main` of the module that the first argument names, and returns its exit status: 2 for bad usage.

    Args:
        script: name of the script, for its help.
        package: package of the modules.
        names: description of each module, by name.
        arguments: command line.
    """
    if not arguments or arguments[0] not in names:
        listed = "\n".join(f"  {name:15} {what}" for name, what in names.items())
        print(
            f"usage: {script} WHAT …; see `{script} WHAT --help` for its options\n\nWHAT is one of\n{listed}",
            file=sys.stderr,
        )
        return 0 if arguments in (["-h"], ["--help"]) else 2
    return import_module(f"{package}.{arguments[0]}").main(arguments[1:])


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
