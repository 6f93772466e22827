// The standard ipywidgets controls, drawn with native HTML for widgets-static.js: one function a control, which
// makes the element for a model. They are labelled, work by keyboard and touch, and say their value in words.
//
// `h(tag, properties, ...children)` makes an element, `find(id)` the model of a child, `show(model, parent)` its view.
"use strict";
window.minqControls = ({ h, find, show }) => {
  let serial = 0;
  function bind(model, keys, draw) {
    model.on(keys.map((k) => `change:${k}`).join(" "), draw);
    draw();
  }
  const title = (m) => m.get("description") || m.get("tooltip") || m.name.replace(/Model$/, "");
  const named = (el, name) => (el.setAttribute("aria-label", name), el);

  // A row: the description as label of the first control, the controls, and a readout where there is one.
  function row(m, ...kids) {
    const control = kids.find((k) => /^(INPUT|SELECT|TEXTAREA)$/.test(k.tagName));
    const text = m.get("description");
    if (control) control.id = `ws-${++serial}`;
    const label = h("label", { className: "ws-label", htmlFor: control?.id ?? "", textContent: text ?? "" });
    if (control && !text) named(control, title(m));
    bind(m, ["disabled"], () => kids.forEach((k) => { if ("disabled" in k) k.disabled = !!m.get("disabled"); }));
    return h("div", { className: "ws-row" }, ...(text ? [label] : []), ...kids);
  }

  // d3-format as far as ipywidgets' readouts use it: "d", ".2f", ".3g", ".1e", ".0%".
  function format(value, spec = "") {
    const [, digits, type] = /(?:\.(\d+))?([a-z%])?$/.exec(spec);
    if (type === "d") return String(Math.round(value));
    if (type === "f") return value.toFixed(digits ?? 6);
    if (type === "e") return value.toExponential(digits ?? 6);
    if (type === "%") return `${(100 * value).toFixed(digits ?? 6)}%`;
    return type === "g" ? String(+value.toPrecision(digits ?? 6)) : String(value);
  }

  // A slider: `key` is the trait it moves, `at` and `to` map it to the position and back, `show` to words.
  function slider(m, { key = "value", at = (v) => v, to = (p) => p, show, bounds }) {
    const input = h("input", { type: "range" }), readout = h("output", { className: "ws-readout" });
    readout.setAttribute("aria-live", "off"); // the slider's own value text is what is spoken
    bind(m, [key, "min", "max"], () => {
      const [min, max, step] = bounds?.() ?? [m.get("min"), m.get("max"), m.get("step")];
      Object.assign(input, { min, max, step: step ?? "any" }); // before the value, which they clamp
      input.value = at(m.get(key));
      readout.textContent = show(m.get(key));
      input.setAttribute("aria-valuetext", readout.textContent);
    });
    input.addEventListener("input", () => m.set(key, to(+input.value)));
    return row(m, input, ...(m.get("readout") === false ? [] : [readout]));
  }

  const number = (m) => slider(m, { show: (v) => format(v, m.get("readout_format") ?? "") });
  const logarithmic = (m) => {
    const base = m.get("base");
    return slider(m, {
      at: (v) => Math.log(v) / Math.log(base), to: (p) => base ** p, show: (v) => format(v, m.get("readout_format")),
    });
  };
  const labels = (m) => m.get("_options_labels");
  const selection = m =>
    slider(m, {
      key: "index",
      at: i => i ?? 0,
      show: i => labels(m)[i] ?? "",
      bounds: () => [0, labels(m).length - 1, 1],
    });

  // Two sliders, low and high, that push each other.
  function range(m, { key = "value", show, bounds }) {
    const ends = ["low", "high"].map((name) => named(h("input", { type: "range" }), `${title(m)}, ${name}`));
    const readout = h("output", { className: "ws-readout" });
    bind(m, [key, "min", "max"], () => {
      const [min, max, step] = bounds?.() ?? [m.get("min"), m.get("max"), m.get("step")];
      ends.forEach((input, i) => {
        Object.assign(input, { min, max, step });
        input.value = m.get(key)[i];
        input.setAttribute("aria-valuetext", show(m.get(key)[i]));
      });
      readout.textContent = m.get(key).map(show).join(" – ");
    });
    ends.forEach((input, i) => input.addEventListener("input", () => {
      const pair = ends.map((e) => +e.value);
      if (pair[0] > pair[1]) pair[1 - i] = pair[i];
      m.set(key, pair);
    }));
    return row(m, ...ends, readout);
  }
  const numberRange = (m) => range(m, { show: (v) => format(v, m.get("readout_format")) });
  const selectionRange = (m) =>
    range(m, { key: "index", show: (i) => labels(m)[i], bounds: () => [0, labels(m).length - 1, 1] });

  function dropdown(m) {
    const select = h("select", {}, ...labels(m).map((t) => h("option", { textContent: t })));
    bind(m, ["index"], () => { select.selectedIndex = m.get("index") ?? -1; });
    select.addEventListener("change", () => m.set("index", select.selectedIndex));
    return row(m, select);
  }
  function choices(m, make, mark) { // toggle buttons and radio buttons: one item an option
    const items = labels(m).map((text, i) => make(text, () => m.set("index", i)));
    bind(m, ["index"], () => items.forEach((item, i) => mark(item, i === m.get("index"))));
    const group = row(m, ...items);
    group.setAttribute("role", "group");
    return named(group, title(m));
  }
  function button(text, click) {
    const b = h("button", { type: "button", className: "ws-button", textContent: text });
    b.addEventListener("click", click);
    return b;
  }
  const press = (b, on) => b.setAttribute("aria-pressed", String(on));
  const toggles = (m) => choices(m, button, press);
  function radios(m) {
    const name = `ws-${++serial}`;
    const make = (text, pick) => {
      const input = h("input", { type: "radio", name });
      input.addEventListener("change", pick);
      return h("label", { className: "ws-choice" }, input, text);
    };
    return choices(m, make, (item, on) => { item.firstChild.checked = on; });
  }
  function checkbox(m) {
    const input = h("input", { type: "checkbox" });
    bind(m, ["value"], () => { input.checked = m.get("value"); });
    input.addEventListener("change", () => m.set("value", input.checked));
    return row(m, input);
  }
  function toggle(m) {
    const b = button(title(m), () => m.set("value", !m.get("value")));
    bind(m, ["value"], () => press(b, m.get("value")));
    return b;
  }
  function play(m) {
    let timer = 0;
    const step = () => {
      const next = m.get("value") + m.get("step");
      if (next <= m.get("max")) m.set("value", next);
      else if (m.get("repeat")) m.set("value", m.get("min"));
      else m.set("playing", false);
    };
    const run = button("", () => m.set("playing", !m.get("playing")));
    const reset = button("Reset", () => m.set({ playing: false, value: m.get("min") }));
    bind(m, ["playing"], () => {
      clearInterval(timer);
      if (m.get("playing")) timer = setInterval(step, m.get("interval"));
      run.textContent = m.get("playing") ? "Pause" : "Play";
    });
    return row(m, run, reset);
  }
  function entry(m, tag, props, parse) { // text and number fields
    const input = h(tag, { placeholder: m.get("placeholder") ?? "", ...props });
    bind(m, ["value"], () => { input.value = m.get("value"); });
    input.addEventListener("change", () => { m.set("value", parse(input.value)); input.value = m.get("value"); });
    return row(m, input);
  }
  const text = (m) => entry(m, "input", { type: "text" }, String);
  const textarea = (m) => entry(m, "textarea", {}, String);
  function numeric(m) {
    const min = m.get("min") ?? -Infinity, max = m.get("max") ?? Infinity;
    const clamp = (s) => (Number.isFinite(parseFloat(s)) ? Math.min(max, Math.max(min, +s)) : m.get("value"));
    return entry(m, "input", { type: "number", min, max, step: m.get("step") ?? "any" }, clamp);
  }
  function words(property) { // a label, or HTML written by the notebook's author
    return (m) => {
      const el = h("div", { className: "ws-words" });
      bind(m, ["value"], () => { el[property] = m.get("value"); });
      return el;
    };
  }
  const box = (className) => (m) => {
    const el = h("div", { className });
    m.get("children").forEach((c) => show(find(c), el));
    return el;
  };
  function folds(m) { // an accordion, and a tab too: sections that open and close
    const names = m.get("titles") ?? [];
    return h("div", { className: "ws-vbox" }, ...m.get("children").map((c, i) => {
      const section = h(
        "details",
        { open: i === m.get("selected_index") },
        h("summary", { textContent: names[i] || `Part ${i + 1}` }),
      );
      show(find(c), section);
      return section;
    }));
  }
  return {
    IntSlider: number,
    FloatSlider: number,
    FloatLogSlider: logarithmic,
    SelectionSlider: selection,
    IntRangeSlider: numberRange,
    FloatRangeSlider: numberRange,
    SelectionRangeSlider: selectionRange,
    Dropdown: dropdown,
    Select: dropdown,
    ToggleButtons: toggles,
    RadioButtons: radios,
    Checkbox: checkbox,
    ToggleButton: toggle,
    Play: play,
    Text: text,
    Textarea: textarea,
    IntText: numeric,
    FloatText: numeric,
    BoundedIntText: numeric,
    BoundedFloatText: numeric,
    Label: words("textContent"),
    HTML: words("innerHTML"),
    HTMLMath: words("innerHTML"),
    Box: box("ws-hbox"),
    HBox: box("ws-hbox"),
    VBox: box("ws-vbox"),
    GridBox: box("ws-grid"),
    Accordion: folds,
    Tab: folds,
  };
};
