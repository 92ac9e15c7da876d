// One memory of a stream: its numbers, its bytes, its map, and the moment that is pointed at.

import { api } from "./api.js";
import { make, write } from "./dom.js";
import { clock, count, milliseconds, size } from "./format.js";
import { KINDS, momentsOf, totals } from "./held.js";
import { MapCanvas } from "./map.js";

const HINT = "Point at the map, or focus it and use the arrow keys, to see what is remembered.";
const THUMBNAILS = 120; // kept in the browser
const NUMBERS = {
  lag: ["lag", (stats) => `${stats.lag.toFixed(1)} s`, "seconds that came and are not written yet"],
  rate: ["chunks a second", (stats) => (stats.chunks_per_second ?? 0).toFixed(1), ""],
  first: ["first token", (stats) => milliseconds(stats.first_token_ms), "of the last answer"],
  dropped: ["dropped", (stats) => String(stats.dropped), "chunks too many to be written"],
};

export class Panel {
  /**
   * @param session what the server says of it
   * @param point called with a time on this memory's clock, or null, when a moment is pointed at
   * @param close called when this memory is to go; null: it is the only one
   */
  constructor({ session, point, close }) {
    this.session = session;
    this.title = session.memory;
    this.point = point;
    this.map = { seconds: 0, layers: [] };
    this.offset = 0;
    this.moment = null;
    this.thumbnails = new Map(); // start -> address of a blob
    this.root = this.build(close);
    this.canvas = new MapCanvas(this.picture);
  }

  build(close) {
    const { id, budget } = this.session;
    this.cells = Object.fromEntries(Object.keys(NUMBERS).map((key) => [key, make("dd")]));
    const numbers = Object.entries(NUMBERS).map(([key, [name, , hint]]) =>
      make("div", { title: hint || null }, make("dt", {}, name), this.cells[key]),
    );
    this.bytes = make("p", { class: "bytes" });
    this.all = make("p", { class: "faint small" });
    this.bar = make("div", { class: "fill" });
    this.legend = make("ul", { class: "legend" });
    this.thumbnail = make("img", { class: "thumbnail", alt: "", hidden: true });
    this.readout = make("p", { class: "small" }, HINT);
    const moment = make("div", { class: "moment" }, this.thumbnail, this.readout);
    this.gone = make("p", { class: "note", hidden: true });
    const button = make("button", { class: "quiet", type: "button", onclick: close }, "Close");
    button.setAttribute("aria-label", `Close the memory ${this.title}`);
    button.hidden = close === null;
    const heading = make("h3", { id: `memory-${id}` }, this.title);
    const budgetText = budget ? make("span", { class: "faint small" }, ` ${readable(budget)}`) : null;
    const head = make("div", { class: "panel-head" }, heading, budgetText, button);
    const bar = make("div", { class: "bar", "aria-hidden": "true" }, this.bar);
    const list = make("dl", { class: "numbers" }, ...numbers);
    const attributes = { class: "card panel", "aria-labelledby": `memory-${id}` };
    const parts = [head, this.bytes, bar, this.all, list, this.buildMap(), this.legend, moment, this.gone];
    const root = make("section", attributes, ...parts);
    root.dataset.session = id;
    return root;
  }

  buildMap() {
    this.picture = make("canvas", {});
    this.empty = make("p", { class: "faint small empty" }, "Nothing is held yet.");
    const attributes = {
      class: "map",
      role: "slider",
      tabIndex: 0,
      "aria-label": `What ${this.title} holds, over the time of the stream`,
      "aria-valuemin": "0",
      onpointermove: (event) => this.hover(event),
      onpointerdown: (event) => this.hover(event),
      onpointerleave: () => this.slider.matches(":focus") || this.point(null),
      onkeydown: (event) => this.key(event),
      onblur: () => this.point(null),
      onfocus: () => this.moment ?? this.step(this.moments.length - 1),
    };
    this.slider = make("div", attributes, this.picture, this.empty);
    return this.slider;
  }

  get moments() {
    return momentsOf(this.map);
  }

  hover(event) {
    const box = this.picture.getBoundingClientRect();
    this.point(this.canvas.timeAt(event.clientX - box.left));
  }

  key(event) {
    const moments = this.moments;
    const now = moments.findIndex((moment) => moment.start === this.moment?.start);
    const places = {
      ArrowLeft: now - 1,
      ArrowDown: now - 1,
      ArrowRight: now + 1,
      ArrowUp: now + 1,
      PageDown: now - 10,
      PageUp: now + 10,
      Home: 0,
      End: moments.length - 1,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    this.step(Math.max(0, Math.min(moments.length - 1, places[event.key])));
  }

  step(place) {
    const moment = this.moments[place];
    if (moment !== undefined) this.point((moment.start + moment.end) / 2);
  }

  /** Show what is held at a time on this memory's clock; null: nothing is pointed at. */
  show(time) {
    this.canvas.point(time);
    const found = time === null ? null : this.moments.find((m) => m.start <= time && time < m.end);
    const same = found?.start === this.moment?.start && time !== null;
    this.moment = found ?? null;
    write(this.readout, this.describe(time, found));
    this.slider.setAttribute("aria-valuenow", String(Math.round(time ?? this.map.seconds)));
    this.slider.setAttribute("aria-valuetext", time === null ? this.summary : this.readout.textContent);
    if (!same) this.showThumbnail();
  }

  describe(time, moment) {
    if (time === null) return HINT;
    const at = clock(Math.max(0, Math.floor((moment?.start ?? time) + this.offset)));
    if (time < 0) return `${at}: before this memory joined the stream.`;
    if (!moment) return `${at}: nothing of it is held.`;
    const kinds = KINDS.filter((kind) => moment[kind] > 0);
    const what = kinds.map((kind) => `${kind} ${moment[kind].toLocaleString("en")}`).join(", ");
    const sum = KINDS.reduce((total, kind) => total + moment[kind], 0);
    const tokens = sum === 1 ? "token" : "tokens";
    return `${at}: ${what} ${tokens}, in ${moment.layers} of ${count(this.map.layers.length, "layer")}.`;
  }

  get summary() {
    const found = totals(this.map);
    if (found.oldest === null) return "nothing is held yet";
    const what = KINDS.filter((kind) => found[kind] > 0).map((kind) => `${kind} ${found[kind]}`);
    return `${what.join(", ")} tokens held; the oldest from ${clock(found.oldest + this.offset)}`;
  }

  async showThumbnail() {
    this.thumbnail.hidden = true;
    const moment = this.moment;
    this.asking?.abort();
    if (moment === null) return;
    try {
      const address = await this.fetchThumbnail(moment.start);
      if (this.moment?.start !== moment.start) return;
      this.thumbnail.src = address;
      this.thumbnail.alt = `The picture at ${clock(Math.floor(moment.start + this.offset))}`;
      this.thumbnail.hidden = false;
    } catch {
      // A moment without a picture is still told in words.
    }
  }

  async fetchThumbnail(start) {
    if (this.thumbnails.has(start)) return this.thumbnails.get(start);
    this.asking = new AbortController();
    const blob = await api.picture(this.session.id, start, this.asking.signal);
    const address = URL.createObjectURL(blob);
    this.thumbnails.set(start, address);
    if (this.thumbnails.size > THUMBNAILS) {
      const [oldest] = this.thumbnails.keys();
      URL.revokeObjectURL(this.thumbnails.get(oldest));
      this.thumbnails.delete(oldest);
    }
    return address;
  }

  updateStats(stats, largest) {
    for (const [key, [, read]] of Object.entries(NUMBERS)) write(this.cells[key], read(stats));
    const { everything: all, nbytes } = stats;
    this.bytes.replaceChildren(make("strong", {}, size(nbytes)), " held, however long the stream");
    const times = all > nbytes ? `, ${(all / nbytes).toFixed(1)} times as much` : "";
    write(this.all, all ? `Keeping all of it would take ${size(all)} by now${times}.` : "");
    this.bar.style.width = `${(100 * nbytes) / largest}%`;
  }

  updateMap(map, offset, seconds) {
    this.map = map;
    this.offset = offset;
    this.canvas.update(map, offset, seconds);
    const found = totals(map);
    const held = found.oldest !== null;
    this.empty.hidden = held;
    if (map.layers.length === 0) {
      write(this.empty, "This memory holds features in place of tokens of layers; it has no map.");
    }
    this.slider.setAttribute("aria-valuemax", String(Math.round(map.seconds)));
    if (this.canvas.cursor !== null) this.show(this.canvas.cursor);
    else this.slider.setAttribute("aria-valuetext", this.summary);
    const shown = KINDS.filter((kind) => found[kind] > 0);
    this.legend.replaceChildren(...shown.map((kind) => legendItem(kind, found[kind])));
  }

  updateSession(session) {
    this.session = session;
    this.gone.hidden = session.state === "open";
    write(this.gone, session.state === "open" ? "" : `It has ended${session.why ? `: ${session.why}` : ""}.`);
  }

  remove() {
    this.asking?.abort();
    this.canvas.remove();
    for (const address of this.thumbnails.values()) URL.revokeObjectURL(address);
    this.root.remove();
  }
}

const readable = (budget) => (/^\d+$/.test(budget) ? `${budget} slots a layer` : budget);

function legendItem(kind, number) {
  const swatch = make("span", { class: `swatch ${kind}`, "aria-hidden": "true" });
  return make("li", {}, swatch, `${kind} ${number.toLocaleString("en")}`);
}
