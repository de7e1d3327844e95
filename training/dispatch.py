"""Hands a command line on to the module that its first word names."""

import sys
from collections.abc import Mapping
from importlib import import_module


def dispatch(script: str, package: str, names: Mapping[str, str], arguments: list[str]) -> int:
    """Runs `main` of the module that the first argument names, and returns its exit status: 2 for bad usage.

    Args:
        script: the script's name, for its help.
        package: the package of the modules.
        names: the modules' names, and what each does.
        arguments: the command line's.
    """
    if not arguments or arguments[0] not in names:
        listed = "\n".join(f"  {name:15} {what}" for name, what in names.items())
        print(f"usage: {script} WHAT …; `{script} WHAT --help` says more\n\nWHAT is one of\n{listed}", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    return import_module(f"{package}.{arguments[0]}").main(arguments[1:])
