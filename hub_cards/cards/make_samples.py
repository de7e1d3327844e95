"""Makes the audio samples: `python hub_cards/cards/make_samples.py [--recordings SOURCE …]`.

`hub_cards/samples/clips.yaml` lists the recordings. Every published model, at its default bottleneck, and two other
codecs encode and decode each of them. The results go beside the models (`taae-*/samples/`), where their cards play
them, to `hub_cards/samples/`, and onto the page `docs/samples.html`. With `--recordings`, the originals are read again
from data sets that contain their ids, and made mono, 16 kHz and -20 LUFS.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's hub_cards/ is not installed

from modeling_taae.audio_io import read_audio, to_pcm16
from modeling_taae.codec import Codec, load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.alignment import align
from modeling_taae.evaluation.peers import make_peer
from modeling_taae.feature_extraction_taae import TaaeFeatureExtractor
from modeling_taae.files import write_bytes

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, PAGE = ROOT / "hub_cards" / "samples", ROOT / "docs" / "samples.html"
RATE = 16_000
# Bits per sample of decoded clips. 14 save a fifth of the bytes, and the rounding lies 60 dB below speech.
DECODED_BITS = 14
# The published models by size, as the page and the demo show them.
MODELS = ("taae-speech-16k-small", "taae-speech-16k-nano", "taae-speech-16k-nano-causal")
PEERS = {"codec2-700C": "Codec2 700C", "opus-6k": "Opus at its lowest rate"}
ORIGINAL = "original"


@dataclass(frozen=True)
class Clip:
    """A recording of clips.yaml.

    Args:
        name: name of its files.
        id: id in its data set.
        voice: description of the speaker, with the language.
        language: language code.
        text: transcript.
        source: the data set, and the recording in it.
        link: address of the data set.
        license: licence of the recording.
        training: sentence that says whether models were trained on it.
    """

    name: str
    id: str
    voice: str
    language: str
    text: str
    source: str
    link: str
    license: str
    training: str


def read_clips(folder: Path = SAMPLES) -> list[Clip]:
    """Returns the recordings of clips.yaml, in the order of the page."""
    return [Clip(**clip) for clip in yaml.safe_load((folder / "clips.yaml").read_text(encoding="utf-8"))]


def read_original(clip: Clip, folder: Path = SAMPLES) -> np.ndarray:
    """Returns a clip's recording, (samples,) float32 at 16 kHz and -20 LUFS."""
    return read_audio(folder / clip.name / f"{ORIGINAL}.flac", RATE)


def fetch_originals(clips: list[Clip], sources: list[str], folder: Path = SAMPLES) -> None:
    """Reads the recordings from data sets, and writes them.

    Raises:
        TaaeInputError: if a recording is in none of the data sets.
    """
    from modeling_taae.data.utterances import Utterances

    extractor, missing = TaaeFeatureExtractor(), {clip.id: clip for clip in clips}
    for utterance in Utterances(sources, RATE):
        if (clip := missing.pop(utterance.id, None)) is not None:
            inputs = extractor(utterance.audio, sampling_rate=RATE, return_tensors="np")
            recording = inputs["input_values"][0, 0, : len(utterance.audio)]
            write_flac(folder / clip.name / f"{ORIGINAL}.flac", recording, bits=16)
        if not missing:
            return
    raise TaaeInputError(f"{' '.join(sources)}: holds no recording {', '.join(missing)}; name its data set too")


def write_flac(path: Path, audio: np.ndarray, model_identity: str = "", bits: int = DECODED_BITS) -> None:
    """Writes (samples,) float32 at 16 kHz as FLAC, with a comment that names the model."""
    step = 1 << (16 - bits)
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16", format="FLAC", compression_level=1.0) as file:
        if model_identity:
            file.comment = f"model_identity={model_identity}"
        file.write(np.clip(np.round(to_pcm16(audio) / step) * step, -(2**15), 2**15 - step).astype(np.int16))


def make_model_samples(clips: list[Clip], folder: Path) -> Codec:
    """Writes each clip and its reconstruction into the model's folder, and returns the model."""
    codec = load_codec(str(folder), device="cpu")
    for clip in clips:
        audio = read_original(clip)
        write_flac(folder / "samples" / f"{clip.name}.flac", codec.decode(codec.encode(audio)), codec.identity)
        original = (SAMPLES / clip.name / f"{ORIGINAL}.flac").read_bytes()
        write_bytes(folder / "samples" / f"{clip.name}-{ORIGINAL}.flac", original)
    return codec


def make_peer_samples(clips: list[Clip], name: str) -> float:
    """Writes another codec's reconstruction of each clip, and returns its bit rate in bit/s."""
    peer = make_peer(name)
    for clip in clips:
        audio = read_original(clip)
        decoded = align(peer.decode(peer.encode(audio)), peer.delay or 0, len(audio))
        write_flac(SAMPLES / clip.name / f"{name}.flac", decoded)
    return peer.nominal_bit_rate


def versions(rates: dict[str, float], clip: Clip) -> list[dict[str, str]]:
    """Returns label, rate and address of each version of a clip on the page, the recording first."""
    found = [{"label": "Recording", "rate": "256,000", "file": f"../hub_cards/samples/{clip.name}/{ORIGINAL}.flac"}]
    for name, rate in rates.items():
        ours = name in MODELS
        place = f"{name}/samples/{clip.name}.flac" if ours else f"samples/{clip.name}/{name}.flac"
        label = f"TAAE {name.removeprefix('taae-speech-16k-').replace('-', ' ')}" if ours else PEERS[name]
        found.append({"label": label, "rate": f"{rate:,.0f}", "file": f"../hub_cards/{place}"})
    return found


def samples_page(clips: list[Clip], rates: dict[str, float]) -> str:
    """Returns the page that plays every version of every clip."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    template = environment.get_template("samples.html")
    return template.render(clips=[(clip, versions(rates, clip)) for clip in clips]).rstrip() + "\n"


def make_samples(recordings: list[str]) -> None:
    """Makes all samples and the page.

    Args:
        recordings: data sets to read the originals from; empty keeps the present ones.

    Raises:
        TaaeInputError: if a recording, a model or another codec's program is missing.
    """
    clips, rates = read_clips(), {}
    if recordings:
        fetch_originals(clips, recordings)
    for name in MODELS:
        model = make_model_samples(clips, ROOT / "hub_cards" / name).model
        rates[name] = model.bottleneck(None).bits_per_frame * model.config.frame_rate
    for name in PEERS:
        rates[name] = make_peer_samples(clips, name)
    write_bytes(PAGE, samples_page(clips, rates).encode())


def main(arguments: list[str] | None = None) -> int:
    """Makes the samples, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make_samples.py", description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", nargs="+", default=[], metavar="SOURCE", help="data sets with the originals")
    options = parser.parse_args(arguments)
    try:
        make_samples(options.recordings)
    except TaaeInputError as error:
        print(f"make_samples.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
