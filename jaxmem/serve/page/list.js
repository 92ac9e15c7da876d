// The list of streams beside the page.

import { byId, make } from "./dom.js";
import { streamState, streamTitle } from "./names.js";

/** Return sessions as streams: those with one source together, in their order. */
export function grouped(sessions) {
  const groups = new Map();
  for (const session of sessions) {
    const key = session.peers?.[0] ?? session.id;
    groups.set(key, [...(groups.get(key) ?? []), session]);
  }
  return [...groups.values()];
}

export class List {
  constructor(pick) {
    this.pick = pick;
    this.mark = "";
  }

  /** Show sessions; `chosen` are the ids of the stream in the middle. */
  show(sessions, chosen) {
    const streams = grouped(sessions);
    const rows = streams.map((group) => ({
      id: group[0].id,
      title: streamTitle(group[0]),
      memories: group.map((session) => session.memory).join(" and "),
      state: streamState(group[0]),
      here: group.some((session) => chosen.includes(session.id)),
    }));
    const mark = JSON.stringify(rows);
    if (mark === this.mark) return;
    this.mark = mark;
    byId("no-streams").hidden = rows.length > 0;
    const list = byId("streams");
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    list.replaceChildren(...rows.map((row) => this.row(row)));
    [...list.querySelectorAll("button")].find((one) => one.dataset.id === focused)?.focus();
  }

  row({ id, title, memories, state, here }) {
    const parts = [make("b", {}, title), make("small", {}, `${memories}, ${state}`)];
    const button = make("button", { type: "button", onclick: () => this.pick(id) }, ...parts);
    if (here) button.setAttribute("aria-current", "true");
    button.dataset.id = id;
    return make("li", {}, button);
  }
}
