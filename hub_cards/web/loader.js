/**
 * Fetches the large files of the page, which are gzipped whatever the server does, shows how far it is, and keeps them, so
 * that they are fetched once. model.json says how many bytes each has, and its digest.
 */

// Pages of other folders on the same host have caches of their own.
const CACHE = `a-voice-in-a-link ${new URL(".", location.href).pathname} large`;

/**
 * The unpacked files of a model and its runtime, as ArrayBuffers by their name without `.gz`.
 * progress is called with the bytes that have arrived and those of all files, unless all were kept.
 */
export async function loadFiles(model, progress) {
  const cache = await openCache();
  const total = Object.values(model.files).reduce((sum, { bytes }) => sum + bytes, 0);
  const files = {};
  let arrived = 0;
  const wanted = [];
  for (const [name, { bytes, sha256 }] of Object.entries(model.files)) {
    const address = new URL(`${name}?${sha256.slice(0, 16)}`, location.href).href;
    wanted.push(address);
    let packed = await (await cache?.match(address))?.blob();
    if (packed?.size !== bytes) {
      const before = arrived;
      packed = await fetchFile(name, address, (received) => progress(before + received, total));
      await cache?.put(address, new Response(packed)).catch(() => {}); // a full disk: the page works, but not offline
    }
    arrived += bytes;
    progress(arrived, total);
    files[name.replace(/\.gz$/, "")] = await unpack(packed);
  }
  for (const { url } of (await cache?.keys()) ?? []) if (!wanted.includes(url)) await cache.delete(url);
  return files;
}

/** The cache, or undefined where a browser keeps none, as without https. */
async function openCache() {
  try {
    return await caches.open(CACHE);
  } catch {
    return undefined;
  }
}

async function fetchFile(name, address, progress) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${name} could not be fetched (${response.status}); reload the page`);
  const chunks = [];
  let received = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Blob(chunks);
    chunks.push(value);
    progress((received += value.length));
  }
}

/** The content of a gzipped file. Some servers say that such files are encoded, and browsers unpack them on the way. */
async function unpack(packed) {
  const start = new Uint8Array(await packed.slice(0, 2).arrayBuffer());
  if (start[0] !== 0x1f || start[1] !== 0x8b) return packed.arrayBuffer();
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
