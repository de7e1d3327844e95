/** The page: makes a link of a recording, or plays the voice message in the link that it was opened with. */

import { startWorker } from "./background.js";
import { loadFiles } from "./loader.js";
import { integratedLoudness, normalizeLoudness } from "./loudness.js";
import { record } from "./recorder.js";
import { readSound } from "./sound_file.js";
import { LinkError, fromFragment, toFragment } from "./voice.js";
import { toWave } from "./wave.js";

const LONGEST = 10; // seconds
const EXAMPLE = "example.flac";
const SHORTEST = 0.5;
const LOWEST_PEAK = 1e-3; // that the level shows: 60 dB below full scale

const find = (selector) => document.querySelector(selector);
const codec = startWorker();
let model;
let stop = null; // of the recording that runs, an AbortController
let last = Promise.resolve(); // what the visitor asked for last, until it is done
let focused = false; // whether the button had the focus when it was disabled
const LEFT = "left"; // why a recording ends that nobody wants any more

/** A problem that the visitor can solve; the message says how. */
class Problem extends Error {}

main().catch(complain);

async function main() {
  tell(location.hash ? "Somebody sent you a voice message. Loading the codec…" : "Loading the codec…");
  await keepForOffline();
  model = await fetchModel();
  find("#model").textContent = model.name;
  await loadCodec();
  find("#record").onclick = () => (stop ? stop.abort() : attempt(() => send(recordVoice)));
  find("#choose").onclick = () => find("#file").click();
  find("#file").onchange = () => attempt(() => send(chosenFile));
  find("#example").onclick = () => attempt(() => send(example));
  find("#copy").onclick = () => copyLink().catch(complain);
  find("#share").onclick = () => navigator.share({ url: location.href }).catch(() => {}); // if the dialogue is closed
  find("#share").hidden = !navigator.share;
  addEventListener("hashchange", () => {
    stop?.abort(LEFT);
    attempt(receive);
  });
  await attempt(receive);
}

/** Loads the codec, and shows how far it is: the runtime and the model, as they come over the network. */
async function loadCodec() {
  const bar = find("#progress");
  const sent = location.hash ? "Somebody sent you a voice message. " : "";
  const files = await loadFiles(model, (arrived, total) => {
    bar.hidden = false;
    bar.value = arrived / total;
    tell(`${sent}Loading the codec: ${(arrived / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`);
  });
  tell(`${sent}Starting the codec…`);
  const { seconds } = await codec("load", { model, files }, Object.values(files));
  bar.hidden = true;
  tell(`Ready: the codec started in ${seconds.toFixed(1)} s.`);
}

async function fetchModel() {
  const response = await fetch("model.json");
  if (!response.ok) throw new Problem("The page could not be loaded completely: model.json is missing. Reload the page.");
  return response.json();
}

/** Does something that the visitor asked for, in place of what was there before, and after what is still under way. */
function attempt(task) {
  last = last.then(async () => {
    for (const player of document.querySelectorAll("audio")) player.pause(); // what is hidden would play on
    for (const part of ["#received", "#sent", "#problem"]) find(part).hidden = true;
    enable(false);
    await task().catch(complain);
    enable(true);
  });
  return last;
}

/** Whether the button can be pressed. What is disabled loses the focus, so it gets it back. */
function enable(isEnabled) {
  const button = find("#record");
  if (!isEnabled && !button.disabled) focused = document.activeElement === button;
  for (const name of ["#record", "#choose", "#example"]) find(name).disabled = !isEnabled;
  if (isEnabled && focused && document.activeElement === document.body) button.focus();
}

/** Waits until the page is kept, so that it is fetched only once; without waiting where a browser keeps no pages. */
async function keepForOffline() {
  if (!navigator.serviceWorker) return;
  const controlled = new Promise((resolve) => {
    if (navigator.serviceWorker.controller) resolve();
    else navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true });
  });
  try {
    const registration = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
    const worker = registration.installing ?? registration.waiting;
    // Without one there is nothing to wait for: after a forced reload nothing ever controls the page.
    if (worker) await Promise.race([controlled, discarded(worker)]);
  } catch (error) {
    console.warn(`The page will not work offline: ${error.message}`);
  }
}

/** Waits until a service worker has failed. */
function discarded(worker) {
  return new Promise((resolve) => {
    worker.addEventListener("statechange", () => worker.state === "redundant" && resolve());
  });
}

/** Decodes the voice message in the page's link, if there is one. */
async function receive() {
  if (!location.hash) return;
  const fragment = location.hash.slice(1);
  const voice = fromFragment(fragment, model);
  const { audio, seconds } = await decode(voice);
  find("#received audio").src = audio;
  find("#received .facts").textContent =
    `${duration(voice.samples)} from ${fragment.length} characters. ` +
    `Decoded in ${seconds.toFixed(2)} s in this browser.`;
  find("#received").hidden = false;
  tell("The message is ready: press play.");
}

/** Makes a link of a recording, and shows it as the page's own. getVoice promises samples, or null for none. */
async function send(getVoice) {
  const samples = await getVoice();
  if (samples === null) return;
  checkVoice(samples);
  tell("Encoding…");
  const { result: tokens, seconds } = await codec("encode", atModelLoudness(samples));
  const voice = { samples: samples.length, tokens };
  const fragment = toFragment(voice, model);
  history.replaceState(null, "", `#${fragment}`);
  const decoded = await decode(voice);
  find("#link").textContent = location.href;
  find("#decoded").src = decoded.audio;
  find("#original").src = play(samples);
  find("#sent .facts").textContent =
    `${duration(samples.length)} became ${fragment.length} characters; the whole link has ${location.href.length}. ` +
    `Encoded in ${seconds.toFixed(2)} s and decoded in ${decoded.seconds.toFixed(2)} s in this browser.`;
  find("#copied").textContent = "";
  find("#sent").hidden = false;
  tell("Your link is ready.");
}

/** Records until the button is pressed again or the time is up; null if the visitor has gone on to another link. */
async function recordVoice() {
  if (!navigator.mediaDevices) throw new Problem("Browsers allow the microphone only on https: pages. Open this page with https:, or choose a file.");
  stop = new AbortController();
  const { signal } = stop;
  tell("Waiting for the microphone…");
  try {
    const samples = await record(model.sampling_rate, LONGEST, signal, showRecording);
    return signal.reason === LEFT ? null : samples;
  } finally {
    stop = null;
    enable(false);
    find("#record").textContent = "Record";
    find("#record").classList.remove("active");
    find("#level div").style.width = 0;
    tell("");
  }
}

/** The file that the visitor chose. */
async function chosenFile() {
  const [file] = find("#file").files;
  find("#file").value = ""; // so that the same one can be chosen again
  if (!file) return null;
  return read(await file.arrayBuffer(), `This browser cannot play ${file.name}. Choose another file, such as a WAV or MP3.`);
}

/** The recording that comes with the page. */
async function example() {
  const response = await fetch(EXAMPLE);
  if (!response.ok) throw new Problem("This page has no example. Record something, or choose a file.");
  return read(await response.arrayBuffer(), "This browser cannot play the example. Record something, or choose a file.");
}

/** The first seconds of a file's content, as samples. */
async function read(content, complaint) {
  try {
    return (await readSound(content, model.sampling_rate, LONGEST)).samples;
  } catch {
    throw new Problem(complaint);
  }
}

/** Shows how long the recording is, and how loud its latest block. */
function showRecording(block, seconds) {
  const peak = block.reduce((highest, sample) => Math.max(highest, Math.abs(sample)), LOWEST_PEAK);
  find("#level div").style.width = `${100 * (1 - Math.log10(peak) / Math.log10(LOWEST_PEAK))}%`;
  find("#clock").textContent = `${seconds.toFixed(1)} s`;
  find("#record").textContent = "Stop";
  find("#record").classList.add("active");
  enable(true);
  tell("Recording: speak now.");
}

function checkVoice(samples) {
  if (samples.length < SHORTEST * model.sampling_rate) {
    throw new Problem(`The recording is too short. Speak for at least ${SHORTEST} seconds.`);
  }
  if (integratedLoudness(samples, model.sampling_rate) === null) {
    throw new Problem("The recording is silent. Check that the microphone is on and that the right one is selected.");
  }
}

function atModelLoudness(samples) {
  const target = model.target_loudness;
  return target === null ? samples : normalizeLoudness(samples, model.sampling_rate, target);
}

async function decode(voice) {
  tell("Decoding…");
  const { result, seconds } = await codec("decode", voice.tokens);
  tell("");
  return { audio: play(result.subarray(0, voice.samples)), seconds };
}

function play(samples) {
  return URL.createObjectURL(toWave(samples, model.sampling_rate));
}

async function copyLink() {
  await navigator.clipboard.writeText(location.href);
  find("#copied").textContent = "Copied.";
}

function duration(samples) {
  return `${(samples / model.sampling_rate).toFixed(1)} s of speech`;
}

function tell(text) {
  find("#status").textContent = text;
}

function complain(error) {
  const messages = {
    NotAllowedError: "This page may not use the microphone. Allow it in the browser's settings, and try again.",
    NotFoundError: "There is no microphone. Connect one and try again, or choose a file.",
    NotReadableError: "Another program is using the microphone. Close it, and try again.",
  };
  const foreseen = error instanceof LinkError || error instanceof Problem;
  tell("");
  const message = foreseen ? error.message : messages[error.name];
  find("#problem").textContent = message ?? `This did not work: ${error.message}.`;
  find("#problem").hidden = false;
  if (!foreseen) console.error(error);
}
