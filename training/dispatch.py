"""Runs the module that the first word of a command line names."""

import sys
from collections.abc import Mapping
from importlib import import_module


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
