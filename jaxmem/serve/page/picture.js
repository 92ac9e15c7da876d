// The live picture as the model sees it, and beside it what this browser's camera shows.

import { api } from "./api.js";
import { make, write } from "./dom.js";
import { clock, count } from "./format.js";

export class Picture {
  constructor(stream) {
    this.stream = stream;
    this.busy = false;
    this.shown = null; // seconds of the stream at which a picture was asked for
    this.image = make("img", { class: "live", alt: "No picture has come yet", hidden: true });
    this.blank = make("p", { class: "blank faint small" }, "No picture has come yet.");
    this.caption = make("figcaption", { class: "small faint" }, "As the model sees it");
    const frame = make("div", { class: "frame" }, this.image, this.blank);
    this.own = make("figure", { class: "own", hidden: true });
    const seen = make("figure", {}, frame, this.caption);
    this.root = make("div", { class: "pictures" }, seen, this.own);
  }

  /** Fetch the newest picture if the stream moved on; one request at a time. */
  async update() {
    const { sessions, seconds } = this.stream;
    const [session] = sessions;
    if (session === undefined || this.busy || seconds === this.shown || seconds === 0) return;
    this.busy = true;
    this.shown = seconds;
    try {
      const address = URL.createObjectURL(await api.picture(session.id));
      await this.put(address);
      const [height, width] = session.frame ?? [this.image.naturalHeight, this.image.naturalWidth];
      this.image.parentElement.style.aspectRatio = `${width} / ${height}`;
      this.image.alt = `The newest picture, at ${clock(seconds)}`;
      write(this.caption, `As the model sees it: ${width} × ${height} pixels, at ${clock(seconds)}`);
    } catch {
      // Sound alone has no picture, and a lost connection is told elsewhere.
    } finally {
      this.busy = false;
    }
  }

  async put(address) {
    const before = this.image.src;
    this.image.src = address;
    await this.image.decode().finally(() => before && URL.revokeObjectURL(before));
    this.image.hidden = false;
    this.blank.hidden = true;
  }

  /** Show what a capture sends, or nothing. */
  follow(capture) {
    this.own.hidden = capture === null;
    this.own.replaceChildren();
    if (capture === null) return;
    const caption = make("figcaption", { class: "small faint" });
    const tell = () => {
      const left = capture.left ? `, ${capture.left} left out` : "";
      const sent = capture.video ? `: ${count(capture.sent, "picture")} sent${left}` : " is on";
      write(caption, `Your ${capture.kind}${sent}`);
    };
    capture.addEventListener("picture", tell);
    tell();
    if (capture.video) {
      capture.video.setAttribute("aria-label", `What your ${capture.kind} shows`);
      this.own.append(make("div", { class: "frame" }, capture.video));
    }
    this.own.append(caption);
  }

  remove() {
    if (this.image.src) URL.revokeObjectURL(this.image.src);
    this.root.remove();
  }
}
