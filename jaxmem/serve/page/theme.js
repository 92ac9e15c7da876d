// Dark or light: as the system says, or as the visitor chose.

import { byId } from "./dom.js";
import { rememberTheme, theme } from "./store.js";

const NAMES = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };

function apply(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  byId("theme").textContent = NAMES[name];
  window.dispatchEvent(new Event("resize")); // canvases read their colours when they are drawn
}

/** Apply the theme that was chosen, and let the button change it. */
export function beginThemes() {
  const names = Object.keys(NAMES);
  let now = names.includes(theme()) ? theme() : "auto";
  apply(now);
  byId("theme").onclick = () => {
    now = names[(names.indexOf(now) + 1) % names.length];
    rememberTheme(now);
    apply(now);
  };
}
