"""Lets you hear the codec: encodes and decodes a recording, and writes original and result side by side.

`python hub_cards/demo.py` uses the recording that comes with the model, and `python hub_cards/demo.py my.wav` yours.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from modeling_taae.audio.spectrum import draw_spectrum, spectrum
from modeling_taae.audio_io import read_audio, write_audio
from modeling_taae.errors import TaaeInputError
from modeling_taae.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from modeling_taae.codec import Codec
    from modeling_taae.taae_file import TaaeFile

MODEL = Path(__file__).parent / "taae-speech-16k-small"
RECORDING = Path("samples/english-woman-original.flac")  # in a model's folder
OUTPUT = Path("demo_out")
RATE = 16_000

Result = TypeVar("Result")


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo and returns the exit status: 2, with a line on standard error, if an input cannot be used."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0])
    parser.add_argument("audio", nargs="?", help="a recording: wav, flac, ogg or mp3, of any rate and channel count")
    parser.add_argument("--model", default=MODEL, help="a model's folder (default: %(default)s)")
    parser.add_argument(
        "-o", "--output", type=Path, default=OUTPUT, help="folder of the results (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    audio = Path(options.model) / RECORDING if options.audio is None else Path(options.audio).expanduser()
    try:
        recording = read_audio(audio, RATE)  # before the model, which takes seconds to import and to load
        print(f"Loading {Path(options.model).name} …", flush=True)
        from modeling_taae.codec import load_codec

        reconstruct(load_codec(str(options.model)), recording, options.output / audio.stem.removesuffix("-original"))
    except TaaeInputError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    return 0


def reconstruct(codec: "Codec", recording: np.ndarray, stem: Path) -> None:
    """Encodes and decodes a recording, and writes tokens, audio and a picture.

    Args:
        codec: codec of a model for 16 kHz.
        recording: (samples,) float32 at 16 kHz.
        stem: path of the results without their endings, so that none can overwrite the recording.

    Raises:
        TaaeInputError: if the model has another sampling rate, or a file cannot be written.
    """
    if codec.model.config.sampling_rate != RATE:
        raise TaaeInputError(
            f"the demo is for models of {RATE:,} Hz; this one has {codec.model.config.sampling_rate:,}"
        )
    codec.decode(codec.encode(recording[:RATE]))  # the first call takes longer than all others
    encoded, encoding = timed(lambda: codec.encode(recording))
    decoded, decoding = timed(lambda: codec.decode(encoded))
    heard = codec.extractor(recording, sampling_rate=RATE)["input_values"][0, 0, : len(recording)].numpy()

    tokens, before, after, picture = (
        stem.with_name(stem.name + end) for end in (".taae", "_original.wav", "_decoded.wav", ".png")
    )
    content = encoded.to_bytes(codec.prior)
    encoded.save(tokens, codec.prior)
    write_audio(before, heard, RATE)
    write_audio(after, decoded, RATE)
    draw(picture, {before.name: heard, after.name: decoded}, RATE, codec.identity)
    print(describe(encoded, len(content)))
    for topic, text in {
        "recording": f"{before}",
        "decoded": f"{after}",
        "picture": f"{picture}",
        "tokens": f"{tokens} (`taae decode` takes it)",
        "speed": f"encoding {speed(encoded.duration, encoding)}, decoding {speed(encoded.duration, decoding)}",
    }.items():
        print(f"  {topic:<10} {text}")


def draw(target: Path, signals: dict[str, np.ndarray], rate: int, identity: str) -> None:
    """Draws each signal's waveform and spectrogram, one signal to a column, into a PNG that names the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(signals), 6), layout="constrained")
    waveforms, spectrograms = figure.subplots(2, len(signals), sharex=True, sharey="row")
    loudest = max(spectrum(signal).max() for signal in signals.values())
    for column, (name, signal) in enumerate(signals.items()):
        waveforms[column].plot(np.arange(len(signal)) / rate, signal, linewidth=0.4)
        waveforms[column].set(title=name)
        image = draw_spectrum(spectrograms[column], signal, rate, loudest)
        spectrograms[column].set(xlabel="time in s")
    waveforms[0].set(ylabel="amplitude")
    spectrograms[0].set(ylabel="frequency in kHz")
    figure.colorbar(image, ax=spectrograms, label="dB")
    save_picture(figure, target, identity)


def save_picture(figure: "Figure", target: Path, identity: str) -> None:
    """Saves a figure as PNG, in one step, with the identity of the models that it shows."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"model_identity": identity})
    write_bytes(target, content.getvalue())


def describe(encoded: "TaaeFile", size: int) -> str:
    """Returns a sentence with a clip's length, the file's size in bytes, and the compression."""
    samples = 2 * encoded.num_samples
    return (
        f"{encoded.duration:.1f} seconds of speech became {size:,} bytes: {8 * size / encoded.duration:.0f} bits per "
        f"second, {samples / size:,.0f} times less than 16-bit samples. Play the recording, then the decoded one:"
    )


def speed(duration: float, seconds: float) -> str:
    """Returns how long work on a clip took, in seconds and relative to the clip's length, also in seconds."""
    faster = seconds <= duration
    ratio = duration / seconds if faster else seconds / duration
    return f"{seconds:.2f} s ({ratio:.1f} times {'faster' if faster else 'slower'} than real time)"


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Returns the result of `work`, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
