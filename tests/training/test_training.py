"""Recipes, crops, losses and schedules: all of the trainer but its runs."""

import copy
import dataclasses
import io
import itertools

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
from datasets import Dataset
from support.training_runs import CHECKOUT, encoded_tone

from modeling_taae import TaaeConfig, TaaeFeatureExtractor
from modeling_taae.configuration_taae import NAMED_SIZES
from training.data import CorpusError, DecodedCorpus, StreamedCrops, TrainingCrops, open_corpus, validation_clips
from training.losses import WINDOWS_AND_MELS, ReconstructionLoss, SpectralDistance, weighted_sum
from training.optimization import (
    DivergenceError,
    DivergenceWatch,
    build_optimizer,
    learning_rate_factor,
    step_if_finite,
)
from training.recipe import (
    AugmentationConfig,
    CorpusConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    Recipe,
    parse_recipe,
)


@pytest.fixture
def data(corpus) -> DataConfig:
    return DataConfig(corpora=[CorpusConfig(corpus)], crop_frames=16, shuffle_buffer=4)


def test_recipe_fields_are_overridden_by_dotted_names(recipe_file):
    recipe = parse_recipe([recipe_file, "--optimizer.learning_rate", "1e-4", "--max_steps", "5"])
    assert (recipe.optimizer.learning_rate, recipe.max_steps, recipe.batch_size) == (1e-4, 5, 2)
    assert recipe.data.corpora[0].weight == 1.0


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (["--optimizer.learning_rat", "1"], "learning_rat"),
        (["--max_steps", "many"], "max_steps"),
        (["--seed", "-1"], "seed"),
        (["--optimizer.ema_decay", "1.5"], "ema_decay"),
        (["--optimizer.learning_rate", "-1"], "learning_rate"),
    ],
)
def test_mistakes_in_a_recipe_are_named(recipe_file, override, named, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_recipe([recipe_file, *override])
    assert exit_info.value.code == 2
    assert named in capsys.readouterr().err


RECIPES = CHECKOUT / "training" / "recipes"


def check_recipe(*arguments: object) -> Recipe:
    """Parses a recipe, and builds its configuration if it starts from scratch."""
    recipe = parse_recipe([str(argument) for argument in arguments])
    named = recipe.size if recipe.size in NAMED_SIZES else "nano"
    assert recipe.config.keys() <= TaaeConfig.named(named, **recipe.config).to_dict().keys()
    return recipe


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_published_recipes_are_valid(file):
    recipe = check_recipe(file)
    sources = [corpus.source for corpus in recipe.data.corpora]
    assert sources and not any("test" in source for source in sources)
    assert any("finetune" in source for source in sources) == file.stem.startswith("finetune")
    assert recipe.output_dir == f"runs/{file.stem}"


@pytest.mark.parametrize("file", sorted(RECIPES.glob("ablations/*.yaml")), ids=lambda file: file.stem)
def test_an_ablation_changes_a_recipe_in_a_few_lines(file):
    base = RECIPES / ("nano_adversarial.yaml" if file.stem.startswith("discriminator") else "nano.yaml")
    recipe, plain = check_recipe(base, "--recipe", file), check_recipe(base)
    changed = {name for name, value in vars(plain).items() if getattr(recipe, name) != value}
    assert recipe.output_dir == f"runs/{file.stem}"
    assert changed in ({"output_dir", "config"}, {"output_dir", "discriminator"})


def test_a_crop_follows_from_seed_and_index(data):
    extractor = TaaeFeatureExtractor()
    crops, again, other = (TrainingCrops(data, extractor, seed) for seed in (1, 1, 2))
    assert crops[7].shape == (1, 16 * 640)
    assert torch.equal(crops[7], again[7])
    assert not torch.equal(crops[7], other[7])
    assert not torch.equal(crops[7], crops[8])


def test_workers_decode_the_same_crops(data, tmp_path, monkeypatch):
    """Also where they find nothing that was decoded before."""
    alone = TrainingCrops(data, TaaeFeatureExtractor(), 1)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    together = TrainingCrops(dataclasses.replace(data, workers=3), TaaeFeatureExtractor(), 1)
    assert together.skipped == alone.skipped == 2
    assert all(torch.equal(alone[index], together[index]) for index in range(20))


def test_rows_that_are_no_audio_are_counted_and_left_out(data):
    crops = TrainingCrops(data, TaaeFeatureExtractor(), 0)
    assert crops.skipped == 2
    assert all(crops[index].abs().max() > 0 for index in range(50))


def test_a_recording_that_is_cut_short_is_left_out(tmp_path):
    """As the command line refuses it, though libsndfile reads as much as is there."""
    whole = io.BytesIO()
    soundfile.write(whole, 0.1 * np.ones(16_000), 16_000, format="WAV")
    rows = [{"bytes": whole.getvalue()[:size], "path": None} for size in (None, 20_000)]
    Dataset.from_dict({"audio": rows}).to_parquet(tmp_path / "cut.parquet")
    crops = TrainingCrops(DataConfig(corpora=[CorpusConfig(str(tmp_path / "cut.parquet"))]), TaaeFeatureExtractor(), 0)
    assert crops.skipped == 1 and crops.corpora[0].samples == 16_000


def test_all_audio_of_a_corpus_is_equally_likely(data):
    corpus = TrainingCrops(data, TaaeFeatureExtractor(), 0).corpora[0]
    generator = np.random.default_rng(0)
    rows = np.searchsorted(corpus.ends, generator.integers(corpus.samples, size=4000), side="right")
    shares = np.bincount(rows, minlength=12) / 4000
    expected = np.diff(corpus.ends, prepend=0) / corpus.samples
    assert np.abs(shares - expected).max() < 0.03


def test_levels_vary_within_the_limit_and_never_clip(corpus):
    extractor = TaaeFeatureExtractor()
    steady, varied = (
        TrainingCrops(
            DataConfig(corpora=[CorpusConfig(corpus)], crop_frames=8, augmentation=AugmentationConfig(level)),
            extractor,
            0,
        )
        for level in (0.0, 5.0)
    )
    gains = [20 * np.log10((varied[n].abs().max() / steady[n].abs().max()).item()) for n in range(60)]
    assert min(gains) < -3 and max(gains) > 1
    assert max(map(abs, gains)) < 5.01
    assert max(varied[n].abs().max() for n in range(60)) <= 1


def test_a_stream_resumes_at_the_crop_where_it_was(data):
    def crops(first: int, count: int) -> list[torch.Tensor]:
        stream = StreamedCrops(data, TaaeFeatureExtractor(), 0, process=0, processes=1, first=first)
        return [crop for crop, _ in zip(stream, range(count), strict=False)]

    whole, rest = crops(0, 30), crops(9, 21)  # the corpus has 14 rows, so this is past an epoch
    assert all(torch.equal(a, b) for a, b in zip(whole[9:], rest, strict=True))
    assert not torch.equal(whole[0], whole[14])


def test_processes_stream_different_rows(data):
    first, second = (
        [crop.abs().sum().item() for crop, _ in zip(stream, range(7), strict=False)]
        for stream in (StreamedCrops(data, TaaeFeatureExtractor(), 0, process, 2, 0) for process in (0, 1))
    )
    assert not set(first) & (set(second) - {0.0})  # 0: a row that is no audio


def test_of_long_recordings_the_beginning_is_validation(tmp_path):
    long = np.random.default_rng(0).normal(0, 0.1, 25 * 16_000)
    soundfile.write(tmp_path / "long.flac", long, 16_000)
    (clip,) = validation_clips(CorpusConfig(str(tmp_path / "long.flac")), TaaeFeatureExtractor(target_loudness=None), 1)
    assert np.abs(clip - long[: 20 * 16_000]).max() < 1e-3


def test_validation_clips_have_the_loudness_of_inference(corpus):
    clips = list(validation_clips(CorpusConfig(corpus), TaaeFeatureExtractor(target_loudness=None), 3))
    louder = list(validation_clips(CorpusConfig(corpus), TaaeFeatureExtractor(target_loudness=-10.0), 3))
    assert len(clips) == len(louder) == 3
    assert all(np.abs(b).max() > np.abs(a).max() for a, b in zip(clips, louder, strict=True))


def test_validation_leaves_out_what_cannot_be_scored(tmp_path):
    sounds = {"silence": np.zeros(16_000), "a click": np.ones(100), "speech": np.sin(np.arange(16_000))}
    rows = []
    for sound in sounds.values():
        file = io.BytesIO()
        soundfile.write(file, 0.1 * sound, 16_000, format="FLAC")
        rows.append({"bytes": file.getvalue(), "path": None})
    Dataset.from_dict({"audio": rows}).to_parquet(tmp_path / "mixed.parquet")
    (clip,) = validation_clips(CorpusConfig(str(tmp_path / "mixed.parquet")), TaaeFeatureExtractor(), 3)
    assert len(clip) == 16_000 and clip.any()


@pytest.mark.parametrize("source", ["speech", "speech/**/*.flac"])
def test_recordings_are_a_corpus_as_they_are(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "speech" / "maria").mkdir(parents=True)
    (tmp_path / "speech" / "maria" / "1.flac").write_bytes(encoded_tone(300, 1.0))
    (tmp_path / "speech" / "2.flac").write_bytes(encoded_tone(400, 2.0, 8_000))
    (tmp_path / "speech" / "notes.txt").write_text("not a recording")
    corpus = CorpusConfig(source)
    assert DecodedCorpus(corpus, TaaeFeatureExtractor()).samples == 48_000
    (tmp_path / "speech" / "2.flac").write_bytes(encoded_tone(400, 1.0))
    assert DecodedCorpus(corpus, TaaeFeatureExtractor()).samples == 32_000, "what has changed is decoded again"
    streamed = StreamedCrops(DataConfig(corpora=[corpus], crop_frames=16), TaaeFeatureExtractor(), 0, 0, 1, 0)
    assert all(crop.any() for crop in itertools.islice(streamed, 4))
    names = {row.id.rpartition("/")[2] for row in open_corpus(corpus)}
    assert names == {"1.flac", "2.flac"}


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_paths_and_of_bytes(streaming, tmp_path):
    tone = encoded_tone(300, 1.0)
    (tmp_path / "tone.flac").write_bytes(tone)
    for kind, value in (("path", str(tmp_path / "tone.flac")), ("bytes", tone)):
        pyarrow.parquet.write_table(pyarrow.table({"audio": [value]}), tmp_path / f"{kind}.parquet")
        (clip,) = validation_clips(
            CorpusConfig(str(tmp_path / f"{kind}.parquet")), TaaeFeatureExtractor(), 1, streaming
        )
        assert len(clip) == 16_000


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ([], "names no corpus"),
        (
            [CorpusConfig("{folder}")],
            r"holds no audio that can be decoded \(2 rows skipped\): 1 × damaged: .*; 1 × cannot be read as audio",
        ),
        (
            [CorpusConfig("{parquet}", audio_column="id")],
            "holds no audio .*14 × holds int for its audio; expected the bytes or the path",
        ),
        ([CorpusConfig("nowhere/*.parquet")], "nowhere"),
        ([CorpusConfig("{parquet}", audio_column="sound")], "has no column 'sound', only audio, id, text"),
        ([CorpusConfig("{parquet}", weight=0.0)], "must be positive"),
    ],
)
def test_corpora_that_cannot_be_used_are_named(corpus, corpora, message, tmp_path):
    for name in ("a.parquet", "b.wav"):
        (tmp_path / name).touch()
    for config in corpora:
        config.source = config.source.format(parquet=corpus, folder=tmp_path)
    with pytest.raises(CorpusError, match=message):
        TrainingCrops(DataConfig(corpora=corpora), TaaeFeatureExtractor(), 0)


def test_a_corpus_without_any_audio_is_refused(tmp_path):
    Dataset.from_dict({"audio": [{"bytes": b"text", "path": "a.wav"}]}).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(CorpusError, match=r"holds no audio that can be decoded \(1 rows skipped\)"):
        TrainingCrops(DataConfig(corpora=[CorpusConfig(str(tmp_path / "bad.parquet"))]), TaaeFeatureExtractor(), 0)


def test_a_silent_corpus_is_refused(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000), 16_000, format="FLAC")
    Dataset.from_dict({"audio": [{"bytes": file.getvalue(), "path": None}]}).to_parquet(tmp_path / "silent.parquet")
    with pytest.raises(CorpusError, match="silent throughout"):
        TrainingCrops(DataConfig(corpora=[CorpusConfig(str(tmp_path / "silent.parquet"))]), TaaeFeatureExtractor(), 0)


def test_rows_without_audio_are_counted(corpus, tmp_path):
    rows = Dataset.from_parquet(corpus).select(range(2)).to_list()
    table = pyarrow.Table.from_pylist([{"audio": None}, *({"audio": row["audio"]} for row in rows)])
    pyarrow.parquet.write_table(table, tmp_path / "null.parquet")
    assert (
        TrainingCrops(
            DataConfig(corpora=[CorpusConfig(str(tmp_path / "null.parquet"))]), TaaeFeatureExtractor(), 0
        ).skipped
        == 1
    )


@pytest.mark.parametrize(
    ("rows", "processes", "message"),
    [([b"text"], 2, "no row .*process 2 of 2"), ([b"x"] * 5, 1, "decoded of 5")],
)
def test_a_stream_without_audio_ends(rows, processes, message, tmp_path):
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    audio = pyarrow.array([{"bytes": row, "path": None} for row in rows], kind)
    pyarrow.parquet.write_table(pyarrow.table({"audio": audio}), tmp_path / "bad.parquet")
    data = DataConfig(corpora=[CorpusConfig(str(tmp_path / "bad.parquet"))], crop_frames=8)
    with pytest.raises(CorpusError, match=message):
        list(StreamedCrops(data, TaaeFeatureExtractor(), 0, processes - 1, processes, 0))


def test_rows_that_are_no_audio_are_counted_in_a_stream_too(data, capfd):
    stream = StreamedCrops(data, TaaeFeatureExtractor(), 0, process=0, processes=1, first=0)
    list(itertools.islice(stream, 15))
    assert "2 of 14 recordings could not be decoded" in capfd.readouterr().err


@pytest.mark.parametrize("samples", [640, 1_920])
def test_clips_shorter_than_a_window_have_losses(samples):
    audio = torch.rand(1, 1, samples)
    terms = ReconstructionLoss(16_000)(audio, audio.flip(-1))
    assert all(term.isfinite() and term > 0 for term in terms.values())


@pytest.mark.parametrize(("window", "mels"), WINDOWS_AND_MELS)
def test_the_spectrum_of_a_sine_reads_its_amplitude(window, mels):
    distance = SpectralDistance(window, mels, 16_000)
    bin_centre = 2 * np.pi * 8 / window
    sine = 0.5 * torch.sin(bin_centre * torch.arange(8 * window, dtype=torch.float32))
    frames = sine.unfold(-1, window, window // 2) * distance.window
    assert torch.fft.rfft(frames).abs().amax(-1).numpy() == pytest.approx(0.5, abs=1e-3)


def test_losses_are_zero_for_equal_audio_and_grow_with_the_difference():
    torch.manual_seed(0)
    loss = ReconstructionLoss(16_000)
    reference, noise = torch.randn(2, 1, 8_000) * 0.1, torch.randn(2, 1, 8_000) * 0.1
    same, close, far = (loss(reference + share * noise, reference) for share in (0.0, 0.1, 1.0))
    for name in ("log_mel", "magnitude", "waveform"):
        assert same[name] == 0
        assert 0 < close[name] < far[name]


def test_terms_are_weighted_by_name_and_the_waveform_fades_out():
    weights = LossConfig(log_mel=1.0, waveform=2.0, waveform_decay_steps=10, feature_matching=4.0)
    terms = {"log_mel": torch.tensor(0.5), "waveform": torch.tensor(3.0), "feature_matching": torch.tensor(0.25)}
    assert [weighted_sum(terms, weights, step).item() for step in (0, 5, 10, 20)] == [7.5, 4.5, 1.5, 1.5]


def test_the_learning_rate_warms_up_stays_and_decays():
    optimizer = OptimizerConfig(warmup_steps=10, decay_steps=20)
    factors = [learning_rate_factor(optimizer, 100, step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:80] == [1.0] * 70
    assert all(a > b for a, b in zip(factors[80:], factors[81:], strict=False))
    assert factors[100] == 0
    assert learning_rate_factor(optimizer, 100, 50, first_step=50) == pytest.approx(0.1)


def watched(watch: DivergenceWatch, losses: list[float], norms: list[float]) -> None:
    for loss, norm in zip(losses, norms, strict=True):
        watch.note(torch.tensor(loss), torch.tensor(norm))
    watch.look()


def test_a_step_without_finite_gradients_changes_nothing():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(torch.nn.ParameterList([weight]))
    for gradient, norm in ((1.0, 1.0), (float("nan"), float("nan")), (float("inf"), float("inf"))):
        before, state = weight.clone(), copy.deepcopy(optimizer.state_dict())
        weight.grad = torch.full((3,), gradient)
        step_if_finite(optimizer, OptimizerConfig(), 0.1, torch.tensor(norm))
        assert torch.equal(weight, before) == (norm != 1)
        assert (str(optimizer.state_dict()) == str(state)) == (norm != 1)
    step_if_finite(optimizer, OptimizerConfig(), 0.1, torch.tensor(1.0))
    assert optimizer.state[weight]["step"] == 2


def test_some_steps_may_be_skipped_but_not_many_in_succession():
    watch, nan = DivergenceWatch(ratio=2.0), float("nan")
    watched(watch, [1.0] * 8, [1.0, nan, float("inf"), 2.0] + [nan] * 4)
    with pytest.raises(DivergenceError, match="5 steps in succession"):
        watched(watch, [1.0], [nan])


def test_a_loss_that_rises_for_good_is_noticed_and_a_noisy_one_is_not():
    watch, noise = DivergenceWatch(ratio=2.0), np.random.default_rng(0)
    watched(watch, [5.0 * 0.99**step + 1.0 + noise.uniform(-0.9, 0.9) for step in range(1_000)], [1.0] * 1_000)
    watched(watch, [float("nan"), float("inf"), 1.0], [float("nan"), float("inf"), 1.0])  # skipped, and no more seen
    with pytest.raises(DivergenceError, match=r"risen to 1\.\d+, more than 2 times"):
        watched(watch, [4.0] * 100, [1.0] * 100)
