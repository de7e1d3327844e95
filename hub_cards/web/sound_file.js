/** Reads recordings from files, in any format that the browser plays. */

/** The first seconds of a file as samples, Float32Array of a rate, its channels mixed; and whether there was more. */
export async function readSound(content, samplingRate, longest) {
  const context = new OfflineAudioContext(1, 1, samplingRate); // decodes to its own rate
  const decoded = await context.decodeAudioData(content);
  const length = Math.min(decoded.length, longest * samplingRate);
  const samples = new Float32Array(length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    const values = decoded.getChannelData(channel);
    for (let index = 0; index < length; index++) samples[index] += values[index] / decoded.numberOfChannels;
  }
  return { samples, cut: decoded.length > length };
}
