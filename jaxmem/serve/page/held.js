// What a map says: columns of layers, moments, totals. No browser is needed for these.

export const ABOVE = ["vision", "summary"]; // pictures lie above a layer's line,
export const BELOW = ["audio", "text"]; // sound and text below: no colour is needed to tell them
export const KINDS = ["vision", "audio", "text", "summary"];
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000]; // s

const none = () => ({ vision: 0, audio: 0, text: 0, summary: 0 });
const kindOf = (name) => (name === "video" ? "vision" : name);
const byStart = (columns) => [...columns.values()].sort((a, b) => a.start - b.start);

/** Return the columns of a layer, in order: {start, end, vision, audio, text, summary}. */
export function columnsOf(layer) {
  const columns = new Map();
  for (const { start, end, modality, count } of layer.held) {
    if (!columns.has(start)) columns.set(start, { start, end, ...none() });
    const column = columns.get(start);
    column.end = Math.max(column.end, end);
    column[kindOf(modality)] += count;
  }
  return byStart(columns);
}

/** Return the moments that any layer holds, in order: a column's numbers, and in how many layers. */
export function momentsOf(map) {
  const moments = new Map();
  for (const column of map.layers.flatMap(columnsOf)) {
    const { start, end } = column;
    if (!moments.has(start)) moments.set(start, { start, end, layers: 0, ...none() });
    const moment = moments.get(start);
    moment.layers += 1;
    moment.end = Math.max(moment.end, end);
    for (const kind of KINDS) moment[kind] += column[kind];
  }
  return byStart(moments);
}

/** Return what a map holds, by kind, and where its oldest moment lies; null if nowhere. */
export function totals(map) {
  const found = none();
  const moments = momentsOf(map);
  for (const moment of moments) {
    for (const kind of KINDS) found[kind] += moment[kind];
  }
  return { ...found, oldest: moments[0]?.start ?? null };
}

/** Return the distance of ticks on an axis of time with at most so many. */
export function tickStep(seconds, most) {
  return STEPS.find((step) => seconds / step <= most) ?? 10 * STEPS.at(-1);
}

const sum = (column, kinds) => kinds.reduce((total, kind) => total + column[kind], 0);

/** Return pixels per root of a token for lanes of 1, so that the tallest columns just fit. */
export function scaleOf(layers) {
  const tallest = (kinds) => Math.max(1, ...layers.flat().map((column) => sum(column, kinds)));
  const [above, below] = [tallest(ABOVE), tallest(BELOW)];
  return { scale: 0.9 / (Math.sqrt(above) + Math.sqrt(below)), above };
}
