// The two dialogs: a new stream, and another memory for one that runs.

import { byId, choice, field, make, write } from "./dom.js";

const SOURCES = {
  demo: ["Demo", "the synthetic world that the embedded model knows", "demo"],
  camera: ["Camera", "of this device", "push"],
  microphone: ["Microphone", "sound alone", "push"],
  screen: ["Screen", "a window or a tab", "push"],
  upload: ["Video file", "of yours; it is sent to the server", "upload"],
  file: ["File on the server", "in the folder that it may read", "file"],
  address: ["Address", "rtsp://, http:// or a device of the server", "address"],
  saved: ["Saved stream", "go on where it was saved", "saved"],
}; // kind -> name, hint, what the server must allow

const BUDGET = "A budget is bytes, such as 512KiB or 4MiB, or a number of slots a layer, such as 96.";

/** Return a budget as the server takes it: slots as a number, bytes as text. */
const budgetOf = (text) => (/^\d+$/.test(text.trim()) ? Number(text.trim()) : text.trim());

/** Return the fields that choose a memory and its budget. */
function memoryFields(info, chosen, none = null) {
  const pairs = info.memories.map(({ name }) => [name, name]);
  const select = choice(none === null ? pairs : [["", none], ...pairs], chosen);
  const budget = make("input", { type: "text", autocomplete: "off", size: 10 });
  const about = make("p", { class: "faint small" });
  const fill = () => {
    const found = info.memories.find((one) => one.name === select.value);
    write(about, found?.title ?? "");
    budget.value = String(found?.budget_default ?? "");
    budget.disabled = select.value === "";
    budget.required = !budget.disabled;
  };
  select.addEventListener("change", fill);
  fill();
  const read = () =>
    select.value === "" ? null : { memory: select.value, budget: budgetOf(budget.value) };
  return { select, budget, about, read };
}

function heading(id, text) {
  return make("h2", { id }, text);
}

function ending(dialog, text) {
  const cancel = make("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const go = make("button", { type: "submit", class: "primary" }, text);
  return make("div", { class: "buttons end" }, cancel, go);
}

/** Ask for a new stream; `start` is called with {kind, source, file, sound, memories, restore}. */
export function askForStream(info, saved, start) {
  const dialog = byId("new-stream");
  const always = info.sources ?? ["demo", "push", "upload", "file", "address"];
  const allowed = new Set([...always, ...(saved.length > 0 ? ["saved"] : [])]);
  const kinds = Object.keys(SOURCES).filter((kind) => {
    return allowed.has(SOURCES[kind][2]) && (info.hears || kind !== "microphone");
  });
  const more = sourceFields(info, saved);
  const one = memoryFields(info, info.memory_default ?? info.memories[0]?.name);
  const two = memoryFields(info, "", "no second memory");
  const chosen = () => dialog.querySelector("input[name=kind]:checked").value;
  const show = () => {
    for (const [kind, box] of Object.entries(more.boxes)) {
      const here = kind === chosen() || (kind === "sound" && more.withSound(chosen()));
      box.hidden = !here;
      for (const control of box.querySelectorAll("input, select")) control.disabled = !here;
    }
    memories.hidden = chosen() === "saved";
  };
  const radio = (kind, i) => {
    const [name, hint] = SOURCES[kind];
    const input = make("input", { type: "radio", name: "kind", value: kind, onchange: show });
    input.checked = i === 0;
    return make("label", { class: "source" }, input, make("span", {}, make("b", {}, name), make("small", {}, hint)));
  };
  const sources = make("div", { class: "sources" }, ...kinds.map(radio));
  const memories = make(
    "fieldset",
    {},
    make("legend", {}, "Remember it with"),
    make("div", { class: "pair" }, field("Memory", one.select), field("Budget", one.budget)),
    one.about,
    make("div", { class: "pair" }, field("Side by side with", two.select), field("Budget", two.budget)),
    two.about,
    make("p", { class: "faint small" }, BUDGET),
  );
  const submit = (event) => {
    event.preventDefault();
    const found = [one.read(), two.read()].filter((memory) => memory !== null);
    dialog.close();
    start({ kind: chosen(), memories: found, ...more.read(chosen()) });
  };
  const parts = [
    heading("new-stream-title", "New stream"),
    make("fieldset", {}, make("legend", {}, "Watch"), sources, ...Object.values(more.boxes)),
    memories,
    ending(dialog, "Start"),
  ];
  dialog.replaceChildren(make("form", { onsubmit: submit }, ...parts));
  show();
  dialog.showModal();
}

function sourceFields(info, saved) {
  const file = make("input", { type: "file", accept: "video/*,audio/*", required: true });
  const files = choice((info.files ?? []).map((name) => [name, name]), null, { required: true });
  const address = make("input", { type: "text", required: true, placeholder: "rtsp://camera/stream" });
  const names = choice(saved.map((name) => [name, name]), null, { required: true });
  const sound = make("input", { type: "checkbox", checked: true });
  const boxes = {
    upload: field("Video file", file),
    file: field("File on the server", files),
    address: field("Address", address),
    saved: field("Saved stream", names),
    sound: make("label", { class: "tick" }, sound, " with sound"),
  };
  const read = (kind) => ({
    file: kind === "upload" ? file.files[0] : null,
    source: { demo: "demo", file: files.value, address: address.value.trim() }[kind] ?? null,
    restore: kind === "saved" ? names.value : null,
    sound: info.hears && (kind === "microphone" || sound.checked),
  });
  const withSound = (kind) => info.hears && ["camera", "screen"].includes(kind);
  return { boxes, read, withSound };
}

/** Ask for another memory; `add` is called with its name and budget. */
export function askForMemory(info, taken, add) {
  const dialog = byId("new-memory");
  const other = info.memories.find((one) => !taken.includes(one.name)) ?? info.memories[0];
  const fields = memoryFields(info, other.name);
  const submit = (event) => {
    event.preventDefault();
    dialog.close();
    const { memory, budget } = fields.read();
    add(memory, budget);
  };
  const note = "It begins empty, sees the stream from now on, and gets every question, too.";
  const parts = [
    heading("new-memory-title", "Another memory"),
    make("p", { class: "faint" }, note),
    make("div", { class: "pair" }, field("Memory", fields.select), field("Budget", fields.budget)),
    fields.about,
    make("p", { class: "faint small" }, BUDGET),
    ending(dialog, "Add it"),
  ];
  dialog.replaceChildren(make("form", { onsubmit: submit }, ...parts));
  dialog.showModal();
}

/** Show sentences that go away by themselves, or when they are dismissed. */
export function say(sentence, { good = false } = {}) {
  const box = byId("messages");
  const item = make("div", { class: good ? "message good" : "message" });
  const text = make("p", {});
  write(text, sentence);
  const drop = make("button", { class: "quiet", type: "button", onclick: () => item.remove() }, "×");
  drop.setAttribute("aria-label", "Dismiss");
  item.append(text, drop);
  box.append(item);
  while (box.childElementCount > 4) box.firstElementChild.remove();
  setTimeout(() => item.remove(), good ? 6000 : 20_000);
}
