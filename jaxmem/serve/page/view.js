// One stream in the middle of the page: picture, questions, and a panel for every memory.

import { Asking } from "./asking.js";
import { make, write } from "./dom.js";
import { streamState, streamTitle } from "./names.js";
import { Panel } from "./panel.js";
import { Picture } from "./picture.js";
import { captured } from "./store.js";
import { Watching } from "./watching.js";

export class View {
  /**
   * @param stream what is shown
   * @param info what the server says of itself
   * @param actions functions that the buttons call: resume, compare, stop, close, closeMemory
   */
  constructor(stream, info, actions) {
    Object.assign(this, { stream, info, actions });
    this.panels = new Map();
    this.title = make("h2", { class: "stream-title" });
    this.state = make("p", { class: "faint small" });
    this.picture = new Picture(stream);
    this.asking = new Asking(stream, (id) => this.titleOf(id), info.questions ?? []);
    const yesNo = (info.questions ?? []).find((text) => /^(was|is|are|did|does)\b/i.test(text));
    this.watching = new Watching(stream, (id) => this.titleOf(id), yesNo);
    this.memories = make("div", { class: "panels" });
    const head = make("div", { class: "stream-head" }, make("div", {}, this.title, this.state), this.buttons());
    const seen = make("div", { class: "card" }, this.picture.root);
    const above = make("div", { class: "above" }, seen, this.asking.root);
    this.root = make("div", { class: "stack" }, head, above, this.memories, this.watching.root);
    this.listener = (event) => this.update(event.detail);
    stream.addEventListener("change", this.listener);
    for (const part of ["sessions", "map", "questions", "watches", "capture"]) this.update(part);
  }

  buttons() {
    const button = (text, action, hint) => {
      return make("button", { type: "button", onclick: action, title: hint }, text);
    };
    const { actions, stream } = this;
    this.resume = button("Start", () => actions.resume(captured(stream.id)), "Send it again");
    this.stop = button("Stop", () => actions.stop(), "Nothing more comes; it can still be asked");
    const rest = [
      button("Add a memory", () => actions.compare(), "Another memory sees this stream from now on"),
      button("Save", () => stream.save(), "Write the stream to the server's disk"),
      button("Branch", () => stream.branch(), "A copy of the stream as it is now"),
      button("Close", () => actions.close(), "End the stream and forget it"),
    ];
    return make("div", { class: "buttons" }, this.resume, this.stop, ...rest);
  }

  titleOf(id) {
    return this.stream.sessions.find((one) => one.id === id)?.memory ?? id;
  }

  update(part) {
    const updates = {
      sessions: () => this.updateSessions(),
      stats: () => this.updateStats(),
      map: () => this.updateMaps(),
      questions: () => this.asking.update(),
      watches: () => this.watching.update(),
      capture: () => this.updateCapture(),
      status: () => {},
    };
    updates[part]();
  }

  updateSessions() {
    const { sessions } = this.stream;
    for (const [id, panel] of this.panels) {
      if (!sessions.some((one) => one.id === id)) this.dropPanel(id, panel);
    }
    for (const session of sessions) {
      if (!this.panels.has(session.id)) this.addPanel(session);
      this.panels.get(session.id).updateSession(session);
    }
    this.memories.classList.toggle("several", sessions.length > 1);
    this.updateCapture();
    this.updateStats();
    this.updateMaps();
    this.asking.update();
  }

  addPanel(session) {
    const alone = this.panels.size === 0;
    const panel = new Panel({
      session,
      point: (time) => this.point(session.id, time),
      close: alone ? null : () => this.actions.closeMemory(session.id),
    });
    this.panels.set(session.id, panel);
    this.memories.append(panel.root);
  }

  dropPanel(id, panel) {
    panel.remove();
    this.panels.delete(id);
  }

  /** Point at the same moment of the stream in the maps of all memories. */
  point(id, time) {
    const base = this.stream.offset(id);
    for (const [other, panel] of this.panels) {
      panel.show(time === null ? null : time + base - this.stream.offset(other));
    }
  }

  updateStats() {
    const { sessions, stats } = this.stream;
    const known = sessions.filter((one) => stats.has(one.id));
    const largest = Math.max(1, ...known.map((one) => stats.get(one.id).nbytes));
    for (const { id } of known) this.panels.get(id)?.updateStats(stats.get(id), largest);
    const [first] = sessions;
    if (first !== undefined) {
      const now = { ...first, stats: stats.get(first.id), peers: sessions.map((one) => one.id) };
      write(this.title, streamTitle(now));
      write(this.state, this.stream.capture ? `${streamState(now)}, live` : streamState(now));
    }
    this.picture.update();
  }

  updateMaps() {
    const { maps, stream } = { maps: this.stream.maps, stream: this.stream };
    const end = (id) => (maps.get(id)?.seconds ?? 0) + stream.offset(id);
    const seconds = Math.max(0, ...[...this.panels.keys()].map(end));
    for (const [id, panel] of this.panels) {
      if (maps.has(id)) panel.updateMap(maps.get(id), stream.offset(id), seconds);
    }
  }

  updateCapture() {
    const { capture, sessions } = this.stream;
    this.picture.follow(capture);
    const source = sessions[0]?.source;
    const kind = this.stream.id === null ? null : captured(this.stream.id);
    this.resume.hidden = capture !== null || kind === null || this.stream.ended;
    write(this.resume, `Start the ${kind}`);
    const reading = source && source.kind !== "push" && !source.over;
    this.stop.hidden = !(capture !== null || reading) || this.stream.ended;
  }

  remove() {
    this.stream.removeEventListener("change", this.listener);
    this.picture.remove();
    for (const panel of this.panels.values()) panel.remove();
    this.root.remove();
  }
}
