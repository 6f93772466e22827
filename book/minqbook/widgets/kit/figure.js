// The drawing kit of all widgets: the figure of a view, its redraws, its listeners and their removal; no framework.
//
//   render({ model, el }) {
//     const w = widget({ model, el });
//     w.controls(w.slider({ trait: "bits", label: "Bits", min: 1, max: 8 }));
//     const p = w.plot({ height: 200 });
//     return w.start(() => { ... });                // draws at once, then after every change
//   }
//
// elements.js makes nodes, scales.js joins data and pixels, format.js writes numbers, data.js reads a widget's bytes;
// the pictures are in plot.js, the controls in controls.js, the question before the figure in question.js.
// Everything a picture shows is also said in words: p.describe(), w.caption(), w.say().
import { button, checkbox, legend, readouts, segmented, select, slider, steps } from "./controls.js";
import { h } from "./elements.js";
import { pixels, plot } from "./plot.js";
import { ask } from "./question.js";

const THEME = ["class", "theme", "data-theme", "data-mode", "data-jp-theme-light", "data-vscode-theme-kind"];

/** The figure of one view. */
export const widget = view => new Figure(view);

class Figure {
  #undo = [];
  #measures = [];
  #draw = null;
  #frame = 0;
  #saving = null;
  #speaking = null;
  #said = null;
  #live = h("p", { class: "mq-hidden", "aria-live": "polite" });

  constructor({ model, el }) {
    const kind = String(model.get("_anywidget_id") ?? "").split(".").at(-1) || "widget"; // AffinePlayground, say
    const alt = { role: "group", "aria-label": model.get("alt") };
    this.model = model;
    this.root = h("figure", { class: `minq minq-${kind}`, ...alt, "data-lm-suppress-shortcuts": true }, this.#live);
    el.append(this.root);
    this.#undo.push(ask(model, this.root));
  }

  // --- The model ---

  get = name => this.model.get(name);

  /** Set traits: w.set("bits", 4) or w.set({ scale, zero_point }); Python hears of it soon after. */
  set = (name, value) => {
    for (const [k, v] of Object.entries(typeof name === "string" ? { [name]: value } : name)) {
      if (this.model.get(k) !== v) this.model.set(k, v);
    }
    this.#saving ??= setTimeout(this.#save, 150);
  };
  #save = () => {
    clearTimeout(this.#saving);
    this.#saving = null;
    this.model.save_changes();
  };

  on(trait, fn) {
    const event = `change:${trait}`;
    this.model.on(event, fn);
    this.#undo.push(() => this.model.off(event, fn));
  }
  listen(target, type, fn, options) {
    target.addEventListener(type, fn, options);
    this.#undo.push(() => target.removeEventListener(type, fn, options));
  }

  // --- What stands in the figure, in the order of the calls ---

  #place(part) {
    this.root.insertBefore(part.el, this.#live);
    return part;
  }
  #row(kind, nodes) {
    const el = h("div", { class: kind }, nodes.map(n => n.el ?? n));
    return this.#place({ el }).el;
  }
  /** Pictures or nodes side by side; returns their row, which can be hidden. */
  add(...nodes) { return this.#row("mq-row", nodes); }
  controls(...fields) { return this.#row("mq-controls", fields); }
  readouts(items) { return this.#place(readouts(items)); }
  steps(items) { return this.#place(steps(items)); }
  legend(items) { return this.#place(legend(items)); }
  /** The sentence below the picture that tells the state; it is also what screen readers hear. */
  caption() {
    const el = h("figcaption", { class: "mq-caption" });
    const set = text => {
      el.textContent = text;
      this.say(text);
    };
    return this.#place({ el, set });
  }

  // --- What is made here and placed by controls() and add() ---

  slider(options) { return slider(this, options); }
  segmented(options) { return segmented(this, options); }
  select(options) { return select(this, options); }
  checkbox(options) { return checkbox(this, options); }
  button(options) { return button(options); }
  plot(options) { return plot(this, options); }
  pixels(options) { return pixels(options); }

  // --- Drawing ---

  /** Draw in the next frame, however often it is asked for. */
  redraw = () => {
    if (!this.#draw || this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  };
  /** Draw now what waits for the next frame. */
  settle() {
    if (!this.#frame) return;
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#draw?.();
  }

  /** Draw now and after each change of a trait, a size or the theme. Returns the clean-up. */
  start(draw) {
    this.#measures.forEach(look => look());
    this.#draw = draw;
    draw();
    const dark = matchMedia("(prefers-color-scheme: dark)"), watch = new MutationObserver(this.redraw);
    for (const node of [document.documentElement, document.body]) {
      watch.observe(node, { attributes: true, attributeFilter: THEME });
    }
    this.listen(dark, "change", this.redraw);
    this.model.on("change", this.redraw);
    return () => {
      this.model.off("change", this.redraw);
      watch.disconnect();
      cancelAnimationFrame(this.#frame);
      if (this.#saving) this.#save();
      clearTimeout(this.#speaking);
      this.#draw = null;
      this.#undo.splice(0).forEach(f => f());
      this.root.remove();
    };
  }

  /** Tell the width of a node at the start (640 while it is hidden) and whenever it changes. */
  measure(node, onWidth) {
    let width = 0;
    const look = () => {
      const now = Math.floor(node.clientWidth) || width || 640;
      if (now === width) return;
      width = now;
      onWidth(now);
      this.redraw();
    };
    const seen = new ResizeObserver(look);
    seen.observe(node);
    this.#undo.push(() => seen.disconnect());
    this.#measures.push(look);
    look();
  }

  /** A colour of kit.css for canvases: w.color("blue"). */
  color(name) { return getComputedStyle(this.root).getPropertyValue(`--mq-${name}`).trim(); }

  /** Say a sentence to screen readers once the reader pauses; not at the start. */
  say(text) {
    this.#said ??= text;
    if (text === this.#said) return;
    this.#said = text;
    clearTimeout(this.#speaking);
    this.#speaking = setTimeout(() => { this.#live.textContent = text; }, 700);
  }

  // --- Motion ---

  /** Whether the reader asked for less motion: then jump, do not glide. */
  still() { return matchMedia("(prefers-reduced-motion: reduce)").matches; }

  /** An animation that runs only on screen: step(seconds since the last call). */
  loop(step) {
    let id = 0, last = 0, shown = true;
    const run = now => {
      step(Math.min(0.1, Math.max(0, now - last) / 1000)); // a frame's time may lie before the moment that asked for it
      last = now;
      id = motion.playing && shown ? requestAnimationFrame(run) : 0;
    };
    const wake = () => {
      if (!motion.playing || !shown || id) return;
      last = performance.now();
      id = requestAnimationFrame(run);
    };
    const motion = {
      playing: false,
      play() {
        motion.playing = true;
        wake();
      },
      pause() {
        motion.playing = false;
        cancelAnimationFrame(id);
        id = 0;
      },
    };
    const seen = new IntersectionObserver(entries => {
      shown = entries.at(-1).isIntersecting;
      wake();
    });
    seen.observe(this.root);
    this.#undo.push(() => {
      motion.pause();
      seen.disconnect();
    });
    return motion;
  }
}
