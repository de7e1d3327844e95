"""The Space in a real browser, as a visitor uses it, and what it needs to run on the Hub."""

import base64
import configparser
import importlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import yaml
from packaging.requirements import Requirement
from support.browsers import chromium, fits, visitor

from modeling_taae.audio_io import read_audio, to_pcm16
from modeling_taae.codec import load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.taae_file import TaaeFile

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "hub_cards" / "space"
SECONDS = 2.5
PLAYERS = 3 if shutil.which("c2enc") and shutil.which("c2dec") else 2

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not SPACE.is_dir(), reason="the Space is in a checkout of the project only"),
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """A folder with a chirp in noise, and with what cannot be used."""
    folder = tmp_path_factory.mktemp("recordings")
    time_axis = np.arange(int(SECONDS * 44_100)) / 44_100
    chirp = 0.3 * np.sin(2 * np.pi * (200 + 400 * time_axis) * time_axis)
    chirp += np.random.default_rng(0).normal(0, 0.01, len(chirp))
    soundfile.write(folder / "speech.flac", np.stack([chirp, chirp], axis=1), 44_100)
    soundfile.write(folder / "microphone.wav", chirp, 44_100)
    soundfile.write(folder / "silent.wav", np.zeros(32_000), 16_000)
    soundfile.write(folder / "short.wav", chirp[:4_000], 16_000)
    soundfile.write(folder / "long.wav", np.resize(chirp, 61 * 16_000), 16_000)
    (folder / "words.wav").write_text("These are words, not sounds.")
    return folder


@pytest.fixture(scope="module")
def model(tiny_model_folder, recordings, tmp_path_factory) -> Path:
    """The tiny model, with a sample."""
    folder = tmp_path_factory.mktemp("space") / "tiny"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "samples").mkdir()
    shutil.copy(recordings / "speech.flac", folder / "samples" / "english-woman-original.flac")
    return folder


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """The page's address, as long as the tests of this file run."""
    pytest.importorskip("gradio", reason="the Space needs the package gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    environment = os.environ | {
        "TAAE_MODEL": str(model),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(log.parent),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with open(log, "w") as output:
        server = subprocess.Popen([sys.executable, SPACE / "app.py"], stdout=output, stderr=output, env=environment)
    try:
        while f"127.0.0.1:{port}" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser(recordings):
    microphone = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    with chromium(*microphone, f"--use-file-for-fake-audio-capture={recordings / 'microphone.wav'}") as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    """The page, just opened."""
    with visitor(browser) as page:
        page.goto(url)
        yield page


def uploaded(page):
    """Waits, as a context, until the page has a recording: it fetches what the server has got, to play it."""
    return page.expect_response(lambda response: "/file=" in response.url)


def upload(page, file: Path) -> None:
    with uploaded(page), page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a recording").click()
        chooser.value.set_files(file)


def encode_and_decode(page) -> tuple[TaaeFile, list[np.ndarray]]:
    """Presses the button; returns the file that the page offers, and the clips in its players as 16-bit samples."""
    page.get_by_role("button", name="Encode and decode").click()
    link = page.get_by_role("link", name="Save the file").get_attribute("href")
    page.locator("a[download]").nth(PLAYERS).wait_for(state="attached")
    sounds = [page.locator("a[download]").nth(n).get_attribute("href") for n in range(PLAYERS)]
    clips = [soundfile.read(io.BytesIO(page.request.get(sound).body()), dtype="int16") for sound in sounds]
    assert {rate for _, rate in clips} == {16_000}
    return TaaeFile.from_bytes(base64.b64decode(link.partition(",")[2])), [clip for clip, _ in clips]


def test_an_upload_is_encoded_and_decoded(page, recordings, model):
    upload(page, recordings / "speech.flac")
    page.get_by_label("951 bit/s").check()
    file, (original, decoded, *others) = encode_and_decode(page)
    codec = load_codec(str(model), device="cpu")
    expected = codec.encode(read_audio(recordings / "speech.flac"), "4x729_1000bps")
    assert file.to_bytes() == expected.to_bytes()
    assert len(original) == len(decoded) == SECONDS * 16_000
    assert np.abs(decoded - to_pcm16(codec.decode(expected)).astype(int)).max() <= 1
    assert all(len(other) == len(original) for other in others)
    assert f"{SECONDS:.2f} seconds of speech in {len(expected.to_bytes())} bytes" in page.inner_text("#summary")
    assert page.locator("img:visible").evaluate_all("all => all.every(image => image.naturalWidth > 0)")
    assert fits(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    assert fits(page)


def test_the_example_is_encoded_and_decoded(page):
    with uploaded(page):
        page.get_by_role("button", name="A woman, in English").click()
    page.get_by_label("697 bit/s").check()
    file, clips = encode_and_decode(page)
    assert file.bottleneck == "2x15625_700bps"
    assert {len(clip) for clip in clips} == {SECONDS * 16_000}


def test_a_recording_is_encoded_and_decoded(page):
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("time", has_text="0:02").wait_for()
    with uploaded(page):
        page.get_by_role("button", name="Stop").first.click()
    file, clips = encode_and_decode(page)
    assert 0.5 < file.duration < 10
    assert np.abs(clips[0]).max() > 1000


def test_it_shows_that_it_works_and_then_the_results(page, recordings):
    """The button says so and cannot be pressed again; the results come into sight, and are announced."""
    page.set_viewport_size({"width": 390, "height": 844})
    upload(page, recordings / "speech.flac")
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
            const button = [...document.querySelectorAll("button")].find(each => each.textContent.includes("Working"));
            if (button) window.seen.push(button.disabled);
        }).observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true}); }"""
    )
    encode_and_decode(page)
    page.wait_for_function("document.activeElement.id === 'results'")
    page.wait_for_function("document.querySelector('#results').getBoundingClientRect().top < innerHeight / 2")
    page.get_by_role("button", name="Encode and decode").wait_for()
    assert page.evaluate("window.seen.includes(true)")
    assert "Done: 2.5 seconds of speech" in page.get_by_role("status").filter(has_text="Done").inner_text()


def test_a_saved_file_can_be_heard_again(page, model, recordings, tmp_path):
    codec = load_codec(str(model), device="cpu")
    codec.encode(read_audio(recordings / "speech.flac")).save(tmp_path / "speech.taae")
    page.get_by_role("button", name="Hear a .taae file").click()
    page.locator("input[type=file][accept*=taae]").set_input_files(tmp_path / "speech.taae")
    page.get_by_text("speech.taae").first.wait_for()
    page.get_by_role("button", name="Decode the file").click()
    page.locator("#summary", has_text=f"{SECONDS:.2f} seconds of speech from").wait_for()
    assert page.locator("a[download][href*='/file=']:visible").count() >= 1


def complaint(page) -> str:
    """Presses the button; returns what the page says once it can be pressed again."""
    page.get_by_role("button", name="Encode and decode").click()
    status = page.locator("p[role=status]")  # Gradio's own messages, which come and go, have this role as well
    status.filter(has_not_text="Working").filter(has_text=".").wait_for()
    page.get_by_role("button", name="Encode and decode", disabled=False).wait_for()
    return status.inner_text()


@pytest.mark.parametrize(
    "name, message",
    [
        ("words.wav", "cannot be read as audio"),
        ("silent.wav", "is silent"),
        ("short.wav", "too short: 0.25 s"),
        ("long.wav", "too long: 61 s"),
    ],
)
def test_what_cannot_be_used_is_told(page, recordings, name, message):
    upload(page, recordings / name)
    assert message in complaint(page)
    assert not page.locator("#summary").is_visible()


def test_no_recording_is_told_and_the_next_one_is_encoded(page, recordings):
    assert "no recording yet" in complaint(page)
    upload(page, recordings / "speech.flac")
    file, _ = encode_and_decode(page)
    assert file.duration == SECONDS


def test_a_failure_is_told_and_the_button_comes_back(page, recordings):
    """As when the queue is full: Gradio's own errors come without a result."""
    upload(page, recordings / "speech.flac")
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."}))
    assert "Try again" in complaint(page)


def test_what_takes_long_to_decode_is_refused_before(limits, tmp_path):
    """Whatever its length in seconds, and although it is small as a file."""
    soundfile.write(tmp_path / "wide.flac", np.zeros((50 * 44_100, 8)), 44_100)
    with pytest.raises(TaaeInputError, match="too many samples"):
        limits.read_recording(str(tmp_path / "wide.flac"), 16_000)
    (tmp_path / "large.taae").write_bytes(b"0" * (limits.LARGEST_FILE + 1))
    with pytest.raises(TaaeInputError, match="too large"):
        limits.read_tokens(str(tmp_path / "large.taae"))


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.syspath_prepend(SPACE)
    monkeypatch.delitem(sys.modules, "limits", raising=False)
    return importlib.import_module("limits")


def test_a_visitor_has_to_wait_and_others_do_not(limits):
    now = 0.0
    limit = limits.RateLimit(clips=2, seconds=60, clock=lambda: now)
    limit.check("Ada")
    now = 20.5
    limit.check("Ada")
    with pytest.raises(TaaeInputError, match="in 40 seconds"):
        limit.check("Ada")
    limit.check("Bob")
    now = 60.0
    limit.check("Ada")
    with pytest.raises(TaaeInputError, match="in 21 seconds"):
        limit.check("Ada")
    now = 200.0
    limit.check("Bob")
    assert list(limit.times) == ["Bob"]


def test_behind_a_proxy_visitors_are_told_apart(limits):
    pytest.importorskip("gradio", reason="the Space needs the package gradio")
    app = importlib.import_module("app")
    headers = {"x-forwarded-for": "whatever they write, 9.9.9.9, 93.184.216.34, 10.16.0.1"}
    request = SimpleNamespace(headers=headers, client=SimpleNamespace(host="10.16.0.2"))
    assert app.visitor(request) == "93.184.216.34"
    direct = SimpleNamespace(headers=headers, client=SimpleNamespace(host="8.8.8.8"))
    assert app.visitor(direct) == "8.8.8.8"
    request.headers = {}
    assert app.visitor(request) == "10.16.0.2"


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by name; comments and options of pip are left out."""
    parsed = [Requirement(line) for line in lines if re.match(r"\w", line)]
    return {requirement.name: requirement for requirement in parsed}


def test_a_space_installs_what_the_package_needs_as_it_was_tested():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["demo"]
    installed = requirements((SPACE / "requirements.txt").read_text().splitlines())
    tested = requirements((ROOT / "constraints.txt").read_text().splitlines())
    assert set(installed) == set(requirements(needed.splitlines()))
    for name, requirement in installed.items():
        assert str(requirement.specifier).removesuffix("+cpu") == str(tested[name].specifier)
    _, front_matter, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front_matter)
    assert f"=={card['sdk_version']}" == str(tested["gradio"].specifier)
    assert (SPACE / card["app_file"]).is_file()
