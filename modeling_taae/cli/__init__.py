"""The command `taae`.

Each command is a file of this folder with `SUMMARY` and `EXAMPLES` for its help, `add_options`, and `run`, which reads
the arguments, calls a function of the package and prints. Two constants are optional: `EXTRA`, the extra of setup.cfg
that it needs, and `INTERRUPTED`, the advice after Ctrl-C. Commands import the package's heavier modules within `run`,
so that help and usage errors come at once.
"""

import argparse
import errno
import os
import sys
import traceback
from importlib import import_module

from .. import __version__
from ..errors import TaaeInputError, describe, one_line
from .options import ArgumentParser

# In the order of the help.
COMMANDS = ("encode", "decode", "reconstruct", "stream", "info", "evaluate", "convert", "export", "tokenize", "push")
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
# Silences the libraries behind a command, unless the environment sets these variables.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
DESCRIPTION = "Speech in about 50 bytes a second: encodes audio into .taae files and decodes them, with a TAAE model."
EPILOG = """\
examples:
  taae reconstruct speech.wav -o decoded.wav      hear what the codec does to your voice
  taae encode speech.wav                          writes speech.taae
  taae decode speech.taae -o decoded.wav
  taae encode recordings/ -o encoded/             all audio files in the folder and below it
  taae info speech.taae
  taae encode - < speech.flac | taae decode - -o - > decoded.wav

The model is --model, else $TAAE_MODEL, else taae-speech-16k-nano.
`taae COMMAND --help` describes a command and its options."""


def build_parser() -> ArgumentParser:
    """Builds the parser of the command line with every command's options and help."""
    style = argparse.RawDescriptionHelpFormatter
    parser = ArgumentParser(prog="taae", description=DESCRIPTION, epilog=EPILOG, formatter_class=style)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f".{name}", __package__)
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}.",
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=style,
        )
        module.add_options(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(command=module)
    return parser


def run_command(args: argparse.Namespace) -> int:
    """Runs the command that the arguments name, and returns its exit status."""
    try:
        return args.command.run(args)
    except ModuleNotFoundError as error:
        extra = getattr(args.command, "EXTRA", None)
        if extra is None:
            raise
        name = args.command.__name__.rpartition(".")[2]
        raise TaaeInputError(
            f"taae {name}: needs the package {error.name}, which is not installed; pip install 'modeling_taae[{extra}]'"
        ) from error


def abandon_output() -> None:
    """Replaces a standard output that fails, because Python flushes it again at exit, which would fail again."""
    try:
        flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flush_output() -> None:
    """Flushes standard output, if there is one."""
    if sys.stdout is not None:
        sys.stdout.flush()


def explain(error: Exception) -> str:
    """Returns one line about an error that ends a command."""
    if isinstance(error, TaaeInputError):
        return one_line(error)
    # Errors of files name the file; an error without a name is one of standard output.
    if isinstance(error, OSError) and error.errno in UNWRITABLE and error.filename is None:
        return f"standard output: cannot be written ({error.strerror}); make room, or write elsewhere"
    return describe(error)


def main(argv: list[str] | None = None, patience: float = 2.0) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; None for those of the process.
        patience: seconds of silence after which commands such as `taae encode` say what they are doing.

    Returns:
        The exit status: 0, 1 for a failure, 2 for bad input, 130 after Ctrl-C, 141 after a broken pipe. Bad usage and
        help raise SystemExit with 2 and 0.
    """
    args = build_parser().parse_args(argv, argparse.Namespace(patience=patience))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        status = run_command(args)
        flush_output()
        return status
    except BrokenPipeError:
        abandon_output()
        return 141
    except KeyboardInterrupt:
        if advice := getattr(args.command, "INTERRUPTED", None):
            print(f"taae: interrupted; {advice}", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError):
            abandon_output()
        if args.debug:
            traceback.print_exc()
        print(f"taae: error: {explain(error)}", file=sys.stderr)
        return 2 if isinstance(error, TaaeInputError) else 1
