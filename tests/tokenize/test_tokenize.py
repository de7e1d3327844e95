"""`taae tokenize` from end to end: what comes out; with a tiny model."""

import hashlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
import torch
from datasets import Audio, ClassLabel, Features, Value
from huggingface_hub import DatasetCard
from support.token_folders import (
    RATE,
    clip,
    contents,
    flac,
    many_rows,
    parquet,
    rejects_of,
    row,
    rows_of,
    tokenize,
)

from modeling_taae.codec import load_codec
from modeling_taae.data.sources import Corpus
from modeling_taae.errors import TaaeInputError
from modeling_taae.tokenize import open_token_folder, tokenize_corpus
from modeling_taae.tokenize.encoder import CorpusEncoder, Encoding


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

    def test_clips_may_wait_for_others_of_their_length(self):
        """As on a GPU: several clips at a time, out of order, of several units."""
        source = parquet("data.parquet", many_rows(50), row_group_size=5)
        tokenize(source, output="one by one")
        tokenize_corpus(source, "together", unit_rows=5, units_together=4, block_seconds=4)
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
        own = ["gender", "age", "words", "source_duration"]
        assert manifest["columns"] == ["id", "codes", "frames", "duration", *own]
        table = pa.parquet.read_table(Path("tokens", manifest["shards"][0]["file"]))
        assert table.schema.field("codes").type == pa.list_(pa.list_(pa.int64(), 2))
        assert (table.schema.field("age").type, table.schema.field("frames").type) == (pa.int8(), pa.int64())
        first, second = rows_of().values()
        assert (first["id"], first["gender"], first["age"], first["words"]) == ("data.parquet#0", "m", 7, ["a", "b"])
        assert second["gender"] is None and (second["duration"], second["source_duration"]) == (1.0, 99.0)

    def test_columns_with_our_names_are_kept(self):
        """A corpus that another codec has tokenised; and ids beside those that were asked for."""
        facts = {"codes": [[1, 2]], "frames": 7, "source_codes": "x", "utterance": "u"}
        tokenize(parquet("data.parquet", [row("speaker", **facts)]), "--id-column", "utterance")
        kept = rows_of()["u"]
        assert kept["source_source_codes"] == [[1, 2]] and kept["source_codes"] == "x"
        assert (kept["source_frames"], kept["source_id"]) == (7, "speaker")
        assert np.shape(kept["codes"]) == (kept["frames"], 1)

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

    def test_shards_are_cut_by_hours(self):
        rows = [row(f"r{n}", flac(clip(0.9, seed=n))) for n in range(20)]
        source = parquet("data.parquet", rows, row_group_size=2)
        manifest = tokenize_corpus(source, "tokens", unit_rows=4, shard_hours=5 / 3600)
        assert [shard.rows for shard in manifest.shards] == [8, 8, 4]
        names = [f"data/train-{n:05d}-of-00003-{manifest.fingerprint}.parquet" for n in range(3)]
        assert [shard.file for shard in manifest.shards] == names
        assert sorted(path.name for path in Path("tokens/data").iterdir()) == [Path(name).name for name in names]
        assert list(rows_of()) == [f"r{n}" for n in range(20)]

    def test_rows_without_id_are_numbered(self):
        source = parquet("data.parquet", [{"audio": row("")["audio"]}] * 5, row_group_size=2)
        tokenize_corpus(source, "tokens", unit_rows=2)
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

    def test_from_python(self, capsys):
        source = parquet("data.parquet", many_rows(10))
        tokenize(source, output="by command/tokens")
        assert "million" not in capsys.readouterr().out, "nobody asked for a price"
        manifest = tokenize_corpus(Path(source), Path("by python/tokens"))
        assert contents("by python/tokens") == contents("by command/tokens") and capsys.readouterr().out == ""
        assert manifest.rows == 9 and manifest.rejected == {"bad audio": 1}
        assert tokenize_corpus([source], "by python/tokens") == manifest == open_token_folder("by python/tokens")
        with pytest.raises(TaaeInputError, match="no bottleneck"):
            tokenize_corpus(source, "other", bottleneck="none")

    def test_the_callers_codec_stays_as_it_is(self):
        codec = load_codec(None, device="cpu")
        corpus = Corpus([parquet("data.parquet", many_rows(3))])
        encoder = CorpusEncoder(corpus, Encoding("native", "bfloat16", 0.4, 1), codec)
        assert len(list(encoder.parts([0]))) == 1
        assert codec.extractor.target_loudness == -20.0 and codec.model.dtype == torch.float32

    def test_dtype_changes_tokens_only_if_asked_for(self):
        source = parquet("data.parquet", [row("a", flac(clip(3.0)))])
        manifest = tokenize(source, "--dtype", "bfloat16", output="half")
        tokenize(source, output="full")
        assert manifest["plan"]["dtype"] == "bfloat16"
        half, full = (np.array(rows_of(name)["a"]["codes"]) for name in ("half", "full"))
        assert half.shape == full.shape and (half != full).any()

    @pytest.mark.slow
    def test_layers_are_compiled_if_asked_for(self):
        source = parquet("data.parquet", many_rows(4))
        manifest = tokenize(source, "--compile", output="compiled")
        assert manifest["plan"]["compile"] is True and "compile" not in tokenize(source, output="plain")["plan"]
        compiled, plain = (rows_of(name) for name in ("compiled", "plain"))
        assert list(compiled) == list(plain)
        tokens, others = (np.concatenate([row["codes"] for row in rows.values()]) for rows in (compiled, plain))
        assert tokens.shape == others.shape and (tokens == others).mean() > 0.99
        with pytest.raises(TaaeInputError, match="compile"):
            tokenize_corpus(source, "plain", compile=True)
