"""Tiny models with random parameters throughout, one for each way to configure the network."""

import torch

from modeling_taae import TaaeConfig, TaaeModel

TINY = {
    "patch_size": 8,
    "hidden_sizes": (16, 32),
    "strides": (2, 2),
    "encoder_depths": (1, 1),
    "decoder_depths": (1, 1),
    "head_dim": 8,
    "sliding_window": (5, 6),
    "layer_scale_initial_scale": 0.5,
}

# Of networks that listen: Wav2Vec2, HuBERT and WavLM.
TINY_WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_stride": (20, 16),
    "conv_kernel": (20, 16),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}

VARIANTS = {
    "plain": {},
    "published strides": {"hidden_sizes": (16, 16), "strides": (1, 2)},
    "odd strides": {"strides": (3, 5)},
    "three blocks": {
        "hidden_sizes": (8, 8, 24),
        "strides": (2, 1, 3),
        "encoder_depths": (0, 1, 2),
        "decoder_depths": (2, 0, 1),
    },
    "snake": {"use_snake": True},
    "dilated": {"use_dilated_conv": True},
    "conformer": {"use_conformer": True},
    "soft clip": {"soft_clip": True},
    "no layer scale": {"layer_scale_initial_scale": None},
    "everything": {
        "strides": (3, 2),
        "use_snake": True,
        "use_dilated_conv": True,
        "use_conformer": True,
        "soft_clip": True,
        "layer_scale_initial_scale": None,
    },
    "causal": {"causal": True},
    "causal, odd strides": {"causal": True, "strides": (3, 5)},
    "causal, everything": {
        "causal": True,
        "strides": (3, 2),
        "use_snake": True,
        "use_dilated_conv": True,
        "use_conformer": True,
        "soft_clip": True,
    },
}


# Standard deviations of weights that would make a random network loud, or ill-conditioned, were they larger.
SMALL = {"residual_units": 0.3, "decoder.conv_out": 0.1}


def make_model(seed: int = 0, **options) -> TaaeModel:
    """A model in evaluation mode in which no parameter has a value that would hide it, such as zero or one."""
    model = TaaeModel(TaaeConfig(**{**TINY, **options}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                scale = next((scale for part, scale in SMALL.items() if part in name), 1.0)
                parameter.copy_(scale * noise / parameter[0].numel() ** 0.5)
            elif name.endswith("norm.weight"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_((0.5 if name.endswith(".scale") else 0) + 0.1 * noise)
    return model.eval()


def make_audio(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    """Noise, (batch, 1, samples)."""
    return 0.5 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))
