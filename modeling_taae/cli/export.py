"""`taae export`: exports a model to files that run without this package."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from math import isinf
from pathlib import Path

from ..errors import TaaeInputError
from .options import BOTTLENECK_HELP

SUMMARY = "write encoder and decoder as files for other runtimes"
EXAMPLES = """\
  taae export hub_cards/taae-speech-16k-nano -o exported
  taae export hub_cards/taae-speech-16k-nano -o exported --format onnx-int8 --bottleneck 2x15625_700bps

Formats
  onnx           float32; gives the model's tokens
  onnx-int8      8-bit weights, a quarter of the size; counts as a different model, with other tokens
  torch-export   float32, for torch.export.load

The files are run and compared with the model; they are kept only if they agree."""
PACKAGES = ("onnx", "onnx_ir", "onnxruntime", "onnxscript")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("name", metavar="MODEL", help="a model's folder, or its name on the Hub")
    add(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="folder for encoder and decoder; replaces existing ones",
    )
    add("--format", choices=["onnx", "onnx-int8", "torch-export"], default="onnx", help="see below (default: onnx)")
    add("--bottleneck", metavar="B", help=BOTTLENECK_HELP)


def run(args: argparse.Namespace) -> int:
    """Exports as the arguments say, prints what was written and returns the exit status.

    Raises:
        TaaeInputError: if the model, the bottleneck or the folder cannot be used, or a package is missing.
    """
    from .progress import telling

    check_packages(args.format)
    folder = Path(args.output)
    with telling("exporting the model, and comparing the export with it", args.patience):
        from ..codec import chosen_bottleneck, load_codec
        from ..export.export import FORMATS, export_codec

        codec = load_codec(args.name, device="cpu")
        agreement = export_codec(codec, folder, args.format, chosen_bottleneck(codec, args.bottleneck))
    for path in sorted(folder.glob(f"*coder{FORMATS[args.format]}*")):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    equal, ratio = agreement.tokens - agreement.differing, agreement.signal_to_error
    audio = "audio is the same" if isinf(ratio) else f"audio agrees to {ratio:.0f} dB"
    print(f"{equal} of {agreement.tokens} tokens equal those of PyTorch with the same weights; {audio}")
    return 0


def check_packages(file_format: str, packages: Sequence[str] = PACKAGES) -> None:
    """Checks that the packages of a format are installed.

    Raises:
        TaaeInputError: if one is missing.
    """
    missing = [name for name in packages if find_spec(name) is None] if file_format.startswith("onnx") else []
    if missing:
        raise TaaeInputError(
            f"--format {file_format}: needs {', '.join(missing)}; run `pip install 'modeling_taae[export]'`"
        )
