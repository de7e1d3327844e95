"""`taae stream`: equal to `taae encode`, whatever comes in and however slowly, and nothing is held back."""

import io
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel, cli
from modeling_taae.codec import load_codec
from modeling_taae.taae_file import PackedHeader, TaaeFile
from modeling_taae.transcode.live import SampleFormat, encode_stream, read_samples

RATE, HOP = 16_000, 640


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal model with frames as long as the published model's."""
    torch.manual_seed(0)
    config = TaaeConfig(
        hidden_sizes=(32, 32),
        encoder_depths=(1, 1),
        decoder_depths=(1, 1),
        head_dim=32,
        layer_scale_initial_scale=0.1,
        causal=True,
    )
    folder = tmp_path_factory.mktemp("models") / "causal"
    model = TaaeModel(config)
    with torch.no_grad():  # a random encoder's latents are so small that all tokens would be the same
        model.encoder.conv_out.weight *= 30
    model.save_pretrained(folder)
    TaaeFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def workplace(model_folder, tmp_path, monkeypatch):
    """Each test starts in an empty folder, with the causal model as the default."""
    monkeypatch.setenv("TAAE_MODEL", str(model_folder))
    monkeypatch.chdir(tmp_path)


class Pipe(io.BytesIO):
    """Standard input that hands over a few bytes at a time, as a live signal does."""

    def __init__(self, content: bytes, at_once: int):
        super().__init__(content)
        self.at_once = at_once

    def read1(self, size: int = -1) -> bytes:
        """At most `at_once` bytes."""
        return super().read1(min(size, self.at_once))


class Standard:
    """A standard stream with these bytes."""

    def __init__(self, buffer: io.BytesIO):
        self.buffer = buffer

    def flush(self):
        """Nothing to do."""


@pytest.fixture
def stream(monkeypatch):
    """Runs `taae stream` on some bytes; the status and standard output."""

    def stream(content: bytes, *argv, at_once: int = 1 << 16) -> tuple[int, bytes]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", Standard(Pipe(content, at_once)))
            patch.setattr(sys, "stdout", Standard(io.BytesIO()))
            return cli.main(["stream", *argv]), sys.stdout.buffer.getvalue()

    return stream


@pytest.fixture
def refused(stream, capsys):
    """Runs `taae stream` on input that it must refuse with status 2 and one line, which is returned."""

    def refused(content: bytes, *argv) -> str:
        status, _ = stream(content, *argv)
        error = capsys.readouterr().err
        assert (status, error.count("\n")) == (2, 1), (status, error)
        return error

    return refused


def speechlike(samples: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=samples) * np.sin(np.arange(samples) / 800) ** 2
    return (0.1 * noise).astype(np.float32)


def wav_bytes(audio: np.ndarray, rate: int = RATE, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format="WAV", **options)
    return buffer.getvalue()


def tokens_of(content: bytes) -> np.ndarray:
    """(tokens_per_frame, frames) of a stream of tokens at 400 bit/s, by the documented layout."""
    source = io.BytesIO(content)
    assert source.read(5) == b"TAAS\x01"
    _, rate, hop, samples, length = struct.unpack("<8sIIQH", source.read(26))
    assert (rate, hop, samples, source.read(length)) == (RATE, HOP, 0, b"1x46656_400bps")
    assert struct.unpack("<BQ", source.read(9)) == (1, 46_656)
    source.read(4)
    return np.frombuffer(source.read(), "<u2").astype(np.int64)[None]


def encoded_whole(content: bytes, *argv: str) -> TaaeFile:
    """What `taae encode --no-loudness` makes of the same audio."""
    Path("whole.wav").write_bytes(content)
    assert cli.main(["encode", "whole.wav", "--no-loudness", *argv]) == 0
    return TaaeFile.load("whole.taae")


@pytest.mark.parametrize("at_once", [333, 1 << 16])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_it_equals_encode_without_loudness(stream, at_once, subtype):
    content = wav_bytes(np.stack([speechlike(20_001), speechlike(20_001)[::-1]], axis=1), subtype=subtype)
    status, output = stream(content, "--output", "tokens", at_once=at_once)
    assert status == 0
    assert np.array_equal(tokens_of(output), encoded_whole(content).audio_codes)


def test_tokens_become_the_audio_that_the_file_becomes(stream):
    content = wav_bytes(speechlike(20_001))
    audio = np.frombuffer(stream(content, "--output", "f32le")[1], "<f4")
    through_tokens = np.frombuffer(stream(stream(content, "--output", "tokens")[1], "--output", "f32le")[1], "<f4")
    expected = load_codec(None).decode(encoded_whole(content))
    assert len(audio) == 20_001 and len(through_tokens) == 32 * HOP
    np.testing.assert_allclose(audio, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(through_tokens[:20_001], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bottleneck", ["4x729_1000bps", "native", "5,5,5,5,5,5@1.0/5,5,5,5,5,5@0.25"])
def test_bottlenecks(stream, bottleneck):
    content = wav_bytes(speechlike(5_000))
    status, output = stream(content, "--output", "tokens", "--bottleneck", bottleneck)
    description = PackedHeader.read_stream(source := io.BytesIO(output))
    assert status == 0 and len(source.read()) == 8 * description.frame_bytes
    decoded = np.frombuffer(stream(output, "--output", "f32le")[1], "<f4")
    expected = load_codec(None).decode(encoded_whole(content, "--bottleneck", bottleneck))
    np.testing.assert_allclose(decoded[:5_000], expected, rtol=0, atol=1e-5)


def test_raw_samples_and_gain(stream):
    pcm = np.rint(speechlike(5_000).clip(-0.45, 0.45) * 2**15).astype("<i2")
    quiet = (pcm / 2**16).astype("<f4").tobytes()
    options = ["--output", "tokens", "--bottleneck", "native"]
    expected = stream(wav_bytes(pcm), *options)
    assert stream(pcm.tobytes(), "--input", "s16le", *options) == expected
    assert stream(quiet, "--input", "f32le", "--gain", str(20 * np.log10(2)), *options) == expected
    assert stream(quiet, "--input", "f32le", *options) != expected


def test_16_bit_output_is_the_rounded_audio(stream):
    content = wav_bytes(speechlike(3_000))
    audio = np.frombuffer(stream(content, "--output", "f32le")[1], "<f4")
    assert np.array_equal(np.frombuffer(stream(content)[1], "<i2"), np.rint(audio.clip(-1, 1) * 2**15).astype("<i2"))


def test_each_frame_is_there_as_soon_as_its_last_sample(model_folder):
    codec = load_codec(str(model_folder))
    arrived = 0

    def live():
        nonlocal arrived
        for chunk in np.split(speechlike(10 * HOP), 40):
            arrived += len(chunk)
            yield chunk

    frames = 0
    for codes in encode_stream(codec, live(), None):
        frames += codes.shape[-1]
        assert frames == arrived // HOP


def test_samples_that_are_split_between_two_reads():
    pcm = np.arange(-500, 500, dtype="<i2")
    chunks = list(read_samples(Pipe(pcm.tobytes(), at_once=7), SampleFormat("s16le", channels=2)))
    assert len(chunks) > 100
    assert np.array_equal(np.concatenate(chunks), pcm.reshape(-1, 2).mean(axis=1) / 2**15)


class TestWavHeaders:
    def test_a_pipe_promises_no_length_and_chunks_follow_the_samples(self, stream):
        content = wav_bytes(speechlike(2_000))
        expected = stream(content)[1]
        start = content.index(b"data")
        for unknown in (b"\xff" * 4, bytes(4)):
            endless = content[: start + 4] + unknown + content[start + 8 :]
            assert stream(endless)[1] == expected
        assert stream(content + b"LIST" + struct.pack("<I", 4) + b"INFO")[1] == expected

    def test_extensible(self, stream):
        content = wav_bytes(speechlike(2_000))
        extensible = io.BytesIO()
        pcm = np.rint(speechlike(2_000) * 2**15).astype(np.int16)
        soundfile.write(extensible, pcm, RATE, format="WAVEX", subtype="PCM_16")
        assert np.abs(np.frombuffer(stream(extensible.getvalue())[1], "<i2")).max() > 0
        assert len(stream(extensible.getvalue())[1]) == len(stream(content)[1])

    @pytest.mark.parametrize(("rate", "subtype"), [(8_000, "PCM_16"), (RATE, "PCM_24"), (RATE, "ULAW")])
    def test_other_rates_and_sample_formats(self, refused, rate, subtype):
        error = refused(wav_bytes(speechlike(1_000), rate, subtype=subtype))
        assert f"at {rate} Hz" in error and "sox -t wav - -t wav -b 16 -r 16000 -" in error

    def test_no_samples(self, refused):
        assert "ends within its WAV header" in refused(wav_bytes(speechlike(100))[:30])

    def test_fewer_samples_than_promised(self, refused):
        assert "its header promises 100 bytes more" in refused(wav_bytes(speechlike(1_000))[:-100])


class TestBadInput:
    def test_nothing(self, refused):
        assert "is empty" in refused(b"")

    def test_neither_wav_nor_tokens(self, refused):
        assert "for raw samples, say --input s16le" in refused(bytes(range(200)))

    def test_half_a_sample(self, refused):
        assert "1 bytes of a sample are left over" in refused(bytes(1_001), "--input", "s16le")

    def test_samples_that_are_no_numbers(self, refused):
        samples = np.array([0.1, np.nan], dtype="<f4").tobytes()
        assert "NaN or infinite" in refused(samples, "--input", "f32le")

    @pytest.mark.parametrize("gain", ["inf", "10000", "loud"])
    def test_a_gain_that_is_out_of_range(self, capsys, gain):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["stream", "--gain", gain])
        assert exit_info.value.code == 2
        assert f"--gain: {gain}: expected a number from -100 to 100" in capsys.readouterr().err

    def test_an_unknown_bottleneck(self, refused):
        assert "--bottleneck: There is no bottleneck" in refused(wav_bytes(speechlike(10)), "--bottleneck", "3kbps")

    def test_a_model_that_looks_ahead(self, refused, tiny_model_folder):
        error = refused(wav_bytes(speechlike(10)), "--model", str(tiny_model_folder))
        assert "choose a causal one with --model, or use `taae encode`" in error


class TestBadTokens:
    @pytest.fixture
    def tokens(self, stream) -> bytes:
        return stream(wav_bytes(speechlike(5_000)), "--output", "tokens")[1]

    def test_truncated(self, refused, tokens):
        assert "ends within a frame" in refused(tokens[:-1])
        for end in (5, 20, 40):
            assert "header is truncated or corrupt" in refused(tokens[:end])

    def test_corrupt_header(self, refused, tokens):
        assert "wrong checksum" in refused(tokens[:14] + b"?" + tokens[15:])

    def test_another_version(self, refused, tokens):
        assert "update the package" in refused(tokens[:4] + b"\x02" + tokens[5:])

    def test_a_token_beyond_the_vocabulary(self, refused, tokens):
        assert "Token 65535 of item 0" in refused(tokens + b"\xff\xff")

    def test_of_another_model(self, refused, stream, tokens):
        description = PackedHeader.read_stream(source := io.BytesIO(tokens))
        foreign = description._replace(model_identity="0" * 16).stream_header() + source.read()
        assert "was encoded by model 0000000000000000" in refused(foreign)
        assert stream(foreign, "--force") == stream(tokens)

    def test_options_that_are_for_audio(self, refused, tokens):
        for options in (["--gain", "3"], ["--bottleneck", "native"], ["--output", "tokens"]):
            assert "expected no --bottleneck, --gain or --output tokens" in refused(tokens, *options)

    def test_files_and_streams_are_told_apart(self, refused, tokens, capsys):
        encoded_whole(wav_bytes(speechlike(1_000)))
        assert "neither WAV nor a stream of tokens" in refused(Path("whole.taae").read_bytes())
        Path("stream.taae").write_bytes(tokens)
        assert cli.main(["decode", "stream.taae", "-o", "decoded.wav"]) == 2
        assert "a stream of tokens goes to `taae stream`" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("sox") is None, reason="sox is not installed")
@pytest.mark.slow
def test_in_a_pipe_with_sox():
    soundfile.write("speech.wav", speechlike(16_000), RATE, subtype="PCM_16")
    taae = f"{sys.executable} -m modeling_taae stream"
    pipeline = f"sox speech.wav -t wav - | {taae} --output tokens | {taae} | sox -t s16 -r {RATE} -c 1 - decoded.wav"
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run(["bash", "-o", "pipefail", "-c", f"export PYTHONPATH={root}; {pipeline}"], check=True)
    assert soundfile.info("decoded.wav").frames == 16_000
