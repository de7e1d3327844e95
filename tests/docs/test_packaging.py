"""What an installation brings: the files of the wheel, its extras, its command, and constraints that allow it."""

import configparser
import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hub_cards import model_code

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.cfg").exists(), reason="the packaging files are in a checkout of the project only"
)


def package_files() -> list[Path]:
    """The files of the package, in all its rooms."""
    return [path for path in (ROOT / "modeling_taae").rglob("*.*") if path.suffix in (".py", ".md", ".mjs", ".typed")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built of a copy so that no build output lands in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    for source in [*ROOT.glob("*.*"), ROOT / "LICENSE", *package_files()]:
        if source.is_file():
            (copy / source.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            (copy / source.relative_to(ROOT)).write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(copy)], check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


@pytest.fixture(scope="module")
def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in requirements}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert installed == {path.relative_to(ROOT).as_posix() for path in package_files()}
    assert {"modeling_taae/hub/templates/_use.md", "modeling_taae/tokenize/card.md"} <= installed
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_command_is_installed(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel.read(name).decode())
    assert dict(entry_points["console_scripts"]) == {"taae": "modeling_taae.cli:main"}


def test_metadata(metadata):
    import modeling_taae

    assert metadata["Version"] == modeling_taae.__version__
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(">=3.11")
    assert set(metadata.get_all("Provides-Extra")) >= {"demo", "eval", "test", "train"}


def test_requirements_are_ranges_and_constraints_are_pins_within_them(metadata, constraints):
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    direct = [requirement for requirement in requirements if requirement.name != metadata["Name"]]
    assert {requirement.name for requirement in direct} == set(constraints)
    for requirement in direct:
        assert "==" not in str(requirement.specifier)
        (pin,) = constraints[requirement.name].specifier
        assert pin.operator == "==" and pin.version in requirement.specifier


def test_changelog_begins_with_this_version(metadata):
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(version for version in versions if version != "Unreleased") == metadata["Version"]


def test_published_models_carry_the_package_s_code():
    """A folder on the Hub runs on its own copy of the code: after a change, `make code` writes it again."""
    folders = [path.parent for path in (ROOT / "hub_cards").glob("*/config.json")]
    assert folders
    for folder in folders:
        assert (folder / "modeling_taae.py").is_file()
        assert model_code.stale_code(folder) == {}, "run `make code`"


def test_code_is_written_anew(tmp_path):
    for name in model_code.CONFIGS:
        shutil.copy(ROOT / "hub_cards" / "taae-speech-16k-nano" / name, tmp_path)
    (tmp_path / "modeling_taae.py").write_text("old")
    (tmp_path / "removed_taae.py").write_text("no module of the package any more")
    assert model_code.main([str(tmp_path), "--check"]) == 1
    assert model_code.main([str(tmp_path)]) == 0
    assert model_code.main([str(tmp_path), "--check"]) == 0
    names = {path.name for path in tmp_path.glob("*.py")}
    assert names == {path.name for path in (ROOT / "hub_cards" / "taae-speech-16k-nano").glob("*.py")}
