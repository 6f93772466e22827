// The drawing kit of all widgets: small elements, axes, controls, handles; no framework.
//
//   render({ model, el }) {
//     const w = widget({ model, el });              // the figure, its redraws and its clean-up
//     w.controls(w.slider({ trait: "bits", label: "Bits", min: 1, max: 8 }));
//     const p = w.plot({ height: 200 });
//     return w.start(() => { ... });                // draws at once, then after every change
//   }
//
// Everything a picture shows is also said in words: p.describe(), w.caption(), w.say().

// --- Elements -------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

/** Set attributes: functions become listeners, null and false remove, true sets an empty one. */
export function attr(node, attributes) {
  for (const [k, v] of Object.entries(attributes)) {
    if (typeof v === "function") node.addEventListener(k, v);
    else if (v === null || v === undefined || v === false) node.removeAttribute(k);
    else node.setAttribute(k, v === true ? "" : v);
  }
  return node;
}

function grow(node, attributes, children) {
  attr(node, attributes);
  node.append(...children.flat(Infinity).filter(c => c !== null && c !== undefined && c !== false));
  return node;
}

/** An HTML element: h("p", { class: "note", click: f }, "text", child). */
export const h = (tag, attributes = {}, ...children) => grow(document.createElement(tag), attributes, children);
/** An SVG element. */
export const svg = (tag, attributes = {}, ...children) => grow(document.createElementNS(SVG, tag), attributes, children);

/** x_int with a real subscript: in HTML sub("x", "int"), inside SVG text tsub("x", "int"). */
export const sub = (base, low) => [base, h("sub", {}, low)];
export const tsub = (base, low) => [base, svg("tspan", { dy: 3, "font-size": "0.8em" }, low)];

let serial = 0;
const unique = stem => `mq-${stem}-${(serial += 1)}-${Math.random().toString(36).slice(2, 7)}`;

// --- Numbers and data -----------------------------------------------------------------------------

const SUPER = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const dressed = t => t.replace("-", "−");

/** A number for readers, to some significant digits: 0.0333, 12,345, 1.2×10⁻⁷, −∞; never "NaN". */
export function fmt(v, digits = 3) {
  if (typeof v !== "number" || Number.isNaN(v)) return "–";
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size >= 1e7 || size < 1e-4) {
    const [m, e] = v.toExponential(digits - 1).split("e");
    return `${dressed(String(Number(m)))}×10${[...String(Number(e))].map(c => SUPER[c]).join("")}`;
  }
  const round = size >= 10 ** (digits - 1) ? Math.round(v) : Number(v.toPrecision(digits));
  return dressed(size >= 1e4 ? round.toLocaleString("en-US", { maximumFractionDigits: 9 }) : String(round));
}

/** A number with a fixed count of decimals, for columns that must not jump. */
export const fixed = (v, decimals) => (Number.isFinite(v) && Math.abs(v) < 1e7 ? dressed(v.toFixed(decimals)) : fmt(v));
export const percent = share => {
  const v = 100 * share;
  return v > 0 && v < 0.1 ? "< 0.1 %" : `${fmt(v, v < 99.5 ? 2 : 3)} %`;
};

/** The floats of a binary trait (float32, little endian). */
export function floats(view) {
  if (!view || !view.buffer) return new Float32Array();
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}
/** The bytes of a binary trait. */
export const bytes = view => (view && view.buffer ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array());

export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low <= high ? [low, high] : [0, 0];
}

/** How many values fall into each of `bins` equal bins over [low, high]; the last one is closed. */
export function histogram(values, low, high, bins) {
  const counts = new Array(bins).fill(0), k = bins / (high - low || 1);
  for (const v of values) {
    if (v >= low && v <= high) counts[Math.min(bins - 1, Math.floor((v - low) * k))] += 1;
  }
  return counts;
}

// --- Scales and paths -----------------------------------------------------------------------------

/** About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten. */
export function niceTicks(low, high, count = 5) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0) || !Number.isFinite(raw)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * (raw / power < 1.5 ? 1 : raw / power < 3.2 ? 2 : raw / power < 7.1 ? 5 : 10);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k++) ticks.push(Number((k * step).toPrecision(12)) + 0);
  return ticks;
}

function scale(domain, range, to, from, ticks) {
  let [a, b] = domain.map(to);
  if (!(b > a)) [a, b] = [a - 0.5, a + 0.5]; // a domain of one point still draws
  const k = (range[1] - range[0]) / (b - a);
  return Object.assign(v => range[0] + (to(v) - a) * k, {
    domain: [from(a), from(b)], range, ticks, invert: px => from(a + (px - range[0]) / k),
  });
}
/** x = linear([0, 1], [left, right]); x(0.5), x.invert(px), x.ticks(5). */
export const linear = (domain, range) => scale(domain, range, v => v, v => v, count => niceTicks(...domain, count));
/** The same for positive values over orders of magnitude; ticks at powers of ten (or two: base 2). */
export const logarithmic = (domain, range, base = 10) => {
  const to = v => Math.log(v) / Math.log(base), from = u => base ** u;
  return scale(domain, range, to, from, count => {
    const [a, b] = [Math.ceil(to(domain[0]) - 1e-9), Math.floor(to(domain[1]) + 1e-9)];
    const every = Math.max(1, Math.ceil((b - a) / Math.max(1, count))), ticks = [];
    for (let k = a; k <= b; k += every) ticks.push(base ** k);
    return ticks;
  });
};

const px = v => (Number.isFinite(v) ? Math.round(Math.max(-1e5, Math.min(1e5, v)) * 100) / 100 : 0);
/** Paths through pixel points [[x, y], ...]. */
export const linePath = points => points.map(([x, y], i) => `${i ? "L" : "M"}${px(x)} ${px(y)}`).join("");
export const areaPath = (points, base) =>
  points.length ? `${linePath(points)}L${px(points.at(-1)[0])} ${px(base)}L${px(points[0][0])} ${px(base)}Z` : "";
/** Each point holds its y until the next one comes; the last until `end`. */
export const stepPath = (points, end) =>
  points.map(([x, y], i) => (i ? `H${px(x)}V${px(y)}` : `M${px(x)} ${px(y)}`)).join("") + (end === undefined ? "" : `H${px(end)}`);
/** The outline of a histogram; x and y are scales, bins as in histogram(). */
export function histogramPath(counts, low, high, x, y) {
  const width = (high - low) / counts.length, base = px(y(0));
  return `M${px(x(low))} ${base}${counts.map((c, i) => `V${px(y(c))}H${px(x(low + (i + 1) * width))}`).join("")}V${base}Z`;
}

// --- A question first -----------------------------------------------------------------------------

/** What this browser keeps of a question, or nothing: a page on a disk may have no storage. */
const kept = {
  key: q => `minq-question ${location.pathname} ${q.text}`,
  read(q) { try { return JSON.parse(localStorage.getItem(kept.key(q))); } catch { return null; } },
  write(q, answer) { try { localStorage.setItem(kept.key(q), JSON.stringify(answer)); } catch { /* not kept, then */ } },
  forget(q) { try { localStorage.removeItem(kept.key(q)); } catch { /* nothing was kept */ } },
};

/** The question of a model before its figure, which stays shut until the reader answers or skips.
 *  An answer is { guess }, the text of a choice or a number, or { skipped: true }. Returns the clean-up. */
function ask(model, root) {
  const q = model.get("question");
  if (!q) return () => {};
  const { choices, low, high, step, answer } = q, name = unique("guess");
  const unit = v => `${fmt(v, 4)}${q.unit && ` ${q.unit}`}`;
  const quoted = v => (choices ? `“${v}”` : unit(v));
  const told = v => {
    if (choices) return [v === choices[answer] ? "Right." : "Not so.", `You said ${quoted(v)}.`];
    const off = v - answer, near = Math.abs(off) <= step / 2 * (1 + 1e-9);
    return near ? ["Right,", `as near as the slider can say. You said ${unit(v)}.`]
      : [off < 0 ? "Too low" : "Too high", `by ${unit(Math.abs(off))}. You said ${unit(v)}.`];
  };

  // The guess: one of a few choices, or a number from a slider.
  const radios = (choices ?? []).map(value => h("input", { type: "radio", name, value, required: true, "data-lm-suppress-shortcuts": true }));
  const at = v => `${(100 * (v - low)) / (high - low)}%`;
  const slider = choices ? null : h("input", {
    type: "range", id: name, min: low, max: high, step, "data-lm-suppress-shortcuts": true,
    input: () => follow(),
  });
  const number = h("output", { class: "mq-value", for: name });
  const follow = () => {
    if (!slider) return;
    number.textContent = unit(Number(slider.value));
    attr(slider, { "aria-valuetext": number.textContent });
    slider.style.setProperty("--fill", at(slider.value));
  };
  const button = (text, click) => h("button", { type: click ? "button" : "submit", class: "mq-button", click }, text);
  const asking = h("div", { class: "mq-ask" },
    slider ? h("div", { class: "mq-field" }, h("div", { class: "mq-line" }, h("label", { for: name }, "Your guess"), number), slider,
      h("div", { class: "mq-line mq-ends", "aria-hidden": true }, h("span", {}, unit(low)), h("span", {}, unit(high))))
      : radios.map(radio => h("label", { class: "mq-check" }, radio, h("span", {}, radio.value))),
    h("div", { class: "mq-buttons" }, button("Commit"), button("Skip", () => close({ skipped: true }, true))));

  // The answer: in words, and two numbers on a line.
  const verdict = h("b"), said = h("span"), guess = h("p", { class: "mq-guess" }, verdict, " ", said);
  const mark = (kind, v) => {
    const text = h("span"), dot = h("i"), node = h("div", { class: `mq-mark ${kind}` }, text, dot);
    const put = (value, words) => { node.style.setProperty("--at", at(value)); text.textContent = words; };
    if (v !== undefined) put(v, `truth ${unit(v)}`);
    return { node, put };
  };
  const yours = mark("mq-blue"), line = slider && h("div", { class: "mq-numbers", role: "img" },
    yours.node, h("div", { class: "mq-axle" }), mark("mq-red", answer).node);
  const again = button("Ask me again", () => { kept.forget(q); open(); (slider ?? radios.find(r => r.checked) ?? radios[0]).focus(); });
  const telling = h("div", { class: "mq-tell" }, guess,
    h("p", { class: "mq-truth" }, h("b", {}, `It is ${quoted(choices ? choices[answer] : answer)}.`), ` ${q.because}`), line, h("div", { class: "mq-buttons" }, again));

  const live = h("p", { class: "mq-hidden", role: "status" });
  const card = h("form", { class: "minq mq-question", "data-lm-suppress-shortcuts": true, submit: event => {
    event.preventDefault();
    close({ guess: slider ? Number(slider.value) : radios.find(r => r.checked).value }, true);
  } }, h("fieldset", {}, h("legend", {}, q.text), h("div", { class: "mq-stack" }, asking, telling)), live);

  // Both sides of the card are laid out all the time, one of them unseen, so that nothing jumps.
  const show = answered => {
    root.inert = !answered;
    for (const node of [card, root]) node.classList.toggle("mq-shut", !answered);
    asking.inert = answered;
    telling.inert = !answered;
  };
  const tell = v => {
    [verdict.textContent, said.textContent] = v === undefined ? ["Skipped.", ""] : told(v);
    if (!line) return;
    yours.node.hidden = v === undefined;
    if (v !== undefined) yours.put(v, `you ${unit(v)}`);
    attr(line, { "aria-label": `A line from ${unit(low)} to ${unit(high)}: ${v === undefined ? "" : `your guess ${unit(v)}, `}truth ${unit(answer)}.` });
  };
  const open = () => {
    tell(choices ? choices.find((_, i) => i !== answer) : low); // holds the room that an answer will take
    live.textContent = "";
    show(false);
  };
  const close = (found, now) => {
    tell(found.guess);
    show(true);
    if (!now) return;
    kept.write(q, found);
    again.focus({ preventScroll: true });
    live.textContent = `${telling.querySelector(".mq-guess").textContent} ${telling.querySelector(".mq-truth").textContent} The figure is open.`;
  };
  const old = kept.read(q), g = old?.guess, valid = choices ? choices.includes(g) : typeof g === "number" && g >= low && g <= high;
  if (slider) slider.value = valid ? g : low; // the middle would be a hint
  radios.forEach(r => { r.checked = valid && r.value === g; });
  follow();
  if (valid || old?.skipped === true) close(old);
  else open();
  root.before(card);
  return () => card.remove();
}

// --- The figure -----------------------------------------------------------------------------------

const THEME = ["class", "theme", "data-theme", "data-mode", "data-jp-theme-light", "data-vscode-theme-kind"];

/** The figure of one view: elements, redraws (at most one a frame), listeners and their removal. */
export function widget({ model, el }) {
  const undo = [];
  const kind = String(model.get("_anywidget_id") ?? "").split(".").at(-1); // class minq-AffinePlayground, say
  const root = h("figure", { class: `minq minq-${kind || "widget"}`, role: "group", "aria-label": model.get("alt"), "data-lm-suppress-shortcuts": true });
  const live = h("p", { class: "mq-hidden", "aria-live": "polite" });
  const w = { model, root, draw: null };
  root.append(live);
  el.append(root);
  undo.push(ask(model, root));

  w.get = name => model.get(name);
  /** Set traits: w.set("bits", 4) or w.set({ scale, zero_point }); Python hears of it soon after. */
  let saving = null;
  const save = () => { clearTimeout(saving); saving = null; model.save_changes(); };
  w.set = (name, value) => {
    for (const [k, v] of Object.entries(typeof name === "string" ? { [name]: value } : name)) {
      if (model.get(k) !== v) model.set(k, v);
    }
    saving ??= setTimeout(save, 150);
  };
  w.on = (trait, fn) => {
    const event = `change:${trait}`;
    model.on(event, fn);
    undo.push(() => model.off(event, fn));
  };
  w.listen = (target, type, fn, options) => {
    target.addEventListener(type, fn, options);
    undo.push(() => target.removeEventListener(type, fn, options));
  };
  /** Pictures or nodes side by side; returns their row, which can be hidden. */
  w.add = (...nodes) => {
    const row = h("div", { class: "mq-row" }, nodes.map(n => n.el ?? n));
    root.insertBefore(row, live);
    return row;
  };

  let frame = 0;
  w.redraw = () => {
    if (w.draw && !frame) frame = requestAnimationFrame(() => { frame = 0; w.draw(); });
  };
  const settle = () => {
    if (!frame) return;
    cancelAnimationFrame(frame);
    frame = 0;
    w.draw?.();
  };
  /** Draw now and after each change of a trait, a size or the theme. Returns the clean-up. */
  w.start = draw => {
    measures.forEach(look => look());
    w.draw = draw;
    draw();
    const dark = matchMedia("(prefers-color-scheme: dark)"), watch = new MutationObserver(w.redraw);
    for (const node of [document.documentElement, document.body]) {
      watch.observe(node, { attributes: true, attributeFilter: THEME });
    }
    w.listen(dark, "change", w.redraw);
    model.on("change", w.redraw);
    return () => {
      model.off("change", w.redraw);
      watch.disconnect();
      cancelAnimationFrame(frame);
      if (saving) save();
      clearTimeout(speaking);
      w.draw = null;
      undo.splice(0).forEach(f => f());
      root.remove();
    };
  };

  /** Say a sentence to screen readers once the reader pauses; not at the start. */
  let speaking = null, said = null;
  w.say = text => {
    if (said === null) said = text;
    if (text === said) return;
    said = text;
    clearTimeout(speaking);
    speaking = setTimeout(() => { live.textContent = text; }, 700);
  };
  /** The sentence below the picture that tells the state; it is also what screen readers hear. */
  w.caption = () => {
    const node = h("figcaption", { class: "mq-caption" });
    root.insertBefore(node, live);
    return { el: node, set(text) { node.textContent = text; w.say(text); } };
  };
  /** A colour of ui.css for canvases: w.color("blue"). */
  w.color = name => getComputedStyle(root).getPropertyValue(`--mq-${name}`).trim();
  /** Whether the reader asked for less motion: then jump, do not glide. */
  w.still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  /** An animation that runs only on screen: step(seconds since the last call). */
  w.loop = step => {
    let id = 0, last = 0, shown = true;
    // A frame's time may lie before the moment that asked for it.
    const run = now => { step(Math.min(0.1, Math.max(0, now - last) / 1000)); last = now; id = a.playing && shown ? requestAnimationFrame(run) : 0; };
    const wake = () => { if (a.playing && shown && !id) { last = performance.now(); id = requestAnimationFrame(run); } };
    const a = { playing: false, play() { a.playing = true; wake(); }, pause() { a.playing = false; cancelAnimationFrame(id); id = 0; } };
    const seen = new IntersectionObserver(entries => { shown = entries.at(-1).isIntersecting; wake(); });
    seen.observe(root);
    undo.push(() => { a.pause(); seen.disconnect(); });
    return a;
  };

  // --- Pictures ---

  /** Tell the width of a node at the start (640 while it is hidden) and whenever it changes. */
  const measures = [];
  const measure = (node, onWidth) => {
    let width = 0;
    const look = () => {
      const now = Math.floor(node.clientWidth) || width || 640;
      if (now !== width) { width = now; onWidth(now); w.redraw(); }
    };
    const seen = new ResizeObserver(look);
    seen.observe(node);
    undo.push(() => seen.disconnect());
    measures.push(look);
    look();
  };

  /** An SVG whose unit is the CSS pixel at any width; height may be a function of the width.
   *  p.left .. p.right and p.top .. p.bottom frame the data; redraw into p.layer("name"). */
  w.plot = ({ height = 200, margin = {}, label = "", grow: share = 1, min = 220 } = {}) => {
    const m = { top: 14, right: 14, bottom: 38, left: 44, ...margin };
    const holder = h("div", { class: "mq-plot", style: `flex:${share} 1 ${min}px` });
    const picture = svg("svg", { class: "mq-svg", role: "img", "aria-label": label });
    const hatch = unique("hatch"), clip = unique("clip"), frame = svg("rect");
    picture.append(svg("defs", {}, svg("clipPath", { id: clip }, frame),
      svg("pattern", { id: hatch, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("line", { class: "mq-hatch", x1: 0, x2: 0, y1: 0, y2: 6 }))));
    const scene = svg("g", { "aria-hidden": "true" }), front = svg("g");
    picture.append(scene, front);
    holder.append(picture);
    const layers = new Map();
    const p = { el: holder, svg: picture, hatch: `url(#${hatch})`, clip: `url(#${clip})` };
    p.layer = name => {
      if (!layers.has(name)) { const g = svg("g", { class: `mq-${name}` }); layers.set(name, g); scene.append(g); }
      return layers.get(name);
    };
    /** What the picture shows, in words; it changes with the picture. */
    p.describe = text => { picture.setAttribute("aria-label", text); };
    /** Thin axis below: ticks with direct labels; the name of the axis at its right end. */
    p.axisX = (x, { label: name = "", ticks, values = x.ticks(ticks ?? Math.max(2, Math.round((p.right - p.left) / 110))), format = v => fmt(v, 5), y = p.bottom, grid = false } = {}) => {
      p.layer("axis-x").replaceChildren(
        svg("line", { class: "mq-axis", x1: p.left, x2: p.right, y1: y, y2: y }),
        ...values.flatMap(v => [
          svg("line", { class: grid ? "mq-grid" : "mq-axis", x1: px(x(v)), x2: px(x(v)), y1: grid ? p.top : y, y2: y + 4 }),
          svg("text", { class: "mq-tick", x: px(x(v)), y: y + 16, "text-anchor": "middle" }, format(v)),
        ]),
        ...(name ? [svg("text", { class: "mq-name", x: p.right, y: y + 32, "text-anchor": "end" }, name)] : []),
      );
    };
    /** Faint horizontal lines with labels at the left; the name above, not turned. */
    p.axisY = (y, { label: name = "", ticks, values = y.ticks(ticks ?? Math.max(2, Math.round((p.bottom - p.top) / 50))), format = v => fmt(v, 5), grid = true } = {}) => {
      p.layer("axis-y").replaceChildren(
        ...values.flatMap(v => [
          grid ? svg("line", { class: "mq-grid", x1: p.left, x2: p.right, y1: px(y(v)), y2: px(y(v)) }) : null,
          svg("text", { class: "mq-tick", x: p.left - 8, y: px(y(v)) + 4, "text-anchor": "end" }, format(v)),
        ]).filter(Boolean),
        ...(name ? [svg("text", { class: "mq-name", x: 2, y: p.top - 9 }, name)] : []),
      );
    };
    /** Follow the pointer over the data: fn(x, y) in pixels; on touch by tap and sideways drag. */
    p.hover = fn => {
      const tell = e => {
        const box = picture.getBoundingClientRect(), k = p.width / (box.width || 1);
        if (!e.target.closest(".mq-handle")) fn((e.clientX - box.left) * k, (e.clientY - box.top) * k);
      };
      picture.classList.add("mq-hover");
      for (const type of ["pointermove", "pointerdown"]) w.listen(picture, type, tell);
    };
    /** A knob to drag or to move by keys; place() it in every draw:
     *  place({ x, y, value, min, max, step, text, invert }), invert(px) -> value. */
    p.handle = ({ label: name, vertical = false, onInput, tone = "ink" }) => {
      picture.setAttribute("role", "group");
      let at = {}, grab = null;
      const knob = svg("g", {
        class: `mq-handle mq-${tone}`, tabindex: 0, role: "slider", "aria-label": name,
        "aria-orientation": vertical ? "vertical" : "horizontal", "data-lm-suppress-shortcuts": true,
      }, svg("circle", { class: "mq-reach", r: 21 }), svg("circle", { class: "mq-ring", r: 12 }), svg("circle", { class: "mq-knob", r: 7 }));
      const give = v => onInput(Math.max(at.min, Math.min(at.max, v)));
      const where = e => {
        const box = picture.getBoundingClientRect(), k = p.width / (box.width || 1);
        return vertical ? (e.clientY - box.top) * k : (e.clientX - box.left) * k;
      };
      const drop = () => { grab = null; knob.classList.remove("mq-held"); };
      attr(knob, {
        pointerdown: e => {
          if (e.button) return;
          knob.setPointerCapture(e.pointerId);
          knob.focus({ preventScroll: true });
          grab = where(e) - (vertical ? at.y : at.x);
          knob.classList.add("mq-held");
          e.preventDefault();
        },
        pointermove: e => { if (grab !== null) give(at.invert(where(e) - grab)); },
        pointerup: drop, pointercancel: drop, lostpointercapture: drop,
        keydown: e => {
          settle(); // two presses within one frame are two steps
          const step = at.step ?? (at.max - at.min) / 100;
          const moves = { ArrowRight: step, ArrowUp: step, ArrowLeft: -step, ArrowDown: -step, PageUp: 10 * step, PageDown: -10 * step };
          if (e.key in moves) give(at.value + moves[e.key]);
          else if (e.key === "Home") give(at.min);
          else if (e.key === "End") give(at.max);
          else return;
          e.preventDefault();
          e.stopPropagation();
        },
      });
      front.append(knob);
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
    };
    measure(holder, width => {
      p.width = width;
      p.height = Math.round(typeof height === "function" ? height(width) : height);
      Object.assign(p, { left: m.left, right: width - m.right, top: m.top, bottom: p.height - m.bottom });
      attr(picture, { viewBox: `0 0 ${width} ${p.height}`, height: p.height });
      attr(frame, { x: p.left, y: p.top, width: Math.max(0, p.right - p.left), height: Math.max(0, p.bottom - p.top) });
    });
    return p;
  };

  /** A canvas in CSS pixels, sharp on any screen: c.ctx, c.width, c.height; clear it in each draw. */
  w.canvas = ({ height = 200, label = "", grow: share = 1, min = 220 } = {}) => {
    const node = h("canvas", { class: "mq-canvas", role: "img", "aria-label": label });
    const holder = h("div", { class: "mq-plot", style: `flex:${share} 1 ${min}px` }, node);
    const c = { el: holder, canvas: node, ctx: node.getContext("2d"), describe: text => node.setAttribute("aria-label", text) };
    measure(holder, width => {
      const dpr = window.devicePixelRatio || 1;
      c.width = width;
      c.height = Math.round(typeof height === "function" ? height(width) : height);
      Object.assign(node, { width: Math.round(c.width * dpr), height: Math.round(c.height * dpr) });
      node.style.height = `${c.height}px`;
      c.ctx.setTransform(dpr, 0, 0, dpr, 0, 0);
    });
    return c;
  };

  /** A picture of width x height pixels shown as such: c.put(rgba), four bytes a pixel. */
  w.pixels = ({ width, height, label = "", title = "", grow: share = 1, min = 130 }) => {
    const node = h("canvas", { class: "mq-pixels", role: "img", "aria-label": label, width, height });
    const name = h("div", { class: "mq-title" }, title);
    const holder = h("div", { class: "mq-plot", style: `flex:${share} 1 ${min}px` }, name, node);
    return {
      el: holder, canvas: node, describe: text => node.setAttribute("aria-label", text),
      title: text => { name.textContent = text; },
      put: rgba => node.getContext("2d", { willReadFrequently: true }).putImageData(new ImageData(rgba, width, height), 0, 0),
    };
  };

  // --- Controls: each is bound to a trait, or keeps its own value and tells it to onInput ---

  const bound = ({ trait, value, onInput }, show) => {
    let own = value;
    const c = {
      get value() { return trait ? model.get(trait) : own; },
      set value(v) { own = v; if (trait) w.set(trait, v); show(v); w.redraw(); },
      input(v) { c.value = v; onInput?.(v); },
    };
    if (trait) w.on(trait, () => show(model.get(trait)));
    return c;
  };

  w.controls = (...fields) => {
    const row = h("div", { class: "mq-controls" }, fields.map(f => f.el ?? f));
    root.insertBefore(row, live);
    return row;
  };

  /** A range slider; with log: true it takes equal ratios of 2 % and gives values of 3 digits. */
  w.slider = ({ label, min, max, step = 1, log = false, unit = "", format = fmt, ...bind }) => {
    const id = unique("slider"), out = h("output", { class: "mq-value", for: id });
    const input = h("input", { id, type: "range", "data-lm-suppress-shortcuts": true });
    const notches = () => Math.max(1, Math.round(Math.log(max / min) / Math.log(1.02)));
    const to = v => (log ? Math.round(notches() * Math.log(v / min) / Math.log(max / min)) || 0 : v);
    const from = i => (log ? Number((min * (max / min) ** (i / notches())).toPrecision(3)) : i);
    const show = v => {
      if (from(Number(input.value)) !== v) input.value = to(v);
      const text = unit ? `${format(v)} ${unit}` : format(v);
      out.textContent = text;
      attr(input, { "aria-valuetext": text });
      input.style.setProperty("--fill", `${(100 * (input.value - input.min)) / (input.max - input.min || 1)}%`);
    };
    const c = bound(bind, show);
    attr(input, { input: () => c.input(from(Number(input.value))) });
    c.el = h("div", { class: "mq-field" }, h("div", { class: "mq-line" }, h("label", { for: id }, label), out), input);
    c.node = input;
    /** Change limits or switch off: c.limit({ min, max, disabled }). */
    c.limit = change => {
      ({ min = min, max = max } = change);
      attr(input, log ? { min: 0, max: notches(), step: 1 } : { min, max, step });
      if ("disabled" in change) { input.disabled = change.disabled; c.el.classList.toggle("mq-off", change.disabled); }
      show(c.value);
    };
    c.limit({});
    return c;
  };

  /** A choice of a few, all in sight: options [[value, text], ...]. */
  w.segmented = ({ label, options, ...bind }) => {
    const name = unique("choice");
    const inputs = options.map(([v]) => h("input", { type: "radio", name, "data-lm-suppress-shortcuts": true, change: () => c.input(v) }));
    const show = v => options.forEach(([o], i) => { inputs[i].checked = o === v; });
    const c = bound(bind, show);
    c.el = h("fieldset", { class: "mq-field mq-segmented" }, h("legend", {}, label),
      h("div", { class: "mq-segments" }, options.map(([, text], i) => h("label", {}, inputs[i], h("span", {}, text)))));
    c.limit = ({ disabled }) => { c.el.disabled = disabled; c.el.classList.toggle("mq-off", disabled); };
    show(c.value);
    return c;
  };

  /** A choice of many. */
  w.select = ({ label, options, ...bind }) => {
    const id = unique("select");
    const box = h("select", { id, "data-lm-suppress-shortcuts": true, change: () => c.input(options[box.selectedIndex][0]) },
      options.map(([, text]) => h("option", {}, text)));
    const show = v => { box.selectedIndex = options.findIndex(([o]) => o === v); };
    const c = bound(bind, show);
    c.el = h("div", { class: "mq-field" }, h("div", { class: "mq-line" }, h("label", { for: id }, label)), box);
    show(c.value);
    return c;
  };

  w.checkbox = ({ label, ...bind }) => {
    const box = h("input", { type: "checkbox", "data-lm-suppress-shortcuts": true, change: () => c.input(box.checked) });
    const show = v => { box.checked = v; };
    const c = bound(bind, show);
    c.el = h("label", { class: "mq-check" }, box, h("span", {}, label));
    c.limit = ({ disabled }) => { box.disabled = disabled; c.el.classList.toggle("mq-off", disabled); };
    show(c.value);
    return c;
  };

  w.button = ({ label, onClick, title }) => {
    const node = h("button", { type: "button", class: "mq-button", title, click: onClick }, label);
    return { el: node, label: text => { node.textContent = text; }, limit: ({ disabled }) => { node.disabled = disabled; } };
  };

  /** Named numbers: r = w.readouts([["mse", "MSE"], ...]); r.set({ mse: 0.1 }) or ready text. */
  w.readouts = items => {
    const cells = new Map(items.map(([key]) => [key, h("dd")]));
    const list = h("dl", { class: "mq-readouts" }, items.map(([key, name, title]) => h("div", { title }, h("dt", {}, name), cells.get(key))));
    root.insertBefore(list, live);
    return {
      el: list,
      set(values) {
        for (const [k, v] of Object.entries(values)) cells.get(k).textContent = typeof v === "number" ? fmt(v) : v;
      },
    };
  };

  /** A computation, step by step: c = w.steps([["x", "x"], ["round", "round"], ...]);
   *  c.set({ round: 7 }, { round: true }) shows values and marks (with a red rule) those named. */
  w.steps = items => {
    const cells = new Map(items.map(([key, name]) => [key, h("li", {}, h("span", {}, name), h("b"))]));
    const list = h("ol", { class: "mq-steps" }, [...cells.values()]);
    root.insertBefore(list, live);
    return {
      el: list,
      set(values, marked = {}) {
        for (const [k, cell] of cells) {
          cell.lastChild.textContent = typeof values[k] === "number" ? fmt(values[k], 4) : values[k];
          cell.classList.toggle("mq-marked", Boolean(marked[k]));
        }
      },
    };
  };

  /** Keys to the marks: [[kind, text], ...], kind a class such as "line blue", "box grey", "hatch". */
  w.legend = items => {
    const list = h("ul", { class: "mq-legend" }, items.map(([kind, text]) =>
      h("li", {}, h("i", { class: kind.split(" ").map(k => `mq-key-${k}`).join(" ") }), text)));
    root.insertBefore(list, live);
    return { el: list };
  };

  return w;
}
