// Damages links of the page: node links.mjs VOICE_MODULE FIRST_SEED ATTEMPTS. Prints the counts as JSON.
import { readFileSync } from "node:fs";

const [, , file, firstSeed, attempts] = process.argv;
const source = readFileSync(file, "utf-8");
const page = await import(`data:text/javascript;base64,${Buffer.from(source).toString("base64")}`);
const MODEL = {
  name: "made-up",
  identity: "00c0ffee12345678",
  bottleneck: "1x46656_400bps",
  vocabulary_size: 46656,
  sampling_rate: 16000,
  hop_length: 640,
};
const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=%#é\u0000 ";

/** Numbers from 0 to 1 of a seed (mulberry32). */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function damage(link, random) {
  const pick = (count) => Math.floor(random() * count);
  const start = pick(link.length + 1);
  const letter = () => ALPHABET[pick(ALPHABET.length)];
  const edits = [
    () => link.slice(0, start) + letter() + link.slice(start + 1),
    () => link.slice(0, start),
    () => link.slice(start),
    () => link.slice(0, start) + letter() + link.slice(start),
    () => link.slice(0, start) + link.slice(start + 1 + pick(8)),
    () => link + link.slice(start),
    () => Array.from({ length: pick(200) }, letter).join(""),
    () => link.slice(0, start) + link.slice(start).split("").reverse().join(""),
  ];
  return edits[pick(edits.length)]();
}

const counts = { refused: 0, right: 0, other: 0, failed: [] };
for (let seed = Number(firstSeed); seed < Number(firstSeed) + Number(attempts); seed++) {
  const random = generator(seed);
  const frames = 1 + Math.floor(random() * 40);
  const tokens = Uint32Array.from({ length: frames }, () => Math.floor(random() * MODEL.vocabulary_size));
  const voice = { samples: frames * 640 - Math.floor(random() * 640), tokens };
  const link = page.toFragment(voice, MODEL);
  const damaged = damage(link, random);
  const begun = performance.now();
  try {
    const read = page.fromFragment(damaged, MODEL);
    const same = read.samples === voice.samples && read.tokens.every((token, index) => token === tokens[index]);
    if (same) counts.right++;
    else counts.failed.push(`${seed}: reads as another voice`);
  } catch (error) {
    if (error instanceof page.LinkError) counts.refused++;
    else counts.failed.push(`${seed}: ${error}`);
  }
  if (performance.now() - begun > 5000) counts.failed.push(`${seed}: takes ${performance.now() - begun} ms`);
}
console.log(JSON.stringify(counts));
