// The networks of a page, run by onnxruntime-web in a worker that all widgets of the page share. Its files are the
// page's (page-parts.js), in the built book alone.

const ENGINE = ["ort.wasm.min.js", "worker.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];
const fileOf = (network, form) => `${network}.${form}.onnx`;
const asBytes = base64 => Uint8Array.from(atob(base64), c => c.charCodeAt(0));
const load = async (name, onPiece) => (await window.minqParts.load(name, onPiece)).arrayBuffer();
const text = async (name, onPiece) => (await window.minqParts.load(name, onPiece)).text();

/** Whether this book was built with the engine. */
export const available = () => window.minqParts?.has(ENGINE) ?? false;

let engine = null; // promise of ask(task, given, transfer)
const opened = new Map(); // "network form" -> promise
const told = new Map(); // network -> promise of what there is to know of it

/** Bytes that must come before all forms of a network can run. */
export const weight = (network, forms) =>
  window.minqParts.toLoad([...ENGINE, `${network}.json`, ...forms.map(form => fileOf(network, form))]);

async function started(onPiece) {
  const [ort, own] = [await text(ENGINE[0], onPiece), await text(ENGINE[1], onPiece)];
  const glue = await text(ENGINE[2], onPiece), wasm = await load(ENGINE[3], onPiece);
  const source = [ort.replace(/\/\/# sourceMappingURL=\S+\s*$/, ""), "\n", own];
  const url = URL.createObjectURL(new Blob(source, { type: "text/javascript" }));
  const worker = new Worker(url), asked = new Map();
  let last = 0;
  worker.onmessage = ({ data: { id, result, error } }) => {
    const { done, failed } = asked.get(id);
    asked.delete(id);
    if (error === undefined) done(result); else failed(new Error(error));
  };
  worker.onerror = event => {
    event.preventDefault();
    for (const { failed } of asked.values()) failed(new Error(event.message || "the engine stopped"));
    asked.clear();
    engine = null;
    opened.clear();
    worker.terminate();
  };
  const ask = (task, given) => new Promise((done, failed) => {
    asked.set((last += 1), { done, failed });
    worker.postMessage({ id: last, task, ...given });
  });
  await ask("start", { glue, wasm });
  return ask;
}

/** Once, and again after a failure. */
function once(map, key, make) {
  if (!map.has(key)) {
    const coming = make();
    map.set(key, coming);
    coming.catch(() => map.delete(key));
  }
  return map.get(key);
}

function ready(onPiece) {
  if (!engine) {
    engine = started(onPiece);
    engine.catch(() => { engine = null; });
  }
  return engine;
}

/** What a page must know of a network: sites, classes, sizes of files. */
export const about = (network, onPiece) =>
  once(told, network, async () => JSON.parse(await text(`${network}.json`, onPiece)));

/** Load one form of a network and make it ready to run. */
export const open = (network, form, onPiece) =>
  once(opened, `${network} ${form}`, async () => {
    const ask = await ready(onPiece), known = await about(network, onPiece);
    const file = await load(fileOf(network, form), onPiece);
    try {
      await ask("open", { name: fileOf(network, form), file, look: asBytes(known.looks[form]) });
    } catch (error) {
      throw new Error(`the engine cannot run ${fileOf(network, form)}: ${error.message}`);
    }
  });

const dimsOf = ({ size }) => [1, 3, size, size];

/** The logits of one form for a prepared picture. */
export async function answer(network, form, x) {
  const ask = await ready();
  return ask("run", { name: fileOf(network, form), x, dims: dimsOf(await about(network)) });
}
/** Decibels of INT8 and INT4 against FP32 between the layers: {int8: [...], int4: [...]}. */
export async function compared(network, x) {
  const ask = await ready(), known = await about(network);
  const names = Object.fromEntries(["fp32", "int8", "int4"].map(form => [form, fileOf(network, form)]));
  return ask("compare", { names, forms: ["int8", "int4"], sites: known.sites, x, dims: dimsOf(known) });
}
/** Milliseconds for one picture, {fp32, int8, int4}: medians of calls in turn. */
export async function timed(network, forms, x, milliseconds) {
  const ask = await ready(), names = forms.map(form => fileOf(network, form));
  const found = await ask("race", { names, x, dims: dimsOf(await about(network)), milliseconds });
  return Object.fromEntries(forms.map((form, i) => [form, found[i]]));
}
/** A sample's pixels, three bytes each. */
export async function samplePixels(part, index, size, onPiece) {
  const each = 3 * size * size;
  return new Uint8Array(await load(part, onPiece), index * each, each);
}
