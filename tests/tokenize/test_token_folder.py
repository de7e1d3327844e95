"""A finished token folder: its manifest, and its files against it; a unit's way through the queue."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.token_folders import many_rows, parquet, refusal, row, tokenize

from modeling_taae.data.readers import Row
from modeling_taae.errors import TaaeInputError
from modeling_taae.files import as_json
from modeling_taae.tokenize import Manifest, open_token_folder
from modeling_taae.tokenize.report import Report
from modeling_taae.tokenize.units import Clip, UnitQueue, UnitState

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tokens"


class TestManifest:
    def test_those_of_before_are_read_and_written_as_they_were(self):
        text = (FIXTURES / "manifest.json").read_bytes()
        manifest = Manifest.from_json(json.loads(text))
        assert as_json(manifest.to_json()) == text
        assert manifest.rows == 278 and manifest.plan.audio_column == "audio" and len(manifest.shards) == 2
        text = (FIXTURES / "report.json").read_bytes()
        assert as_json(Report.from_json(json.loads(text)).to_json()) == text

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": "photos"}, "its format is 'photos'"),
            ({"shards": None}, "is no manifest"),
            ({"shards": [{"file": "data/a"}]}, "it has no 'rows'"),
            ({"rows": 1}, "contradicts itself about rows"),
            ({"split": "test"}, "contradicts itself about split"),
            ({"model": {"identity": "0" * 16}}, "contradicts itself about model"),
            ({"bottleneck": {"name": "native"}}, "contradicts itself about bottleneck"),
            ({"plan": {}}, "it has no 'model'"),
        ],
    )
    def test_of_something_else(self, tmp_path, change, message):
        content = json.loads((FIXTURES / "manifest.json").read_text())
        for name, value in change.items():
            content[name] = content[name] | value if isinstance(value, dict) and value else value
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(TaaeInputError, match=message):
            open_token_folder(tmp_path)


@pytest.fixture(scope="module")
def finished(tiny_model_folder, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    source = parquet(str(place / "data.parquet"), many_rows(8))
    tokenize(source, "--model", tiny_model_folder, output=str(place / "tokens"))
    return place


class TestVerification:
    @pytest.fixture
    def tokens(self, finished) -> Path:
        shutil.copytree(finished, ".", dirs_exist_ok=True, copy_function=shutil.copy2)
        return Path("tokens")

    @staticmethod
    def shard(tokens: Path) -> Path:
        return next((tokens / "data").iterdir())

    @staticmethod
    def edit(tokens: Path, **changes: object) -> None:
        """Changes the manifest's first shard."""
        content = json.loads((tokens / "manifest.json").read_text())
        content["shards"][0] |= changes
        (tokens / "manifest.json").write_text(json.dumps(content))

    def test_one_that_is_whole(self, tokens):
        (tokens / "README.md").write_text("my own words")
        (tokens / "notes.txt").write_text("mine")
        assert open_token_folder(tokens).rows == 7

    def test_missing(self, tokens, capsys):
        shutil.rmtree(tokens / "data")
        assert "is missing" in refusal(capsys, "data.parquet")

    def test_edited(self, tokens):
        path = self.shard(tokens)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(TaaeInputError, match="has another content"):
            open_token_folder(tokens)

    def test_cut(self, tokens):
        os.truncate(self.shard(tokens), 100)
        with pytest.raises(TaaeInputError, match="has 100 bytes, not"):
            open_token_folder(tokens)

    def test_pointer(self, tokens):
        self.shard(tokens).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(TaaeInputError, match="git lfs pull"):
            open_token_folder(tokens)

    def test_foreign(self, tokens):
        shutil.copy(self.shard(tokens), tokens / "data" / "other.parquet")
        with pytest.raises(TaaeInputError, match="data/other.parquet is not in manifest.json"):
            open_token_folder(tokens)

    @pytest.mark.parametrize("file", ["../data.parquet", "/etc/hostname", "data/../../data.parquet", "README.md"])
    def test_outside(self, tokens, file):
        self.edit(tokens, file=file)
        with pytest.raises(TaaeInputError, match="lies outside of the folder data"):
            open_token_folder(tokens)

    def test_a_link_that_leads_outside(self, tokens):
        path = self.shard(tokens)
        path.rename("moved.parquet")
        path.symlink_to(Path("moved.parquet").absolute())
        with pytest.raises(TaaeInputError, match="lies outside"):
            open_token_folder(tokens)

    def test_checksums_that_were_adapted(self, tokens):
        self.edit(tokens, sha256="0" * 64)
        with pytest.raises(TaaeInputError, match="another content; its fingerprint"):
            open_token_folder(tokens)

    def test_what_an_earlier_assembly_left_is_removed(self, tokens):
        """As of a run that was killed before its manifest, and another version that makes other shards."""
        content = json.loads((tokens / "manifest.json").read_text())
        shutil.rmtree(tokens)
        (tokens / ".parts").mkdir(parents=True)
        (tokens / ".parts" / "plan.json").write_text(json.dumps(content["plan"]))
        left = tokens / "data" / "train-00000-of-00001-0123456789abcdef.parquet"
        left.parent.mkdir()
        left.write_text("cut")
        tokenize("data.parquet")
        assert not left.exists() and open_token_folder(tokens).fingerprint == content["fingerprint"]


class TestUnitQueue:
    def test_a_unit_goes_through_its_states(self):
        queue, codes = UnitQueue(), np.zeros((1, 3), np.int64)
        row = Row("a", "a.wav")
        first = queue.add(5, Clip(row, np.zeros(9), 9))
        queue.add(5, Clip(row, problem="silent"))
        last = queue.add(5, Clip(row, np.zeros(9), 9))
        assert queue.units[5].state is UnitState.READING
        queue.resolve(last, codes)
        queue.close(5)
        assert queue.units[5].state is UnitState.ENCODING and queue.take_complete() == []
        queue.reject(first, "bad audio: NaN")
        assert queue.units[5].state is UnitState.COMPLETE
        ((unit, clips),) = queue.take_complete()
        assert unit == 5 and [clip.problem for clip in clips] == ["bad audio: NaN", "silent", ""]
        assert clips[2].codes is codes and clips[0].samples == 0 and not queue.units

    def test_a_unit_without_rows_is_complete(self):
        queue = UnitQueue()
        queue.close(3)
        assert queue.take_complete() == [(3, [])]


def test_escapes_in_ids_do_not_reach_the_terminal(capsys):
    message = refusal(capsys, parquet("data.parquet", [row("a\x1b[2Jb\x9b31m", b"noise")]))
    assert "\x1b" not in message and "\x9b" not in message and r"a\x1b[2Jb\x9b31m" in message
