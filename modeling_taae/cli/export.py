"""`taae export`: a model to files that run without this package."""

import argparse
from importlib.util import find_spec
from math import isinf
from pathlib import Path

from ..codec import chosen_bottleneck, load_codec
from ..errors import TaaeInputError

PACKAGES = ("onnx", "onnx_ir", "onnxruntime", "onnxscript")


def run(args: argparse.Namespace) -> int:
    """Exports as the arguments say, prints what was written and returns the exit status.

    Raises:
        TaaeInputError: if the model, the bottleneck or the folder cannot be used, or a package is missing.
    """
    check_packages(args.format)
    codec = load_codec(args.name, device="cpu")
    bottleneck = chosen_bottleneck(codec, args.bottleneck)
    from ..export.export import FORMATS, export_codec

    folder = Path(args.output)
    agreement = export_codec(codec, folder, args.format, bottleneck)
    for path in sorted(folder.glob(f"*coder{FORMATS[args.format]}*")):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    equal, ratio = agreement.tokens - agreement.differing, agreement.signal_to_error
    audio = "audio is the same" if isinf(ratio) else f"audio agrees to {ratio:.0f} dB"
    print(f"{equal} of {agreement.tokens} tokens are those of PyTorch with the same weights, {audio}")
    return 0


def check_packages(file_format: str) -> None:
    """Checks that what a format needs is installed.

    Raises:
        TaaeInputError: if it is not.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None] if file_format.startswith("onnx") else []
    if missing:
        raise TaaeInputError(
            f"--format {file_format}: needs {', '.join(missing)}; run `pip install 'modeling_taae[export]'`"
        )
