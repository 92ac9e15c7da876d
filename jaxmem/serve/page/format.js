// Numbers as the reports of the library write them (jaxmem/report/numbers.py).

/** Return a stream time as mm:ss, or h:mm:ss from one hour on; fractions only if there are any. */
export function clock(seconds) {
  const cents = Math.floor(Math.abs(seconds) * 100 + 1e-6);
  const rest = cents % 100;
  const whole = (cents - rest) / 100;
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  const text = (hours ? `${hours}:` : "") + `${two(minutes)}:${two(whole % 60)}`;
  const fraction = rest ? `.${two(rest)}`.replace(/0+$/, "") : "";
  return (seconds < 0 && cents ? "-" : "") + text + fraction;
}

/** Return a number of bytes with a binary unit. */
export function size(count) {
  let value = count;
  for (const unit of ["B", "KiB", "MiB"]) {
    if (value < 1024) return unit === "B" ? `${value.toFixed(0)} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(2)} GiB`;
}

/** Return a time in milliseconds with three digits or more, or a dash where nothing was measured. */
export function milliseconds(value) {
  if (value === null || value === undefined) return "-";
  return `${value >= 999.5 ? value.toFixed(0) : Number(value).toPrecision(3)} ms`;
}

/** Return the seconds of "90", "1:30" or "1:02:03"; null if it is no time. */
export function seconds(text) {
  const match = /^(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)$/.exec(text.trim());
  if (match === null) return null;
  const [hours, minutes, rest] = match.slice(1).map((part) => Number(part ?? 0));
  if (match[2] !== undefined && rest >= 60) return null;
  if (match[1] !== undefined && minutes >= 60) return null;
  return hours * 3600 + minutes * 60 + rest;
}

/** Return "1 picture" or "2 pictures". */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
