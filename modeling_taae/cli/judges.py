"""Installs the judges that bring their weights, with which `taae evaluate` scores words, voices and naturalness."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from ..errors import TaaeInputError

# They ask for packages that they do not need here, some of which cannot be installed: torchaudio, typing, webrtcvad.
WITHOUT_DEPENDENCIES = ("Resemblyzer==0.1.4", "distillmos==0.9.1", "xls-r-sqa==0.1.0")


def install_judges() -> None:
    """Installs the judges with pip into the running environment, whatever else is installed there.

    Raises:
        TaaeInputError: if pip fails, or this package is not installed itself.
    """
    try:
        extra = f"modeling_taae[judges]=={version('modeling_taae')}"
    except PackageNotFoundError as error:
        raise TaaeInputError(
            "the package modeling_taae is not installed; install it first, with `pip install .` in its folder"
        ) from error
    for packages in ((extra,), ("--no-deps", *WITHOUT_DEPENDENCIES)):
        command = ["pip", "install", *packages]
        if subprocess.run([sys.executable, "-m", *command]).returncode:
            raise TaaeInputError(f"`{' '.join(command)}` failed; see what pip says above, then start again")
