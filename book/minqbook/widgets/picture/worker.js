// Runs ONNX files beside the page, so that the page stays awake. A classic script, behind ort.wasm.min.js; it is not
// part of a widget's own script. Each message has an id and a task; the answer has the same id.
"use strict";

const networks = new Map(); // name -> {input, sessions: {plain, looking}}
const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };

const tasks = {
  /** The engine itself; one thread, since more need headers that a page on a disk has not. */
  start({ glue, wasm }) {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([glue], { type: "text/javascript" })) };
  },

  /** A file, and the same file that also gives the tensors between its layers. */
  async open({ name, file, look }) {
    const plain = new Uint8Array(file), looking = new Uint8Array(plain.length + look.length);
    looking.set(plain);
    looking.set(look, plain.length);
    networks.set(name, {
      plain: await ort.InferenceSession.create(plain, options),
      looking: await ort.InferenceSession.create(looking, options),
    });
  },

  /** The logits for one picture. */
  async run({ name, x, dims }) {
    const { plain } = networks.get(name);
    const y = await plain.run({ [plain.inputNames[0]]: new ort.Tensor("float32", x, dims) });
    return y[plain.outputNames[0]].data;
  },

  /** The median milliseconds of each of some networks, which take turns, once none of them gets faster any more: a
   *  browser translates a kernel well only after it ran for a while. */
  async race({ names, x, dims, milliseconds }) {
    const timed = async (name, times) => {
      const { plain } = networks.get(name), input = new ort.Tensor("float32", x, dims);
      const start = performance.now();
      for (let k = 0; k < times; k++) await plain.run({ [plain.inputNames[0]]: input });
      return (performance.now() - start) / times;
    };
    const pass = async before => {
      const times = before.map(ms => Math.max(1, Math.ceil(8 / ms))); // a clock may tick once a millisecond
      const rounds = names.map(() => []), end = performance.now() + milliseconds;
      while (rounds[0].length < 5 || (performance.now() < end && rounds[0].length < 51))
        for (const [i, name] of names.entries()) rounds[i].push(await timed(name, times[i]));
      return rounds.map(r => r.sort((a, b) => a - b)[r.length >> 1]);
    };
    let last = await pass(names.map(() => 8)); // it warms up, and does not count
    for (let k = 0; k < 6; k++) {
      const next = await pass(last), settled = next.every((ms, i) => ms > 0.85 * last[i]);
      last = next;
      if (settled) break;
    }
    return last;
  },

  /** Decibels between the tensors of the FP32 file and those of the others, site by site. */
  async compare({ names, forms, sites, x, dims }) {
    const look = async name => {
      const { looking } = networks.get(name);
      return looking.run({ [looking.inputNames[0]]: new ort.Tensor("float32", x, dims) });
    };
    const exact = await look(names.fp32), found = {};
    const floats = site => (site.fp32 === "x" ? x : exact[site.fp32].data);
    for (const form of forms) {
      const got = await look(names[form]);
      found[form] = sites.map(site => {
        const { value, scale, zero } = site[form];
        return decibels(floats(site), got[value].data, scale, zero);
      });
    }
    return found;
  },
};

function decibels(exact, integers, scale, zero) {
  let signal = 0, noise = 0;
  for (let i = 0; i < exact.length; i++) {
    signal += exact[i] ** 2;
    noise += (exact[i] - scale * (integers[i] - zero)) ** 2;
  }
  return noise ? 10 * Math.log10(signal / noise) : Infinity;
}

let line = Promise.resolve(); // one task after the other
onmessage = ({ data: { id, task, ...given } }) => {
  line = line.then(async () => {
    try {
      postMessage({ id, result: await tasks[task](given) });
    } catch (error) {
      postMessage({ id, error: String(error?.message ?? error) });
    }
  });
};
