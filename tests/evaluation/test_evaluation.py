"""`taae evaluate` from end to end on data of every kind, good and bad, with a tiny model."""

import csv
import json
import math
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from support.processes import Process
from support.token_folders import clip, flac, parquet

from modeling_taae import cli
from modeling_taae.codec import load_codec
from modeling_taae.data.utterances import Utterances
from modeling_taae.entropy.statistics import entropy_of_counts, token_statistics
from modeling_taae.evaluation import codecs, evaluate_codecs, peers, run, scoring, taae_systems, write_results
from modeling_taae.evaluation.results import Mean, Results
from modeling_taae.evaluation.tables import mean_with_interval
from modeling_taae.quantization_taae import FiniteScalarQuantizer, ResidualFSQ

RATE = 16_000
QUICK = ["--metrics", "stoi", "mel_distance", "--workers", "1", "--samples", "0", "--no-speed"]


@pytest.fixture(autouse=True)
def workplace(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TAAE_MODEL", str(tiny_model_folder))
    monkeypatch.chdir(tmp_path)


def row(name: str, audio: bytes | None, **facts) -> dict:
    return {"id": name, "audio": {"bytes": audio, "path": None}, "language": "en", "speaker_id": "s", **facts}


def evaluate(*arguments) -> dict:
    assert cli.main(["evaluate", *map(str, arguments), "-o", "results", *QUICK]) == 0
    return json.loads(Path("results/results.json").read_text())


@pytest.fixture
def data() -> str:
    rows = [row(f"u{n}", flac(clip(seed=n)), language="en" if n < 3 else "ru", source="made") for n in range(4)]
    # As data sets have it that know of some only.
    rows = [{**row, "gender": gender} for row, gender in zip(rows, ["f", "m", "m", ""], strict=True)]
    return parquet("data.parquet", rows)


class TestResults:
    def test_all_files_agree(self, data):
        summary = evaluate(data, "--bottleneck", "1x46656_400bps", "2x15625_700bps", "--peers", "pcm16")
        names = [system["name"] for system in summary["systems"]]
        assert names == ["tiny 1x46656_400bps", "tiny 2x15625_700bps", "pcm16"]
        lines = list(csv.DictReader(Path("results/results.csv").read_text().splitlines()))
        assert len(lines) == 12
        report = Path("results/report.md").read_text()
        for system in summary["systems"]:
            values = [float(line["stoi"]) for line in lines if line["system"] == system["name"]]
            mean = system["metrics"]["stoi"]
            assert mean["n"] == 4 and mean["mean"] == pytest.approx(np.mean(values), rel=1e-5)
            assert min(values) <= mean["low"] <= mean["mean"] <= mean["high"] <= max(values)
            assert f"{mean['mean']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})" in report
            assert {name: group["utterances"] for name, group in system["by"]["language"].items()} == {"en": 3, "ru": 1}
            assert set(system["by"]["source"]) == {"made"} and set(system["by"]["speaker"]) == {"s"}
            assert {name: group["utterances"] for name, group in system["by"]["gender"].items()} == {"f": 1, "m": 2}
        assert "| m | pcm16 | 2 |" in report and [line["gender"] for line in lines[:4]] == ["f", "m", "m", ""]

    def test_bit_rates_and_tokens(self, data):
        summary = evaluate(data, "--bottleneck", "1x46656_400bps", "4x729_1000bps")
        one, four = summary["systems"]
        assert one["nominal_bit_rate"] == pytest.approx(387.7, abs=0.1)
        # 25 frames of 16 bits are 50 bytes a second; the header comes on top.
        assert one["payload_bit_rate"] == pytest.approx(400) and one["file_bit_rate"] > 400
        assert [len(system["tokens"]["stages"]) for system in (one, four)] == [1, 4]
        assert one["tokens"]["frames"] == 100
        for stage in four["tokens"]["stages"]:
            assert stage["vocabulary"] == 729 and 1 <= stage["used"] <= 100
            assert all(0 <= entropy <= 1 for entropy in stage["digit_entropy"])
        assert four["tokens"]["conditional_bit_rate"] <= four["tokens"]["entropy_bit_rate"] + 1e-6

    def test_same_figures_every_time(self, data):
        first = evaluate(data)
        Path("results/rows.jsonl").unlink()
        assert evaluate(data) == first

    def test_reference_has_the_extractors_loudness(self, data):
        quiet = evaluate(parquet("quiet.parquet", [row("u", flac(clip() / 4))]))["systems"][0]["metrics"]
        loud = evaluate(parquet("loud.parquet", [row("u", flac(clip()))]))["systems"][0]["metrics"]
        assert quiet["mel_distance"]["mean"] == pytest.approx(loud["mel_distance"]["mean"], abs=0.02)
        summary = evaluate("quiet.parquet", "--no-loudness")
        assert summary["reference"]["target_loudness"] is None
        assert summary["systems"][0]["metrics"]["mel_distance"]["mean"] != pytest.approx(quiet["mel_distance"]["mean"])

    def test_speed_is_measured(self, data, tiny_model_folder):
        codec = load_codec(str(tiny_model_folder), "cpu")
        options = {"target_loudness": codec.extractor.target_loudness, "speed_seconds": 0.5}
        results = evaluate_codecs(Utterances([data], limit=1), taae_systems(codec, [None], "tiny"), ["stoi"], **options)
        write_results(Path("results"), results)
        (system,) = Results.read(Path("results/results.json")).systems
        assert system.speed.encode_rtf > 0 and "## Speed" in Path("results/report.md").read_text()
        assert codec.extractor.target_loudness is not None  # the codec that was given is left as it is

    def test_a_codec_that_fails_has_no_speed_and_stops_no_other(self, monkeypatch):
        works, fails = codecs.PcmSystem("16"), codecs.PcmSystem("16")
        fails.name = "broken"

        def fail(audio):
            raise RuntimeError("the tool failed")

        monkeypatch.setattr(fails, "encode", fail)
        assert run.speeds([fails, works], [clip()], seconds=0.5).keys() == {works.name}


class TestData:
    def test_folder_of_audio(self):
        Path("speech/deep").mkdir(parents=True)
        soundfile.write("speech/a.wav", clip(), RATE)
        soundfile.write("speech/deep/b.flac", np.stack([clip(2.0)] * 2, axis=1), 2 * RATE)
        data = evaluate("speech")["data"]
        assert (data["scored"], data["seconds"]) == (2, 2.0)
        lines = csv.DictReader(Path("results/results.csv").read_text().splitlines())
        assert [line["id"] for line in lines] == ["a.wav", "deep/b.flac"]

    def test_a_name_that_is_no_utf_8(self):
        Path("speech").mkdir()
        soundfile.write("good.wav", clip(), RATE)
        os.rename("good.wav", os.fsdecode(b"speech/caf\xe9.wav"))
        evaluate("speech")
        assert r"caf\xe9.wav" in Path("results/results.csv").read_text()

    def test_what_was_found_is_told(self, capsys):
        evaluate(parquet("data.parquet", [row("good", flac(clip())), row("bad", b"no audio")]))
        out, err = capsys.readouterr()
        assert "| tiny 1x46656_400bps | 388 |" in out and "results/report.html" in out
        assert "taae: `bad`: cannot be read as audio" in err

    def test_globs_limit_and_repeated_ids(self, data):
        parquet("more.parquet", [row("u0", flac(clip(seed=9)))])
        assert evaluate("*.parquet")["data"]["utterances"] == 5
        ids = [line["id"] for line in csv.DictReader(Path("results/results.csv").read_text().splitlines())]
        assert ids == ["u0", "u1", "u2", "u3", "u0#2"]
        assert evaluate("*.parquet", "--limit", "2")["data"]["utterances"] == 2

    def test_bad_utterances_are_listed_and_in_no_mean(self):
        good = flac(clip())
        rows = [
            row("good", good, duration=1.0),
            row("corrupt", b"no audio"),
            row("cut", good[:200]),
            row("missing", None),
            row("silent", flac(np.zeros(RATE, np.float32))),
            row("short", flac(clip(0.2))),
            row("empty", flac(np.zeros(0, np.float32))),
            row("mismatched", flac(clip(seed=1)), duration=7.0),
        ]
        summary = evaluate(parquet("bad.parquet", rows))
        listed = {entry["id"]: entry["problem"] for entry in summary["problems"]}
        assert set(listed) == {row["id"] for row in rows} - {"good"}
        for name in ("missing", "silent", "mismatched"):
            assert listed[name].startswith(name)
        assert "too short" in listed["short"]
        assert (summary["data"]["utterances"], summary["data"]["scored"]) == (8, 2)
        assert summary["systems"][0]["metrics"]["stoi"]["n"] == 2
        assert all(f"`{name}`" in Path("results/report.md").read_text() for name in listed)

    def test_undefined_metrics_and_failing_codecs_are_listed(self, data, monkeypatch):
        monkeypatch.setattr(scoring, "score", lambda *_: {"stoi": math.nan, "mel_distance": 1.0})

        def fail(*_):
            raise RuntimeError("tool\nfell over")

        summary = evaluate(data)
        assert summary["systems"][0]["metrics"]["stoi"] == {"mean": None, "low": None, "high": None, "n": 0}
        assert summary["problems"][0]["problem"] == "not defined: STOI"
        monkeypatch.setattr(codecs.PcmSystem, "decode", fail)
        failed = [entry for entry in evaluate(data, "--peers", "pcm16")["problems"] if entry["system"] == "pcm16"]
        assert [entry["problem"] for entry in failed] == ["tool fell over"] * 4

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["none.parquet"], "none.parquet: no such file"),
            (["none/*"], "none/*: no such file"),
            (["empty"], "holds no audio"),
            (["data.parquet", "--audio-column", "sound"], "no column 'sound'"),
            (["data.parquet", "--metrics", "beauty"], "beauty: not known"),
            (["data.parquet", "--peers", "mp3"], "is no codec"),
            (["data.parquet", "--bottleneck", "3x3"], "--bottleneck: "),
            (["silence.parquet"], "none of the 1 utterances can be scored (u: silent"),
            (["data.parquet", "--snr", "10"], "--snr: needs --noise"),
            (["data.parquet", "-o", "data.parquet"], "-o data.parquet: is a file"),
        ],
    )
    def test_mistakes_are_one_line(self, data, capsys, arguments, message):
        Path("empty").mkdir()
        parquet("silence.parquet", [row("u", flac(np.zeros(RATE, np.float32)))])
        capsys.readouterr()
        assert cli.main(["evaluate", *arguments[:1], "-o", "results", *QUICK, *arguments[1:]]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("taae: error")]
        assert message in line

    def test_peers_without_tools_are_left_out_with_a_message(self, data, capsys, monkeypatch):
        monkeypatch.setattr("shutil.which", lambda tool: None)
        assert len(evaluate(data, "--peers", "codec2-700C", "opus-6k")["systems"]) == 1
        assert capsys.readouterr().err.count("left out, because") == 2


class TestCodecs:
    def test_two_of_one_name_are_refused(self, data, capsys, tiny_model_folder):
        arguments = ["--bottleneck", "5,5,5,5,5,5@1", "5,5,5,5,5,5@1.0"]
        assert cli.main(["evaluate", data, "-o", "results", *QUICK, *arguments]) == 2
        assert "several codecs have this name" in capsys.readouterr().err
        names = [system["name"] for system in evaluate(data, "--packet-loss", "0.12", "0.125", "0.005")["systems"]]
        assert [name.split(", ")[1:] for name in names] == [[], ["12% lost"], ["12.5% lost"], ["0.5% lost"]]

    def test_one_that_fails_at_the_first_clip_goes_on(self, data, monkeypatch):
        class Moody(codecs.PcmSystem):
            delay = None

            def encode(self, audio):
                if len(audio) == RATE // 2:
                    raise RuntimeError("not today")
                return super().encode(audio)

        monkeypatch.setitem(peers.PEERS, r"moody(16)", Moody)
        parquet("short.parquet", [row("short", flac(clip(0.5)))])
        summary = evaluate("short.parquet", data, "--peers", "moody16")
        assert summary["systems"][1]["metrics"]["stoi"]["n"] == 4
        assert any("not today" in str(problem) for problem in summary["problems"])


class TestResume:
    @pytest.mark.slow
    def test_workers_end_with_a_run_that_is_killed(self):
        """They hold a gigabyte each, and would wait for work for ever."""
        rows = [row(f"u{n}", flac(clip(seed=n))) for n in range(200)]
        options = ["--metrics", "stoi", "--workers", "2", "--samples", "0", "--no-speed", "-o", "results"]
        command = ["evaluate", parquet("many.parquet", rows), *options]
        run = Process(partial(cli.main, command))
        try:
            while not (Path("results/rows.jsonl").exists() and Path("results/rows.jsonl").read_text()):
                assert run.poll() is None
                time.sleep(0.05)
            workers = psutil.Process(run.pid).children(recursive=True)
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
        assert len(workers) >= 2
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive

    def test_interrupted_run_goes_on(self, data, monkeypatch):
        whole = evaluate(data)
        lines = Path("results/rows.jsonl").read_text().splitlines(keepends=True)
        # Cut within the two bytes of a letter, as a full disk does.
        Path("results/rows.jsonl").write_bytes("".join(lines[:2]).encode() + (lines[2][:40] + "ä").encode()[:-1])
        scored = []

        def counted(reference, *arguments):
            scored.append(len(reference) == RATE)
            return original(reference, *arguments)

        original = scoring.score
        monkeypatch.setattr(scoring, "score", counted)
        assert evaluate(data) == whole
        assert sum(scored) == 2
        evaluate(data, "--peers", "pcm16")
        assert sum(scored) == 6

    def test_nothing_is_reused_of_other_weights_audio_or_metrics(self, data, make_tiny_model, tiny_model_folder):
        keys = []
        for arguments in ([data], [data, "--no-loudness"], [data, "--metrics", "stoi"], [data, "--model", "other"]):
            if "other" in arguments:
                make_tiny_model(seed=1).save_pretrained("other")
                (Path("other") / "preprocessor_config.json").write_bytes(
                    (tiny_model_folder / "preprocessor_config.json").read_bytes()
                )
            assert cli.main(["evaluate", *arguments[:1], "-o", "results", *QUICK, *arguments[1:]]) == 0
            keys.append({json.loads(line)["key"] for line in Path("results/rows.jsonl").read_text().splitlines()})
        assert len(set.union(*keys)) == sum(map(len, keys))

    def test_what_is_known_of_an_utterance_may_change(self):
        for language in ("en", "nl"):
            summary = evaluate(parquet("data.parquet", [row("u", flac(clip())) | {"language": language}]))
            assert set(summary["systems"][0]["by"]["language"]) == {language}

    def test_clips_at_which_a_codec_failed_are_tried_again(self, data, monkeypatch):
        def fail(*_):
            raise RuntimeError("out of memory")

        with monkeypatch.context() as context:
            context.setattr(codecs.PcmSystem, "decode", fail)
            assert evaluate(data, "--peers", "pcm16")["problems"]
        assert not evaluate(data, "--peers", "pcm16")["problems"]


class TestStatistics:
    def test_interval_of_a_known_sample(self):
        values = np.random.default_rng(1).normal(3, 1, 400).tolist()
        interval = mean_with_interval([*values, None, None])
        half = 1.96 / math.sqrt(400)
        assert interval.n == 400
        assert interval.low == pytest.approx(interval.mean - half, abs=0.03)
        assert interval.high == pytest.approx(interval.mean + half, abs=0.03)
        assert mean_with_interval([2.0]) == Mean(2.0, None, None, 1)

    def test_entropies_of_known_tokens(self):
        quantizer = ResidualFSQ((FiniteScalarQuantizer((4, 2)),))
        # Dimension 0 walks through its four levels, dimension 1 never moves.
        codes = [np.arange(40)[None] % 4, np.arange(400)[None] % 4]
        statistics = token_statistics(codes, quantizer, frame_rate=25.0)
        (stage,) = statistics["stages"]
        assert stage["digit_entropy"] == pytest.approx([1, 0])
        assert (stage["used"], stage["vocabulary"], statistics["frames"]) == (4, 8, 440)
        assert statistics["entropy_bit_rate"] == pytest.approx(50)
        assert statistics["conditional_bit_rate"] == pytest.approx(0, abs=1e-9)

    def test_entropy_of_counts(self):
        assert entropy_of_counts(np.array([5, 5, 0])) == pytest.approx(1)
        assert entropy_of_counts(np.zeros(3, int)) == 0
