"""The example that teaches speech to a language model of text; and speech from it while it is generated."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.tiny_language_models import byte_tokenizer, language_model
from support.token_folders import clip
from transformers import AutoModelForCausalLM, AutoProcessor, DataCollatorForSeq2Seq, DataCollatorWithFlattening

from modeling_taae.tokenize import tokenize_corpus
from training import speak
from training.speech_lm import teach
from training.speech_lm.corpora import TokenCorpus


@pytest.fixture(scope="module")
def place(tiny_model_folder, tmp_path_factory) -> Path:
    """Folders of tokens, `one` and `two`, and a language model of text without a token for padding."""
    folder = tmp_path_factory.mktemp("teach")
    for number, name in enumerate(("one", "two")):
        (folder / "speech" / name).mkdir(parents=True)
        for n in range(2):
            soundfile.write(folder / "speech" / name / f"{n}.wav", clip(0.5 + 0.2 * n, n + 2 * number), 16_000)
        table = "file_name,text\n0.wav,hello\n1.wav,again\n"
        (folder / "speech" / name / "metadata.csv").write_text(table)
        source, model = folder / "speech" / name, str(tiny_model_folder)
        tokenize_corpus(source, folder / name, model, bottleneck="4x729_1000bps", device="cpu")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder / "text")
    language_model(len(tokenizer)).save_pretrained(folder / "text")
    return folder


@pytest.fixture
def corpus(place) -> TokenCorpus:
    return TokenCorpus([place / "one", place / "two"], texts="text")


class TestSequences:
    def test_text_speech_and_the_end(self, place, corpus):
        processor = teach.make_processor(str(place / "text"), corpus)
        data = list(teach.sequences(corpus, processor, 1000))
        assert len(data) == 4 and processor.tokenizer.pad_token == "</s>"
        for each, text, row in zip(data, ["hello", "again"] * 2, corpus.rows, strict=True):
            said, codes = processor.parse(each["input_ids"]).segments
            assert (said, codes.T.tolist()) == (text, row["codes"])
            assert each["input_ids"][-1] == processor.tokenizer.eos_token_id and each["labels"] == each["input_ids"]
        assert len(list(teach.sequences(corpus, processor, len(data[0]["input_ids"])))) == 2

    def test_packed_and_padded_sequences_are_learnt_alike(self, place, corpus):
        processor = teach.make_processor(str(place / "text"), corpus)
        model = AutoModelForCausalLM.from_pretrained(place / "text")
        processor.resize_token_embeddings(model)
        model.config.use_cache = False
        data = list(teach.sequences(corpus, processor, 1000))
        packed, padded = DataCollatorWithFlattening()(data), DataCollatorForSeq2Seq(processor.tokenizer)(data)
        assert packed["input_ids"].shape == (1, sum(len(each["input_ids"]) for each in data))
        assert (padded["labels"][padded["attention_mask"] == 0] == -100).all()
        with torch.no_grad():
            losses = [model(**batch, use_cache=False).loss.item() for batch in (packed, padded)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class TestTeaching:
    @pytest.mark.slow
    @pytest.mark.parametrize("packed", [[], ["--packed"]])
    def test_it_learns_and_speaks(self, place, tmp_path, tiny_model_folder, packed, monkeypatch, capfd):
        tokens = ["--tokens", str(place / "one"), str(place / "two"), "--texts", "text"]
        extent = ["--max-steps", "8", "--batch-size", "2", "--learning-rate", "0.01", "--longest", "100"]
        before = (place / "text" / "model.safetensors").read_bytes()
        assert teach.main([str(place / "text"), *tokens, "-o", str(tmp_path), *extent, *packed]) == 0
        assert (place / "text" / "model.safetensors").read_bytes() == before
        processor = AutoProcessor.from_pretrained(tmp_path)
        assert (
            processor.bottleneck == "4x729_1000bps" and AutoModelForCausalLM.from_pretrained(tmp_path).config.use_cache
        )
        codec, said = ["--codec", str(tiny_model_folder)], str(tmp_path / "said.wav")
        assert speak.main([str(tmp_path), "hello", "-o", said, "--seconds", "0.4", *codec]) == 0
        assert f"{said} is written" in capfd.readouterr().out
        audio, rate = soundfile.read(said)
        assert rate == 16_000 and 0 < len(audio) <= 6_400
        # The same to standard output, as it comes.
        stdout = io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr(sys, "stdout", stdout)
        assert speak.main([str(tmp_path), "hello", "-o", "-", "--seconds", "0.4", *codec]) == 0
        heard = np.frombuffer(stdout.buffer.getvalue(), "<i2") / 32768
        np.testing.assert_allclose(heard, audio, atol=1e-3)

    def test_nothing_is_short_enough(self, place, tmp_path, capsys):
        tokens = ["--tokens", str(place / "one"), "--longest", "5"]
        assert teach.main([str(place / "text"), *tokens, "-o", str(tmp_path)]) == 2
        assert "no clip is short enough" in capsys.readouterr().err
