"""Corpora of bursts of noise, and the folders of tokens that `taae tokenize` makes of them in the current folder."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile
from datasets import load_dataset

from modeling_taae import cli

RATE = 16_000


def clip(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Bursts of noise."""
    times = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.1, len(times))
    return (noise * np.sin(np.pi * 3 * times) ** 2).astype(np.float32)


def flac(audio: np.ndarray) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, audio, RATE, format="FLAC")
    return content.getvalue()


def row(name: str, audio: bytes | None = None, **columns) -> dict:
    return {"id": name, "audio": {"bytes": audio or flac(clip(0.5)), "path": None}, **columns}


def parquet(path: str, rows: list[dict], **options) -> str:
    pa.parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def tar(path: str, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def many_rows(number: int) -> list[dict]:
    """Rows of several lengths, a bad one in every ten."""
    audio = [flac(clip(0.4 + 0.2 * n, seed=n)) for n in range(4)]
    return [row(f"r{n}", b"noise" if n % 10 == 7 else audio[n % 4], text=f"text {n}") for n in range(number)]


def tokenize(*arguments, output: str = "tokens") -> dict:
    """Runs the command, which must succeed, and returns the manifest."""
    assert cli.main(["tokenize", *map(str, arguments), "-o", output]) == 0
    return json.loads(Path(output, "manifest.json").read_text())


def rows_of(output: str = "tokens") -> dict[str, dict]:
    return {row["id"]: row for row in load_dataset(output, split="train")}


def rejects_of(output: str = "tokens") -> dict[str, str]:
    lines = Path(output, "rejects.jsonl").read_text().splitlines()
    return {reject["id"]: reject["reason"] for reject in map(json.loads, lines)}


def contents(output: str) -> dict[str, str]:
    """Checksums of all files but the report, which tells of time."""
    files = (path for path in Path(output).rglob("*") if path.is_file() and path.name != "report.json")
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refusal(capsys, *arguments, output: str = "tokens") -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    assert cli.main(["tokenize", *map(str, arguments), "-o", output]) == 2
    message = capsys.readouterr().err
    assert message.startswith("taae: error: ") and message.count("\n") == 1
    return message
