"""Conditions and trials: each does to audio what it says, and comes out in the results as a group or a system."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile

from modeling_taae import cli
from modeling_taae.codec import load_codec
from modeling_taae.data.utterances import Utterance, Utterances
from modeling_taae.evaluation.alignment import LONGEST_DELAY
from modeling_taae.evaluation.codecs import Encoded, TaaeSystem
from modeling_taae.evaluation.conditions import (
    Conditions,
    PacketLoss,
    Tandem,
    end_to_end,
    make_music,
    mix,
    reverberate,
    silence_level,
)
from modeling_taae.evaluation.metrics import pesq_wb
from modeling_taae.evaluation.peers import make_peer
from modeling_taae.evaluation.run import evaluate_codecs

RATE = 16_000


def noise(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def wav(audio: np.ndarray) -> dict:
    content = io.BytesIO()
    soundfile.write(content, audio, RATE, format="WAV")
    return {"bytes": content.getvalue(), "path": None}


def power(audio: np.ndarray) -> float:
    return float(np.mean(np.square(audio, dtype=np.float64)))


@pytest.mark.parametrize("ratio", [-5, 0, 20])
def test_mixing_has_the_ratio(ratio):
    speech = noise(2.0)
    added = mix(speech, noise(0.7, seed=1), ratio) - speech
    assert 10 * np.log10(power(speech) / power(added)) == pytest.approx(ratio, abs=0.01)


def test_reverberation_keeps_power_and_place():
    speech = np.pad(noise(0.5), (0, RATE // 2))
    room = np.zeros(4_000)
    room[[300, 1_500]] = 1.0, 0.5
    wet = reverberate(speech, room)
    assert wet.shape == speech.shape and power(wet) == pytest.approx(power(speech), rel=1e-3)
    assert np.corrcoef(wet[:1_000], speech[:1_000])[0, 1] > 0.999
    assert power(wet[8_000:9_000]) > 0


def test_clips_of_other_lengths():
    utterances = [Utterance("a", noise(0.5)), Utterance("bad", None), Utterance("b", noise(0.5, seed=1))]
    *_, shorter, longer = Conditions(iter(utterances), lengths=[0.5, 2.5])
    assert (shorter.id, longer.id) == ("0.5 s", "2.5 s") and np.array_equal(shorter.audio, noise(0.5))
    clip = longer.audio
    assert len(clip) == 2.5 * RATE
    assert np.array_equal(clip[: RATE // 2], noise(0.5)) and np.array_equal(clip[RATE : 2 * RATE], clip[:RATE])
    assert len(end_to_end([noise()], 100)) == 100 and len(end_to_end([], 100)) == 100
    assert 0.25 < np.abs(make_music()).max() <= 0.31


def test_long_clips_are_scored_in_parts():
    clip, other = noise(30.0), noise(30.0) + noise(30.0, seed=1)
    halves = [pesq_wb(clip[half], other[half]) for half in (slice(0, 15 * RATE), slice(15 * RATE, None))]
    assert pesq_wb(clip, other) == pytest.approx(np.mean(halves))


def test_tandem_of_rounding_is_rounding_once():
    peer = make_peer("pcm16")
    tandem = Tandem(peer, 5, delay=0)
    clip = noise()
    assert np.array_equal(tandem.decode(tandem.encode(clip)), peer.decode(peer.encode(clip)))
    assert tandem.name == "pcm16, 5 times"


class Late:
    """A codec that loses nothing, and whose delay nobody tells."""

    name, nominal_bit_rate, delay, facts, samples = "late", 1.0, None, {"kind": "made", "file": ""}, 900

    def encode(self, audio: np.ndarray) -> Encoded:
        return Encoded(audio, 1, 1)

    def decode(self, encoded: Encoded) -> np.ndarray:
        return np.pad(encoded.content, (self.samples, 0))


def test_every_passage_of_a_tandem_is_aligned(tmp_path):
    # Five delays would be more than is searched for.
    assert 5 * Late.samples > LONGEST_DELAY * RATE
    soundfile.write(tmp_path / "speech.wav", noise(3.0) * np.sin(np.arange(3 * RATE) / 2_000) ** 2, RATE)
    late = Late()
    results = evaluate_codecs(Utterances([str(tmp_path)]), [late], ["si_sdr"], tandem=5)
    once, five_times = (results.rows[name][0].metrics["si_sdr"] for name in ("late", "late, 5 times"))
    assert once > 60 and five_times > 10 and [each.delay_samples for each in results.systems] == [Late.samples] * 2
    assert late.delay is None  # the codec that was given is left as it is


def test_packet_loss_repeats_the_frame_before(tiny_model_folder):
    codec = load_codec(str(tiny_model_folder), "cpu", loudness=False)
    system = TaaeSystem(codec, None, "tiny")
    encoded = system.encode(noise(2.0))
    whole = system.decode(encoded)
    assert np.array_equal(PacketLoss(system, 0.0).decode(encoded), whole)
    lost = PacketLoss(system, 1.0).decode(encoded)
    assert lost.shape == whole.shape and not np.array_equal(lost, whole)
    first = encoded.content.audio_codes[:, :1]
    codes = np.repeat(first, encoded.content.frames, axis=1)
    again = system.encode(noise(2.0)).content
    object.__setattr__(again, "audio_codes", codes)
    assert np.array_equal(lost, codec.decode(again))


def test_silence_level():
    assert silence_level(make_peer("pcm16")) == pytest.approx(-120)


def test_everything_in_one_run(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    room = np.zeros(2_000, np.float32)
    room[[100, 900]] = 0.9, 0.3
    rows = [{"id": f"u{n}", "audio": wav(noise(seed=n)), "language": "en"} for n in range(2)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), "data.parquet")
    rows = [{"id": "n", "audio": wav(noise(0.3, 7)), "kind": "noise"}, {"id": "r", "audio": wav(room), "kind": "rir"}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), "hard.parquet")
    command = ["evaluate", "data.parquet", "--model", str(tiny_model_folder), "-o", "results", "--peers", "pcm16"]
    command += ["--noise", "hard.parquet", "--snr", "10", "0", "--reverb", "hard.parquet", "--lengths", "0.5", "3"]
    command += ["--music", "--tandem", "2", "--packet-loss", "0.1", "--metrics", "stoi", "mel_distance"]
    assert cli.main([*command, "--workers", "1", "--samples", "0", "--no-speed"]) == 0
    summary = json.loads(Path("results/results.json").read_text())
    assert [system["name"].removeprefix("tiny 1x46656_400bps") for system in summary["systems"]] == [
        *("", "pcm16", ", 2 times", "pcm16, 2 times", ", 10% lost")
    ]
    for system in summary["systems"]:
        groups = {name: group["utterances"] for name, group in system["by"]["condition"].items()}
        each = dict.fromkeys(["as recorded", "noise at 10 dB", "noise at 0 dB", "reverberation"], 2)
        each |= dict.fromkeys(["0.5 s long", "3 s long", "music"], 1)
        assert list(groups.items()) == list(each.items())
        # Means are of the utterances as they are.
        assert system["metrics"]["mel_distance"] == system["by"]["condition"]["as recorded"]["metrics"]["mel_distance"]
        assert system["by"]["language"]["en"]["utterances"] == 2
    assert summary["data"]["scored"] == 2
    assert summary["data"]["added"] == {"noise": ["hard.parquet"], "reverberation": ["hard.parquet"]}
    report = Path("results/report.md").read_text()
    assert "## By condition" in report and "Added noise is from `hard.parquet`." in report


def test_where_files_lie_is_not_told(tiny_model_folder, tmp_path, monkeypatch):
    for folder in ("speech", "here"):
        (tmp_path / folder).mkdir()
    soundfile.write(tmp_path / "speech" / "a.wav", noise(), RATE)
    monkeypatch.chdir(tmp_path / "here")
    command = ["evaluate", "../speech", f"{tmp_path}/speech/*.wav", "--noise", "../speech/a.wav", "-o", "results"]
    command += [
        "--model",
        str(tiny_model_folder),
        "--metrics",
        "stoi",
        "--workers",
        "1",
        "--samples",
        "1",
        "--no-speed",
    ]
    assert cli.main(command) == 0
    for name in ("results.json", "results.csv", "report.md", "report.html"):
        text = (tmp_path / "here" / "results" / name).read_text()
        assert str(tmp_path) not in text and "../speech" not in text and str(tiny_model_folder) not in text
