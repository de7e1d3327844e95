/**
 * The codec in ONNX, run by onnxruntime-web, which makes float32 of the 8-bit weights. `taae export` says what its inputs
 * and outputs are.
 */

import * as ort from "./ort.wasm.bundle.min.mjs";

// More than one needs headers that a plain host of files does not send.
ort.env.wasm.numThreads = 1;

export class Codec {
  /** Loads encoder and decoder from their files; model is the content of model.json, files are ArrayBuffers by name. */
  static async load({ model, files }) {
    ort.env.wasm.wasmBinary = files["ort-wasm-simd-threaded.wasm"];
    const codec = new Codec();
    codec.hopLength = model.hop_length;
    codec.encoder = await ort.InferenceSession.create(new Uint8Array(files["encoder.onnx"]));
    codec.decoder = await ort.InferenceSession.create(new Uint8Array(files["decoder.onnx"]));
    return codec;
  }

  /** Samples, Float32Array of the model's rate and loudness, to a Uint32Array with a token for each frame. */
  async encode(samples) {
    const frames = Math.ceil(samples.length / this.hopLength);
    const padded = new Float32Array(frames * this.hopLength);
    padded.set(samples);
    const mask = new Int32Array(padded.length).fill(1, 0, samples.length);
    const { audio_codes } = await this.encoder.run({
      input_values: new ort.Tensor("float32", padded, [1, 1, padded.length]),
      padding_mask: new ort.Tensor("int32", mask, [1, padded.length]),
    });
    return Uint32Array.from(audio_codes.data, Number);
  }

  /** Tokens to samples of whole frames, Float32Array. */
  async decode(tokens) {
    const frames = tokens.length;
    const { audio_values } = await this.decoder.run({
      audio_codes: new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, 1, frames]),
      audio_codes_mask: new ort.Tensor("int64", new BigInt64Array(frames).fill(1n), [1, frames]),
    });
    return audio_values.data;
  }
}
