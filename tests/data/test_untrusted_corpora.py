"""Cells and metadata of a corpus are other people's text: nothing outside the corpus is opened for them."""

import http.server
import json
import tarfile
import threading
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile

from modeling_taae import TaaeFeatureExtractor, cli
from modeling_taae.data.decode import decode_row
from modeling_taae.data.origin import Origin
from modeling_taae.data.sources import Corpus
from modeling_taae.errors import TaaeInputError
from training.data import CorpusError, StreamedCrops, TrainingCrops, validation_clips
from training.recipe import CorpusConfig, DataConfig

RATE = 16_000


@pytest.fixture
def requests():
    """Paths that were asked of a server on this machine, whose address is the first."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked.append(f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def places(tiny_model_folder, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """An empty corpus, and a recording that is none of it."""
    monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    corpus, secret = tmp_path / "corpus", tmp_path / "private" / "secret.wav"
    for file in (corpus / "inside.wav", corpus / "deep" / "inside.wav", secret):
        file.parent.mkdir(exist_ok=True)
        soundfile.write(file, noise, RATE)
    (corpus / "linked").symlink_to(secret.parent, target_is_directory=True)
    return corpus, secret


def hostile_paths(corpus: Path, secret: Path, server: str) -> dict[str, str]:
    """What a cell might name to get at what is not its own."""
    program, archive = corpus / "references.json", corpus / "clips.zip"
    with zipfile.ZipFile(archive, "w") as clips:
        clips.write(secret, "a.wav")
    program.write_text(json.dumps({"version": 1, "templates": {}, "refs": {"a.wav": [str(secret)]}}))
    return {
        "absolute": str(secret),
        "upwards": "../private/secret.wav",
        "deep and upwards": "deep/../../private/secret.wav",
        "through a link": "linked/secret.wav",
        "file address": f"file://{secret}",
        "local address": f"local://{secret}",
        "fetched": f"{server}/a.wav",
        "cached fetch": f"simplecache::{server}/b.wav",
        "in an archive": f"zip://a.wav::{archive}",
        "in a fetched archive": f"zip://a.wav::{server}/c.zip",
        "references": f"reference://a.wav::file://{program}",
        "fetched references": f"reference://a.wav::{server}/d.json",
        "another data set": "hf://datasets/other/speech@main/a.wav",
        "no protocol": "nonsense://a.wav",
        "null": "in\0side.wav",
    }


def write_table(file: Path, paths: dict[str, str]) -> Path:
    rows = [{"id": name, "audio": {"bytes": None, "path": path}} for name, path in paths.items()]
    pa.parquet.write_table(pa.Table.from_pylist(rows), file)
    return file


def rejects(output: Path) -> dict[str, str]:
    lines = (output / "rejects.jsonl").read_text().splitlines()
    return {reject["id"]: reject["reason"] for reject in map(json.loads, lines)}


def tokens(output: Path) -> set[str]:
    return set(datasets.load_dataset(str(output), split="train")["id"])


GOOD = {"relative": "inside.wav", "deep": "deep/inside.wav"}


@pytest.mark.parametrize("whole_folder", [True, False], ids=["folder", "table"])
def test_tokenize_opens_only_the_corpus(places, requests, tmp_path, whole_folder):
    corpus, secret = places
    hostile = hostile_paths(corpus, secret, requests[0])
    good = GOOD | {"absolute inside": str(corpus / "inside.wav")}
    table = write_table(corpus / "rows.parquet", good | hostile)
    assert cli.main(["tokenize", str(corpus if whole_folder else table), "-o", "tokens"]) == 0
    reasons = rejects(tmp_path / "tokens")
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == dict.fromkeys(hostile, "outside")
    assert good.keys() <= tokens(tmp_path / "tokens")
    assert len(requests) == 1, f"fetched {requests[1:]}"


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_names_only_the_corpus(places, tmp_path, form):
    corpus, secret = places
    (corpus / "linked").unlink()
    pa.parquet.write_table(pa.table({"id": ["x"], "audio": [b"x"]}), secret.parent / "table.parquet")
    names = ["inside.wav", "../private/secret.wav", str(secret), "../private/table.parquet"]
    metadata = corpus / f"metadata.{form}"
    if form == "csv":
        metadata.write_text("\n".join(["file_name,text", *(f"{name},a" for name in names[:2] + names[3:])]))
    else:
        metadata.write_text("\n".join(json.dumps({"file_name": name, "text": "a"}) for name in names[:1] + names[2:]))
    assert cli.main(["tokenize", str(corpus), "-o", "tokens"]) == 0
    reasons = rejects(tmp_path / "tokens").values()
    assert len(reasons) == 2 and all(reason.startswith("outside: ") for reason in reasons)


def test_evaluate_opens_only_the_corpus(places, requests, tmp_path):
    corpus, secret = places
    hostile = hostile_paths(corpus, secret, requests[0])
    table = write_table(corpus / "rows.parquet", GOOD | hostile)
    command = ["evaluate", str(table), "--metrics", "si_sdr", "--no-speed", "--samples", "0", "--workers", "1"]
    assert cli.main([*command, "-o", "results"]) in (0, 1)
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    problems = json.dumps(results)
    assert len(requests) == 1, f"fetched {requests[1:]}"
    assert problems.count("outside: ") >= len(hostile) and "missing: " not in problems


@pytest.mark.parametrize("name", ["absolute", "upwards", "through a link", "file address", "fetched", "references"])
def test_training_opens_only_the_corpus(places, requests, name):
    corpus, secret = places
    table = write_table(corpus / "rows.parquet", {"bad": hostile_paths(corpus, secret, requests[0])[name]})
    data = DataConfig(corpora=[CorpusConfig(source=str(table))], crop_frames=5)
    extractor = TaaeFeatureExtractor()
    with pytest.raises(CorpusError, match="no audio that can be decoded"):
        TrainingCrops(data, extractor, seed=0)
    with pytest.raises(CorpusError, match="No audio can be decoded"):
        list(zip(StreamedCrops(data, extractor, 0, 0, 1, 0), range(2), strict=False))
    assert list(validation_clips(data.corpora[0], extractor, 1)) == []
    assert len(requests) == 1, f"fetched {requests[1:]}"


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_archives_write_nothing(places, tmp_path, kind):
    corpus, secret = places
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    archive = corpus / f"speech.{kind}"
    with tarfile.open(archive, "w:gz" if kind.endswith("gz") else "w") as content:
        for name in ("a.wav", "../escape.wav", str(tmp_path / "absolute.wav"), "deep/../../b.wav"):
            content.add(corpus / "inside.wav", name)
        for name, link in (("link.wav", str(secret)), ("hard.wav", "../private/secret.wav")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.SYMTYPE if name == "link.wav" else tarfile.LNKTYPE), link
            content.addfile(member)
    rows = list(Corpus([str(archive)]))
    assert {len(decode_row(row, RATE).audio) for row in rows} == {RATE} and len(rows) == 4
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path not in (archive, corpus)}
    assert after == {path: time for path, time in before.items() if path != corpus}


def test_training_reads_what_is_the_corpus_own(places):
    corpus, _ = places
    table = write_table(corpus / "rows.parquet", GOOD)
    crops = TrainingCrops(
        DataConfig(corpora=[CorpusConfig(source=str(table))], crop_frames=5), TaaeFeatureExtractor(), seed=0
    )
    assert crops.skipped == 0 and crops[0].abs().sum() > 0


class TestAddresses:
    """Addresses are fetched where `datasets` makes them of the data set's own files, and nowhere else."""

    @pytest.mark.parametrize(
        "address",
        [
            "hf://datasets/me/speech@0123abc/data/a.wav",
            "hf://datasets/me/speech/a.flac",
            "hf://datasets/me/speech@refs%2Fconvert%2Fparquet/a.flac",
            "zip://deep/a.wav::hf://datasets/me/speech@main/train.zip",
        ],
    )
    def test_its_own(self, address):
        assert Origin(dataset="me/speech").holds_address(address)

    @pytest.mark.parametrize(
        "address",
        [
            "hf://datasets/me/speech2@main/a.wav",
            "hf://datasets/me/speech@main/../../other/speech/a.wav",
            "hf://datasets/me/speech@main/..\\a.wav",
            "hf://models/me/speech/a.wav",
            "https://huggingface.co/datasets/me/speech/resolve/main/a.wav",
            "reference://a.wav::hf://datasets/me/speech@main/refs.json",
            "zip://a.wav::reference://b::hf://datasets/me/speech@main/refs.json",
            "zip://a.wav::hf://datasets/me/speech@main/a.zip::file:///etc/passwd",
            "filecache::hf://datasets/me/speech@main/a.wav",
        ],
    )
    def test_of_others(self, address):
        assert not Origin(dataset="me/speech").holds_address(address)
        with pytest.raises(TaaeInputError, match="not fetched"):
            Origin(dataset="me/speech").open(address, "a")
