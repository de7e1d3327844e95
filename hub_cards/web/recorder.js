/** From the microphone to samples. */

// Loudness is normalised afterwards, for the whole recording; a gain that changes in it would be heard.
const MICROPHONE = { channelCount: 1, echoCancellation: false, autoGainControl: false };

/**
 * Records until so many seconds are full or the signal `stop` (an AbortSignal) comes.
 *
 * onBlock is called with the samples of a block, and with the seconds so far.
 * Returns a Float32Array at the sampling rate, with at most so many seconds. Throws a DOMException if there is no
 * microphone, or it may not be used.
 */
export async function record(samplingRate, seconds, stop, onBlock) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: MICROPHONE });
  const { context, source } = connect(stream, samplingRate);
  try {
    await context.audioWorklet.addModule(new URL("recorder_worklet.js", import.meta.url));
    await context.resume();
    const node = new AudioWorkletNode(context, "recorder", { channelCount: 1, channelCountMode: "explicit" });
    // To the loudspeaker it gives silence; but what leads nowhere may not be run.
    source.connect(node).connect(context.destination);
    const samples = await collect(node.port, context.sampleRate, seconds, stop, onBlock);
    return await resample(samples, context.sampleRate, samplingRate);
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
  }
}

/** The microphone at the wanted rate; at its own one in a browser that cannot change it there. */
function connect(stream, samplingRate) {
  const context = new AudioContext({ sampleRate: samplingRate });
  try {
    return { context, source: context.createMediaStreamSource(stream) };
  } catch {
    context.close();
    const own = new AudioContext();
    return { context: own, source: own.createMediaStreamSource(stream) };
  }
}

function collect(port, samplingRate, seconds, stop, onBlock) {
  const samples = new Float32Array(Math.round(samplingRate * seconds));
  let length = 0;
  return new Promise((resolve) => {
    const finish = () => {
      port.onmessage = null;
      resolve(samples.slice(0, length));
    };
    if (stop.aborted) return finish();
    stop.addEventListener("abort", finish, { once: true });
    port.onmessage = ({ data: block }) => {
      const part = block.subarray(0, samples.length - length);
      samples.set(part, length);
      length += part.length;
      onBlock(part, length / samplingRate);
      if (length === samples.length) finish();
    };
  });
}

async function resample(samples, from, to) {
  if (from === to || samples.length === 0) return samples;
  const context = new OfflineAudioContext(1, Math.round((samples.length * to) / from), to);
  const buffer = new AudioBuffer({ length: samples.length, sampleRate: from });
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}
