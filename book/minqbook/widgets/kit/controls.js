// Controls: each is bound to a trait, or keeps its own value and tells it to onInput.
import { attr, h, unique } from "./elements.js";
import { fmt } from "./format.js";

const OWN_KEYS = { "data-lm-suppress-shortcuts": true }; // JupyterLab leaves the keys to the control

/** The value of a control: its trait's, or its own. `show` draws it. */
function bound(w, { trait, value, onInput }, show) {
  let own = value;
  const control = {
    get value() {
      return trait ? w.get(trait) : own;
    },
    set value(v) {
      own = v;
      if (trait) w.set(trait, v);
      show(v);
      w.redraw();
    },
    input(v) {
      control.value = v;
      onInput?.(v);
    },
  };
  if (trait) w.on(trait, () => show(w.get(trait)));
  return control;
}

const labelled = (id, label, ...rest) => h("div", { class: "mq-line" }, h("label", { for: id }, label), ...rest);

/** control.limit({ disabled }) switches the node that takes input on and off. */
const switched = (control, node) => ({ disabled }) => {
  node.disabled = disabled;
  control.el.classList.toggle("mq-off", disabled);
};

/** From values to the notches of a slider and back: equal ratios of 2 %, values of 3 digits. */
function notched(min, max) {
  const ratio = Math.log(max / min), count = Math.max(1, Math.round(ratio / Math.log(1.02)));
  return {
    count,
    to: v => Math.round((count * Math.log(v / min)) / ratio) || 0,
    from: i => Number((min * (max / min) ** (i / count)).toPrecision(3)),
  };
}

/** A range slider; with log: true it takes equal ratios of 2 % and gives values of 3 digits. */
export function slider(w, { label, min, max, step = 1, log = false, unit = "", format = fmt, ...bind }) {
  const id = unique("slider"), out = h("output", { class: "mq-value", for: id });
  const input = h("input", { id, type: "range", ...OWN_KEYS });
  const to = v => (log ? notched(min, max).to(v) : v);
  const from = i => (log ? notched(min, max).from(i) : i);
  const show = v => {
    if (from(Number(input.value)) !== v) input.value = to(v);
    const text = unit ? `${format(v)} ${unit}` : format(v);
    out.textContent = text;
    attr(input, { "aria-valuetext": text });
    const share = (100 * (input.value - input.min)) / (input.max - input.min || 1);
    input.style.setProperty("--fill", `${share}%`);
  };
  const c = bound(w, bind, show);
  attr(input, { input: () => c.input(from(Number(input.value))) });
  c.el = h("div", { class: "mq-field" }, labelled(id, label, out), input);
  c.node = input;
  const turn = switched(c, input);
  /** Change limits or switch off: c.limit({ min, max, disabled }). */
  c.limit = change => {
    ({ min = min, max = max } = change);
    attr(input, log ? { min: 0, max: notched(min, max).count, step: 1 } : { min, max, step });
    if ("disabled" in change) turn(change);
    show(c.value);
  };
  c.limit({});
  return c;
}

/** A choice of a few, all in sight: options [[value, text], ...]. */
export function segmented(w, { label, options, ...bind }) {
  const name = unique("choice");
  const inputs = options.map(([v]) => h("input", { type: "radio", name, ...OWN_KEYS, change: () => c.input(v) }));
  const show = v => options.forEach(([o], i) => { inputs[i].checked = o === v; });
  const c = bound(w, bind, show);
  const segments = options.map(([, text], i) => h("label", {}, inputs[i], h("span", {}, text)));
  c.el = h(
    "fieldset",
    { class: "mq-field mq-segmented" },
    h("legend", {}, label),
    h("div", { class: "mq-segments" }, segments),
  );
  c.limit = switched(c, c.el);
  show(c.value);
  return c;
}

/** A choice of many. */
export function select(w, { label, options, ...bind }) {
  const id = unique("select");
  const change = () => c.input(options[box.selectedIndex][0]);
  const box = h("select", { id, ...OWN_KEYS, change }, options.map(([, text]) => h("option", {}, text)));
  const show = v => { box.selectedIndex = options.findIndex(([o]) => o === v); };
  const c = bound(w, bind, show);
  c.el = h("div", { class: "mq-field" }, labelled(id, label), box);
  show(c.value);
  return c;
}

export function checkbox(w, { label, ...bind }) {
  const box = h("input", { type: "checkbox", ...OWN_KEYS, change: () => c.input(box.checked) });
  const show = v => { box.checked = v; };
  const c = bound(w, bind, show);
  c.el = h("label", { class: "mq-check" }, box, h("span", {}, label));
  c.limit = switched(c, box);
  show(c.value);
  return c;
}

export function button({ label, onClick, title }) {
  const node = h("button", { type: "button", class: "mq-button", title, click: onClick }, label);
  return {
    el: node,
    label: text => { node.textContent = text; },
    limit: ({ disabled }) => { node.disabled = disabled; },
  };
}

// --- What is read: words and numbers, no input ----------------------------------------------------------------------

/** Named numbers: r = w.readouts([["mse", "MSE"], ...]); r.set({ mse: 0.1 }) or ready text. */
export function readouts(items) {
  const cells = new Map(items.map(([key]) => [key, h("dd")]));
  const named = items.map(([key, name, title]) => h("div", { title }, h("dt", {}, name), cells.get(key)));
  return {
    el: h("dl", { class: "mq-readouts" }, named),
    set(values) {
      for (const [k, v] of Object.entries(values)) cells.get(k).textContent = typeof v === "number" ? fmt(v) : v;
    },
  };
}

/** A computation, step by step: c = w.steps([["x", "x"], ["round", "round"], ...]);
 *  c.set({ round: 7 }, { round: true }) shows values and marks (with a red rule) those named. */
export function steps(items) {
  const cells = new Map(items.map(([key, name]) => [key, h("li", {}, h("span", {}, name), h("b"))]));
  return {
    el: h("ol", { class: "mq-steps" }, [...cells.values()]),
    set(values, marked = {}) {
      for (const [k, cell] of cells) {
        cell.lastChild.textContent = typeof values[k] === "number" ? fmt(values[k], 4) : values[k];
        cell.classList.toggle("mq-marked", Boolean(marked[k]));
      }
    },
  };
}

/** Keys to the marks: [[kind, text], ...], kind a class such as "line blue", "box grey", "hatch". */
export function legend(items) {
  const classes = kind => kind.split(" ").map(k => `mq-key-${k}`).join(" ");
  const keys = items.map(([kind, text]) => h("li", {}, h("i", { class: classes(kind) }), text));
  return { el: h("ul", { class: "mq-legend" }, keys) };
}
