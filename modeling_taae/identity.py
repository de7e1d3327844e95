"""Identities of models and of their tokens, to tell which tokens a model can decode.

- The *model identity* covers all weights, and the configuration as far as it changes tokens or sound.
- The *token identity* covers everything that tokens depend on: the encoder, the loudness of its input, and the
  bottleneck's grid. Fine-tuning only the decoder changes the model identity but not the token identity.
- Older files hold only a model identity. A fine-tuned model therefore lists the models it descends from, with the
  identity of their encoder. [`ancestors_of`] uses the list only if the model still has that encoder.

All are the first 16 hexadecimal digits of a SHA-256.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from .configuration_taae import TaaeConfig

if TYPE_CHECKING:
    from torch import Tensor

    from .modeling_taae import TaaeModel

DIGITS = 16
# Fields of the configuration that names and shapes of weights do not show. ENCODER_FIELDS change tokens.
ENCODER_FIELDS = ("sampling_rate", "causal", "sliding_window", "norm_eps", "qk_norm_eps", "rope_theta")
FIELDS = (*ENCODER_FIELDS, "quantization_levels", "soft_clip")
# Models published here: the identity of their weights, which is the model's too, and whether they are causal. Some are
# older than the configuration's part in the identity; the other fields of all have the default values.
PUBLISHED_CAUSAL = {
    "1108e1ea49cb8d3f": False,
    "aaf4996f312a3b4d": False,
    "a9177e7cbf78df12": False,
    "a9a732cbe3e4f77a": False,
    "7c9739c563e5dd83": True,
}
ENCODER = "encoder."


def weights_identity(tensors: "Mapping[str, Tensor]") -> str:
    """Returns the identity of tensors: their names, shapes and float32 values, sorted by name."""
    return _digest(tensors).hexdigest()[:DIGITS]


def model_identity(model: "TaaeModel") -> str:
    """Returns the identity of a model; models that give other tokens or another sound have another one.

    The precision in which equal values are stored makes no difference, nor does weight norm, split or fused. Only
    configuration fields that differ from their defaults count, so a model with the defaults has its weights' identity.

    Args:
        model: a model on any device, with its weights loaded.
    """
    return _identities(model)[1]


def encoder_identity(model: "TaaeModel") -> str:
    """Returns the identity of a model's encoder: its weights, and the configuration as far as it changes latents."""
    tensors = {name: tensor for name, tensor in model.fused_state_dict().items() if name.startswith(ENCODER)}
    digest = _digest(tensors)
    digest.update(_unusual(model.config, ENCODER_FIELDS))
    return digest.hexdigest()[:DIGITS]


def tokens_identity(
    model: "TaaeModel", target_loudness: float | None, bottleneck: str | list | tuple | None = None
) -> str:
    """Returns the identity of the tokens that a model makes.

    Args:
        model: the model; its decoder does not count.
        target_loudness: the loudness to which the feature extractor normalises clips, in LUFS, or None.
        bottleneck: the bottleneck, as for `TaaeModel.encode`; its stages count, not its name.

    Raises:
        ValueError: if the model has no such bottleneck.
    """
    quantizer = model.bottleneck(bottleneck)
    grid = "/".join(f"{stage.levels}@{float(stage.scale)}" for stage in quantizer.stages)
    loudness = None if target_loudness is None else float(target_loudness)
    text = f"{encoder_identity(model)}\n{loudness}\n{grid}\n"
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def listed_ancestors(model: "TaaeModel") -> tuple[str, ...]:
    """Returns the identities of the ancestors with the same tokens that a model's configuration lists."""
    listed = model.config.token_ancestors
    return tuple(listed["models"]) if listed and listed["encoder"] == encoder_identity(model) else ()


def ancestors_of(model: "TaaeModel") -> tuple[str, ...]:
    """Returns the identities of the models whose tokens a model shares, oldest first; the last one is its own.

    The identity of the weights is among them, because formerly it was the model's identity; a published model's is left
    out, because it belongs to a known configuration.
    """
    weights, own = _identities(model)
    before = () if weights in PUBLISHED_CAUSAL else (weights,)
    return tuple(dict.fromkeys((*listed_ancestors(model), *before, own)))


def list_ancestors(model: "TaaeModel") -> None:
    """Writes into a model's configuration, before it is fine-tuned, which models share its tokens.

    Training need not know whether the encoder will change: if it does, the list is ignored.
    """
    model.config.token_ancestors = {"encoder": encoder_identity(model), "models": list(ancestors_of(model))}


@dataclass(frozen=True)
class TokenSource:
    """The origin of tokens.

    Args:
        identity: the model's identity.
        token_identity: the identity of the tokens; None for tokens made before it existed.
        ancestors: the identities of the models with the same tokens, oldest first, as [`ancestors_of`] returns them.
    """

    identity: str
    token_identity: str | None = None
    ancestors: tuple[str, ...] = ()

    def agrees_with(self, other: "TokenSource") -> bool:
        """Returns whether tokens of both mean the same: they share the token identity, or a model."""
        if self.token_identity is not None and self.token_identity == other.token_identity:
            return True
        return not {self.identity, *self.ancestors}.isdisjoint({other.identity, *other.ancestors})

    def to_json(self) -> dict[str, Any]:
        """Returns the dictionary that [`~TokenSource.from_json`] reads."""
        return {"identity": self.identity, "token_identity": self.token_identity, "ancestors": list(self.ancestors)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TokenSource":
        """Reads a source from a dictionary, which may hold other keys; old ones lack the newer keys."""
        return cls(content["identity"], content.get("token_identity"), tuple(content.get("ancestors") or ()))


def _digest(tensors: "Mapping[str, Tensor]") -> "hashlib._Hash":
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        # A quantised tensor of torchao counts by the values that it stands for.
        is_quantized = type(tensor.data).__name__ != "Tensor"
        plain = tensor.detach().dequantize() if is_quantized else tensor.detach()
        values = plain.cpu().float().contiguous().numpy()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.astype("<f4", copy=False).data)
    return digest


def _identities(model: "TaaeModel") -> tuple[str, str]:
    """Returns the identity of a model's weights and its own."""
    digest = _digest(model.fused_state_dict())
    weights = digest.hexdigest()[:DIGITS]
    digest.update(_unusual(model.config, FIELDS, PUBLISHED_CAUSAL.get(weights, False)))
    return weights, digest.hexdigest()[:DIGITS]


def _unusual(config: TaaeConfig, names: tuple[str, ...], usually_causal: bool = False) -> bytes:
    """Returns the fields whose values are not the default ones, a line each."""
    usual = TaaeConfig(latent_dim=config.latent_dim, causal=usually_causal)
    values = {name: getattr(config, name) for name in names}
    if config.causal:  # the window's right half is ignored
        window, usual_window = (cast(tuple[int, int], each.sliding_window) for each in (config, usual))
        values["sliding_window"] = (window[0], usual_window[1])
    lines = [f"{name} {value}\n" for name, value in values.items() if value != getattr(usual, name)]
    return "".join(lines).encode()
