"""The feature extractor: loudness, padding and masks, and what it refuses."""

import builtins

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.feature_extraction_taae import integrated_loudness, normalize_loudness

RATE = 16_000


def noise(samples: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * level).astype(np.float32)


def gained(audio: np.ndarray, target: float = -20.0) -> float:
    """The gain that normalisation applied, measured."""
    normalised = normalize_loudness(audio, RATE, target)
    return float(np.linalg.norm(normalised.astype(np.float64)) / np.linalg.norm(audio.astype(np.float64)))


@pytest.fixture(scope="module")
def extractor() -> TaaeFeatureExtractor:
    return TaaeFeatureExtractor()


@pytest.fixture(scope="module")
def plain() -> TaaeFeatureExtractor:
    return TaaeFeatureExtractor(target_loudness=None)


class TestLoudness:
    def test_full_scale_sine_has_the_loudness_of_the_standard(self):
        # ITU-R BS.1770: 997 Hz at full scale in one channel reads -3.01 LKFS; a meter may be off by 0.1.
        sine = np.sin(2 * np.pi * 997 * np.arange(4 * 48_000) / 48_000)
        assert integrated_loudness(sine, 48_000) == pytest.approx(-3.01, abs=0.1)

    @pytest.mark.parametrize("target", [-25.0, -20.0, -15.0])
    @pytest.mark.parametrize("level", [0.005, 0.05, 0.2])
    def test_reaches_the_target(self, target, level):
        audio = noise(2 * RATE, level) * 0.5
        normalised = normalize_loudness(audio, RATE, target)
        assert integrated_loudness(normalised, RATE) == pytest.approx(target, abs=0.01)
        assert normalised.dtype == audio.dtype

    def test_speech_reaches_the_target_or_the_limit(self, speech):
        for clip in speech:
            normalised = normalize_loudness(clip, RATE, -20.0)
            limited = np.max(np.abs(normalised)) == pytest.approx(0.95, abs=1e-3)
            assert limited or integrated_loudness(normalised, RATE) == pytest.approx(-20, abs=0.01)

    def test_gating_ignores_pauses(self):
        talk = noise(2 * RATE)
        with_pause = np.concatenate([talk, np.zeros(6 * RATE, np.float32)])
        assert integrated_loudness(with_pause, RATE) == pytest.approx(integrated_loudness(talk, RATE), abs=0.5)

    @pytest.mark.parametrize("peak", [0.9999, 1.0, 3.0])
    def test_peak_that_would_reach_full_scale_becomes_095(self, peak):
        audio = noise(RATE, 0.001)
        audio[100] = peak
        normalised = normalize_loudness(audio, RATE, -5.0)
        assert np.max(np.abs(normalised)) == pytest.approx(0.95, abs=1e-6)

    def test_short_clips_stay_as_they_are(self):
        assert integrated_loudness(noise(6399), RATE) is None
        assert integrated_loudness(noise(6400), RATE) is not None
        assert gained(noise(6399)) == 1

    @pytest.mark.parametrize("level", [0.0, 1e-8, 0.00099])
    def test_near_silence_stays_as_it_is(self, level):
        audio = np.full(RATE, level, np.float32) * np.where(np.arange(RATE) % 2, 1, -1).astype(np.float32)
        assert np.array_equal(normalize_loudness(audio, RATE, -20.0), audio)

    def test_offset_that_no_gate_lets_through_stays_as_it_is(self):
        slow = (0.002 * np.sin(2 * np.pi * np.arange(4 * RATE) / RATE)).astype(np.float32)
        assert np.mean(slow**2) > 1e-6
        assert integrated_loudness(slow, RATE) is None
        assert np.array_equal(normalize_loudness(slow, RATE, -20.0), slow)

    def test_only_the_extractors_target_counts(self, extractor, plain):
        audio = noise(RATE)
        assert np.array_equal(plain(audio, sampling_rate=RATE).input_values[0, 0, :RATE], audio)
        louder = TaaeFeatureExtractor(target_loudness=-10.0)(audio, sampling_rate=RATE).input_values
        quieter = extractor(audio, sampling_rate=RATE).input_values
        assert louder.abs().sum() / quieter.abs().sum() == pytest.approx(10 ** (10 / 20), rel=1e-4)

    def test_each_clip_of_a_batch_as_alone(self, extractor):
        clips = [noise(9000, 0.01), noise(20_000, 0.3, seed=1), noise(100)]
        batch = extractor(clips, sampling_rate=RATE).input_values
        for clip, row in zip(clips, batch, strict=True):
            alone = extractor(clip, sampling_rate=RATE).input_values[0, 0, : len(clip)]
            assert torch.equal(alone, row[0, : len(clip)])

    def test_missing_pyloudnorm_is_said(self, extractor, plain, monkeypatch):
        real_import = builtins.__import__

        def without_pyloudnorm(name, *args, **kwargs):
            if name == "pyloudnorm":
                raise ImportError(name)
            return real_import(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_pyloudnorm)
        with pytest.raises(ImportError, match="pip install pyloudnorm"):
            extractor(noise(RATE), sampling_rate=RATE)
        assert plain(noise(RATE), sampling_rate=RATE).input_values.shape == (1, 1, RATE)


class TestShapes:
    @pytest.mark.parametrize("samples", [1, 639, 640, 641, 16_000])
    def test_pads_to_whole_frames(self, plain, samples):
        inputs = plain(np.ones(samples, np.float32), sampling_rate=RATE)
        padded = -(-samples // 640) * 640
        assert inputs["input_values"].shape == (1, 1, padded) and inputs["input_values"].dtype == torch.float32
        assert inputs["padding_mask"].shape == (1, padded)
        assert inputs["padding_mask"].sum() == inputs["input_values"].sum() == samples
        assert inputs["padding_mask"][0, :samples].all()

    def test_pads_a_batch_to_its_longest(self, plain):
        inputs = plain([np.ones(700), np.ones(10)], sampling_rate=RATE)
        assert inputs["input_values"].shape == (2, 1, 1280)
        assert inputs["padding_mask"].sum(dim=1).tolist() == [700, 10]
        assert torch.equal(inputs["input_values"][:, 0] == 1, inputs["padding_mask"] == 1)

    def test_max_length_and_truncation(self, plain):
        long, short = np.ones(2000), np.ones(10)
        padded = plain([short], sampling_rate=RATE, padding="max_length", max_length=1000)
        assert padded["padding_mask"].shape == (1, 1280)
        cut = plain([long, short], sampling_rate=RATE, max_length=1280, truncation=True)
        assert cut["padding_mask"].sum(dim=1).tolist() == [1280, 10]

    def test_numpy(self, plain):
        inputs = plain(np.ones(10), sampling_rate=RATE, return_tensors="np")
        assert isinstance(inputs["input_values"], np.ndarray) and inputs["input_values"].shape == (1, 1, 640)

    @pytest.mark.parametrize(
        "convert",
        [
            list,
            tuple,
            torch.from_numpy,
            lambda audio: torch.from_numpy(audio).to(torch.bfloat16),
            lambda audio: torch.from_numpy(audio).requires_grad_(),
            lambda audio: audio.astype(np.float64),
            lambda audio: audio.astype(np.float16),
            lambda audio: (audio * 2**15).astype(np.int16),
            lambda audio: torch.from_numpy((audio * 2**15).astype(np.int16)),
            lambda audio: (audio.astype(np.float64) * 2**31).astype(np.int32),
            lambda audio: audio[::-1][::-1],
        ],
    )
    def test_takes_every_kind_of_clip(self, plain, convert):
        audio = np.array([0.5, -0.25, 0.0, -1.0], np.float32)
        for inputs in (plain(convert(audio), sampling_rate=RATE), plain([convert(audio)], sampling_rate=RATE)):
            assert inputs["input_values"][0, 0, :4].tolist() == audio.tolist()

    def test_does_not_touch_the_callers_array(self, extractor):
        audio = noise(RATE)
        before = audio.copy()
        extractor(audio, sampling_rate=RATE)
        assert np.array_equal(audio, before)


class TestRefusals:
    @pytest.mark.parametrize(
        ("audio", "message"),
        [
            ([], "list of audio is empty"),
            (np.zeros(0), "The audio is empty"),
            ([np.zeros(10), np.zeros(0)], "Clip 1 of the list is empty"),
            (np.zeros((2, 100)), "list of 1-D arrays"),
            ([np.zeros((1, 100))], r"Clip 0 of the list has shape \(1, 100\)"),
            (np.float32(1), r"shape \(\)"),
            (np.array([0.0, np.nan]), "NaN"),
            ([np.zeros(3), np.array([0.0, np.inf])], "Clip 1 of the list contains NaN or infinite"),
            (np.array([1e300]), "infinite"),
            (np.zeros(10, np.uint8), "uint8"),
            ([0, 1, 2], "int64"),
            (np.zeros(10, complex), "complex128"),
            ([[0.1, 0.2], [[0.1], 0.2]], "Clip 1 of the list is not a plain sequence"),
        ],
    )
    def test_bad_audio(self, extractor, audio, message):
        with pytest.raises(ValueError, match=message):
            extractor(audio, sampling_rate=RATE)

    @pytest.mark.parametrize("padding", [{"padding": False}, {"padding": "max_length", "max_length": 640}])
    def test_clips_of_unequal_length_make_no_batch(self, extractor, padding):
        with pytest.raises(ValueError, match="from 640 to 1000 samples.*padding=True"):
            extractor([noise(640), noise(1000)], sampling_rate=RATE, **padding)

    def test_wrong_rate_says_both_rates(self, extractor):
        with pytest.raises(ValueError, match=r"48000 Hz.*16000 Hz.*resample"):
            extractor(noise(100), sampling_rate=48_000)

    def test_missing_rate_warns(self, extractor, monkeypatch):
        warnings = []
        monkeypatch.setattr("modeling_taae.feature_extraction_taae.logger.warning", warnings.append)
        extractor(noise(100))
        assert len(warnings) == 1 and "sampling_rate" in warnings[0]


@pytest.mark.parametrize("target", [-20.0, -16.5, None])
def test_config_survives_saving(tmp_path, target):
    TaaeFeatureExtractor(target_loudness=target, hop_length=320).save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is TaaeFeatureExtractor
    assert (loaded.target_loudness, loaded.hop_length) == (target, 320)
    assert AutoFeatureExtractor.from_pretrained(tmp_path, target_loudness=-30.0).target_loudness == -30.0
