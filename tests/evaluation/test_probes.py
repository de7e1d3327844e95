"""Probes find what is there, do not find what is not, and do not mistake a speaker for a language."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile

from modeling_taae.evaluation.probes import classify, digit_features, mel_features, phoneme_error_rate, pooled
from modeling_taae.quantization_taae import FiniteScalarQuantizer, ResidualFSQ
from training.benchmarks import probes

RATE = 16_000


def test_features_have_a_row_per_frame():
    quantizer = ResidualFSQ((FiniteScalarQuantizer((3, 2)), FiniteScalarQuantizer((3, 2), 0.5)))
    features = digit_features(np.array([[0, 5, 2], [1, 0, 3]]), quantizer)
    assert features.shape == (3, 10) and (features.sum(axis=1) == 4).all()
    assert features[1].tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 1, 0]
    noise = np.random.default_rng(0).normal(0, 0.1, 2_000).astype(np.float32)
    assert mel_features(noise, 640).shape == (4, 320)
    assert pooled(features).shape == (20,)


class TestClassify:
    labels = ["en", "de"] * 40
    speakers = [f"s{number // 8}{number % 2}" for number in range(80)]

    def test_finds_what_is_there(self):
        noise = np.random.default_rng(0).normal(size=(80, 5))
        telling = noise + 3 * (np.array(self.labels) == "en")[:, None]
        result = classify(telling, self.labels, self.speakers)
        assert result["accuracy"] > 0.95 and result["balanced_accuracy"] > 0.95
        assert (result["chance"], result["classes"], result["utterances"]) == (0.5, 2, 80)
        assert classify(telling, self.labels, self.speakers) == result

    def test_does_not_find_what_is_not(self):
        noise = np.random.default_rng(0).normal(size=(80, 5))
        assert 0.3 < classify(noise, self.labels, self.speakers)["accuracy"] < 0.7

    def test_a_speaker_is_no_language(self):
        # Features name the speaker, who is never in training and test at once.
        names = sorted(set(self.speakers))
        features = np.eye(len(names))[[names.index(name) for name in self.speakers]]
        assert classify(features, self.labels, self.speakers)["accuracy"] < 0.7
        assert classify(features, self.labels, [str(number) for number in range(80)])["accuracy"] > 0.9


@pytest.mark.slow
def test_phonemes_are_read_where_they_are():
    generator = np.random.default_rng(0)

    def utterance() -> tuple[np.ndarray, list[str]]:
        phonemes = generator.integers(4, size=8)
        shapes = np.repeat(np.eye(4, dtype=np.float32)[phonemes], 3, axis=0)
        return shapes, [f"P{phoneme}" for phoneme in phonemes]

    known, unknown = ([utterance() for _ in range(count)] for count in (200, 10))
    result = phoneme_error_rate(known, unknown)
    assert result["phoneme_error_rate"] < 0.5 < result["chance"]
    silent = [(np.zeros_like(features), phonemes) for features, phonemes in known]
    assert phoneme_error_rate(silent, unknown)["phoneme_error_rate"] > 0.7


def test_script(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "tiny"))
    rows, texts = [], []
    for number in range(40):
        content = io.BytesIO()
        soundfile.write(content, np.random.default_rng(number).normal(0, 0.1, RATE // 2), RATE, format="WAV")
        language = "en" if number < 20 else "de" if number < 39 else "fr"
        facts = {"speaker_id": f"s{number // 4}", "language": language}
        rows.append({"id": f"u{number}", "audio": {"bytes": content.getvalue(), "path": None}, **facts})
        texts.append({"id": f"u{number}", "source": "made" if number < 8 else "other", "phonemes": "AH0 B | S"})
    pa.parquet.write_table(pa.Table.from_pylist(rows), "data.parquet")
    pa.parquet.write_table(pa.Table.from_pylist(texts), "texts.parquet")
    options = ["--speech", "data.parquet", "--train", "data.parquet", "--phonemes", "texts.parquet", "--source", "made"]
    assert probes.MEASUREMENT.run([str(folder), *options]) == 0
    results = json.loads((folder / "results" / "probes.json").read_text())
    assert {"model_identity", "bottleneck", "language", "speaker", "phonemes"} <= set(results)
    assert "gender" not in results and (results["speech"], results["utterances"]) == (["data.parquet"], 40)
    # One speaker of French could not be known by anything but the voice.
    assert results["language"]["labels"] == {"de": 19, "en": 20}
    assert results["speaker"]["tokens"]["classes"] == 10
    assert results["phonemes"]["trained_on"] == 8 and results["phonemes"]["log-mel"]["phonemes"] == 24
    assert probes.read_phonemes("texts.parquet", "made")["u0"] == ["AH", "B", "S"]
