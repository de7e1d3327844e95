"""Lyra V2, a SoundStream codec at 3.2, 6 and 9.2 kbit/s (github.com/google/lyra), through its three TFLite models.

For every 20 ms of sound at 16 kHz, the encoder computes 64 features. The quantizer turns them into residual codes of 4
bits, whose number depends on the rate. The decoder turns the codes' features into 20 ms of sound. Encoder and decoder
keep state between frames.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..taae_file import pack_tokens
from .alignment import SAMPLING_RATE
from .codecs import Encoded
from .peers import MissingToolError

FRAME = SAMPLING_RATE // 50
QUANTIZERS, VOCABULARY = 46, 16
MODELS = ("soundstream_encoder", "quantizer", "lyragan")
INTERPRETERS = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")


class LyraSystem:
    """Lyra V2 at one of its rates.

    Args:
        kilobits: bit rate in kbit/s: 3.2, 6 or 9.2.
        folder: the folder with the three models; None for $LYRA_MODELS.

    Raises:
        MissingToolError: if the models or a TFLite interpreter are missing.
    """

    delay = None

    def __init__(self, kilobits: str, folder: Path | None = None):
        self.name = f"lyra-{kilobits}k"
        self.nominal_bit_rate = 1000 * float(kilobits)
        self.stages = round(self.nominal_bit_rate / 50 / 4)
        interpreter = find_interpreter(self.name)
        folder = folder or Path(os.environ.get("LYRA_MODELS", "."))
        if missing := [f"{name}.tflite" for name in MODELS if not (folder / f"{name}.tflite").is_file()]:
            raise MissingToolError(
                f"{self.name}: left out, because {' and '.join(missing)} cannot be found in {folder}; take them from "
                "lyra/model_coeffs of github.com/google/lyra, and name their folder in $LYRA_MODELS"
            )
        self.encoder, quantizer, self.decoder = (
            interpreter(str(folder / f"{name}.tflite"), num_threads=1) for name in MODELS
        )
        for model in (self.encoder, quantizer, self.decoder):
            model.allocate_tensors()
        self.quantize, self.dequantize = (quantizer.get_signature_runner(name) for name in ("encode", "decode"))
        self.facts: dict[str, Any] = {
            "kind": "Lyra V2",
            "models": "lyra/model_coeffs of github.com/google/lyra",
            "resampling": "none, 16-bit samples",
            "file": "bare frames, each in whole bytes",
        }

    def encode(self, audio: np.ndarray) -> Encoded:
        """Encodes whole frames; two more than the clip fills, because the decoder is late."""
        samples = np.clip(np.rint(audio * 2.0**15), -(2**15), 2**15 - 1).astype(np.float32) / 2**15
        frames = np.pad(samples, (0, -len(samples) % FRAME + 2 * FRAME)).reshape(-1, FRAME)
        self.encoder.reset_all_variables()
        shape = self.quantize.get_input_details()["num_quantizers"]["shape"]
        stages = np.full(shape, self.stages, np.int32)
        codes = np.stack(
            [
                self.quantize(num_quantizers=stages, input_frames=run(self.encoder, frame).reshape(1, 1, -1))[
                    "output_0"
                ].reshape(-1)[: self.stages]
                for frame in frames
            ],
            axis=1,
        ).astype(np.int64)
        paid = codes[:, : -(-len(audio) // FRAME)]
        size = len(pack_tokens(paid, (VOCABULARY,) * self.stages))
        return Encoded(codes, size, size, paid)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Decodes frame after frame."""
        self.decoder.reset_all_variables()
        decoded = []
        for frame in encoded.content.T:
            indices = np.full((QUANTIZERS, 1, 1), -1, np.int32)  # -1 stands for a stage that was not sent
            indices[: self.stages, 0, 0] = frame
            features = self.dequantize(encoding_indices=indices)["output_0"]
            decoded.append(run(self.decoder, features).reshape(-1))
        return np.concatenate(decoded)


def find_interpreter(name: str) -> Any:
    """Returns the class that runs TFLite models.

    Raises:
        MissingToolError: if no package has it.
    """
    for module in INTERPRETERS:
        try:
            return import_module(module).Interpreter
        except (ImportError, AttributeError):
            continue
    raise MissingToolError(
        f"{name}: left out, because no package here runs TFLite models; install one with `pip install ai-edge-litert`"
    )


def run(model: Any, values: np.ndarray) -> np.ndarray:
    """Runs one step of a model with one input and one output."""
    (source,), (target,) = model.get_input_details(), model.get_output_details()
    model.set_tensor(source["index"], values.astype(np.float32).reshape(source["shape"]))
    model.invoke()
    return model.get_tensor(target["index"])
