"""The command line on real files, good and bad. Nearly everything runs in this process."""

import errno
import io
import os
import shutil
import stat
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.audio_files import ffmpeg_file
from support.tiny_priors import make_prior

from modeling_taae import __version__, cli, codec
from modeling_taae.audio_io import read_audio, write_audio
from modeling_taae.taae_file import TaaeFile
from modeling_taae.transcode.files import Job, encode_files, layer_progress

RATE = 16_000


@pytest.fixture(autouse=True)
def workplace(tiny_model_folder, tmp_path, monkeypatch):
    """Each test starts in an empty folder, with the tiny model as the default."""
    monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Runs a command line: exit status, standard output, standard error."""

    def run(*argv):
        try:
            status = cli.main([str(argument) for argument in argv], patience=600)
        except SystemExit as error:
            status = error.code
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def refused(run):
    """Runs a command line that must fail on its input: status 2 and one line, which is returned."""

    def refused(*argv):
        status, out, err = run(*argv)
        assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err)
        return err

    return refused


def tone(seconds: float = 0.5, rate: int = RATE, frequency: float = 220.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def wav(path, audio=None, rate: int = RATE, **options) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone() if audio is None else audio, rate, **options)
    return path


def files_below(folder=".") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


class TestRoundTrip:
    def test_speech(self, run, speech, tiny_model):
        wav("speech.wav", speech[0])
        assert run("encode", "speech.wav")[0] == 0
        encoded = TaaeFile.load("speech.taae")
        assert encoded.num_samples == len(speech[0]) and encoded.bottleneck == tiny_model.config.bottleneck
        assert run("decode", "speech.taae", "-o", "decoded.wav") == (0, "", "")
        with soundfile.SoundFile("decoded.wav") as decoded:
            assert (decoded.frames, decoded.samplerate, decoded.channels) == (len(speech[0]), RATE, 1)
            assert decoded.subtype == "PCM_16"

    def test_file_holds_what_the_model_says(self, run, tiny_model):
        wav("tone.wav", tone(1.0))
        run("encode", "tone.wav", "--no-loudness", "--bottleneck", "4x729_1000bps")
        audio = torch.from_numpy(read_audio("tone.wav"))[None, None]
        with torch.inference_mode():
            encoded = tiny_model.encode(audio, bottleneck="4x729_1000bps")
            decoded = tiny_model.decode(encoded.audio_codes, bottleneck="4x729_1000bps").audio_values[0, 0, :RATE]
        assert np.array_equal(TaaeFile.load("tone.taae").audio_codes, encoded.audio_codes[0].numpy())
        run("decode", "tone.taae", "-o", "tone_decoded.wav")
        assert np.abs(read_audio("tone_decoded.wav") - decoded.numpy().clip(-1, 1)).max() < 2**-15

    def test_reconstruct_is_encode_and_decode(self, run):
        wav("tone.wav")
        run("encode", "tone.wav")
        run("decode", "tone.taae", "-o", "one.wav")
        run("reconstruct", "tone.wav", "-o", "other.wav")
        assert Path("one.wav").read_bytes() == Path("other.wav").read_bytes()

    def test_loudness_is_normalised_unless_told_otherwise(self, run):
        wav("loud.wav", tone(1.0))
        wav("quiet.wav", tone(1.0) / 30, subtype="FLOAT")
        for name in ("loud", "quiet"):
            run("encode", f"{name}.wav", "-o", f"{name}.taae")
            run("encode", f"{name}.wav", "-o", f"{name}_raw.taae", "--no-loudness")
        codes = {name: TaaeFile.load(name).audio_codes for name in files_below() if name.endswith(".taae")}
        assert np.mean(codes["loud.taae"] == codes["quiet.taae"]) > 0.9
        assert np.mean(codes["loud_raw.taae"] == codes["quiet_raw.taae"]) < 0.7

    @pytest.mark.parametrize("bottleneck", ["native", "2x15625_700bps", "5,5,5,5,5,5@1/5,5,5,5,5,5@0.25"])
    def test_bottlenecks(self, run, bottleneck):
        wav("tone.wav")
        assert run("encode", "tone.wav", "--bottleneck", bottleneck)[0] == 0
        assert run("decode", "tone.taae", "-o", "decoded.flac")[0] == 0
        assert soundfile.info("decoded.flac").frames == len(tone())

    def test_silence(self, run):
        wav("silence.wav", np.zeros(RATE))
        assert run("encode", "silence.wav")[0] == 0
        assert run("decode", "silence.taae", "-o", "decoded.wav")[0] == 0

    def test_one_sample(self, run):
        wav("click.wav", [0.5])
        assert run("reconstruct", "click.wav", "-o", "decoded.wav")[0] == 0
        assert soundfile.info("decoded.wav").frames == 1


class TestFormats:
    @pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
    @pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
    def test_containers_and_rates(self, run, suffix, rate):
        wav(f"tone.{suffix}", np.stack([tone(1.0, rate)] * 2, axis=1), rate)
        assert run("encode", f"tone.{suffix}")[0] == 0
        assert TaaeFile.load("tone.taae").num_samples == pytest.approx(RATE, abs=2)

    def test_48_khz_stereo_float_is_mixed_down_and_resampled(self):
        left, right = tone(1.0, 48_000), tone(1.0, 48_000, frequency=330.0)
        wav("stereo.wav", np.stack([left, right], axis=1), 48_000, subtype="FLOAT")
        audio = read_audio("stereo.wav")
        expected = (tone(1.0) + tone(1.0, frequency=330.0)) / 2
        assert audio.dtype == np.float32 and audio.shape == (RATE,)
        assert np.abs(audio - expected)[200:-200].max() < 1e-3

    def test_int16_survives_reading_and_writing(self):
        pcm = np.array([-(2**15), -1, 0, 1, 2**15 - 1], np.int16)
        wav("pcm.wav", pcm)
        write_audio("again.wav", read_audio("pcm.wav"), RATE)
        assert np.array_equal(soundfile.read("again.wav", dtype="int16")[0], pcm)

    def test_writing_clips(self):
        write_audio("clipped.wav", np.array([-2.0, 1.0, 7.0], np.float32), RATE)
        assert soundfile.read("clipped.wav", dtype="int16")[0].tolist() == [-(2**15), 2**15 - 1, 2**15 - 1]

    def test_streamed_wav_of_unknown_size(self, run):
        data = bytearray(wav("tone.wav").read_bytes())
        data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
        Path("streamed.wav").write_bytes(data)
        assert run("encode", "streamed.wav")[0] == 0
        assert TaaeFile.load("streamed.taae").num_samples == len(tone())

    def test_streamed_flac_of_unknown_length(self, run, refused):
        data = bytearray(wav("tone.flac", tone(2.0)).read_bytes())
        data[21] &= 0xF0  # the number of samples in the header, as ffmpeg leaves it in a pipe
        data[22:26] = bytes(4)
        Path("streamed.flac").write_bytes(data)
        assert run("encode", "streamed.flac")[0] == 0
        assert TaaeFile.load("streamed.taae").num_samples == len(tone(2.0))
        Path("cut.flac").write_bytes(data[: len(data) // 2])
        assert "cut.flac: cannot be read as audio" in refused("encode", "cut.flac")


class TestBadAudio:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "No such file"),
            (b"", "is empty"),
            (b"not audio at all" * 100, "cannot be read as audio"),
            (b"RIFF", "cannot be read as audio"),
        ],
    )
    @pytest.mark.parametrize("suffix", ["wav", "mp3", "raw"])
    def test_no_audio(self, refused, content, message, suffix):
        if content is not None:
            Path(f"bad.{suffix}").write_bytes(content)
        error = refused("encode", f"bad.{suffix}")
        assert error.startswith(f"taae: error: bad.{suffix}: ") and message in error
        assert not Path("bad.taae").exists()

    @pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated(self, refused, suffix, share):
        data = wav(f"whole.{suffix}").read_bytes()
        Path(f"cut.{suffix}").write_bytes(data[: int(share * len(data))])
        assert f"cut.{suffix}: " in refused("encode", f"cut.{suffix}")

    @pytest.mark.parametrize("kind", ["MP3", "OGG", "OPUS", "AU", "W64", "RF64"])
    def test_truncated_where_libsndfile_does_not_tell(self, run, refused, kind):
        noise, content = np.random.default_rng(0).normal(0, 0.1, 8 * RATE), io.BytesIO()
        options = {"format": "OGG", "subtype": "OPUS"} if kind == "OPUS" else {"format": kind}
        soundfile.write(content, noise, RATE, **options)
        Path("whole").write_bytes(content.getvalue())
        assert run("encode", "whole", "-o", "whole.taae")[0] == 0
        for share in (0.6, 0.9):
            Path("cut").write_bytes(content.getvalue()[: int(share * len(content.getvalue()))])
            assert "cut: is truncated" in refused("encode", "cut", "-o", "cut.taae")

    def test_zero_length(self, refused):
        wav("nothing.wav", np.zeros(0))
        assert "zero length" in refused("encode", "nothing.wav")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan(self, refused, value):
        wav("nan.wav", np.array([0.0, value, 0.0]), subtype="FLOAT")
        assert "contains NaN or infinite" in refused("reconstruct", "nan.wav", "-o", "decoded.wav")


class TestBadFiles:
    @pytest.fixture
    def encoded(self, run) -> bytes:
        wav("tone.wav")
        run("encode", "tone.wav")
        return Path("tone.taae").read_bytes()

    # Every byte is tried in test_taae_file.py; here, what becomes of it at the command line.
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
    @pytest.mark.parametrize("command", ["info", "decode"])
    def test_cut_or_flipped(self, refused, encoded, share, command):
        position = int(share * len(encoded))
        flipped = encoded[:position] + bytes([encoded[position] ^ 0x10]) + encoded[position + 1 :]
        output = ["-o", "decoded.wav"] if command == "decode" else []
        for damaged in (encoded[:position], flipped):
            Path("damaged.taae").write_bytes(damaged)
            assert "damaged.taae: " in refused(command, "damaged.taae", *output)
        assert not Path("decoded.wav").exists()

    def test_foreign(self, refused, encoded):
        assert "tone.wav: this is not a .taae file" in refused("decode", "tone.wav", "-o", "decoded.wav")
        assert "none.taae: cannot be read" in refused("info", "none.taae")

    def test_another_models_file(self, run, refused, encoded, make_tiny_model, tiny_model_folder):
        make_tiny_model(seed=1).save_pretrained("other")
        (Path("other") / "preprocessor_config.json").write_bytes(
            (tiny_model_folder / "preprocessor_config.json").read_bytes()
        )
        decode = ("decode", "tone.taae", "-o", "decoded.wav", "--model", "other")
        assert "--force" in refused(*decode)
        assert not Path("decoded.wav").exists()
        assert run(*decode, "--force")[0] == 0
        assert soundfile.info("decoded.wav").frames == len(tone())

    def test_coded_files_of_another_model(self, run, refused, make_tiny_model, tiny_model_folder):
        """As after training with the encoder frozen: tokens mean the same, and the first one's prior coded them."""
        for name, seed in (("first", 0), ("second", 1)):
            make_tiny_model(seed=seed).save_pretrained(name)
            shutil.copy(tiny_model_folder / "preprocessor_config.json", name)
        make_prior(codec.load_codec("first", "cpu").identity).save("first")
        wav("short.wav", tone(0.1))
        run("encode", "short.wav", "--model", "first", "--bottleneck", "native")
        assert Path("short.taae").read_bytes()[4] == 2, "the shorter version"
        decode = ("decode", "short.taae", "-o", "decoded.wav", "--model", "second", "--force")
        assert "name it with --prior" in refused(*decode)
        assert run(*decode, "--prior", "first")[0] == 0
        assert soundfile.info("decoded.wav").frames == len(tone(0.1))

    def test_forced_tokens_that_the_model_cannot_have_made(self, refused):
        TaaeFile(np.zeros((1, 1), int), (8,), "1x8_of_tomorrow", 640, 640, RATE, "00" * 8).save("odd.taae")
        assert "1x8_of_tomorrow" in refused("decode", "odd.taae", "-o", "decoded.wav", "--force")


class TestTargets:
    def test_unwritable(self, refused):
        wav("tone.wav")
        Path("tone.taae").mkdir()
        assert "tone.taae: cannot be written" in refused("encode", "tone.wav")
        Path("file").write_text("content")
        for target in ("file/tone.taae", "file/deeper/tone.taae"):
            assert f"{target}: cannot be written (Not a directory)" in refused("encode", "tone.wav", "-o", target)
        assert Path("file").read_text() == "content" and files_below() == ["file", "tone.wav"]

    def test_folders_on_the_way_are_made(self, run):
        wav("tone.wav")
        assert run("encode", "tone.wav", "-o", "new/folder/tone.taae")[0] == 0
        assert run("encode", "tone.wav", "-o", "another/")[0] == 0
        assert files_below("another") == ["tone.taae"]

    def test_replaced_in_one_step(self, run):
        wav("tone.wav")
        Path("out.taae").write_bytes(b"old")
        with open("out.taae", "rb") as reader:
            assert run("encode", "tone.wav", "-o", "out.taae")[0] == 0
            # Whoever had it open keeps the old content: the file was replaced, not overwritten.
            assert reader.read() == b"old"
        assert TaaeFile.load("out.taae").num_samples == len(tone())
        assert files_below() == ["out.taae", "tone.wav"]

    def test_what_was_private_stays_private(self, run):
        wav("tone.wav")
        Path("out.taae").touch(mode=0o600)
        assert run("encode", "tone.wav", "-o", "out.taae")[0] == 0
        assert Path("out.taae").stat().st_mode & 0o777 == 0o600

    def test_failure_leaves_the_old_content_and_no_litter(self, run, refused, monkeypatch):
        wav("tone.wav")
        Path("out.taae").write_bytes(b"old")
        refused("encode", "none.wav", "-o", "out.taae")

        def disk_full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", disk_full)
        assert "No space left" in refused("encode", "tone.wav", "-o", "out.taae")
        monkeypatch.setattr(os, "replace", interrupt)
        assert run("encode", "tone.wav", "-o", "out.taae")[:2] == (130, "")
        assert Path("out.taae").read_bytes() == b"old"
        assert files_below() == ["out.taae", "tone.wav"]

    def test_links_and_devices_stay_what_they_are(self, run):
        wav("tone.wav")
        Path("real.taae").write_bytes(b"old")
        Path("link.taae").symlink_to("real.taae")
        assert run("encode", "tone.wav", "-o", "link.taae")[0] == 0
        assert Path("link.taae").is_symlink() and Path("real.taae").read_bytes() != b"old"
        assert run("encode", "tone.wav", "-o", os.devnull)[0] == 0
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)

    def test_pipes_are_written_to(self, run):
        wav("tone.wav")
        receiver, sender = os.pipe()
        assert run("encode", "tone.wav", "-o", f"/dev/fd/{sender}")[0] == 0
        os.close(sender)
        with open(receiver, "rb") as pipe:
            assert TaaeFile.from_bytes(pipe.read()).duration == 0.5

    def test_tokens_do_not_take_the_place_of_audio(self, refused):
        wav("tone.wav")
        wav("kept.wav")
        assert "kept.wav: is a name for audio; expected one that ends in .taae" in refused(
            "encode", "tone.wav", "-o", "kept.wav"
        )
        assert soundfile.info("kept.wav").frames == len(tone())

    def test_audio_needs_a_suffix_that_is_written(self, refused):
        for command, source in (("decode", "x.taae"), ("reconstruct", "x.wav")):
            assert ".wav or .flac" in refused(command, source, "-o", "out.mp3")

    def test_an_input_is_never_overwritten(self, refused):
        before = wav("tones/tone.wav").read_bytes()
        assert "would be overwritten" in refused("reconstruct", "tones/tone.wav", "-o", "tones/../tones/tone.wav")
        assert "would be overwritten" in refused("reconstruct", "tones", "-o", "tones")
        assert Path("tones/tone.wav").read_bytes() == before


class TestManyFiles:
    def test_directories_keep_their_folders(self, run):
        for name in ("in/b.wav", "in/deep/er/a.flac", "in/deep/a.ogg", "alone.v1.wav"):
            wav(name)
        Path("in/notes.txt").write_text("no audio")
        Path("in/._b.wav").write_bytes(b"hidden")
        assert run("encode", "in", "alone.v1.wav", "-o", "out") == (0, "", "")
        assert files_below("out") == ["alone.v1.taae", "b.taae", "deep/a.taae", "deep/er/a.taae"]
        assert run("decode", "out", "-o", "back")[0] == 0
        assert files_below("back") == ["alone.v1.wav", "b.wav", "deep/a.wav", "deep/er/a.wav"]

    def test_beside_each_input_without_o(self, run):
        for name in ("in/a.wav", "in/deep/b.wav"):
            wav(name)
        assert run("encode", "in")[0] == 0
        assert files_below("in") == ["a.taae", "a.wav", "deep/b.taae", "deep/b.wav"]

    def test_one_bad_file_does_not_stop_the_others(self, run):
        for name in ("a.wav", "z.wav"):
            wav(name)
        Path("bad.wav").write_bytes(b"no audio")
        status, out, err = run("encode", "a.wav", "bad.wav", "none.wav", "z.wav", "-o", "out")
        assert (status, out) == (1, "") and files_below("out") == ["a.taae", "z.taae"]
        lines = err.splitlines()
        assert [line.split(": ")[2] for line in lines[:2]] == ["bad.wav", "none.wav"]
        assert lines[2:] == ["taae: 2 of 4 files failed"]

    def test_unforeseen_errors_are_listed_as_well(self, run, monkeypatch):
        for name in ("a.wav", "b.wav"):
            wav(name)
        monkeypatch.setattr(codec.Codec, "encode_block", lambda *_: 1 / 0)
        status, _, err = run("encode", "a.wav", "b.wav", "-o", "out")
        assert status == 1 and "a.wav: ZeroDivisionError" in err and "Traceback" not in err
        assert "Traceback" in run("encode", "a.wav", "b.wav", "-o", "out", "--debug")[2]

    def test_what_is_there_is_left_alone_where_asked(self, run):
        for name in ("in/a.wav", "in/b.wav"):
            wav(name)
        Path("out").mkdir()
        Path("out/a.taae").write_bytes(b"from before")
        note = "taae: {} of 2 targets are there already\n"
        assert run("encode", "in", "-o", "out", "--skip-existing") == (0, "", note.format(1))
        assert Path("out/a.taae").read_bytes() == b"from before" and TaaeFile.load("out/b.taae").duration == 0.5
        assert run("encode", "in", "-o", "out", "--skip-existing") == (0, "", note.format(2))
        assert run("encode", "in", "-o", "out") == (0, "", "")
        assert TaaeFile.load("out/a.taae").duration == 0.5

    def test_a_target_folder_among_the_inputs(self, run):
        wav("a.wav")
        for _ in range(2):
            assert run("reconstruct", ".", "-o", "decoded") == (0, "", "")
            assert files_below() == ["a.wav", "decoded/a.wav"]

    def test_links_are_followed_but_not_in_circles(self, run):
        wav("elsewhere/deep/a.wav")
        Path("in").mkdir()
        Path("in/link").symlink_to("../elsewhere")
        Path("elsewhere/deep/back").symlink_to("../../in")
        Path("in/gone.wav").symlink_to("nowhere.wav")
        status, _, err = run("encode", "in", "-o", "out")
        assert status == 1 and "in/gone.wav: cannot be read" in err and "1 of 2 files failed" in err
        assert files_below("out") == ["link/deep/a.taae"]

    def test_a_folder_that_cannot_be_read(self, refused, monkeypatch):
        wav("in/a.wav")
        wav("in/shut/b.wav")
        scandir = os.scandir

        def shut(path):  # a mode would not keep root out
            if str(path).endswith("shut"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", shut)
        assert "in/shut: cannot be read (Permission denied)" in refused("encode", "in", "-o", "out")

    def test_clashing_targets_are_refused_before_work(self, refused):
        for name in ("one/a.wav", "two/a.wav", "three/a.flac", "three/a.wav"):
            wav(name)
        for inputs in (["one", "two"], ["one/a.wav", "two/a.wav"], ["three"], ["one", "one/a.wav"]):
            assert "would both become" in refused("encode", *inputs, "-o", "out")
        assert not Path("out").exists()

    def test_ambiguous_requests_are_refused(self, refused):
        wav("a.wav")
        wav("b.wav")
        Path("empty").mkdir()
        assert "expected a directory" in refused("encode", "a.wav", "b.wav", "-o", "a.wav")
        assert "expected a directory" in refused("encode", "a.wav", "b.wav", "-o", "-")
        assert "give it alone" in refused("encode", "a.wav", "-", "-o", "out")
        assert "holds no file" in refused("encode", "empty", "-o", "out")

    def test_few_clips_in_memory_at_a_time(self):
        """The one that is encoded, and the one before until it is let go, while the next is read."""
        for index in range(5):
            wav(f"in/{index}.wav")
        clips = []

        def watched_read(*arguments):
            assert sum(clip() is not None for clip in clips) <= 2
            audio = read_audio(*arguments)
            clips.append(weakref.ref(audio))
            return audio

        jobs = [Job(Path(f"in/{index}.wav"), Path(f"out/{index}.taae")) for index in range(5)]
        assert list(encode_files(codec.load_codec(None), jobs, read=watched_read)) == jobs
        assert len(clips) == 5


class Stream:
    """A standard stream of bytes that, like a pipe, cannot be rewound."""

    def __init__(self, content: bytes = b""):
        self.buffer = io.BytesIO(content)
        self.buffer.seekable = lambda: False

    def flush(self):
        """Nothing to do."""


def test_standard_streams(run, monkeypatch):
    data = wav("tone.flac").read_bytes()
    pipe = [data]
    for command in (["encode", "-"], ["decode", "-", "-o", "-"]):
        monkeypatch.setattr(sys, "stdin", Stream(pipe[-1]))
        monkeypatch.setattr(sys, "stdout", output := Stream())
        assert cli.main(command) == 0
        pipe.append(output.buffer.getvalue())
    monkeypatch.undo()
    assert TaaeFile.from_bytes(pipe[1]).num_samples == len(tone())
    with soundfile.SoundFile(io.BytesIO(pipe[2])) as decoded:
        assert (decoded.format, decoded.frames) == ("WAV", len(tone()))


def test_empty_standard_input(refused, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stream())
    assert "standard input: is empty" in refused("encode", "-")


class TestInfo:
    def test_file(self, run):
        wav("tone.wav", tone(10.0))
        run("encode", "tone.wav")
        status, out, err = run("info", "tone.taae")
        assert (status, err) == (0, "")
        for fact in ("10.00 s", "160,000 samples", "250 at 25 Hz", "1x46656_400bps", "387.7 bit/s", "bytes"):
            assert fact in out
        assert TaaeFile.load("tone.taae").model_identity in out

    def test_model(self, run, tiny_model, tiny_model_folder):
        status, out, err = run("info", tiny_model_folder)
        assert (status, err) == (0, "")
        for fact in (f"{tiny_model.num_parameters():,}", "25 Hz", "387.7 bit/s", "696.6", "951.0", "native", "613.1"):
            assert fact in out

    def test_a_recording_that_is_not_there(self, refused):
        assert "none.wav: is no file; expected a .taae file, or a model" in refused("info", "none.wav")


class TestModelChoice:
    def test_default_order(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TAAE_MODEL", "from_environment")
        assert codec.default_model() == "from_environment"
        monkeypatch.delenv("TAAE_MODEL")
        monkeypatch.setattr(codec, "__file__", str(tmp_path / "modeling_taae" / "cli.py"))
        assert codec.default_model() == "taae-speech-16k-nano"
        folder = tmp_path / "hub_cards" / "taae-speech-16k-nano"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert codec.default_model() == str(folder)
        monkeypatch.setattr(codec, "__file__", str(tmp_path / "site-packages" / "modeling_taae" / "codec.py"))
        monkeypatch.chdir(tmp_path)
        assert codec.default_model() == str(folder), "installed from a checkout, and used in it"

    def test_offline_without_any_names_the_option(self, refused, monkeypatch, tmp_path):
        def offline(*_, **__):
            raise OSError("no network\nand no cache")

        wav("tone.wav")
        monkeypatch.delenv("TAAE_MODEL")
        monkeypatch.setattr(codec, "__file__", str(tmp_path / "modeling_taae" / "cli.py"))
        monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
        error = refused("encode", "tone.wav")
        assert "taae-speech-16k-nano" in error and "--model" in error and "no network" in error

    def test_damaged_folders(self, refused, tiny_model_folder):
        wav("tone.wav")
        whole = {name: (tiny_model_folder / name).read_bytes() for name in files_below(tiny_model_folder)}
        weights = whole["model.safetensors"]
        damages = [
            {"config.json": None},
            {"preprocessor_config.json": None},
            {"model.safetensors": None},
            {"model.safetensors": weights[:1000]},
            {"config.json": whole["config.json"].replace(b'"patch_size": 320', b'"patch_size": 160')},
            {"config.json": whole["config.json"].replace(b'"use_snake": false', b'"use_snake": true')},
            {"config.json": b'{"model_type": "bert", "hidden_size": 12, "num_hidden_layers": 1, "vocab_size": 9}'},
            {"config.json": b"{"},
        ]
        for number, damage in enumerate(damages):
            folder = Path(f"damaged{number}")
            folder.mkdir()
            for name, content in {**whole, **damage}.items():
                if content is not None:
                    (folder / name).write_bytes(content)
            assert f"{folder}: " in refused("encode", "tone.wav", "--model", folder)

    def test_unknown_device_or_bottleneck(self, refused):
        wav("tone.wav")
        assert "--device abacus: " in refused("encode", "tone.wav", "--device", "abacus")
        assert "--bottleneck: " in refused("encode", "tone.wav", "--bottleneck", "3x3")
        assert "--bottleneck: " in refused("encode", "tone.wav", "--bottleneck", "5,5@1")


class TestUsage:
    @pytest.mark.parametrize("argv", [[], ["encode"], ["decode", "a.taae"], ["sing"], ["encode", "a.wav", "--sing"]])
    def test_bad_usage_is_one_line(self, refused, argv):
        assert "--help" in refused(*argv)

    def test_what_a_command_does_not_know_leads_to_its_own_help(self, refused):
        assert "unrecognized arguments: speech.wav; see taae stream --help" in refused("stream", "speech.wav")

    def test_version(self, run):
        assert run("--version") == (0, f"taae {__version__}\n", "")

    @pytest.mark.parametrize(
        ("command", "option", "values", "message"),
        [
            ("evaluate", "--limit", ["0", "-1", "1.5", "all"], "expected a whole number from 1 up"),
            ("evaluate", "--lengths", ["nan", "0", "-3", "long"], "expected a number from 1e-06 up"),
            ("evaluate", "--packet-loss", ["1.5", "-0.1", "nan"], "expected a number from 0 to 1"),
            ("evaluate", "--tandem", ["1"], "expected a whole number from 2 up"),
            ("tokenize", "--readers", ["0"], "expected a whole number from 1 up"),
            ("tokenize", "--min-seconds", ["inf"], "expected a number from 0 up"),
        ],
    )
    def test_numbers_out_of_range(self, refused, command, option, values, message):
        for value in values:
            assert f"{option}: {value}: {message}" in refused(command, "speech.wav", "-o", "out", f"{option}={value}")

    @pytest.mark.parametrize("command", [None, "encode", "decode", "reconstruct", "info", "convert"])
    def test_help_teaches_by_example(self, run, command):
        status, out, err = run(*filter(None, [command]), "--help")
        assert (status, err) == (0, "")
        assert f"examples:\n  taae {command or ''}" in out

    def test_debug_shows_the_traceback(self, run):
        assert "Traceback" in run("encode", "none.wav", "--debug")[2]

    def test_interrupts_end_in_a_line(self, run, monkeypatch):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("modeling_taae.cli.files.plan_jobs", interrupted)
        status, out, err = run("encode", "a.wav")
        assert (status, out, err.count("\n")) == (130, "", 1) and "--skip-existing" in err
        # Streams are ended in no other way.
        monkeypatch.setattr("modeling_taae.codec.load_codec", interrupted)
        assert run("stream") == (130, "", "")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("sink", "status", "message"), [("| true", 141, ""), ("> /dev/full", 1, "No space left on device")]
    )
    def test_output_that_nobody_takes(self, sink, status, message):
        wav("tone.wav")
        command = f"{sys.executable} -m modeling_taae encode - -o - < tone.wav {sink}"
        shell = ["bash", "-c", f"({command}; exit ${{PIPESTATUS[0]}})"]
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
        result = subprocess.run(shell, capture_output=True, text=True, env=environment, timeout=300)
        assert (result.returncode, result.stdout) == (status, "")
        errors = result.stderr.replace("taae: loading the model\n", "")  # on a slow machine
        assert message in errors and errors.count("\n") == bool(message)

    def test_convert_hands_over_paths(self, run, refused, monkeypatch):
        calls = []
        with monkeypatch.context() as context:
            context.setattr("modeling_taae.hub.convert.convert_checkpoint", lambda *paths: calls.append(paths))
            assert run("convert", "source", "target") == (0, "", "")
        assert calls == [(Path("source"), Path("target"))]
        assert "model_config.json" in refused("convert", "source", "target")


@pytest.mark.slow
def test_console_entry(run):
    wav("tone.wav")
    run("encode", "tone.wav")
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "modeling_taae", "info", "tone.taae"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (result.returncode, result.stderr.replace("taae: reading the file\n", "")) == (0, "")
    assert "1x46656_400bps" in result.stdout


class TestSmallMishaps:
    def test_one_name_for_several_files_makes_no_folder(self, run, refused):
        for name in ("a.wav", "b.wav", "in/c.wav"):
            wav(name)
        for command, inputs, target in (
            ("encode", ["a.wav", "b.wav"], "one.taae"),
            ("encode", ["in", "a.wav"], "ONE.TAAE"),
            ("reconstruct", ["a.wav", "b.wav"], "one.wav"),
            ("reconstruct", ["in"], "deep/one.flac"),
        ):
            assert f"-o {target}: is one target for several inputs" in refused(command, *inputs, "-o", target)
        assert files_below() == ["a.wav", "b.wav", "in/c.wav"]
        assert run("encode", "a.wav", "b.wav", "-o", "one.taae/")[0] == 0
        assert files_below("one.taae") == ["a.taae", "b.taae"]

    def test_a_missing_input_is_told_before_the_model_is_loaded(self, run, refused, monkeypatch):
        monkeypatch.setattr("modeling_taae.codec.load_codec", lambda *_: 1 / 0)
        for command in (["encode", "none.wav"], ["decode", "none.taae", "-o", "a.wav"]):
            assert "cannot be read (No such file or directory)" in refused(*command)
        status, _, err = run("encode", "none.wav", "neither.wav", "-o", "out")
        assert status == 1 and "taae: 2 of 2 files failed" in err

    def test_sound_that_cannot_be_read_is_counted_in_folders(self, run):
        wav("in/a.wav")
        for name in ("in/b.mid", "in/deep/c.MID", "in/d.ra", "in/notes.txt", "in/.hidden.mid"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(b"x")
        status, _, err = run("encode", "in", "-o", "out")
        assert status == 0 and "taae: in: 3 sound files are of kinds that are not read (2 .mid, 1 .ra)" in err
        assert run("decode", "out", "-o", "back") == (0, "", "")

    def test_a_folder_of_a_telephone(self, run):
        """Recordings in M4A are read beside others; a broken one is listed."""
        pytest.importorskip("av")
        wav("in/a.wav")
        Path("in/b.m4a").write_bytes(ffmpeg_file(tone(1.0), RATE, "ipod", "aac"))
        Path("in/c.m4a").write_bytes(b"x")
        status, _, err = run("encode", "in", "-o", "out")
        assert status == 1 and "in/c.m4a: cannot be read as audio" in err
        assert files_below("out") == ["a.taae", "b.taae"]

    @pytest.mark.parametrize(("command", "stream"), [("encode", "stdin"), ("decode", "stdout")])
    def test_closed_standard_streams(self, run, monkeypatch, command, stream):
        wav("tone.wav")
        run("encode", "tone.wav")
        monkeypatch.setattr(sys, stream, None)
        arguments = {"encode": ["encode", "-", "-o", "a.taae"], "decode": ["decode", "tone.taae", "-o", "-"]}[command]
        errors = io.StringIO()
        monkeypatch.setattr(sys, "stderr", errors)
        assert cli.main(arguments, patience=600) == 2
        assert "is closed" in errors.getvalue() and errors.getvalue().count("\n") == 1

    def test_a_private_target_is_never_readable_for_others(self, run, monkeypatch):
        wav("tone.wav")
        Path("out.taae").touch(mode=0o600)
        modes = []
        replace = os.replace

        def watched(source, target):
            modes.append(stat.S_IMODE(os.stat(source).st_mode))
            replace(source, target)

        opened = os.open

        def watched_open(path, flags, mode=0o777, **options):
            if str(path).endswith(".tmp"):
                modes.append(mode)
            return opened(path, flags, mode, **options)

        monkeypatch.setattr(os, "replace", watched)
        monkeypatch.setattr(os, "open", watched_open)
        assert run("encode", "tone.wav", "-o", "out.taae")[0] == 0
        assert modes == [0o600, 0o600]

    def test_what_a_killed_process_left_behind_goes(self, run):
        from modeling_taae import files

        wav("tone.wav")
        left = files._temporary_file(Path("tone.taae"), 0o600)
        assert run("encode", "tone.wav")[0] == 0
        assert left.exists(), "another process may be writing it"
        os.utime(left, (0, 0))
        assert run("encode", "tone.wav")[0] == 0
        assert files_below() == ["tone.taae", "tone.wav"]


class TestProgress:
    def test_silence_is_broken(self, capsys):
        wav("long.wav", tone(20.0))
        assert cli.main(["encode", "long.wav"], patience=1e-3) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines.count("taae: loading the model") == 1
        assert all(line.startswith("taae: ") for line in lines)

    def test_shares_of_one_long_file(self, monkeypatch):
        monkeypatch.setattr("modeling_taae.convolution_taae.CHUNK_STEPS", 100)
        loaded = codec.load_codec(None, "cpu")
        for seconds in (1.0, 20.0):
            shares = []
            with layer_progress(loaded.model, shares.append):
                encoded = loaded.encode(tone(seconds))
                middle = len(shares)
                loaded.decode(encoded)
            for part in (shares[:middle], shares[middle:]):
                assert part == sorted(part) and part[0] > 0 and part[-1] == pytest.approx(1, abs=1e-6)
        assert len(shares) > 20
        assert np.array_equal(encoded.audio_codes, loaded.encode(tone(20.0)).audio_codes) and len(shares) > 20
