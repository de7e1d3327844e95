"""Identities: what changes them, what does not, and which models read each other's tokens."""

import json
from pathlib import Path

import pytest
import torch
from support.tiny_models import VARIANTS, make_audio, make_model

from modeling_taae import TaaeFeatureExtractor, TaaeModel
from modeling_taae.codec import load_codec
from modeling_taae.identity import (
    TokenSource,
    ancestors_of,
    encoder_identity,
    list_ancestors,
    model_identity,
    tokens_identity,
    weights_identity,
)
from modeling_taae.taae_file import TaaeFileError

ROOT = Path(__file__).parents[2]
# The identities of each published model and of its ancestors with the same tokens, oldest first.
PUBLISHED = {
    "nano": ("1108e1ea49cb8d3f",),
    "small": ("a9177e7cbf78df12", "a9a732cbe3e4f77a"),
    "nano-causal": ("7c9739c563e5dd83",),
}

# Changes of a configuration that give other tokens or another sound from the same weights.
EDITS = {
    "sampling_rate": 8000,
    "causal": True,
    "sliding_window": (5, 7),
    "norm_eps": 1e-3,
    "qk_norm_eps": 1e-3,
    "rope_theta": 500.0,
    "soft_clip": True,
    "quantization_levels": 9,
}


def with_config(model: TaaeModel, **fields) -> TaaeModel:
    """A model of the same weights and another configuration."""
    other = TaaeModel(type(model.config)(**{**model.config.to_dict(), **fields}))
    other.load_state_dict(model.state_dict())
    return other.eval()


def save(model: TaaeModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    config = model.config
    TaaeFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.hop_length).save_pretrained(folder)
    return folder


def fine_tuned(model: TaaeModel, side: str) -> TaaeModel:
    """A copy with other weights on one side, which lists its ancestors as the trainer has it do."""
    copy = with_config(model)
    list_ancestors(copy)
    with torch.no_grad():
        getattr(copy, side).conv_in.weight.mul_(1.01)
    return copy


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_keep_their_identity(name: str) -> None:
    folder = ROOT / "hub_cards" / f"taae-speech-16k-{name}"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the weights are in a checkout of the project only")
    codec = load_codec(str(folder), device="cpu")
    assert codec.identity == PUBLISHED[name][-1]
    assert codec.file_identity == PUBLISHED[name][0]
    assert codec.ancestors == PUBLISHED[name]
    flipped = with_config(codec.model, causal=not codec.model.config.causal)
    assert not set(PUBLISHED[name]) & set(ancestors_of(flipped))


def test_usual_configurations_have_the_identity_of_their_weights() -> None:
    model = make_model(sliding_window=(63, 64))
    assert model_identity(model) == weights_identity(model.state_dict())


@pytest.mark.parametrize("field", EDITS)
def test_what_changes_tokens_or_sound_changes_the_identity(field: str) -> None:
    model = make_model()
    other = with_config(model, **{field: EDITS[field]})
    assert model_identity(other) != model_identity(model)
    decoder_only = field in ("soft_clip", "quantization_levels")
    assert (encoder_identity(other) == encoder_identity(model)) == decoder_only


@pytest.mark.parametrize(
    "fields", [{"bottleneck": "native"}, {"training_levels": (3,)}, {"sliding_window": (5, 60), "causal": True}]
)
def test_what_changes_neither_does_not(fields: dict) -> None:
    model = make_model(causal=fields.get("causal", False))
    assert model_identity(with_config(model, **fields)) == model_identity(model)


def test_tokens_identity_is_that_of_encoder_loudness_and_grid() -> None:
    model = make_model()
    identity = tokens_identity(model, -20.0, "1x46656_400bps")
    assert identity == tokens_identity(model, -20, [([6] * 6, 1)])
    assert identity == tokens_identity(fine_tuned(model, "decoder"), -20.0, "1x46656_400bps")
    assert identity == tokens_identity(with_config(model, soft_clip=True), -20.0)
    others = [
        tokens_identity(model, None),
        tokens_identity(model, -23.0),
        tokens_identity(model, -20.0, "native"),
        tokens_identity(model, -20.0, "2x15625_700bps"),
        tokens_identity(fine_tuned(model, "encoder"), -20.0),
        tokens_identity(with_config(model, norm_eps=1e-3), -20.0),
    ]
    assert len({identity, *others}) == 1 + len(others)


@pytest.mark.parametrize("variant", ["published strides", "causal"])
def test_a_decoder_tuned_beside_its_encoder_reads_what_its_ancestors_made(tmp_path: Path, variant: str) -> None:
    model = make_model(**VARIANTS[variant])
    base = load_codec(str(save(model, tmp_path / "base")), device="cpu")
    child = load_codec(str(save(fine_tuned(base.model, "decoder"), tmp_path / "child")), device="cpu")
    grandchild = load_codec(str(save(fine_tuned(child.model, "decoder"), tmp_path / "grandchild")), device="cpu")
    speech = make_audio(1, 5000)[0, 0].numpy()

    assert len({base.identity, child.identity, grandchild.identity}) == 3
    files = [codec.encode(speech) for codec in (base, child, grandchild)]
    for codec in (base, child, grandchild):
        for file in files:
            codec.check_identity("clip.taae", file.model_identity)
        assert codec.token_source().agrees_with(TokenSource(base.identity))
        assert codec.token_source().agrees_with(base.token_source())
    # Files from before carry the identity of the model that made them.
    grandchild.check_identity("clip.taae", child.identity)
    with pytest.raises(TaaeFileError, match=r"clip\.taae: was encoded by model"):
        base.check_identity("clip.taae", child.identity)


def test_a_list_of_ancestors_is_void_once_the_encoder_changed(tmp_path: Path) -> None:
    base = make_model()
    child = load_codec(str(save(fine_tuned(base, "encoder"), tmp_path)), device="cpu")
    assert child.file_identity == child.identity
    with pytest.raises(TaaeFileError, match="choose the encoder's"):
        child.check_identity("clip.taae", model_identity(base))
    assert not child.token_source().agrees_with(TokenSource(model_identity(base)))


def test_models_from_before_go_by_their_weights_alone(tmp_path: Path) -> None:
    codec = load_codec(str(save(make_model(norm_eps=1e-3), tmp_path)), device="cpu")
    codec.check_identity("clip.taae", weights_identity(codec.model.state_dict()))


def test_sources_of_tokens_as_json() -> None:
    source = TokenSource("a" * 16, "b" * 16, ("c" * 16, "a" * 16))
    assert TokenSource.from_json(json.loads(json.dumps(source.to_json()))) == source
    old = TokenSource.from_json({"name": "nano", "identity": "c" * 16})
    assert old == TokenSource("c" * 16)
    assert source.agrees_with(old) and old.agrees_with(source)
    assert source.agrees_with(TokenSource("d" * 16, "b" * 16))
    assert not source.agrees_with(TokenSource("d" * 16, "e" * 16))
    assert not TokenSource("d" * 16).agrees_with(TokenSource("e" * 16))
