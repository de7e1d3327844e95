// Decodes Opus packets on standard input, each after its length in four bytes, to float32 samples on standard output,
// with the neural speech enhancement of libopus 1.5 in the npm package @wasm-audio-decoders/opus-ml.
//
//   node opus_nolace.mjs version
//   node opus_nolace.mjs decode SAMPLING_RATE < packets > samples

import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const NAME = "@wasm-audio-decoders/opus-ml";
// As a script of this folder would find it, as one of the working folder would, and as $NODE_PATH says.
const places = [path.join(process.cwd(), "x.js"), import.meta.url];

function find() {
  for (const place of places) {
    try {
      return createRequire(place).resolve(NAME);
    } catch {}
  }
  throw new Error(`the npm package ${NAME} cannot be found`);
}

function version(file) {
  for (let folder = path.dirname(file); folder !== path.dirname(folder); folder = path.dirname(folder)) {
    const description = path.join(folder, "package.json");
    if (fs.existsSync(description)) {
      const content = JSON.parse(fs.readFileSync(description, "utf8"));
      if (content.name === NAME) return content.version;
    }
  }
  return "of an unknown version";
}

function* packets(content) {
  for (let start = 0; start < content.length; ) {
    const size = content.readUInt32LE(start);
    yield new Uint8Array(content.subarray(start + 4, start + 4 + size));
    start += 4 + size;
  }
}

try {
  const [command, rate] = process.argv.slice(2);
  const file = find();
  if (command === "version") {
    process.stdout.write(version(file));
  } else {
    const { OpusMLDecoder } = await import(file);
    const decoder = new OpusMLDecoder({
      speechQualityEnhancement: "nolace",
      sampleRate: Number(rate),
      channels: 1,
      streamCount: 1,
      coupledStreamCount: 0,
      channelMappingTable: [0],
      preSkip: 0,
    });
    await decoder.ready;
    const { channelData, samplesDecoded } = decoder.decodeFrames([...packets(fs.readFileSync(0))]);
    const samples = channelData[0];
    fs.writeSync(1, Buffer.from(samples.buffer, samples.byteOffset, 4 * samplesDecoded));
    decoder.free();
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
