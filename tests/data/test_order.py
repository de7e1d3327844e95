"""The order of rows and their names, on which tokens begun earlier, results and the crops of a seed depend."""

import hashlib
import os
import pickle
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import interleave_datasets, load_dataset
from support.corpora import CLIPS, archive, members, write

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.data.sources import Corpus
from modeling_taae.data.utterances import Utterances
from training.data import StreamedCrops, open_corpus
from training.recipe import CorpusConfig, DataConfig

# Names that sort otherwise as texts than as paths.
RECORDINGS = ("a/b/x.flac", "a-b/x.flac", "a/y.flac", "z.flac", "a.flac", "A.flac")
TIME = 1_700_000_000


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Recordings, tables and an archive, of which each file has the same time."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # So long `datasets` waits for its own threads at the end of each stream of Parquet files.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.chdir(tmp_path)
    for name in RECORDINGS:
        write(tmp_path / "speech" / name, CLIPS["a"])
    for number, rows in enumerate((9, 5, 7)):
        names = [{"audio": CLIPS["b"], "id": f"{number}-{row}"} for row in range(rows)]
        (tmp_path / "tables").mkdir(exist_ok=True)
        pa.parquet.write_table(pa.Table.from_pylist(names), f"tables/{number}.parquet", row_group_size=4)
    write(tmp_path / "mixed/m.flac", CLIPS["a"])
    pa.parquet.write_table(pa.table({"audio": [CLIPS["b"]] * 2}), "mixed/t.parquet")
    archive(tmp_path / "mixed/s.tar", members("ab"))
    for file in tmp_path.rglob("*.*"):
        os.utime(file, (TIME, TIME))
    return tmp_path


def fingerprint(root: Path, *names: str) -> str:
    """As the first version of `taae tokenize` wrote it into its plans."""
    lines = [f"{name}\t{(root / name).stat().st_size}\t{TIME * 10**9}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def test_tokens_that_were_begun_go_on(place):
    """Units, ids and fingerprints are those of before."""
    corpus = Corpus(["speech", "tables", "mixed"], unit_rows=4)
    assert [source["units"] for source in corpus.sources] == [2, 7, 3]
    assert [source["fingerprint"] for source in corpus.sources] == [
        fingerprint(place, *(f"speech/{name}" for name in sorted(RECORDINGS, key=lambda name: Path(name)))),
        fingerprint(place, "tables/0.parquet", "tables/1.parquet", "tables/2.parquet"),
        fingerprint(place, "mixed/m.flac", "mixed/s.tar", "mixed/t.parquet"),
    ]
    assert [row.id for row in corpus] == [
        *(f"speech/{name}" for name in sorted(RECORDINGS)),
        *(f"{table}-{row}" for table, rows in enumerate((9, 5, 7)) for row in range(rows)),
        *("mixed/m.flac", "mixed/t.parquet#0", "mixed/t.parquet#1", "mixed/s.tar/a", "mixed/s.tar/b"),
    ]


def test_results_keep_their_ids(place):
    """Names begin at each source, tables come first, and rows without an id are numbered."""
    by_path = sorted(RECORDINGS, key=lambda name: Path(name))
    assert [each.id for each in Utterances(["speech"])] == by_path
    assert [each.id for each in Utterances(["mixed", "speech/z.flac"])] == [
        *("000000", "000001", "m.flac", "s.tar/a", "s.tar/b", "z.flac")
    ]
    # Of files that a pattern names, a name is left.
    assert [each.id for each in Utterances(["speech/a*/*.flac"])] == ["y.flac", "x.flac"]


@pytest.mark.parametrize(("process", "processes"), [(0, 1), (1, 2), (2, 3)])
def test_streamed_rows_come_as_datasets_shuffles_their_files(place, process, processes):
    """Resumed runs see the crops that they would have seen."""
    data = DataConfig(
        corpora=[CorpusConfig("tables"), CorpusConfig("tables/[01].parquet", weight=2.0)], shuffle_buffer=5
    )
    crops = StreamedCrops(data, TaaeFeatureExtractor(), 3, process, processes, 0)
    found = [pickle.loads(row["row"]).id for row in crops.rows]
    files = [[f"tables/{number}.parquet" for number in range(count)] for count in (3, 2)]
    streams = [load_dataset("parquet", data_files=each, split="train", streaming=True) for each in files]
    expected = interleave_datasets(
        [stream.select_columns(["id"]) for stream in streams],
        probabilities=[1 / 3, 2 / 3],
        seed=3,
        stopping_strategy="all_exhausted",
    ).shuffle(seed=3, buffer_size=5)
    expected = datasets.distributed.split_dataset_by_node(expected, rank=process, world_size=processes)
    assert found == [row["id"] for row in expected] and len(found) > 9


def test_decoded_rows_come_in_the_order_of_paths(place):
    assert [row.id for row in open_corpus(CorpusConfig("speech"))] == sorted(RECORDINGS, key=lambda name: Path(name))
