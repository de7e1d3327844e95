"""Rows that tell of a part of a recording: exactly its samples, under an id of its own."""

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.audio_files import ffmpeg_file, noise, sound_file
from support.corpora import CLIPS, NAMES, RATE, SPOKEN, STARTS, lines, long_recording, samples, table, vctk, write

from modeling_taae import cli
from modeling_taae.audio_io import SequentialFile
from modeling_taae.data.decode import decode_row
from modeling_taae.data.sources import Corpus
from modeling_taae.data.utterances import Utterances
from modeling_taae.errors import TaaeInputError


def manifest(file: Path, *rows: dict) -> Path:
    return write(file, "\n".join(json.dumps({"audio_filepath": "a.wav"} | row) for row in rows))


def ids(source: Path) -> list[str]:
    return [row.id for row in Corpus([str(source)])]


class TestSamples:
    @pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
    @pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "MP3", "OGG", "joined WAV"])
    def test_a_part_is_as_if_it_had_been_cut_out(self, tmp_path, kind, rate):
        both = np.stack([noise(3.0, rate), noise(3.0, rate, seed=1)], 1)
        files = [
            sound_file(part, rate, kind.split()[-1]) for part in np.split(both, [rate] if "joined" in kind else [])
        ]
        write(tmp_path / "a.wav", b"".join(files))
        whole = np.concatenate([soundfile.read(io.BytesIO(file), dtype="float32")[0] for file in files])
        tolerance = 1e-4 if kind in ("MP3", "OGG") else 0  # their decoders round as they like
        spans = [(0.0, 0.5), (0.31234567, 0.4), (1.0, 2.0), (2.9, 0.1)]
        manifest(tmp_path / "list.json", *({"offset": start, "duration": length} for start, length in spans))
        rows = list(Corpus([str(tmp_path / "list.json")]))
        assert len({row.id for row in rows}) == len(spans)
        for row, (start, length) in zip(rows, spans, strict=True):
            part = whole[round(start * rate) : round((start + length) * rate)]
            write(tmp_path / "part.wav", sound_file(part, rate, subtype="FLOAT"))
            expected = decode_row(next(iter(Corpus([str(tmp_path / "part.wav")]))), RATE).audio
            part = decode_row(row, RATE).audio
            assert len(part) == len(expected) and np.abs(part - expected).max() <= tolerance

    def test_one_channel_of_a_part(self, tmp_path):
        one, two = samples(0.5), samples(0.6)[: RATE // 2]
        write(tmp_path / "a.wav", sound_file(np.stack([one, two], 1)))
        manifest(tmp_path / "list.json", {"offset": 0.125, "duration": 0.25})
        (row,) = Corpus([str(tmp_path / "list.json")], channel=2)
        assert np.abs(decode_row(row, RATE).audio - two[2000:6000]).max() < 1e-4

    def test_samples_before_a_part_are_not_read(self, tmp_path, monkeypatch):
        read: list[int] = []
        original = SequentialFile.read
        monkeypatch.setattr(
            SequentialFile, "read", lambda self, *a, **k: (b := original(self, *a, **k), read.append(len(b)))[0]
        )
        for kind in ("WAV", "FLAC"):
            write(tmp_path / "a.wav", sound_file(noise(300.0), kind=kind))
            manifest(tmp_path / "list.json", {"offset": 290.0, "duration": 5.0})
            (row,) = Corpus([str(tmp_path / "list.json")])
            assert len(decode_row(row, RATE).audio) == 5 * RATE
        assert sum(read) <= 2 * 10 * RATE

    def test_a_kind_that_only_ffmpeg_reads(self, tmp_path):
        pytest.importorskip("av")
        write(tmp_path / "a.wav", ffmpeg_file(noise(2.0), RATE, "ipod", "aac"))
        manifest(tmp_path / "list.json", {"offset": 0.5, "duration": 1.0})
        (row,) = Corpus([str(tmp_path / "list.json")])
        (whole,) = Corpus([str(tmp_path / "a.wav")])
        assert np.array_equal(decode_row(row, RATE).audio, decode_row(whole, RATE).audio[8_000:24_000])

    @pytest.mark.parametrize(
        ("part", "seconds"), [((0.4, 0.25), 0.2), ((0.4, 0.2), 0.2), ((0.4, 0.45), None), ((0.6, 0.1), None)]
    )
    def test_a_part_beyond_the_end(self, tmp_path, part, seconds):
        """A rounded length may lie a little beyond the end; more is a mistake, which rejects the row alone."""
        write(tmp_path / "a.wav", sound_file(noise(0.6)))
        first, second = {"offset": 0, "duration": 0.5}, {"offset": part[0], "duration": part[1]}
        manifest(tmp_path / "list.json", first, second)
        good, row = Corpus([str(tmp_path / "list.json")])
        assert len(decode_row(good, RATE).audio) == 8_000
        if seconds is None:
            with pytest.raises(TaaeInputError, match="ends after 0.60 s, before the part"):
                decode_row(row, RATE)
        else:
            assert len(decode_row(row, RATE).audio) == round(seconds * RATE)


class TestRows:
    def test_ids_and_columns(self, tmp_path):
        write(tmp_path / "a.wav", sound_file(noise(3.0)))
        write(tmp_path / "a.txt", "about all of it")
        write(tmp_path / "b.wav", sound_file(noise(1.0, seed=1)))
        write(tmp_path / "b.txt", "the other")
        rows = [{"offset": 0.5, "duration": 1.0, "text": "one"}, {"offset": 1.5, "duration": 1.25}]
        manifest(tmp_path / "list.json", *rows, {"offset": 0, "duration": 0.5, "id": "own"})
        found = {row.id: (row.text(), len(decode_row(row, RATE).audio) / RATE) for row in Corpus([str(tmp_path)])}
        assert found == {
            "a.wav#0.5-1.5": ("one", 1.0),
            "a.wav#1.5-2.75": (None, 1.25),
            "own": (None, 0.5),
            "b.wav": ("the other", 1.0),
        }

    @pytest.mark.parametrize(
        "row",
        [
            {"start": 100, "end": 101},
            {"duration": 0.5},
            {"offset": None, "duration": 0.5},
            {"offset": "unknown", "duration": 0.5},
            {"offset": 5},
            {"offset": 5, "duration": -1},
        ],
    )
    def test_a_row_that_is_about_all_of_its_file(self, tmp_path, row):
        """Where a file was cut from is told like this as well."""
        write(tmp_path / "a.wav", sound_file(noise(0.5)))
        (found,) = Corpus([str(manifest(tmp_path / "list.json", row))])
        assert found.id == "a.wav" and len(decode_row(found, RATE).audio) == 8_000

    @pytest.mark.parametrize(
        "rows",
        [
            [{"offset": 0, "duration": 1}, {"offset": 0, "duration": 1, "text": "x"}],
            [{"offset": 0, "duration": 1}, {"text": "all of it"}],
            [{"start": 1, "end": 2}, {"start": 3, "end": 3}],
        ],
    )
    def test_rows_of_one_file_that_cannot_be_told_apart(self, tmp_path, rows):
        write(tmp_path / "a.wav", sound_file(noise(0.5)))
        with pytest.raises(
            TaaeInputError, match="tells more than once about a.wav.*for each part of it, from an offset"
        ):
            Corpus([str(manifest(tmp_path / "metadata.jsonl", *rows))])

    def test_many_parts_are_several_units(self, tmp_path):
        write(tmp_path / "a.wav", sound_file(noise(4.0)))
        manifest(tmp_path / "list.json", *({"offset": n / 100, "duration": 0.5} for n in range(300)))
        corpus = Corpus([str(tmp_path / "list.json")])
        assert len(corpus) == 3 and corpus.known_rows == len({row.id for row in corpus}) == 300

    def test_bytes_in_a_table_are_a_recording_of_their_own(self, tmp_path):
        cells = [{"bytes": CLIPS["a"], "path": "long.flac"}]
        file = table(tmp_path / "x.parquet", cells, ["said"], offset=[300.0], duration=[0.5])
        (row,) = Corpus([str(file)])
        assert len(decode_row(row, RATE).audio) == RATE // 2

    def test_tokens_are_those_of_files_that_were_cut(self, tmp_path, tiny_model_folder, monkeypatch):
        import datasets

        monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
        long_recording(tmp_path / "in/long.flac")
        rows = [("long.flac", STARTS[n], SPOKEN[t], n) for n, t in NAMES.items()]
        write(tmp_path / "in/metadata.csv", lines(("file_name", "offset", "duration", "id"), *rows))
        for name in NAMES:
            write(tmp_path / f"cut/{name}.flac", CLIPS[name])
        for place in ("in", "cut"):
            assert cli.main(["tokenize", str(tmp_path / place), "-o", str(tmp_path / f"{place}_tokens")]) == 0
        parts, files = (
            datasets.Dataset.from_parquet([*map(str, (tmp_path / f"{place}_tokens/data").iterdir())])
            for place in ("in", "cut")
        )
        assert list(parts["id"]) == [*NAMES] and list(files["id"]) == [f"{name}.flac" for name in NAMES]
        assert list(parts["codes"]) == list(files["codes"]) and list(parts["source_duration"]) == ["0.5", "0.6", "0.7"]


class TestKaldi:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        long_recording(tmp_path / "a/one.flac")
        long_recording(tmp_path / "a/two.flac")
        write(tmp_path / "wav.scp", "one a/one.flac\ntwo a/two.flac\n")
        write(tmp_path / "utt2spk", "u1 s1\nu2 s2\n")
        write(tmp_path / "spk2gender", "s1 f\ns2 m\n")
        return tmp_path

    def test_segments_to_the_end_unknown_ones_and_recordings_without(self, folder):
        write(folder / "segments", "u1 one 0.5 1.25\nu2 one 2 -1\nu3 three 0 1\n")
        corpus = Corpus([str(folder)])
        rows = {row.id: (row, len(decode_row(row, RATE).audio) / RATE) for row in corpus}
        assert {name: seconds for name, (_, seconds) in rows.items()} == {"u1": 0.75, "u2": 0.8, "two": 2.8}
        assert rows["u1"][0].facts["speaker"] == "s1" and rows["u2"][0].facts["gender"] == "m"
        (note,) = corpus.notes
        assert "1 segments are not read" in note and "1 recordings have no segment and are read whole" in note

    @pytest.mark.parametrize("line", ["u1 one", "u1 one 2 1", "u1 one x 1", "u1 one nan 1"])
    def test_segments_that_are_none(self, folder, line):
        write(folder / "segments", f"{line}\n")
        with pytest.raises(TaaeInputError, match="its segments have no start and end for u1"):
            Corpus([str(folder / "wav.scp")])

    def test_what_lies_beside_the_list_is_part_of_its_state(self, folder):
        states = set()
        for content in ("u1 one 0 1\n", "u1 one 0 1.5\n", ""):
            write(folder / "segments", content)
            states.add(Corpus([str(folder)]).fingerprint())
        write(folder / "text", "one hello")
        assert len(states | {Corpus([str(folder)]).fingerprint()}) == 4


class TestTexts:
    def test_microphones_share_a_text_and_are_told(self, tmp_path, caplog):
        folder = vctk(tmp_path / "VCTK")
        for name in "ab":
            write(folder / f"wav48_silence_trimmed/p1/p1_{name}_mic2.flac", CLIPS[name])
        write(folder / "wav48_silence_trimmed/p1/lone_mic2.flac", CLIPS["c"])
        with caplog.at_level(logging.WARNING):
            corpus = Corpus([str(folder)])
        assert sorted(filter(None, (row.text() for row in corpus))) == sorted([*SPOKEN, NAMES["a"], NAMES["b"]])
        (note,) = corpus.notes
        assert note.startswith(f"{folder}: 2 of the recordings are the speech of others once more")
        (pattern,) = [part for part in note.split("'") if "*" in part]
        corpus = Corpus([pattern])
        assert {row.text() for row in corpus} == {*SPOKEN} and not corpus.notes and corpus.known_rows == 3

    def test_texts_in_folders_of_their_own(self, tmp_path):
        for speaker, text in (("s1", "one"), ("s2", "two")):
            write(tmp_path / f"{speaker}/wavs/x.flac", CLIPS["a"])
            write(tmp_path / f"{speaker}/Transcripts/x.txt", text)
        write(tmp_path / "s2/wavs/y.flac", CLIPS["b"])
        write(tmp_path / "s2/wavs/y.txt", "beside")
        write(tmp_path / "s2/Transcripts/y.txt", "apart")
        assert [row.text() for row in Corpus([str(tmp_path)])] == ["one", "two", "beside"]

    @pytest.mark.parametrize("suffix", [".TXT", ".Normalized.txt", ".LAB", ".JSON"])
    def test_suffixes_in_capitals(self, tmp_path, suffix):
        write(tmp_path / "a.FLAC", CLIPS["a"])
        write(tmp_path / f"a{suffix}", '{"text": "said it"}' if suffix == ".JSON" else "said it")
        sources = [tmp_path] if suffix == ".Normalized.txt" else [tmp_path, tmp_path / "a.FLAC"]
        assert [row.text() for source in sources for row in Corpus([str(source)])] == ["said it"] * len(sources)

    def test_texts_of_recordings_that_are_named(self, tmp_path):
        for name, text in NAMES.items():
            write(tmp_path / f"{name}.flac", CLIPS[name])
            write(tmp_path / f"{name}.txt", text)
        assert [row.text() for row in Corpus([str(tmp_path / "b.flac")])] == [NAMES["b"]]
        assert [row.text() for row in Corpus([str(tmp_path / "[ab].flac")])] == [NAMES["a"], NAMES["b"]]
        write(tmp_path / "metadata.csv", lines(("file_name", "text"), ("a.flac", "x")))
        (note,) = Corpus([str(tmp_path / "*.flac")]).notes
        assert "metadata.csv: not read, because recordings are named beside it" in note

    def test_the_command_counts_averaged_channels_of_parts(self, tmp_path, capsys, tiny_model_folder, monkeypatch):
        monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
        write(tmp_path / "in/a.wav", sound_file(np.stack([noise(2.0), noise(2.0, seed=1)], 1)))
        manifest(tmp_path / "in/list.json", *({"offset": n / 2, "duration": 0.5} for n in range(3)))
        note = "3 recordings have several channels, which were averaged"
        tokens = str(tmp_path / "tokens")
        assert cli.main(["tokenize", str(tmp_path / "in"), "-o", tokens]) == 0
        assert capsys.readouterr().out.count(note) == 1
        assert note in json.loads((tmp_path / "tokens/report.json").read_text())["notes"][0]
        utterances = Utterances([str(tmp_path / "in")])
        assert len(list(utterances)) == utterances.averaged == 3
        command = ["evaluate", str(tmp_path / "in"), "--metrics", "si_sdr", "--workers", "1", "--no-speed"]
        assert cli.main([*command, "--samples", "0", "-o", str(tmp_path / "results")]) == 0
        assert capsys.readouterr().err.count(note) == 1
