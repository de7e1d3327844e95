"""`taae tokenize` with sources of every kind and bad rows; with a tiny model."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, load_dataset
from support.token_folders import RATE, clip, flac, parquet, refusal, rejects_of, row, rows_of, tar, tokenize

from modeling_taae.codec import Codec


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
        [
            (b"a.flac,a,b", "cannot be read (row 2 has 3 columns, where its first has 2)"),
            (b'a.flac,"open\nb.flac,x', "cannot be read (a quote is never closed)"),
            (b"a.flac,one\na.flac,two", "tells more than once about a.flac"),
        ],
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
            "samples": {"array": [0.0, 0.1], "rate of what": RATE},
            "bare": [0.0, 0.1],
            "number": 7,
        }.items():
            path = parquet(f"{name}.parquet", [{"id": "a", "audio": audio}])
            assert "expected the bytes or the path of an audio file" in refusal(capsys, path, output=name)
        mapping = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
        table = pa.Table.from_pylist([row("a")]).append_column("extra", mapping)
        pa.parquet.write_table(table, "map.parquet")
        assert "map.parquet: has a column of a type" in refusal(capsys, "map.parquet")

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
