// The question box, and the history with the answers of every memory as they are written.

import { field, make, write } from "./dom.js";
import { clock, milliseconds, seconds } from "./format.js";

const CHIPS = 5; // questions to begin with

export class Asking {
  /**
   * @param stream what is asked
   * @param titles function from a session to the name of its memory
   * @param examples questions that the model knows
   */
  constructor(stream, titles, examples) {
    this.stream = stream;
    this.titles = titles;
    this.items = new Map(); // id of a question or an alert -> its element
    this.history = make("ol", { class: "history", tabIndex: 0, "aria-label": "Questions and answers" });
    this.none = make("p", { class: "faint small" }, "Nothing was asked yet.");
    const heading = make("h2", { id: "asking-title" }, "Ask");
    const parts = [heading, this.form(examples), this.none, this.history];
    this.root = make("section", { class: "card asking", "aria-labelledby": "asking-title" }, ...parts);
  }

  form(examples) {
    this.text = make("input", {
      type: "text",
      name: "question",
      required: true,
      autocomplete: "off",
      maxlength: "2000",
      placeholder: examples[0] ?? "What happened so far?",
    });
    this.at = make("input", {
      type: "text",
      name: "at",
      autocomplete: "off",
      placeholder: "now",
      size: 6,
    });
    this.at.setAttribute("aria-describedby", "asking-error");
    this.when = field("at", this.at);
    this.when.title = "A time of the stream such as 1:30; the answer comes when the stream is there";
    this.error = make("p", { class: "error small", id: "asking-error", role: "alert" });
    const send = make("button", { class: "primary", type: "submit" }, "Ask");
    const line = make("div", { class: "ask-line" }, field("Question", this.text), this.when, send);
    const chips = examples.slice(0, CHIPS).map((text) => this.chip(text));
    const known = make("div", { class: "chips", role: "group" }, ...chips);
    known.setAttribute("aria-label", "Questions to begin with");
    known.hidden = chips.length === 0;
    return make("form", { onsubmit: (event) => this.submit(event) }, line, this.error, known);
  }

  chip(text) {
    const ask = () => this.ask(text);
    return make("button", { class: "chip", type: "button", onclick: ask }, text);
  }

  submit(event) {
    event.preventDefault();
    if (this.ask(this.text.value.trim())) {
      this.text.value = "";
      this.text.focus();
    }
  }

  ask(text) {
    const written = this.when.hidden ? "" : this.at.value.trim();
    const at = written === "" || written === "now" ? null : seconds(written);
    const wrong = at === null && written !== "" && written !== "now";
    write(this.error, wrong ? `"${written}" is no time; write 90, 1:30 or 1:02:03.` : "");
    this.at.setAttribute("aria-invalid", String(wrong));
    if (wrong || text === "") return false;
    return this.stream.ask(text, at) !== null;
  }

  update() {
    const { questions, alerts, sessions } = this.stream;
    const times = sessions.some((one) => ["file", "demo"].includes(one.source?.kind));
    this.when.hidden = !times;
    this.none.hidden = questions.length + alerts.length > 0;
    for (const question of questions) this.show(question);
    alerts.forEach((alert, i) => this.showAlert(alert, i));
  }

  item(key, className) {
    if (!this.items.has(key)) {
      const item = make("li", { class: className });
      this.items.set(key, item);
      this.history.prepend(item);
    }
    return this.items.get(key);
  }

  show(question) {
    const item = this.item(`question ${question.id}`, "asked");
    const time = question.askedAt ?? question.at;
    const when = time === null ? "" : clock(Math.round(time * 100) / 100);
    const mark = `${question.text}|${when}|${question.error}|${JSON.stringify([...question.answers])}`;
    if (item.mark === mark && item.count === this.stream.sessions.length) return;
    Object.assign(item, { mark, count: this.stream.sessions.length });
    const head = make("p", { class: "question" }, make("time", {}, when), question.text);
    const parts = [head];
    if (question.error !== null) parts.push(make("p", { class: "error" }, question.error));
    else parts.push(this.answers(question));
    item.replaceChildren(...parts);
  }

  answers(question) {
    const rows = [...question.answers].map(([session, answer]) => {
      const name = make("dt", {}, this.titles(session));
      const first = answer.done && answer.first ? `first token after ${milliseconds(answer.first)}` : "";
      const cost = make("span", { class: "faint small" }, ` ${first}`);
      return make("div", {}, name, make("dd", {}, this.words(answer), cost));
    });
    if (rows.length > 0 && question.askedAt !== null) return make("dl", { class: "answers" }, ...rows);
    const what = question.at === null ? "its turn" : clock(question.at);
    return make("p", { class: "faint small" }, `waits for ${what}…`);
  }

  words(answer) {
    if (answer.done && answer.cut) return `${answer.text} (cut)`;
    return answer.done ? answer.text || "(no words)" : `${answer.text}…`;
  }

  showAlert(alert, i) {
    const item = this.item(`alert ${i}`, "alert");
    if (item.childElementCount > 0) return;
    const name = this.stream.sessions.length > 1 ? ` (${this.titles(alert.session)})` : "";
    const head = make("time", {}, clock(alert.at));
    item.append(make("p", {}, head, `Yes now: ${alert.text}${name}`));
  }
}
