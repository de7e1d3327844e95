"""The perceptual loss, with a small random WavLM."""

import pytest
import torch
from support.training_runs import make_trainer, write_corpus, write_recipe
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from training.perceptual import PerceptualLoss
from training.recipe import PerceptualConfig, RecipeError

TINY_WAVLM = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_stride": (20, 16),
    "conv_kernel": (20, 16),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("wavlm")
    torch.manual_seed(0)
    WavLMModel(WavLMConfig(**TINY_WAVLM)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def audio() -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, 8_000, generator=torch.Generator().manual_seed(0))


def test_the_distance_is_that_of_its_definition(wavlm, audio):
    loss, decoded = PerceptualLoss(PerceptualConfig(wavlm, layers=[1, 3]), 16_000), audio.roll(100, -1) * 0.5
    reader, extractor = WavLMModel.from_pretrained(wavlm).eval(), Wav2Vec2FeatureExtractor.from_pretrained(wavlm)
    with torch.no_grad():
        states = [
            reader(
                **extractor(list(clip[:, 0].numpy()), sampling_rate=16_000, return_tensors="pt"),
                output_hidden_states=True,
            ).hidden_states
            for clip in (decoded, audio)
        ]
        expected = sum(((states[0][k] - states[1][k]).abs().mean() / states[1][k].std()) / 2 for k in (1, 3))
        assert loss(decoded, audio).item() == pytest.approx(expected.item(), rel=1e-4)
        assert loss(audio, audio) == 0


def test_all_layers_are_compared_unless_some_are_named(wavlm, audio):
    assert len(PerceptualLoss(PerceptualConfig(wavlm), 16_000).features(audio)) == 4


def test_gradients_reach_the_audio_and_not_the_reader(wavlm, audio):
    loss, decoded = PerceptualLoss(PerceptualConfig(wavlm), 16_000), (0.5 * audio).roll(7, -1).requires_grad_()
    loss(decoded, audio).backward()
    assert decoded.grad.isfinite().all() and decoded.grad.any()
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_what_does_not_fit_is_refused(wavlm, tmp_path):
    for settings, rate, message in (
        (PerceptualConfig(wavlm, layers=[4]), 16_000, "are 0 to 3"),
        (PerceptualConfig(wavlm, layers=[]), 16_000, "are 0 to 3"),
        (PerceptualConfig(wavlm), 24_000, "reads 16000 Hz, the codec 24000 Hz"),
        (PerceptualConfig(str(tmp_path)), 16_000, "Cannot load perceptual.model"),
    ):
        with pytest.raises(RecipeError, match=message):
            PerceptualLoss(settings, rate)


def test_a_run_minimises_it(wavlm, tmp_path):
    recipe = write_recipe(tmp_path, write_corpus(tmp_path))
    alone = ("--losses.log_mel", 0, "--losses.magnitude", 0, "--losses.waveform", 0, "--validation.corpus", "null")
    trainer = make_trainer(recipe, *alone, "--perceptual.model", wavlm, "--max_steps", 60, "--output_dir", tmp_path)
    losses = []
    for batch in trainer.batches():
        losses.append(trainer.forward_and_backward(batch)["perceptual"].item())
        trainer.update()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
