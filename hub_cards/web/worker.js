/** Runs the codec beside the page, so that the page does not stand still meanwhile. */

import { Codec } from "./codec.js";

let codec;

const tasks = {
  load: async (parts) => {
    codec = await Codec.load(parts);
  },
  encode: (samples) => codec.encode(samples),
  decode: (tokens) => codec.decode(tokens),
};

onmessage = async ({ data: { id, task, argument } }) => {
  const start = performance.now();
  try {
    const result = await tasks[task](argument);
    postMessage({ id, result, seconds: (performance.now() - start) / 1000 });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
