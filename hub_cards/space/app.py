"""The Space: encodes and decodes a recording at a chosen bit rate, and shows the result as audio and pictures.

`python hub_cards/space/app.py` serves it at http://127.0.0.1:7860. The model is $TAAE_MODEL, else this checkout's.
"""

import html
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gradio as gr
import limits
import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from limits import RateLimit, check_length, check_present, read_recording, read_tokens
from pictures import show_bytes, show_clip, show_tokens

from modeling_taae.audio.spectrum import spectrum
from modeling_taae.audio_io import to_pcm16
from modeling_taae.codec import Codec, default_model, load_codec, model_name
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.alignment import align
from modeling_taae.evaluation.codecs import System
from modeling_taae.evaluation.peers import MissingToolError, make_peer
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS
from modeling_taae.taae_file import CodedHeader, TaaeFile, read_header

SAMPLE = "samples/english-woman-original.flac"
TITLE = "Speech in 400 bits per second"
ENCODE, DECODE = "Encode and decode", "Decode the file"
# Without a reason of ours: the queue is full, or the server failed.
FAILED = "This did not work. Try again in a minute."
# Scrolls to the results and moves the keyboard focus there.
SCROLL = """() => setTimeout(() => {
    const results = document.querySelector("#results");
    if (!results) return;  // the status says why there are none
    results.tabIndex = -1;
    results.focus({preventScroll: true});
    results.scrollIntoView({behavior: "smooth", block: "start"});
}, 100)"""
CODEC2 = {450: "codec2-450", 700: "codec2-700C", 1200: "codec2-1200", 2400: "codec2-2400"}
# Age in seconds at which recordings and results are deleted.
KEPT = 3600

INTRODUCTION = f"""
# {TITLE}

Record or upload up to {limits.LONGEST_CLIP:g} seconds of speech, and hear it after the
[TAAE codec](https://arxiv.org/abs/2411.19842): about 50 bytes per second instead of 32,000. The model, **{{name}}**, is
a small one that runs on a CPU. It works best with one voice and little noise.
"""
PRIVACY = "Recordings are used only for this page, and are deleted from the server within two hours."
CSS = """
.gradio-container { max-width: 72rem !important; margin: auto; }
.html-container { padding: 0 !important; }
.clip { width: 100%; border-radius: 4px; }
.tokens { display: block; width: 100%; height: 9rem; image-rendering: pixelated; }
.bytes { font: 12px/1.5 ui-monospace, Consolas, monospace; overflow-wrap: anywhere; max-height: 12em; overflow: auto; }
.bytes span { opacity: .5; }
#status { min-height: 2rem; } #status p { margin: .5rem 0; }
#waiting { min-height: 2.5rem; }
"""
# Fonts of the visitor's system, so that none is fetched.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Consolas", "monospace"]}

Result = TypeVar("Result")


class Passage(NamedTuple):
    """A recording, encoded and decoded.

    Args:
        heard: input of the codec, (samples,) float32: mono, at the codec's rate and loudness.
        encoded: the tokens.
        content: the tokens as a `.taae` file.
        decoded: output of the codec, as long as the input.
        encoding, decoding: seconds taken.
    """

    heard: np.ndarray
    encoded: TaaeFile
    content: bytes
    decoded: np.ndarray
    encoding: float
    decoding: float


class Card(NamedTuple):
    """The part of the page that plays and shows a clip."""

    player: gr.Audio
    picture: gr.HTML


def main() -> None:
    """Loads the model and serves the page until the process is ended."""
    name = default_model()
    print(f"Loading {model_name(name)} …", flush=True)
    codec = load_codec(name, device="cpu")
    # The first pass takes longer than all others, and would be timed as the first visitor's.
    noise = np.random.default_rng(0).normal(0, 0.1, codec.model.config.sampling_rate).astype(np.float32)
    pass_through(codec, noise, codec.model.config.bottleneck)
    sample = find_sample(name)
    page = build_page(codec, model_name(name), sample)
    page.queue(max_size=limits.LONGEST_QUEUE, default_concurrency_limit=1)
    page.launch(
        theme=gr.themes.Soft(**FONTS),
        css=CSS,
        max_file_size=limits.LARGEST_UPLOAD,
        footer_links=["gradio"],
        allowed_paths=[str(sample.parent)] if sample else [],
    )


def find_sample(model: str) -> Path | None:
    """Returns the recording that comes with a model, a folder or a name on the Hub; None if it has none."""
    if Path(model).is_dir():
        sample = Path(model) / SAMPLE
        return sample if sample.is_file() else None
    try:
        return Path(hf_hub_download(model, SAMPLE))
    except EntryNotFoundError:
        return None


def visitor(request: gr.Request) -> str:
    """Returns the address of the visitor.

    On the Hub, requests come through proxies with private addresses. Each proxy appends the address of its client to a
    header. Visitors can forge the beginning of the header, so the last public address counts.
    """
    host = request.client.host
    chain = [*request.headers.get("x-forwarded-for", "").split(","), host]
    if is_public(host):
        return host
    return next((address.strip() for address in reversed(chain) if is_public(address.strip())), host)


def is_public(address: str) -> bool:
    """Returns whether an address is in the public network."""
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def build_page(codec: Codec, name: str, example: Path | None) -> gr.Blocks:
    """Returns the page.

    Args:
        codec: codec of the page.
        name: name of the model.
        example: recording to try; None for none.
    """
    rates = preset_rates(codec)
    service = Service(codec, rates, RateLimit(limits.CLIPS, limits.WINDOW))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(INTRODUCTION.format(name=name))
        recording = gr.Audio(sources=["microphone"], type="filepath", label="Speech", buttons=[])
        upload = gr.UploadButton("Upload a recording", size="sm")
        upload.upload(lambda path: path, upload, recording, show_progress="hidden", api_visibility="private")
        if example:
            gr.Examples([[str(example)]], [recording], example_labels=["A woman, in English"])
        choices = [(preset_label(preset, rate), preset) for preset, rate in rates.items()]
        preset = gr.Radio(choices, value=choices[0][1], label="Bit rate")
        button = gr.Button(ENCODE, variant="primary")
        status = gr.HTML(status_text(""), elem_id="status")
        waiting = gr.HTML("", elem_id="waiting")
        with gr.Column(visible=False, elem_id="results") as results:
            summary = gr.Markdown(elem_id="summary")
            with gr.Row():
                cards = [make_card() for _ in range(3 if all(service.peers.values()) else 2)]
            content = gr.HTML()
        with gr.Accordion("Hear a .taae file that you saved or were sent", open=False):
            saved = gr.File(label=".taae file", file_types=[".taae"], type="filepath")
            open_button = gr.Button(DECODE)
        gr.Markdown(PRIVACY)
        parts = Parts(results, summary, content, cards, status, waiting)
        when_pressed(button, ENCODE, lambda *inputs: service.encode(parts, *inputs), [recording, preset], parts)
        when_pressed(open_button, DECODE, lambda *inputs: service.open(parts, *inputs), [saved], parts)
    return page


class Parts(NamedTuple):
    """The parts of the page that show results."""

    results: gr.Column
    summary: gr.Markdown
    content: gr.HTML
    cards: list[Card]
    status: gr.HTML
    waiting: gr.HTML  # where Gradio draws its progress, which would cover what stands there

    @property
    def outputs(self) -> list[Any]:
        """The parts that results fill, as a list for Gradio."""
        cards = [part for card in self.cards for part in card]
        return [self.results, self.summary, self.content, *cards, self.status]


def when_pressed(button: gr.Button, label: str, work: Callable[..., dict], inputs: list[Any], parts: Parts) -> None:
    """Lets a button start work. The button is disabled meanwhile. Then the page scrolls to the results.

    If the input cannot be used, the status says why, and earlier results are hidden.

    Args:
        button: the button.
        label: label of the button between presses.
        work: function that takes the values of the inputs and the request, and returns new content of the page's parts.
        inputs: parts of the page that it reads.
        parts: parts of the page that it fills.
    """

    def run(*values: Any) -> dict[Any, Any]:
        try:
            return work(*values)
        except TaaeInputError as error:
            return {parts.results: gr.Column(visible=False), parts.status: status_text(str(error))}

    # Gradio passes the request to an annotated parameter, so the number of parameters has to be fixed.
    if len(inputs) == 2:

        def run_with_request(first: Any, second: Any, request: gr.Request) -> dict[Any, Any]:
            return run(first, second, request)

    else:

        def run_with_request(first: Any, request: gr.Request) -> dict[Any, Any]:
            return run(first, request)

    hidden = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    begun = button.click(
        lambda: (
            gr.Button("Working …", interactive=False),
            status_text("Working. This takes a few seconds, after those who are before you in the queue."),
        ),
        None,
        [button, parts.status],
        **hidden,
    )
    done = begun.then(
        run_with_request,
        inputs,
        parts.outputs,
        api_visibility="private",
        show_progress="full",
        show_progress_on=parts.waiting,
    )
    # Not with `then`, which Gradio does not call after a failure if there is a listener to failures.
    done.success(lambda: gr.Button(label, interactive=True), None, button, js=SCROLL, **hidden)
    done.failure(
        lambda: (gr.Button(label, interactive=True), status_text(FAILED)), None, [button, parts.status], **hidden
    )


def status_text(text: str) -> str:
    """Returns a status as an element that screen readers announce when it changes."""
    return f'<p role="status" aria-live="polite">{html.escape(text)}</p>'


class Service:
    """The page's work on recordings and files.

    Args:
        codec: codec of the page.
        rates: bit rates of the presets, in bit/s.
        limit: limit of clips for each visitor.
    """

    def __init__(self, codec: Codec, rates: dict[str, float], limit: RateLimit):
        self.codec, self.rates, self.limit = codec, rates, limit
        self.peers = {preset: nearest_codec2(rate) for preset, rate in rates.items()}

    def encode(self, parts: Parts, path: str | None, preset: str, request: gr.Request) -> dict[Any, Any]:
        """Encodes and decodes a recording, and fills the page.

        Raises:
            TaaeInputError: if the recording cannot be used, or the visitor is over the limit.
        """
        check_present(path)
        self.limit.check(visitor(request))  # before the work, so that unusable recordings count too
        audio = read_recording(path, self.codec.model.config.sampling_rate)
        passage = pass_through(self.codec, audio, preset)
        clips = {"Recording": passage.heard, f"TAAE at {self.rates[preset]:.0f} bit/s": passage.decoded}
        if peer := self.peers[preset]:
            clips[f"Codec2 at {peer.nominal_bit_rate:.0f} bit/s"] = through_peer(peer, passage.heard)
        return self.filled(parts, passage.encoded, passage.content, clips, summarize(passage))

    def open(self, parts: Parts, path: str | None, request: gr.Request) -> dict[Any, Any]:
        """Decodes a `.taae` file, and fills the page.

        Raises:
            TaaeInputError: if the file cannot be used, or the visitor is over the limit.
        """
        content = read_tokens(path)
        self.limit.check(visitor(request))
        encoded = TaaeFile.from_bytes(content, self.codec.prior)
        self.codec.check_identity("This file", encoded.model_identity)
        check_length(encoded.duration)
        decoded, seconds = timed(lambda: self.codec.decode(encoded))
        text = (
            f"## {encoded.duration:.2f} seconds of speech from {len(content):,} bytes\n"
            f"The tokens have {encoded.bit_rate:.0f} bit/s. Decoding took {speed(encoded.duration, seconds)}."
        )
        return self.filled(parts, encoded, content, {f"TAAE at {encoded.bit_rate:.0f} bit/s": decoded}, text)

    def filled(
        self, parts: Parts, encoded: TaaeFile, content: bytes, clips: dict[str, np.ndarray], text: str
    ) -> dict[Any, Any]:
        """Returns the new content of the page's parts."""
        bottleneck = self.codec.model.bottleneck(encoded.bottleneck)
        return {
            parts.results: gr.Column(visible=True),
            parts.summary: text,
            parts.content: show_tokens(encoded, bottleneck) + show_bytes(content),
            parts.status: status_text(f"Done: {encoded.duration:.1f} seconds of speech in {len(content):,} bytes."),
            **fill_cards(parts.cards, clips, encoded.sampling_rate),
        }


def preset_label(preset: str, rate: float) -> str:
    """Returns a preset's label on the page: its bit rate, and the number in its name."""
    nominal = preset.rpartition("_")[2].removesuffix("bps")
    return f"{rate:.0f} bit/s (preset {nominal})"


def preset_rates(codec: Codec) -> dict[str, float]:
    """The presets for the model, with their bit rates in bit/s."""
    rates = {}
    for preset in BOTTLENECK_PRESETS:
        try:
            rates[preset] = codec.model.bottleneck(preset).bits_per_frame * codec.model.config.frame_rate
        except ValueError:  # a preset for another number of latent dimensions
            continue
    return rates


def nearest_codec2(bit_rate: float) -> System | None:
    """Codec2 at the rate nearest to `bit_rate`, in bit/s; None if it is not installed."""
    nearest = min(CODEC2, key=lambda rate: abs(rate - bit_rate))
    try:
        return make_peer(CODEC2[nearest])
    except MissingToolError:
        return None


def pass_through(codec: Codec, audio: np.ndarray, preset: str) -> Passage:
    """Encodes and decodes a recording, (samples,) float32 at the model's rate."""
    inputs = codec.extractor(audio, sampling_rate=codec.extractor.sampling_rate)
    heard = inputs["input_values"][0, 0, : len(audio)].numpy()
    content, encoding = timed(lambda: codec.encode(audio, preset).to_bytes(codec.prior))
    encoded = TaaeFile.from_bytes(content, codec.prior)
    decoded, decoding = timed(lambda: codec.decode(TaaeFile.from_bytes(content, codec.prior)))
    return Passage(heard, encoded, content, decoded, encoding, decoding)


def through_peer(peer: System, audio: np.ndarray) -> np.ndarray:
    """Returns a clip after another codec, cut to the clip's length."""
    return align(peer.decode(peer.encode(audio)), 0, len(audio))


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Returns the result of `work` and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def summarize(passage: Passage) -> str:
    """Length, size and time taken, in Markdown."""
    encoded, size = passage.encoded, len(passage.content)
    seconds, samples_size = encoded.duration, 2 * encoded.num_samples
    _, header = read_header(passage.content)
    coded = " and after entropy coding" if isinstance(header, CodedHeader) else ""
    threads = torch.get_num_threads()
    return (
        f"## {seconds:.2f} seconds of speech in {size:,} bytes\n"
        f"The tokens have {encoded.bit_rate:.0f} bit/s. The file, with header and checksum{coded}, has "
        f"{8 * size / seconds:.0f} bit/s and is {samples_size / size:,.0f} times smaller than 16-bit samples. "
        f"On a CPU with {threads} thread{'s' * (threads > 1)}, encoding took {speed(seconds, passage.encoding)} and "
        f"decoding {speed(seconds, passage.decoding)}."
    )


def speed(duration: float, seconds: float) -> str:
    """Returns how long work on a clip took, in seconds and relative to the clip's length, also in seconds."""
    faster = seconds <= duration
    ratio = duration / seconds if faster else seconds / duration
    return f"{seconds:.2f} s ({ratio:.1f} times {'faster' if faster else 'slower'} than real time)"


def make_card() -> Card:
    """An empty card."""
    with gr.Column(min_width=280):
        return Card(gr.Audio(buttons=["download"]), gr.HTML())


def fill_cards(cards: Sequence[Card], clips: dict[str, np.ndarray], sampling_rate: int) -> dict[Any, Any]:
    """Returns the new content of each card; cards without a clip disappear.

    Args:
        cards: cards, at least as many as clips.
        clips: (samples,) float32, by label.
        sampling_rate: sampling rate of the clips, in Hz.
    """
    loudest = max(spectrum(clip).max() for clip in clips.values())
    filled = {}
    for card in cards[len(clips) :]:
        filled |= {card.player: gr.Audio(None, visible=False), card.picture: gr.HTML("", visible=False)}
    for card, (label, clip) in zip(cards, clips.items(), strict=False):
        filled[card.player] = gr.Audio((sampling_rate, to_pcm16(clip)), label=label, visible=True)
        filled[card.picture] = gr.HTML(show_clip(label, clip, sampling_rate, loudest), visible=True)
    return filled


if __name__ == "__main__":
    main()
