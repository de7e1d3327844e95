"""What people give to feature extractor and processor: dictionaries, decoders, parts of chats, peers' keywords."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.tiny_language_models import byte_tokenizer
from support.tiny_models import make_model
from transformers import AutoProcessor, MarianConfig, MarianMTModel

from modeling_taae import TaaeFeatureExtractor, TaaeProcessor

RATE = 16_000
SPEECH = (0.1 * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)


class Decoder:
    """A decoder as `datasets` gives it: samples are read when its keys are asked for."""

    def __init__(self, array: np.ndarray, rate: int):
        self.array, self.rate = array, rate

    def get_all_samples(self):
        raise AssertionError("the keys are enough")

    def __getitem__(self, key: str):
        return {"array": self.array, "sampling_rate": self.rate}[key]


@pytest.fixture
def extractor() -> TaaeFeatureExtractor:
    return TaaeFeatureExtractor(target_loudness=None, hop_length=32)


class TestExtractor:
    @pytest.mark.parametrize("kind", [dict, Decoder])
    @pytest.mark.parametrize("in_list", [False, True])
    def test_clips_that_bring_their_rate(self, extractor, kind, in_list, caplog):
        clip = {"array": SPEECH, "sampling_rate": RATE} if kind is dict else Decoder(SPEECH, RATE)
        inputs = extractor([clip, SPEECH[:99]] if in_list else clip, sampling_rate=RATE if in_list else None)
        expected = extractor([SPEECH, SPEECH[:99]] if in_list else SPEECH, sampling_rate=RATE)
        assert torch.equal(inputs["input_values"], expected["input_values"])
        assert "sampling_rate" not in caplog.text

    def test_rates_that_disagree(self, extractor):
        with pytest.raises(ValueError, match="48000 Hz.*16000 Hz.*resample"):
            extractor({"array": SPEECH, "sampling_rate": 48_000})
        alone = extractor({"array": SPEECH}, sampling_rate=RATE)  # without a rate of its own, it is as any array
        assert torch.equal(alone["input_values"], extractor(SPEECH, sampling_rate=RATE)["input_values"])
        with pytest.raises(ValueError, match="Clip 1 of the list has 8000 Hz, but sampling_rate=16000 was passed"):
            extractor([SPEECH, Decoder(SPEECH, 8000)], sampling_rate=RATE)
        with pytest.raises(TypeError, match="a number of samples per second, not '16000'"):
            extractor(SPEECH, sampling_rate="16000")

    @pytest.mark.parametrize(
        ("audio", "message"),
        [
            ("speech.wav", "The audio is of type str; read the file first"),
            ([Path("a.wav")], "Clip 0 of the list is of type PosixPath; read the file first"),
            (b"RIFF", "of type bytes; pass an array"),
            ((sample for sample in SPEECH), "of type generator; pass an array"),
            ([SPEECH, None], "Clip 1 of the list is of type NoneType; pass an array"),
            ({"path": "a.wav", "bytes": b""}, "holds 'array' and 'sampling_rate', not path, bytes; decode it first"),
            (None, "Pass the audio as audio or as raw_audio"),
            (3.0, "of type float"),
        ],
    )
    def test_other_types_are_named(self, extractor, audio, message):
        with pytest.raises(TypeError, match=message):
            extractor(audio, sampling_rate=RATE)

    def test_keywords_of_peers(self, extractor):
        expected = extractor(SPEECH, sampling_rate=RATE)
        inputs = extractor(raw_audio=SPEECH, sampling_rate=RATE, device="cpu", return_attention_mask=True)
        assert inputs.keys() == expected.keys() and torch.equal(inputs["input_values"], expected["input_values"])
        assert list(extractor(SPEECH, sampling_rate=RATE, return_attention_mask=False)) == ["input_values"]
        assert extractor(SPEECH, sampling_rate=RATE, pad_to_multiple_of=48)["input_values"].shape == (1, 1, 5088)
        assert extractor(SPEECH, sampling_rate=RATE, device="meta")["input_values"].device.type == "meta"
        with pytest.raises(TypeError, match="not as both"):
            extractor(SPEECH, raw_audio=SPEECH, sampling_rate=RATE)
        with pytest.raises(ValueError, match="max_length is in samples, at least 1, not 0"):
            extractor(SPEECH, sampling_rate=RATE, truncation=True, max_length=0)

    @pytest.mark.parametrize(
        "setting",
        [
            {"feature_size": 2},
            {"sampling_rate": "16000"},
            {"sampling_rate": 0},
            {"hop_length": 640.0},
            {"hop_length": True},
            {"padding_value": float("nan")},
            {"target_loudness": "loud"},
            {"target_loudness": float("inf")},
        ],
        ids=str,
    )
    def test_settings_that_cannot_be(self, setting):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} must be"):
            TaaeFeatureExtractor(**setting)


@pytest.fixture(scope="module")
def processor() -> TaaeProcessor:
    model = make_model(hidden_sizes=(16, 16), strides=(1, 2))
    extractor = TaaeFeatureExtractor(target_loudness=None, hop_length=model.config.hop_length)
    return TaaeProcessor(extractor, byte_tokenizer(), audio_tokenizer=model)


def wav(rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SPEECH, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def chat_ids(processor, *parts, **options):
    """The ids of a conversation of one message with these parts."""
    message = [{"role": "user", "content": list(parts)}]
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return processor.apply_chat_template(message, chat_template=template, tokenize=True, **options)


@pytest.fixture(scope="module")
def expected(processor):
    return chat_ids(processor, {"type": "audio", "audio": SPEECH}, sampling_rate=RATE)


class TestChats:
    @pytest.mark.parametrize(
        "speech",
        [
            {"audio": {"array": SPEECH, "sampling_rate": RATE}},
            {"audio": Decoder(SPEECH, RATE)},
            {"audio": (SPEECH, RATE)},
            {"audio": (SPEECH.tolist(), RATE)},
            {"audio": torch.from_numpy(SPEECH)},
            {"audio": wav()},
            {"audio": {"bytes": wav(), "path": None}},
            {"audio": base64.b64encode(wav()).decode()},
            {"base64": base64.b64encode(wav()).decode()},
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}},
            {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64," + base64.b64encode(wav()).decode()}},
            {"audio": None, "path": None, "url": None, "text": None, "base64": base64.b64encode(wav()).decode()},
        ],
        ids=lambda speech: ",".join(speech) + "," + type(speech.get("audio")).__name__,
    )
    def test_speech_in_parts(self, processor, expected, speech):
        own_rate = torch.is_tensor(speech.get("audio"))
        options = {"sampling_rate": RATE} if own_rate else {}
        assert chat_ids(processor, {"type": "audio", **speech}, **options) == expected

    def test_files(self, processor, expected, tmp_path):
        (tmp_path / "a.wav").write_bytes(wav())
        for key, name in (
            ("audio", str(tmp_path / "a.wav")),
            ("path", tmp_path / "a.wav"),
            ("url", tmp_path / "a.wav"),
        ):
            assert chat_ids(processor, {"type": "audio", "text": None, key: name}) == expected

    def test_a_rate_that_is_passed_is_for_samples_without_one(self, processor):
        parts = [
            {"type": "audio", "audio": wav(8000)},
            {"type": "text", "text": " a "},
            {"type": "audio", "audio": SPEECH},
        ]
        assert len(chat_ids(processor, *parts, sampling_rate=RATE)[0]) > 2
        with pytest.raises(ValueError, match="8000 Hz.*16000 Hz.*resample"):
            chat_ids(processor, {"type": "audio", "audio": (SPEECH, 8000)})

    def test_parts_without_anything(self, processor):
        with pytest.raises(ValueError, match="part of type audio has one of"):
            chat_ids(processor, {"type": "audio", "audio": None})
        with pytest.raises(ValueError, match="part of type text has no text, but None"):
            chat_ids(processor, {"type": "text", "text": None})


def test_padding_side_is_the_tokenizers(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, padding_side="left")
    assert (loaded.tokenizer.padding_side, loaded.feature_extractor.padding_side) == ("left", "right")
    loaded.audio_tokenizer = processor.audio_tokenizer
    clips = [SPEECH, SPEECH[:700]]
    for codes, expected in zip(loaded.encode_speech(clips, RATE), processor.encode_speech(clips, RATE), strict=True):
        assert torch.equal(codes, expected)


def test_a_codec_that_does_not_go_with_the_extractor(processor):
    other = TaaeProcessor(TaaeFeatureExtractor(hop_length=640), byte_tokenizer(), processor.audio_tokenizer)
    with pytest.raises(ValueError, match="frames of 16 samples, and this processor's feature extractor"):
        other.encode_speech(SPEECH, RATE)


def test_a_codecs_folder_asks_nothing_of_auto_processor(tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path)
    TaaeFeatureExtractor(hop_length=32).save_pretrained(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    monkeypatch.setattr("signal.alarm", lambda *_: pytest.fail("it waits for an answer"))
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, TaaeFeatureExtractor) and loaded.hop_length == 32


def test_marian_grows_its_bias_too(processor):
    config = MarianConfig(
        vocab_size=300,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=299,
        decoder_start_token_id=299,
    )
    model = MarianMTModel(config).eval()
    processor.resize_token_embeddings(model)
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows % 64 == 0 and model.final_logits_bias.shape == (1, rows)
    ids = torch.tensor([[5, processor.audio_eos_token_id]])
    assert model(input_ids=ids, decoder_input_ids=ids).logits.shape == (1, 2, rows)
