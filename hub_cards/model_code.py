"""Writes the model's code into the published folders: `python hub_cards/model_code.py hub_cards/taae-*`.

A folder on the Hub contains the modules that its `auto_map` names, and all modules that they import. So it loads with
`trust_remote_code=True` without the package. The modules of `modeling_taae/` are the originals; the folders hold
generated copies. `--check` writes nothing and fails if a copy differs.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from modeling_taae.files import write_bytes

PACKAGE = Path(__file__).resolve().parents[1] / "modeling_taae"
CONFIGS = ("config.json", "preprocessor_config.json")


def modules_of(folder: Path) -> list[Path]:
    """Returns the package's modules that a published folder contains, sorted by name.

    Args:
        folder: folder of a model with the two configs, whose `auto_map` entries have the form `module.Class`.
    """
    configs = [json.loads((folder / name).read_text("utf-8")) for name in CONFIGS]
    names = {entry.partition(".")[0] for config in configs for entry in config["auto_map"].values()}
    modules = {PACKAGE / f"{name}.py" for name in names}
    return sorted(modules | {Path(path) for module in modules for path in get_relative_import_files(str(module))})


def stale_code(folder: Path) -> dict[Path, bytes | None]:
    """Returns the outdated files of a published folder with their new content, None for a file to remove."""
    modules = {folder / module.name: module.read_bytes() for module in modules_of(folder)}
    changed = {path: code for path, code in modules.items() if not path.is_file() or path.read_bytes() != code}
    return changed | dict.fromkeys(path for path in folder.glob("*.py") if path not in modules)


def write_code(folder: Path) -> list[Path]:
    """Updates the code in a published folder and returns the paths that were written or removed."""
    stale = stale_code(folder)
    for path, code in stale.items():
        if code is None:
            path.unlink()
        else:
            write_bytes(path, code)
    return list(stale)


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks, and returns the exit status: 1 if a check fails."""
    parser = argparse.ArgumentParser(prog="model_code.py", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a model")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything would change")
    options = parser.parse_args(arguments)
    changed = [path for folder in options.folders for path in (stale_code if options.check else write_code)(folder)]
    for path in changed:
        print(f"model_code.py: {path} differs from the package's module; run `make code`" if options.check else path)
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
