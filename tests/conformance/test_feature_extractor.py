"""The tests that every sequence feature extractor of Transformers passes, on ours."""

import unittest

import numpy as np
from upstream_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

from modeling_taae import TaaeFeatureExtractor


class TaaeFeatureExtractionTester:
    """Settings and made-up inputs, under the names that the common tests ask for."""

    batch_size = 7
    min_seq_length = 400
    max_seq_length = 1000
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)
    feature_size = 1

    def prepare_feat_extract_dict(self) -> dict:
        return {"feature_size": self.feature_size, "padding_value": 0.0, "sampling_rate": 16_000}

    def prepare_inputs_for_common(self, equal_length: bool = False, numpify: bool = False) -> list:
        random = np.random.default_rng(0)
        lengths = [self.min_seq_length + index * self.seq_length_diff for index in range(self.batch_size)]
        if equal_length:
            lengths = [self.max_seq_length] * self.batch_size
        signals = [random.uniform(-1, 1, length) for length in lengths]
        return signals if numpify else [signal.tolist() for signal in signals]


class TaaeFeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = TaaeFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = TaaeFeatureExtractionTester()
