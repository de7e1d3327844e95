"""The exported listening test: complete, level, hidden, randomised."""

from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import yaml

from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.listening_test import check_codecs, write_listening_test
from modeling_taae.evaluation.results import Sample
from modeling_taae.evaluation.run import REFERENCE
from modeling_taae.feature_extraction_taae import integrated_loudness

RATE = 16_000


def noise(seed: int, gain: float = 0.1) -> np.ndarray:
    return (gain * np.random.default_rng(seed).normal(0, 1, 2 * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mushra") / "my nano"
    clips = {REFERENCE: noise(0), "nano 5,5@1.0/5,5@0.25": noise(1, 0.01), "codec2-700C": noise(2, 0.05)}
    samples = [Sample(f"u{number}", {}, clips) for number in range(2)]
    long_clips = {name: np.tile(clip, 10) for name, clip in clips.items()}
    write_listening_test(folder, [*samples, Sample("long", {}, long_clips)])
    return folder


@pytest.fixture(scope="module")
def pages(folder) -> list:
    return yaml.safe_load((folder / "mushra.yaml").read_text())["pages"]


def file_of(folder: Path, address: str) -> Path:
    """The file that webMUSHRA would load, were the folder in its resources."""
    return folder.parent / unquote(address).removeprefix("configs/resources/")


def test_pages_come_in_order(pages):
    assert [page[0] if isinstance(page, list) else page["type"] for page in pages] == [
        *("generic", "volume", "likert_single_stimulus", "random", "finish")
    ]
    assert "agree" in pages[0]["content"] and pages[-1]["writeResults"]
    # Its code shows a page's content before ratings are sent, and this in a window after that.
    assert "have been sent" in pages[-1]["popupContent"] and "have been sent" not in pages[-1]["content"]


def test_its_parser_reads_the_list_of_trials(folder):
    # yamljs makes a string of a list that begins on the line of another's item.
    assert not [line for line in (folder / "mushra.yaml").read_text().splitlines() if line.lstrip().startswith("- - ")]


def test_every_trial_has_anchor_and_codecs_at_one_loudness(folder, pages):
    trials = pages[3][1:]
    assert len(trials) == 3
    for trial in trials:
        assert trial["randomize"] and set(trial["stimuli"]) == {"anchor35", "nano_5_5_1_0_5_5_0_25", "codec2-700C"}
        clips = [soundfile.read(file_of(folder, path)) for path in [trial["reference"], *trial["stimuli"].values()]]
        assert {rate for _, rate in clips} == {RATE} and len({clip.shape for clip, _ in clips}) == 1
        # One channel would be heard in one ear; over 12 s its check of the standard stops the test.
        assert all(np.array_equal(clip[:, 0], clip[:, 1]) and len(clip) <= 12 * RATE for clip, _ in clips)
        assert np.ptp([integrated_loudness(clip[:, 0], RATE) for clip, _ in clips]) < 0.1


def test_anchor_ends_at_3500_hz(folder):
    anchor = soundfile.read(folder / "trial_00" / "anchor35.wav")[0][:, 0]
    spectrum = np.abs(np.fft.rfft(anchor))
    frequencies = np.fft.rfftfreq(len(anchor), 1 / RATE)
    inside, outside = (
        spectrum[(frequencies > low) & (frequencies < high)] for low, high in ((100, 3200), (3700, 8000))
    )
    assert 20 * np.log10(outside.mean() / inside.mean()) < -60


def test_headphone_check(folder, pages):
    check = pages[2]
    answers = [response["value"] for response in check["response"]]
    # In its code, an answer is possible once an event of this name has come.
    assert check["mustRate"] and check["mustPlayback"] == "ended" and len(check["stimuli"]) == 6
    for name, address in check["stimuli"].items():
        tones, _ = soundfile.read(file_of(folder, address))
        parts = [tones[int(start * RATE) : int((start + 1) * RATE)] for start in (0, 1.5, 3)]
        in_each_ear = [np.sqrt(np.mean(part[:, 0] ** 2)) for part in parts]
        from_loudspeakers = [np.sqrt(np.mean(part.sum(axis=1) ** 2)) for part in parts]
        right, wrong = answers[int(np.argmin(in_each_ear))], answers[int(np.argmin(from_loudspeakers))]
        assert name == f"quietest_{right}_opposite_{wrong}" and right != wrong
        assert 20 * np.log10(min(in_each_ear) / max(in_each_ear)) == pytest.approx(-6, abs=0.1)
        assert min(from_loudspeakers) < 1e-4


def test_more_codecs_than_can_be_compared_are_refused():
    check_codecs(10)
    with pytest.raises(TaaeInputError, match="11 codecs are too many"):
        check_codecs(11)
