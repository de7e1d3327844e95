"""A voice in a link: the page's parts beside Python's, and the whole of it in a real browser with a fake microphone."""

import base64
import functools
import hashlib
import importlib.util
import io
import json
import re
import shutil
import threading
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from support.browsers import chromium, fits, visitor

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel
from modeling_taae.errors import TaaeInputError
from modeling_taae.export.export import round_weights
from modeling_taae.export.runtime import ExportedCodec
from modeling_taae.feature_extraction_taae import integrated_loudness, normalize_loudness
from modeling_taae.taae_file import TaaeFile, model_identity

ROOT = Path(__file__).parents[2]
WEB = ROOT / "hub_cards" / "web"
RATE = 16_000
MODEL = {
    "name": "made-up",
    "identity": "00c0ffee12345678",
    "bottleneck": "1x46656_400bps",
    "vocabulary_size": 46_656,
    "sampling_rate": RATE,
    "hop_length": 640,
    "target_loudness": -20.0,
}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not WEB.is_dir(), reason="the page is in a checkout of the project only"),
]


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def serve():
    """Serves folders on ports of their own, as long as the tests of this file run; returns their addresses."""
    servers = []

    def start(folder: Path) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser with a microphone, into which somebody hums now and then."""
    time = np.arange(8 * RATE) / RATE
    hum = 0.2 * np.sin(2 * np.pi * 150 * time) * np.sin(2 * np.pi * 0.7 * time) ** 2
    file = tmp_path_factory.mktemp("microphone") / "hum.wav"
    soundfile.write(file, hum + np.random.default_rng(0).normal(0, 0.01, len(hum)), RATE)
    microphone = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    with chromium(*microphone, f"--use-file-for-fake-audio-capture={file}") as browser:
        yield browser


@pytest.fixture(scope="module")
def evaluate(browser, serve):
    """Runs JavaScript in a page, with the functions of a module and an argument; errors come back as their message."""
    page = browser.new_page()
    page.goto(serve(WEB) + "icon.svg")

    def evaluate(module: str, body: str, argument):
        script = f"""async (argument) => {{
            try {{ return await (({body}))(await import("./{module}.js"), argument); }}
            catch (error) {{ return error.message; }}
        }}"""
        return page.evaluate(script, argument)

    return evaluate


def signals() -> dict[str, np.ndarray]:
    """Clips of all kinds, (samples,) float32 at 16 kHz."""
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.1, 10 * RATE)
    time = np.arange(len(noise)) / RATE
    bursts = noise * (np.sin(2 * np.pi * 0.4 * time) > 0.3)
    clips = {
        "noise": noise,
        "bursts": bursts,
        "quiet bursts": bursts / 40,
        "loud": 5 * noise,
        "one click": np.where(time == 3, 1.0, 0.02 * noise),
        "low": 0.3 * np.sin(2 * np.pi * 60 * time),
        "high": 0.3 * np.sin(2 * np.pi * 5_000 * time),
        "offset": 0.2 + 0 * time,
        "odd length": noise[:98_765],
        "half a step": noise[: int(0.45 * RATE)],
        "one block": noise[: int(0.4 * RATE)],
        "too short": noise[: int(0.4 * RATE) - 1],
        "silent": 1e-4 * noise,
    }
    return {name: clip.astype(np.float32) for name, clip in clips.items()}


@pytest.mark.parametrize("name", signals())
def test_loudness_is_python_s(evaluate, name):
    clip = signals()[name]
    body = """async ({ integratedLoudness, normalizeLoudness }, text) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        const samples = new Float32Array(bytes.buffer);
        const digest = await crypto.subtle.digest("SHA-256", normalizeLoudness(samples, 16000, -20));
        return [integratedLoudness(samples, 16000), [...new Uint8Array(digest)]];
    }"""
    loudness, digest = evaluate("loudness", body, base64.b64encode(clip.tobytes()).decode())
    assert loudness == pytest.approx(integrated_loudness(clip, RATE), abs=1e-9)
    assert bytes(digest) == hashlib.sha256(normalize_loudness(clip, RATE, -20.0).tobytes()).digest()


def taae_file(samples: int = 6_500, **changes) -> TaaeFile:
    tokens = np.random.default_rng(samples).integers(0, MODEL["vocabulary_size"], (1, -(-samples // 640)))
    facts = {
        "audio_codes": tokens,
        "vocabulary_sizes": (MODEL["vocabulary_size"],),
        "bottleneck": MODEL["bottleneck"],
        "num_samples": samples,
        "hop_length": 640,
        "sampling_rate": RATE,
        "model_identity": MODEL["identity"],
    }
    return TaaeFile(**facts | changes)


def fragment(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def read(evaluate, text: str):
    """The voice in a fragment, or the error."""
    body = """({ fromFragment }, [text, model]) => {
        const { samples, tokens } = fromFragment(text, model);
        return { samples, tokens: [...tokens] };
    }"""
    return evaluate("voice", body, [text, MODEL])


@pytest.mark.parametrize("samples", [1, 640, 6_500, 160_000])
def test_a_fragment_is_a_taae_file(evaluate, samples):
    file = taae_file(samples)
    text = fragment(file.to_bytes())
    voice = {"samples": samples, "tokens": file.audio_codes[0].tolist()}
    body = "({ toFragment }, [voice, model]) => toFragment(voice, model)"
    assert evaluate("voice", body, [voice, MODEL]) == text
    assert read(evaluate, text) == voice
    assert len(text) < 750


def test_a_bad_link_is_told(evaluate):
    content = taae_file().to_bytes()
    text = fragment(content)
    changed = bytearray(content)
    changed[60] ^= 1
    for length in range(6, len(text)):
        assert "is incomplete" in read(evaluate, text[:length]), length
    assert "damaged" in read(evaluate, fragment(bytes(changed)))
    assert "damaged" in read(evaluate, fragment(content + b"more"))
    for foreign in ("", "VEFB", "top", "%20", text + ".", fragment(b"RIFF" + content)):
        assert "no voice message" in read(evaluate, foreign), foreign
    newer = content[:4] + b"\x02" + content[5:]
    assert "version 2" in read(evaluate, fragment(newer))
    stranger = taae_file(model_identity="fedcba9876543210")
    assert "another model (fedcba9876543210)" in read(evaluate, fragment(stranger.to_bytes()))
    others = taae_file(bottleneck="native"), taae_file(sampling_rate=24_000)
    assert ["settings" in read(evaluate, fragment(other.to_bytes())) for other in others] == [True, True]


def test_a_recording_is_as_long_as_it_may_be(evaluate):
    body = """async ({ record }) => {
        const times = [];
        const samples = await record(16000, 0.7, new AbortController().signal, (_, seconds) => times.push(seconds));
        return [samples.length, times.at(-1), Math.max(...samples)];
    }"""
    length, last, peak = evaluate("recorder", body, None)
    assert (length, last) == (0.7 * RATE, 0.7) and peak > 0.01


@pytest.fixture(scope="module")
def build() -> ModuleType:
    specification = importlib.util.spec_from_file_location("build", WEB / "build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> TaaeModel:
    """One block of random weights, wide enough that they are stored in 8 bits."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": (128,), "strides": (2,), "encoder_depths": (1,), "decoder_depths": (1,)}
    model = TaaeModel(TaaeConfig(**sizes, patch_size=320, head_dim=64, layer_scale_initial_scale=0.1)).eval()
    with torch.no_grad():  # a random encoder's latents are so small that all tokens would be the same
        model.encoder.conv_out.weight *= 30
    return model


@pytest.fixture(scope="module")
def site(build, model, tmp_path_factory) -> Path:
    """The page, built with the model."""
    folder, target = (tmp_path_factory.mktemp("site") / name for name in ("model", "dist"))
    model.save_pretrained(folder)
    TaaeFeatureExtractor().save_pretrained(folder)
    try:
        build.build(folder, target)
    except build.NoRuntimeError as error:
        pytest.skip(str(error))
    return target


@pytest.fixture(scope="module")
def codec(build, site) -> ExportedCodec:
    """The page's model, in Python."""
    return build.load_site(site)


@pytest.fixture(scope="module")
def url(site, serve) -> str:
    return serve(site)


@pytest.fixture
def visit(browser, url):
    """Opens the page as somebody who was never there."""
    with ExitStack() as visitors:

        def visit(link: str = url):
            page = visitors.enter_context(visitor(browser))
            page.goto(link)
            page.locator("#record:enabled").wait_for()
            return page

        yield visit


def sound(page, player: str) -> np.ndarray:
    """What a player plays, (samples,) float32."""
    script = """async (player) => {
        const sound = await (await fetch(document.querySelector(player).src)).blob();
        const reader = new FileReader();
        return new Promise((resolve) => { reader.onload = () => resolve(reader.result); reader.readAsDataURL(sound); });
    }"""
    content = base64.b64decode(page.evaluate(script, player).partition(",")[2])
    audio, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == RATE
    return audio


def test_a_voice_goes_through_a_link(visit, codec, model):
    sender = visit()
    sender.get_by_role("button", name="Record").click()
    sender.locator("#clock", has_text=re.compile(r"[1-9]\.\d s")).wait_for()
    sender.get_by_role("button", name="Stop").click()
    sender.locator("#sent").wait_for()
    link = sender.inner_text("#link")
    assert link == sender.url and "Encoded in" in sender.inner_text("#sent .facts")
    assert fits(sender)

    # The link is what Python makes of the same samples, bit by bit.
    said, text = sound(sender, "#original"), link.partition("#")[2]
    inputs = TaaeFeatureExtractor()(said, sampling_rate=RATE, return_tensors="np")
    expected = TaaeFile(
        audio_codes=codec.encode(**inputs).audio_codes[0],
        vocabulary_sizes=(46_656,),
        bottleneck="1x46656_400bps",
        num_samples=len(said),
        hop_length=640,
        sampling_rate=RATE,
        model_identity=model_identity(round_weights(model)),
    )
    assert text == fragment(expected.to_bytes())
    assert model_identity(model) != expected.model_identity
    assert len(np.unique(expected.audio_codes)) > 10

    receiver = visit(link)
    receiver.locator("#received").wait_for()
    decoded = codec.decode(expected.audio_codes[None])[0, 0, : len(said)]
    for heard in (sound(receiver, "#received audio"), sound(sender, "#decoded")):
        assert len(heard) == len(said) and np.abs(heard - decoded).max() < 1e-5
    assert f"from {len(text)} characters" in receiver.inner_text("#received .facts")

    receiver.context.set_offline(True)
    receiver.reload()
    receiver.locator("#received").wait_for()
    receiver.set_viewport_size({"width": 1280, "height": 900})
    assert fits(receiver)


def test_a_file_and_an_example_stand_in_for_a_microphone(visit, site, tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.stack([signals()["bursts"].repeat(3)] * 2, axis=1), 3 * RATE)
    soundfile.write(site / "example.flac", signals()["bursts"][: 3 * RATE], RATE)
    page = visit()
    for start, seconds in (("file", 10), ("example", 3)):
        if start == "file":
            with page.expect_file_chooser() as chooser:
                page.get_by_role("button", name="Choose a file").click()
            chooser.value.set_files(tmp_path / "stereo.wav")
        else:
            page.get_by_role("button", name="Try an example").click()
        page.locator("#sent .facts", has_text=f"{seconds}.0 s of speech").wait_for()
        assert len(sound(page, "#decoded")) == seconds * RATE
    (tmp_path / "words.wav").write_text("words")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(tmp_path / "words.wav")
    page.get_by_text("This browser cannot play words.wav").wait_for()


def test_its_large_files_are_packed_fetched_once_and_told(visit, browser, url, site):
    facts = json.loads((site / "model.json").read_text())["files"]
    assert set(facts) == {"encoder.onnx.gz", "decoder.onnx.gz", "ort-wasm-simd-threaded.wasm.gz"}
    assert all((site / name).stat().st_size == fact["bytes"] for name, fact in facts.items())
    page = visit(f"{url}#VEFBRQE")
    assert "Somebody sent you a voice message" in page.evaluate("document.querySelector('#received h2').textContent")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.locator("#record:enabled").wait_for()
    assert not [address for address in asked if ".gz" in address]
    assert not page.locator("#progress").is_visible()
    assert page.get_by_label("What they will hear").count() == 1


def test_long_links_are_refused(visit):
    page = visit()
    page.evaluate("location.hash = 'VEFB'.repeat(20_000)")
    page.get_by_text("This link is too long: 80000 characters").wait_for()


def test_what_went_wrong_is_told(visit):
    page = visit()
    page.evaluate("location.hash = 'VEFBRQE'")
    page.get_by_text("This link is incomplete").wait_for()
    page.get_by_role("button", name="Record").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("The recording is too short").wait_for()
    refusal = "() => Promise.reject(new DOMException('', 'NotAllowedError'))"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refusal}; }}")
    page.get_by_role("button", name="Record").click()
    page.get_by_text("This page may not use the microphone").wait_for()
    assert page.get_by_role("button", name="Record").is_enabled()


def test_a_forced_reload_is_no_dead_end(visit):
    """After it, no service worker controls the page, and none will."""
    page = visit()
    page.context.new_cdp_session(page).send("Page.reload", {"ignoreCache": True})
    page.wait_for_function("navigator.serviceWorker.controller === null")
    page.locator("#record:enabled").wait_for()


def test_another_link_ends_what_is_under_way(visit):
    page = visit()
    record, second = page.get_by_role("button", name="Record"), re.compile(r"[1-9]\.\d s")
    record.focus()
    page.keyboard.press("Space")
    page.locator("#clock", has_text=second).wait_for()
    page.keyboard.press("Space")  # the button keeps the focus
    page.get_by_text("Your link is ready.").wait_for()
    page.evaluate("document.querySelector('#decoded').loop = true, document.querySelector('#decoded').play()")
    record.click()
    page.get_by_role("button", name="Stop").wait_for()
    assert page.evaluate("document.querySelector('#decoded').paused")
    page.evaluate("location.hash = 'VEFBRQE'")
    page.get_by_text("This link is incomplete").wait_for()
    page.locator("#record:enabled", has_text="Record").wait_for()
    assert page.url.endswith("#VEFBRQE") and not page.locator("#sent").is_visible()


def test_a_browser_that_cannot_run_the_codec_is_told(browser, site, serve, tmp_path):
    copy = shutil.copytree(site, tmp_path / "dist")
    (copy / "codec.js").write_text("import 'nowhere.js';\n")
    with visitor(browser) as page:
        page.goto(serve(copy))
        page.get_by_text("this browser cannot run the codec").wait_for()


def test_previews_name_the_page_s_address(build, site, tmp_path):
    page = Path(shutil.copy(site / "index.html", tmp_path))
    build.name_address(page, "https://voices.example/here/")
    found = dict(re.findall(r'<meta property="(og:(?:url|image))" content="([^"]+)"', page.read_text()))
    assert found == {"og:url": "https://voices.example/here/", "og:image": "https://voices.example/here/preview.png"}
    assert (site / "preview.png").is_file()


def test_only_a_page_is_replaced(build, tmp_path):
    (tmp_path / "own.txt").write_text("of somebody")
    with pytest.raises(TaaeInputError, match="holds something other"):
        build.build(build.MODEL, tmp_path)
    assert (tmp_path / "own.txt").exists()


def test_a_new_version_takes_the_place_of_the_old(visit, site, serve, build, tmp_path):
    copy = shutil.copytree(site, tmp_path / "dist")
    page = visit(serve(copy))
    page.evaluate("caches.open('of another page')")
    index = copy / "index.html"
    index.write_text(index.read_text().replace("<h1>A voice", "<h1>A newer voice"))
    build.list_files(copy)
    assert "A voice" in page.inner_text("h1")
    with page.expect_event("console", lambda message: message.text == "replaced"):
        page.evaluate("""async () => {
            navigator.serviceWorker.oncontrollerchange = () => console.log("replaced");
            await (await navigator.serviceWorker.ready).update();
        }""")
    page.reload()
    assert "A newer voice" in page.inner_text("h1")
    version = re.search('"(.*?)"', (copy / "files.js").read_text()).group(1)
    kept = page.evaluate("caches.keys()")
    assert [name for name in kept if " page " in name] == [f"a-voice-in-a-link / page {version}"]
    assert "of another page" in kept


def test_what_8_bits_change_is_written_down(site, model, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(WEB))
    measure = importlib.import_module("measure")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{measure.PLACE[0]}old\n{measure.PLACE[1]}\nafter\n")
    model.save_pretrained(tmp_path / "model")
    TaaeFeatureExtractor().save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "speech.wav", signals()["bursts"], RATE)
    command = [str(tmp_path / "speech.wav"), "--model", str(tmp_path / "model"), "--site", str(site)]
    assert measure.main(command, readme) == 0
    results = json.loads((tmp_path / "model" / "results" / "web.json").read_text())
    assert results["model_identity"] == model_identity(model)
    assert (results["utterances"], results["tokens"]) == (1, 250) and 0.5 < results["equal_tokens"] <= 1
    text = readme.read_text()
    assert text.startswith("before\n<!-- measured") and text.endswith("<!-- /measured -->\nafter\n")
    assert f"rounded {model_identity(round_weights(model))}" in text and "old" not in text
    assert measure.sentence(results) in text and measure.sentence(results) in (site / "README.md").read_text()

    with torch.no_grad():
        model.encoder.conv_out.weight[0] += 1
        model.save_pretrained(tmp_path / "model")
        model.encoder.conv_out.weight[0] -= 1
    assert measure.main(command, readme) == 2
    assert "was not built with" in capsys.readouterr().err
