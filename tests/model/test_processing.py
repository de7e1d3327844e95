"""The processor: text and speech to a language model's ids, through the model, and back."""

import copy
import json
import os
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.tiny_language_models import CHAT_TEMPLATE, byte_tokenizer, language_model, word_tokenizer
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

from modeling_taae import TaaeFeatureExtractor, TaaeProcessor
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS
from modeling_taae.speech_vocabulary_taae import LAYOUTS


def make_processor(bottleneck: str = "4x729_1000bps", layout: str = "interleaved", codec=None, **options):
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE, **options)
    return TaaeProcessor(TaaeFeatureExtractor(), tokenizer, codec, bottleneck, layout)


@pytest.fixture
def processor(tiny_model) -> TaaeProcessor:
    return make_processor(codec=tiny_model)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Noise of 8, 3 and 12 frames."""
    generator = np.random.default_rng(0)
    lengths = (5000, 1300, 640 * 12)
    return [0.1 * generator.standard_normal(length).astype(np.float32) for length in lengths]


def codes_alone(codec, clip: np.ndarray, bottleneck: str) -> torch.Tensor:
    inputs = TaaeFeatureExtractor()(clip, sampling_rate=16_000)
    with torch.no_grad():
        return codec.encode(inputs["input_values"], bottleneck=bottleneck).audio_codes[0]


def equal(found: list, expected: list) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bottleneck", BOTTLENECK_PRESETS)
def test_text_and_speech_there_and_back(tiny_model, clips, bottleneck, layout):
    processor = make_processor(bottleneck, layout, tiny_model, padding_side="left")
    texts = [f"Say {processor.audio_token} and {processor.audio_token}{processor.audio_token}", "nothing"]
    inputs = processor(texts, audio=clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    codes = [codes_alone(tiny_model, clip, bottleneck) for clip in clips]
    assert list(inputs) == ["input_ids", "attention_mask"]
    length = len("Say  and ") + sum(clip.numel() + 2 for clip in codes)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, length)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [length, len("nothing")]

    spoken, silent = (processor.parse(row) for row in inputs["input_ids"])
    assert equal(spoken.segments, ["Say ", codes[0], " and ", codes[1], codes[2]])
    assert (spoken.repairs, silent.segments) == ([], ["nothing"])
    heard = processor.decode_speech(spoken.segments)
    assert (heard[0], heard[2]) == ("Say ", " and ")
    for segment, clip in zip([heard[1], *heard[3:]], codes, strict=True):
        with torch.no_grad():
            alone = tiny_model.decode(clip[None], bottleneck=bottleneck).audio_values[0, 0]
        assert segment.dtype == np.float32
        np.testing.assert_allclose(segment, alone, atol=1e-5)
    assert processor.decode_speech(silent.segments) == ["nothing"]

    again = processor(texts, audio_codes=codes, padding=True, return_tensors="pt")
    assert torch.equal(again["input_ids"], inputs["input_ids"])


def test_any_tokenizer_will_do(tiny_model, clips):
    tokenizer = word_tokenizer()
    text_ids = tokenizer("say hello and again .")["input_ids"]
    processor = TaaeProcessor(TaaeFeatureExtractor(), tokenizer, tiny_model, "4x729_1000bps")
    assert tokenizer("say hello and again .")["input_ids"] == text_ids
    ids = processor(f"say {processor.audio_token} again", audio=clips[0], sampling_rate=16_000)["input_ids"][0]
    assert ids[0] == tokenizer.convert_tokens_to_ids("say") and ids[-1] == tokenizer.convert_tokens_to_ids("again")
    codes = codes_alone(tiny_model, clips[0], "4x729_1000bps")
    assert equal(processor.parse(ids).segments, ["say", codes, "again"])


def test_speech_tokens_are_tokens_of_the_tokenizer():
    plain = byte_tokenizer()
    processor = make_processor("2x15625_700bps")
    tokenizer = processor.tokenizer
    first = len(plain)
    assert len(tokenizer) == first + 3 + 2 * 15_625
    assert [processor.audio_token_id, processor.audio_bos_token_id, processor.audio_eos_token_id] == [
        *range(first, first + 3)
    ]
    assert tokenizer.convert_ids_to_tokens(first + 3 + 15_625 + 7) == "<|taae_1_7|>"
    ids = processor.vocabulary.span(torch.tensor([[5, 6], [0, 15_624]])).tolist()
    written = "<|taae_begin|><|taae_0_5|><|taae_1_0|><|taae_0_6|><|taae_1_15624|><|taae_end|>"
    assert tokenizer(written)["input_ids"] == ids
    assert processor.decode([40, *ids, 41], skip_special_tokens=True) == plain.decode([40, 41])


def test_a_tokenizer_keeps_to_one_bottleneck():
    processor = make_processor("4x729_1000bps")
    size = len(processor.tokenizer)
    other_layout = TaaeProcessor(TaaeFeatureExtractor(), processor.tokenizer, None, "4x729_1000bps", "delay")
    assert len(processor.tokenizer) == size
    assert other_layout.audio_token_id == processor.audio_token_id
    with pytest.raises(ValueError, match="2919 speech tokens already, of another bottleneck"):
        TaaeProcessor(TaaeFeatureExtractor(), processor.tokenizer, None, "2x15625_700bps")
    assert len(processor.tokenizer) == size


def test_the_native_grid_is_refused_before_the_tokenizer_changes():
    tokenizer = byte_tokenizer()
    size = len(tokenizer)
    with pytest.raises(ValueError, match="24,137,569 tokens.*'4x729_1000bps' carry exactly the same audio"):
        TaaeProcessor(TaaeFeatureExtractor(), tokenizer, None, "native")
    assert len(tokenizer) == size


def test_a_vocabulary_with_gaps_is_refused():
    tokenizer = word_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["vocab"]["far"] = 5000
    tokenizer.backend_tokenizer.model = type(tokenizer.backend_tokenizer).from_str(json.dumps(backend)).model
    with pytest.raises(ValueError, match="up to 5000.*gaps"):
        TaaeProcessor(TaaeFeatureExtractor(), tokenizer, None, "4x729_1000bps")


def test_placeholders_and_clips_must_agree(processor, clips):
    token = processor.audio_token
    codes = [torch.zeros(4, 2, dtype=torch.int64)]
    for text, speech, words in [
        (f"{token} {token}", {"audio": clips[0]}, "2 placeholders .* but 1 clips"),
        ([token, "none"], {"audio": clips[:2]}, "1 placeholders .* but 2 clips"),
        (token, {}, "1 placeholders .* but 0 clips"),
        ("none", {"audio_codes": codes}, "0 placeholders .* but 1 clips"),
    ]:
        with pytest.raises(ValueError, match=words):
            processor(text, sampling_rate=16_000, **speech)
    with pytest.raises(ValueError, match="not as both"):
        processor(token, audio=clips[0], audio_codes=codes)
    with pytest.raises(ValueError, match="Truncation could cut speech"):
        processor(token, audio=clips[0], truncation=True, max_length=5)
    with pytest.raises(ValueError, match="audio_codes_mask goes with audio_codes"):
        processor(token, audio=clips[0], sampling_rate=16_000, audio_codes_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"mask of 1 clips is \(batch, frames\), .* not \(2, 2\)"):
        processor(token, audio_codes=codes[0], audio_codes_mask=torch.ones(2, 2))
    with pytest.raises(ValueError, match="8000 Hz"):
        processor(token, audio=clips[0], sampling_rate=8000)
    with pytest.raises(ValueError, match=r"are \(4, frames\)"):
        processor(token, audio_codes=torch.zeros(2, 4, dtype=torch.int64))


def test_waveforms_need_a_codec(clips):
    processor = make_processor()
    for use in (
        lambda: processor(processor.audio_token, audio=clips[0], sampling_rate=16_000),
        lambda: processor.decode_speech([torch.zeros(4, 2, dtype=torch.int64)]),
    ):
        with pytest.raises(ValueError, match="no codec.*set processor.audio_tokenizer"):
            use()
    assert len(processor(processor.audio_token, audio_codes=np.ones((4, 5), dtype=np.int32))["input_ids"][0]) == 22


def test_a_batch_may_be_without_speech(processor):
    assert processor(["a"], audio=[], sampling_rate=16_000)["input_ids"] == processor(["a"])["input_ids"]


def test_codes_of_any_kind_become_waveforms(processor):
    codes = torch.zeros(4, 2, dtype=torch.int64)
    (expected,) = processor.decode_speech([codes])
    for given in (codes.numpy(), codes.tolist()):
        assert np.array_equal(processor.decode_speech(["text", given])[1], expected)


def test_codes_come_as_a_clip_a_list_or_a_batch(processor):
    batch = torch.arange(24).reshape(2, 4, 3)
    texts = [processor.audio_token] * 2
    expected = [processor.vocabulary.span(codes).tolist() for codes in batch]
    for codes in (batch, list(batch), batch.numpy(), batch.tolist()):
        assert processor(texts, audio_codes=codes)["input_ids"] == expected
    for codes in (batch[1], batch[1].numpy(), batch[1].tolist()):
        assert processor(texts[0], audio_codes=codes)["input_ids"] == expected[1:]
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    shorter = processor.vocabulary.span(batch[1, :, :2]).tolist()
    for codes, real in ((batch, mask), (batch.numpy(), mask.numpy()), (batch.tolist(), mask.tolist())):
        assert processor(texts, audio_codes=codes, audio_codes_mask=real)["input_ids"] == [expected[0], shorter]
    assert processor(texts[0], audio_codes=batch[1], audio_codes_mask=mask[1])["input_ids"] == [shorter]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_the_speech_in(processor, side):
    texts = [f"a{processor.audio_token}", "bc"]
    codes = torch.ones(4, 2, dtype=torch.int64)
    inputs = processor(texts, audio_codes=codes, padding="max_length", max_length=14, padding_side=side)
    pad = processor.tokenizer.pad_token_id
    assert [len(ids) for ids in inputs["input_ids"]] == [14, 14]
    assert [ids.count(pad) for ids in inputs["input_ids"]] == [3, 12]
    assert inputs["attention_mask"][1] == ([0] * 12 + [1, 1] if side == "left" else [1, 1] + [0] * 12)
    assert len(processor(texts, audio_codes=codes, padding=True, pad_to_multiple_of=8)["input_ids"][1]) == 16


def test_parse_takes_one_sequence(processor):
    for ids in (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3), [5, -100]):
        with pytest.raises(ValueError, match="one sequence of ids.*rows of a batch one by one"):
            processor.parse(ids)
    assert processor.parse(np.array([], dtype=np.int64)).segments == processor.parse([]).segments == []


def test_parse_leaves_out_special_tokens_and_reports_repairs(processor):
    codes = processor.vocabulary.valid_codes.nearest(torch.stack([torch.arange(3)] * 4))
    span = processor.vocabulary.span(codes).tolist()
    pad, end = processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id
    text = processor.tokenizer("hi")["input_ids"]
    assert equal(processor.parse([pad, pad, *text, end, *span, end, pad]).segments, ["hi", codes])
    with pytest.raises(ValueError, match="Position 14: .* where stage 3 is due"):
        processor.parse([*text, *span[:-2], span[-1]])
    repaired = processor.parse([*text, *span[:-2], span[-1]], errors="repair")
    assert equal(repaired.segments, ["hi", codes[:, :2]])
    assert repaired.repairs == [
        "Position 14: the speech before it ends in a cut frame, where stage 3 is due; "
        "the 2 whole frames of this speech were kept."
    ]


def conversation(clip, codes, path: Path) -> list[dict]:
    return [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Hear "},
                {"type": "audio", "audio": torch.from_numpy(clip)},
                {"type": "audio", "path": str(path)},
            ],
        },
        {"role": "assistant", "content": [{"type": "audio", "audio_codes": codes}, {"type": "text", "text": "!"}]},
    ]


def test_chat_templates_with_speech(processor, clips, tmp_path):
    stereo = np.stack([clips[1], clips[1]], axis=1)
    soundfile.write(tmp_path / "b.wav", stereo, 16_000, subtype="FLOAT")
    codes = processor.encode_speech(clips, 16_000)
    chat = conversation(clips[0], codes[2], tmp_path / "b.wav")
    files = [
        [{"role": "user", "content": [{"type": "audio", "path": kind(tmp_path / "b.wav")}]}] for kind in (Path, str)
    ]
    first, second = processor.apply_chat_template(files, tokenize=True)
    assert first == second
    token = processor.audio_token
    text = f"[system]Be brief.[user]Hear {token}{token}[assistant]{token}!</s>"
    assert processor.apply_chat_template(chat) == text
    assert processor.apply_chat_template([chat], tokenize=False) == [text]
    assert processor.apply_chat_template(chat[:1], add_generation_prompt=True) == "[system]Be brief.[assistant]"

    expected = processor(text, audio_codes=codes)
    found = processor.apply_chat_template(chat, tokenize=True, return_dict=True, sampling_rate=16_000)
    assert found == expected
    ids = processor.apply_chat_template(chat, tokenize=True, processor_kwargs={"sampling_rate": 16_000})
    assert ids == expected["input_ids"]
    assert isinstance(chat[1]["content"], list), "the conversation is the user's"

    # In a batch that is padded, what the assistant says is marked, speech and all.
    batch = processor.apply_chat_template(
        [chat, chat[1:]],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        sampling_rate=16_000,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    length = len(ids[0])
    assert {name: values.shape for name, values in batch.items()} == dict.fromkeys(
        ["input_ids", "attention_mask", "assistant_masks"], (2, length)
    )
    said = codes[2].numel() + 2 + len("!") + 1
    assert batch["assistant_masks"].tolist() == [[0] * (length - said) + [1] * said] * 2


def test_chat_templates_say_what_they_cannot_take(processor, clips):
    for content, words in [
        ([{"type": "image", "url": "x.png"}], "text or audio, not 'image'"),
        ([{"type": "audio"}], "has one of audio_codes, audio, path, url"),
        ([{"text": "hello"}], "text or audio, not None"),
        (["hello"], "text or audio, not 'str'"),
        ([{"type": "audio", "path": "nope.wav"}], "'nope.wav' is neither an audio file"),
    ]:
        with pytest.raises(ValueError, match=words):
            processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
    for truncation in ({"truncation": True}, {"processor_kwargs": {"truncation": True}}):
        with pytest.raises(ValueError, match="Truncation could cut speech"):
            processor.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=True, **truncation)
    with pytest.raises(ValueError, match="conversation is empty"):
        processor.apply_chat_template([])
    processor.chat_template = None
    with pytest.raises(ValueError, match="chat_template is not set"):
        processor.apply_chat_template([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_grow_by_the_mean_of_the_trained_rows(tied, dtype):
    processor = make_processor("2x15625_700bps", "delay")
    first, tokens = processor.audio_token_id, len(processor.tokenizer)
    model = language_model(first + 40, tied).to(dtype)  # forty rows for no token, as makers of models leave them
    before = [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    text = torch.arange(20)[None]
    logits = model(text).logits[..., :first]

    processor.resize_token_embeddings(model)
    assert model.config.vocab_size == 31_552 == -(-tokens // 64) * 64
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    for layer, old in zip((model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True):
        assert layer.weight.shape == (31_552, 16) and layer.weight.dtype == dtype
        assert torch.equal(layer.weight[:first], old[:first])
        mean = old[:first].float().mean(dim=0).to(dtype)
        assert torch.equal(layer.weight[first:], mean.expand(31_552 - first, -1))
    assert torch.equal(model(text).logits[..., :first], logits)


def test_embeddings_that_have_grown_are_left_alone():
    processor = make_processor()
    model = language_model(processor.audio_token_id)
    processor.resize_token_embeddings(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()  # as if trained
    trained = model.get_input_embeddings().weight.clone()
    processor.resize_token_embeddings(model)
    assert torch.equal(model.get_input_embeddings().weight, trained)
    processor.tokenizer.add_tokens([f"<new {index}>" for index in range(100)])
    processor.resize_token_embeddings(model)
    grown = model.get_input_embeddings().weight
    assert len(grown) >= len(processor.tokenizer) > len(trained)
    assert torch.equal(grown[: len(trained)], trained)
    torch.testing.assert_close(grown[-1], trained.mean(dim=0))


def test_embeddings_never_shrink():
    processor = make_processor()
    model = language_model(5000)
    before = model.get_input_embeddings().weight.clone()
    processor.resize_token_embeddings(model)
    assert torch.equal(model.get_input_embeddings().weight[:5000], before)
    assert model.config.vocab_size == 5056


SAMPLING, BEAMS, SAMPLED_BEAMS = {"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}


@pytest.mark.parametrize(
    "bottleneck, layout, search",
    [
        *((*names, SAMPLING) for names in product(BOTTLENECK_PRESETS, LAYOUTS)),
        ("2x15625_700bps", "interleaved", BEAMS),
        ("2x15625_700bps", "delay", SAMPLED_BEAMS),
        ("4x729_1000bps", "interleaved", SAMPLED_BEAMS),
        ("4x729_1000bps", "delay", BEAMS),
    ],
)
def test_generation_keeps_to_the_grammar(bottleneck, layout, search):
    processor = make_processor(bottleneck, layout, padding_side="left")
    model = language_model(processor.audio_token_id)
    processor.resize_token_embeddings(model)
    with torch.no_grad():  # else all speech tokens are alike
        model.lm_head.weight[processor.audio_token_id :].normal_(std=0.5)
    texts = [f"Say hello: {processor.audio_bos_token}", "x", f"a{processor.audio_token}"]
    codes = torch.zeros(processor.vocabulary.stages, 2, dtype=torch.int64)
    codes = processor.vocabulary.valid_codes.nearest(codes)
    prompt = processor(texts, audio_codes=codes, padding=True, return_tensors="pt")
    # Markers are a few among thousands of tokens: without help a random model hardly ever emits one.
    bias = {(processor.audio_bos_token_id,): 9.0, (processor.audio_eos_token_id,): 9.0}
    torch.manual_seed(0)
    generated = model.generate(
        **prompt, **search, max_new_tokens=40, sequence_bias=bias, logits_processor=[processor.grammar]
    )
    assert (generated < len(processor.tokenizer)).all()
    for row in generated:
        parsed = processor.parse(row, errors="repair")
        # All that may be wrong is that generation stops at the fortieth token.
        assert all(repair.startswith(f"Position {len(row)}:") for repair in parsed.repairs)
    segments = processor.parse(generated[0], errors="repair").segments
    assert any(isinstance(segment, torch.Tensor) for segment in segments)


def test_rows_that_end_early_are_padded_with_what_ends_them():
    processor = make_processor("2x15625_700bps", padding_side="left")
    model = language_model(processor.audio_token_id)
    processor.resize_token_embeddings(model)
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    model.config.pad_token_id = model.config.eos_token_id = None
    prompt = processor([processor.audio_bos_token] * 8, return_tensors="pt")
    torch.manual_seed(0)
    generated = model.generate(
        **prompt,
        do_sample=True,
        max_new_tokens=40,
        eos_token_id=processor.audio_eos_token_id,
        sequence_bias={(processor.audio_eos_token_id,): 9.0},
        logits_processor=[processor.grammar],
    )
    ends = (generated == processor.audio_eos_token_id).sum(dim=1)
    assert ends.min() == 1 < ends.max(), "rows differ in length, and none is cut"
    for row in generated:
        (speech,) = processor.parse(row).segments
        assert speech.numel() == len(row) - 1 - (row == processor.audio_eos_token_id).sum()


def test_generation_without_the_grammar_would_not(tiny_model):
    processor = make_processor(codec=tiny_model)
    model = language_model(processor.audio_token_id)
    processor.resize_token_embeddings(model)
    prompt = processor(f"Say hello: {processor.audio_bos_token}", return_tensors="pt")
    torch.manual_seed(0)
    generated = model.generate(**prompt, do_sample=True, max_new_tokens=40)
    with pytest.raises(ValueError, match="Position"):
        processor.parse(generated[0])
    processor.decode_speech(processor.parse(generated[0], errors="repair").segments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_loaded(tiny_model, clips, tmp_path, layout):
    processor = make_processor("4x729_1000bps", layout, tiny_model)
    language_model(300).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is TaaeProcessor
    assert (loaded.bottleneck, loaded.layout) == ("4x729_1000bps", layout)
    assert loaded.vocabulary == processor.vocabulary
    assert loaded.audio_tokenizer is None
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    loaded.audio_tokenizer = tiny_model
    text = f"Say {processor.audio_token}."
    assert loaded(text, audio=clips[0], sampling_rate=16_000) == processor(text, audio=clips[0], sampling_rate=16_000)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(processor.tokenizer)
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), TaaeFeatureExtractor)
    assert "audio_tokenizer" not in json.loads((tmp_path / "processor_config.json").read_text())
    assert {file.name for file in tmp_path.glob("*.py")} == {
        "chat_parts_taae.py",
        "checks_taae.py",
        "feature_extraction_taae.py",
        "processing_taae.py",
        "quantization_taae.py",
        "speech_grammar_taae.py",
        "speech_vocabulary_taae.py",
    }
    assert "4x729_1000bps" in repr(loaded)
    for copied in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert copied(text, audio=clips[0], sampling_rate=16_000) == loaded(text, audio=clips[0], sampling_rate=16_000)


def test_a_new_chat_template_is_saved(tmp_path):
    processor = make_processor()
    processor.chat_template = "{{ messages[0]['content'] }}?"
    processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.apply_chat_template([{"role": "user", "content": "So"}], tokenize=False) == "So?"
    given = TaaeProcessor(TaaeFeatureExtractor(), byte_tokenizer(), None, "4x729_1000bps", chat_template="plain")
    assert given.apply_chat_template([{"role": "user", "content": "So"}]) == "plain"


def test_a_codecs_own_folder_is_processed_by_its_feature_extractor(tiny_model_folder):
    assert isinstance(AutoProcessor.from_pretrained(tiny_model_folder, trust_remote_code=False), TaaeFeatureExtractor)


# Blocks the package, wherever it may be installed; writes what it finds to the file it is told.
SCRIPT = """
import json, sys
sys.modules["modeling_taae"] = None
import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

folder, codec, copy, target = sys.argv[1:]
clip = np.load(folder + "/clip.npy")
report = {}

def speak(processor):
    processor.audio_tokenizer = AutoModel.from_pretrained(codec, trust_remote_code=True)
    ids = processor(f"Say {processor.audio_token}.", audio=clip, sampling_rate=16_000)["input_ids"][0]
    text, speech, dot = processor.decode_speech(processor.parse(ids).segments)
    return ids, text, len(speech), dot

processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder)
processor.resize_token_embeddings(model)
prompt = processor(processor.audio_bos_token, return_tensors="pt")
generated = model.generate(**prompt, do_sample=True, max_new_tokens=12, logits_processor=[processor.grammar])
report["generated"] = len(processor.parse(generated[0], errors="repair").repairs)
report["modules"] = [type(part).__module__ for part in (processor, processor.feature_extractor)]
report["loaded"] = speak(processor)
processor.save_pretrained(copy)
report["saved again"] = speak(AutoProcessor.from_pretrained(copy, trust_remote_code=True))
json.dump(report, open(target, "w"))
"""


@pytest.mark.slow
def test_the_folder_of_a_language_model_loads_without_the_package(tiny_model_folder, tiny_model, clips, tmp_path):
    folder = tmp_path / "a language-model-1.0"
    processor = make_processor(layout="delay", codec=tiny_model)
    language_model(processor.audio_token_id).save_pretrained(folder)
    processor.save_pretrained(folder)
    np.save(folder / "clip.npy", clips[0])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [sys.executable, "-c", SCRIPT, folder, tiny_model_folder, tmp_path / "copy-2", tmp_path / "report.json"]
    run = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(module.startswith("transformers_modules.") for module in report["modules"])
    ids = processor(f"Say {processor.audio_token}.", audio=clips[0], sampling_rate=16_000)["input_ids"][0]
    for loaded in ("loaded", "saved again"):
        assert report[loaded] == [ids, "Say ", 5120, "."]
