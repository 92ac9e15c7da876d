// Sound as the server wants it: 16-bit samples, mono, 16 kHz. No browser is needed for these.

export const RATE = 16_000;

/**
 * Resamples mono sound to 16 kHz: every sample is the mean of the input over its time, or lies on
 * the line between two where the input is slower.
 */
export class Resampler {
  constructor(rate) {
    this.step = rate / RATE; // input samples in one output sample
    this.held = new Float32Array(0); // input that no output sample has used up
    this.at = 0; // where the next output sample begins, in samples of `held`
  }

  /** Return what can be made of the input so far, as a Float32Array. */
  push(input) {
    if (this.step === 1) return input;
    const samples = new Float32Array(this.held.length + input.length);
    samples.set(this.held);
    samples.set(input, this.held.length);
    const out = [];
    const reach = Math.max(this.step, 1);
    while (this.at + reach <= samples.length - 1) {
      out.push(this.step > 1 ? mean(samples, this.at, this.step) : between(samples, this.at));
      this.at += this.step;
    }
    const used = Math.floor(this.at);
    this.held = samples.slice(used);
    this.at -= used;
    return Float32Array.from(out);
  }
}

function between(samples, at) {
  const first = Math.floor(at);
  return samples[first] + (at - first) * (samples[first + 1] - samples[first]);
}

function mean(samples, begin, length) {
  const end = begin + length;
  let sum = 0;
  for (let i = Math.floor(begin); i < end; i += 1) {
    sum += samples[i] * (Math.min(i + 1, end) - Math.max(i, begin));
  }
  return sum / length;
}

/** Return samples from -1 to 1 as 16-bit integers, louder ones cut. */
export function toInt16(samples) {
  return Int16Array.from(samples, (x) => Math.round(Math.max(-1, Math.min(1, x)) * 32767));
}

/** Return bytes as base64. */
export function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  }
  return btoa(text);
}
