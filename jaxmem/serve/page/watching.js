// Standing questions: asked again and again, told when the answer turns from no to yes.

import { field, make } from "./dom.js";

const EVERY = 5; // seconds

export class Watching {
  constructor(stream, titles, example) {
    this.stream = stream;
    this.titles = titles;
    this.list = make("ul", { class: "watches" });
    this.text = make("input", {
      type: "text",
      required: true,
      autocomplete: "off",
      maxlength: "2000",
      placeholder: example ?? "Is somebody at the door?",
    });
    this.every = make("input", { type: "number", min: "1", max: "3600", value: String(EVERY) });
    const add = make("button", { type: "submit" }, "Tell me");
    const boxes = [field("Yes-or-no question", this.text), field("every (s)", this.every), add];
    const line = make("div", { class: "ask-line" }, ...boxes);
    const form = make("form", { onsubmit: (event) => this.submit(event) }, line);
    const heading = make("h2", { id: "watching-title" }, "Tell me when…");
    const attributes = { class: "card", "aria-labelledby": "watching-title" };
    this.root = make("section", attributes, heading, form, this.list);
  }

  submit(event) {
    event.preventDefault();
    if (this.stream.watch(this.text.value.trim(), Number(this.every.value))) this.text.value = "";
  }

  update() {
    const several = this.stream.sessions.length > 1;
    const mark = JSON.stringify([...this.stream.watches.values(), several]);
    if (mark === this.mark) return; // a button that has the focus keeps it
    this.mark = mark;
    const items = [...this.stream.watches.values()].map(({ id, session, text, every, answer }) => {
      const drop = () => this.stream.unwatch(id);
      const button = make("button", { class: "quiet", type: "button", onclick: drop }, "Stop");
      button.setAttribute("aria-label", `Stop asking: ${text}`);
      const how = `${several ? `${this.titles(session)}, ` : ""}every ${every} s of stream${answer ? `; last answer: ${answer}` : ""}`;
      return make("li", {}, make("span", {}, text), make("span", { class: "faint small" }, how), button);
    });
    this.list.replaceChildren(...items);
  }
}
