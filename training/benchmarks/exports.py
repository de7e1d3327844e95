"""Measures what `taae export` writes: `python training/measure.py exports FOLDER --speech FILES`.

Exports the model in each format at its default bottleneck. Compares size, speed, tokens of speech and audio with the
model in PyTorch. Writes results/export.json in the model's folder, and the table in docs/export.md if that page has a
place for the model.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from modeling_taae import TaaeModel
from modeling_taae.codec import Codec, load_codec
from modeling_taae.evaluation.metrics import ALL_METRICS, score
from modeling_taae.evaluation.report import table
from modeling_taae.evaluation.results import rounded
from modeling_taae.export.export import FORMATS, export_codec
from modeling_taae.export.runtime import ExportedCodec
from training.benchmarks.runner import ROOT, Measurement, clips_of, machine, processor_text

METRICS = ("pesq_wb", "stoi")
# One thread, so that CPU time equals elapsed time.
THREADS = 1


@dataclass
class Way:
    """One way to run the model, and its results so far.

    Args:
        name: name in the table.
        encode: function from (1, 1, samples) float32 to tokens (1, tokens_per_frame, frames).
        decode: function from tokens to audio (1, 1, samples) float32.
        files: bytes of the encoder and of the decoder, or of both together.
        seconds: CPU time of encoding and of decoding.
        equal: whether each token equals the model's.
        errors: energy of the difference from the model's audio, for each utterance; both are decoded from its tokens.
        energies: energy of the model's audio, for each utterance.
        scores: scores of each utterance encoded and decoded in this way.
    """

    name: str
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    files: list[int]
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    equal: list[bool] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)

    def timed(self, direction: int, inputs: np.ndarray) -> np.ndarray:
        """Encodes (0) or decodes (1), and adds the time to `seconds`."""
        start = time.process_time()
        outputs = (self.encode, self.decode)[direction](inputs)
        self.seconds[direction] += time.process_time() - start
        return outputs

    def summary(self, duration: float) -> dict:
        """Returns the results for a number of seconds of audio."""
        error = sum(self.errors)
        return {
            "name": self.name,
            "bytes": self.files,
            "encode_time": self.seconds[0] / duration,
            "decode_time": self.seconds[1] / duration,
            "equal_tokens": mean(self.equal),
            "signal_to_error": 10 * np.log10(sum(self.energies) / error) if error else None,
            "metrics": {name: mean(scores[name] for scores in self.scores) for name in self.scores[0]},
        }


def in_pytorch(model: TaaeModel, name: str) -> Way:
    """The model in PyTorch."""

    def encode(audio: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model.encode(torch.from_numpy(audio)).audio_codes.numpy()

    def decode(codes: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model.decode(torch.from_numpy(codes)).audio_values.float().numpy()

    return Way(name, encode, decode, [sum(parameter.nbytes for parameter in model.parameters())])


def exported(folder: Path, name: str, fast: bool = False) -> Way:
    """Returns the model that was exported to a folder."""
    codec = ExportedCodec.load(folder, THREADS, fast, trust_code=True)
    files = [sum(path.stat().st_size for path in folder.glob(f"{side}.*")) for side in ("encoder", "decoder")]
    return Way(name, lambda audio: codec.encode(audio).audio_codes, codec.decode, files)


def measure(
    folder: Path,
    sources: list[str],
    limit: int | None,
    metrics: Sequence[str] = METRICS,
    export: Callable[[Codec, Path, str], object] = export_codec,
) -> dict:
    """Returns the content of export.json.

    Args:
        folder: folder of the model.
        sources: sources of speech.
        limit: number of utterances from the start; None for all.
        metrics: names of the metrics.
        export: function that exports a codec to a folder in a format.

    Raises:
        TaaeInputError: if there is no such model, or no readable speech.
    """
    torch.set_num_threads(THREADS)
    codec = load_codec(str(folder), device="cpu")
    speech = clips_of(codec, sources, limit)
    ways = [in_pytorch(codec.model, "PyTorch, float32")]
    ways.append(in_pytorch(load_codec(str(folder), device="cpu").model.to(torch.bfloat16), "PyTorch, bfloat16"))
    duration, utterances = 0.0, 0
    with tempfile.TemporaryDirectory() as temporary:
        for file_format in FORMATS:
            export(codec, Path(temporary, file_format), file_format)
            ways.append(exported(Path(temporary, file_format), file_format))
        ways.append(exported(Path(temporary, "onnx-int8"), "onnx-int8, activations in 8 bits", fast=True))
        for audio in speech:
            inputs = codec.extractor(audio, sampling_rate=codec.extractor.sampling_rate)
            compare(ways, inputs["input_values"].numpy(), len(audio), metrics)
            duration, utterances = duration + len(audio) / codec.extractor.sampling_rate, utterances + 1
    results = {
        "model_identity": codec.identity,
        "bottleneck": codec.model.config.bottleneck,
        "speech": [Path(source).name for source in sources],
        "utterances": utterances,
        "seconds": duration,
        "threads": THREADS,
        "ways": [way.summary(duration) for way in ways],
        "environment": machine(),
    }
    return rounded(results)


def compare(ways: list[Way], audio: np.ndarray, samples: int, metrics: Sequence[str]) -> None:
    """Encodes and decodes an utterance, (1, 1, samples) float32, in each way. The first way is the reference."""
    codes, decoded = None, None
    for way in ways:
        own_codes = way.timed(0, audio)
        codes = own_codes if codes is None else codes
        of_same_codes = way.timed(1, codes)
        decoded = of_same_codes if decoded is None else decoded
        way.equal += (own_codes == codes).ravel().tolist()
        way.errors.append(float(np.square(of_same_codes - decoded).sum()))
        way.energies.append(float(np.square(decoded).sum()))
        way.scores.append(score(audio[0, 0, :samples], way.decode(own_codes)[0, 0, :samples], metrics))


def export_table(results: dict) -> str:
    """The results as Markdown."""
    metrics = [ALL_METRICS[name].label for name in results["ways"][0]["metrics"]]
    heading = ["", "MB", "encode", "decode", "equal tokens", "audio", *metrics]
    rows = [
        [
            way["name"],
            " + ".join(f"{size / 1e6:.1f}" for size in way["bytes"]),
            f"{way['encode_time']:.4f}",
            f"{way['decode_time']:.4f}",
            f"{100 * way['equal_tokens']:.2f} %",
            "the same" if way["signal_to_error"] is None else f"{way['signal_to_error']:.0f} dB",
            *(f"{value:.{ALL_METRICS[name].decimals}f}" for name, value in way["metrics"].items()),
        ]
        for way in results["ways"]
    ]
    speech = ", ".join(f"`{name}`" for name in results["speech"])
    return (
        f"{table(heading, rows)}\n\n"
        f"Encoder + decoder of {results['model_identity']} at {results['bottleneck']}, on {results['utterances']} "
        f"utterances of {speech}, {results['seconds'] / 60:.1f} minutes. Encode and decode: processor time per second "
        f"of audio, one thread of {processor_text(results['environment'])}. Equal tokens, and the ratio of signal to "
        "difference where both decode the same tokens: against PyTorch in float32. The last columns: speech encoded "
        "and decoded so, against the recording."
    )


MEASUREMENT = Measurement(
    "exports",
    "Measures what `taae export` writes.",
    "export.json",
    lambda options: measure(options.folder, options.speech, options.limit),
    export_table,
    ROOT / "docs" / "export.md",
    "export",
)
main = MEASUREMENT.run
