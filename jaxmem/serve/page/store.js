// What a reload finds again: the stream in the address, small things in localStorage.

const LAST = "jaxmem.session";
const CAPTURED = "jaxmem.captured"; // session -> what this browser sent to it
const THEME = "jaxmem.theme";

const read = (key) => {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
};
const keep = (key, value) => {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // Private windows may refuse; then a reload starts from the address alone.
  }
};

/** Return the session that the address or the last visit names; null if none. */
export function chosen() {
  const found = /^#session=([A-Za-z0-9_-]{1,64})$/.exec(location.hash);
  const last = read(LAST);
  return found?.[1] ?? (typeof last === "string" ? last : null);
}

/** Remember a session, or forget it. */
export function choose(id) {
  keep(LAST, id);
  const address = id === null ? location.pathname : `#session=${id}`;
  history.replaceState(null, "", address);
}

/** Return how this browser fed a session: "camera", "microphone", "screen" or null. */
export const captured = (id) => read(CAPTURED)?.[id] ?? null;

export function rememberCapture(id, kind) {
  const recent = Object.entries(read(CAPTURED) ?? {}).slice(-50);
  keep(CAPTURED, { ...Object.fromEntries(recent), [id]: kind });
}

export const theme = () => read(THEME);
export const rememberTheme = (name) => keep(THEME, name);
