// Python in the page. Nothing is loaded before the first run. For other scripts:
//
//   minqLive.available                   whether this book was built with what it takes
//   minqLive.run(source, options)        runs a cell; resolves, and never rejects, to the result:
//     options { space: "page"            cells of one space share their names
//               fresh: false             forget the names of the space first
//               name: "this cell"        what tracebacks call it
//               onOutput: (output) => {} called for each output as it comes
//               onStatus: (text) => {} } what the reader waits for, in words ("" when it runs)
//     result  { status                   "ok"; "error": Python's; "stopped"; "failed": no Python to be had
//               text                     the last value as it prints, or the message of the error
//               stdout, figures          what was printed; pictures as data: addresses
//               outputs                  in order: [{ kind: "stdout" | "stderr" | "text" | "html" | "figure", text }]
//               line, traceback          where an error came from: the line of this source, or null
//               ms, memory }             in Python alone; bytes that Python holds
//   minqLive.stop()                      ends what runs; the next run starts a new Python without names
//   minqLive.running                     whether something runs or waits to
//   minqLive.generation                  grows with each Python that is given up: the names are gone
//   minqLive.editor(element, source, { onRun, onChange, label })
//                                        an editor in the element; resolves to { get, set, focus }; Ctrl+Enter
//                                        calls onRun(), each change onChange(text)
//   minqLive.show(output)                an element that shows an output
//
// Python lives in a worker in a frame of its own, whose origin is no page's and whose policy allows no network. What
// comes from there is shown as text or as a picture; of HTML only words, and how a table and a style of ours set them.
(() => {
  "use strict";
  const parts = window.minqParts, { bundles } = parts;
  const FIRST = ["python", "numpy", "book"]; // the bundles that every run needs
  const LATER = { // what a cell needs beyond, seen in its text
    matplotlib: /\b(matplotlib|pylab)\b/,
    weights: /\befficientnet_lite0\w*\b/,
  };
  const POLICY = "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; worker-src blob:";
  const FRAME = `<!doctype html><meta http-equiv="Content-Security-Policy" content="${POLICY}"><script>
    onmessage = ({ data, ports: [port] }) => {
      const worker = new Worker(URL.createObjectURL(new Blob(data.code, { type: "text/javascript" })));
      worker.onmessage = (e) => port.postMessage(e.data);
      worker.onerror = (e) => port.postMessage({ kind: "failed", text: e.message || "the worker could not start" });
      port.onmessage = (e) => worker.postMessage(e.data);
    };
  <\/script>`;
  const CODE = ["pyodide.asm.js", "pyodide.js", "live-libraries.js", "live-worker.js"]; // the worker's, in this order
  const NO_MEMORY = "This device has too little memory for Python in the page. The chapter reads without it; Colab" +
    " and Binder (the rocket at the top) run it elsewhere.";
  const FIGURE = /^[A-Za-z0-9+/=]+$/;
  const TABLE = /^(table|caption|thead|tbody|tr|th|td|div|figure|figcaption|details|summary|p|b|i|strong|em|code|br)$/;
  const STYLES = ["text-align", "white-space", "padding", "margin", "font-size", "caption-side", "color", "overflow-x"];
  const PLAIN = /^[\w.% ]+$/; // of a style's value: nothing to load, nothing below zero that covers the page

  // --- The files ----------------------------------------------------------------------------------------------------

  const filesOf = (names) => names.flatMap((name) => bundles[name] ?? []);
  const toLoad = (names) => Math.round(parts.toLoad(filesOf(names)) / 1e6);

  // --- One Python ---------------------------------------------------------------------------------------------------

  class Python {
    #frame; #port; #runs = new Map(); #has = new Set(FIRST); #ended; #isReady;
    constructor() {
      this.ended = new Promise((end) => { this.#ended = end; }); // resolves to why, when it is given up
      this.ready = this.#start();
      this.ready.catch(() => {});
    }
    async #start() {
      const code = CODE.map((name) => parts.load(name)); // first: the worker starts while the rest is on its way
      const names = filesOf(FIRST).filter((name) => !CODE.includes(name)), files = names.map(parts.packed);
      Promise.all(files).catch(() => {}); // asked below
      const { port1, port2 } = new MessageChannel();
      const frame = this.#frame = document.createElement("iframe");
      Object.assign(frame, { hidden: true, title: "Python", srcdoc: FRAME, tabIndex: -1 });
      frame.setAttribute("sandbox", "allow-scripts");
      frame.setAttribute("aria-hidden", "true");
      const shown = new Promise((done) => { frame.onload = done; });
      document.body.append(frame);
      const ready = new Promise((done, fail) => { this.#isReady = { done, fail }; });
      ready.catch(() => {});
      this.#port = port1;
      port1.onmessage = ({ data }) => this.#hear(data);
      const script = (await Promise.all(code)).flatMap((text) => [text, "\n"]);
      await shown;
      frame.contentWindow?.postMessage({ code: script }, "*", [port2]);
      port1.postMessage({ kind: "start", names });
      await Promise.all(files.map((file, i) => this.#give(names[i], file)));
      await ready;
    }
    async #give(name, file) { this.#port.postMessage({ kind: "file", name, file: await file }); }
    #hear({ kind, id, outputs, result, text }) {
      const run = this.#runs.get(id);
      if (kind === "ready") this.#isReady.done();
      else if (kind === "outputs") run?.hear(outputs);
      else if (kind === "done") { this.#runs.delete(id); run?.done(result); }
      else if (kind === "failed") { // Python itself is broken: nothing of it can be trusted any more
        this.#isReady.fail(new Error(text));
        this.end("failed", text);
      }
    }
    async add(names) {
      for (const name of names.filter((n) => !this.#has.has(n))) {
        const files = filesOf([name]);
        await Promise.all(files.map((file) => this.#give(file, parts.packed(file))));
        this.#has.add(name);
        this.#port.postMessage({ kind: "add", names: files });
      }
    }
    missing(names) { return names.filter((name) => !this.#has.has(name)); }
    run(message, hear) {
      const id = crypto.randomUUID?.() ?? String(Math.random());
      return new Promise((done) => {
        this.#runs.set(id, { hear, done });
        this.#port.postMessage({ kind: "run", id, ...message });
      });
    }
    end(status, text) {
      this.#frame?.remove();
      this.#port?.close();
      this.#ended({ status, text });
    }
  }

  // --- What other scripts see ---------------------------------------------------------------------------------------

  let python, generation = 0, running = 0, turn = Promise.resolve();

  function give(up, status, text) {
    if (python !== up || !up) return;
    python = undefined;
    generation++;
    up.end(status, text);
  }
  function sentence(text, began) {
    if (/memory|allocation/i.test(text)) return NO_MEMORY;
    return began ? `Python broke down and is gone, with all names: ${text}` : `Python could not start here: ${text}`;
  }
  const later = (source) => Object.keys(LATER).filter((name) => bundles[name] && LATER[name].test(source));

  async function attempt(source, { space = "page", fresh = false, name = "", onOutput, onStatus }, result) {
    const mine = (python ??= new Python());
    mine.ended.then(({ status, text }) => give(mine, status, text));
    const work = async () => {
      const wanted = later(source);
      const news = toLoad([...FIRST, ...wanted]);
      for (const file of filesOf(mine.missing(wanted))) parts.packed(file).catch(() => {}); // while Python starts
      onStatus?.(news ? `Loading Python, ${news} MB, once …` : "Starting Python …");
      await mine.ready;
      mine.began = true;
      if (mine.missing(wanted).length) onStatus?.(`Loading ${mine.missing(wanted).join(" and ")} …`);
      await mine.add(wanted);
      onStatus?.("");
      return mine.run({ source, space, fresh, name }, (outputs) => {
        for (const { kind, text } of outputs) {
          if (kind === "figure" && !FIGURE.test(text)) continue;
          const output = { kind: String(kind), text: String(text) };
          result.outputs.push(output);
          onOutput?.(output);
        }
      });
    };
    const end = mine.ended.then(({ status, text }) => ({
      status, text: status === "failed" ? sentence(text, mine.began) : text,
    }));
    try {
      return await Promise.race([work(), end]);
    } catch (error) {
      give(mine, "failed", error.message);
      return { status: "failed", text: sentence(error.message, false) };
    }
  }

  async function run(source, options = {}) {
    const result = { status: "failed", text: "", outputs: [], line: null, traceback: "", ms: 0 };
    running++;
    const before = turn;
    let done;
    turn = new Promise((end) => { done = end; });
    const asked = generation;
    await before; // one after another, in the order of the clicks
    if (asked !== generation) Object.assign(result, { status: "stopped", text: "Stopped before it began." });
    else Object.assign(result, await attempt(source, options, result));
    done();
    running--;
    const of = (kind) => result.outputs.filter((output) => output.kind === kind).map(({ text }) => text);
    result.stdout = of("stdout").join("");
    result.figures = of("figure").map((text) => `data:image/png;base64,${text}`);
    if (result.status === "ok") result.text = of("text").at(-1) ?? "";
    return result;
  }

  function stop() {
    if (running) give(python, "stopped", "Stopped. The names of all cells are gone: run the cells above again.");
  }

  // An element of HTML that Python made, made anew: from a document without a window, so nothing of the old one runs.
  function plain(node) {
    if (!TABLE.test(node.localName)) return document.createTextNode(node.textContent);
    const made = document.createElement(node.localName);
    for (const name of STYLES) {
      const value = node.style.getPropertyValue(name);
      if (PLAIN.test(value)) made.style.setProperty(name, value);
    }
    for (const name of ["colspan", "rowspan"])
      if (node.hasAttribute(name)) made.setAttribute(name, node.getAttribute(name));
    if (node.getAttribute("tabindex") === "0") made.tabIndex = 0; // what scrolls is reached by keyboard
    made.append(...[...node.childNodes].map(plain));
    return made;
  }
  function show({ kind, text }) {
    if (kind === "html") {
      const { body } = new DOMParser().parseFromString(text, "text/html");
      return minqElement("div", { className: "mq-live-html" }, ...[...body.childNodes].map(plain));
    }
    if (kind === "figure") {
      const picture = Object.assign(new Image(), { src: `data:image/png;base64,${text}`, alt: "Figure of this cell" });
      picture.decode().then(() => { picture.width = picture.naturalWidth / 2; }, () => {});
      return picture;
    }
    return minqElement("pre", { className: `mq-live-${kind}`, textContent: text });
  }

  // --- The editor ---------------------------------------------------------------------------------------------------

  function plainEditor(element, source, { onRun, onChange, label = "Code" }) { // where CodeMirror cannot be had
    const area = Object.assign(document.createElement("textarea"), { value: source, spellcheck: false });
    area.className = "mq-live-plain";
    area.rows = source.split("\n").length + 1;
    area.setAttribute("aria-label", label);
    area.onkeydown = (e) => {
      if (e.key !== "Enter" || !(e.ctrlKey || e.metaKey || e.shiftKey)) return;
      e.preventDefault();
      onRun?.();
    };
    area.oninput = () => onChange?.(area.value);
    element.replaceChildren(area);
    return { get: () => area.value, set: (text) => { area.value = text; }, focus: () => area.focus() };
  }
  let editorReady;
  async function loadEditor() {
    const src = URL.createObjectURL(await parts.load("editor.js"));
    await new Promise((done, fail) => {
      document.head.append(minqElement("script", { src, onload: done, onerror: fail }));
    }).finally(() => URL.revokeObjectURL(src));
  }
  async function editor(element, source, options = {}) {
    element.addEventListener("keydown", (e) => { // the page's one-key shortcuts, "/" for the search, are for readers
      if (!e.ctrlKey && !e.metaKey && !e.altKey) e.stopPropagation();
    });
    try {
      await (editorReady ??= loadEditor());
      return window.minqEditor(element, source, options);
    } catch {
      editorReady = undefined;
      return plainEditor(element, source, options);
    }
  }

  window.minqLive = {
    available: FIRST.every((name) => name in bundles) && "DecompressionStream" in window && "WebAssembly" in window,
    run, stop, editor, show,
    get running() { return running > 0; },
    get generation() { return generation; },
  };
  document.dispatchEvent(new Event("minq-live"));
})();
