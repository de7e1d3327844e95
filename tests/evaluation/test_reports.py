"""Files of an evaluation: they hold other people's text safely, say what the test set is, and outlive full disks."""

import csv
import io
import json
import shutil
from copy import deepcopy
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from support.tiny_priors import make_prior

from modeling_taae import cli
from modeling_taae.codec import load_codec
from modeling_taae.data import streams
from modeling_taae.data.utterances import Utterance
from modeling_taae.entropy.prior import PRIOR_FILE
from modeling_taae.errors import TaaeInputError, printable
from modeling_taae.evaluation import evaluate_codecs, taae_systems, write_results
from modeling_taae.evaluation.charts import draw_rates, questions
from modeling_taae.evaluation.codecs import PcmSystem, pcm_bytes
from modeling_taae.evaluation.html_report import html_report
from modeling_taae.evaluation.metrics import Metric
from modeling_taae.evaluation.results import Mean, Originals, Results, Row
from modeling_taae.evaluation.rows import RowStore

pytestmark = pytest.mark.slow

RATE = 16_000
PUBLISHED = Path(__file__).parents[2] / "hub_cards" / "taae-speech-16k-nano" / "results"


def noise(seconds: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


class Louder(PcmSystem):
    """Another codec, with a rate of its own."""

    def __init__(self, bits: str):
        super().__init__(bits)
        self.facts |= {"kind": "made"}


class TestUntrustedText:
    """Ids, languages and reasons come from other people's data."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        data = [
            Utterance("=1+1|x", noise(), facts={"language": "@SUM(A1)", "text": "bell \a and\nline"}),
            Utterance("two\nlines `code`", noise(seed=1), "odd \x1b[31mred", {"language": "-2"}),
            Utterance("\x1b[2J\u202ehidden", None, "missing:\r\nno file"),
        ]
        write_results(tmp_path, evaluate_codecs(data, [PcmSystem("16")], ["mel_distance"], samples=2))
        return tmp_path

    def test_spreadsheets_run_no_formula(self, folder):
        lines = list(csv.reader(io.StringIO((folder / "results.csv").read_text())))
        assert lines[1][0] == "'=1+1|x" and lines[1][3] == "'@SUM(A1)" and lines[2][3] == "'-2"
        assert not [cell for line in lines for cell in line if cell.startswith(("=", "@", "+"))]

    def test_a_line_break_breaks_no_table_or_list(self, folder):
        lines = (folder / "report.md").read_text().splitlines()
        assert any(line.startswith("- `two\\nlines 'code'`: odd \\x1b[31mred") for line in lines)
        assert any(line.startswith("- `\\x1b[2J\\u202ehidden`: missing:\\r\\nno file") for line in lines)

    def test_no_page_has_control_characters(self, folder):
        for name in ("report.md", "report.html"):
            text = (folder / name).read_text()
            assert not {letter for letter in text if ord(letter) < 32} - {"\n"} and "\u202e" not in text

    def test_letters_of_all_scripts_are_left_as_they_are(self):
        text = "نمی\u200cخواهم  你好\u3000世界 क्\u200dष naïve\u00a0– 👩\u200d🔬"
        assert printable(text) == text
        assert printable("a\tb\x85c\u2028d\u2067e") == "a\\tb\\x85c\\u2028d\\u2067e"

    def test_the_terminal_is_told_of_problems_without_escapes(self, tiny_model_folder, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        content = io.BytesIO()
        soundfile.write(content, noise(), RATE, format="WAV")
        rows = [
            {"id": "good", "audio": {"bytes": content.getvalue(), "path": None}},
            {"id": "\x1b]0;owned\a", "audio": {"bytes": b"no audio", "path": None}},
        ]
        pa.parquet.write_table(pa.Table.from_pylist(rows), "data.parquet")
        command = ["evaluate", "data.parquet", "--model", str(tiny_model_folder), "-o", "results", "--no-speed"]
        assert cli.main([*command, "--metrics", "mel_distance", "--workers", "1", "--samples", "0"]) == 0
        err = capsys.readouterr().err
        assert "`\\x1b]0;owned\\x07`" in err and "\x1b]" not in err


class TestFullDisk:
    def test_rows_that_cannot_be_written_are_one_line(self, tmp_path):
        with RowStore(tmp_path) as store:
            store.file.close()
            store.file = open("/dev/full", "w")
            with pytest.raises(TaaeInputError, match=r"rows\.jsonl: cannot be written \(No space left.*make room"):
                store.append(Row("a", "b", 1.0, key="k"))

    def test_a_folder_that_cannot_be_made_is_one_line(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(TaaeInputError, match="cannot be written"), RowStore(tmp_path / "file" / "results"):
            pass


class TestTestSet:
    def test_its_sources_languages_genders_and_speakers_are_told(self, tmp_path):
        facts = [("A", "en", "f", "1"), ("A", "en", "m", "2"), ("B", "nl", "f", "3"), ("B", "nl", "f", "3")]
        names = ("source", "language", "gender", "speaker")
        data = [
            Utterance(f"u{n}", noise(seed=n), facts=dict(zip(names, each, strict=True))) for n, each in enumerate(facts)
        ]
        results = evaluate_codecs(data, [PcmSystem("16")], ["mel_distance"])
        assert results.data.speakers == 3 and results.data.parts["source"]["B"].speakers == 1
        write_results(tmp_path, results)
        page = (tmp_path / "report.md").read_text()
        assert "## Test set" in page and "| language: nl | 2 | 0.0 | 1 |" in page and "| all | 4 | 0.0 | 3 |" in page
        assert "language: nl" in (tmp_path / "report.html").read_text()


class TestFiles:
    @pytest.mark.skipif(not PUBLISHED.is_dir(), reason="results are in a checkout of the project only")
    @pytest.mark.parametrize("name", ["results.json", "presets/results.json", "transmission/results.json"])
    def test_results_of_earlier_releases_are_read_and_written_as_they_are(self, name):
        content = json.loads((PUBLISHED / name).read_text())
        again = Results.read(PUBLISHED / name).to_json()
        for figures, others in zip(again["systems"], content["systems"], strict=True):
            assert others.items() <= figures.items()
        assert content["data"].items() <= again["data"].items()
        unchanged = content.keys() - {"systems", "data"}
        assert {name: again[name] for name in unchanged} == {name: content[name] for name in unchanged}

    def test_damaged_results_are_refused_in_one_line(self, tmp_path):
        for content in ("{", "[]", '{"systems": []}', '{"data": 3}'):
            (tmp_path / "results.json").write_text(content)
            with pytest.raises(TaaeInputError, match=r"results\.json: is not what `taae evaluate` writes"):
                Results.read(tmp_path / "results.json")

    def test_rows_keep_facts_and_figures_apart(self):
        row = Row("a", "pcm16", 1.5, {"language": "en"}, {"stoi": 0.5, "wer": [1, 2]}, 10, 20, [[1]], key="k")
        assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row

    def test_the_file_that_is_measured_is_the_one_that_encode_writes(self, tiny_model_folder, tmp_path, monkeypatch):
        folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "with_prior"))
        make_prior(load_codec(str(folder), "cpu").identity).save(folder)
        monkeypatch.chdir(tmp_path)
        soundfile.write("speech.wav", noise(2.0), RATE, subtype="FLOAT")
        assert cli.main(["encode", "speech.wav", "-o", "speech.taae", "--model", str(folder), "--no-loudness"]) == 0
        codec = load_codec(str(folder), "cpu")
        (system,) = taae_systems(codec, [None], "tiny")
        encoded = system.encode(noise(2.0))
        assert encoded.file_bytes == Path("speech.taae").stat().st_size > encoded.payload_bytes
        assert "version 2" in system.facts["file"] and (folder / PRIOR_FILE).is_file()


class Ear:
    """A judge that compares with no recording, and likes each codec as well as the other."""

    metrics = {"distillmos": Metric("DistillMOS", "higher", 2, pcm_bytes, needs_reference=False)}
    facts: dict[str, str] = {}

    def judge(self, clips):
        return [{"distillmos": 3.0} for _ in clips]


class TestCharts:
    @pytest.fixture(scope="class")
    @classmethod
    def evaluated(cls) -> Results:
        data = [Utterance(f"u{n}", noise(seed=n)) for n in range(2)]
        systems = [PcmSystem("16"), Louder("8"), Louder("12")]
        return evaluate_codecs(data, systems, ["mel_distance"], [Ear()])

    @pytest.fixture
    def results(self, evaluated) -> Results:
        return deepcopy(evaluated)

    def test_originals_are_a_line_and_rates_logarithmic(self, results):
        figure = draw_rates(results, ["distillmos"])
        (panel,) = figure.axes
        assert panel.get_xscale() == "log"
        height = results.originals.metrics["distillmos"].mean
        assert any(np.allclose(line.get_ydata(), height) for line in panel.lines)
        assert [text.get_text() for text in figure.legends[0].texts] == ["made"], "a family is one line"
        (line,) = (line for line in panel.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o")
        assert list(line.get_xdata()) == [8 * RATE, 12 * RATE]

    def test_an_undefined_metric_draws_nothing_and_fails_not(self, results):
        for system in results.systems:
            system.metrics["mel_distance"] = Mean(None)
        draw_rates(results, ["mel_distance"])

    def test_three_questions_choose_what_there_is(self, results):
        assert list(questions(results)) == ["distillmos"]
        results.metrics |= dict.fromkeys(["stoi", "dwer", "speaker_similarity"], results.metrics["mel_distance"])
        assert list(questions(results)) == ["dwer", "distillmos", "speaker_similarity"]

    def test_the_page_is_the_same_each_time(self, results):
        results.originals = Originals(results.originals.metrics)
        assert html_report(results) == html_report(results)


def test_librispeech_by_its_name(tiny_model_folder, tmp_path, monkeypatch):
    """Its layout on the Hub: subsets as folders of Parquet files, texts in capitals, speakers as numbers."""
    hub = tmp_path / "hub" / "librispeech_asr"
    for subset, seed in (("clean", 0), ("other", 1)):
        (hub / subset / "test").mkdir(parents=True)
        content = io.BytesIO()
        soundfile.write(content, noise(1.0, seed), RATE, format="FLAC")
        rows = [
            {
                "file": "6930-75918-0000.flac",
                "audio": {"bytes": content.getvalue(), "path": "6930-75918-0000.flac"},
                "text": f"CONCORD RETURNED TO ITS PLACE {subset.upper()}",
                "speaker_id": 6930 + seed,
                "chapter_id": 75918,
                "id": f"6930-75918-000{seed}",
            }
        ]
        pa.parquet.write_table(pa.Table.from_pylist(rows), hub / subset / "test" / "0000.parquet")
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test/*.parquet\n"
        for name in ("clean", "other")
    )
    (hub / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")

    def on_this_machine(load):
        return lambda name, *arguments, **options: load(
            {"openslr/librispeech_asr": str(hub)}[name], *arguments, **options
        )

    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(streams, name, on_this_machine(getattr(datasets, name)))
    monkeypatch.setattr(streams, "check_there", lambda name: None)
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "openslr/librispeech_asr", "--subset", "clean", "--split", "test", "-o", "results"]
    command += ["--model", str(tiny_model_folder), "--metrics", "mel_distance", "--workers", "1", "--no-speed"]
    assert cli.main([*command, "--samples", "1"]) == 0
    results = Results.read(Path("results/results.json"))
    assert results.data.sources == ["openslr/librispeech_asr"] and (results.data.scored, results.data.speakers) == (
        1,
        1,
    )
    row = json.loads(Path("results/rows.jsonl").read_text())
    assert (row["speaker"], row["text"]) == ("6930", "CONCORD RETURNED TO ITS PLACE CLEAN")
    assert "CONCORD RETURNED TO ITS PLACE CLEAN" in Path("results/report.html").read_text()
