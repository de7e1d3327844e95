/** Passes on what the microphone gives, block by block: it runs beside the page, on the audio thread. */

class Recorder extends AudioWorkletProcessor {
  process([[block]]) {
    // The block is used again for the next one, so a copy goes.
    if (block) this.port.postMessage(block.slice());
    return true;
  }
}

registerProcessor("recorder", Recorder);
