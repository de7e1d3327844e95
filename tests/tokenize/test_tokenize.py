"""`taae tokenize` from end to end: sources of every kind, bad rows, killed runs, a Ray cluster; with a tiny model."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tarfile
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, Features, Value, load_dataset
from huggingface_hub import DatasetCard

from modeling_taae import batching, cli
from modeling_taae.codec import Codec, load_codec
from modeling_taae.data import readers as corpus_readers
from modeling_taae.tokenize import encoder as corpus_encoder

RATE = 16_000


@pytest.fixture(autouse=True)
def workplace(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


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


class TestOutput:
    def test_tokens_are_those_of_each_clip_alone(self):
        clips = {f"c{n}": clip(0.4 + 0.3 * n, seed=n) for n in range(5)}
        tokenize(parquet("data.parquet", [row(name, flac(audio)) for name, audio in clips.items()]))
        codec = load_codec(None, device="cpu")
        rows = rows_of()
        assert list(rows) == list(clips)
        for name in clips:
            audio, _ = soundfile.read(io.BytesIO(flac(clips[name])), dtype="float32")
            expected = codec.encode(audio).audio_codes.T
            assert rows[name]["codes"] == expected.tolist()
            assert rows[name]["frames"] == len(expected) and rows[name]["duration"] == len(audio) / RATE

    def test_clips_may_wait_for_others_of_their_length(self, monkeypatch):
        """As on a GPU: several clips at a time, out of order, of several units."""
        source = parquet("data.parquet", many_rows(50), row_group_size=5)
        tokenize(source, output="one by one")
        monkeypatch.setattr(corpus_readers, "UNIT_ROWS", 5)
        monkeypatch.setattr(corpus_encoder, "UNITS_TOGETHER", {"cpu": 4})
        monkeypatch.setattr(batching, "BLOCK_SECONDS", {"cpu": 4})
        tokenize(source, output="together")
        one_by_one, together = rows_of("one by one"), rows_of("together")
        assert list(one_by_one) == list(together) and rejects_of("one by one") == rejects_of("together")
        for name in together:
            assert np.mean(np.array(together[name]["codes"]) == np.array(one_by_one[name]["codes"])) > 0.9

    def test_the_sources_columns_are_kept(self):
        features = Features(
            {"audio": Audio(), "far": Audio(), "gender": ClassLabel(names=["f", "m"]), "age": Value("int8")}
            | {"words": [Value("string")], "duration": Value("float32")}
        ).arrow_schema
        audio = {"bytes": flac(clip()), "path": None}
        rows = [
            {"audio": audio, "far": audio, "gender": gender, "age": 7, "words": ["a", "b"], "duration": 99.0}
            for gender in (1, -1)
        ]
        pa.parquet.write_table(pa.Table.from_pylist(rows, schema=features), "data.parquet")
        manifest = tokenize("data.parquet", "--bottleneck", "2x15625_700bps")
        assert manifest["columns"] == ["id", "codes", "frames", "duration", "gender", "age", "words"]
        table = pa.parquet.read_table(Path("tokens", manifest["shards"][0]["file"]))
        assert table.schema.field("codes").type == pa.list_(pa.list_(pa.int64(), 2))
        assert (table.schema.field("age").type, table.schema.field("frames").type) == (pa.int8(), pa.int64())
        first, second = rows_of().values()
        assert (first["id"], first["gender"], first["age"], first["words"]) == ("data.parquet#0", "m", 7, ["a", "b"])
        assert second["gender"] is None and second["duration"] == 1.0

    def test_manifest(self):
        manifest = tokenize(parquet("data.parquet", many_rows(12)), "--shard-hours", "0.0001")
        codec = load_codec(None, device="cpu")
        assert manifest["model"]["identity"] == codec.identity and manifest["model"]["name"] == "tiny"
        assert manifest["bottleneck"]["vocabulary_sizes"] == [46_656]
        assert manifest["rejected"] == {"bad audio": 1}
        for shard in manifest["shards"]:
            content = Path("tokens", shard["file"]).read_bytes()
            assert shard["bytes"] == len(content) and shard["sha256"] == hashlib.sha256(content).hexdigest()
        rows = rows_of().values()
        assert manifest["rows"] == len(rows) == 11
        assert manifest["frames"] == sum(len(row["codes"]) for row in rows)
        assert manifest["seconds"] == pytest.approx(sum(row["duration"] for row in rows))

    def test_shards_are_cut_by_hours(self, monkeypatch):
        monkeypatch.setattr(corpus_readers, "UNIT_ROWS", 4)
        rows = [row(f"r{n}", flac(clip(0.9, seed=n))) for n in range(20)]
        manifest = tokenize(parquet("data.parquet", rows, row_group_size=2), "--shard-hours", 5 / 3600)
        assert [shard["rows"] for shard in manifest["shards"]] == [8, 8, 4]
        names = [f"data/train-{n:05d}-of-00003-{manifest['fingerprint']}.parquet" for n in range(3)]
        assert [shard["file"] for shard in manifest["shards"]] == names
        assert sorted(path.name for path in Path("tokens/data").iterdir()) == [Path(name).name for name in names]
        assert list(rows_of()) == [f"r{n}" for n in range(20)]

    def test_rows_without_id_are_numbered(self, monkeypatch):
        monkeypatch.setattr(corpus_readers, "UNIT_ROWS", 2)
        tokenize(parquet("data.parquet", [{"audio": row("")["audio"]}] * 5, row_group_size=2))
        assert list(rows_of()) == [f"data.parquet#{n}" for n in range(5)]

    def test_corpora_of_one_name_are_not_taken_for_each_other(self):
        """`datasets` caches what it reads of a folder, and finds it again by the folder's name and its card."""
        for place in ("one", "two"):
            tokenize(parquet(f"{place}.parquet", [row(place)]), output=f"{place}/tokens")
        assert list(rows_of("one/tokens")) == ["one"] and list(rows_of("two/tokens")) == ["two"]

    def test_the_cards_snippets_run(self, tiny_model_folder):
        Path("tiny").symlink_to(tiny_model_folder)
        options = ["--split", "validation", "--bottleneck", "4x729_1000bps", "--license", "cc-by-4.0"]
        tokenize(parquet("data.parquet", [row("a", flac(clip(1.0)))]), *options)
        text = Path("tokens/README.md").read_text()
        assert "license: cc-by-4.0" in text
        names: dict = {}
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(code, names)
        assert names["audio"].shape == (1, 1, RATE)

    def test_a_licence_that_is_told_later(self):
        source = parquet("data.parquet", [row("a")])
        tokenize(source)
        card = Path("tokens/README.md")
        card.write_text(card.read_text() + "\nMy own words.\n")
        before = rows_of()
        tokenize(source)
        assert DatasetCard.load(card).data.license is None
        tokenize(source, "--license", "cc0-1.0")
        assert DatasetCard.load(card).data.license == "cc0-1.0" and "My own words." in card.read_text()
        assert rows_of() == before

    def test_names_that_are_no_utf_8(self):
        folder = os.path.join(b"in", b"caf\xe9")
        os.makedirs(folder)
        Path(os.fsdecode(folder), "a.flac").write_bytes(flac(clip()))
        Path(os.fsdecode(folder), "c.flac").write_bytes(b"noise")
        tokenize("in")
        assert set(rows_of()) == {r"caf\xe9/a.flac"}
        assert set(rejects_of()) == {r"caf\xe9/c.flac"}

    def test_report(self, capsys):
        tokenize(parquet("data.parquet", many_rows(10)), "--price-per-hour", "2")
        report = json.loads(Path("tokens/report.json").read_text())
        assert report["unit"] == "core" and 0 < report["model_busy_share"] <= 1
        assert report["audio_seconds"] == pytest.approx(sum(row["duration"] for row in rows_of().values()))
        assert report["million_hours"]["unit_hours"] == pytest.approx(1e6 / report["speed_per_unit"], rel=0.01)
        assert report["million_hours"]["cost"] == pytest.approx(2 * report["million_hours"]["unit_hours"], rel=0.01)
        assert "a million hours would take" in capsys.readouterr().out

    def test_dtype_changes_tokens_only_if_asked_for(self):
        source = parquet("data.parquet", [row("a", flac(clip(3.0)))])
        manifest = tokenize(source, "--dtype", "bfloat16", output="half")
        tokenize(source, output="full")
        assert manifest["plan"]["dtype"] == "bfloat16"
        half, full = (np.array(rows_of(name)["a"]["codes"]) for name in ("half", "full"))
        assert half.shape == full.shape and (half != full).any()


class TestSources:
    @pytest.fixture
    def expected(self) -> dict[str, list]:
        """Tokens by the text of the recording, from Parquet."""
        rows = [row(name, flac(clip(0.6 + 0.2 * n, seed=n)), text=name.upper()) for n, name in enumerate("abc")]
        tokenize(parquet("source.parquet", rows), output="expected")
        self.clips = {row["text"]: row["audio"]["bytes"] for row in rows}
        return {row["text"]: row["codes"] for row in rows_of("expected").values()}

    def test_folder_of_audio_with_metadata(self, expected):
        Path("speech/deep").mkdir(parents=True)
        lines = ["file_name,text,speaker"]
        for text, audio in self.clips.items():
            Path("speech/deep", f"{text}.flac").write_bytes(audio)
            lines.append(f"deep/{text}.flac,{text},{text * 2}")
        Path("speech/metadata.csv").write_text("\n".join([*lines, "deep/gone.flac,GONE,x"]))
        Path("speech/unknown.flac").write_bytes(self.clips["A"])
        tokenize("speech")
        rows = rows_of()
        assert list(rows) == ["deep/A.flac", "deep/B.flac", "deep/C.flac", "unknown.flac"]
        assert {row["text"]: row["codes"] for row in list(rows.values())[:3]} == expected
        assert rows["deep/B.flac"]["speaker"] == "BB" and rows["unknown.flac"]["text"] is None
        assert rejects_of()["deep/gone.flac"].startswith("missing")

    def test_a_file_that_is_named_is_tried_whatever_it_is_called(self):
        Path("in").mkdir()
        Path("in/speech.dat").write_bytes(flac(clip()))
        tokenize("in/speech.dat")
        assert list(rows_of()) == ["speech.dat"]

    def test_metadata_is_text_as_it_stands(self):
        for number, folder in enumerate(("one", "two/deep")):
            Path(folder).mkdir(parents=True)
            Path(folder, "a.flac").write_bytes(flac(clip(seed=number)))
            Path(folder, "metadata.csv").write_text(f"file_name,id,speaker,text\na.flac,000{number},007,0\n")
        tokenize("one", "two")
        rows = rows_of()
        assert list(rows) == ["0000", "0001"]
        assert {(row["speaker"], row["text"]) for row in rows.values()} == {("007", "0")}

    @pytest.mark.parametrize(
        ("lines", "message"),
        [(b"a.flac,caf\xe9", "cannot be read"), (b"a.flac,one\na.flac,two", "tells more than once about a.flac")],
    )
    def test_metadata_that_cannot_be_used(self, capsys, lines, message):
        Path("in").mkdir()
        Path("in/a.flac").write_bytes(flac(clip()))
        Path("in/metadata.csv").write_bytes(b"file_name,text\n" + lines)
        assert f"in/metadata.csv: {message}" in refusal(capsys, "in")

    def test_archives(self, expected):
        Path("shards").mkdir()
        for number, (text, audio) in enumerate(self.clips.items()):
            facts = {"text": text, "speaker": 12 if number else "twelve", "spans": [[0, 1]]}
            members = {
                "0001.json": json.dumps(facts).encode(),
                "0001.flac": audio,
                "0001.npy": b"x",
                "._0001.flac": b"",
            }
            tar(f"shards/{number}.tar", members)
        tokenize("shards")
        rows = rows_of()
        assert list(rows) == ["0.tar/0001", "1.tar/0001", "2.tar/0001"]
        assert {row["text"]: row["codes"] for row in rows.values()} == expected
        assert [row["speaker"] for row in rows.values()] == ["twelve", "12", "12"]
        assert rows["0.tar/0001"]["spans"] == "[[0, 1]]"

    def test_data_set_that_is_streamed(self, expected):
        for split, names in {"train": "A", "test": "ABC"}.items():
            data = {"sound": [{"bytes": self.clips[name], "path": None} for name in names], "text": list(names)}
            dataset = Dataset.from_dict(data | {"kind": [1] * len(names)}).cast_column("sound", Audio())
            dataset = dataset.cast_column("kind", ClassLabel(names=["read", "free"]))
            for number in range(len(names)):
                name = f"speech/data/{split}-{number:05d}-of-{len(names):05d}.parquet"
                dataset.shard(len(names), number, contiguous=True).to_parquet(name)
        manifest = tokenize("speech", "--split", "test", "--audio-column", "sound")
        assert manifest["sources"][0]["units"] == 3
        rows = load_dataset("tokens", split="test")
        assert {row["text"]: row["codes"] for row in rows} == expected
        assert rows["id"] == [f"test-{n:05d}#0" for n in range(3)] and set(rows["kind"]) == {"free"}

    def test_data_sets_that_are_no_parquet(self, expected):
        """`datasets` wants torchcodec for them as soon as it makes Python objects of their rows."""
        for name, audio in self.clips.items():
            Path("speech").mkdir(exist_ok=True)
            Path(f"speech/{name}.flac").write_bytes(audio)
        lines = [f"{name}.flac,{name}" for name in self.clips]
        Path("speech/metadata.csv").write_text("\n".join(["file_name,text", *lines]))
        tokenize("speech", "--split", "train")
        assert {row["text"]: row["codes"] for row in rows_of().values()} == expected
        os.rename("speech", "table")
        Path("table/metadata.csv").unlink()
        Path("table/train.csv").write_text("\n".join(["audio,text", *lines]))
        tokenize("table", "--split", "train", output="of_table")
        assert {row["text"]: row["codes"] for row in rows_of("of_table").values()} == expected

    def test_files_that_several_sources_name_are_read_once(self):
        Path("all/some").mkdir(parents=True)
        for name in ("all/a.flac", "all/some/b.flac"):
            Path(name).write_bytes(flac(clip()))
        Path("all/metadata.csv").write_text("file_name,text\na.flac,A\n")
        Path("all/some/metadata.csv").write_text("file_name,text\nb.flac,B\n")
        tokenize("all", "all/some", "./all", "all/a.flac")
        assert {name: row["text"] for name, row in rows_of().items()} == {"a.flac": "A", "some/b.flac": "B"}

    def test_several_sources_keep_their_order_and_names(self):
        for name in ("b/x.wav", "a/x.wav", "c.wav"):
            Path(name).parent.mkdir(exist_ok=True)
            soundfile.write(name, clip(0.5, seed=ord(name[0])), RATE)
        parquet("d.parquet", [row("x", note=1)])
        tokenize("b", "c.wav", "a", "*.parquet")
        assert list(rows_of()) == ["b/x.wav", "c.wav", "a/x.wav", "x"]
        assert rows_of()["c.wav"]["note"] is None

    def test_id_column(self):
        rows = [{"id": "speaker", "utterance": f"u{n}", "audio": row("")["audio"]} for n in range(3)]
        tokenize(parquet("data.parquet", rows), "--id-column", "utterance")
        assert list(rows_of()) == ["u0", "u1", "u2"]

    def test_what_cannot_be_a_source(self, capsys):
        Path("empty").mkdir()
        parquet("texts.parquet", [{"text": "a"}])
        parquet("data.parquet", [row("a")])
        assert "holds no audio" in refusal(capsys, "empty")
        Path("listed").mkdir()
        Path("listed/metadata.csv").write_text("file_name,text\n")
        assert "holds nothing to encode" in refusal(capsys, "listed")
        assert "no such file" in refusal(capsys, "none.parquet")
        assert "no column 'audio', only text" in refusal(capsys, "texts.parquet")
        assert "no column 'nr'" in refusal(capsys, "data.parquet", "--id-column", "nr")
        assert "no column 'nr'" in refusal(capsys, "listed", "--id-column", "nr")
        with pytest.raises(SystemExit):
            refusal(capsys, "data.parquet", "--split", "a/b")
        assert "is in ., which is read" in refusal(capsys, ".")


class TestRejects:
    def test_each_bad_row_has_its_reason(self):
        good = flac(clip(0.5))
        rows = [
            row("good", good),
            row("noise", b"this is not audio"),
            row("cut", good[: len(good) // 2]),
            row("short", flac(clip(0.2))),
            row("silent", flac(np.zeros(RATE, np.float32))),
            {"id": "nothing", "audio": {"bytes": None, "path": None}},
            {"id": "away", "audio": {"bytes": None, "path": "away.wav"}},
            row("last", flac(clip(0.7, seed=2))),
        ]
        manifest = tokenize(parquet("data.parquet", rows))
        reasons = rejects_of()
        kinds = {name: reason.split(":")[0] for name, reason in reasons.items()}
        assert list(rows_of()) == ["good", "last"] and rows_of()["good"]["duration"] == 0.5
        assert kinds == {
            "noise": "bad audio",
            "cut": "bad audio",
            "short": "too short",
            "silent": "silent",
            "nothing": "missing",
            "away": "missing",
        }
        assert manifest["rejected"] == {"bad audio": 2, "missing": 2, "silent": 1, "too short": 1}
        assert "0.2" in reasons["short"] and "good: " not in reasons["noise"]
        tokenize("data.parquet", "--min-seconds", "0.1", output="shorter")
        assert "short" in rows_of("shorter")

    def test_rows_of_one_id_are_told_apart(self):
        durations = [0.5, 0.6, 0.7, 0.8, 0.9]
        names = ["a", "b", "a#2", "a", "a"]
        rows = [row(name, flac(clip(seconds))) for name, seconds in zip(names, durations, strict=True)]
        parquet("one.parquet", rows[:3])
        parquet("two.parquet", rows[3:])
        tokenize("one.parquet", "two.parquet", "*.parquet", "one.parquet")
        expected = dict(zip(["a", "b", "a#2", "a#3", "a#4"], durations, strict=True))
        assert {name: each["duration"] for name, each in rows_of().items()} == expected

    def test_audio_of_another_kind_is_told(self, capsys):
        for name, audio in {
            "samples": {"array": [0.0, 0.1], "sampling_rate": RATE},
            "bare": [0.0, 0.1],
            "number": 7,
        }.items():
            path = parquet(f"{name}.parquet", [{"id": "a", "audio": audio}])
            assert "expected the bytes or the path of an audio file" in refusal(capsys, path, output=name)
        mapping = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
        table = pa.Table.from_pylist([row("a")]).append_column("extra", mapping)
        pa.parquet.write_table(table, "map.parquet")
        assert "map.parquet: has a column of a kind" in refusal(capsys, "map.parquet")

    def test_damaged_containers_give_what_can_be_read(self):
        audio = [flac(clip(0.5, seed=n)) for n in range(4)]
        tar("cut.tar", {f"{number}.flac": content for number, content in enumerate(audio)})
        os.truncate("cut.tar", 2 * 512 + len(audio[0]) + len(audio[1]) + 2000)
        parquet("whole.parquet", [row("a")])
        Path("broken.parquet").write_bytes(Path("whole.parquet").read_bytes()[:-20])
        tokenize("cut.tar", "broken.parquet", "whole.parquet")
        assert list(rows_of())[-1] == "a" and "cut.tar/0" in rows_of()
        assert {name: reason.split(":")[0] for name, reason in rejects_of().items()} == {
            "cut.tar": "damaged",
            "broken.parquet": "damaged",
        }

    def test_odd_samples_of_an_archive(self):
        members = {"0.flac": flac(clip()), "0.json": rb'{"text": "cut \ud83d"}', "1.flac": flac(clip())}
        tokenize(tar("a.tar", members | {"2.a.flac": flac(clip()), "2.b.flac": flac(clip())}))
        assert list(rows_of()) == ["a.tar/1"]
        reasons = rejects_of()
        assert reasons["a.tar/0"].startswith("bad text") and "two recordings" in reasons["a.tar/2"]

    def test_clips_that_the_model_refuses(self, monkeypatch, capsys):
        source = parquet("data.parquet", [row("a"), row("odd", flac(clip(0.7))), row("b")])
        encode_block = Codec.encode_block
        error = RuntimeError("out of memory")

        def moody(codec, clips, *arguments):
            if any(len(audio) == round(0.7 * RATE) for audio in clips):
                raise error
            return encode_block(codec, clips, *arguments)

        monkeypatch.setattr(Codec, "encode_block", moody)
        assert "odd: cannot be encoded (out of memory)" in refusal(capsys, source)
        error = ValueError("item 0 is too loud")
        tokenize(source)
        assert list(rows_of()) == ["a", "b"] and rejects_of() == {"odd": "bad audio: item 0 is too loud"}

    def test_nothing_but_rejects(self, capsys):
        assert "no row could be tokenised (a: bad audio" in refusal(
            capsys, parquet("data.parquet", [row("a", b"noise")])
        )
        # The folder is free for the mended source.
        tokenize(parquet("data.parquet", [row("b")]))
        assert list(rows_of()) == ["b"]


@pytest.fixture(scope="module")
def processes():
    """Processes that start at once, because they begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_taae.cli", "modeling_taae.cli.tokenize", "datasets"])
    return context


def tokenize_child(arguments: list[str], number: int, limit: int, moment: float) -> None:
    """A run of its own with small units, which is disturbed.

    Args:
        arguments: of the command.
        number: of the file before which it is killed, just as that is about to be put in its place; 0 for none.
        limit: size of the largest file that it may write.
        moment: after how many seconds of computing from its first part on it is killed; 0 for never.
    """
    sys.stderr = open("log.txt", "w")
    corpus_readers.UNIT_ROWS = 5
    replace, writes = os.replace, []

    def disturbed(source, target) -> None:
        writes.append(target)
        if len(writes) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if moment and len(writes) == 3:
            signal.setitimer(signal.ITIMER_PROF, moment)
        replace(source, target)

    os.replace = disturbed
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(cli.main(["tokenize", *arguments]))


class TestInterruption:
    @pytest.fixture(autouse=True)
    def small_units(self, monkeypatch):
        monkeypatch.setattr(corpus_readers, "UNIT_ROWS", 5)

    @pytest.fixture
    def start(self, processes):
        def start(*arguments, number: int = 0, limit: int = resource.RLIM_INFINITY, moment: float = 0):
            settings = ([*arguments, "-o", "tokens"], number, limit, moment)
            process = processes.Process(target=tokenize_child, args=settings)
            process.start()
            return process

        return start

    @staticmethod
    def source(rows: int) -> list[str]:
        return [parquet("data.parquet", many_rows(rows), row_group_size=5), "--shard-hours", "0.003"]

    def test_killed_at_random_moments(self, start):
        source = self.source(rows=30)
        assert len(tokenize(*source, output="undisturbed/tokens")["shards"]) > 1
        generator, kills = random.Random(0), 0
        while True:
            parts = {path: path.stat().st_mtime_ns for path in Path("tokens/.parts").glob("0*.parquet")}
            process = start(*source, moment=generator.uniform(0.001, 0.05))
            process.join()
            if process.exitcode == 0:
                break
            # The timer's signal, which ends a process as SIGKILL does where nothing handles it.
            assert process.exitcode == -signal.SIGPROF
            kills += 1
            if not Path("tokens/manifest.json").exists():
                assert all(path.stat().st_mtime_ns == when for path, when in parts.items()), "a part was made twice"
        assert kills > 0
        assert contents("tokens") == contents("undisturbed/tokens")

    def test_killed_at_every_write(self, start):
        source = self.source(rows=15)
        tokenize(*source, output="undisturbed/tokens")
        for number in range(1, 100):
            process = start(*source, number=number)
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
        assert number > 7
        assert contents("tokens") == contents("undisturbed/tokens")

    def test_disk_full(self, start):
        source = self.source(rows=10)
        tokenize(*source, output="undisturbed/tokens")
        process = start(*source, limit=1500)
        process.join()
        message = Path("log.txt").read_text()
        assert process.exitcode == 2 and message.count("\n") == 1
        assert "cannot be written (File too large)" in message and "run the same command again" in message
        tokenize(*source)
        assert contents("tokens") == contents("undisturbed/tokens")

    def test_what_has_changed_is_refused(self, start, capsys, make_tiny_model, tiny_model_folder):
        source = self.source(rows=10)
        process = start(*source, number=3)
        process.join()
        assert "another bottleneck" in refusal(capsys, *source, "--bottleneck", "native")
        assert "another loudness (-20.0, now null)" in refusal(capsys, *source, "--no-loudness")
        make_tiny_model(1).save_pretrained("other")
        load_codec(str(tiny_model_folder), device="cpu").extractor.save_pretrained("other")
        assert "another model" in refusal(capsys, *source, "--model", "other")
        changed = os.stat("data.parquet")
        os.utime("data.parquet", (1, 1))
        assert "another source (other files, or" in refusal(capsys, *source)
        os.utime("data.parquet", ns=(changed.st_atime_ns, changed.st_mtime_ns))
        tokenize(*source)

    def test_one_run_at_a_time(self, start, capsys):
        source = self.source(rows=40)
        process = start(*source)
        while not list(Path("tokens/.parts").glob("0*.parquet")):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            message = refusal(capsys, *source)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert "another run is at work" in message and process.exitcode == 0

    def test_a_complete_corpus_is_left_as_it_is(self, capsys):
        source = parquet("data.parquet", many_rows(8))
        tokenize(source)
        before = contents("tokens")
        # What a run leaves behind that is killed when all is there.
        Path("tokens/.parts").mkdir()
        parquet("tokens/.parts/00000000.parquet", many_rows(1))
        tokenize(source)
        assert contents("tokens") == before and "nothing is left to do" in capsys.readouterr().out
        assert "another bottleneck" in refusal(capsys, source, "--bottleneck", "native")

    @pytest.mark.parametrize("name", ["manifest.json", ".parts/plan.json"])
    def test_damaged_notes_are_told(self, capsys, name):
        source = parquet("data.parquet", [row("a")])
        Path("tokens/.parts").mkdir(parents=True)
        Path("tokens", name).write_text('{"plan": ')
        assert f"tokens/{name}: is damaged" in refusal(capsys, source)

    def test_other_folders_are_not_touched(self, capsys):
        Path("photos").mkdir()
        Path("photos/cat.jpg").write_text("meow")
        source = parquet("data.parquet", [row("a")])
        assert "holds no tokenised corpus" in refusal(capsys, source, output="photos")
        assert "cannot be written (Not a directory)" in refusal(capsys, source, output="photos/cat.jpg/tokens")
        assert [path.name for path in Path("photos").iterdir()] == ["cat.jpg"]


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """Kills one of this process's Ray workers as soon as there are two parts."""
    import psutil

    while not killed and threading.main_thread().is_alive():
        time.sleep(0.05)
        if len(list(folder.glob("0*.parquet"))) >= 2:
            workers = [child for child in psutil.Process().children(recursive=True) if "ray::MapWorker" in child.name()]
            for worker in workers[:1]:
                worker.kill()
                killed.append(worker.pid)


class TestRay:
    def test_same_corpus_though_a_worker_is_killed(self, monkeypatch):
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'modeling_taae[ray]'")
        monkeypatch.setattr(corpus_readers, "UNIT_ROWS", 8)
        source = parquet("data.parquet", many_rows(200), row_group_size=8)
        tokenize(source, output="here/tokens")
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_worker, args=(Path("there/tokens/.parts"), killed))
        killer.start()
        tokenize(source, "--ray", "local", "--workers", "2", output="there/tokens")
        killer.join()
        assert killed and contents("there/tokens") == contents("here/tokens")
        report = json.loads(Path("there/tokens/report.json").read_text())
        assert report["workers"] == report["units"] == 2

    def test_workers_without_a_cluster(self, capsys):
        assert "add --ray local" in refusal(capsys, parquet("data.parquet", [row("a")]), "--workers", "2")

    def test_an_address_where_nothing_is(self, capsys):
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'modeling_taae[ray]'")
        source = parquet("data.parquet", [row("a")])
        assert "Connection refused" in refusal(capsys, source, "--ray", "127.0.0.1:1")
