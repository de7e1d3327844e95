"""The mean of models: its weights, what is refused, and what it leaves behind."""

from pathlib import Path

import pytest
import torch

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel
from modeling_taae.codec import load_codec
from modeling_taae.identity import encoder_identity
from training import average


@pytest.fixture
def folders(make_tiny_model, tmp_path: Path) -> list[str]:
    for seed in (1, 2):
        make_tiny_model(seed=seed).save_pretrained(tmp_path / str(seed))
        TaaeFeatureExtractor().save_pretrained(tmp_path / str(seed))
    return [str(tmp_path / "1"), str(tmp_path / "2")]


def test_weights_are_the_mean(folders, tmp_path):
    assert average.main([*folders, "-o", str(tmp_path / "mean")]) == 0
    first, second, mean = (load_codec(folder).model.fused_state_dict() for folder in (*folders, str(tmp_path / "mean")))
    assert mean.keys() == first.keys()
    for name, tensor in mean.items():
        assert torch.allclose(tensor, (first[name] + second[name]) / 2, atol=1e-6), name


def test_a_model_is_its_own_mean(folders, tmp_path):
    assert average.main([folders[0], folders[0], "-o", str(tmp_path / "mean")]) == 0
    assert load_codec(str(tmp_path / "mean")).identity == load_codec(folders[0]).identity


def test_another_configuration_is_refused(folders, tmp_path, capsys):
    sizes = {"hidden_sizes": (16, 32), "encoder_depths": (1, 1), "decoder_depths": (1, 1), "head_dim": 16}
    TaaeModel(TaaeConfig(**sizes)).save_pretrained(tmp_path / "other")
    TaaeFeatureExtractor().save_pretrained(tmp_path / "other")
    assert average.main([folders[0], str(tmp_path / "other"), "-o", str(tmp_path / "mean")]) == 2
    assert f"{tmp_path / 'other'}: has other weights than {folders[0]}" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_a_causal_model_and_one_that_is_not_are_refused(folders, tmp_path, capsys):
    settings = TaaeModel.from_pretrained(folders[0]).config.to_dict()
    TaaeModel(TaaeConfig(**{**settings, "causal": True})).save_pretrained(tmp_path / "causal")
    TaaeFeatureExtractor().save_pretrained(tmp_path / "causal")
    assert average.main([folders[0], str(tmp_path / "causal"), "-o", str(tmp_path / "mean")]) == 2
    assert f"{tmp_path / 'causal'}: has causal True, not False" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_a_mean_with_other_decoders_reads_the_tokens_of_the_first_model(folders, tmp_path):
    model = TaaeModel.from_pretrained(folders[0])
    sources = [folders[0]]
    for name, factor in (("louder", 1.1), ("quieter", 0.7)):
        with torch.no_grad():
            model.decoder.conv_out.weight.mul_(factor)
        model.save_pretrained(tmp_path / name)
        TaaeFeatureExtractor().save_pretrained(tmp_path / name)
        sources.append(str(tmp_path / name))
    assert average.main([*sources, "-o", str(tmp_path / "mean")]) == 0
    first, mean = load_codec(folders[0]), load_codec(str(tmp_path / "mean"))
    assert encoder_identity(mean.model) == encoder_identity(first.model)
    assert first.identity in mean.ancestors and mean.identity != first.identity


def test_a_missing_model_is_told(folders, tmp_path, capsys):
    assert average.main([folders[0], str(tmp_path / "nowhere"), "-o", str(tmp_path / "mean")]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and error.startswith("average.py: error:") and not (tmp_path / "mean").exists()
