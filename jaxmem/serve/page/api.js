// The server over HTTP. The token comes from the page's address and stays in this tab.

const base = new URL(".", document.baseURI);
const KEY = "jaxmem.token";

/** An error that the server or the network told, as one sentence. */
export class Failure extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Take the token out of the page's address, so that it is in no bookmark and no history. */
export function takeToken() {
  const address = new URL(location.href);
  const token = address.searchParams.get("token");
  if (token === null) return;
  sessionStorage.setItem(KEY, token);
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

const token = () => sessionStorage.getItem(KEY);

async function request(path, options = {}) {
  const headers = new Headers(options.headers ?? {});
  if (token() !== null) headers.set("Authorization", `Bearer ${token()}`);
  let response;
  try {
    response = await fetch(new URL(path, base), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer; is it still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  if (response.status === 401) {
    return new Failure("The server wants its token: open the page as /?token=TOKEN.", 401, "token");
  }
  const body = await response.json().catch(() => null);
  const error = body?.error ?? {};
  const message = error.message ?? `The server answered ${response.status}.`;
  return new Failure(String(message), response.status, String(error.code ?? ""));
}

const json = async (path, options) => (await request(path, options)).json();
const session = (id, rest = "") => `v1/streaming/sessions/${encodeURIComponent(id)}${rest}`;

export const api = {
  models: () => json("v1/models"),
  sessions: () => json("v1/streaming/sessions"),
  session: (id) => json(session(id)),
  close: (id) => request(session(id), { method: "DELETE" }),
  stop: (id) => request(session(id, "/source"), { method: "DELETE" }),
  upload: (id, file) => json(session(id, "/upload"), { method: "POST", body: file }),
  create: (fields) =>
    json("v1/streaming/sessions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(fields),
    }),
  /** Return a picture as a Blob: the newest, or the one nearest to a time of the stream. */
  picture: async (id, time = null, signal = undefined) => {
    const which = time === null ? "/picture" : `/picture/${time.toFixed(2)}`;
    return (await request(session(id, which), { signal })).blob();
  },
  /** Return the address of the WebSocket. */
  socket: () => {
    const address = new URL("v1/video/chat/stream", base);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    if (token() !== null) address.searchParams.set("token", token());
    return address;
  },
};
