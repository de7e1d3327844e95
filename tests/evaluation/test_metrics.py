"""Each metric against a case whose answer is known, and where it is not defined."""

import math

import numpy as np
import pytest

from modeling_taae.evaluation.metrics import (
    ALL_METRICS,
    METRICS,
    dnsmos,
    dnsmos_p808,
    mel_distance,
    score,
    si_sdr,
    stft_distance,
)

RATE = 16_000


def noise(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


class TestSiSdr:
    @pytest.mark.parametrize("ratio", [-10.0, 0.0, 20.0])
    def test_orthogonal_noise_has_the_ratio_of_powers(self, ratio):
        reference, error = noise(), noise(seed=1)
        reference, error = reference - reference.mean(), error - error.mean()
        error -= reference * (error @ reference) / (reference @ reference)
        error *= np.linalg.norm(reference) / np.linalg.norm(error) * 10 ** (-ratio / 20)
        assert si_sdr(reference, reference + error) == pytest.approx(ratio, abs=0.01)

    def test_level_and_offset_do_not_count(self):
        reference, decoded = noise(), noise() + noise(seed=1)
        assert si_sdr(reference, 0.3 * decoded + 0.1) == pytest.approx(si_sdr(reference, decoded), abs=1e-3)

    def test_silence_is_not_defined(self):
        assert math.isnan(si_sdr(np.zeros(RATE, np.float32), noise()))


@pytest.mark.parametrize("distance", [mel_distance, stft_distance])
class TestSpectralDistances:
    def test_same_is_zero(self, distance):
        assert distance(noise(), noise()) == 0

    def test_a_gain_of_two(self, distance):
        # Convergence |2x - x| / |x| = 1, and every log magnitude is off by log 2.
        assert distance(noise(), 2 * noise()) == pytest.approx(1 + math.log(2), abs=1e-3)

    def test_shorter_than_a_window(self, distance):
        assert math.isfinite(distance(noise(0.01), noise(0.01, seed=1)))


def test_perfect_copy_has_the_best_scores(speech):
    scores = score(speech[0], speech[0].copy())
    assert scores["pesq_wb"] == pytest.approx(4.64, abs=0.01)
    assert scores["pesq_nb"] == pytest.approx(4.55, abs=0.01)
    assert scores["stoi"] == pytest.approx(1, abs=1e-6)


def test_more_noise_is_worse(speech):
    clip = speech[0]
    mild, strong = (clip + gain * noise(len(clip) / RATE)[: len(clip)] for gain in (0.02, 0.2))
    for name, metric in METRICS.items():
        sign = 1 if metric.better == "higher" else -1
        assert sign * metric.function(clip, mild) > sign * metric.function(clip, strong), name


def test_undefined_is_nan():
    silence, clip = np.zeros(RATE, np.float32), noise()
    assert math.isnan(score(silence, clip, ["pesq_wb"])["pesq_wb"])
    short = score(noise(0.1), noise(0.1, seed=1), ["pesq_wb", "pesq_nb", "stoi"])
    assert all(map(math.isnan, short.values()))


def test_a_codec_that_gives_silence_has_no_score(speech):
    long = np.resize(speech[0], 25 * RATE)
    half = np.concatenate([long[: len(long) // 2], np.zeros(len(long) - len(long) // 2, np.float32)])
    scores = score(long, np.zeros_like(long), ["pesq_wb", "pesq_nb", "si_sdr", "stft_distance"])
    assert [name for name, value in scores.items() if math.isnan(value)] == ["pesq_wb", "pesq_nb", "si_sdr"]
    # Of the two parts that are scored, the one without sound does not count.
    assert score(long, half, ["pesq_wb"])["pesq_wb"] == pytest.approx(4.64, abs=0.01)


@pytest.mark.slow
def test_dnsmos_prefers_speech_to_noise(speech):
    pytest.importorskip("speechmos", reason="DNSMOS needs the extra `eval`")
    names = [name for name in ALL_METRICS if name.startswith("dnsmos")]
    clean = score(speech[0], speech[0], names)
    noisy = score(noise(), noise(), names)
    assert list(clean) == names
    assert 1 <= noisy["dnsmos_ovrl"] < clean["dnsmos_ovrl"] <= 5


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 9.01, 10.02, 13.0, 25.0])
def test_dnsmos_p808_alone_is_what_it_is_among_all(seconds):
    pytest.importorskip("speechmos", reason="DNSMOS needs the extra `eval`")
    assert dnsmos_p808(noise(seconds))["dnsmos_p808"] == dnsmos(noise(seconds))["dnsmos_p808"]


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="equal length"):
        score(noise(1.0), noise(0.9))
    with pytest.raises(ValueError, match="no metric named 'beauty'"):
        score(noise(), noise(), ["beauty"])


def test_every_metric_says_what_it_is():
    for metric in ALL_METRICS.values():
        assert metric.label and metric.better in ("higher", "lower") and len(metric.definition) > 20
