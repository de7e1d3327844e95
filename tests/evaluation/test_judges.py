"""Judges: which of them a run can have, what they count, and what their tables say. Real ones run where installed."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from modeling_taae.cli import main
from modeling_taae.data.utterances import Utterance
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation import evaluate_codecs, judges, recognition, report
from modeling_taae.evaluation.codecs import PcmSystem
from modeling_taae.evaluation.judges import JudgedClip, MissingJudgeError, choose_judges
from modeling_taae.evaluation.recognition import Recognizer
from modeling_taae.evaluation.results import Results
from modeling_taae.evaluation.voices import SpeakerJudge

RATE = 16_000


def noise(seconds: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


class Parrot:
    """A recogniser that hears the texts it was told, by a clip's length, and counts what it was asked."""

    def __init__(self, texts: dict[int, str], languages: tuple[str, ...] = ()):
        self.texts, self.languages, self.asked = texts, languages, []
        self.facts = {"recognizer": "Parrot 1, for tests", "recognizer weights": "0"}

    def transcribe(self, clips):
        self.asked += clips
        return [self.texts[len(audio)] for audio, _ in clips]


class Stuck:
    """Stands in for faster-whisper's model, stuck in a phrase unless it may use none twice."""

    supported_languages = ("en",)

    def transcribe(self, audio, no_repeat_ngram_size=0, **options):
        text = "and so they went" if no_repeat_ngram_size else "and so " * 112
        return iter([SimpleNamespace(text=text)]), None


class Ears:
    """A speaker model that hears the voice in a clip's first two samples."""

    facts = {"speaker model": "Ears 1, for tests", "speaker model weights": "0"}

    def embed(self, clips):
        return [audio[:2].astype(np.float64) for audio, _ in clips]


@pytest.fixture
def nothing_installed(monkeypatch):
    def missing(package, modules):
        raise MissingJudgeError(f"the package {package} is not installed")

    for module in ("recognition", "voices", "naturalness"):
        monkeypatch.setattr(f"modeling_taae.evaluation.{module}.need_package", missing)


class TestChoice:
    def test_without_packages_they_are_left_out_in_one_line(self, nothing_installed):
        metrics, found, left_out = choose_judges(None)
        assert "stoi" in metrics and found == []
        (line,) = left_out
        assert all(
            name in line for name in ("wer", "speaker_similarity", "distillmos", "taae evaluate --install-judges")
        )

    def test_metrics_that_are_named_bring_no_other_judge(self, nothing_installed):
        assert choose_judges(["stoi", "stoi"]) == (["stoi"], [], [])

    @pytest.mark.parametrize(("name", "way"), [("wer", "--recognizer"), ("speaker_similarity", "--speaker-model")])
    def test_one_that_is_asked_for_says_how_to_get_it(self, nothing_installed, name, way):
        with pytest.raises(TaaeInputError, match=f"--metrics {name}: .*{way}.*taae evaluate --install-judges"):
            choose_judges([name])

    def test_unknown_metrics_are_told_of_all_there_are(self):
        with pytest.raises(TaaeInputError, match="beauty: not known; choose from .*stoi.*wer.*distillmos"):
            choose_judges(["stoi", "beauty"])

    def test_other_weights_in_the_package_are_refused(self, tmp_path, monkeypatch):
        package = tmp_path / recognition.BUNDLED_MODULE
        (package / "model").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "model" / "model.bin").write_bytes(b"something else")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, recognition.BUNDLED_MODULE, raising=False)
        monkeypatch.setattr(recognition, "need_package", lambda *_: "0.2.0")
        with pytest.raises(TaaeInputError, match=r"0\.2\.0 does not hold the weights"):
            recognition.load_recognizer(None)


class TestInstallation:
    @pytest.fixture
    def commands(self, monkeypatch) -> list[list[str]]:
        commands: list[list[str]] = []

        def record(command, **_):
            commands.append(command)
            return subprocess.CompletedProcess(command, returncode=0 if len(commands) < 3 else 1)

        monkeypatch.setattr("modeling_taae.cli.judges.subprocess.run", record)
        monkeypatch.setattr("modeling_taae.cli.judges.version", lambda package: "1.2.3")
        return commands

    def test_one_command_installs_them_here(self, commands):
        with pytest.raises(SystemExit) as end:
            main(["evaluate", "--install-judges"])
        first, second = commands
        assert not end.value.code and first[:4] == second[:4] == [sys.executable, "-m", "pip", "install"]
        assert first[4:] == ["modeling_taae[judges]==1.2.3"]
        assert second[4] == "--no-deps" and all("==" in package for package in second[5:])

    def test_it_needs_nothing_of_what_it_installs(self):
        """It runs where only the package itself is installed."""
        without = "import sys; sys.modules |= dict.fromkeys(['pyarrow', 'datasets', 'torch'])"
        subprocess.run([sys.executable, "-c", f"{without}; import modeling_taae.cli.judges"], check=True)

    def test_a_failure_of_pip_is_told(self, commands, capsys):
        commands += [[], []]
        with pytest.raises(SystemExit) as end:
            main(["evaluate", "--install-judges"])
        assert end.value.code == 2 and "`pip install modeling_taae[judges]==1.2.3` failed" in capsys.readouterr().err


class TestRecognizer:
    def test_counts_words_against_text_and_own_hearing(self):
        recognizer = Recognizer(Parrot({100: "the cat sat", 99: "The hat, sat!"}))
        clip = JudgedClip(np.zeros(100, np.float32), np.zeros(99, np.float32), {"text": "A cat sat.", "language": "en"})
        (scores,) = recognizer.judge([clip])
        assert (scores["wer"], scores["dwer"]) == ([2, 3], [1, 3])

    def test_languages_without_spaces_count_characters(self):
        recognizer = Recognizer(Parrot({100: "你好世界", 99: "你好世间"}))
        facts = {"text": "你好世界", "language": "zh-CN"}
        (scores,) = recognizer.judge([JudgedClip(np.zeros(100, np.float32), np.zeros(99, np.float32), facts)])
        assert scores["wer"] is scores["dwer"] is None and scores["cer"] == scores["dcer"] == [1, 4]

    def test_other_languages_than_its_own_are_not_judged_nor_missed(self):
        parrot = Parrot({len(noise()): "yes"}, languages=("en",))
        data = [Utterance(name, noise(seed=seed), facts={"language": name}) for seed, name in enumerate(["en", "nl"])]
        results = evaluate_codecs(data, [PcmSystem("16")], ["stoi"], [Recognizer(parrot)])
        english, dutch = results.rows["pcm16"]
        assert english.metrics["dwer"] == [0, 1] and dutch.metrics["dwer"] is dutch.metrics["dcer"] is None
        assert results.problems == [] and {language for _, language in parrot.asked} == {"en"}
        assert results.systems[0].by["language"]["en"].metrics["dwer"].n == 1

    def test_a_recording_is_heard_once_for_all_codecs(self):
        class Quieter(PcmSystem):
            def decode(self, encoded):
                return super().decode(encoded) * 0.5

        parrot, systems = Parrot({len(noise()): "yes"}), [PcmSystem("16"), Quieter("8")]
        evaluate_codecs([Utterance("a", noise())], systems, ["stoi"], [Recognizer(parrot)])
        # The recording itself, and what each codec makes of it.
        assert len(parrot.asked) == 3


class TestOriginals:
    @pytest.fixture
    def results(self, tmp_path) -> Results:
        def clip(voice: float, seed: int) -> np.ndarray:
            return np.concatenate([[np.cos(voice), np.sin(voice)], noise(seed=seed)]).astype(np.float32)

        voices = {"a": (0.0, "ann"), "b": (0.1, "ann"), "c": (1.5, "ben")}
        data = [
            Utterance(name, clip(voice, seed), facts={"speaker": speaker, "text": "yes no"})
            for seed, (name, (voice, speaker)) in enumerate(voices.items())
        ]
        hearing = [Recognizer(Parrot({len(data[0].audio): "yes"})), SpeakerJudge(Ears())]
        return evaluate_codecs(data, [PcmSystem("16")], ["mel_distance"], hearing, folder=tmp_path)

    def test_voices_of_one_person_and_of_two_stand_beside(self, results):
        same, other = results.originals.same_speaker, results.originals.other_speakers
        assert (same.n, other.n) == (1, 2) and same.mean == pytest.approx(np.cos(0.1), abs=1e-4)
        assert other.mean == pytest.approx(np.mean([np.cos(1.5), np.cos(1.4)]), abs=1e-4)
        assert results.systems[0].metrics["speaker_similarity"].mean == pytest.approx(1, abs=1e-3)

    def test_tables_say_who_judged_and_how_originals_do(self, results):
        page = report.report(results)
        assert "Judges: recognizer: Parrot 1, for tests; speaker model: Ears 1, for tests." in page
        assert "| original | – | – | 50.0 (50.0 to 50.0)" in page and "Two recordings of one person" in page

    def test_they_survive_json_and_a_second_run(self, results, tmp_path):
        again = Results.from_json(json.loads(json.dumps(results.to_json())))
        assert again.originals == results.originals and again.systems == results.systems
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert [row["system"] for row in rows] == ["pcm16"] * 3 + ["original"] * 3
        assert all(len(row["embedding"]) == 2 for row in rows[3:])


def test_cached_rows_need_no_judge(tmp_path):
    parrot = Parrot({len(noise()): "yes"})
    runs = [
        evaluate_codecs([Utterance("a", noise())], [PcmSystem("16")], ["stoi"], [Recognizer(parrot)], folder=tmp_path)
        for _ in range(2)
    ]
    assert runs[0].to_json() == runs[1].to_json() and len(parrot.asked) == 2


def test_a_transcript_that_repeats_itself_is_made_again():
    listener = recognition.WhisperListener.__new__(recognition.WhisperListener)
    listener.model = Stuck()
    assert listener.transcribe([(noise(), "en")]) == ["and so they went"]


def test_a_transcript_of_transformers_that_repeats_itself_is_made_again():
    asked = []

    def pipeline(inputs, batch_size, generate_kwargs=None):
        """Stuck in a phrase for the second clip, unless it may use none twice."""
        asked.append(len(inputs))
        if generate_kwargs == {"no_repeat_ngram_size": 3}:
            return [{"text": "and so they went"} for _ in inputs]
        return [{"text": "and so " * 112 if each["raw"][0] else "a cat sat"} for each in inputs]

    listener = recognition.TransformersListener.__new__(recognition.TransformersListener)
    listener.pipeline, listener.whisper = pipeline, True
    clips = [(np.zeros(9), ""), (np.ones(9), ""), (np.zeros(9), "")]
    assert listener.transcribe(clips) == ["a cat sat", "and so they went", "a cat sat"]
    assert asked == [3, 1]
    listener.whisper = False  # a model that is not asked to generate takes no such arguments
    assert listener.transcribe(clips)[1].startswith("and so and so") and asked == [3, 1, 3]


judged = pytest.mark.judges


@judged
class TestReal:
    @pytest.fixture(autouse=True)
    def installed(self):
        for module in ("resemblyzer", "faster_whisper", "distillmos", recognition.BUNDLED_MODULE):
            if judges.find_spec(module) is None:
                pytest.skip(f"the judge {module} is not installed")

    def test_they_prefer_speech_to_noise(self, speech):
        _, found, left_out = choose_judges(["wer", "speaker_similarity", "distillmos"])
        assert left_out == [] and len(found) == 3
        rough = (speech[0] + noise(60)[: len(speech[0])]).astype(np.float32)
        same, worse = JudgedClip(speech[0], speech[0]), JudgedClip(speech[0], rough)
        scores = [judge.judge([same, worse]) for judge in found]
        (kept, lost), (voice, other), (good, bad) = scores
        assert kept["dwer"][0] == 0 < lost["dwer"][0]
        assert other["speaker_similarity"] < 0.95 and voice["speaker_similarity"] == pytest.approx(1, abs=1e-4)
        assert 1 <= bad["distillmos"] < good["distillmos"] <= 5

    def test_a_batch_gives_what_single_clips_give(self, speech):
        _, found, _ = choose_judges(["speaker_similarity", "distillmos"])
        clips = [JudgedClip(clip, 0.5 * clip + noise(60)[: len(clip)]) for clip in speech]
        for judge in found:
            single = [judge.judge([clip])[0] for clip in clips]
            _, (again,), _ = choose_judges(list(judge.metrics))
            for one, other in zip(single, again.judge(clips), strict=True):
                assert one == pytest.approx(other, abs=1e-4)


def test_modules_for_the_hub_name_their_judge():
    folder = Path(__file__).parents[2] / "hub_cards" / "metrics"
    if not folder.is_dir():
        pytest.skip("the metric modules are in a checkout of the project only")
    for name in ("distillmos", "speaker_similarity", "recognizer_errors"):
        assert (folder / name / f"{name}.py").is_file()
