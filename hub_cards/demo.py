"""Hear the codec: decodes the sample that comes with a model, or takes a recording of yours through it.

`python hub_cards/demo.py` decodes the model's own demo.taae, encodes what came out once more, and compares.
`python hub_cards/demo.py my.wav` encodes and decodes my.wav, and draws both.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from modeling_taae.audio_io import read_audio, write_audio
from modeling_taae.codec import Codec, load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.taae_file import TaaeFile

MODEL = Path(__file__).parent / "taae-speech-16k-nano"
OUTPUT = Path("demo_out")

# The picture's spectrograms: 32 ms windows every 8 ms at 16 kHz, down to this far below the loudest value.
WINDOW, STEP, RANGE_DB = 512, 128, 80

Result = TypeVar("Result")


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo and returns the exit status: 2, with one line on standard error, where an input cannot be used."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0])
    parser.add_argument("audio", nargs="?", help="a recording: wav, flac, ogg or mp3, of any rate and channel count")
    parser.add_argument("--model", default=MODEL, help="a model's folder (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="where files go (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        codec, seconds = timed(lambda: load_codec(str(options.model)))
        say(
            "model", f"{Path(options.model).name}, {codec.model.num_parameters():,} parameters, {seconds:.1f} s to load"
        )
        if options.audio is None:
            play_sample(codec, Path(options.model) / "demo.taae", options.output)
        else:
            reconstruct(codec, Path(options.audio).expanduser(), options.output)
    except TaaeInputError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    return 0


def play_sample(codec: Codec, sample: Path, output: Path) -> None:
    """Decodes a `.taae` file, encodes what came out, and says how many tokens survive a second passage."""
    encoded = TaaeFile.load(sample)
    if encoded.model_identity not in codec.ancestors:
        raise TaaeInputError(f"{sample}: was encoded by another model than the one beside it; fetch the two together")
    say("sample", f"{sample.name}: {describe(encoded)}")

    decoded, seconds = timed(lambda: codec.decode(encoded))
    write_audio(output / "demo.wav", decoded, encoded.sampling_rate)
    say("decoded", f"{output / 'demo.wav'}, {speed(encoded, seconds)}")

    again, seconds = timed(lambda: codec.encode(decoded, encoded.bottleneck))
    again.save(output / "demo_again.taae")
    write_audio(output / "demo_again.wav", codec.decode(again), encoded.sampling_rate)
    say("encoded again", f"{output / 'demo_again.wav'}, {speed(encoded, seconds)}")

    same = again.audio_codes == encoded.audio_codes
    say("compared", f"{same.sum()} of {same.size} tokens ({same.mean():.0%}) are those of the sample.")
    explain("They were made from a recording, the new ones from the decoded audio, which is not that recording.")
    explain("So this is no check of correctness: it says how far a second passage through the codec drifts.")
    say("to play", f"{output / 'demo.wav'}, then {output / 'demo_again.wav'}")


def reconstruct(codec: Codec, audio: Path, output: Path) -> None:
    """Takes a recording through the codec: a `.taae` file, what went in and what came out as sound and as a picture."""
    rate = codec.model.config.sampling_rate
    recording = read_audio(audio, rate)
    encoded, seconds = timed(lambda: codec.encode(recording))
    # Under one stem, so that whatever the recording is called, none of these names can be the recording's own.
    stem = output / audio.stem
    tokens, before, after, picture = (
        stem.with_name(stem.name + end) for end in (".taae", "_in.wav", "_out.wav", ".png")
    )
    encoded.save(tokens)
    say("encoded", f"{tokens}: {describe(encoded)}")
    explain(speed(encoded, seconds))

    decoded, seconds = timed(lambda: codec.decode(TaaeFile.load(tokens)))
    say("decoded", speed(encoded, seconds))

    heard = codec.extractor(recording, sampling_rate=rate)["input_values"][0, 0, : len(recording)].numpy()
    write_audio(before, heard, rate)
    write_audio(after, decoded, rate)
    draw(picture, {before.name: heard, after.name: decoded}, rate, codec.identity)
    say("to play", f"{before} (mono, {rate:,} Hz, at the loudness that the codec gives it), then {after}")
    say("to look at", str(picture))


def draw(target: Path, signals: dict[str, np.ndarray], rate: int, identity: str) -> None:
    """Draws each signal's waveform and spectrogram, one signal to a column, into a PNG that names the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(signals), 6), layout="constrained")
    waveforms, spectrograms = figure.subplots(2, len(signals), sharex=True, sharey="row")
    levels = {name: log_spectrogram(signal) for name, signal in signals.items()}
    loudest = max(level.max() for level in levels.values())
    for column, (name, signal) in enumerate(signals.items()):
        duration = len(signal) / rate
        waveforms[column].plot(np.arange(len(signal)) / rate, signal, linewidth=0.4)
        waveforms[column].set(title=name)
        image = spectrograms[column].imshow(
            levels[name],
            origin="lower",
            aspect="auto",
            extent=(0, duration, 0, rate / 2000),
            vmin=loudest - RANGE_DB,
            vmax=loudest,
            cmap="magma",
        )
        spectrograms[column].set(xlabel="time in s")
    waveforms[0].set(ylabel="amplitude")
    spectrograms[0].set(ylabel="frequency in kHz")
    figure.colorbar(image, ax=spectrograms, label="dB")
    figure.savefig(target, dpi=120, metadata={"model_identity": identity})


def log_spectrogram(signal: np.ndarray) -> np.ndarray:
    """(samples,) -> (frequencies, frames), in dB."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(
        torch.from_numpy(signal), WINDOW, STEP, window=window, pad_mode="constant", return_complex=True
    )
    return 20 * spectrum.abs().clamp(min=1e-6).log10().numpy()


def describe(encoded: TaaeFile) -> str:
    """Length, size and rate of an encoded clip."""
    size = len(encoded.to_bytes())
    return (
        f"{encoded.duration:.2f} s of speech in {size:,} bytes, {8 * size / encoded.duration:.0f} bit/s "
        f"({encoded.bit_rate:.0f} without header, checksum and padding)"
    )


def speed(encoded: TaaeFile, seconds: float) -> str:
    """How long a clip took, absolutely and relative to its length."""
    return f"{seconds:.2f} s, {encoded.duration / seconds:.1f} times faster than real time"


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def say(topic: str, text: str) -> None:
    """Prints one line of the demo's report."""
    print(f"{topic:>14}  {text}", flush=True)


def explain(text: str) -> None:
    """Prints a line that goes on from the one before."""
    say("", text)


if __name__ == "__main__":
    sys.exit(main())
