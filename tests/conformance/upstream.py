"""Fetches the common tests of the installed Transformers release: its source release has them, its wheel does not."""

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "conformance"
PACKAGE = "upstream_tests"

# The source release has the top level of the test folder only. What those modules import from deeper down is stood in
# for here: two empty mixins (our model does not generate, and the exporters' tests are not in the release), and values
# for fields that every configuration has, each different from its default.
STAND_INS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "architectures": ["TaaeModel"],
    "chunk_size_feed_forward": 3,
    "dtype": "float16",
    "id2label": {0: "zero", 1: "one", 2: "two"},
    "label2id": {"zero": 0, "one": 1, "two": 2},
    "name_or_path": "some/path",
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
""",
}


def prepare() -> Path:
    """Returns a folder for `sys.path`, with the tests of the installed release as the package `upstream_tests`."""
    version = importlib.metadata.version("transformers")
    folder = CACHE / f"transformers-{version}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            unpacked = Path(scratch) / "unpacked"
            _unpack_tests(_download_source(version, Path(scratch)), unpacked / PACKAGE)
            _write_stand_ins(unpacked / PACKAGE)
            unpacked.rename(folder)  # last, so that an interrupted run leaves nothing that looks complete
    return folder


def _download_source(version: str, folder: Path) -> Path:
    """Downloads the source release of `version`; raises RuntimeError with pip's own words if that fails."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", f"transformers=={version}"]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if not archives:
        raise RuntimeError(
            f"cannot fetch the source of transformers {version}, which holds the tests:\n{result.stderr}"
        )
    return archives[0]


def _unpack_tests(archive: Path, folder: Path) -> None:
    """Copies the top-level `tests/*.py` of a source release into `folder`."""
    folder.mkdir(parents=True)
    with tarfile.open(archive) as source:
        for member in source:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                (folder / parts[2]).write_bytes(source.extractfile(member).read())


def _write_stand_ins(folder: Path) -> None:
    for name, text in STAND_INS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
