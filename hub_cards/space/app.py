"""The Space: takes a recording through the codec at a bit rate of choice, to hear it and to see what it became.

`python hub_cards/space/app.py` serves it at http://127.0.0.1:7860. The model is $TAAE_MODEL, else this checkout's.
"""

import html
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import gradio as gr
import limits
import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from limits import RateLimit, read_recording
from pictures import show_bytes, show_clip, show_tokens

from modeling_taae.audio_io import to_pcm16, write_audio
from modeling_taae.codec import Codec, default_model, load_codec, model_name
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.alignment import align
from modeling_taae.evaluation.codecs import System
from modeling_taae.evaluation.html_report import spectrum
from modeling_taae.evaluation.peers import MissingToolError, make_peer
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS
from modeling_taae.taae_file import TaaeFile

SAMPLE = "demo.taae"
CODEC2 = {450: "codec2-450", 700: "codec2-700C", 1200: "codec2-1200", 2400: "codec2-2400"}
# Recordings, and what was made of them, are deleted when they are this old, in seconds.
KEPT = 3600

INTRODUCTION = f"""
# Speech in 400 bits per second

Record yourself or upload speech, and hear what about 50 bytes a second keep of it. **{{name}}** is a small model of the
[TAAE codec](https://arxiv.org/abs/2411.19842) that runs on an ordinary processor. It takes {limits.SHORTEST_CLIP:g} to
{limits.LONGEST_CLIP:g} seconds, and does best with one voice and little noise.
"""
PRIVACY = "Recordings are used for nothing but this page, and are deleted from the server within two hours."
CSS = """
.gradio-container { max-width: 72rem !important; margin: auto; }
.html-container { padding: 0 !important; }
.clip { width: 100%; border-radius: 4px; }
.tokens { display: block; width: 100%; height: 9rem; image-rendering: pixelated; }
.bytes { font: 12px/1.5 ui-monospace, Consolas, monospace; overflow-wrap: anywhere; max-height: 12em; overflow: auto; }
.bytes span { opacity: .5; }
"""
# Fonts that a system has, so that none is fetched.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Consolas", "monospace"]}

Result = TypeVar("Result")


class Passage(NamedTuple):
    """A recording's way through the codec.

    Args:
        heard: what the codec was given, (samples,) float32: mono, at the codec's rate and loudness.
        encoded: what it became.
        content: that as a `.taae` file.
        decoded: what came out, as long as what was given.
        encoding, decoding: seconds that it took.
    """

    heard: np.ndarray
    encoded: TaaeFile
    content: bytes
    decoded: np.ndarray
    encoding: float
    decoding: float


class Card(NamedTuple):
    """The part of the page in which a clip is heard and seen."""

    player: gr.Audio
    picture: gr.HTML


def main() -> None:
    """Loads the model and serves the page until the process is ended."""
    name = default_model()
    codec = load_codec(name, device="cpu")
    with TemporaryDirectory() as folder:
        sample = find_sample(name)
        example = make_example(codec, sample, Path(folder)) if sample else None
        page = build_page(codec, model_name(name), example)
        page.queue(max_size=limits.LONGEST_QUEUE, default_concurrency_limit=1)
        page.launch(
            theme=gr.themes.Soft(**FONTS), css=CSS, max_file_size=limits.LARGEST_UPLOAD, footer_links=["gradio"]
        )


def find_sample(model: str) -> Path | None:
    """The `.taae` file that comes with a model, which is a folder or a name on the Hub; None where none does."""
    if Path(model).is_dir():
        sample = Path(model) / SAMPLE
        return sample if sample.is_file() else None
    try:
        return Path(hf_hub_download(model, SAMPLE))
    except EntryNotFoundError:
        return None


def make_example(codec: Codec, sample: Path, folder: Path) -> Path:
    """Decodes a model's sample to a WAV file.

    Raises:
        TaaeInputError: if it belongs to another model.
    """
    encoded = TaaeFile.load(sample, codec.prior)
    codec.check_identity(str(sample), encoded.model_identity)
    write_audio(folder / "sample.wav", codec.decode(encoded), encoded.sampling_rate)
    return folder / "sample.wav"


def visitor(request: gr.Request) -> str:
    """Who asks. On the Hub all requests come through proxies, which tell whom they ask for: a courtesy, no proof."""
    return request.headers.get("x-forwarded-for", request.client.host).split(",")[0].strip()


def build_page(codec: Codec, name: str, example: Path | None) -> gr.Blocks:
    """The page.

    Args:
        codec: what encodes and decodes.
        name: of the model.
        example: a recording to try, if there is one.
    """
    rates = preset_rates(codec)
    peers = {preset: nearest_codec2(rate) for preset, rate in rates.items()}
    limit = RateLimit(limits.CLIPS, limits.WINDOW)
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(INTRODUCTION.format(name=name))
        recording = gr.Audio(sources=["microphone", "upload"], type="filepath", label="Speech", buttons=[])
        choices = [(f"{rate:.0f} bit/s", preset) for preset, rate in rates.items()]
        preset = gr.Radio(choices, value=choices[0][1], label="Bit rate")
        button = gr.Button("Encode and decode", variant="primary")
        if example:
            rows, labels = (
                [[str(example), each] for each in rates],
                [f"Model's sample at {rate}" for rate, _ in choices],
            )
            gr.Examples(rows, [recording, preset], example_labels=labels)
        with gr.Column(visible=False) as results:
            summary = gr.Markdown(elem_id="summary")
            with gr.Row():
                cards = [make_card() for _ in range(3 if all(peers.values()) else 2)]
            content = gr.HTML()
        gr.Markdown(PRIVACY)

        def run(path: str | None, preset: str, request: gr.Request) -> dict[Any, Any]:
            try:
                audio = read_recording(path, codec.model.config.sampling_rate)
                limit.check(visitor(request))
            except TaaeInputError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error
            passage = pass_through(codec, audio, preset)
            clips = {"Original": passage.heard, f"Decoded from {rates[preset]:.0f} bit/s": passage.decoded}
            if peer := peers[preset]:
                clips[f"Codec2 at {peer.nominal_bit_rate:.0f} bit/s"] = through_peer(peer, passage.heard)
            return {
                results: gr.Column(visible=True),
                summary: summarize(passage),
                content: show_tokens(passage.encoded, codec.model.bottleneck(preset)) + show_bytes(passage.content),
                **fill_cards(cards, clips, passage.encoded.sampling_rate),
            }

        outputs = [results, summary, content, *(part for card in cards for part in card)]
        button.click(run, [recording, preset], outputs, api_visibility="private", show_progress_on=button)
    return page


def preset_rates(codec: Codec) -> dict[str, float]:
    """The presets that the model has, and their bit rates in bit/s."""
    rates = {}
    for preset in BOTTLENECK_PRESETS:
        try:
            rates[preset] = codec.model.bottleneck(preset).bits_per_frame * codec.model.config.frame_rate
        except ValueError:  # a preset for another number of latent dimensions
            continue
    return rates


def nearest_codec2(bit_rate: float) -> System | None:
    """Codec2 at the rate nearest to one in bit/s; None where it is not installed."""
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
    """What another codec makes of a clip, cut to the clip's length."""
    return align(peer.decode(peer.encode(audio)), 0, len(audio))


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def summarize(passage: Passage) -> str:
    """Length, size and time taken, in Markdown."""
    encoded, size = passage.encoded, len(passage.content)
    seconds, samples_size = encoded.duration, 2 * encoded.num_samples
    threads = torch.get_num_threads()
    return (
        f"## {seconds:.2f} seconds of speech in {size:,} bytes\n"
        f"{encoded.bit_rate:.0f} bit/s of tokens, {8 * size / seconds:.0f} bit/s as a file with header and checksum; "
        f"{samples_size / size:,.0f} times smaller than 16-bit samples ({samples_size:,} bytes). "
        f"Encoding took {passage.encoding:.2f} s, decoding {passage.decoding:.2f} s, on a CPU with {threads} "
        f"thread{'s' * (threads > 1)}: {seconds / passage.encoding:.0f} and {seconds / passage.decoding:.0f} times "
        "faster than speaking."
    )


def make_card() -> Card:
    """An empty card."""
    with gr.Column(min_width=280):
        return Card(gr.Audio(buttons=["download"]), gr.HTML())


def fill_cards(cards: Sequence[Card], clips: dict[str, np.ndarray], sampling_rate: int) -> dict[Any, Any]:
    """What goes into each card's parts: clips by their labels, (samples,) float32 at a rate in Hz."""
    loudest = max(spectrum(clip).max() for clip in clips.values())
    filled = {}
    for card, (label, clip) in zip(cards, clips.items(), strict=True):
        filled[card.player] = gr.Audio((sampling_rate, to_pcm16(clip)), label=label)
        filled[card.picture] = show_clip(label, clip, sampling_rate, loudest)
    return filled


if __name__ == "__main__":
    main()
