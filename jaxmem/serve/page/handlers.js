// What a server says -> what becomes of it in a `Stream`.

/** Note that a session's camera broke off, and how; or with null that it is there again. */
function noteLoss(stream, id, lost) {
  const found = stream.sessions.find((one) => one.id === id);
  if (found?.source) found.source = { ...found.source, lost };
  stream.changed("sessions");
}

export const HANDLERS = {
  "session.created": (stream, message) => {
    const first = stream.sessions.length === 0;
    stream.sessions = [];
    for (const session of message.sessions) stream.take(session);
    stream.align(message.sessions);
    stream.id = stream.sessions[0].id;
    stream.joined = true;
    if (first) stream.dispatchEvent(new Event("made"));
    for (const part of ["sessions", "stats", "questions", "watches"]) stream.changed(part);
  },
  "session.added": (stream, { session }) => {
    stream.take(session);
    stream.dispatchEvent(new Event("joined"));
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
  "source.lost": (stream, { session, message }) => noteLoss(stream, session, message),
  "source.resumed": (stream, { session, message }) => {
    noteLoss(stream, session, null);
    stream.note(`The source is there again, ${message}.`);
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
