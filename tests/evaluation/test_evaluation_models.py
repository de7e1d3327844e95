"""What evaluation loads from elsewhere, on tiny random stand-ins: Transformers codecs, recognisers, speaker models, and
the local `evaluate` modules."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
import torch
import transformers
from support.tiny_models import TINY_WAV2VEC2

from modeling_taae import cli
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.judges import JudgedClip
from modeling_taae.evaluation.metrics import METRICS, score
from modeling_taae.evaluation.peers import make_peer
from modeling_taae.evaluation.recognition import (
    TransformersListener,
    character_errors,
    load_recognizer,
    normalize_text,
    word_errors,
)
from modeling_taae.evaluation.voices import load_speaker_judge

pytestmark = pytest.mark.slow

RATE = 16_000
METRIC_MODULES = Path(__file__).parents[2] / "hub_cards" / "metrics"


def clip(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def mimi():
    config = transformers.MimiConfig(
        hidden_size=32,
        num_filters=4,
        codebook_size=16,
        codebook_dim=8,
        num_quantizers=4,
        head_dim=16,
        vector_quantization_hidden_dimension=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        upsample_groups=32,
    )
    return transformers.MimiModel(config), transformers.EncodecFeatureExtractor(sampling_rate=24_000)


def encodec():
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=8, codebook_size=16, codebook_dim=8, target_bandwidths=[0.3, 0.6], num_lstm_layers=1
    )
    return transformers.EncodecModel(config), transformers.EncodecFeatureExtractor(sampling_rate=24_000)


def dac():
    config = transformers.DacConfig(
        encoder_hidden_size=8,
        decoder_hidden_size=32,
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=4,
        downsampling_ratios=[2, 4, 5, 8],
        upsampling_ratios=[8, 5, 4, 2],
    )
    return transformers.DacModel(config), transformers.DacFeatureExtractor(hop_length=320)


def xcodec2():
    semantic = transformers.Wav2Vec2BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        feature_projection_input_dim=160,
    )
    config = transformers.Xcodec2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=16,
        num_key_value_heads=2,
        encoder_hidden_size=4,
        quantization_dim=64,
        semantic_model_config=semantic,
    )
    return transformers.Xcodec2Model(config), None


# Options, and the bit rate: frames a second, codebooks, bits of a code.
CODECS = {
    mimi: ("?num_quantizers=2", 12.5 * 2 * 4),
    encodec: ("?bandwidth=0.6", 75 * 2 * 4),
    dac: ("?n_quantizers=2", 50 * 2 * 4),
    xcodec2: ("", 50 * 1 * 16),
}


@pytest.mark.parametrize("make", CODECS, ids=lambda make: make.__name__)
def test_transformers_codec_as_a_peer(make, tmp_path):
    torch.manual_seed(0)
    model, extractor = make()
    folder = tmp_path / make.__name__
    model.eval().save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)
    options, bit_rate = CODECS[make]
    peer = make_peer(f"{folder}{options}")
    audio = clip(1.5)
    encoded = peer.encode(audio)
    decoded = peer.decode(encoded)
    assert peer.name == f"{make.__name__}{options}"
    # Mimi's frames are 80 ms, of which the first second has 13.
    assert peer.nominal_bit_rate == pytest.approx(bit_rate, rel=0.05)
    assert 8 * encoded.payload_bytes / 1.5 == pytest.approx(bit_rate, rel=0.1)
    assert abs(len(decoded) - len(audio)) < 0.1 * RATE and np.isfinite(decoded).all()
    assert np.array_equal(peer.encode(audio).codes, encoded.codes)
    # Its rows are found again by its facts, and have to be another's once it is trained further.
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save_pretrained(folder)
    assert make_peer(f"{folder}{options}").facts != peer.facts


def test_what_is_no_codec_is_refused(tmp_path, make_tiny_model):
    with pytest.raises(TaaeInputError, match="nowhere/at-all: cannot be loaded"):
        make_peer("nowhere/at-all")
    config = transformers.Wav2Vec2Config(**TINY_WAV2VEC2)
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path / "no_codec")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "no_codec")
    with pytest.raises(TaaeInputError, match="is a wav2vec2, which is no codec"):
        make_peer(str(tmp_path / "no_codec"))


TINY_JUDGE = TINY_WAV2VEC2 | {
    "vocab_size": 8,
    "tdnn_dim": (16, 16),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 16,
    "num_labels": 4,
}


@pytest.fixture(scope="module")
def recognizer_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("recognizer")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"]
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    torch.manual_seed(0)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json")
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**TINY_JUDGE))
    with torch.no_grad():
        model.lm_head.weight *= 100
    model.save_pretrained(folder)
    transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def speaker_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("speakers")
    torch.manual_seed(0)
    transformers.Wav2Vec2ForXVector(transformers.Wav2Vec2Config(**TINY_JUDGE)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)


class TestRecognizer:
    def test_error_counts(self):
        assert word_errors("the cat sat", "the hat sat down").as_list() == [2, 3]
        assert character_errors("cat", "cut").as_list() == [1, 3]
        assert word_errors("", "some thing").as_list() == [2, 0]
        assert normalize_text("Hello, WORLD! [noise]") == "hello world"

    def test_rates(self, recognizer_folder):
        recognizer, audio = load_recognizer(recognizer_folder), clip(2.0)
        heard = normalize_text(TransformersListener(recognizer_folder).transcribe([(audio, "")])[0])
        assert set(heard) <= set("abc ") and heard
        clips = [JudgedClip(audio, audio.copy(), {"text": heard.upper()}), JudgedClip(audio, clip(2.0, seed=1))]
        same, other = recognizer.judge(clips)
        assert [same[name][0] for name in ("wer", "cer", "dwer", "dcer")] == [0] * 4
        assert same["dcer"] == [0, len(heard)]
        assert other["wer"] is None and other["dcer"][0] > 0

    def test_missing_model_is_told(self):
        with pytest.raises(TaaeInputError, match="no/such-recogniser: cannot be loaded"):
            load_recognizer("no/such-recogniser")


def test_speaker_similarity(speaker_folder):
    tone = 0.1 * np.sin(np.arange(RATE, dtype=np.float32) / 20)
    scores = load_speaker_judge(speaker_folder).judge([JudgedClip(clip(), clip()), JudgedClip(clip(), tone)])
    same, other = (each["speaker_similarity"] for each in scores)
    assert same == pytest.approx(1) and -1 <= other < same


def test_evaluate_with_networks(recognizer_folder, speaker_folder, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(3):
        content = io.BytesIO()
        soundfile.write(content, clip(seed=number), RATE, format="WAV")
        rows.append({"id": f"u{number}", "audio": {"bytes": content.getvalue(), "path": None}})
    pa.parquet.write_table(pa.Table.from_pylist(rows), "data.parquet")
    texts = [{"id": "u0", "text": "A b"}, {"id": "u1", "text": "c"}, {"id": "other", "text": None}]
    pa.parquet.write_table(pa.Table.from_pylist(texts), "texts.parquet")
    command = ["evaluate", "data.parquet", "--model", str(tiny_model_folder), "-o", "results", "--peers", "pcm16"]
    command += ["--recognizer", recognizer_folder, "--speaker-model", speaker_folder, "--transcripts", "texts.parquet"]
    assert cli.main([*command, "--metrics", "stoi", "--workers", "1", "--samples", "0", "--no-speed"]) == 0
    summary = json.loads(Path("results/results.json").read_text())
    _, pcm = summary["systems"]
    assert {name: value["n"] for name, value in pcm["metrics"].items()} == {
        "stoi": 3,
        "wer": 2,
        "cer": 2,
        "dwer": 3,
        "dcer": 3,
        "speaker_similarity": 3,
    }
    assert pcm["metrics"]["dcer"]["mean"] == 0
    assert summary["problems"] == []
    assert "recognizer" in summary["judges"] and "WER, % ↓" in Path("results/report.md").read_text()


class TestEvaluateModules:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch, tmp_path):
        evaluate = pytest.importorskip("evaluate")
        if not METRIC_MODULES.is_dir():
            pytest.skip("the metric modules are in a checkout of the project only")
        self.load = lambda name: evaluate.load(str(METRIC_MODULES / name), cache_dir=str(tmp_path))

    @pytest.mark.parametrize("name", ["si_sdr", "pesq", "stoi", "mel_distance", "stft_distance"])
    def test_agree_with_the_functions(self, name):
        references, decoded = [clip(1.0), clip(1.5)], [clip(1.0) + clip(1.0, 1), clip(1.5) + clip(1.5, 2)]
        results = self.load(name).compute(predictions=decoded, references=references)
        expected = [score(*pair) for pair in zip(references, decoded, strict=True)]
        for metric in {"pesq": ["pesq_wb", "pesq_nb"]}.get(name, [name]):
            defined = [row[metric] for row in expected if math.isfinite(row[metric])]
            assert results[f"{metric}_n"] == len(defined) > 0
            assert results[metric] == pytest.approx(np.mean(defined))

    def test_every_metric_has_a_module_that_says_what_it_is(self):
        modules = {folder.name for folder in METRIC_MODULES.iterdir() if folder.is_dir()}
        assert modules >= {name.split("_")[0] if name.startswith("pesq") else name for name in METRICS}
        for name in modules:
            assert len(self.load(name).description) > 200

    def test_dnsmos_takes_no_reference(self):
        pytest.importorskip("speechmos")
        assert 1 <= self.load("dnsmos").compute(predictions=[clip()])["dnsmos_ovrl"] <= 5

    def test_word_error_rate(self):
        rates = self.load("word_error_rate").compute(predictions=["A b c.", "x"], references=["a b", "X"])
        assert rates["wer"] == pytest.approx(1 / 3)

    def test_speaker_similarity(self, speaker_folder):
        module = self.load("speaker_similarity")
        results = module.compute(predictions=[clip()], references=[clip()], model=speaker_folder)
        assert results == {"speaker_similarity": pytest.approx(1), "speaker_similarity_n": 1}
