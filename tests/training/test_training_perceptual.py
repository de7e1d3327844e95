"""The perceptual loss, with small random networks that listen."""

import pytest
import torch
from support.tiny_models import TINY_WAV2VEC2
from support.training_runs import make_trainer
from transformers import (
    HubertConfig,
    HubertModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from training.perceptual import PerceptualLoss
from training.recipe import PerceptualConfig, RecipeError

TINY_WAVEFORM_ENCODER = TINY_WAV2VEC2 | {"num_hidden_layers": 3}
TINY_WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "vocab_size": 50,
    "max_source_positions": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


@pytest.fixture(scope="module")
def listeners(tmp_path_factory) -> dict[str, str]:
    """Folders of small random models by their kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("wavlm", "hubert", "whisper")}
    torch.manual_seed(0)
    WavLMModel(WavLMConfig(**TINY_WAVEFORM_ENCODER)).save_pretrained(folders["wavlm"])
    HubertModel(HubertConfig(**TINY_WAVEFORM_ENCODER)).save_pretrained(folders["hubert"])
    WhisperModel(WhisperConfig(**TINY_WHISPER)).save_pretrained(folders["whisper"])
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folders["wavlm"])
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folders["hubert"])
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folders["whisper"])
    return {kind: str(folder) for kind, folder in folders.items()}


@pytest.fixture
def audio() -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, 8_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "network"), [("wavlm", WavLMModel), ("hubert", HubertModel)])
def test_the_distance_is_that_of_its_definition(listeners, kind, network, audio):
    folder, decoded = listeners[kind], audio.roll(100, -1) * 0.5
    loss = PerceptualLoss(PerceptualConfig(folder, layers=[1, 3]), 16_000)
    reader, extractor = network.from_pretrained(folder).eval(), Wav2Vec2FeatureExtractor.from_pretrained(folder)
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


@pytest.mark.parametrize("eager", [False, True])
def test_whisper_hears_as_its_own_model_does(listeners, audio, eager):
    """On as much audio as it wants; then also on less, of which no outcome is given anywhere."""
    folder, second = listeners["whisper"], torch.cat([audio, audio.flip(-1)], dim=-1)
    encoder, extractor = WhisperModel.from_pretrained(folder).encoder, WhisperFeatureExtractor.from_pretrained(folder)
    loss = PerceptualLoss(PerceptualConfig(folder), 16_000, eager)
    with torch.no_grad():
        inputs = extractor(list(second[:, 0].numpy()), sampling_rate=16_000, return_tensors="pt")
        expected = encoder.eval()(inputs.input_features, output_hidden_states=True)
        features = loss.features(second)
        torch.testing.assert_close(features[-1], expected.last_hidden_state, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(features[0], expected.hidden_states[0], atol=1e-4, rtol=1e-4)
        assert [feature.shape for feature in loss.features(audio)] == [(2, 25, 16)] * 3


def test_layers_above_the_last_compared_do_not_run(listeners, audio):
    loss = PerceptualLoss(PerceptualConfig(listeners["whisper"], layers=[1]), 16_000)
    loss.listener.encoder.layers[1].forward = None
    assert loss(0.5 * audio, audio) > 0


def test_all_layers_are_compared_unless_some_are_named(listeners, audio):
    assert len(PerceptualLoss(PerceptualConfig(listeners["wavlm"]), 16_000).features(audio)) == 4
    assert len(PerceptualLoss(PerceptualConfig(listeners["whisper"]), 16_000).features(audio)) == 3


@pytest.mark.parametrize("kind", ["wavlm", "hubert", "whisper"])
def test_gradients_reach_the_audio_and_not_the_reader(listeners, kind, audio):
    decoded = (0.5 * audio).roll(7, -1).requires_grad_()
    loss = PerceptualLoss(PerceptualConfig(listeners[kind]), 16_000)
    loss(decoded, audio).backward()
    assert decoded.grad.isfinite().all() and decoded.grad.any()
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_silence_has_a_gradient(listeners, audio):
    loss, decoded = (
        PerceptualLoss(PerceptualConfig(listeners["whisper"]), 16_000),
        torch.zeros_like(audio).requires_grad_(),
    )
    loss(decoded, audio).backward()
    assert decoded.grad.isfinite().all()


def test_what_does_not_fit_is_refused(listeners, audio, tmp_path):
    wavlm, seamless = listeners["wavlm"], tmp_path / "seamless"
    WavLMModel.from_pretrained(wavlm).save_pretrained(seamless)
    SeamlessM4TFeatureExtractor().save_pretrained(seamless)
    for settings, rate, message in (
        (PerceptualConfig(wavlm, layers=[4]), 16_000, "are 0 to 3"),
        (PerceptualConfig(wavlm, layers=[]), 16_000, "are 0 to 3"),
        (PerceptualConfig(listeners["whisper"], layers=[3]), 16_000, "are 0 to 2"),
        (PerceptualConfig(wavlm), 24_000, "reads 16000 Hz, the codec 24000 Hz"),
        (PerceptualConfig(str(seamless)), 16_000, "reads the features of SeamlessM4TFeatureExtractor"),
        (PerceptualConfig(str(tmp_path)), 16_000, "Cannot load perceptual.model"),
    ):
        with pytest.raises(RecipeError, match=message):
            PerceptualLoss(settings, rate)
    with pytest.raises(RecipeError, match="hears 50 steps at once; crops have 75"):
        PerceptualLoss(PerceptualConfig(listeners["whisper"]), 16_000)(audio.repeat(1, 1, 3), audio.repeat(1, 1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wavlm", "whisper"])
def test_a_run_minimises_it(listeners, kind, recipe_file, tmp_path):
    alone = ("--losses.log_mel", 0, "--losses.magnitude", 0, "--losses.waveform", 0, "--validation.corpus", "null")
    run = ("--perceptual.model", listeners[kind], "--max_steps", 60, "--output_dir", tmp_path)
    trainer = make_trainer(recipe_file, *alone, *run)
    losses = []
    for batch in trainer.batches():
        losses.append(trainer.forward_and_backward(batch)["perceptual"].item())
        trainer.update()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
