"""What a sound file holds is read, whatever its header says; what was cut off is refused; nothing is read in part."""

import io
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from support.audio_files import (
    RATE,
    ffmpeg_file,
    headless_mp3,
    mp3,
    noise,
    ogg_without_end_mark,
    sound_file,
)

from modeling_taae import audio_io
from modeling_taae.audio.pieces import finished_header, pieces
from modeling_taae.audio_io import decode_audio, read_audio
from modeling_taae.errors import TaaeInputError


def decode(data: bytes, rate: int = RATE) -> np.ndarray:
    return decode_audio(io.BytesIO(data), "it", rate)


def refusal(data: bytes) -> str:
    with pytest.raises(TaaeInputError) as info:
        decode(data)
    assert str(info.value).startswith("it: ") and "\n" not in str(info.value)
    return str(info.value)


def as_before(data: bytes, rate: int = RATE) -> np.ndarray:
    """What libsndfile makes of a file that is read from start to end, averaged and resampled at once."""
    with audio_io.SequentialFile(io.BytesIO(data)) as file:
        mono, own = file.read(1 << 22, dtype="float32", always_2d=True).mean(axis=1), file.samplerate
    return mono if own == rate else soxr.resample(mono, own, rate)


@pytest.fixture(autouse=True)
def nothing_on_the_terminal(capfd):
    yield
    assert capfd.readouterr() == ("", "")


class TestFilesReadRightlyBefore:
    """Their samples, and so their tokens, are what they were."""

    @pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "AU", "CAF", "W64", "RF64", "OGG", "OPUS", "MP3"])
    @pytest.mark.parametrize("rate", [16_000, 48_000])
    @pytest.mark.parametrize("channels", [1, 2, 3])
    def test_kinds(self, kind, rate, channels):
        if kind == "MP3" and channels == 3:
            pytest.skip("MP3 has at most two channels")
        audio = np.stack([noise(1.3, rate, seed) for seed in range(channels)], axis=1)
        data = sound_file(audio, rate, *(["OGG", "OPUS"] if kind == "OPUS" else [kind]))
        assert np.array_equal(decode(data), as_before(data))

    @pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000])
    @pytest.mark.parametrize("samples", [10, 100, 262_144, 600_001])
    def test_resampling_block_by_block_is_resampling_at_once(self, rate, samples):
        data = sound_file(noise(samples / rate + 1e-9, rate), rate, subtype="FLOAT")
        assert np.array_equal(decode(data), as_before(data))

    def test_mp3_without_a_header_at_a_constant_bit_rate(self):
        data = headless_mp3(noise(3.0), bitrate_mode="CONSTANT")
        if soundfile.info(io.BytesIO(data)).frames >= 3 * RATE:
            assert np.array_equal(decode(data), as_before(data))


class TestMp3:
    @pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
    @pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
    def test_without_a_header_all_is_read(self, rate, mode):
        # Quiet, then loud: the bit rate of the first frame tells nothing about the others.
        audio = np.concatenate([1e-3 * noise(1.0, rate), noise(3.0, rate)])
        data = headless_mp3(audio, rate, bitrate_mode=mode)
        assert len(decode(data)) == pytest.approx(4 * RATE, abs=0.2 * RATE)

    def test_joined_files_are_the_sum_of_their_parts(self):
        first, second = mp3(noise(2.0)), mp3(noise(1.0, seed=1))
        assert np.array_equal(decode(first + second), np.concatenate([decode(first), decode(second)]))

    def test_joined_with_and_without_headers_and_tags(self):
        tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
        end = b"TAG".ljust(128, b"x")
        data = tag + mp3(noise(2.0)) + end + tag + headless_mp3(noise(1.0, seed=1)) + headless_mp3(noise(1.5)) + end
        assert len(decode(data)) == pytest.approx(4.5 * RATE, abs=0.3 * RATE)

    def test_joined_files_of_different_rates_and_channels(self):
        stereo = mp3(np.stack([noise(2.0, 44_100)] * 2, axis=1), 44_100)
        data = mp3(noise(1.0)) + stereo + mp3(noise(1.0, 22_050), 22_050)
        assert len(decode(data)) == pytest.approx(4 * RATE, abs=0.2 * RATE)

    def test_it_may_begin_within_a_frame(self):
        data = headless_mp3(noise(3.0))[50:]
        assert len(decode(data)) == pytest.approx(3 * RATE, abs=0.3 * RATE)

    def test_an_end_at_a_frame_is_no_fault_and_one_within_a_frame_is(self):
        data = headless_mp3(noise(3.0), bitrate_mode="CONSTANT")
        from modeling_taae.audio.mpeg import mpeg_pieces

        (piece,) = mpeg_pieces(io.BytesIO(data), "it")
        middle = piece.ends[len(piece.ends) // 2]
        assert len(decode(data[:middle])) == pytest.approx(1.5 * RATE, abs=0.2 * RATE)
        assert "is truncated (it ends within a frame)" in refusal(data[: middle + 20])
        whole = mp3(noise(3.0), bitrate_mode="CONSTANT")
        assert "is truncated (it promises" in refusal(whole[: whole.index(data[:100]) + middle])

    def test_junk_in_the_middle(self):
        data = mp3(noise(3.0))
        from modeling_taae.audio.mpeg import mpeg_pieces

        (piece,) = mpeg_pieces(io.BytesIO(data), "it")
        middle = piece.ends[20]
        junk = data[:middle] + b"\x00junk" * 200 + data[middle:]
        assert len(decode(junk)) == pytest.approx(3 * RATE, abs=0.3 * RATE)

    def test_a_tag_that_promises_more_bytes_than_there_are_frames(self):
        """mpg123 complains on the terminal where bytes and frames disagree; see `nothing_on_the_terminal`."""
        data = mp3(noise(2.0))
        assert np.array_equal(decode(data + b"APETAGEX" + bytes(9_000)), decode(data))


class TestOgg:
    @pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
    def test_chained_streams(self, subtype):
        parts = [sound_file(noise(seconds, seed=seed), RATE, "OGG", subtype) for seed, seconds in enumerate((2.0, 1.0))]
        expected = np.concatenate([decode(part) for part in parts])
        assert np.array_equal(decode(b"".join(parts)), expected)
        assert len(expected) == 3 * RATE

    def test_chained_streams_of_different_rates(self):
        data = sound_file(noise(1.0, 44_100), 44_100, "OGG") + sound_file(noise(1.0), RATE, "OGG")
        assert len(decode(data)) == pytest.approx(2 * RATE, abs=10)

    @pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
    def test_no_end_mark(self, subtype):
        data = sound_file(noise(2.0), RATE, "OGG", subtype)
        assert np.array_equal(decode(ogg_without_end_mark(data)), decode(data))

    @pytest.mark.parametrize("at", [-1, -100, 0.5])
    def test_an_end_within_a_page(self, at):
        data = sound_file(noise(8.0), RATE, "OGG")
        assert "ends within an Ogg page" in refusal(data[: at if at < 0 else int(at * len(data))])


class TestFlac:
    def test_joined(self):
        parts = [sound_file(noise(1.0, seed=seed), RATE, "FLAC") for seed in range(3)]
        assert np.array_equal(decode(b"".join(parts)), np.concatenate([decode(part) for part in parts]))


class TestWav:
    def with_sizes(self, data: bytes, riff: int, size: int) -> bytes:
        place = data.index(b"data")
        changed = bytearray(data)
        changed[4:8], changed[place + 4 : place + 8] = struct.pack("<I", riff), struct.pack("<I", size)
        return bytes(changed)

    @pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
    @pytest.mark.parametrize("size", [0, 16_000])
    def test_a_header_that_was_never_finished(self, subtype, size):
        """The size is 0, or what it was at an earlier moment of the recording."""
        data = sound_file(noise(2.0), subtype=subtype)
        assert np.array_equal(decode(self.with_sizes(data, size + 36, size)), decode(data))

    def test_nothing_is_nothing(self):
        assert "zero length" in refusal(sound_file(np.zeros(0)))
        listed = sound_file(np.zeros(0)) + b"LIST" + struct.pack("<I", 4) + b"INFO"
        assert "zero length" in refusal(listed)

    @pytest.mark.parametrize(
        "end", [b"LIST" + struct.pack("<I", 4) + b"INFO", b"ID3" + bytes(90_000), b"\0", b"x" * 99]
    )
    def test_what_is_appended_is_no_sound(self, end):
        data = sound_file(noise(2.0))
        assert np.array_equal(decode(data + end), decode(data))

    def test_joined(self):
        parts = [sound_file(noise(1.0)), sound_file(noise(1.0, 44_100), 44_100), sound_file(noise(0.5))]
        assert len(decode(b"".join(parts))) == 2.5 * RATE

    def test_beyond_4_gib(self, tmp_path):
        """A sparse file that holds 2^32 + 2^20 bytes of silence, and says 2^20."""
        data = sound_file(np.zeros(1))
        start = data.index(b"data") + 8
        size = (1 << 32) + (1 << 20)
        path = tmp_path / "long.wav"
        path.write_bytes(self.with_sizes(data, (1 << 20) + 36, 1 << 20)[:start])
        os.truncate(path, start + size)
        with path.open("rb") as file:
            (piece,) = pieces(file, "long.wav")
            assert soundfile.SoundFile(piece.content).frames == size // 2

    def test_the_header_that_is_made_for_them(self):
        audio = noise(2.0)
        data = sound_file(audio)
        start = data.index(b"fmt ")
        header = finished_header(data[start : start + 24], 2 * len(audio))
        samples = data[data.index(b"data") + 8 :]
        assert np.array_equal(as_before(header + samples), decode(data))

    def test_rf64_says_how_long_it_is(self):
        data = sound_file(noise(2.0), kind="RF64")
        assert "is truncated" in refusal(data[: len(data) // 2])


RARER = ["AIFF", "AU", "CAF", "W64", "VOC", "NIST"]
ID3 = b"TAG".ljust(128, b"\0")
# Header and footer are alike; the size that they tell is that of items and footer.
APE_ENDS = b"APETAGEX" + struct.pack("<IIIIQ", 2000, 1032, 1, 1 << 31, 0)
APE = APE_ENDS + b"item".ljust(1000, b"x") + APE_ENDS


def with_bytes(data: bytes, mark: bytes, offset: int, content: bytes) -> bytes:
    """A file with other bytes at so many behind a mark."""
    place = data.index(mark) + offset
    return data[:place] + content + data[place + len(content) :]


class TestRarerKinds:
    @pytest.mark.parametrize("kind", RARER)
    def test_joined(self, kind):
        files = [sound_file(noise(seconds, seed=seed), kind=kind) for seed, seconds in enumerate((1.0, 0.7, 0.5))]
        assert np.array_equal(decode(b"".join(files)), np.concatenate([*map(decode, files)]))

    @pytest.mark.parametrize("kind", RARER)
    def test_cut_short(self, kind):
        data = sound_file(noise(), kind=kind)
        assert "is truncated" in refusal(data[: len(data) // 2])

    @pytest.mark.parametrize("kind", RARER)
    @pytest.mark.parametrize("tag", [ID3, APE, APE + ID3], ids=["ID3", "APE", "both"])
    def test_tags_behind_them_are_no_sound(self, kind, tag):
        data = sound_file(noise(), kind=kind)
        assert np.array_equal(decode(data + tag), decode(data))

    @pytest.mark.parametrize("kind", ["AIFF", "CAF", "VOC"])
    def test_samples_behind_the_end_are_told(self, kind):
        message = refusal(sound_file(noise(), kind=kind) + b"\1\2" * 8192)
        assert "holds 16,384 bytes behind the end in its header" in message

    @pytest.mark.parametrize("size", [0, 8000, 0xFFFFFFFF])
    def test_au_whose_header_was_never_finished(self, size):
        data = sound_file(noise(), kind="AU")
        assert np.array_equal(decode(with_bytes(data, b".snd", 8, struct.pack(">I", size))), decode(data))

    def test_aiff_and_caf_whose_header_was_never_finished(self):
        aiff = with_bytes(sound_file(noise(), kind="AIFF"), b"COMM", 10, bytes(4))
        assert "was never finished" in refusal(with_bytes(aiff, b"SSND", 4, struct.pack(">I", 8)))
        caf = sound_file(noise(), kind="CAF")
        assert np.array_equal(decode(with_bytes(caf, b"data", 4, b"\xff" * 8)), decode(caf))

    @pytest.mark.parametrize("kind", RARER)
    @pytest.mark.parametrize("filling", [b"\0", b"\xff"])
    def test_sizes_of_nothing_end_as_well(self, kind, filling):
        data = sound_file(noise(), kind=kind)
        for place in range(4, 40, 4):
            with suppress(TaaeInputError):
                decode(data[:place] + filling * 4 + data[place + 4 :])

    @pytest.mark.parametrize("kind", ["FLAC", "OGG", "AIFF", "AU"])
    def test_a_file_of_another_kind_behind_a_wav_is_no_noise(self, kind):
        message = refusal(sound_file(noise()) + sound_file(noise(), kind=kind))
        assert "several files of different formats, joined" in message

    @pytest.mark.parametrize("tag", [ID3, APE], ids=["ID3", "APE"])
    def test_flac_with_a_tag_behind_it(self, tag):
        data = sound_file(noise(), kind="FLAC")
        assert np.array_equal(decode(data + tag), decode(data))


class TestFfmpeg:
    def test_joined_mp4_is_told(self):
        data = ffmpeg_file(noise(), RATE, "ipod", "aac")
        assert "is several MP4 files joined, of which only one would be read" in refusal(data + data)

    CASES = [
        ("ipod", "aac", 44_100),
        ("mp4", "aac", 16_000),
        ("webm", "libopus", 48_000),
        ("matroska", "flac", 16_000),
        ("amr", "libopencore_amrnb", 8_000),
        ("3gp", "libopencore_amrnb", 8_000),
        ("adts", "aac", 22_050),
        ("mpegts", "aac", 44_100),
    ]

    @pytest.mark.parametrize(("container", "encoder", "rate"), CASES)
    def test_what_libsndfile_cannot_read(self, container, encoder, rate):
        pytest.importorskip("av")
        audio = noise(3.0, rate)
        decoded = decode(ffmpeg_file(audio, rate, container, encoder))
        assert len(decoded) == pytest.approx(3 * RATE, abs=0.1 * RATE)
        # It is that sound: somewhere near the start it fits.
        expected = soxr.resample(audio, rate, RATE)[RATE : 2 * RATE]
        fits = [np.corrcoef(expected, decoded[RATE + lag : 2 * RATE + lag])[0, 1] for lag in range(-200, 2400, 1)]
        assert max(fits) > 0.5

    @pytest.mark.parametrize(("container", "encoder", "rate"), CASES)
    @pytest.mark.parametrize("share", [0.3, 0.8])
    def test_truncated(self, container, encoder, rate, share):
        pytest.importorskip("av")
        if container == "mpegts":
            pytest.skip("a broadcast that may end at any packet")
        options = {"movflags": "faststart"} if container in ("ipod", "mp4") else {}
        data = ffmpeg_file(noise(4.0, rate), rate, container, encoder, options)
        refusal(data[: int(share * len(data))])

    def test_a_recording_of_a_browser_promises_no_length(self):
        pytest.importorskip("av")
        data = ffmpeg_file(noise(3.0, 48_000), 48_000, "webm", "libopus", {"live": "1"})
        assert len(decode(data)) == pytest.approx(3 * RATE, abs=0.1 * RATE)

    def test_a_picture_without_sound(self):
        av = pytest.importorskip("av")
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="matroska") as output:
            stream = output.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
            output.mux(stream.encode(None))
        assert "holds no audio track" in refusal(buffer.getvalue())

    def test_play_lists_open_nothing(self, tmp_path):
        pytest.importorskip("av")
        (tmp_path / "a.ts").write_bytes(ffmpeg_file(noise(1.0), RATE, "mpegts", "aac"))
        lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:9", "#EXTINF:9,", f"file://{tmp_path}/a.ts", "#EXT-X-ENDLIST", ""]
        for text in ("\n".join(lines), f"ffconcat version 1.0\nfile {tmp_path}/a.ts\n"):
            assert "cannot be read as audio" in refusal(text.encode())

    def test_the_extra_is_named_where_it_is_missing(self, monkeypatch):
        pytest.importorskip("av")
        data = ffmpeg_file(noise(1.0), RATE, "mp4", "aac")
        monkeypatch.setitem(sys.modules, "av", None)
        assert "pip install 'modeling_taae[audio]'" in refusal(data)


class TestChannels:
    @pytest.mark.parametrize("channels", [2, 4])
    @pytest.mark.parametrize("kind", ["WAV", "FLAC"])
    def test_out_of_phase(self, channels, kind):
        audio = np.stack([noise(1.0), -noise(1.0)] * (channels // 2), axis=1)
        expected = decode(sound_file(noise(1.0), kind=kind))
        assert np.array_equal(decode(sound_file(audio, kind=kind)), expected)

    def test_lossy_and_out_of_phase(self):
        audio = np.stack([noise(1.0, 44_100), -noise(1.0, 44_100)], axis=1)
        assert np.abs(decode(mp3(audio, 44_100))).max() > 0.1

    def test_silence_and_a_channel_alone_are_averaged_as_ever(self):
        for audio in (np.zeros((RATE, 2)), np.stack([noise(1.0), np.zeros(RATE)], axis=1)):
            data = sound_file(audio)
            assert np.array_equal(decode(data), as_before(data))


class TestHostile:
    @pytest.mark.parametrize("rate", [1, 10, 2_000_000_000])
    def test_rates(self, rate):
        assert "sampling rate" in refusal(sound_file(noise(0.1), rate))

    def test_length(self):
        data = sound_file(np.zeros(40_000), 8_000, "FLAC")
        with pytest.raises(TaaeInputError, match="is longer than"):
            decode_audio(io.BytesIO(data), "it", RATE, most_samples=79_000)
        assert len(decode_audio(io.BytesIO(data), "it", RATE, most_samples=80_000)) == 80_000

    def test_channels_do_not_multiply_memory(self, monkeypatch):
        data = sound_file(np.zeros((3_000, 200)), RATE)
        sizes = []
        original = audio_io.SequentialFile.read

        def read(file, *arguments, **options):
            block = original(file, *arguments, **options)
            sizes.append(block.size)
            return block

        monkeypatch.setattr(audio_io.SequentialFile, "read", read)
        decode(data)
        assert max(sizes) <= audio_io.BLOCK_VALUES

    @pytest.mark.parametrize("kind", ["WAV", "MP3", "OGG", "FLAC", "AIFF"])
    def test_flipped_bytes_are_read_or_refused_in_one_line(self, kind, capfd):
        data = sound_file(noise(0.5), kind=kind)
        generator = np.random.default_rng(0)
        for _ in range(60):
            damaged = bytearray(data)
            for place in generator.integers(0, min(len(data), 400), size=3):
                damaged[place] = generator.integers(256)
            try:
                decode(bytes(damaged))
            except TaaeInputError as error:
                assert "\n" not in str(error)
        capfd.readouterr()  # mpg123 may complain about these


class Failing(io.BytesIO):
    """A file on a disk that fails after some bytes."""

    def read(self, size: int = -1) -> bytes:
        """Fails beyond 20,000 bytes."""
        if self.tell() > 20_000:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF"])
def test_errors_of_the_disk_are_raised_and_not_printed(kind, error):
    file = Failing(sound_file(noise(20.0), kind=kind))
    file.error = error
    with pytest.raises(type(error)):
        decode_audio(file, "it", RATE)


def test_paths_bytes_and_pipes_agree(tmp_path):
    data = mp3(noise(1.0)) + mp3(noise(1.0, seed=1))
    Path(tmp_path / "a.mp3").write_bytes(data)
    assert np.array_equal(read_audio(tmp_path / "a.mp3"), decode(data))
    code = "import sys; from modeling_taae.audio_io import read_audio; print(len(read_audio('-')))"
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert (int(result.stdout), result.stderr) == (len(decode(data)), b"")
