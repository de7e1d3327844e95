"""Tries the oldest versions that setup.cfg allows: `python tests/lower_bounds/run.py [--extras …] [--torch 2.13.0]`.

Makes a virtual environment with the minimum of each dependency, runs the core tests and those of the extras in it, and
loads a published folder in both ways: with the package, and by its own code where the package is not installed. The
environment stays in `.venv-lower-bounds`, so that the next run takes minutes. With `--newest`, each dependency is the
newest that pip finds instead.

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
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNNERS = ("pytest>=8", "setuptools>=77", "wheel")
CORE_TESTS = ("tests/lower_bounds", "tests/model", "tests/codec")
# What stands for each extra. `slow` and `browser` tests are of the full suite alone, but for the core.
EXTRA_TESTS = {
    "audio": ("tests/codec/test_audio_io.py",),
    "data": ("tests/data", "tests/tokenize"),
    "demo": ("tests/docs/test_demo.py",),
    "eval": ("tests/evaluation",),
    "export": ("tests/export",),
    "judges": ("tests/evaluation/test_judges.py",),
    "ray": ("tests/tokenize",),
    "space": ("tests/docs/test_space.py",),
    "train": (
        "tests/training/test_training.py",
        "tests/training/test_training_corpora.py",
        "tests/training/test_speech_lm.py",
    ),
}
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[\w,]+\])?>=(?P<minimum>[\w.]+)[^;]*(?P<marker>;.*)?")
REFERENCE = re.compile(r"modeling_taae\[(?P<extras>[\w,]+)\]")


def requirements_of(extras: list[str]) -> Iterator[re.Match[str]]:
    """Yields the requirements of the package and of some extras, and of those that these refer to."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted, seen = list(extras), set()
    lines = parser["options"]["install_requires"].splitlines()
    while wanted:
        if (extra := wanted.pop()) not in seen:
            seen.add(extra)
            lines += parser["options.extras_require"][extra].splitlines()
            wanted += [
                name for line in lines if (match := REFERENCE.match(line)) for name in match["extras"].split(",")
            ]
    yield from (match for line in lines if (match := REQUIREMENT.match(line.strip())))


def as_numbers(version: str) -> tuple[int, ...]:
    """Returns a version in a form that can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def minimums(extras: list[str], replaced: dict[str, str]) -> list[str]:
    """Returns requirements that pin each dependency of the package and of some extras to its minimum.

    Args:
        extras: names of extras in setup.cfg.
        replaced: versions by name that stand in for a minimum.
    """
    pins: dict[str, tuple[str, str]] = {}
    for match in requirements_of(extras):
        name = match["name"] + (match["extras"] or "")
        version = max(match["minimum"], pins.get(name, ("0", ""))[0], key=as_numbers)
        pins[name] = replaced.get(name, version), match["marker"] or ""
    return [f"{name}=={version} {marker}".strip() for name, (version, marker) in pins.items()]


def newest(extras: list[str], replaced: dict[str, str]) -> list[str]:
    """Returns requirements that leave each dependency open, but for those that are replaced; see [`minimums`]."""
    open_ = [match for match in requirements_of(extras) if match["name"] not in replaced]
    return [f"{name}=={version}" for name, version in replaced.items()] + [match[0] for match in open_]


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """Installs requirements into a virtual environment, made if need be, and returns its interpreter."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.is_file():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", *requirements, *RUNNERS], check=True)
    return python


def main() -> int:
    """Runs it all and returns the exit status of the tests."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__.splitlines()[0])
    # The core tests read Parquet and use what training needs.
    parser.add_argument(
        "--extras",
        nargs="*",
        default=["data", "train"],
        choices=EXTRA_TESTS,
        help="extras to try (default: data train)",
    )
    parser.add_argument("--torch", metavar="VERSION", help="a version of torch in place of the minimum")
    parser.add_argument("--newest", action="store_true", help="try the newest versions instead of the oldest")
    parser.add_argument(
        "--venv", type=Path, help="the environment's folder (default: .venv-lower-bounds or .venv-newest)"
    )
    parser.add_argument(
        "--tests", nargs="+", help="tests and options of pytest, in place of those of the core and the extras"
    )
    options = parser.parse_args()
    choose = newest if options.newest else minimums
    requirements = choose(options.extras, {"torch": options.torch} if options.torch else {})
    folder = options.venv or ROOT / (".venv-newest" if options.newest else ".venv-lower-bounds")
    print(f"Python {sys.version.split()[0]} with", ", ".join(requirements), flush=True)
    python = make_environment(folder.absolute(), requirements)
    subprocess.run([python, "-m", "pip", "list", "--format", "freeze"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    tests = options.tests or dict.fromkeys(
        [*CORE_TESTS, *(test for extra in options.extras for test in EXTRA_TESTS[extra])]
    )
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
