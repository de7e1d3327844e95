"""Installs the judges of `taae evaluate` whose weights come with their packages."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from ..errors import TaaeInputError

# Their dependencies torchaudio, typing and webrtcvad are not needed here, and some of them cannot be installed.
WITHOUT_DEPENDENCIES = ("Resemblyzer==0.1.4", "distillmos==0.9.1", "xls-r-sqa==0.1.0")


def install_judges() -> None:
    """Installs the judges with pip into the current environment.

    Raises:
        TaaeInputError: if pip fails, or the package modeling_taae is not installed.
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
