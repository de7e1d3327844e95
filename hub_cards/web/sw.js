/** Keeps the whole page, so that it works offline. files.js, which the build writes, says what belongs to it. */

importScripts("files.js"); // VERSION, a digest of the files, and FILES, their names

self.addEventListener("install", (event) => {
  self.skipWaiting();
  // Past the browser's own cache, which may hold files of another version.
  const requests = FILES.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(requests)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(removeOtherVersions().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  event.respondWith(answer(event.request));
});

async function removeOtherVersions() {
  const others = (await caches.keys()).filter((name) => name !== VERSION);
  await Promise.all(others.map((name) => caches.delete(name)));
}

async function answer(request) {
  const cache = await caches.open(VERSION);
  return (await cache.match(request, { ignoreSearch: true })) ?? fetch(request);
}
