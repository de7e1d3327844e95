/**
 * Loudness after ITU-R BS.1770-4, as the feature extractor of the Python package measures and normalises it.
 *
 * A gain that differed would change the tokens, so the filters, the blocks and the limits are those of
 * feature_extraction_taae.py and of pyloudnorm, which it uses.
 */

const GATING_BLOCK = 0.4; // seconds
const STEP = 0.25; // of a block, from one to the next
const ABSOLUTE_GATE = -70; // LUFS
const RELATIVE_GATE = -10; // LU
const SILENCE_ENERGY = 1e-6; // mean square
const LIMITED_PEAK = 0.95;

/** A clip, Float32Array, at a target loudness in LUFS; unchanged where it has no loudness. */
export function normalizeLoudness(samples, samplingRate, target) {
  const loudness = integratedLoudness(samples, samplingRate);
  if (loudness === null) return samples;
  const peak = samples.reduce((highest, sample) => Math.max(highest, Math.abs(sample)), 0);
  const gain = 10 ** ((target - loudness) / 20);
  const limited = Math.fround(gain * peak >= 1 ? LIMITED_PEAK / peak : gain);
  return samples.map((sample) => sample * limited);
}

/** Loudness of a mono clip in LUFS; null where it is shorter than a block, near silence, or never above the gate. */
export function integratedLoudness(samples, samplingRate) {
  const energy = meanSquare(samples, 0, samples.length, samples.length);
  if (samples.length < GATING_BLOCK * samplingRate || energy < SILENCE_ENERGY) return null;
  const energies = blockEnergies(weighted(samples, samplingRate), samplingRate);
  const audible = energies.filter((energy) => loudnessOf(energy) >= ABSOLUTE_GATE);
  if (audible.length === 0) return null;
  const gate = loudnessOf(mean(audible)) + RELATIVE_GATE;
  return loudnessOf(mean(audible.filter((energy) => loudnessOf(energy) > gate)));
}

/** The clip after the K-weighting: a shelf for the head, and a high-pass filter; Float64Array. */
function weighted(samples, samplingRate) {
  return filtered(filtered(Float64Array.from(samples), highShelf(samplingRate)), highPass(samplingRate));
}

/** Mean squares of overlapping blocks. */
function blockEnergies(signal, samplingRate) {
  const seconds = signal.length / samplingRate;
  const count = roundHalfToEven((seconds - GATING_BLOCK) / (GATING_BLOCK * STEP)) + 1;
  return Array.from({ length: count }, (_, block) => {
    const start = Math.trunc(GATING_BLOCK * (block * STEP) * samplingRate);
    const end = Math.trunc(GATING_BLOCK * (block * STEP + 1) * samplingRate);
    return meanSquare(signal, start, Math.min(end, signal.length), GATING_BLOCK * samplingRate);
  });
}

function meanSquare(signal, start, end, length) {
  let sum = 0;
  for (let index = start; index < end; index++) sum += signal[index] ** 2;
  return sum / length;
}

function loudnessOf(energy) {
  return -0.691 + 10 * Math.log10(energy);
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function roundHalfToEven(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** A filter of second order: { b, a }, its coefficients from now to two samples ago. */
function highShelf(samplingRate) {
  const amplitude = 10 ** (4 / 40); // 4 dB
  const { cosine, alpha } = corner(1500, Math.SQRT1_2, samplingRate);
  const [more, less, slope] = [amplitude + 1, amplitude - 1, 2 * Math.sqrt(amplitude) * alpha];
  const b = [
    amplitude * (more + less * cosine + slope),
    -2 * amplitude * (less + more * cosine),
    amplitude * (more + less * cosine - slope),
  ];
  const a = [more - less * cosine + slope, 2 * (less - more * cosine), more - less * cosine - slope];
  return { b, a };
}

function highPass(samplingRate) {
  const { cosine, alpha } = corner(38, 0.5, samplingRate);
  return { b: [(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2], a: [1 + alpha, -2 * cosine, 1 - alpha] };
}

/** What the filters of Robert Bristow-Johnson's cookbook have in common: frequency in Hz, quality. */
function corner(frequency, quality, samplingRate) {
  const angle = (2 * Math.PI * frequency) / samplingRate;
  return { cosine: Math.cos(angle), alpha: Math.sin(angle) / (2 * quality) };
}

function filtered(signal, { b, a }) {
  const [b0, b1, b2, a1, a2] = [b[0], b[1], b[2], a[1], a[2]].map((coefficient) => coefficient / a[0]);
  let [first, second] = [0, 0]; // what is still to come of the samples so far (transposed direct form II)
  return signal.map((sample) => {
    const output = b0 * sample + first;
    first = b1 * sample - a1 * output + second;
    second = b2 * sample - a2 * output;
    return output;
  });
}
