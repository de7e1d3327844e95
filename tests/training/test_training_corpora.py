"""Preparing public speech: from a Git repository to shards that train, by speaker and with licences."""

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyarrow import parquet

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.errors import TaaeInputError
from training.corpora.cleaning import RATE, fault, parts, resampled, trimmed
from training.corpora.manifest import READERS, SourceEntry, read_kept_aside, read_manifest
from training.corpora.prepare import Choice, held_out, main, prepare_source
from training.corpora.recordings import recordings_of
from training.corpora.repository import files_of
from training.data import TrainingCrops
from training.recipe import CorpusConfig, DataConfig, parse_recipe

ENTRY = SourceEntry(
    name="mine",
    repository="",
    commit="",
    pattern=r"^\w+/clips/.*\.wav$",
    reader="common_voice",
    language="{folder}",
    source="My voices",
    license="CC0-1.0",
    attribution="My village, CC0",
    tables=["{folder}/validated.tsv", "{folder}/invalidated.tsv"],
)


def voice(seed: int, seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Bursts of wide-band sound between pauses, in silence at both ends."""
    generator, time = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    speech = generator.normal(0, 0.1, len(time)) * (np.sin(2 * np.pi * 3 * time) > 0)
    silence = generator.normal(0, 1e-4, rate // 2)
    return np.concatenate([silence, speech + generator.normal(0, 1e-4, len(time)), silence])


def sound(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A Git repository in the layout of Common Voice, with two languages and all that goes wrong."""
    folder = tmp_path_factory.mktemp("repository")
    clips = {f"nl/clips/common_voice_nl_{n}.wav": sound(voice(n)) for n in range(4)}
    clips |= {"fy/clips/common_voice_fy_9.wav": sound(voice(9, rate=48_000), 48_000)}
    clips |= {"nl/clips/common_voice_nl_4.wav": clips["nl/clips/common_voice_nl_0.wav"]}
    clips |= {"nl/clips/common_voice_nl_5.wav": b"RIFF, cut short", "nl/clips/common_voice_nl_6.wav": sound(voice(6))}
    clips |= {
        "nl/clips/common_voice_nl_7.wav": sound(0.02 * voice(7)),
        "nl/clips/common_voice_nl_8.wav": sound(voice(8, 30)),
    }
    clips |= {"nl/clips/common_voice_nl_10.wav": b"version https://git-lfs.github.com/spec/v1\n"}
    rows = [(f"common_voice_nl_{n}.wav", f"speaker{min(n, 2)}abcdefghij", f"Zin {n}", "female") for n in range(9)]
    table = "\n".join(["path\tclient_id\tsentence\tgender", *("\t".join(row) for row in rows)])
    clips |= {"nl/validated.tsv": table.encode(), "nl/invalidated.tsv": b"path\tclient_id\ncommon_voice_nl_6.wav\tx\n"}
    for name, content in clips.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "Voices"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture(scope="module")
def entry(repository) -> SourceEntry:
    commit = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, check=True).stdout
    return replace(ENTRY, repository=f"file://{repository}", commit=commit.decode().strip())


def test_shards_hold_what_is_fit_to_train_on(entry, tmp_path):
    """Fetched as from a network; every recording that is left out is counted, with its reason."""
    with files_of(entry.repository, entry.commit) as files:
        prepared = prepare_source(entry, files, tmp_path, Choice(held_out_ids=frozenset(["cv-nl_3"])))
    reasons = {"duplicate": 1, "cannot be decoded": 1, "quiet": 1, "held out": 1, "missing": 1}
    assert prepared.left_out == reasons and prepared.recordings == 10, "the rejected one is not even listed"
    rows = {row["id"]: row for row in parquet.read_table(tmp_path / "mine-00000-of-00001.parquet").to_pylist()}
    assert {"cv-nl_1", "cv-nl_2", "cv-fy_9", "cv-nl_8_0", "cv-nl_8_1"} <= rows.keys() and "cv-nl_3" not in rows
    one, long = rows["cv-nl_1"], rows["cv-nl_8_0"]
    assert (one["speaker_id"], one["language"], one["gender"], one["text"]) == ("cv-nl-speaker1ab", "nl", "f", "Zin 1")
    assert (one["source"], one["license"], one["joined"], one["kind"]) == ("My voices", "CC0-1.0", 1, "speech")
    assert long["text"] is None and long["duration"] < 19.5
    samples, rate = soundfile.read(io.BytesIO(one["audio"]["bytes"]))
    assert rate == RATE and 1.8 < len(samples) / rate < 2.5, "silent edges are cut"
    assert rows["cv-fy_9"]["native_sampling_rate"] == 48_000
    told = json.loads((tmp_path / "mine.json").read_text())
    assert (told["attribution"], told["rows"], told["languages"]) == ("My village, CC0", len(rows), ["fy", "nl"])
    assert "left out: " in str(prepared)


def test_speakers_of_tests_are_left_out_and_make_a_test(entry, repository, tmp_path):
    aside = {"test": {"cv-nl-speaker1ab"}, "never": {"cv-nl-speaker2ab"}}

    def speakers(part: str) -> set[str]:
        with files_of(entry.repository, entry.commit, repository) as files:
            prepare_source(entry, files, tmp_path / part, Choice(part, aside))
        return set(parquet.read_table(tmp_path / part / "mine-00000-of-00001.parquet")["speaker_id"].to_pylist())

    assert speakers("train") == {"cv-nl-speaker0ab", ""}
    assert speakers("test") == {"cv-nl-speaker1ab"}
    held = held_out([str(tmp_path / "test" / "mine-00000-of-00001.parquet")])
    assert held == (frozenset(["cv-nl-speaker1ab"]), frozenset(["cv-nl_1"]))
    with pytest.raises(TaaeInputError, match="no part 'dev'; choose train or test, never"):
        speakers("dev")


def test_shards_train(entry, repository, tmp_path):
    with files_of(entry.repository, entry.commit, repository) as files:
        prepare_source(entry, files, tmp_path, Choice(limit=4), codec="opus")
    data = DataConfig([CorpusConfig(str(tmp_path / "mine-*.parquet"))], crop_frames=8)
    crops = TrainingCrops(data, TaaeFeatureExtractor(), 0)
    assert crops.skipped == 0 and crops[0].abs().sum() > 0


def test_words_are_joined(entry, repository, tmp_path):
    words = replace(
        entry, reader="words", pattern=r"^nl/clips/.*_[0-3]\.wav$", speaker="maria", language="nl", tables=[]
    )
    with files_of(words.repository, words.commit, repository) as files:
        prepare_source(words, files, tmp_path)
    (row,) = parquet.read_table(tmp_path / "mine-00000-of-00001.parquet").to_pylist()
    assert (row["joined"], row["speaker_id"], row["text"]) == (4, "maria", None) and row["duration"] > 7


def test_the_command_prepares_lines_of_ones_own(entry, repository, tmp_path, capfd):
    manifest, aside = tmp_path / "mine.jsonl", tmp_path / "aside.json"
    fields = {name: value for name, value in vars(entry).items() if value not in ("", [])}
    manifest.write_text(json.dumps(fields) + "\n")
    aside.write_text("{}")
    options = ["--manifest", str(manifest), "--kept_aside", str(aside), "-o", str(tmp_path / "speech")]
    assert main([*options, "mine", "--skip_languages", "fy", "--max_speaker_minutes", "0.01"]) == 0
    assert "speaker has enough" in capfd.readouterr().out
    assert main(options) == 0 and '"attribution": "My village, CC0"' in capfd.readouterr().out
    for wrong, message in (
        (["yours"], "has no 'yours', only mine"),
        (["mine", "--git", str(tmp_path)], "git ls-tree"),
        (["mine", "--held_out", str(manifest)], "cannot be read as Parquet with id and speaker_id"),
    ):
        assert main([*options, *wrong]) == 2
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1
    manifest.write_text('{"name": "x"}\n')
    assert main([*options, "x"]) == 2 and "mine.jsonl:1: is not an entry of a manifest" in capfd.readouterr().err


def test_the_manifest_is_whole():
    entries = read_manifest()
    assert len(entries) == 9 and {entry.reader for entry in entries.values()} == set(READERS)
    assert all(entry.license and entry.attribution and len(entry.commit) == 40 for entry in entries.values())
    aside = read_kept_aside()
    assert not aside["test"] & aside["never"] and len(aside["test"]) == 114


def test_recordings_are_told_by_their_paths(entry, repository):
    plain = replace(entry, reader="plain", speaker_pattern=r"_nl_(\d)", speaker_prefix="nl-", tables=[])
    with files_of(plain.repository, plain.commit, repository) as files:
        found = {recording.path: recording for recording in recordings_of(plain, files)}
    assert found["nl/clips/common_voice_nl_1.wav"].speaker == "nl-1"
    assert found["fy/clips/common_voice_fy_9.wav"].speaker == ""


def test_cleaning():
    clean = trimmed(resampled((voice(1, 2.0, 48_000) + 0.01).astype(np.float32), 48_000))
    assert abs(clean.mean()) < 1e-3 and 1.8 < len(clean) / RATE < 2.5
    assert fault(clean, 0.0, 25.0, -46.0, 1.0) is None
    assert fault(clean, 0.01, 25.0, -46.0, 1.0) == "clipped" and fault(clean, 0.0, 90.0, -46.0, 1.0) == "noisy"
    assert fault(clean[:8_000], 0.0, 25.0, -46.0, 1.0) == "short"
    narrow = resampled(np.float32(voice(2, 3.0, 8_000)), 8_000)
    assert fault(trimmed(narrow), 0.0, 10.0, -30.0, 1.0) == "narrow band"
    long = np.float32(voice(3, 45.0))
    cut = list(parts(long))
    assert len(np.concatenate(cut)) == len(long) and max(map(len, cut)) <= 19.5 * RATE
    for silence in (np.zeros(RATE, np.float32), np.zeros(0, np.float32)):
        assert fault(trimmed(resampled(silence, RATE)), 0.0, 25.0, -46.0, 1.0) == "short"


def test_a_recipe_takes_prepared_shards(tmp_path):
    assert parse_recipe(["--data.corpora", f"{tmp_path}/mine-*.parquet"]).data.corpora[0].weight == 1.0
