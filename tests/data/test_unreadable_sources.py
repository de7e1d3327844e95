"""What in a source cannot be read is counted and named, stops nothing else, and is read as soon as it can be."""

import gzip
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from support.corpora import (
    CLIPS,
    NAMES,
    RATE,
    SPOKEN,
    archive,
    bytes_and_paths,
    empty_shard,
    encoded,
    lines,
    members,
    recordings,
    samples,
    saved,
    table,
    write,
)

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.data import archives
from modeling_taae.data.decode import decode_row
from modeling_taae.data.sources import Corpus
from modeling_taae.data.streams import open_dataset
from modeling_taae.data.utterances import Utterances
from modeling_taae.errors import TaaeInputError
from training.data import CorpusError, DecodedCorpus, TrainingCrops
from training.recipe import CorpusConfig, DataConfig


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def problems(*sources: str | Path, **options) -> dict[str, str]:
    """What is wrong with rows, by id; the rest must be decodable."""
    found = {}
    for row in Corpus(list(map(str, sources)), **options):
        try:
            assert len(decode_row(row, RATE).audio) > 0
        except TaaeInputError as error:
            found[row.id] = str(error).removeprefix(f"{row.id}: ")
    return found


def lengths(*sources: str | Path, **options) -> list[float]:
    """Seconds of all that can be read."""
    return [len(u.audio) / RATE for u in Utterances(list(map(str, sources)), **options) if u.audio is not None]


class TestRejects:
    def test_pipes_and_folders_among_files(self, tmp_path):
        folder = recordings(tmp_path / "in")
        for name in ("pipe.wav", "pipe.parquet", "pipe.tar", "pipe.txt", "list.csv"):
            os.mkfifo(folder / name)
        (folder / "folder.wav").mkdir()
        (folder / "gone.wav").symlink_to("nowhere")
        found = problems(folder)
        assert {name: reason.split(":")[0] for name, reason in found.items()} == {
            "pipe.wav": "bad audio",
            "pipe.parquet": "bad audio",
            "pipe.tar": "bad audio",
            "gone.wav": "missing",
        }
        assert lengths(folder) == list(SPOKEN.values())

    def test_a_pipe_as_metadata_is_refused(self, tmp_path):
        folder = recordings(tmp_path / "in")
        os.mkfifo(folder / "metadata.csv")
        with pytest.raises(TaaeInputError, match="no regular file"):
            Corpus([str(folder)])

    def test_a_member_that_claims_to_be_large(self, tmp_path):
        folder = tmp_path / "in"
        archive(folder / "b.tar", members())
        header = tarfile.TarInfo("huge.wav")
        header.size = 40 << 30
        lie = header.tobuf(tarfile.GNU_FORMAT)
        write(folder / "a.tar", lie + CLIPS["a"])
        sparse = tarfile.TarInfo("huge.wav")
        sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
        block = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
        block[386:410], block[483:495] = b"%011o\0%011o\0" % (0, 0), b"%011o\0" % ((1 << 33) - 1)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        small = io.BytesIO()
        with tarfile.open(fileobj=small, mode="w") as rest:
            info = tarfile.TarInfo("good.flac")
            info.size = len(CLIPS["b"])
            rest.addfile(info, io.BytesIO(CLIPS["b"]))
        write(folder / "c.tar", bytes(block) + small.getvalue())
        found = problems(folder)
        assert found.keys() == {"a.tar", "a.tar/huge", "c.tar/huge"}
        assert found["a.tar/huge"].startswith("too large") and found["c.tar/huge"].startswith("too large")
        assert lengths(folder) == [*SPOKEN.values(), SPOKEN[NAMES["b"]]]

    def test_an_archive_that_expands_beyond_all_measure(self, tmp_path, monkeypatch):
        monkeypatch.setattr(archives, "plain_archive", partial(archives.plain_archive, least_limit=1 << 20))
        bomb = write(tmp_path / "bomb.tar.gz", gzip.compress(bytes(1 << 24)))
        good = archive(tmp_path / "good.tar.gz", members(), "w:gz")
        cut = write(tmp_path / "cut.tgz", good.read_bytes()[:-3000])
        found = problems(bomb, good, cut)
        assert "expand to more than" in found["bomb.tar.gz"] and found["cut.tgz"].startswith("damaged")
        assert lengths(good) == list(SPOKEN.values()) and 0 < len(lengths(cut)) < 3

    def test_one_damaged_shard_among_others(self, tmp_path):
        folder = empty_shard(tmp_path / "in")
        write(folder / "b.parquet", (folder / "x.parquet").read_bytes()[:-30])
        write(folder / "c.parquet", b"")
        assert {name: reason.split(":")[0] for name, reason in problems(folder).items()} == {
            "b.parquet": "damaged",
            "c.parquet": "damaged",
        }
        corpus = DecodedCorpus(CorpusConfig(str(folder)), TaaeFeatureExtractor())
        assert corpus.skipped == 2 and corpus.samples == RATE * sum(SPOKEN.values())

    def test_recordings_of_other_kinds_are_not_passed_over(self, tmp_path):
        folder = recordings(tmp_path / "in")
        for name in ("d.wma", "e.amr", "f.M4A"):
            write(folder / name, b"not even that")
        assert problems(folder).keys() == {"d.wma", "e.amr", "f.M4A"}
        corpus = DecodedCorpus(CorpusConfig(str(folder)), TaaeFeatureExtractor())
        assert corpus.skipped == 3 and all("ffmpeg" in problem for problem in corpus.problems)

    @pytest.mark.parametrize(
        "cell",
        [
            {"array": [0.1] * RATE},
            {"array": ["a"] * 9, "sampling_rate": RATE},
            {"array": [0.1] * RATE, "sampling_rate": -1},
            {"array": [[[0.1]]], "sampling_rate": RATE},
            {"array": [float("nan")] * RATE, "sampling_rate": RATE},
        ],
        ids=["no rate", "no numbers", "no such rate", "no such shape", "not finite"],
    )
    def test_samples_that_are_none(self, tmp_path, cell):
        (reason,) = problems(table(tmp_path / "x.parquet", [cell], ["a"])).values()
        assert "samples with their sampling_rate" in reason or "NaN" in reason

    def test_what_is_packed_is_not_called_broken_sound(self, tmp_path):
        packed = write(tmp_path / "x.zip", b"PK")
        (reason,) = problems(packed, recordings(tmp_path / "in")).values()
        assert "unpack it first" in reason
        for name in ("gone.tar.gz", "gone.zip", "gone.m4a", "gone.jsonl"):
            with pytest.raises(TaaeInputError, match="no such file"):
                Corpus([name])

    def test_text_that_is_no_text_rejects_its_recording_alone(self, tmp_path):
        folder = recordings(tmp_path / "in")
        write(folder / "a.json", "[1]")
        assert problems(folder) == {"a.flac": "bad text: a.json holds no object (it holds a list)"}


class TestNotes:
    @pytest.mark.parametrize(
        ("name", "content", "told"),
        [
            ("more.zip", b"PK", "1 file is not read (more.zip); unpack them"),
            ("speech.tar.gz", b"x", "1 file is not read (speech.tar.gz)"),
            ("a.TextGrid", b"x", "write what they tell into metadata.csv"),
            ("prices.csv", b"item,price\nx,1\n", "prices.csv: not read (no column file_name"),
            ("train.tsv", b"path\tsentence\nelsewhere.mp3\tx\n", "none of the recordings it names is there"),
            ("invalidated.tsv", b"path\tsentence\na.flac\twrong\n", "invalidated.tsv"),
            ("segments.jsonl", b'{"path": "a.flac"}\n{"path": "a.flac"}\n', "tells more than once about a.flac"),
        ],
    )
    def test_what_lies_unread_is_named(self, tmp_path, caplog, name, content, told):
        folder = recordings(tmp_path / "in")
        write(folder / name, content)
        with caplog.at_level(logging.WARNING):
            corpus = Corpus([str(folder)])
        (note,) = corpus.notes
        assert told in note and caplog.messages == [note]
        assert {row.id for row in corpus} == {f"{each}.flac" for each in NAMES}

    def test_nothing_is_said_where_all_is_read(self, tmp_path):
        folder = recordings(tmp_path / "in")
        write(folder / "README.md", "hello")
        write(folder / "config.json", '{"audio": {"path": 1}}')
        assert Corpus([str(folder)]).notes == []

    def test_recordings_that_tables_name_as_well(self, tmp_path):
        folder = recordings(tmp_path / "in")
        table(folder / "x.parquet", [f"{name}.flac" for name in NAMES])
        (note,) = Corpus([str(folder)]).notes
        assert "3 recordings are read on their own, and once more" in note

    def test_latin_metadata_is_told(self, tmp_path):
        folder = recordings(tmp_path / "in")
        write(folder / "metadata.csv", lines(("file_name", "text"), ("a.flac", "déjà")), "latin-1")
        corpus = Corpus([str(folder)])
        assert next(iter(corpus)).text() == "déjà" and "no UTF-8" in corpus.notes[0]


class TestLists:
    def test_a_list_reads_what_it_names_and_names_what_is_missing(self, tmp_path):
        recordings(tmp_path / "in")
        source = write(tmp_path / "in/some.csv", lines(("path", "text"), ("a.flac", "x"), ("gone.flac", "y")))
        assert [row.id for row in Corpus([str(source)])] == ["a.flac", "gone.flac"]
        assert {name: reason.split(":")[0] for name, reason in problems(source).items()} == {"gone.flac": "missing"}

    def test_a_list_that_is_none(self, tmp_path):
        source = write(tmp_path / "some.jsonl", '{"text": "x"}')
        with pytest.raises(TaaeInputError, match="expected a table with a column file_name"):
            Corpus([str(source)])

    def test_paths_elsewhere_are_opened_where_it_is_allowed(self, tmp_path):
        recordings(tmp_path / "speech/deep")
        rows = [{"audio_filepath": str(tmp_path / f"speech/deep/{name}.flac")} for name in "ab"]
        rows += [{"audio_filepath": "deep/c.flac"}, {"audio_filepath": str(tmp_path / "other.flac")}]
        source = write(tmp_path / "in/list.jsonl", "\n".join(map(json.dumps, rows)))
        write(tmp_path / "other.flac", CLIPS["a"])
        refused = problems(source)
        assert len(refused) == 4 and sum("--audio-root" in reason for reason in refused.values()) == 3
        (reason,) = problems(source, audio_root=str(tmp_path / "speech")).values()
        assert reason.startswith("outside: ")
        cells = [*(row["audio_filepath"] for row in rows), str(tmp_path / "speech/../other.flac")]
        file = table(tmp_path / "in/x.parquet", cells, list("abcde"))
        assert lengths(file, audio_root=str(tmp_path / "speech")) == list(SPOKEN.values())
        corpus = CorpusConfig(str(file), audio_root=str(tmp_path / "speech"))
        assert DecodedCorpus(corpus, TaaeFeatureExtractor()).skipped == 2
        with pytest.raises(TaaeInputError, match="is no folder"):
            Corpus([str(file)], audio_root=str(tmp_path / "nowhere"))

    def test_commands_of_kaldi_are_not_run(self, tmp_path):
        recordings(tmp_path / "in")
        write(tmp_path / "in/wav.scp", f"a a.flac\nb touch {tmp_path}/run |\n")
        (reason,) = problems(tmp_path / "in/wav.scp").values()
        assert reason.startswith("missing") and not (tmp_path / "run").exists()


class TestChannels:
    def test_one_speaker_of_two(self, tmp_path):
        one, two = samples(0.5), samples(0.6)[: RATE // 2]
        write(tmp_path / "in/a.wav", encoded(np.stack([one, two], 1), "WAV"))
        write(tmp_path / "in/b.wav", encoded(one, "WAV"))
        for channel, expected in ((None, (one + two) / 2), (1, one), (2, two)):
            row = next(iter(Corpus([str(tmp_path / "in")], channel=channel)))
            recording = decode_row(row, RATE)
            assert np.abs(recording.audio - expected).max() < 1e-4 and recording.averaged == (channel is None)
        assert "has 1 channel; expected at least 2" in problems(tmp_path / "in", channel=2)["b.wav"]
        assert DecodedCorpus(CorpusConfig(str(tmp_path / "in")), TaaeFeatureExtractor()).averaged == 1
        assert TrainingCrops(DataConfig([CorpusConfig(str(tmp_path / "in"))]), TaaeFeatureExtractor(), 0).averaged == 1
        first, second = (
            DecodedCorpus(CorpusConfig(str(tmp_path / "in"), channel=n), TaaeFeatureExtractor()) for n in (1, 2)
        )
        assert (first.skipped, second.skipped) == (0, 1)
        assert not np.array_equal(first.samples_of(0), second.samples_of(0))


class TestSaved:
    def test_a_split_of_several(self, tmp_path):
        splits = {name: Dataset.from_dict({"audio": [CLIPS[name]], "id": [name]}) for name in NAMES}
        DatasetDict(splits).save_to_disk(tmp_path / "in")
        assert {row.id for row in Corpus([str(tmp_path / "in")])} == set(NAMES)
        assert [row.id for row in Corpus([str(tmp_path / "in")], split="b")] == ["b"]
        assert lengths(tmp_path / "in", split="c") == [SPOKEN[NAMES["c"]]]
        with pytest.raises(TaaeInputError, match="has no split 'd', only a, b, c"):
            Corpus([str(tmp_path / "in")], split="d")

    def test_files_that_are_no_part_of_it_any_more(self, tmp_path):
        folder = saved(tmp_path / "in")
        (arrow,) = folder.glob("*.arrow")
        write(folder / "cache-0123.arrow", arrow.read_bytes())
        assert lengths(folder) == list(SPOKEN.values())


class TestDecodedOnDisk:
    """A failed read is no result."""

    @pytest.fixture
    def seconds(self) -> Callable[[Path], float]:
        def read(source: Path) -> float:
            corpus = DecodedCorpus(CorpusConfig(str(source)), TaaeFeatureExtractor())
            return round(corpus.samples / RATE, 3)

        return read

    def test_files_that_come_back(self, tmp_path, seconds):
        file = table(tmp_path / "in/x.parquet", [f"clips/{name}.flac" for name in NAMES])
        recordings(tmp_path / "in/clips", "b")
        assert seconds(file) == 0.6
        recordings(tmp_path / "in/clips")
        assert seconds(file) == 1.8

    def test_files_that_are_replaced(self, tmp_path, seconds):
        rows = [{"bytes": None, "path": "a.flac"}, {"bytes": CLIPS["b"], "path": "a.flac"}]
        file = table(tmp_path / "in/x.parquet", rows, ["a", "b"])
        recordings(tmp_path / "in")
        assert seconds(file) == 1.1
        write(tmp_path / "in/a.flac", CLIPS["c"])
        assert seconds(file) == 1.3

    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), PermissionError(13, "Permission denied")])
    def test_a_file_that_cannot_be_read_stops_the_run(self, tmp_path, seconds, monkeypatch, error):
        folder = recordings(tmp_path / "in")
        opened = Path.open

        def failing(path, *arguments, **options):
            if path.name == "b.flac":
                raise error
            return opened(path, *arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", failing)
            with pytest.raises(CorpusError, match=rf"b.flac: cannot be read \({error.strerror}\); correct this"):
                seconds(folder)
        assert seconds(folder) == 1.8

    def test_what_is_decoded_is_found_again(self, tmp_path, seconds, monkeypatch):
        file = bytes_and_paths(tmp_path / "in")
        assert seconds(file) == 1.8
        monkeypatch.setattr("training.data.decode_row", None)
        assert seconds(file) == 1.8


class TestDataSets:
    """What holds for the Hub is tried with folders that `datasets` reads."""

    @pytest.mark.parametrize("streamed", [True, False])
    @pytest.mark.parametrize("kind", ["parquet", "recordings"])
    def test_streamed_or_downloaded(self, tmp_path, kind, streamed):
        folder = tmp_path / "in"
        if kind == "parquet":
            table(folder / "train.parquet", [{"bytes": CLIPS[name], "path": None} for name in NAMES])
        else:
            recordings(folder)
            write(folder / "metadata.csv", lines(("file_name", "text"), *((f"{n}.flac", t) for n, t in NAMES.items())))
        reader, fingerprint = open_dataset(str(folder), "train", None, "audio", None, streamed)
        rows = [row for unit in range(len(reader)) for row in reader.rows(unit)]
        assert {row.text(): len(decode_row(row, RATE).audio) / RATE for row in rows} == SPOKEN and fingerprint

    def test_what_is_neither_here_nor_there(self, tmp_path, monkeypatch):
        """One request tells, instead of minutes of further ones."""
        asked = []

        def unreachable(self, name, **options):
            asked.append(name)
            raise ConnectionError("Name or service not known")

        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
        message = (
            f"the Hub cannot be reached: Name or service not known.; there is no folder of that name in {tmp_path}"
        )
        for name in ("speech/dutch", "dutch"):
            with pytest.raises(TaaeInputError, match=message):
                Corpus([name])
        assert asked == ["speech/dutch", "dutch"]
        for name in ("./speech/dutch", "speech/dutch/", "a/b/c", "~/speech", "../speech"):
            with pytest.raises(TaaeInputError, match="no such file, folder or pattern"):
                Corpus([name])
        assert len(asked) == 2

    def test_what_was_downloaded_before_is_read_without_the_hub(self, tmp_path, monkeypatch):
        def unreachable(self, name, **options):
            raise ConnectionError("Name or service not known")

        def builder(name, subset):
            raise ValueError("it was asked for")

        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
        monkeypatch.setattr("modeling_taae.data.streams.load_dataset_builder", builder)
        (tmp_path / "cache/me___speech").mkdir(parents=True)
        with pytest.raises(TaaeInputError, match="it was asked for"):
            Corpus(["me/speech"])
