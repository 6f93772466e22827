// One Python in a worker of its own: an endless loop cannot freeze the page, and Stop ends it.
//
// The script is joined behind pyodide.asm.js and pyodide.js. All it reads comes in messages: the frame that it lives
// in has no network (live.js), and after the start not even the functions that would ask for it.
(() => {
  "use strict";
  const NETWORK = [
    "fetch", "XMLHttpRequest", "WebSocket", "WebSocketStream", "WebTransport", "EventSource", "importScripts",
    "Worker", "SharedWorker", "BroadcastChannel", "RTCPeerConnection", "indexedDB", "caches",
  ];
  const FLUSH = 50; // ms between two messages of a loop that prints
  const say = self.postMessage.bind(self);
  const files = new Map(); // name -> Blob
  let python, run, queue = Promise.resolve();

  // --- What Python says ---------------------------------------------------------------------------------------------

  let current, pieces = [], sent = 0;
  function flush() {
    if (pieces.length) say({ kind: "outputs", id: current, outputs: pieces });
    pieces = [];
    sent = performance.now();
  }
  function emit(kind, text) {
    const last = pieces.at(-1);
    if (last?.kind === kind && (kind === "stdout" || kind === "stderr")) last.text += text;
    else pieces.push({ kind, text });
    if (performance.now() - sent > FLUSH) flush();
  }

  // --- Start --------------------------------------------------------------------------------------------------------

  // Pyodide asks for its files by address; they are here already.
  async function readHere(address) {
    const name = String(address.url ?? address).split("/").pop();
    if (!files.has(name)) throw new TypeError(`${name} is not here, and a cell has no network`);
    const type = name.endsWith(".wasm") ? "application/wasm" : "application/octet-stream";
    return new Response(files.get(name), { headers: { "Content-Type": type } });
  }
  async function unpack(name) {
    const format = name.endsWith(".whl") ? "wheel" : "zip";
    const extractDir = python.runPython("import site; site.getsitepackages()[0]");
    python.unpackArchive(await files.get(name).arrayBuffer(), format, { extractDir });
    files.delete(name);
  }
  const archives = (names) => names.filter((name) => /\.whl$|^(?!python_stdlib).*\.zip$/.test(name));

  async function start({ files: given }) {
    for (const [name, blob] of Object.entries(given)) files.set(name, blob);
    self.fetch = readHere;
    const snapshot = files.get("snapshot.bin"); // of a Python that has started, where the book was built with one
    const options = snapshot ? { _loadSnapshot: new Uint8Array(await snapshot.arrayBuffer()) } : {};
    python = await self.loadPyodide({ indexURL: "https://minq.invalid/", stdin: () => null, ...options });
    for (const name of archives([...files.keys()])) await unpack(name);
    const live = python.pyimport("minqbook.live");
    live.begin(emit, "/data");
    run = live.run;
    python.unregisterJsModule("js");
    for (const name of NETWORK) {
      try { Object.defineProperty(self, name, { value: undefined, configurable: false }); } catch { delete self[name]; }
    }
    files.clear();
    say({ kind: "ready" });
  }

  // --- Messages: start, add (files), run ----------------------------------------------------------------------------

  const actions = {
    start,
    async add({ files: given }) {
      for (const [name, blob] of Object.entries(given)) files.set(name, blob);
      for (const name of archives(Object.keys(given))) await unpack(name);
      for (const name of Object.keys(given)) {
        if (!files.has(name)) continue; // a bare file: Python finds it in the folder of data
        python.FS.mkdirTree("/data");
        python.FS.writeFile(`/data/${name}`, new Uint8Array(await files.get(name).arrayBuffer()));
        files.delete(name);
      }
    },
    run({ id, source, space, name, fresh }) {
      const began = performance.now();
      current = id;
      const result = JSON.parse(run(source, space, name, fresh));
      flush();
      const memory = python._module.HEAPU8.byteLength;
      say({ kind: "done", id, result: { ...result, ms: performance.now() - began, memory } });
    },
  };
  self.onmessage = ({ data }) => {
    queue = queue.then(() => actions[data.kind](data)).catch((error) => {
      flush();
      say({ kind: "failed", id: data.id, text: String(error?.message ?? error) });
    });
  };
})();
