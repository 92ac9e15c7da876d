// The memory map: stream time across, layers down, drawn as jaxmem/report/maps.py draws it.

import { clock } from "./format.js";
import { ABOVE, BELOW, KINDS, columnsOf, scaleOf, tickStep } from "./held.js";

const AXIS = 22; // pixels below the lanes

export class MapCanvas {
  constructor(canvas) {
    this.canvas = canvas;
    this.map = { seconds: 0, layers: [] };
    this.offset = 0; // seconds of stream before this memory joined
    this.seconds = 0; // that the axis shows
    this.cursor = null; // seconds on this memory's own clock
    this.ends = new AbortController();
    const { signal } = this.ends;
    const draw = () => this.draw();
    this.sizes = new ResizeObserver(draw);
    this.sizes.observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw, { signal });
    window.addEventListener("resize", draw, { signal });
  }

  update(map, offset, seconds) {
    Object.assign(this, { map, offset, seconds: Math.max(seconds, map.seconds + offset, 1) });
    this.draw();
  }

  point(cursor) {
    this.cursor = cursor;
    this.draw();
  }

  remove() {
    this.ends.abort();
    this.sizes.disconnect();
  }

  get left() {
    return this.width < 420 ? 22 : 54;
  }

  /** Return the time on this memory's clock under a place on the canvas. */
  timeAt(x) {
    const share = (x - this.left) / (this.width - this.left - 1);
    return Math.min(1, Math.max(0, share)) * this.seconds - this.offset;
  }

  x(time) {
    return this.left + ((time + this.offset) / this.seconds) * (this.width - this.left - 1);
  }

  draw() {
    const lanes = this.map.layers.length;
    this.width = this.canvas.parentElement.clientWidth;
    const lane = Math.min(40, Math.max(9, 320 / Math.max(lanes, 1)));
    const height = lane * Math.max(lanes, 1) + AXIS;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(this.canvas);
    const colour = (name) => {
      this.canvas.style.color = `var(--${name})`; // a canvas takes no variables, and no light-dark()
      return style.color;
    };
    pen.font = `11px ${style.fontFamily}`;
    this.drawLanes(pen, colour, lane);
    this.drawAxis(pen, colour, height - AXIS);
    this.drawCursor(pen, colour, height - AXIS);
  }

  drawLanes(pen, colour, lane) {
    const layers = this.map.layers.map(columnsOf);
    const { scale, above } = scaleOf(layers);
    const colours = Object.fromEntries(KINDS.map((kind) => [kind, colour(kind)]));
    layers.forEach((columns, i) => {
      pen.fillStyle = colour(i % 2 === 0 ? "lane" : "surface");
      pen.fillRect(this.left, i * lane, this.width - this.left, lane);
      const line = (i + 0.05 + scale * Math.sqrt(above)) * lane;
      for (const column of columns) {
        this.drawColumn(pen, column, ABOVE, colours, line, -scale * lane);
        this.drawColumn(pen, column, BELOW, colours, line, scale * lane);
      }
      pen.fillStyle = colour("line");
      pen.fillRect(this.left, line - 0.25, this.width - this.left, 0.5);
      if (lane >= 12 || i % 4 === 0) this.drawName(pen, colour, i, (i + 0.5) * lane);
    });
    if (this.offset > 0) this.drawAbsence(pen, colour, lane * layers.length);
  }

  drawName(pen, colour, i, y) {
    pen.fillStyle = colour("ink");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillText(this.left < 40 ? `${i}` : `layer ${i}`, this.left - 7, y);
  }

  drawColumn(pen, column, kinds, colours, line, scale) {
    const x = this.x(column.start);
    const width = Math.max(1, this.x(column.end) - x - 0.4);
    let total = 0;
    for (const kind of kinds) {
      if (column[kind] === 0) continue;
      const inner = scale * Math.sqrt(total);
      total += column[kind];
      pen.fillStyle = colours[kind];
      pen.fillRect(x, line + inner, width, scale * Math.sqrt(total) - inner);
    }
  }

  /** Hatch the time before this memory joined the stream. */
  drawAbsence(pen, colour, height) {
    const right = this.x(0);
    pen.save();
    pen.beginPath();
    pen.rect(this.left, 0, right - this.left, height);
    pen.clip();
    pen.strokeStyle = colour("edge");
    pen.beginPath();
    for (let x = this.left - height; x < right; x += 8) {
      pen.moveTo(x, height);
      pen.lineTo(x + height, 0);
    }
    pen.stroke();
    pen.restore();
  }

  drawAxis(pen, colour, y) {
    const step = tickStep(this.seconds, Math.max(2, (this.width - this.left) / 70));
    pen.fillStyle = colour("faint");
    pen.textBaseline = "top";
    pen.fillRect(this.left, y, this.width - this.left, 1);
    for (let time = 0; time <= this.seconds; time += step) {
      const x = this.x(time - this.offset);
      const text = clock(time);
      const room = pen.measureText(text).width / 2;
      pen.fillRect(x, y, 1, 4);
      pen.textAlign = x + room > this.width ? "right" : x - room < this.left ? "left" : "center";
      pen.fillText(text, x, y + 7);
    }
  }

  drawCursor(pen, colour, height) {
    if (this.cursor === null) return;
    const x = this.x(this.cursor);
    if (x < this.left) return;
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1.5;
    pen.setLineDash([4, 3]);
    pen.beginPath();
    pen.moveTo(x, 0);
    pen.lineTo(x, height);
    pen.stroke();
    pen.setLineDash([]);
  }
}
