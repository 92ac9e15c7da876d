// Elements from values. Text of others only ever becomes text.

/**
 * Return a new element.
 * Names that begin with "on" are listeners; values that are no strings are properties where the
 * element has them; null, undefined and false leave an attribute out. Strings among the children
 * become text nodes.
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value !== "string" && name in element) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Write text into an element, if it is not there already: screen readers hear changes only. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Return a labelled field: the label's text, then the control. */
export function field(label, control, hint = null) {
  const note = hint === null ? null : make("span", { class: "faint small" }, hint);
  return make("label", { class: "field" }, make("span", {}, label), control, note);
}

/** Return a select of [value, label] pairs. */
export function choice(pairs, chosen = null, attributes = {}) {
  const option = ([value, label]) => {
    return make("option", { value: String(value), selected: value === chosen }, label);
  };
  return make("select", attributes, ...pairs.map(option));
}

export const byId = (id) => document.getElementById(id);
