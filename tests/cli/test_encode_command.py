"""`taae encode` on many files: the same bytes as one by one, and nothing lost to the files that are bad."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.audio_files import noise, sound_file

from modeling_taae import cli
from modeling_taae.cli import jobs
from modeling_taae.codec import Codec, load_codec
from modeling_taae.taae_file import TaaeFile
from modeling_taae.transcode import files as transcode

SECONDS = [0.3, 1.2, 0.9, 1.0, 0.00005, 2.5, 1.1]


@pytest.fixture(autouse=True)
def recordings(tiny_model_folder, tmp_path, monkeypatch) -> list[str]:
    """Each test starts beside recordings of several lengths, with the tiny model as the default."""
    monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    Path("in").mkdir()
    for number, seconds in enumerate(SECONDS):
        soundfile.write(f"in/{number}.wav", 0.1 * generator.normal(size=max(1, int(16_000 * seconds))), 16_000)
    return sorted(os.listdir("in"))


@pytest.fixture(params=[None, 3], ids=["as on a CPU", "as on a GPU"])
def block_seconds(request, monkeypatch) -> int | None:
    """Whether clips are blocks by themselves or go together."""
    monkeypatch.setattr(transcode, "encode_files", partial(transcode.encode_files, block_seconds=request.param))
    return request.param


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*") if path.is_file()}


def test_the_same_bytes_together_and_one_by_one(recordings):
    assert cli.main(["encode", "in", "-o", "together"]) == 0
    for name in recordings:
        assert cli.main(["encode", f"in/{name}", "-o", "one_by_one/"]) == 0
    assert len(contents("together")) == len(SECONDS) and contents("together") == contents("one_by_one")


def test_every_file_gets_its_own_tokens(recordings, block_seconds):
    """Blocks end in another order than files are read; the tokens still go where they belong."""
    codec = load_codec(None, device="cpu", loudness=False)
    assert cli.main(["encode", "in", "-o", "out", "--no-loudness", "--bottleneck", "native"]) == 0
    for name in recordings:
        audio, _ = soundfile.read(f"in/{name}", dtype="float32")
        encoded = TaaeFile.load(f"out/{Path(name).stem}.taae")
        alone = codec.encode(audio, "native")
        assert encoded.num_samples == len(audio) and encoded.audio_codes.shape == alone.audio_codes.shape
        assert np.mean(encoded.audio_codes == alone.audio_codes) > 0.9


def test_bad_files_of_every_kind_among_good_ones(block_seconds, capsys):
    Path("in/1.wav").write_bytes(b"no audio")
    Path("in/3.wav").unlink()
    Path("in/3.wav").symlink_to("nowhere.wav")
    Path("out/5.taae").mkdir(parents=True)
    assert cli.main(["encode", "in", "-o", "out"], patience=600) == 1
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert output.out == "" and lines[-1] == f"taae: 3 of {len(SECONDS)} files failed"
    assert [line.split(": ")[2] for line in sorted(lines[:-1])] == ["in/1.wav", "in/3.wav", "out/5.taae"]
    assert sorted(contents("out")) == ["0.taae", "2.taae", "4.taae", "6.taae"]


def test_a_block_that_fails_takes_no_other_with_it(block_seconds, capsys, monkeypatch):
    original = Codec.encode_block

    def out_of_memory(codec, clips, rows, samples, bottleneck):
        if max(map(len, clips)) > 2 * 16_000:
            raise RuntimeError("out of memory")
        return original(codec, clips, rows, samples, bottleneck)

    monkeypatch.setattr(Codec, "encode_block", out_of_memory)
    assert cli.main(["encode", "in", "-o", "out"], patience=600) == 1
    assert "in/5.wav: RuntimeError: out of memory; run again with --debug" in capsys.readouterr().err
    assert len(contents("out")) == len(SECONDS) - 1


def test_an_interrupt_while_a_file_is_read(capsys, monkeypatch):
    read = jobs.read_recording

    def interrupted(source, rate, channel):
        if source.name == "2.wav":
            raise KeyboardInterrupt
        return read(source, rate, channel)

    with monkeypatch.context() as context:
        context.setattr(jobs, "read_recording", interrupted)
        assert cli.main(["encode", "in", "-o", "out"], patience=600) == 130
    out, err = capsys.readouterr()
    assert out == "" and "the same command with --skip-existing makes the others" in err
    assert set(contents("out")) <= {"0.taae", "1.taae"}
    assert cli.main(["encode", "in", "-o", "out", "--skip-existing"]) == 0
    assert cli.main(["encode", "in", "-o", "whole"]) == 0
    assert contents("out") == contents("whole")


def test_averaged_channels_are_counted_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = noise(0.5), noise(0.5, seed=1)
    for name, channels in {"a": [one, two], "b": [one, one], "c": [one], "d": [two, one, two]}.items():
        Path("several").mkdir(exist_ok=True)
        Path(f"several/{name}.wav").write_bytes(sound_file(np.stack(channels, 1)))
    Path("one.wav").write_bytes(sound_file(one))
    note = "2 recordings have several channels, which were averaged; --channel"
    assert cli.main(["encode", "several", "-o", "averaged"]) == 0
    assert capsys.readouterr().err.count(note) == 1
    assert cli.main(["reconstruct", "several", "-o", "heard"]) == 0
    assert capsys.readouterr().err.count(note) == 1
    assert cli.main(["encode", "several", "one.wav", "-o", "first", "--channel", "1"]) == 0
    assert "averaged" not in capsys.readouterr().err
    assert cli.main(["encode", "one.wav"]) == 0
    assert "averaged" not in capsys.readouterr().err
    alone = Path("one.taae").read_bytes()
    assert Path("first/a.taae").read_bytes() == Path("first/b.taae").read_bytes() == alone
    assert Path("averaged/b.taae").read_bytes() == alone != Path("averaged/a.taae").read_bytes()
    assert cli.main(["encode", "one.wav", "--channel", "2"]) == 2
    assert "has 1 channel; expected at least 2" in capsys.readouterr().err
