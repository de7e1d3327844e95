"""The HTML report: complete, self-contained, and playable in a real browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from modeling_taae import cli
from modeling_taae.data.utterances import Utterance
from modeling_taae.evaluation.run import SampleCollector

RATE = 16_000
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

# Written into a copy of the page, to tell what the browser makes of it.
PROBE = """<script>
addEventListener("error", event => document.body.dataset.error = event.message);
const players = [...document.querySelectorAll("audio")];
Promise.all(players.map(player => new Promise(done => {
  if (player.readyState > 0) done(player.duration);
  player.onloadedmetadata = () => done(player.duration);
  player.onerror = () => done(-1);
}))).then(durations => document.body.dataset.durations = durations.map(seconds => seconds.toFixed(2)).join(" "));
const pictures = [...document.images].filter(image => image.naturalWidth > 0).length;
document.body.dataset.pictures = pictures;
</script></body>"""


@pytest.fixture(scope="module")
def page(tiny_model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    (folder / "speech").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).normal(0, 0.1, RATE)
        soundfile.write(folder / "speech" / f"<{number}>.wav", noise, RATE)
    (folder / "speech" / "bad&broken.wav").write_bytes(b"no audio")
    command = ["evaluate", str(folder / "speech"), "--model", str(tiny_model_folder), "-o", str(folder / "results")]
    command += ["--metrics", "stoi", "mel_distance", "--peers", "pcm16", "--bottleneck", "native", "4x729_1000bps"]
    command += ["--mushra", str(folder / "listening")]
    assert cli.main([*command, "--samples", "2", "--workers", "1", "--no-speed"]) == 0
    return folder / "results" / "report.html"


class Checker(HTMLParser):
    """Counts elements and sees that each one that is opened is closed."""

    void = {"meta", "img", "circle", "path"}

    def __init__(self):
        super().__init__()
        self.open, self.counts, self.sources, self.text = [], {}, [], ""

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_complete_and_fetches_nothing(page):
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    assert checker.open == []
    # Two utterances, each as reference and through three codecs.
    assert checker.counts["audio"] == checker.counts["img"] == 8
    assert checker.counts["svg"] == 2 and checker.counts["table"] >= 3
    assert len(checker.sources) == 16 and all(source.startswith("data:") for source in checker.sources)
    for text in ("<0>.wav", "bad&broken.wav", "STOI", "4x729_1000bps", "percentile bootstrap"):
        assert text in checker.text


def test_listening_test_has_the_same_utterances(page):
    trials = sorted((page.parents[1] / "listening").glob("trial_*"))
    assert [len(list(trial.glob("*.wav"))) for trial in trials] == [5, 5]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.browser
def test_page_in_a_browser(page, tmp_path):
    probed = tmp_path / "page.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", probed.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    body = re.search(r"<body[^>]*>", result.stdout).group()
    assert 'data-durations="' + " ".join(["1.00"] * 8) + '"' in body
    assert 'data-pictures="8"' in body and "data-error" not in body


def test_samples_are_of_many_kinds():
    facts = [{"source": "a" if n < 3 else "b", "language": "en"} for n in range(6)]

    def heard(count: int) -> list[str]:
        collector = SampleCollector(count)
        for number, each in enumerate(facts):
            collector.offer(Utterance(f"{number}", np.zeros(1, np.float32), facts=each), np.zeros(1, np.float32))
        return [sample.id for sample in collector.samples()]

    assert heard(4) == ["0", "3", "1", "4"]
    assert heard(99) == ["0", "3", "1", "4", "2", "5"]
    assert heard(0) == []
