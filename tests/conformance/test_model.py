"""The tests that every configuration and model of Transformers passes, on ours."""

import unittest

import torch
from skipping import skip_tests
from upstream_tests.test_configuration_common import ConfigTester
from upstream_tests.test_modeling_common import ModelTesterMixin

from modeling_taae import TaaeConfig, TaaeModel

# A whole codec in a few thousand parameters. Lists, not tuples: that is what a configuration file gives back. The
# window is shorter than the inputs and the layer scale is large, so that what happens in attention shows in the audio.
# The grid is fine, so that a digit which half precision rounds the other way moves the audio a little, not by a fifth
# of its range.
TINY = {
    "patch_size": 4,
    "hidden_sizes": [16, 24],
    "strides": [1, 2],
    "encoder_depths": [1, 2],
    "decoder_depths": [1, 2],
    "head_dim": 8,
    "sliding_window": [3, 4],
    "layer_scale_initial_scale": 0.5,
    "quantization_levels": [257] * 6,
    "bottleneck": "native",
}
OPTIONAL_PARTS = {
    "causal": True,
    "use_snake": True,
    "use_dilated_conv": True,
    "use_conformer": True,
    "soft_clip": True,
}

NOT_APPLICABLE = {
    "test_model_get_set_embeddings": "audio goes in, not token ids: there is no embedding table",
    "test_attention_outputs": "attention weights are not among the outputs: the window is never held as a whole matrix",
    "test_hidden_states_output": "hidden states are not among the outputs: rate and width change from block to block",
    "test_retain_grad_hidden_states_attentions": "neither hidden states nor attention weights are among the outputs",
}


class TaaeModelTester:
    """A configuration and made-up inputs, under the names that the common tests ask for."""

    batch_size = 3
    frames = 12
    is_training = False  # the common training tests want a loss from the model; ours is computed by the trainer

    def __init__(self, settings: dict):
        self.settings = settings

    def get_config(self) -> TaaeConfig:
        return TaaeConfig(**self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[TaaeConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        samples = self.frames * config.hop_length
        lengths = torch.tensor([samples // 2 + 1, samples, 1])  # the middle of a frame, everything, one sample
        padding_mask = (torch.arange(samples) < lengths[:, None]).long()
        noise = torch.rand(self.batch_size, 1, samples, generator=torch.Generator().manual_seed(0))
        input_values = (2 * noise - 1) * padding_mask[:, None]
        return config, {"input_values": input_values, "padding_mask": padding_mask}


@skip_tests(NOT_APPLICABLE)
class TaaeModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (TaaeModel,)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True  # upstream looks for a model's year in a copyright line
    settings = TINY

    def setUp(self):
        self.model_tester = TaaeModelTester(self.settings)
        self.config_tester = ConfigTester(
            self, config_class=TaaeConfig, common_properties=[], has_text_modality=False, **self.settings
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class TaaeModelWithOptionalPartsTest(TaaeModelTest):
    settings = TINY | OPTIONAL_PARTS
