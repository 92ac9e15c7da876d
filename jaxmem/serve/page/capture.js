// What this browser sends: pictures of a camera or a screen as JPEG, sound as PCM.

import { base64 } from "./pcm.js";

const QUALITY = 0.85;
const SMALLEST = 256; // pixels of the longer side
const LARGEST = 1280;

const SENTENCES = {
  NotAllowedError: "The browser was not allowed to use it; allow it beside the address and try again.",
  NotFoundError: "The browser found no such device; plug one in and try again.",
  NotReadableError: "The device is in use by another program; close that and try again.",
  OverconstrainedError: "The device cannot do what was asked of it.",
};

/** Return what went wrong with a device, as a sentence. */
export function deviceSentence(error) {
  return SENTENCES[error.name] ?? `The device could not be used: ${error.message}`;
}

/** Open a device by kind: "camera", "microphone" or "screen"; cameras with sound if `hears`. */
export async function openMedia(kind, hears) {
  const devices = navigator.mediaDevices;
  if (devices === undefined) {
    const repair = "open the page over https, or from 127.0.0.1 or localhost.";
    throw new Error(`Browsers give cameras and microphones to safe addresses only; ${repair}`);
  }
  if (kind === "screen") return devices.getDisplayMedia({ video: true, audio: hears });
  const audio = hears && { echoCancellation: false, noiseSuppression: false };
  if (kind === "microphone") return devices.getUserMedia({ audio });
  return devices.getUserMedia({ video: { width: { ideal: 640 } }, audio });
}

/** Sends what a device gives to a stream, until it is stopped. Events: "picture", "stop". */
export class Capture extends EventTarget {
  constructor(kind, stream, media, { fps, frame }) {
    super();
    Object.assign(this, { kind, stream, media });
    this.every = 1000 / fps;
    this.longest = Math.min(LARGEST, Math.max(SMALLEST, 2 * Math.max(...frame)));
    this.sent = 0; // pictures
    this.left = 0; // pictures left out because the network was slower
    this.stopped = false;
  }

  async begin() {
    const [video] = this.media.getVideoTracks();
    if (video !== undefined) await this.beginVideo();
    if (this.media.getAudioTracks().length > 0) await this.beginAudio();
    for (const track of this.media.getTracks()) {
      track.onended = () => this.stop(); // unplugged, or stopped in the browser's own bar
    }
  }

  async beginVideo() {
    this.canvas = document.createElement("canvas");
    this.video = document.createElement("video");
    Object.assign(this.video, { muted: true, playsInline: true, srcObject: this.media });
    await this.video.play();
    this.due = performance.now();
    this.tick();
  }

  /** Send a picture now, and plan the next one; late timers catch up instead of drifting. */
  tick() {
    if (this.stopped) return;
    this.sendPicture();
    const now = performance.now();
    this.due = Math.max(this.due + this.every, now);
    this.timer = setTimeout(() => this.tick(), this.due - now);
  }

  sendPicture() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (width === 0) return;
    const scale = Math.min(1, this.longest / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const context = this.canvas.getContext("2d");
    context.drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    const data = this.canvas.toDataURL("image/jpeg", QUALITY).split(",")[1];
    if (this.stream.sendFrame(data)) this.sent += 1;
    else this.left += 1;
    this.dispatchEvent(new Event("picture"));
  }

  async beginAudio() {
    this.audio = new AudioContext();
    await this.audio.audioWorklet.addModule(new URL("./worklet.js", import.meta.url));
    const node = new AudioWorkletNode(this.audio, "recorder", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => this.stream.sendAudio(base64(new Uint8Array(data)));
    this.audio.createMediaStreamSource(this.media).connect(node);
    await this.audio.resume();
  }

  stop() {
    if (this.stopped) return;
    this.stopped = true;
    clearTimeout(this.timer);
    for (const track of this.media.getTracks()) track.stop();
    this.audio?.close();
    this.stream.done();
    this.dispatchEvent(new Event("stop"));
  }
}
