// Runs on the browser's audio thread: mixes to mono, resamples, posts a tenth of a second at once.

import { RATE, Resampler, toInt16 } from "./pcm.js";

const AT_ONCE = RATE / 10;

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate);
    this.parts = [];
    this.count = 0;
  }

  process([channels]) {
    if (channels.length === 0) return true;
    const mono = Float32Array.from(channels[0]);
    for (const channel of channels.slice(1)) channel.forEach((x, i) => (mono[i] += x));
    const samples = this.resampler.push(mono.map((x) => x / channels.length));
    this.parts.push(samples);
    this.count += samples.length;
    if (this.count >= AT_ONCE) this.flush();
    return true;
  }

  flush() {
    const all = new Float32Array(this.count);
    let at = 0;
    for (const part of this.parts) {
      all.set(part, at);
      at += part.length;
    }
    const bytes = toInt16(all).buffer;
    this.port.postMessage(bytes, [bytes]);
    this.parts = [];
    this.count = 0;
  }
}

registerProcessor("recorder", Recorder);
