// One stream: the sessions that see it, one memory each, over one WebSocket.

import { api } from "./api.js";
import { HANDLERS } from "./handlers.js";
import { Socket } from "./socket.js";

const SUBSCRIBE = ["memory.map", "session.stats"];
const EVERY = 1.0; // seconds between two maps
const fresh = () => crypto.randomUUID?.() ?? `q${Date.now()}-${Math.floor(Math.random() * 1e9)}`;

/**
 * Events: "change" with the part that changed as detail ("sessions", "stats", "map", "questions",
 * "watches", "status"), "made" once it has sessions, "joined" when another memory is there,
 * "lost" with why, "note" with a sentence.
 */
export class Stream extends EventTarget {
  /** Begin a stream of new memories ([{memory, budget}]), or join the one of a session. */
  constructor({ session = null, memories = null, restore = null }) {
    super();
    this.id = session;
    this.wanted = { memories, restore };
    this.sessions = []; // in the order in which their memories joined
    this.stats = new Map(); // session -> numbers
    this.maps = new Map(); // session -> map
    this.offsets = new Map(); // session -> see `offset`
    this.questions = []; // oldest first
    this.alerts = []; // standing questions that turned to yes
    this.watches = new Map(); // id -> {id, text, every}
    this.status = { state: "connecting" };
    this.capture = null; // what this page sends to it
    this.joined = false; // since the last connection
    this.socket = new Socket({
      address: api.socket,
      hello: () => this.hello(),
      hear: (message) => HANDLERS[message.type]?.(this, message),
      tell: (status) => this.tell(status),
    });
  }

  hello() {
    const config = { type: "session.config", subscribe: SUBSCRIBE, every: EVERY };
    if (this.id !== null) return { ...config, session: this.id };
    const { memories, restore } = this.wanted;
    if (restore !== null) return { ...config, restore };
    return memories.length > 1 ? { ...config, memories } : { ...config, ...memories[0] };
  }

  tell(status) {
    if (status.state !== "open") this.joined = false;
    this.status = status;
    this.changed("status");
  }

  changed(part) {
    this.dispatchEvent(new CustomEvent("change", { detail: part }));
  }

  note(sentence) {
    this.dispatchEvent(new CustomEvent("note", { detail: sentence }));
  }

  lose(why) {
    this.leave();
    this.dispatchEvent(new CustomEvent("lost", { detail: why }));
  }

  send(message) {
    if (this.socket.send(message)) return true;
    this.note("There is no connection to the server just now; try again when it is back.");
    return false;
  }

  // What the page asks for.

  sendFrame(data) {
    return this.joined && this.socket.sendLive({ type: "video.frame", data });
  }

  sendAudio(data) {
    return this.joined && this.socket.sendLive({ type: "audio.chunk", data });
  }

  /** Say that nothing more comes from here. */
  done() {
    if (this.joined) this.socket.send({ type: "video.done" });
  }

  ask(text, at = null) {
    const id = fresh();
    const when = at === null ? {} : { at };
    if (!this.send({ type: "video.query", id, text, ...when })) return null;
    const question = this.question(id, text);
    question.at = at;
    this.changed("questions");
    return id;
  }

  watch(text, every) {
    return this.send({ type: "session.watch", text, every });
  }

  unwatch(id) {
    return this.send({ type: "session.unwatch", id });
  }

  openSource(source) {
    return this.send({ type: "session.source", source });
  }

  addMemory(memory, budget) {
    return this.send({ type: "session.memory", memory, budget });
  }

  save() {
    return this.send({ type: "session.save" });
  }

  branch() {
    return this.send({ type: "session.branch" });
  }

  leave() {
    this.capture?.stop();
    this.capture = null;
    this.socket.close();
  }

  // What is known.

  get ended() {
    return this.sessions.length > 0 && this.sessions.every((one) => one.state !== "open");
  }

  /** Return the seconds of stream before a memory joined, on the clock of the first one. */
  offset(id) {
    return this.offsets.get(id) ?? 0;
  }

  /**
   * Compare how much came to each memory, in sessions that were looked at in one moment. A piece
   * may have come to some of them only, so the smallest difference is the true one.
   */
  align(sessions) {
    const fed = new Map(sessions.map(({ id, stats }) => [id, stats.seconds + stats.lag]));
    const first = fed.get(this.sessions[0]?.id);
    for (const { id } of this.sessions) {
      if (!fed.has(id) || first === undefined) continue;
      const before = Math.max(0, first - fed.get(id));
      this.offsets.set(id, Math.min(before, this.offsets.get(id) ?? before));
    }
  }

  /** Return the length of the stream so far. */
  get seconds() {
    return Math.max(0, ...this.sessions.map((one) => this.stats.get(one.id)?.seconds ?? 0));
  }

  /** Return a question by its id, made if it is not known. */
  question(id, text = "") {
    let found = this.questions.find((one) => one.id === id);
    if (found === undefined) {
      found = { id, text, at: null, askedAt: null, answers: new Map(), error: null };
      this.questions.push(found);
    }
    if (text) found.text = text;
    return found;
  }

  answer(id, session) {
    const { answers } = this.question(id);
    const empty = { text: "", done: false, cut: false, first: null };
    if (!answers.has(session)) answers.set(session, empty);
    return answers.get(session);
  }

  /** Take what the list of sessions says: their sources and states. */
  refresh(sessions) {
    this.align(sessions);
    let news = false;
    for (const mine of this.sessions) {
      const { source, state, why, standing } = sessions.find((one) => one.id === mine.id) ?? mine;
      this.takeStanding(mine.id, standing);
      if (JSON.stringify([mine.source, mine.state]) === JSON.stringify([source, state])) continue;
      Object.assign(mine, { source, state, why });
      news = true;
    }
    if (news) this.changed("sessions");
    this.changed("watches");
  }

  takeStanding(session, standing) {
    for (const watch of standing ?? []) this.watches.set(watch.id, { ...watch, session });
  }

  /** Forget a session that was closed. */
  drop(id) {
    this.sessions = this.sessions.filter((one) => one.id !== id);
    this.stats.delete(id);
    this.maps.delete(id);
    this.offsets.clear(); // the first one may have gone
    this.changed("sessions");
  }

  /** Take a session as the server shows it, with its numbers, questions and standing questions. */
  take(session) {
    const place = this.sessions.findIndex((one) => one.id === session.id);
    if (place < 0) this.sessions.push(session);
    else this.sessions[place] = session;
    if (session.stats) this.stats.set(session.id, session.stats);
    this.takeStanding(session.id, session.standing);
    for (const asked of session.questions ?? []) {
      const question = this.question(asked.id, asked.text);
      question.askedAt = asked.asked_at;
      const { answer: text, done, cut, first_token_ms: first } = asked;
      Object.assign(this.answer(asked.id, session.id), { text, done, cut, first });
    }
  }
}
