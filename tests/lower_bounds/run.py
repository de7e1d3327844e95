"""Tries the oldest versions that setup.cfg allows: `python tests/lower_bounds/run.py [--torch 2.13.0]`.

Makes a virtual environment with the minimum of each dependency, runs the core tests in it, and loads a published folder
in both ways: with the package, and by its own code where the package is not installed. The environment stays in
`.venv-lower-bounds`, so that the next run takes minutes.

On Linux, PyPI has old versions of torch as CUDA builds of gigabytes only. `--torch` names a newer version to put in the
minimum's place; a run says which versions it had, and proves nothing about others.
"""

import argparse
import configparser
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The tests read Parquet.
EXTRAS = ("data",)
RUNNERS = ("accelerate>=1.6", "pytest>=8", "setuptools>=77", "wheel")
CORE_TESTS = ("tests/lower_bounds", "tests/model", "tests/codec")
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<minimum>[\w.]+)[^;]*(?P<marker>;.*)?")


def minimums(extras: tuple[str, ...], replaced: dict[str, str]) -> list[str]:
    """Returns requirements that pin each dependency of the package and of some extras to its minimum.

    Args:
        extras: names of extras in setup.cfg.
        replaced: versions by name that stand in for a minimum.
    """
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].splitlines()
    for extra in extras:
        lines += parser["options.extras_require"][extra].splitlines()
    found = [match for line in lines if (match := REQUIREMENT.match(line.strip()))]
    return [
        f"{match['name']}=={replaced.get(match['name'], match['minimum'])} {match['marker'] or ''}".strip()
        for match in found
    ]


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """Installs requirements into a virtual environment, made if need be, and returns its interpreter."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.is_file():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements, *RUNNERS], check=True)
    return python


def main() -> int:
    """Runs it all and returns the exit status of the tests."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--torch", metavar="VERSION", help="a version of torch in place of the minimum")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-lower-bounds", help="the environment's folder")
    parser.add_argument("tests", nargs="*", default=CORE_TESTS, help=f"tests to run (default: {' '.join(CORE_TESTS)})")
    options = parser.parse_args()
    requirements = minimums(EXTRAS, {"torch": options.torch} if options.torch else {})
    print(f"Python {sys.version.split()[0]} with", ", ".join(requirements), flush=True)
    python = make_environment(options.venv.absolute(), requirements)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options.tests]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
