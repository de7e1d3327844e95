"""The trainer: recipes, crops, losses, and runs that are killed and go on."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from safetensors.torch import load_file

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from training.data import CorpusError, StreamedCrops, TrainingCrops, validation_clips
from training.losses import WINDOWS_AND_MELS, ReconstructionLoss, SpectralDistance
from training.recipe import Corpus, Data, Losses, Optimizer, parse_recipe
from training.train import learning_rate_factor

CHECKOUT = Path(__file__).resolve().parent.parent
TINY = {
    "patch_size": 160,
    "hidden_sizes": [16, 16],
    "strides": [2, 2],
    "encoder_depths": [0, 1],
    "decoder_depths": [0, 1],
    "head_dim": 16,
}


def encoded_tone(frequency: float, seconds: float, sampling_rate: int = 16_000) -> bytes:
    time_axis = np.arange(int(seconds * sampling_rate)) / sampling_rate
    file = io.BytesIO()
    tone = 0.2 * np.sin(2 * np.pi * frequency * time_axis) * np.sin(2 * np.pi * 3 * time_axis)
    soundfile.write(file, tone, sampling_rate, format="FLAC")
    return file.getvalue()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> str:
    """Twelve tones of up to two seconds, one of them at 24 kHz, and two rows that are no audio."""
    rows = [encoded_tone(200 + 50 * n, 0.5 + n / 8) for n in range(11)] + [encoded_tone(900, 1.0, 24_000)]
    rows[3:3] = [b"not audio", rows[0][:60]]
    file = tmp_path_factory.mktemp("corpus") / "train.parquet"
    audio = [{"bytes": row, "path": f"{n}.flac"} for n, row in enumerate(rows)]
    Dataset.from_dict({"audio": audio, "id": list(range(len(rows)))}).to_parquet(file)
    return str(file)


@pytest.fixture
def data(parquet) -> Data:
    return Data(corpora=[Corpus(parquet)], crop_frames=16, shuffle_buffer=4)


@pytest.fixture(scope="module")
def recipe_file(parquet, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe = {
        "config": TINY,
        "data": {"corpora": [{"source": parquet}], "crop_frames": 16},
        "validation": {"corpus": {"source": parquet}, "every": 100, "utterances": 2},
        "optimizer": {"warmup_steps": 2, "decay_steps": 4, "ema_every": 1, "ema_decay": 0.5, "learning_rate": 3e-3},
        "max_steps": 8,
        "batch_size": 2,
        "log_every": 1,
        "checkpoint_every": 2,
    }
    file.write_text(json.dumps(recipe))  # JSON is YAML
    return str(file)


def start_training(recipe_file: str, *overrides: str, launcher: tuple[str, ...] = (sys.executable,)):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [*launcher, str(CHECKOUT / "training" / "train.py"), recipe_file, *map(str, overrides)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model" / "model.safetensors")


def test_recipe_fields_are_overridden_by_dotted_names(recipe_file):
    recipe = parse_recipe([recipe_file, "--optimizer.learning_rate", "1e-4", "--max_steps", "5"])
    assert (recipe.optimizer.learning_rate, recipe.max_steps, recipe.batch_size) == (1e-4, 5, 2)
    assert recipe.data.corpora[0].weight == 1.0


@pytest.mark.parametrize(
    ("override", "named"),
    [(["--optimizer.learning_rat", "1"], "learning_rat"), (["--max_steps", "many"], "max_steps")],
)
def test_mistakes_in_a_recipe_are_named(recipe_file, override, named, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_recipe([recipe_file, *override])
    assert exit_info.value.code == 2
    assert named in capsys.readouterr().err


def test_published_recipes_are_valid():
    for file in sorted((CHECKOUT / "training" / "recipes").glob("*.yaml")):
        recipe = parse_recipe([str(file)])
        sources = [corpus.source for corpus in recipe.data.corpora]
        assert sources and not any("finetune" in source or "test" in source for source in sources)


def test_a_crop_follows_from_seed_and_index(data):
    extractor = TaaeFeatureExtractor()
    crops, again, other = (TrainingCrops(data, extractor, seed) for seed in (1, 1, 2))
    assert crops[7].shape == (1, 16 * 640)
    assert torch.equal(crops[7], again[7])
    assert not torch.equal(crops[7], other[7])
    assert not torch.equal(crops[7], crops[8])


def test_rows_that_are_no_audio_are_counted_and_left_out(data):
    crops = TrainingCrops(data, TaaeFeatureExtractor(), 0)
    assert crops.skipped == 2
    assert all(crops[index].abs().max() > 0 for index in range(50))


def test_all_audio_of_a_corpus_is_equally_likely(data):
    corpus = TrainingCrops(data, TaaeFeatureExtractor(), 0).corpora[0]
    generator = np.random.default_rng(0)
    rows = np.searchsorted(corpus.ends, generator.integers(corpus.samples, size=4000), side="right")
    shares = np.bincount(rows, minlength=12) / 4000
    expected = np.diff(corpus.ends, prepend=0) / corpus.samples
    assert np.abs(shares - expected).max() < 0.03


def test_levels_vary_within_the_jitter_and_never_clip(parquet):
    extractor = TaaeFeatureExtractor()
    steady, varied = (
        TrainingCrops(Data(corpora=[Corpus(parquet)], crop_frames=8, level_jitter=jitter), extractor, 0)
        for jitter in (0.0, 5.0)
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


def test_validation_clips_have_the_loudness_of_inference(parquet):
    clips = list(validation_clips(Corpus(parquet), TaaeFeatureExtractor(target_loudness=None), 3))
    louder = list(validation_clips(Corpus(parquet), TaaeFeatureExtractor(target_loudness=-10.0), 3))
    assert len(clips) == len(louder) == 3
    assert all(np.abs(b).max() > np.abs(a).max() for a, b in zip(clips, louder, strict=True))


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ([], "names no corpus"),
        ([Corpus("nowhere/*.parquet")], "nowhere"),
        ([Corpus("{parquet}", audio_column="sound")], "has no column 'sound'; it has audio, id"),
        ([Corpus("{parquet}", weight=0.0)], "must be positive"),
    ],
)
def test_corpora_that_cannot_be_used_are_named(parquet, corpora, message):
    for corpus in corpora:
        corpus.source = corpus.source.format(parquet=parquet)
    with pytest.raises(CorpusError, match=message):
        TrainingCrops(Data(corpora=corpora), TaaeFeatureExtractor(), 0)


def test_a_corpus_without_any_audio_is_refused(tmp_path):
    Dataset.from_dict({"audio": [{"bytes": b"text", "path": "a.wav"}]}).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(CorpusError, match=r"holds no audio that can be decoded \(1 rows skipped\)"):
        TrainingCrops(Data(corpora=[Corpus(str(tmp_path / "bad.parquet"))]), TaaeFeatureExtractor(), 0)


@pytest.mark.parametrize(("window", "mels"), WINDOWS_AND_MELS)
def test_the_spectrum_of_a_sine_reads_its_amplitude(window, mels):
    distance = SpectralDistance(window, mels, 16_000)
    bin_centre = 2 * np.pi * 8 / window
    sine = 0.5 * torch.sin(bin_centre * torch.arange(8 * window, dtype=torch.float32))
    frames = sine.unfold(-1, window, window // 2) * distance.window
    assert torch.fft.rfft(frames).abs().amax(-1).numpy() == pytest.approx(0.5, abs=1e-3)


def test_losses_are_zero_for_equal_audio_and_grow_with_the_difference():
    torch.manual_seed(0)
    loss = ReconstructionLoss(Losses(), 16_000)
    reference, noise = torch.randn(2, 1, 8_000) * 0.1, torch.randn(2, 1, 8_000) * 0.1
    same, close, far = (loss(reference + share * noise, reference, 0) for share in (0.0, 0.1, 1.0))
    for name in ("log_mel", "magnitude", "waveform", "loss"):
        assert same[name] == 0
        assert 0 < close[name] < far[name]


def test_the_waveform_term_fades_out():
    torch.manual_seed(0)
    loss = ReconstructionLoss(Losses(waveform=2.0, waveform_decay_steps=10), 16_000)
    audio, reference = torch.randn(2, 2, 1, 4_096)
    early, middle, late = (loss(audio, reference, step) for step in (0, 5, 10))
    assert (early["loss"] - late["loss"]).item() == pytest.approx(2 * late["waveform"].item(), rel=1e-4)
    assert (middle["loss"] - late["loss"]).item() == pytest.approx(late["waveform"].item(), rel=1e-4)


def test_the_learning_rate_warms_up_stays_and_decays():
    optimizer = Optimizer(warmup_steps=10, decay_steps=20)
    factors = [learning_rate_factor(optimizer, 100, step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:80] == [1.0] * 70
    assert all(a > b for a, b in zip(factors[80:], factors[81:], strict=False))
    assert factors[100] == 0


def test_a_killed_run_resumes_exactly(recipe_file, tmp_path):
    """Killed between checkpoints, then run again, it ends with the weights of a run that nobody disturbed."""
    undisturbed = start_training(recipe_file, "--output_dir", tmp_path / "undisturbed")
    killed = start_training(recipe_file, "--output_dir", tmp_path / "killed")
    while killed.poll() is None and not (tmp_path / "killed" / "checkpoint-4").exists():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "model").exists(), "the run was over before it could be killed"
    finish(undisturbed)
    assert "Resuming from" in finish(start_training(recipe_file, "--output_dir", tmp_path / "killed"))
    expected, resumed = weights(tmp_path / "undisturbed"), weights(tmp_path / "killed")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


def test_two_processes_train_like_one_with_the_same_global_batch(recipe_file, tmp_path):
    # The dither of training is drawn by each process for itself, so it is switched off to compare.
    steady = ("--config.training_noise_probability", 0, "--config.training_rounding_probability", 0)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = start_training(recipe_file, *steady, "--batch_size", 1, "--output_dir", tmp_path / "two", launcher=torchrun)
    finish(start_training(recipe_file, *steady, "--batch_size", 2, "--output_dir", tmp_path / "one"))
    finish(two)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def validation_losses(output: str) -> list[float]:
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"step"')]
    for line in lines:
        assert {f"validation/{name}" for name in ("pesq_wb", "stoi", "si_sdr", "mel_distance")} <= line.keys()
    return [line["validation/loss"] for line in lines]


def test_a_run_learns_and_publishes_what_it_learnt(recipe_file, tmp_path):
    """From scratch, then fine-tuned from the published folder, streaming: the loss falls and the folders load."""
    brief = ("--checkpoint_every", 1_000, "--validation.every", 20)
    scratch = start_training(recipe_file, *brief, "--max_steps", 60, "--output_dir", tmp_path / "scratch")
    losses = validation_losses(finish(scratch))
    assert losses[-1] < 0.9 * losses[0]
    assert list((tmp_path / "scratch").glob("log/events.out.tfevents.*"))
    model = TaaeModel.from_pretrained(tmp_path / "scratch" / "model")
    assert model(torch.zeros(1, 1, 1_000)).audio_values.shape == (1, 1, 1_000)
    start = ("--size", tmp_path / "scratch" / "model", "--config", "{}", "--data.streaming", "true")
    tuned = start_training(recipe_file, *brief, *start, "--max_steps", 40, "--output_dir", tmp_path / "tuned")
    assert validation_losses(finish(tuned))[0] < 0.9 * losses[0]


def test_a_diverged_run_says_what_to_do(recipe_file, tmp_path):
    options = ("--optimizer.learning_rate", "1e30", "--optimizer.warmup_steps", 1, "--output_dir", tmp_path)
    process = start_training(recipe_file, *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Lower optimizer.learning_rate" in output and "Traceback" not in output
