// One Python in a worker of its own: an endless loop cannot freeze the page, and Stop ends it.
//
// The script is joined behind pyodide.asm.js, pyodide.js and live-libraries.js. All it reads comes in messages: the
// frame that it lives in has no network (live.js), and after the start not even the functions that would ask for it.
(() => {
  "use strict";
  const NETWORK = [
    "fetch", "XMLHttpRequest", "WebSocket", "WebSocketStream", "WebTransport", "EventSource", "importScripts",
    "Worker", "SharedWorker", "BroadcastChannel", "RTCPeerConnection", "indexedDB", "caches",
  ];
  const FLUSH = 50; // ms between two messages of a loop that prints
  const say = self.postMessage.bind(self);
  let python, live, queue = Promise.resolve();

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

  // --- Files, each of them gzip, in the order in which they come ----------------------------------------------------

  const files = new Map(), takers = new Map(); // name -> a promise of its Blob, and what resolves it
  function coming(name) {
    if (!files.has(name)) files.set(name, new Promise((take) => takers.set(name, take)));
    return files.get(name);
  }
  async function unpacked(name) {
    const stream = (await coming(name)).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream, { headers: { "Content-Type": "application/wasm" } });
  }
  async function bytes(name) {
    const whole = await (await unpacked(name)).arrayBuffer();
    files.delete(name);
    return new Uint8Array(whole);
  }
  // An archive is a line of JSON, [[path, size], ...], then its files (_ext/live.py). Pieces of it, nothing copied.
  async function archive(name) {
    const whole = await bytes(name), end = whole.indexOf(10), found = new Map();
    let at = end + 1;
    for (const [path, size] of JSON.parse(new TextDecoder().decode(whole.subarray(0, end))))
      found.set(path, whole.subarray(at, at += size));
    return found;
  }
  const isArchive = (name) => name.endsWith(".files");
  function write(home, contents) {
    const made = new Set();
    for (const [path, content] of contents) {
      const place = `${home}/${path}`, folder = place.slice(0, place.lastIndexOf("/"));
      if (!made.has(folder)) python.FS.mkdirTree(folder);
      made.add(folder);
      python.FS.writeFile(place, content, { canOwn: true });
    }
  }

  // --- Start --------------------------------------------------------------------------------------------------------

  // All begins as soon as its file is here: WebAssembly is compiled while the memory is unpacked.
  async function start({ names }) {
    self.fetch = async (address) => { // Pyodide asks for its files by address
      const name = String(address.url ?? address).split("/").pop();
      if (!names.includes(name)) throw new TypeError(`${name} is not here, and a cell has no network`);
      return unpacked(name);
    };
    const code = unpacked("pyodide.asm.wasm").then(WebAssembly.compileStreaming);
    const archives = names.filter(isArchive).map(archive);
    const options = { indexURL: "https://minq.invalid/", stdin: () => null };
    let handles = {};
    if (names.includes("snapshot.bin")) { // of a Python that has started, where the book was built with one
      handles = JSON.parse(new TextDecoder().decode(await bytes("libraries.json")));
      options._loadSnapshot = bytes("snapshot.bin");
    }
    const find = async (path) => {
      for (const each of archives) if ((await each).has(path)) return (await each).get(path);
      throw new Error(`${path} is in no archive`);
    };
    const library = async (path) => WebAssembly.compile(await find(path));
    minqLibraries.before(Object.keys(handles).map((path) => [path, library(path)]), code);
    python = await self.loadPyodide(options);
    minqLibraries.open(python, handles);
    for (const each of archives) write(minqLibraries.site, await each);
    live = python.pyimport("minqbook.live");
    live.begin(emit, "/data");
    python.unregisterJsModule("js");
    for (const name of NETWORK) {
      try { Object.defineProperty(self, name, { value: undefined, configurable: false }); } catch { delete self[name]; }
    }
    files.clear();
    say({ kind: "ready" });
  }

  // --- Messages: file; start, add (files), run, one after another ---------------------------------------------------

  const actions = {
    start,
    async add({ names }) {
      for (const name of names) {
        if (isArchive(name)) write(minqLibraries.site, await archive(name));
        else write("/data", [[name, await bytes(name)]]); // a bare file: Python finds it in the folder of data
      }
      live.look_again();
    },
    run({ id, source, space, name, fresh }) {
      const began = performance.now();
      current = id;
      const result = JSON.parse(live.run(source, space, name, fresh));
      flush();
      const memory = python._module.HEAPU8.byteLength;
      say({ kind: "done", id, result: { ...result, ms: performance.now() - began, memory } });
    },
  };
  self.onmessage = ({ data }) => {
    if (data.kind === "file") {
      coming(data.name);
      takers.get(data.name)(data.file);
      return;
    }
    queue = queue.then(() => actions[data.kind](data)).catch((error) => {
      flush();
      say({ kind: "failed", id: data.id, text: String(error?.message ?? error) });
    });
  };
})();
