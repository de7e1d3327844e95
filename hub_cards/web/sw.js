/** Keeps the page, so that it works offline; loader.js keeps the large files. files.js, which the build writes, says what belongs to it. */

importScripts("files.js"); // VERSION, a digest of the files, and FILES, their names

// All pages of a host share its caches: those of other pages, and of this page in another folder, are left alone. What
// loader.js keeps has a name of its own.
const PREFIX = `a-voice-in-a-link ${new URL(self.registration.scope).pathname} page `;
const NAME = PREFIX + VERSION;

self.addEventListener("install", (event) => {
  self.skipWaiting();
  // Past the browser's own cache, which may hold files of another version.
  const requests = FILES.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(requests)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(removeOtherVersions().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  event.respondWith(answer(event.request));
});

async function removeOtherVersions() {
  const others = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== NAME);
  await Promise.all(others.map((name) => caches.delete(name)));
}

async function answer(request) {
  const cache = await caches.open(NAME);
  return (await cache.match(request, { ignoreSearch: true })) ?? fetch(request);
}
