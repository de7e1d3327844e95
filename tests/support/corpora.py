"""The same three utterances in every layout that people have, for tests of all that reads speech."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile
from datasets import Audio, Dataset, DatasetDict

RATE = 16_000
# Texts, and seconds that tell which recording a text came with.
SPOKEN = {"un café": 0.5, "zwei": 0.6, "12 o'clock": 0.7}
NAMES = dict(zip("abc", SPOKEN, strict=True))


def samples(seconds: float) -> np.ndarray:
    """Noise that no other length has, (samples,) float32."""
    return np.random.default_rng(round(10 * seconds)).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def encoded(audio: np.ndarray, format: str = "FLAC") -> bytes:
    """(samples,) or (samples, channels) as an audio file."""
    content = io.BytesIO()
    soundfile.write(content, audio, RATE, format=format)
    return content.getvalue()


CLIPS = {name: encoded(samples(SPOKEN[text])) for name, text in NAMES.items()}


def write(file: Path, content: bytes | str, encoding: str = "utf-8") -> Path:
    """Writes a file, and the folders on the way."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return file


def recordings(folder: Path, *names: str) -> Path:
    """A folder with the recordings a.flac, b.flac and c.flac, or some of them."""
    for name in names or NAMES:
        write(folder / f"{name}.flac", CLIPS[name])
    return folder


def table(file: Path, audio: pa.Array | list, texts: list[str] | None = None, **columns: list) -> Path:
    """A Parquet file with audio and texts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    spoken = {"text": list(SPOKEN) if texts is None else texts} | columns
    pa.parquet.write_table(pa.table({"audio": audio} | spoken), file, row_group_size=2)
    return file


def archive(file: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar file with these members in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as content:
        for name, member in members:
            info = tarfile.TarInfo(name)
            info.size = len(member)
            content.addfile(info, io.BytesIO(member))
    return file


def members(names: str = "abc") -> list[tuple[str, bytes]]:
    """Recordings and texts as WebDataset has them."""
    return [
        (f"{n}.{kind}", content) for n in names for kind, content in (("flac", CLIPS[n]), ("txt", NAMES[n].encode()))
    ]


def lines(*rows: tuple, delimiter: str = ",", ending: str = "\n") -> str:
    """A table of text, with quotes where they are needed."""
    content = io.StringIO()
    csv.writer(content, delimiter=delimiter, lineterminator=ending).writerows(rows)
    return content.getvalue()


def metadata_csv(folder: Path) -> Path:
    write(folder / "deep/metadata.csv", lines(("file_name", "text"), *((f"{n}.flac", t) for n, t in NAMES.items())))
    return recordings(folder / "deep").parent


def latin_metadata(folder: Path) -> Path:
    rows = [("File Name", "Sentence"), *((f"deep/{n}.flac", t) for n, t in NAMES.items())]
    write(folder / "metadata.csv", lines(*rows, delimiter=";", ending="\r\n"), "latin-1")
    return recordings(folder / "deep").parent


def marked_metadata(folder: Path) -> Path:
    write(
        folder / "metadata.csv",
        lines(("file_name", "text"), *((f"{n}.flac", t) for n, t in NAMES.items())),
        "utf-8-sig",
    )
    return recordings(folder)


def wide_tsv(folder: Path) -> Path:
    rows = lines(("path", "transcription"), *((f"{n}.flac", t) for n, t in NAMES.items()), delimiter="\t")
    write(folder / "train.tsv", rows, "utf-16")
    return recordings(folder)


def metadata_jsonl(folder: Path) -> Path:
    rows = [{"file_name": f"{n}.flac", "text": t, "take": 1 if n == "a" else "two"} for n, t in NAMES.items()]
    write(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return recordings(folder)


def common_voice(folder: Path) -> Path:
    header = ("client_id", "path", "sentence", "locale")
    rows = [("s1", f"{n}.flac", t, "fr") for n, t in NAMES.items()]
    write(folder / "cv/validated.tsv", lines(header, *rows, delimiter="\t"))
    write(folder / "cv/train.tsv", lines(header, *rows[:2], delimiter="\t"))
    write(folder / "cv/invalidated.tsv", lines(header, ("s1", "a.flac", "wrong", "fr"), delimiter="\t"))
    write(folder / "cv/clip_durations.tsv", lines(("clip", "duration[ms]"), ("a.flac", 500), delimiter="\t"))
    recordings(folder / "cv/clips")
    return folder


def nemo_manifest(folder: Path) -> Path:
    recordings(folder / "wavs")
    rows = [{"audio_filepath": f"wavs/{n}.flac", "duration": SPOKEN[t], "text": t} for n, t in NAMES.items()]
    write(folder / "train_manifest.json", "\n".join(map(json.dumps, rows)))
    return folder


def nemo_manifest_alone(folder: Path) -> Path:
    nemo_manifest(folder)
    write(folder / "wavs/other.flac", CLIPS["a"])
    return (folder / "train_manifest.json").rename(folder / "train.jsonl")


def moshi(folder: Path) -> Path:
    rows = [{"path": f"data/{n}.flac", "duration": SPOKEN[t]} for n, t in NAMES.items()]
    write(folder / "data.jsonl", "\n".join(map(json.dumps, rows)))
    for name, text in NAMES.items():
        write(folder / f"data/{name}.json", json.dumps({"text": text, "alignments": [["x", [0, 1], "SPEAKER_MAIN"]]}))
    return recordings(folder / "data").parent


# Where the utterances lie in one long recording.
STARTS = dict(zip(NAMES, (0.3, 1.0, 1.6), strict=True))


def long_recording(file: Path) -> Path:
    """All utterances in one recording, with something else before, between and behind them."""
    audio = samples(2.8)
    for name, start in STARTS.items():
        clip = samples(SPOKEN[NAMES[name]])
        audio[round(start * RATE) :][: len(clip)] = clip
    return write(file, encoded(audio))


def nemo_parts(folder: Path) -> Path:
    long_recording(folder / "wavs/long.flac")
    rows = [
        {"audio_filepath": "wavs/long.flac", "offset": STARTS[n], "duration": SPOKEN[t], "text": t}
        for n, t in NAMES.items()
    ]
    write(folder / "train_manifest.json", "\n".join(map(json.dumps, rows)))
    return folder


def starts_and_ends(folder: Path) -> Path:
    long_recording(folder / "long.flac")
    rows = [("long.flac", STARTS[n], round(STARTS[n] + SPOKEN[t], 6), t) for n, t in NAMES.items()]
    write(folder / "metadata.csv", lines(("file_name", "Start Time", "End Time", "text"), *rows))
    return folder


def kaldi_segments(folder: Path) -> Path:
    long_recording(folder / "audio/long.flac")
    write(folder / "wav.scp", "long audio/long.flac\n")
    rows = [f"utt-{n} long {STARTS[n]} {STARTS[n] + SPOKEN[t]:.4f}\n" for n, t in NAMES.items()]
    write(folder / "segments", "".join(rows))
    write(folder / "text", "".join(f"utt-{n} {t}\n" for n, t in NAMES.items()))
    return folder


def paths_with_offsets(folder: Path) -> Path:
    long_recording(folder / "long.flac")
    return table(folder / "x.parquet", ["long.flac"] * 3, offset=list(STARTS.values()), duration=list(SPOKEN.values()))


def vctk(folder: Path) -> Path:
    for name, text in NAMES.items():
        write(folder / f"txt/p1/p1_{name}.txt", f"{text}\n")
        write(folder / f"wav48_silence_trimmed/p1/p1_{name}_mic1.flac", CLIPS[name])
    return folder


def pairs(folder: Path) -> Path:
    for name, text in NAMES.items():
        write(folder / f"{name}.txt", f"{text}\n")
    return recordings(folder)


def libritts(folder: Path) -> Path:
    for name, text in NAMES.items():
        write(folder / f"{name}.normalized.txt", text)
        write(folder / f"{name}.original.txt", text.upper())
    return recordings(folder)


def ljspeech(folder: Path) -> Path:
    write(folder / "metadata.csv", "".join(f'{n}|{t}|say "{t}\n' for n, t in NAMES.items()))
    recordings(folder / "wavs")
    return folder


def librispeech(folder: Path) -> Path:
    write(folder / "84/121/84-121.trans.txt", "".join(f"{n} {t}\n" for n, t in NAMES.items()))
    recordings(folder / "84/121")
    return folder


def file_list(folder: Path) -> Path:
    recordings(folder / "wavs")
    return write(folder / "train.txt", "".join(f"wavs/{n}.flac|{t}\n" for n, t in NAMES.items()))


def kaldi(folder: Path) -> Path:
    recordings(folder / "audio")
    write(folder / "data/wav.scp", "".join(f"utt-{n} {folder}/audio/{n}.flac\n" for n in NAMES))
    write(folder / "data/text", "".join(f"utt-{n}  {t}\n" for n, t in NAMES.items()))
    write(folder / "data/utt2spk", "".join(f"utt-{n} speaker\n" for n in NAMES))
    return folder


def csv_list(folder: Path) -> Path:
    recordings(folder / "sub")
    return write(folder / "list.csv", lines(("text", "Audio_File"), *((t, f"sub/{n}.flac") for n, t in NAMES.items())))


def bytes_and_paths(folder: Path) -> Path:
    return table(folder / "x.parquet", [{"bytes": CLIPS[n], "path": f"{n}.flac"} for n in NAMES])


def large_string_paths(folder: Path) -> Path:
    recordings(folder / "deep/clips")
    return table(folder / "deep/x.parquet", pa.array([f"clips/{n}.flac" for n in NAMES], pa.large_string()))


def categorical_paths(folder: Path) -> Path:
    recordings(folder)
    return table(folder / "x.parquet", pa.array([f"{n}.flac" for n in NAMES]).dictionary_encode())


def bare_bytes(folder: Path) -> Path:
    return table(folder / "x.parquet", pa.array(list(CLIPS.values()), pa.large_binary()))


def decoded_rows(folder: Path) -> Path:
    rows = [{"path": "gone.wav", "array": samples(s).tolist(), "sampling_rate": RATE} for s in SPOKEN.values()]
    return table(folder / "x.parquet", rows)


def decoded_stereo(folder: Path) -> Path:
    rows = [{"array": [samples(s).tolist()] * 2, "sampling_rate": RATE} for s in SPOKEN.values()]
    return table(folder / "x.parquet", rows)


def lists_of_floats(folder: Path) -> Path:
    audio = pa.array([samples(s) for s in SPOKEN.values()], pa.large_list(pa.float32()))
    return table(folder / "x.parquet", audio, sampling_rate=[RATE] * 3)


def lists_of_integers(folder: Path) -> Path:
    audio = [(samples(s) * 2**15).astype(np.int16).tolist() for s in SPOKEN.values()]
    return table(folder / "x.parquet", audio, sample_rate=[str(RATE)] * 3)


def sorted_archive(folder: Path) -> Path:
    return archive(folder / "x.tar", members())


def unsorted_archive(folder: Path) -> Path:
    found = members()
    return archive(folder / "x.tar", [found[n] for n in (0, 3, 4, 1, 2, 5)]).parent


def packed_archive(folder: Path) -> Path:
    found = members()
    return archive(folder / "x.tar.gz", found[::2] + found[1::2], "w:gz")


def mixture(folder: Path) -> Path:
    write(folder / "wavs/metadata.csv", lines(("file_name", "text"), ("a.flac", NAMES["a"])))
    recordings(folder / "wavs", "a")
    table(folder / "x.parquet", [{"bytes": CLIPS["b"], "path": None}], [NAMES["b"]])
    archive(folder / "shards/y.tar", members("c"))
    return folder


def saved(folder: Path) -> Path:
    rows = {"audio": [{"bytes": CLIPS[n], "path": None} for n in NAMES], "sentence": list(SPOKEN)}
    Dataset.from_dict(rows).cast_column("audio", Audio(decode=False)).save_to_disk(folder)
    return folder


def saved_splits(folder: Path) -> Path:
    rows = {"audio": [{"bytes": CLIPS[n], "path": None} for n in NAMES], "text": list(SPOKEN)}
    splits = DatasetDict(train=Dataset.from_dict(rows), test=Dataset.from_dict(rows))
    splits["train"].to_parquet(folder / "elsewhere.parquet")
    splits.save_to_disk(folder / "saved")
    return folder / "saved" / "train"


def brackets(folder: Path) -> Path:
    return bytes_and_paths(folder / "[x] y*").parent


def empty_shard(folder: Path) -> Path:
    bytes_and_paths(folder)
    pa.parquet.write_table(pa.table({}), folder / "a.parquet")
    pa.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "z.parquet")
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    layout.__name__: layout
    for layout in (
        *(metadata_csv, latin_metadata, marked_metadata, wide_tsv, metadata_jsonl, common_voice, nemo_manifest),
        *(nemo_manifest_alone, moshi, pairs, libritts, ljspeech, librispeech, file_list, kaldi, csv_list),
        *(nemo_parts, starts_and_ends, kaldi_segments, paths_with_offsets, vctk),
        *(bytes_and_paths, large_string_paths, categorical_paths, bare_bytes, decoded_rows, decoded_stereo),
        *(lists_of_floats, lists_of_integers, sorted_archive, unsorted_archive, packed_archive, mixture, saved),
        *(saved_splits, brackets, empty_shard),
    )
}
