"""Builds "A voice in a link": `python hub_cards/web/build.py` writes hub_cards/web/dist, for any host of files.

It brings together the page, a model in ONNX with 8-bit weights, and onnxruntime-web, which npm fetches.
"""

import argparse
import base64
import gzip
import hashlib
import html
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.export.export import export_codec
from modeling_taae.export.runtime import ExportedCodec
from modeling_taae.files import write_bytes

PAGE = Path(__file__).parent
MODEL = PAGE.parent / "taae-speech-16k-nano"
CACHE = PAGE.parents[1] / ".cache"
NOT_SERVED = {"build.py", "measure.py"}
VERSION_FILE = "files.js"
# Files that the page does not fetch, and the service worker itself, which browsers cache by other rules.
NOT_KEPT = {"README.md", VERSION_FILE, "sw.js", "preview.png"}
# Endings of files that the build gzips, to be small on any server; the page fetches, unpacks and caches them.
LARGE = {".onnx", ".wasm"}
RECORDING = "samples/english-woman-original.flac"  # in a model's folder
# One token per frame, because links have to be short.
BOTTLENECK = "1x46656_400bps"

RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


class NoRuntimeError(TaaeInputError):
    """npm is not installed, or cannot fetch the runtime."""


def build(model: Path, target: Path, address: str | None = None) -> None:
    """Writes the page with a model, and replaces an earlier page in the target.

    Args:
        model: folder of the model.
        target: folder to write.
        address: future address of the page, for the picture that messengers show with a link.

    Raises:
        TaaeInputError: if the model or the runtime cannot be used, or the target holds anything but such a page.
    """
    target = target.resolve()
    if target.exists() and not (target.is_dir() and ((target / VERSION_FILE).is_file() or not any(target.iterdir()))):
        raise TaaeInputError(f"{target}: holds something other than this page; choose a new folder with -o")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        site = Path(folder) / target.name
        site.mkdir()
        for file in PAGE.iterdir():
            if file.is_file() and file.name not in NOT_SERVED:
                shutil.copy(file, site)
        if address:
            name_address(site / "index.html", address)
        add_runtime(fetch_runtime(CACHE), site)
        add_model(model, site)
        add_example(model, site)
        pack(site)
        list_files(site)
        shutil.rmtree(target, ignore_errors=True)
        site.rename(target)


def fetch_runtime(cache: Path) -> Path:
    """The package of onnxruntime-web, fetched once.

    Raises:
        NoRuntimeError: if it cannot be fetched; a TaaeInputError if it is not the tested package.
    """
    package = cache / f"{RUNTIME.replace('@', '-')}.tgz"
    if not package.is_file():
        if (npm := shutil.which("npm")) is None:
            raise NoRuntimeError(
                f"{RUNTIME} is fetched with npm, which is not installed; on Debian: apt-get install npm"
            )
        with tempfile.TemporaryDirectory() as folder:
            command = [npm, "pack", "--silent", RUNTIME]
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            fetched = Path(folder) / package.name
            if result.returncode or not fetched.is_file():
                raise NoRuntimeError(f"npm could not fetch {RUNTIME}: {' '.join(result.stderr.split())}")
            write_bytes(package, fetched.read_bytes())
    digest = hashlib.sha512(package.read_bytes()).digest()
    if base64.b64encode(digest).decode() != RUNTIME_SHA512:
        raise TaaeInputError(f"{package}: is not {RUNTIME} as it was tested (wrong SHA-512); delete it and try again")
    return package


def name_address(page: Path, address: str) -> None:
    """Writes the page's address into its preview, because most messengers need the picture's absolute address."""
    picture = '<meta property="og:image" content="'
    address = html.escape(address.rstrip("/"))
    whole = f'<meta property="og:url" content="{address}/">\n{picture}{address}/'
    page.write_text(page.read_text(encoding="utf-8").replace(picture, whole, 1), encoding="utf-8")


def add_runtime(package: Path, site: Path) -> None:
    """Copies the runtime's files that the page needs."""
    with tarfile.open(package) as archive:
        for name in RUNTIME_FILES:
            (site / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())


def add_model(model: Path, site: Path) -> None:
    """Exports a model, and describes it in model.json."""
    export_codec(load_codec(str(model), device="cpu"), site, "onnx-int8", BOTTLENECK)
    metadata = ExportedCodec.load(site).metadata
    loudness = metadata["target_loudness"]
    description = {
        "name": model.resolve().name,
        "identity": metadata["model_identity"],
        "bottleneck": metadata["bottleneck"],
        "vocabulary_size": int(metadata["vocabulary_sizes"]),
        "sampling_rate": int(metadata["sampling_rate"]),
        "hop_length": int(metadata["hop_length"]),
        "target_loudness": None if loudness == "none" else float(loudness),
    }
    (site / "model.json").write_text(json.dumps(description, indent=1) + "\n")


def add_example(model: Path, site: Path) -> None:
    """Copies the recording that comes with a model, if any, for visitors without a microphone."""
    if (recording := model / RECORDING).is_file():
        shutil.copy(recording, site / "example.flac")


def pack(site: Path) -> None:
    """Gzips the large files, and adds their sizes and digests to model.json."""
    facts = {}
    for file in sorted(site.iterdir()):
        if file.suffix in LARGE:
            packed = gzip.compress(file.read_bytes(), compresslevel=9, mtime=0)
            (site / f"{file.name}.gz").write_bytes(packed)
            file.unlink()
            facts[f"{file.name}.gz"] = {"bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    description = json.loads((site / "model.json").read_text())
    (site / "model.json").write_text(json.dumps(description | {"files": facts}, indent=1) + "\n")


def load_site(site: Path) -> ExportedCodec:
    """Returns the model of a built page, ready to run."""
    with tempfile.TemporaryDirectory() as folder:
        for file in site.glob("*.onnx.gz"):
            (Path(folder) / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        return ExportedCodec.load(folder, threads=1)


def list_files(site: Path) -> None:
    """Writes files.js, which tells the service worker the version and the files to cache."""
    files = sorted(file for file in site.iterdir() if file.name not in NOT_KEPT and file.suffix != ".gz")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    names = ["./", *(file.name for file in files)]
    (site / VERSION_FILE).write_text(
        f'const VERSION = "{digest.hexdigest()[:16]}";\nconst FILES = {json.dumps(names)};\n'
    )


def main(arguments: list[str] | None = None) -> int:
    """Builds the page and returns the exit status."""
    parser = argparse.ArgumentParser(prog="build.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of a model (default: %(default)s)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=PAGE / "dist",
        help="folder to write, new or of an earlier page (default: %(default)s)",
    )
    parser.add_argument("--address", help="future address of the page, for previews of links to it")
    options = parser.parse_args(arguments)
    print("Exporting the model with 8-bit weights, which takes a minute or two …", flush=True)
    try:
        build(options.model, options.output, options.address)
    except TaaeInputError as error:
        print(f"build.py: error: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"{options.output}: {size / 1e6:.1f} MB. To try it: python -m http.server -d {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
