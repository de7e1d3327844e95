"""Language models of speech, from tokens to samples: with a tiny codec, a tiny corpus and tiny models."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
import torch
from transformers import AutoModelForCausalLM

from modeling_taae import cli
from training import speak, train_speech_lm
from training.speech_lm import compare as compare_speech_lms
from training.speech_lm import train as language_model_training
from training.speech_lm.corpora import TokenCorpus
from training.speech_lm.measure import bits_per_second, sequence_bits
from training.speech_lm.results import Budget, Settings
from training.speech_lm.sequences import IGNORED, SpeechSequences, character_tokenizer
from training.speech_lm.train import make_processor

PRESETS = ("4x729_1000bps", "2x15625_700bps")
TINY = Budget(
    layers=2, hidden_size=32, heads=2, crop_frames=16, batch_size=2, max_steps=4, bf16=False, checkpoint_every=2
)


def flac(seconds: float, seed: int) -> bytes:
    """Bursts of noise."""
    times = np.arange(int(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(seed).normal(0, 0.1, len(times)) * np.sin(np.pi * 3 * times) ** 2
    content = io.BytesIO()
    soundfile.write(content, noise, 16_000, format="FLAC")
    return content.getvalue()


@pytest.fixture(scope="module")
def tokens(tiny_model_folder, tmp_path_factory) -> Path:
    """PRESET/train and PRESET/validation by `taae tokenize`; clips of 10, 20, 30 and 15 frames, of which three have
    a text of their own and the same three one in texts.parquet."""
    folder = tmp_path_factory.mktemp("tokens")
    rows = [
        {"id": f"c{n}", "audio": {"bytes": flac(seconds, n), "path": None}, "sentence": sentence}
        for n, (seconds, sentence) in enumerate([(0.4, "One"), (0.8, "two."), (1.2, "Three"), (0.6, None)])
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "speech.parquet")
    texts = [{"id": row["id"], "text": row["sentence"]} for row in rows if row["sentence"]]
    pa.parquet.write_table(pa.Table.from_pylist(texts), folder / "texts.parquet")
    for preset in PRESETS:
        options = ["--bottleneck", preset, "--model", str(tiny_model_folder), "--device", "cpu"]
        target = folder / preset / "train"
        assert cli.main(["tokenize", str(folder / "speech.parquet"), "-o", str(target), *options]) == 0
        shutil.copytree(target, folder / preset / "validation")
    return folder


@pytest.fixture
def settings(tokens, tiny_model_folder, tmp_path) -> Settings:
    corpora = ([str(tokens / PRESETS[0] / part)] for part in ("train", "validation"))
    return Settings(*corpora, str(tmp_path / "run"), codec=str(tiny_model_folder), samples=1, budget=TINY)


def sequences(settings: Settings) -> SpeechSequences:
    corpus = TokenCorpus(settings.train, settings.texts)
    return SpeechSequences(corpus, make_processor(settings, corpus, None), settings.budget.crop_frames)


def refusal(capsys, program, *arguments: object) -> str:
    """The one line with which a program refuses."""
    capsys.readouterr()
    assert program.main(list(map(str, arguments))) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert ".py: error: " in message
    return message


class TestSequences:
    @pytest.mark.parametrize("layout", ["interleaved", "delay"])
    def test_pieces_hold_every_frame_once(self, settings, layout):
        settings.layout = layout
        data = sequences(settings)
        pieces: dict[int, list] = {}
        for (row, _), item in zip(data.crops, data, strict=True):
            (codes,) = data.processor.parse(item["input_ids"]).segments
            assert codes.shape[1] <= TINY.crop_frames
            pieces.setdefault(row, []).append(codes)
        for row, clip in enumerate(data.corpus.rows):
            assert torch.cat(pieces[row], dim=1).T.tolist() == clip["codes"]

    @pytest.mark.parametrize("from_file", [False, True])
    def test_texts_stand_before_whole_clips(self, settings, tokens, from_file):
        settings.texts = str(tokens / "texts.parquet") if from_file else "sentence"
        settings.budget = Budget(crop_frames=20)
        data = sequences(settings)
        assert [data.clip(n)[0] for n in range(len(data))] == ["One", "two."]  # one is longer, one has no text
        item = data[1]
        text, codes = data.processor.parse(item["input_ids"]).segments
        assert text == "two." and codes.shape == (4, 20)
        learnt = item["labels"] != IGNORED
        assert learnt.sum() == 4 * 20 + 1 and learnt[-1]  # the speech and its end

    def test_padding_is_not_learnt(self, settings):
        data = sequences(settings)
        batch = data.collate([data[0], data[1]])
        assert batch["input_ids"].shape == (2, 4 * 16 + 2)
        assert ((batch["labels"] == IGNORED).sum(dim=1) == torch.tensor([1 + 4 * 6, 1])).all()
        assert batch["attention_mask"].sum(dim=1).tolist() == [4 * 10 + 2, 4 * 16 + 2]

    def test_characters_of_texts_come_back_in_lower_case(self):
        tokenizer = character_tokenizer(["Größe 2,", "\nA b"])
        assert tokenizer.decode(tokenizer("größe 2,\na B")["input_ids"]) == "größe 2,\na b"
        assert tokenizer("x")["input_ids"] == [tokenizer.unk_token_id]


class UniformModel(torch.nn.Module):
    """Finds all tokens equally likely."""

    device = torch.device("cpu")

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def forward(self, ids):
        return type("Output", (), {"logits": torch.zeros(*ids.shape, self.rows)})


class TestBits:
    def test_of_a_model_that_knows_nothing(self, settings):
        """Then free bits follow from the number of rows; with the grammar, from how many digits may follow."""
        data = sequences(settings)
        found = bits_per_second(UniformModel(3_000), data)
        frames = sum(data.corpus.rows["frames"])
        assert found.seconds == pytest.approx(frames / 25)
        count = 4 * frames + len(data)  # an end marker for each piece
        assert found.free == pytest.approx(count * math.log2(3_000) / found.seconds)
        # 31 of 81 combinations of digits in each of 6 dimensions occur; the end competes with each frame but the first.
        lowest = frames * 6 * math.log2(3) / found.seconds
        assert lowest < found.grammar < frames * 6 * math.log2(81) / found.seconds

    @pytest.mark.parametrize("layout", ["interleaved", "delay"])
    def test_the_grammar_sees_what_generation_would_show_it(self, settings, layout):
        """Bits of a sequence, against the grammar asked step by step as `generate` does."""
        settings.layout, settings.texts = layout, "sentence"
        data = sequences(settings)
        item, grammar = data[0], data.processor.grammar
        ids, labels = item["input_ids"], item["labels"]
        scores = torch.randn(len(ids) - 1, len(data.processor.tokenizer), generator=torch.Generator().manual_seed(0))
        expected = 0.0
        for place in range(1, len(ids)):
            if labels[place] != IGNORED:
                allowed = grammar(ids[None, :place], scores[None, place - 1])[0]
                expected -= float(allowed.double().log_softmax(dim=0)[ids[place]]) / math.log(2)
        assert sequence_bits(grammar, ids, labels, scores)["grammar"] == pytest.approx(expected, rel=1e-4)


class TestRuns:
    def test_it_learns_and_speaks(self, settings, tokens, tmp_path, capsys, monkeypatch):
        settings.texts = str(tokens / "texts.parquet")
        brief = Budget(**{**vars(TINY), "max_steps": 60, "crop_frames": 20, "learning_rate": 0.01})
        settings.budget = brief
        result = language_model_training.run(settings)
        state = json.loads((tmp_path / "run" / "checkpoint-60" / "trainer_state.json").read_text())
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        assert losses[-1] < 0.8 * losses[0]
        assert 0 < result.bit_rate.grammar <= result.bit_rate.free < math.inf
        for sample in result.samples:
            audio, rate = soundfile.read(tmp_path / "run" / sample.file)
            assert rate == 16_000 and len(audio) == 640 * sample.frames > 0
        monkeypatch.chdir(tmp_path)
        model = tmp_path / "run" / "model"
        codec = ("--codec", settings.codec)
        assert speak.main([str(model), "Two", "-o", "said.wav", "--seconds", "0.4", *codec]) == 0
        assert 0 < len(soundfile.read("said.wav")[0]) <= 6_400
        assert speak.main([str(model), "-o", "on.wav", "--prompt", "said.wav", "--seconds", "0.4", *codec]) == 0
        said, on = (len(soundfile.read(name)[0]) for name in ("said.wav", "on.wav"))
        assert said <= on <= said + 6_400

    @pytest.mark.slow
    def test_an_interrupted_run_ends_with_the_same_weights(self, settings, tmp_path, monkeypatch):
        settings.samples = 0
        undisturbed = language_model_training.run(settings)
        settings.output_dir = str(tmp_path / "interrupted")
        steps = iter(range(3))
        collate = SpeechSequences.collate

        def interrupt(self, items):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return collate(self, items)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(SpeechSequences, "collate", interrupt)
            language_model_training.run(settings)
        # As a process leaves it that is killed while it writes a checkpoint.
        (tmp_path / "interrupted" / "checkpoint-3").mkdir()
        assert language_model_training.run(settings) == undisturbed
        one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("run", "interrupted"))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

    @pytest.mark.slow
    def test_presets_and_layouts_are_compared_once(self, tokens, tiny_model_folder, tmp_path, monkeypatch):
        comparison = compare_speech_lms.Comparison(
            tokens=str(tokens),
            output_dir=str(tmp_path / "runs"),
            results=str(tmp_path / "results"),
            texts="sentence",
            with_texts=[PRESETS[0]],
            samples=0,
            budget=Budget(**{**vars(TINY), "max_steps": 1}),
        )
        summary = compare_speech_lms.compare(comparison)
        found = {(run.bottleneck, run.layout, run.texts) for run in summary}
        assert found == {(p, layout, False) for p in PRESETS for layout in ("interleaved", "delay")} | {
            (PRESETS[0], "interleaved", True)
        }
        assert len({run.parameters.transformer for run in summary}) == 1
        page = (tmp_path / "results" / "language_models.md").read_text()
        assert page.count("| 2x15625_700bps |") == 2 and "| delay |" in page
        monkeypatch.setattr(language_model_training, "train", None)  # nothing is trained again
        assert compare_speech_lms.compare(comparison) == summary


class TestMistakes:
    def refused(self, capsys, settings: Settings, **changes: object) -> str:
        options = {name: value for name, value in vars(settings).items() if name != "budget"} | changes
        lists = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
        given = [part for name, values in lists.items() if values != [None] for part in (f"--{name}", *values)]
        return refusal(capsys, train_speech_lm, *given, "--budget.crop_frames", 16, "--budget.max_steps", 1)

    def test_corpora_that_do_not_fit(self, settings, tokens, tmp_path, capsys):
        other = tokens / PRESETS[1] / "validation"
        assert "4x729_1000bps was expected" in self.refused(capsys, settings, validation=other)
        assert "not of 1x46656_400bps" in self.refused(capsys, settings, bottleneck="1x46656_400bps")
        assert "no complete corpus" in self.refused(capsys, settings, train=tmp_path)
        assert "no layout 'delayed'" in self.refused(capsys, settings, layout="delayed")

    def test_texts_that_are_not_there(self, settings, tmp_path, capsys):
        assert "no column 'words', only id, codes" in self.refused(capsys, settings, texts="words")
        pa.parquet.write_table(pa.table({"id": ["other"], "text": ["x"]}), tmp_path / "other.parquet")
        assert "no clip that has a text" in self.refused(capsys, settings, texts=tmp_path / "other.parquet")
        assert "other.txt.parquet: cannot be read" in self.refused(capsys, settings, texts="other.txt.parquet")

    def test_another_codec(self, settings, make_tiny_model, tiny_model_folder, tmp_path, capsys):
        shutil.copytree(tiny_model_folder, tmp_path / "codec")
        make_tiny_model(1).save_pretrained(tmp_path / "codec")
        assert "was tokenised with" in self.refused(capsys, settings, codec=tmp_path / "codec")
        settings.samples = 0
        language_model_training.run(settings)
        model = Path(settings.output_dir, "model")
        message = refusal(capsys, speak, model, "-o", tmp_path / "a.wav", "--codec", tmp_path / "codec")
        assert "learnt the tokens of codec" in message
        assert "was begun with other layout" in self.refused(capsys, settings, layout="delay")
        assert "no language model" in refusal(capsys, speak, tmp_path, "-o", tmp_path / "a.wav")
        placeholder = "<|taae_audio|>"
        assert "cannot be said" in refusal(
            capsys, speak, model, placeholder, "-o", tmp_path / "a.wav", "--codec", tiny_model_folder
        )
        for option, value in (("--seconds", 0), ("--seconds", "inf"), ("--temperature", 1e-45)):
            with pytest.raises(SystemExit, match="2"):
                speak.main([str(model), "-o", str(tmp_path / "a.wav"), option, str(value)])
