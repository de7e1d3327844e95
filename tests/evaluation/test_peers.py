"""Peers through their command-line tools, and the alignment of what they return."""

import shutil

import numpy as np
import pytest

from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.alignment import align, estimate_delay
from modeling_taae.evaluation.codecs import pcm_bytes, pcm_samples
from modeling_taae.evaluation.peers import Codec2System, MissingToolError, OpusSystem, make_peer, ogg_packets

RATE = 16_000


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed")


def tone(seconds: float) -> np.ndarray:
    """A buzz whose level goes up and down as speech does."""
    time = np.arange(int(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20))
    return (0.1 * buzz * np.sin(np.pi * 3 * time) ** 2).astype(np.float32)


@needs("c2enc", "c2dec")
@pytest.mark.parametrize("mode", ["450", "700C", "1200", "2400"])
def test_codec2(speech, mode):
    peer = make_peer(f"codec2-{mode}")
    clip = speech[0]
    encoded = peer.encode(clip)
    decoded = peer.decode(encoded)
    seconds = len(clip) / RATE
    # Frames of 18 or 28 bits take whole bytes.
    assert peer.nominal_bit_rate <= 8 * encoded.payload_bytes / seconds < 1.4 * peer.nominal_bit_rate
    assert len(clip) <= len(decoded) < len(clip) + 0.04 * RATE
    delay = estimate_delay([(clip, decoded)])
    assert 0 <= delay <= 0.04 * RATE


@needs("opusenc", "opusdec")
def test_opus(speech):
    peer = make_peer("opus-6k")
    clip = speech[0]
    encoded = peer.encode(clip)
    decoded = peer.decode(encoded)
    assert 3_000 < 8 * encoded.payload_bytes / (len(clip) / RATE) < 9_000
    assert encoded.payload_bytes < encoded.file_bytes
    assert len(decoded) == len(clip)
    assert abs(estimate_delay([(clip, decoded)])) <= 2
    assert encoded.content == peer.encode(clip).content


def test_pcm_keeps_16_bits():
    peer, clip = make_peer("pcm16"), tone(0.5)
    encoded = peer.encode(clip)
    assert encoded.payload_bytes == 2 * len(clip)
    assert np.abs(peer.decode(encoded) - clip).max() <= 2**-16


def test_unknown_peers_and_missing_tools_are_told(monkeypatch):
    for name in ("codec2-9600", "opus", "mp3"):
        with pytest.raises(TaaeInputError, match=f"--peers {name}: is no codec"):
            make_peer(name)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    for name, kind in (("codec2-700C", Codec2System), ("opus-6k", OpusSystem)):
        with pytest.raises(MissingToolError, match=kind.package):
            make_peer(name)


class TestDelay:
    @pytest.mark.parametrize("delay", [0, 1, 123, 2_000])
    def test_of_a_copy(self, delay):
        pairs = [(tone(seconds), np.pad(0.5 * tone(seconds), (delay, 0))) for seconds in (1.0, 1.5)]
        assert estimate_delay(pairs) == delay

    @pytest.mark.parametrize("delay", [0, 320, 800])
    def test_of_another_waveform_with_the_same_level(self, delay):
        noise = np.random.default_rng(0).normal(0, 1, 2 * RATE)
        envelope = np.abs(np.sin(np.pi * 3 * np.arange(2 * RATE) / RATE)) ** 2
        other = np.pad(envelope * noise[::-1] * 0.1, (delay, 0))
        assert abs(estimate_delay([(tone(2.0), other)]) - delay) <= 80

    def test_of_noise_is_none(self):
        noise = np.random.default_rng(0).normal(0, 0.1, (2, RATE))
        assert estimate_delay([tuple(noise)]) == 0
        assert estimate_delay([]) == 0


@pytest.mark.parametrize(("delay", "samples"), [(0, 10), (3, 10), (3, 5), (-2, 10), (12, 4)])
def test_align(delay, samples):
    audio = np.arange(1.0, 9.0)
    aligned = align(audio, delay, samples)
    expected = [audio[i + delay] if 0 <= i + delay < len(audio) else 0 for i in range(samples)]
    assert aligned.tolist() == expected


def test_pcm_clips_and_reads_past_a_wav_header():
    assert np.frombuffer(pcm_bytes(np.array([-2.0, 0.5, 2.0])), "<i2").tolist() == [-(2**15), 2**14, 2**15 - 1]
    assert pcm_samples(b"RIFF____WAVEfmt data____" + pcm_bytes(np.array([0.25, -0.25]))).tolist() == [0.25, -0.25]


def test_ogg_payload_leaves_out_two_headers():
    def page(*segments: int) -> bytes:
        return b"OggS" + bytes(22) + bytes([len(segments), *segments]) + bytes(sum(segments))

    packets = ogg_packets(page(19) + page(60) + page(20, 30) + page(7))
    assert [len(packet) for packet in packets[2:]] == [20, 30, 7]
    # A packet goes on over full segments, and over the page's end.
    assert list(map(len, ogg_packets(page(255, 255, 3, 255) + page(9)))) == [513, 264]
