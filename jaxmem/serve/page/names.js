// What streams, memories and states are called on the page.

import { clock } from "./format.js";
import { captured } from "./store.js";

const CAPTURES = { camera: "Camera here", microphone: "Microphone here", screen: "Screen here" };

/** Return what a stream is called: its source, what this browser sends, or its id. */
export function streamTitle(session) {
  const source = session.source;
  if (source && source.kind !== "push") {
    return source.kind === "demo" ? "Demo world" : source.name || source.kind;
  }
  const here = (session.peers ?? [session.id]).map(captured).find((kind) => kind !== null);
  return CAPTURES[here] ?? `Stream ${session.id.slice(0, 8)}`;
}

/** Return how a stream stands, in words. */
export function streamState(session) {
  const at = clock(Math.floor(session.stats?.seconds ?? 0));
  if (session.state === "failed") return "failed";
  if (session.state !== "open") return "ended";
  if (session.source?.over) return `at its end, ${at}`;
  if (session.source?.lost) return `lost its source, at ${at}`;
  return session.source || session.stats?.lag ? `at ${at}` : `waits at ${at}`;
}
