// Plays the widgets of a built page: no kernel, no server, no other library.
//
// The page holds the state of every widget as JSON, and one small script where each is shown. An anywidget brings
// its own JavaScript, which runs here as it does in JupyterLab; the standard ipywidgets controls are drawn by
// widgets-controls.js. `jslink` and `jsdlink` join them.
(() => {
  "use strict";
  const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
  const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';
  const models = new Map(); // id -> Model
  const modules = new Map(); // source of an ESM -> promise of the module, so that each is loaded once
  const find = (id) => models.get(String(id).replace("IPY_MODEL_", ""));
  const h = window.minqElement;

  // --- Models: the part of the Jupyter widget protocol that a page can keep without a kernel ----------------------

  const same = (a, b) =>
    a === b || (Array.isArray(a) && Array.isArray(b) && a.length === b.length && a.every((v, i) => same(v, b[i])));

  class Model {
    #state;
    #handlers = new Map(); // event -> list of functions
    constructor(id, { model_name, model_module, state, buffers = [] }) {
      Object.assign(this, { id, name: model_name, isAnywidget: model_module === "anywidget" });
      for (const { path, data } of buffers) { // bytes travel as base64; a widget sees them as a DataView
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const parent = path.slice(0, -1).reduce((o, key) => o[key], state);
        parent[path.at(-1)] = new DataView(bytes.buffer);
      }
      this.#state = state;
    }
    get(key) { return this.#state[key]; }
    set(key, value) { // all values first, then the events, as in Backbone
      const news = Object.entries(typeof key === "string" ? { [key]: value } : key).filter(
        ([k, v]) => !same(this.#state[k], v),
      );
      for (const [k, v] of news) this.#state[k] = v;
      for (const [k, v] of news) this.#emit(`change:${k}`, this, v);
      if (news.length) this.#emit("change", this);
    }
    save_changes() {}
    renewed(values) { // the same widget with other values, which nothing has heard of yet
      const state = { ...this.#state, ...values };
      return new Model(this.id, { model_name: this.name, model_module: "anywidget", state });
    }
    send() {}
    on(events, f) {
      for (const e of events.split(" ")) this.#handlers.set(e, [...(this.#handlers.get(e) ?? []), f]);
    }
    off(events, f) { // without a function: all of an event; without an event: all
      for (const e of events ? events.split(" ") : [...this.#handlers.keys()])
        this.#handlers.set(e, f ? (this.#handlers.get(e) ?? []).filter((g) => g !== f) : []);
    }
    #emit(event, ...args) { for (const f of this.#handlers.get(event) ?? []) f(...args); }
    widget_manager = { get_model: async (id) => find(id) };
  }

  function link(m) { // jsdlink copies one way, jslink both ways; `same` ends the echo
    const [[from, a], [to, b]] = [m.get("source"), m.get("target")].map(([id, key]) => [find(id), key]);
    if (!from || !to) return;
    const forward = () => to.set(b, from.get(a));
    from.on(`change:${a}`, forward);
    if (m.name === "LinkModel") to.on(`change:${b}`, () => from.set(a, to.get(b)));
    forward();
  }

  // --- anywidget --------------------------------------------------------------------------------------------------

  function load(source) {
    if (!modules.has(source)) {
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      modules.set(source, import(url).finally(() => URL.revokeObjectURL(url)));
    }
    return modules.get(source);
  }

  async function renderAnywidget(model, el) {
    const css = model.get("_css"), id = model.get("_anywidget_id");
    if (css && !document.querySelector(`style[data-anywidget="${id}"]`)) {
      const style = h("style", { textContent: css });
      style.dataset.anywidget = id;
      document.head.append(style);
    }
    const module = await load(model.get("_esm"));
    const widget = typeof module.default === "function" ? await module.default() : module.default ?? module;
    const signal = new AbortController().signal; // a view lives as long as its page, so nothing aborts it
    model.ready ??= Promise.resolve(widget.initialize?.({ model, signal }));
    await model.ready;
    await widget.render?.({ model, el, signal }); // so the cleanup function that it may return is never needed
  }

  // --- Views ------------------------------------------------------------------------------------------------------

  const controls = window.minqControls({ h, find, show });

  // Append the view of a model to an element. Resolves when it is drawn, or has said why it is not.
  async function show(model, parent) {
    if (model?.isAnywidget) {
      const el = parent.appendChild(h("div", { className: "ws-anywidget" }));
      return renderAnywidget(model, el).catch((error) => fail(el, error));
    }
    const make = controls[model?.name.replace(/Model$/, "")];
    if (!make)
      return void parent.append(h("em", { textContent: `[${model?.name ?? "a widget"} needs a live notebook]` }));
    const el = parent.appendChild(make(model));
    const layout = find(model.get("layout"));
    for (const key of ["width", "display", "grid_template_columns", "justify_content", "align_items", "flex_flow"])
      if (layout?.get(key)) el.style.setProperty(key.replaceAll("_", "-"), layout.get(key));
  }
  function fail(el, error) {
    console.error(error);
    el.className = "ws-failed";
    el.setAttribute("role", "alert");
    el.textContent = `This figure could not start (${error.message ?? error}). The text around it reads without it.`;
  }

  // Draw a figure anew with other values, or without any as the book has it. Whether it is of that class.
  const stored = new Map(); // host element -> its model in the book
  function redraw(host, widget) {
    const model = stored.get(host);
    if (!model?.isAnywidget) return false;
    if (widget && !String(model.get("_anywidget_id")).endsWith(`.${widget.name}`)) return false;
    const bytes = (v) => new DataView(Uint8Array.from(atob(v.base64), (c) => c.charCodeAt(0)).buffer);
    const values = Object.entries(widget?.state ?? {}).map(([k, v]) => [k, v?.base64 ? bytes(v) : v]);
    host.replaceChildren();
    show(widget ? model.renewed(Object.fromEntries(values)) : model.renewed({}), host);
    return true;
  }
  window.minqRedraw = redraw;

  // Resolves when the figures in sight are drawn; after a second in any case, for a page in a tab not yet looked at.
  function start() {
    for (const script of document.querySelectorAll(STATE))
      for (const [id, entry] of Object.entries(JSON.parse(script.textContent).state))
        models.set(id, new Model(id, entry));
    for (const m of models.values()) if (/^(Directional)?LinkModel$/.test(m.name)) link(m);

    const waiting = new Map(); // host element -> model, until the reader comes near
    const wake = async (host) => {
      const model = waiting.get(host);
      if (!waiting.delete(host)) return;
      await show(model, host);
      host.dataset.state = host.querySelector(".ws-failed") ? "failed" : "ready";
    };
    const drawn = [];
    let seen;
    const looked = new Promise((done) => { seen = done; setTimeout(done, 1000); });
    const near = window.IntersectionObserver && new IntersectionObserver((entries) => {
      for (const e of entries) if (e.isIntersecting) { near.unobserve(e.target); drawn.push(wake(e.target)); }
      seen(Promise.all(drawn));
    }, { rootMargin: "600px" });
    for (const view of document.querySelectorAll(VIEW)) {
      const host = h("div", { className: "ws-root" });
      host.dataset.state = "waiting";
      view.after(host);
      waiting.set(host, find(JSON.parse(view.textContent).model_id));
      stored.set(host, waiting.get(host).renewed?.({}) ?? waiting.get(host));
      if (near) near.observe(host); else drawn.push(wake(host));
    }
    if (!near) seen(Promise.all(drawn));
    window.addEventListener("beforeprint", () => [...waiting.keys()].forEach(wake));
    document.documentElement.dataset.widgets = "ready"; // the state is read and the links are made
    return looked;
  }
  window.minqDrawn = start();
})();
