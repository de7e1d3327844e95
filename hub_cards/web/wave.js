/** Samples, Float32Array, as a WAV file that a player plays and a visitor may save: 32-bit floats, mono. */
export function toWave(samples, samplingRate) {
  const view = new DataView(new ArrayBuffer(44));
  const text = (start, word) => [...word].forEach((_, index) => view.setUint8(start + index, word.charCodeAt(index)));
  const bytes = 4 * samples.length;
  text(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format that follows
  view.setUint16(20, 3, true); // floats
  view.setUint16(22, 1, true); // channel
  view.setUint32(24, samplingRate, true);
  view.setUint32(28, 4 * samplingRate, true); // bytes a second
  view.setUint16(32, 4, true); // bytes a sample
  view.setUint16(34, 32, true); // bits a sample
  text(36, "data");
  view.setUint32(40, bytes, true);
  return new Blob([view, samples], { type: "audio/wav" });
}
