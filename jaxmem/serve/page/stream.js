// One stream: the sessions that see it, one memory each, over one WebSocket.

import { api } from "./api.js";
import { Socket } from "./socket.js";

const SUBSCRIBE = ["memory.map", "session.stats"];
const EVERY = 1.0; // seconds between two maps
const fresh = () => crypto.randomUUID?.() ?? `q${Date.now()}-${Math.floor(Math.random() * 1e9)}`;

/**
 * Events: "change" with the part that changed as detail ("sessions", "stats", "map", "questions",
 * "watches", "status"), "made" once it has sessions, "lost" with why, "note" with a sentence.
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
    const fed = (one) => {
      const stats = this.stats.get(one);
      return stats === undefined ? 0 : stats.seconds + stats.lag;
    };
    return Math.max(0, fed(this.sessions[0]?.id) - fed(id));
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

/** What a server says -> what becomes of it. */
export const HANDLERS = {
  "session.created": (stream, message) => {
    const first = stream.sessions.length === 0;
    stream.sessions = [];
    for (const session of message.sessions ?? [message.session]) stream.take(session);
    stream.id = stream.sessions[0].id;
    stream.joined = true;
    if (first) stream.dispatchEvent(new Event("made"));
    for (const part of ["sessions", "stats", "questions", "watches"]) stream.changed(part);
  },
  "session.added": (stream, { session }) => {
    stream.take(session);
    stream.changed("sessions");
    stream.changed("stats");
  },
  "session.stats": (stream, message) => {
    stream.stats.set(message.session, message.stats);
    stream.changed("stats");
  },
  "memory.map": (stream, message) => {
    stream.maps.set(message.session, message.map);
    stream.changed("map");
  },
  "response.waiting": (stream, message) => {
    stream.question(message.id).at = message.at;
    stream.answer(message.id, message.session);
    stream.changed("questions");
  },
  "response.start": (stream, message) => {
    stream.question(message.id, message.text).askedAt = message.asked_at;
    stream.answer(message.id, message.session).text = "";
    stream.changed("questions");
  },
  "response.text.delta": (stream, message) => {
    stream.answer(message.id, message.session).text += message.delta;
    stream.changed("questions");
  },
  "response.text.done": (stream, message) => {
    const { text, cut = false, first_token_ms: first } = message;
    const answer = stream.answer(message.id, message.session);
    Object.assign(answer, { text, cut, first, done: true });
    const detail = { question: stream.question(message.id), session: message.session, answer };
    stream.dispatchEvent(new CustomEvent("answered", { detail }));
    stream.changed("questions");
  },
  "session.unwatched": (stream, { id }) => {
    stream.watches.delete(id);
    stream.changed("watches");
  },
  "session.watching": (stream, { id, session, text, every }) => {
    stream.watches.set(id, { id, session, text, every });
    stream.changed("watches");
  },
  "session.alert": (stream, { id, session, text, at }) => {
    stream.alerts.push({ id, session, text, at });
    stream.dispatchEvent(new CustomEvent("alert", { detail: { session, text, at } }));
    stream.changed("questions");
  },
  "session.saved": (stream, { saved }) => stream.note(`Saved as ${saved}.`),
  "session.branched": (stream, { session }) => {
    stream.dispatchEvent(new CustomEvent("branched", { detail: session }));
  },
  "source.started": (stream, { session, source }) => {
    Object.assign(stream.sessions.find((one) => one.id === session) ?? {}, { source });
    stream.changed("sessions");
  },
  "source.ended": (stream, { session, why }) => {
    const found = stream.sessions.find((one) => one.id === session);
    if (found?.source) found.source = { ...found.source, over: why };
    stream.changed("sessions");
  },
  "session.ended": (stream, { session, why }) => {
    const found = stream.sessions.find((one) => one.id === session);
    if (found) Object.assign(found, { state: "ended", why });
    stream.changed("sessions");
  },
  error: (stream, { id, code, message }) => {
    if (id !== undefined && stream.questions.some((one) => one.id === id)) {
      stream.question(id).error = message;
      stream.changed("questions");
    } else if (!stream.joined) {
      stream.lose(message);
    } else {
      stream.note(message ?? code);
    }
  },
};
