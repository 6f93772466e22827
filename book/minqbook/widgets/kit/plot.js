// Pictures: an SVG with axes and handles, a canvas, a picture of pixels.
import { attr, h, svg, unique } from "./elements.js";
import { fmt } from "./format.js";
import { px } from "./scales.js";

const holderOf = (share, min, ...children) =>
  h("div", { class: "mq-plot", style: `flex:${share} 1 ${min}px` }, ...children);
const heightAt = (height, width) => Math.round(typeof height === "function" ? height(width) : height);
const describing = node => text => node.setAttribute("aria-label", text);

/** Where an event is in the picture of a plot, in its pixels. */
function pointIn(p, event) {
  const box = p.svg.getBoundingClientRect(), k = p.width / (box.width || 1);
  return [(event.clientX - box.left) * k, (event.clientY - box.top) * k];
}

// --- Axes -----------------------------------------------------------------------------------------------------------

const tickCount = (length, pitch) => Math.max(2, Math.round(length / pitch));
const roundNumber = v => fmt(v, 5);

/** Thin axis below: ticks with direct labels; the name of the axis at its right end. */
function axisX(p, x, { label = "", ticks, values, format = roundNumber, y = p.bottom, grid = false } = {}) {
  values ??= x.ticks(ticks ?? tickCount(p.right - p.left, 110));
  const tick = v => [
    svg("line", { class: grid ? "mq-grid" : "mq-axis", x1: px(x(v)), x2: px(x(v)), y1: grid ? p.top : y, y2: y + 4 }),
    svg("text", { class: "mq-tick", x: px(x(v)), y: y + 16, "text-anchor": "middle" }, format(v)),
  ];
  const name = svg("text", { class: "mq-name", x: p.right, y: y + 32, "text-anchor": "end" }, label);
  const line = svg("line", { class: "mq-axis", x1: p.left, x2: p.right, y1: y, y2: y });
  p.layer("axis-x").replaceChildren(line, ...values.flatMap(tick), ...(label ? [name] : []));
}

/** Faint horizontal lines with labels at the left; the name above, not turned. */
function axisY(p, y, { label = "", ticks, values, format = roundNumber, grid = true } = {}) {
  values ??= y.ticks(ticks ?? tickCount(p.bottom - p.top, 50));
  const tick = v => [
    ...(grid ? [svg("line", { class: "mq-grid", x1: p.left, x2: p.right, y1: px(y(v)), y2: px(y(v)) })] : []),
    svg("text", { class: "mq-tick", x: p.left - 8, y: px(y(v)) + 4, "text-anchor": "end" }, format(v)),
  ];
  const name = svg("text", { class: "mq-name", x: 2, y: p.top - 9 }, label);
  p.layer("axis-y").replaceChildren(...values.flatMap(tick), ...(label ? [name] : []));
}

// --- Handles --------------------------------------------------------------------------------------------------------

/** Where a key takes the value of a handle; undefined for a key that is none of its own. */
function moved(key, { value, min, max, step = (max - min) / 100 }) {
  const to = {
    ArrowRight: value + step, ArrowUp: value + step, PageUp: value + 10 * step, End: max,
    ArrowLeft: value - step, ArrowDown: value - step, PageDown: value - 10 * step, Home: min,
  };
  return to[key];
}

/** A knob to drag or to move by keys; place() it in every draw:
 *  place({ x, y, value, min, max, step, text, invert }), invert(px) -> value. */
function handle(w, p, { label, vertical = false, onInput, tone = "ink" }) {
  p.svg.setAttribute("role", "group");
  let at = {}, grab = null;
  const knob = svg(
    "g",
    {
      class: `mq-handle mq-${tone}`, tabindex: 0, role: "slider", "aria-label": label,
      "aria-orientation": vertical ? "vertical" : "horizontal", "data-lm-suppress-shortcuts": true,
    },
    svg("circle", { class: "mq-reach", r: 21 }),
    svg("circle", { class: "mq-ring", r: 12 }),
    svg("circle", { class: "mq-knob", r: 7 }),
  );
  const give = v => onInput(Math.max(at.min, Math.min(at.max, v)));
  const where = event => pointIn(p, event)[vertical ? 1 : 0];
  const drop = () => {
    grab = null;
    knob.classList.remove("mq-held");
  };
  attr(knob, {
    pointerdown: event => {
      if (event.button) return;
      knob.setPointerCapture(event.pointerId);
      knob.focus({ preventScroll: true });
      grab = where(event) - (vertical ? at.y : at.x);
      knob.classList.add("mq-held");
      event.preventDefault();
    },
    pointermove: event => { if (grab !== null) give(at.invert(where(event) - grab)); },
    pointerup: drop, pointercancel: drop, lostpointercapture: drop,
    keydown: event => {
      w.settle(); // two presses within one frame are two steps
      const value = moved(event.key, at);
      if (value === undefined) return;
      give(value);
      event.preventDefault();
      event.stopPropagation();
    },
  });
  return {
    el: knob,
    place(state) {
      at = { ...at, ...state };
      attr(knob, {
        transform: `translate(${px(at.x)} ${px(at.y)})`, "aria-valuemin": at.min, "aria-valuemax": at.max,
        "aria-valuenow": at.value, "aria-valuetext": at.text ?? fmt(at.value),
      });
    },
    show(on) { attr(knob, { hidden: !on, display: on ? null : "none" }); },
  };
}

// --- The three kinds ------------------------------------------------------------------------------------------------

/** What a picture refers to by id: a clip of its frame, and a pattern of hatching. */
function definitions(clip, hatch, frame) {
  const line = svg("line", { class: "mq-hatch", x1: 0, x2: 0, y1: 0, y2: 6 });
  const turned = { patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  return svg(
    "defs",
    {},
    svg("clipPath", { id: clip }, frame),
    svg("pattern", { id: hatch, width: 6, height: 6, ...turned }, line),
  );
}

/** An SVG whose unit is the CSS pixel at any width; height may be a function of the width.
 *  p.left .. p.right and p.top .. p.bottom frame the data; redraw into p.layer("name"). */
export function plot(w, { height = 200, margin = {}, label = "", grow = 1, min = 220 } = {}) {
  const m = { top: 14, right: 14, bottom: 38, left: 44, ...margin };
  const hatch = unique("hatch"), clip = unique("clip"), frame = svg("rect");
  const scene = svg("g", { class: "mq-scene", "aria-hidden": "true" }), front = svg("g"), layers = new Map();
  const parts = [definitions(clip, hatch, frame), scene, front];
  const picture = svg("svg", { class: "mq-svg", role: "img", "aria-label": label }, parts);
  const p = { el: holderOf(grow, min, picture), svg: picture, hatch: `url(#${hatch})`, clip: `url(#${clip})` };
  /** A group to draw in; p.layer("dots", "mq-answer") is not seen before the figure's question is answered. */
  p.layer = (name, kind = "") => {
    if (!layers.has(name)) layers.set(name, scene.appendChild(svg("g", { class: `mq-${name} ${kind}`.trim() })));
    return layers.get(name);
  };
  /** What the picture shows, in words; it changes with the picture. */
  p.describe = describing(picture);
  p.axisX = (x, options) => axisX(p, x, options);
  p.axisY = (y, options) => axisY(p, y, options);
  /** Follow the pointer over the data: fn(x, y) in pixels; on touch by tap and sideways drag. */
  p.hover = fn => {
    const tell = event => { if (!event.target.closest(".mq-handle")) fn(...pointIn(p, event)); };
    picture.classList.add("mq-hover");
    for (const type of ["pointermove", "pointerdown"]) w.listen(picture, type, tell);
  };
  p.handle = options => {
    const made = handle(w, p, options);
    front.append(made.el);
    return made;
  };
  w.measure(p.el, width => {
    p.width = width;
    p.height = heightAt(height, width);
    Object.assign(p, { left: m.left, right: width - m.right, top: m.top, bottom: p.height - m.bottom });
    attr(picture, { viewBox: `0 0 ${width} ${p.height}`, height: p.height });
    const size = { width: Math.max(0, p.right - p.left), height: Math.max(0, p.bottom - p.top) };
    attr(frame, { x: p.left, y: p.top, ...size });
  });
  return p;
}

/** A picture of width x height pixels shown as such: c.put(rgba), four bytes a pixel. */
export function pixels({ width, height, label = "", title = "", grow = 1, min = 130 }) {
  const node = h("canvas", { class: "mq-pixels", role: "img", "aria-label": label, width, height });
  const name = h("div", { class: "mq-title" }, title);
  const context = () => node.getContext("2d", { willReadFrequently: true });
  return {
    el: holderOf(grow, min, name, node), canvas: node, describe: describing(node),
    title: text => { name.textContent = text; },
    put: rgba => context().putImageData(new ImageData(rgba, width, height), 0, 0),
  };
}
