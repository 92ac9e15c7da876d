// The page: which stream is shown, and what becomes of its events.

import { api, takeToken } from "./api.js";
import { Capture, deviceSentence, openMedia } from "./capture.js";
import { byId, make, write } from "./dom.js";
import { askForMemory, askForStream, say } from "./forms.js";
import { List } from "./list.js";
import { captured, choose, chosen, rememberCapture } from "./store.js";
import { Stream } from "./stream.js";
import { beginThemes } from "./theme.js";
import { View } from "./view.js";

const POLL = 4000; // milliseconds between two looks at the list
const CAPTURES = ["camera", "microphone", "screen"];

let info = { memories: [], questions: [], files: [], frame: [1, 1], fps: 1, hears: true };
let saved = [];
let stream = null; // the one in the middle
let view = null;
const capturing = new Set(); // streams that this page feeds, shown or not
const list = new List((id) => show(joined(id)));

async function begin() {
  takeToken();
  beginThemes();
  const add = byId("add");
  add.onclick = () => askForStream(info, saved, start);
  add.disabled = true;
  byId("main").replaceChildren(make("p", { class: "faint" }, "Asking the server what it can do…"));
  try {
    info = { ...info, ...(await api.models()).jaxmem };
  } catch (error) {
    write(byId("main"), error.message);
    if (error.status === 0) setTimeout(() => location.reload(), POLL);
    return;
  }
  add.disabled = false;
  write(byId("model"), info.model ? `model ${info.model}` : "");
  await look();
  const id = chosen();
  if (id === null) welcome();
  else show(joined(id));
  setInterval(() => document.hidden || look(), POLL);
  window.addEventListener("online", () => stream?.socket.hurry());
  window.addEventListener("hashchange", () => {
    const other = chosen();
    if (other !== null && other !== stream?.id) show(joined(other));
  });
}

/** Look at the list of streams; a server that is away is told by the connection of a stream. */
async function look() {
  try {
    const found = await api.sessions();
    saved = found.saved ?? [];
    stream?.refresh(found.sessions);
    list.show(found.sessions, stream?.sessions.map((one) => one.id) ?? []);
  } catch (error) {
    if (stream === null) say(error.message);
  }
}

/** Return a stream by one of its sessions: one that is fed here, or a new connection. */
function joined(id) {
  const here = [...capturing].find((one) => one.sessions.some((session) => session.id === id));
  return here ?? new Stream({ session: id });
}

/** Show a stream in the middle in place of the one before. */
function show(next) {
  if (next === stream) return;
  if (stream !== null && stream.capture === null) stream.leave();
  view?.remove();
  stream = next;
  byId("main").replaceChildren();
  view = new View(next, info, actions);
  byId("main").append(view.root);
  if (!next.heard) listen(next);
  tellStatus();
  if (next.sessions.length > 0) choose(next.id);
}

function listen(one) {
  one.heard = true;
  one.addEventListener("made", () => {
    if (one === stream) choose(one.id);
    look();
  });
  one.addEventListener("change", ({ detail }) => {
    if (detail === "status" && one === stream) tellStatus();
  });
  one.addEventListener("joined", look);
  one.addEventListener("note", ({ detail }) => say(detail, { good: detail.startsWith("Saved") }));
  one.addEventListener("lost", ({ detail }) => lose(one, detail));
  one.addEventListener("branched", ({ detail }) => {
    say("The branch is in the list of streams.", { good: true });
    show(joined(detail.id));
  });
  one.addEventListener("answered", ({ detail: { session, answer } }) => {
    if (one === stream) write(byId("announcer"), `${view.titleOf(session)}: ${answer.text}`);
  });
  one.addEventListener("alert", ({ detail }) => say(`Yes now: ${detail.text}`, { good: true }));
}

function lose(one, why) {
  capturing.delete(one);
  if (one !== stream) return;
  const known = one.sessions.length > 0 || one.wanted.memories !== null;
  choose(null);
  stream = null;
  view.remove();
  view = null;
  welcome();
  tellStatus();
  if (known || why) say(why);
}

function tellStatus() {
  const box = byId("connection");
  const status = stream?.status;
  box.dataset.state = status?.state ?? "closed";
  if (status?.state === "waiting") {
    const again = make("button", { class: "quiet", type: "button" }, "Try now");
    again.onclick = () => stream.socket.hurry();
    box.replaceChildren(`Connection lost; next try in ${status.seconds.toFixed(0)} s `, again);
  } else {
    write(box, { open: "Connected", connecting: "Connecting…" }[status?.state] ?? "");
  }
}

/** Show what a first visitor can do. */
function welcome() {
  const allowed = info.sources ?? ["demo", "push"];
  const memories = defaults();
  const quick = (kind, text, more = {}) => {
    const go = () => start({ kind, memories, sound: info.hears, ...more });
    return make("button", { type: "button", class: "primary large", onclick: go }, text);
  };
  const buttons = [];
  if (allowed.includes("demo")) buttons.push(quick("demo", "Watch the demo", { source: "demo" }));
  if (allowed.includes("push")) buttons.push(quick("camera", "Use the camera"));
  const other = make("button", { type: "button", class: "large", onclick: () => byId("add").click() });
  other.append("Something else…");
  const text =
    "A video language model watches a stream without an end and remembers it in a memory of fixed " +
    "size. Here you see what it sees, which moments it still holds, and what it answers.";
  const parts = [make("h2", {}, "Watch, remember, ask"), make("p", {}, text)];
  if (info.note) parts.push(make("p", { class: "faint small" }, info.note));
  parts.push(make("div", { class: "buttons" }, ...buttons, other));
  byId("main").replaceChildren(make("section", { class: "card welcome" }, ...parts));
}

function defaults() {
  const first = info.memories.find((one) => one.name === info.memory_default) ?? info.memories[0];
  return first === undefined ? [] : [{ memory: first.name, budget: first.budget_default }];
}

/** Begin a stream as the dialog says. Devices are asked for first: browsers want the click. */
async function start({ kind, source, file, sound, memories, restore }) {
  let media = null;
  if (CAPTURES.includes(kind)) {
    try {
      media = await openMedia(kind, Boolean(sound));
    } catch (error) {
      say(deviceSentence(error));
      return;
    }
  }
  const made = new Stream({ memories, restore });
  const give = async () => {
    if (media !== null) await feed(made, kind, media);
    else if (kind === "upload") await upload(made, file);
    else if (source) made.openSource(source);
    setTimeout(look, 500); // it has a source now
  };
  made.addEventListener("made", () => give().catch((error) => say(error.message)));
  made.addEventListener("lost", () => media?.getTracks().forEach((track) => track.stop()));
  show(made);
}

async function upload(one, file) {
  const largest = info.limits?.upload_bytes;
  if (largest && file.size > largest) {
    const allowed = Math.floor(largest / 2 ** 20);
    throw new Error(`The file is larger than the ${allowed} MiB that the server takes; send a part.`);
  }
  say(`Sending ${file.name}…`, { good: true });
  await api.upload(one.id, file);
}

async function feed(one, kind, media) {
  const capture = new Capture(kind, one, media, info);
  rememberCapture(one.id, kind);
  one.capture = capture;
  capturing.add(one);
  capture.addEventListener("stop", () => {
    one.capture = null;
    capturing.delete(one);
    one.changed("capture");
    if (one !== stream) one.leave();
  });
  await capture.begin();
  one.changed("capture");
}

const actions = {
  resume: async (kind) => {
    try {
      await feed(stream, kind, await openMedia(kind, info.hears));
    } catch (error) {
      say(deviceSentence(error));
    }
  },
  stop: () => {
    if (stream.capture !== null) stream.capture.stop();
    else api.stop(stream.id).catch((error) => say(error.message));
  },
  compare: () => {
    const taken = stream.sessions.map((one) => one.memory);
    askForMemory(info, taken, (memory, budget) => stream.addMemory(memory, budget));
  },
  close: async () => {
    const ids = stream.sessions.map((one) => one.id);
    const gone = stream;
    gone.leave();
    lose(gone, "");
    for (const id of ids) await api.close(id).catch((error) => say(error.message));
    look();
  },
  closeMemory: async (id) => {
    const name = stream.sessions.find((one) => one.id === id).memory;
    try {
      await api.close(id);
      stream.drop(id);
      say(`The memory ${name} was closed.`, { good: true });
    } catch (error) {
      say(error.message);
    }
  },
};

begin();
