/**
 * A voice as the fragment of a link: a `.taae` file, version 1, in base64url.
 *
 * A voice is { samples, tokens }: the length of the audio in samples, and a Uint32Array with a token for each frame.
 * A model is the content of model.json; its frames have one token.
 */

const MAGIC = "TAAE";
const VERSION = 1;
// Where they begin and end in the file, in bytes.
const IDENTITY = [5, 13];
const SAMPLES = [21, 29];
const CHECKSUM_BYTES = 4;
// A little more than the link of half a minute has; pages make links of ten seconds.
const LONGEST_FRAGMENT = 2_000;

/** A link that cannot be listened to; the message is for whoever opened it. */
export class LinkError extends Error {}

/** The fragment of a link, without its `#`. */
export function toFragment(voice, model) {
  const content = [...header(voice.samples, model), ...pack(voice.tokens, tokenBits(model))];
  return toBase64([...content, ...littleEndian(crc32(content), CHECKSUM_BYTES)]);
}

/** The voice in a fragment. Throws a LinkError if it is cut short, damaged, foreign, or of another version or model. */
export function fromFragment(fragment, model) {
  if (fragment.length > LONGEST_FRAGMENT) {
    throw new LinkError(`This link is too long: ${fragment.length} characters. Links of this page have about 800. Ask for it again.`);
  }
  const bytes = fromBase64(fragment);
  if (String.fromCharCode(...bytes.subarray(0, MAGIC.length)) !== MAGIC) {
    throw new LinkError("There is no voice message in this link. Ask for it again, and open it unchanged.");
  }
  const version = bytes[MAGIC.length];
  if (version > VERSION) {
    throw new LinkError(`This link has version ${version}; this page reads version ${VERSION}. Reload the page while you are online.`);
  }
  if (bytes.length < SAMPLES[1]) throw cutShort(fragment);
  const samples = new DataView(bytes.buffer).getBigUint64(SAMPLES[0], true);
  const expected = header(samples, model);
  const frames = Math.ceil(Number(samples) / model.hop_length);
  const end = expected.length + Math.ceil((frames * tokenBits(model)) / 8);
  if (!isIntact(bytes)) throw bytes.length < end + CHECKSUM_BYTES ? cutShort(fragment) : damaged();
  checkModel(bytes, expected, model);
  if (bytes.length !== end + CHECKSUM_BYTES || frames === 0) throw damaged();
  const tokens = unpack(bytes.subarray(expected.length, end), frames, tokenBits(model));
  if (tokens.some((token) => token >= model.vocabulary_size)) throw damaged();
  return { samples: Number(samples), tokens };
}

/** What stands before the tokens of so many samples, as an array of bytes. */
function header(samples, model) {
  const identity = model.identity.match(/../g).map((digits) => parseInt(digits, 16));
  return [
    ...ascii(MAGIC),
    VERSION,
    ...identity,
    ...littleEndian(model.sampling_rate, 4),
    ...littleEndian(model.hop_length, 4),
    ...littleEndian(samples, 8),
    ...littleEndian(model.bottleneck.length, 2),
    ...ascii(model.bottleneck),
    1, // token a frame
    ...littleEndian(model.vocabulary_size, 8),
  ];
}

function checkModel(bytes, expected, model) {
  const differs = (start, end) => expected.slice(start, end).some((byte, index) => byte !== bytes[start + index]);
  if (differs(...IDENTITY)) {
    const digits = [...bytes.subarray(...IDENTITY)].map((byte) => byte.toString(16).padStart(2, "0"));
    throw new LinkError(
      `This message was made with another model (${digits.join("")}); this page has ${model.identity} and cannot decode ` +
        "it. Reload the page while you are online. If that does not help, open the link on the page that made it."
    );
  }
  if (differs(0, expected.length)) {
    throw new LinkError("This message was made with settings that this page cannot decode. Open the link on the page that made it.");
  }
}

function cutShort(fragment) {
  return new LinkError(
    `This link is incomplete: only ${fragment.length} characters of the message arrived. ` +
      "Ask for it again, and open the whole link."
  );
}

function damaged() {
  return new LinkError("This link was damaged on its way (wrong checksum). Ask for it again.");
}

function isIntact(bytes) {
  const content = bytes.subarray(0, -CHECKSUM_BYTES);
  return new DataView(bytes.buffer).getUint32(content.length, true) === crc32(content);
}

/** The fewest whole bits that hold any token. */
function tokenBits(model) {
  return 32 - Math.clz32(model.vocabulary_size - 1);
}

/** Tokens, each in so many bits, lowest bit first. */
function pack(tokens, bits) {
  const bytes = new Uint8Array(Math.ceil((tokens.length * bits) / 8));
  tokens.forEach((token, index) => {
    for (let bit = 0; bit < bits; bit++) {
      const place = index * bits + bit;
      bytes[place >> 3] |= ((token >>> bit) & 1) << (place & 7);
    }
  });
  return bytes;
}

/** What pack() wrote. */
function unpack(bytes, count, bits) {
  return Uint32Array.from({ length: count }, (_, index) => {
    let token = 0;
    for (let bit = 0; bit < bits; bit++) {
      const place = index * bits + bit;
      token |= ((bytes[place >> 3] >> (place & 7)) & 1) << bit;
    }
    return token;
  });
}

function crc32(bytes) {
  let remainder = ~0;
  for (const byte of bytes) {
    remainder ^= byte;
    for (let bit = 0; bit < 8; bit++) remainder = (remainder >>> 1) ^ (remainder & 1 ? 0xedb88320 : 0);
  }
  return ~remainder >>> 0;
}

/** A number as so many bytes, lowest first. */
function littleEndian(number, count) {
  return Array.from({ length: count }, (_, index) => Number((BigInt(number) >> BigInt(8 * index)) & 255n));
}

function ascii(text) {
  return [...text].map((character) => character.charCodeAt(0));
}

function toBase64(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The bytes of base64url; none where it is no such thing. What a cut leaves of a byte is dropped. */
function fromBase64(text) {
  const whole = text.length % 4 === 1 ? text.slice(0, -1) : text;
  if (!/^[\w-]*$/.test(whole)) return new Uint8Array();
  const binary = atob(whole.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}
