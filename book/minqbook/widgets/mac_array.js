// The multiply-accumulate array at work. First its model, the twin of minq/mac.py and of requantize in
// minq/mac (tests/test_mac_array_widget.py compares them); then the picture.
import { extent, floats } from "./kit/data.js";
import { attr, h, svg, tsub } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent } from "./kit/format.js";
import { clamp, integerGrid, quantize, roundHalfEven, scaleZeroPoint } from "./quantize.js";

// --- The model ------------------------------------------------------------------------------------

/** `v` as an accumulator of `bits` bits keeps it; exact for |v| < 2^53 - 2^(bits - 1). */
export function keepBits(v, bits, overflow) {
  const half = 2 ** (bits - 1);
  if (overflow === "saturate") return clamp(v, -half, half - 1);
  return v - 2 * half * Math.floor((v + half) / (2 * half)); // v mod 2^bits
}

/** The smallest two's complement width that holds `low` and `high`. */
export const bitsFor = (low, high) =>
  1 + Math.max(...[low, high].map(v => (v >= 0 ? v : -v - 1)).map(v => (v ? v.toString(2).length : 0)));

/** All cycles of W x + b on an array { rows, columns, accumulatorBits, overflow, doubleBuffer }, as
 *  MacArray.trace in Python yields them; `real: true` computes in float32 instead (figure 1). */
export function trace(
  weight,
  x,
  bias,
  { rows: R, columns: C, accumulatorBits, overflow, doubleBuffer = false, real = false },
) {
  const exact = real ? Math.fround : v => v;
  const keep = real ? Math.fround : v => keepBits(v, accumulatorBits, overflow);
  const N = weight.length,
    M = weight[0].length,
    acc = x.map(() => bias.map(keep));
  const tiles = [];
  for (let n = 0; n < N; n += R)
    for (let m = 0; m < M; m += C)
      tiles.push([
        [n, Math.min(n + R, N)],
        [m, Math.min(m + C, M)],
      ]);
  const loads = tiles.map(([[start, stop], columns]) =>
    Array.from({ length: stop - start }, (_, r) => [start + r, ...columns]),
  );
  const works = tiles.map(tile => x.map((_, v) => [tile, v]));
  const phases = doubleBuffer
    ? [...loads, []].map((load, i) => [load, works[i - 1] ?? []]) // tile i + 1 is loaded while tile i computes
    : tiles.flatMap((_, i) => [
        [loads[i], []],
        [[], works[i]],
      ]);
  const cycles = [];
  for (const [load, work] of phases) {
    for (let i = 0; i < Math.max(load.length, work.length); i++) {
      const cycle = { index: cycles.length, loading: load[i] ?? null, vector: null };
      cycles.push(cycle);
      if (!work[i]) continue;
      const [[rows, columns], v] = work[i],
        slice = x[v].slice(...columns);
      const products = weight.slice(...rows).map(w => slice.map((xm, m) => exact(w[columns[0] + m] * xm) + 0)); // C_nm
      const before = acc[v].slice(...rows);
      // A_n + sum_m C_nm
      const total = before.map((a, r) => exact(a + products[r].reduce((sum, p) => exact(sum + p), 0)));
      const after = total.map(keep);
      after.forEach((a, r) => {
        acc[v][rows[0] + r] = a;
      });
      Object.assign(cycle, {
        vector: v,
        rows,
        columns,
        x: slice,
        products,
        before,
        total,
        after,
        overflow: after.map((a, r) => a !== total[r]),
      });
    }
  }
  return cycles;
}

/** ratio ~ multiplier 2^-shift with a multiplier in [2^30, 2^31): [multiplier, shift]. */
export function fixedPointMultiplier(ratio) {
  let fraction = ratio, exponent = 0; // halving and doubling are exact
  while (fraction >= 1) { fraction /= 2; exponent += 1; }
  while (fraction < 0.5) { fraction *= 2; exponent -= 1; }
  const multiplier = roundHalfEven(fraction * 2 ** 31), shift = 31 - exponent;
  return multiplier === 2 ** 31 ? [2 ** 30, shift - 1] : [multiplier, shift];
}

/** y = clamp(((acc multiplier + 2^(shift - 1)) >> shift) + zeroPoint; n, p), and what comes in between.
 *  The product needs up to 62 bits, so it is a BigInt. */
export function requantize(acc, [multiplier, shift], zeroPoint, [n, p]) {
  const product = BigInt(acc) * BigInt(multiplier), places = BigInt(shift);
  const rounded = Number((product + ((1n << places) >> 1n)) >> places);
  return { product, rounded, y: clamp(rounded + zeroPoint, n, p) };
}

/** The layer as integers, or as it came: { W, X, b } and the grids of its parts, eq. (3) and (13). */
export function integerLayer(weight, x, bias, { weightBits, activationBits, quantized }) {
  let layer = { W: weight, X: x, b: bias, step: 1 };
  if (!quantized) {
    const [sw] = scaleZeroPoint(...extent(weight.flat()), weightBits, { signed: true, symmetric: true });
    const [sx, zx] = scaleZeroPoint(...extent(x.flat()), activationBits);
    const W = weight.map(row => row.map(v => quantize(v, sw, 0, weightBits, { signed: true })));
    const X = x.map(row => row.map(v => quantize(v, sx, zx, activationBits)));
    const b = bias.map(
      (v, n) => clamp(roundHalfEven(v / (sw * sx)), -(2 ** 31), 2 ** 31 - 1) - zx * W[n].reduce((s, q) => s + q, 0),
    );
    layer = { W, X, b, step: sw * sx };
  }
  const sums = layer.X.map(row => layer.W.map((w, n) => w.reduce((s, q, m) => s + q * row[m], layer.b[n]))); // exact
  const [low, high] = extent(sums.flat());
  const [scale, zeroPoint] = scaleZeroPoint(layer.step * low, layer.step * high, activationBits);
  const ratio = layer.step / scale; // s_w s_x / s_y
  return {
    ...layer,
    scale,
    zeroPoint,
    ratio,
    multiplier: fixedPointMultiplier(ratio),
    grid: integerGrid(activationBits),
  };
}

/** What has happened after 0, 1, ..., K cycles: accumulators, held weights, words moved. */
export function history(cycles, weight, x, bias, { rows: R, accumulatorBits, overflow, doubleBuffer, real }) {
  const M = weight[0].length;
  let state = {
    acc: x.map(() => bias.map(b => (real ? Math.fround(b) : keepBits(b, accumulatorBits, overflow)))),
    exact: x.map(() => [...bias]), seen: x.map(() => bias.map(() => 0)),
    held: Array(R).fill(null), next: Array(R).fill(null), computed: null, finished: null,
    macs: 0, words: { weights: 0, bias: 0, inputs: 0, partial_sums: 0, outputs: 0 },
  };
  const worst = [Infinity, -Infinity];
  const measured = s => {
    const [low, high] = extent(s.exact.flat());
    [worst[0], worst[1]] = [Math.min(worst[0], low), Math.max(worst[1], high)];
    // Wrapping once or often is the same, so only sums as they stand need to fit; clamping forgets.
    s.bits = real ? 32 : overflow === "wrap" ? bitsFor(low, high) : bitsFor(...worst);
    return s;
  };
  const states = [measured(state)];
  for (const c of cycles) {
    const s = { ...state, cycle: c, words: { ...state.words } };
    if (c.vector === 0 && doubleBuffer) [s.held, s.next] = [state.next, Array(R).fill(null)];
    if (c.loading) {
      const [n, start, stop] = c.loading, into = doubleBuffer ? "next" : "held";
      s[into] = s[into].map((row, r) =>
        r === n % R ? { n, start, stop } : row && n % R === 0 ? { ...row, old: true } : row,
      );
      s.words.weights += stop - start;
      if (start === 0) s.words.bias += 1;
    }
    if (c.vector !== null) {
      const v = c.vector, [n0, n1] = c.rows, [m0, m1] = c.columns, last = m1 === M;
      const change = (table, f) =>
        table.map((row, b) => (b === v ? row.map((a, n) => (n >= n0 && n < n1 ? f(a, n - n0) : a)) : row));
      s.acc = change(s.acc, (_, r) => c.after[r]);
      s.exact = change(s.exact, (a, r) => a + c.products[r].reduce((sum, p) => sum + p, 0));
      s.seen = change(s.seen, () => m1);
      s.computed = c;
      if (last) s.finished = c;
      s.macs += (n1 - n0) * (m1 - m0);
      s.words.inputs += m1 - m0;
      s.words.partial_sums += (n1 - n0) * ((m0 > 0) + !last);
      if (last) s.words.outputs += n1 - n0;
    }
    states.push(measured((state = s)));
  }
  return states;
}

// --- The picture ----------------------------------------------------------------------------------

const PE = 46, SLOT = 22, TOP = 44, OUT = 22; // px: heights of an element, a queued vector, the head, an output
const SPEEDS = [[0.5, "slow"], [1.2, "normal"], [4, "fast"]]; // cycles a second

const whole = v => String(v).replace("-", "−").replace(/\B(?=(\d{3})+$)/g, ",");
/** "input 3", "inputs 3 and 4", "inputs 3 to 5", from a start that counts from 0 and a stop. */
const spread = (noun, [a, b]) =>
  b - a === 1 ? `${noun} ${b}` : `${noun}s ${a + 1} ${b - a === 2 ? "and" : "to"} ${b}`;
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const power = e => `2${[...String(e)].map(d => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]).join("")}`;
const ramp = (u, a, b) => { const t = clamp((u - a) / (b - a), 0, 1); return t * t * (3 - 2 * t); };
const between = (a, b, t) => a + (b - a) * t;
const inBytes = bits => `${whole(Math.ceil(bits / 8))} B`;
const line = (x1, y1, x2, y2, kind) => svg("line", { class: kind, x1, y1, x2, y2 });
const box = (x, y, width, height, kind, extra) =>
  svg("rect", { class: kind, x, y, width: Math.max(0, width), height, rx: 3, ...extra });
const put = (x, y, text, kind = "", anchor = "middle", size = null) =>
  svg("text", { class: kind, x, y, "text-anchor": anchor, style: size && `font-size:${size}px` }, text);
/** The largest type, up to `most`, in which a text fits a width. */
const sized = (text, width, most) => Math.min(most, Math.floor(10 * width / (0.66 * text.length)) / 10);

/** What a part is, and what is stored in it: on one line, or the second within a width. */
const title = (x, y, name, detail, width = 0) =>
  svg(
    "text",
    { x, y, style: width && `font-size:${sized(name, width, 12)}px` },
    svg("tspan", { class: "mq-strong" }, name),
    svg(
      "tspan",
      { class: "mac-detail", ...(width ? { x, dy: 14, style: `font-size:${sized(detail, width, 11)}px` } : { dx: 6 }) },
      detail,
    ),
  );

/** Where everything stands at this width: beside the array if there is room, else below it. */
function place(width, { R, C, N, M, B, array }) {
  const pe = PE + (array.doubleBuffer ? 9 : 0), pitch = pe + 12;
  const map = clamp(84 / M, 8, 14),
    out = clamp(96 / B, 26, 38),
    left = Math.max(M * map, 88) + 38,
    right = 42 + B * out;
  const room = width - left - 58 - 150 - right;
  const wide = room / C >= 43, top = TOP + B * SLOT + 8, bottom = top + R * pitch;
  const cell = wide ? Math.min(room / C, 72) : clamp((width - (C > 4 ? 110 : 132)) / C, 34, 72);
  const spare = wide ? room - C * cell : 0,
    bar = wide ? 150 + Math.min(spare, 70) : Math.min(260, width - C * cell - 14);
  const x0 = wide ? Math.max(0, spare - 70) / 2 : 0;
  const grid = x0 + (wide ? left : 0), acc = grid + C * cell + (wide ? 58 : 14);
  const small = wide ? map : Math.min(16, 150 / M), below = bottom + 74;
  return {
    wide,
    cell,
    pe,
    pitch,
    top,
    bottom,
    grid,
    acc,
    bar,
    out: wide ? out : Math.min(40, (width - M * small - 60) / B),
    map: small,
    mapX: x0,
    mapY: wide ? top + 6 : below,
    outX: wide ? acc + bar + 42 : M * small + 60,
    outY: wide ? top + 6 : below,
    height: Math.max(bottom + 26, (wide ? top : below) + 12 + N * Math.max(small, OUT)),
  };
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const [N, M, B] = model.get("sizes"),
      data = Array.from(floats(model.get("data"))),
      quantized = model.get("quantized");
    const cut = (rows, columns, from) =>
      Array.from({ length: rows }, (_, i) => data.slice(from + i * columns, from + (i + 1) * columns));
    const given = { weight: cut(N, M, 0), x: cut(B, M, N * M), bias: data.slice(N * M + B * M) };

    // All cycles are computed when a setting changes; a frame only looks them up.
    let key = "", S = null;
    const scene = () => {
      const traits = [
        "rows",
        "columns",
        "accumulator_bits",
        "overflow",
        "double_buffer",
        "weight_bits",
        "activation_bits",
        "numbers",
      ];
      const values = traits.map(w.get);
      if (key === (key = values.join())) return S;
      const [R, C, accumulatorBits, overflow, doubleBuffer, weightBits, activationBits, numbers] = values;
      const real = numbers === "float32",
        layer = integerLayer(given.weight, given.x, given.bias, { weightBits, activationBits, quantized });
      const { W, X, b } = real ? { W: given.weight, X: given.x, b: given.bias } : layer;
      const array = { rows: R, columns: C, accumulatorBits, overflow, doubleBuffer, real };
      const cycles = trace(W, X, b, array), states = history(cycles, W, X, b, array);
      const ideal = given.x.map(row =>
        given.weight.map((weights, n) => weights.reduce((s, v, m) => s + v * row[m], given.bias[n])),
      );
      const half = real
        ? Math.max(...states.flatMap(s => s.acc.flat().map(Math.abs))) || 1
        : 2 ** (accumulatorBits - 1);
      const bits = real
        ? { weights: 32, bias: 32, inputs: 32, partial_sums: 32, outputs: 32 }
        : {
            weights: weightBits,
            bias: accumulatorBits,
            inputs: activationBits,
            partial_sums: accumulatorBits,
            outputs: activationBits,
          };
      S = { R, C, N, M, B, W, X, b, layer, array, real, cycles, states, K: cycles.length, ideal, half, bits,
        big: Math.max(...W.flat().map(Math.abs)) || 1, show: real ? v => fmt(v, 3) : whole,
        stored: b => (real ? "float32" : `${b} bit`), tone: real ? "" : "mq-blue" };
      return S;
    };
    scene();

    // --- Controls ---
    const off = () => [bits, overflow].forEach(c => c.limit({ disabled: scene().real })); // floats do not wrap
    const numbers = quantized
      ? null
      : w.segmented({
          trait: "numbers",
          label: "Numbers",
          options: [
            ["float32", "float32 (figure 1)"],
            ["integers", "integers (figure 2)"],
          ],
        });
    const bits = w.slider({
      trait: "accumulator_bits",
      label: "Accumulator",
      min: 8,
      max: 32,
      format: v => `${v} bits`,
    });
    const overflow = w.segmented({
      trait: "overflow",
      label: "On overflow",
      options: [
        ["wrap", "wrap"],
        ["saturate", "saturate"],
      ],
    });
    w.controls(...[numbers, overflow, bits].filter(Boolean));

    const p = w.plot({ height: 320, label: model.get("alt") });
    w.add(p);
    w.legend([
      ["box blue", "size of a weight, − if below zero"],
      ["box fill", "partial sum that waits"],
      ["hatch", "wrong sum"],
    ]);

    let u = 1, playing = false, speed = SPEEDS[1][0]; // u: how far the present cycle has come, 0 to 1
    const at = () => clamp(w.get("cycle"), 0, scene().K);
    const go = (cycle, from = 1) => { u = w.still() ? 1 : from; w.set("cycle", clamp(cycle, 0, S.K)); w.redraw(); };
    const halt = () => { playing = false; clock = 0; timer.pause(); buttons(); };
    let clock = 0; // share of a cycle that has passed since its start
    const timer = w.loop(dt => {
      clock += dt * speed;
      if (clock < 1) {
        if (!w.still()) { u = clock; w.redraw(); }
      } else if (playing && at() < S.K) {
        clock = 0;
        go(at() + 1, 0);
      } else { u = 1; halt(); w.redraw(); }
    });
    const glide = cycle => { clock = 0; go(cycle, 0); if (playing || !w.still()) timer.play(); };
    const play = w.button({ label: "Play", onClick: () => {
      if (playing) { u = 1; halt(); w.redraw(); return; }
      playing = true;
      glide(at() === S.K ? 1 : at() + 1);
      buttons();
    } });
    const step = w.button({
      label: "Step",
      title: "One cycle on",
      onClick: () => {
        halt();
        if (at() < S.K) glide(at() + 1);
      },
    });
    const back = w.button({ label: "Back", title: "One cycle back", onClick: () => { halt(); go(at() - 1); } });
    const reset = w.button({ label: "Reset", title: "Before the first cycle", onClick: () => { halt(); go(0); } });
    const buttons = () => play.label(playing ? "Pause" : "Play");
    const scrub = w.slider({
      trait: "cycle",
      label: "Cycle",
      min: 0,
      max: S.K,
      format: v => `${Math.min(v, scene().K)} of ${scene().K}`,
      onInput: () => {
        halt();
        u = 1;
      },
    });
    const pace = w.segmented({ label: "Speed", value: speed, options: SPEEDS, onInput: v => { speed = v; } });
    w.controls(h("div", { class: "mac-transport" }, play.el, step.el, back.el, reset.el), scrub, pace);

    const words = h("p", { class: "mq-caption mac-sentence" }), table = h("table", { class: "mac-steps" });
    w.add(words);
    w.add(h("div", { class: "mac-scroll" }, table));
    const out = w.readouts([
      ["macs", "Multiplications"],
      ["use", "Utilisation so far", "Multiplications done, of those that all elements could have done"],
      ["need", "Bits needed", "Width that would hold every sum exactly, if the run ended now"],
      ["weights", "Weights read"],
      ["inputs", "Inputs read"],
      ["outputs", "Outputs written"],
    ]);
    const more = w.readouts([
      ["bias", "Biases read"],
      ["partial_sums", "Partial sums moved", "Written after a tile and read back before the next one"],
    ]);
    const slider = (trait, label, min, max) => w.slider({ trait, label, min, max });
    const fields = [
      slider("rows", "Array rows", 2, 6),
      slider("columns", "Array columns", 2, 6),
      ...(quantized
        ? []
        : [slider("weight_bits", "Weight bits", 2, 8), slider("activation_bits", "Activation bits", 2, 8)]),
      w.checkbox({ trait: "double_buffer", label: "Double buffer: load the next tile while one computes" }),
    ];
    w.add(h("details", { class: "mac-more" }, h("summary", {}, "More settings"), w.controls(...fields), more.el));
    if (numbers) w.on("numbers", off);
    off();

    // --- The sentence that says what happens ---
    const low = n => [...String(n + 1)].map(d => "₀₁₂₃₄₅₆₇₈₉"[d]).join("");
    const term = (a, b, first) =>
      `${a < 0 ? (first ? "−" : " − ") : first ? "" : " + "}${S.show(Math.abs(a))}·` +
      `${b < 0 ? `(${S.show(b)})` : S.show(b)}`;
    const listed = values => values.map(S.show).join(", ");
    function sentence(k) {
      const { real, K, array } = S, c = S.cycles[k - 1];
      if (!c)
        return `Before the first cycle: ${plural(N * M, "weight")} and ${plural(B, "input vector")} wait in memory. ` +
          `Every accumulator will start at its bias.`;
      const parts = [];
      if (c.vector !== null) {
        parts.push(
          `input vector ${c.vector + 1} meets the weights of ${spread("output", c.rows)}, ` +
          `${spread("input", c.columns)}`,
        );
      }
      if (c.loading) {
        const [n, start, stop] = c.loading;
        parts.push(
          `${c.vector === null ? "" : "meanwhile "}the weights of output ${n + 1} for ` +
          `${spread("input", [start, stop])} (${listed(S.W[n].slice(start, stop))}) enter row ${(n % S.R) + 1} and ` +
          `stay there`,
        );
      }
      let text = `Cycle ${k} of ${K}: ${parts.join("; ")}.`;
      if (c.vector !== null) {
        const bad = c.overflow.indexOf(true),
          r = Math.max(0, bad),
          n = c.rows[0] + r,
          weights = S.W[n].slice(...c.columns);
        const sum = c.products[r].reduce((s, q) => s + q, 0);
        text += ` Row ${r + 1} adds ${weights.map((v, m) => term(v, c.x[m], !m)).join("")} = ${S.show(sum)} to ` +
          `A${low(n)} = ${S.show(c.before[r])}`;
        text +=
          bad < 0
            ? `, which becomes ${S.show(c.after[r])}.`
            : `: ${S.show(c.total[r])} does not fit into ${array.accumulatorBits} bits and ` +
              `${array.overflow === "wrap" ? "wraps" : "saturates"} to ${S.show(c.after[r])}.`;
        if (c.columns[1] === M) {
          text += real
            ? " These sums are complete."
            : ` These sums are complete and leave as integers of ${plural(S.bits.outputs, "bit")}: ` +
              `${listed(c.after.map(a => requantize(a, S.layer.multiplier, S.layer.zeroPoint, S.layer.grid).y))}.`;
        }
      }
      if (k === K && !real) {
        const wrong = S.states[K].acc.flat().filter((a, i) => a !== S.states[K].exact.flat()[i]).length;
        text += wrong
          ? ` Done; ${wrong} of ${N * B} accumulators hold a wrong sum.`
          : ` Done; all ${N * B} sums are exact.`;
      } else if (k === K) text += " Done.";
      return text;
    }

    // --- Parts of the picture; each returns nodes ---
    function memory(g, s, c) {
      const nodes = [title(g.mapX, g.mapY - 22, "Weights", S.stored(S.bits.weights), 80)];
      const size = g.map;
      S.W.forEach((row, n) => row.forEach((v, m) => {
        const x = g.mapX + m * size, y = g.mapY + n * size;
        nodes.push(
          box(x + 0.5, y + 0.5, size - 1, size - 1, "mac-weight", {
            "fill-opacity": Math.round(100 * (0.1 + (0.9 * Math.abs(v)) / S.big)) / 100,
            rx: 1,
          }),
        );
        if (v < 0) nodes.push(line(x + size * 0.3, y + size / 2, x + size * 0.7, y + size / 2, "mac-minus"));
      }));
      const frame = (row, kind) =>
        nodes.push(
          box(
            g.mapX + row.start * size - 0.5,
            g.mapY + row.n * size - 0.5,
            (row.stop - row.start) * size + 1,
            size + 1,
            kind,
            { rx: 2 },
          ),
        );
      s.held.filter(row => row && !row.old).forEach(row => frame(row, "mac-frame"));
      if (c?.loading) frame({ n: c.loading[0], start: c.loading[1], stop: c.loading[2] }, "mac-frame mac-on");
      return nodes;
    }

    function queue(g, c, u) {
      const nodes = [title(g.grid + 3, 13, "Inputs", S.stored(S.bits.inputs))];
      const columns = c?.columns ?? span(c), from = c?.vector ?? 0, drop = c?.vector > 0 ? 1 - ramp(u, 0, 0.3) : 0;
      if (!columns) return nodes;
      for (let m = columns[0]; m < columns[1]; m++) {
        nodes.push(
          svg(
            "text",
            { class: "mq-tick", x: g.grid + (m - columns[0] + 0.5) * g.cell, y: TOP - 10, "text-anchor": "middle" },
            tsub("x", m + 1),
          ),
        );
      }
      for (let v = from; v < B; v++) {
        const y = g.top - 8 - (v - from + 1 + drop) * SLOT, now = c?.vector === v;
        if (y < TOP - SLOT + 2) continue;
        S.X[v].slice(...columns).forEach((value, i) => {
          const x = g.grid + i * g.cell, text = S.show(value);
          nodes.push(box(x + 3, y + 1, g.cell - 6, SLOT - 3, now ? "mac-chip mac-on" : "mac-chip"));
          nodes.push(
            put(
              x + g.cell / 2,
              y + 15,
              text,
              `${S.tone}${now ? " mq-strong" : ""}`,
              "middle",
              sized(text, g.cell - 8, 12),
            ),
          );
        });
        const label = `vector ${v + 1}`, kind = now ? "mq-tick mq-ink mq-strong" : "mq-tick";
        nodes.push(
          g.wide
            ? put(g.grid - 8, y + 15, label, kind, "end")
            : put(g.grid + (columns[1] - columns[0]) * g.cell + 6, y + 15, label, kind, "start"),
        );
      }
      return nodes;
    }
    /** The columns whose inputs wait while nothing computes: those of the tile being loaded. */
    const span = c => (c?.loading ? c.loading.slice(1) : c ? null : [0, Math.min(S.C, M)]);

    function elements(g, s, c, u) {
      const wires = [], cells = [], texts = [], lit = ramp(u, 0.25, 0.45), summed = ramp(u, 0.45, 0.62);
      const rows = c?.rows ? c.rows[1] - c.rows[0] : 0, width = c?.columns ? c.columns[1] - c.columns[0] : 0;
      for (let m = 0; m < S.C; m++) {
        const x = g.grid + (m + 0.5) * g.cell;
        wires.push(line(x, g.top - 6, x, g.bottom - 8, "mac-wire"));
        if (m < width)
          wires.push(line(x, g.top - 8, x, between(g.top - 8, g.top + rows * g.pitch - 12, lit), "mac-wire mac-on"));
      }
      for (let r = 0; r < S.R; r++) {
        const y = g.top + r * g.pitch + 4, mid = y + g.pe / 2, on = r < rows && u > 0;
        wires.push(line(g.grid, mid, g.acc - 6, mid, "mac-wire"));
        if (on)
          wires.push(
            line(g.grid + g.cell / 2, mid, between(g.grid + g.cell / 2, g.acc - 6, summed), mid, "mac-wire mac-sum"),
          );
        wires.push(
          svg("path", {
            class: on && summed > 0.95 ? "mac-tip mac-on" : "mac-tip",
            d: `M${g.acc - 8} ${mid - 4}l6 4l-6 4z`,
          }),
        );
        if (on && g.wide && summed > 0.3) {
          const sum = S.show(c.products[r].reduce((a, b) => a + b, 0)), text = sum.startsWith("−") ? sum : `+${sum}`;
          texts.push(
            put((g.grid + S.C * g.cell + g.acc) / 2 - 3, mid - 7, text, "mq-halo", "middle", sized(text, 56, 12)),
          );
        }
        const row = s.held[r], coming = s.next[r];
        const idle = !row || (c?.rows && r >= rows);
        for (let m = 0; m < S.C; m++) {
          const x = g.grid + m * g.cell, n = row?.n, index = row ? row.start + m : 0, empty = idle || index >= row.stop;
          const loading = c?.loading && c.loading[0] % S.R === r && !S.array.doubleBuffer;
          const working = on && m < width && lit > 0.9;
          cells.push(box(x + 3, y, g.cell - 6, g.pe, empty ? "mac-pe mac-idle" : working ? "mac-pe mac-on" : "mac-pe"));
          if (coming && coming.start + m < coming.stop && !(c?.loading?.[0] === coming.n && u < 0.9)) {
            const text = S.show(S.W[coming.n][coming.start + m]);
            texts.push(
              put(
                x + g.cell - 8,
                y + g.pe - 5,
                `next ${text}`,
                "mq-tick mac-next",
                "end",
                sized(`next ${text}`, g.cell - 12, 10),
              ),
            );
          }
          if (empty) continue;
          const weight = S.show(S.W[n][index]), arrive = loading ? ramp(u, 0, 0.8) : 1;
          const both = `${weight}·${working && S.show(c.x[m])}`,
            top = working && sized(both, g.cell - 10, 12) >= 8.5 ? both : weight;
          const tx = between(g.mapX + (index + 0.5) * g.map, x + g.cell / 2, arrive),
            ty = between(g.mapY + n * g.map + 8, y + 15, arrive);
          texts.push(
            put(
              tx,
              ty,
              top,
              `mac-held ${row.old ? "mq-tick mac-old" : S.tone} ${loading ? "mq-strong mq-halo" : ""}`,
              "middle",
              sized(top, g.cell - 10, 12),
            ),
          );
          if (working) {
            const text = g.cell < 48 ? S.show(c.products[r][m]).replace(",", "") : S.show(c.products[r][m]);
            texts.push(
              put(x + g.cell / 2, y + 36, text, "mq-strong mac-product", "middle", sized(text, g.cell - 9, 14)),
            );
          }
        }
      }
      return [...wires, ...cells, ...texts];
    }

    function accumulators(g, c, u, k) {
      const shown = c?.vector !== null && c ? c : S.states[k].computed; // what the registers held last
      const now = shown === c && c, vector = shown?.vector ?? 0, rows = shown?.rows ?? [0, Math.min(S.R, N)];
      const { half, real, array } = S,
        grow = now ? ramp(u, 0.55, 0.95) : 1,
        x = v => g.acc + (g.bar * (v + half)) / (2 * half),
        nodes = [];
      const y0 = g.wide ? g.top - 20 : 13;
      nodes.push(
        title(g.acc, y0, "Accumulators", `${S.stored(array.accumulatorBits)}, vector ${vector + 1}`, g.bar - 4),
      );
      for (let r = 0; r < rows[1] - rows[0]; r++) {
        const n = rows[0] + r, y = g.top + r * g.pitch, before = shown ? shown.before[r] : S.states[0].acc[0][n];
        const total = shown ? shown.total[r] : before, raw = between(before, total, grow), done = grow > 0.97;
        const held = !shown
          ? before
          : done
            ? shown.after[r]
            : real
              ? raw
              : keepBits(Math.round(raw), array.accumulatorBits, array.overflow);
        const exact = !now || done ? S.states[k].exact[vector][n] : S.states[k - 1].exact[vector][n];
        const flows = !real && shown?.overflow[r] && done, wrong = !real && held !== exact && (done || !now);
        const value = svg(
          "text",
          {
            class: `mac-value ${now ? "mq-strong" : "mq-soft"}`,
            x: g.acc,
            y: y + 15,
            style: `font-size:${sized(`A = ${S.show(held)}`, g.bar - (g.bar < 150 ? 6 : 60), 12)}px`,
          },
          tsub("A", n + 1),
          svg("tspan", { dy: -3 }, ` = ${S.show(held)}`),
        );
        nodes.push(value, box(g.acc, y + 22, g.bar, 9, "mac-track"));
        const [a, b] = [x(0), clamp(x(held), g.acc, g.acc + g.bar)],
          left = Math.min(a, b),
          size = Math.max(1.5, Math.abs(a - b));
        nodes.push(
          box(left, y + 22, size, 9, wrong || flows ? "mac-level mac-bad" : now ? "mac-level mac-on" : "mac-level", {
            rx: 1,
          }),
        );
        if (wrong || flows) nodes.push(svg("rect", { x: g.acc, y: y + 22, width: g.bar, height: 9, fill: p.hatch }));
        nodes.push(line(a, y + 20, a, y + 33, "mac-zero"));
        const need = real || g.bar < 150 ? "" : `${bitsFor(exact, exact)} bits`;
        nodes.push(put(g.acc + g.bar, y + 15, need, wrong ? "mq-red mq-strong" : "mq-tick", "end", 11));
        const did = array.overflow === "wrap" ? "wraps" : "saturates";
        const note = flows ? `${S.show(total)} ${did}`
          : wrong ? `${g.wide ? "wrong: " : ""}should be ${S.show(exact)}`
            : !shown ? "starts at the bias"
              : `${S.show(shown.before[r])} ${total < before ? "−" : "+"} ${S.show(Math.abs(total - before))}`;
        nodes.push(
          put(
            g.acc,
            y + 45,
            note,
            flows || wrong ? "mq-red mq-strong" : "mq-tick",
            "start",
            sized(note, g.bar + 4, 11),
          ),
        );
      }
      const ends = real
        ? [fmt(-half, 2), fmt(half, 2)]
        : half <= 2 ** 19 && g.bar > 115
          ? [whole(-half), whole(half - 1)]
          : [`−${power(array.accumulatorBits - 1)}`, `${power(array.accumulatorBits - 1)} − 1`];
      nodes.push(
        put(g.acc, g.bottom + 8, ends[0], "mq-tick", "start"),
        put(x(0), g.bottom + 8, "0", "mq-tick"),
        put(g.acc + g.bar, g.bottom + 8, ends[1], "mq-tick", "end"),
      );
      return nodes;
    }

    function outputs(g, k, c, u) {
      const s = S.states[u > 0.9 ? k : Math.max(0, k - 1)], nodes = [];
      nodes.push(title(g.outX, g.outY - 22, "Outputs", S.stored(S.bits.outputs), 80));
      for (let n = 0; n < N; n++) {
        const y = g.outY + n * OUT;
        nodes.push(svg("text", { class: "mq-tick", x: g.outX - 5, y: y + 15, "text-anchor": "end" }, tsub("y", n + 1)));
        for (let v = 0; v < B; v++) {
          const x = g.outX + v * g.out,
            part = s.seen[v][n] / M,
            full = part === 1,
            bad = !S.real && s.acc[v][n] !== s.exact[v][n];
          nodes.push(box(x + 1, y + 1, g.out - 2, OUT - 2, full ? "mac-cell mac-full" : "mac-cell"));
          if (!full && part)
            nodes.push(box(x + 1, y + 1 + (1 - part) * (OUT - 2), g.out - 2, part * (OUT - 2), "mac-part"));
          if (bad) nodes.push(svg("rect", { x: x + 1, y: y + 1, width: g.out - 2, height: OUT - 2, fill: p.hatch }));
          if (full) {
            const text = S.real
              ? fmt(s.acc[v][n], 3)
              : whole(requantize(s.acc[v][n], S.layer.multiplier, S.layer.zeroPoint, S.layer.grid).y);
            nodes.push(
              put(
                x + g.out / 2,
                y + 15,
                text,
                `mac-output ${bad ? "mq-red mq-strong mq-halo" : S.tone}`,
                "middle",
                sized(text, g.out - 5, 12),
              ),
            );
          }
        }
      }
      if (c?.vector != null) {
        const [n0, n1] = c.rows;
        nodes.push(box(g.outX + c.vector * g.out, g.outY + n0 * OUT, g.out, (n1 - n0) * OUT, "mac-frame mac-on"));
        if (g.wide) for (let r = 0; r < n1 - n0; r++) {
          const y = g.top + r * g.pitch + 26.5,
            to = g.outY + (n0 + r + 0.5) * OUT,
            a = g.acc + g.bar + 4,
            b = g.outX - 20;
          nodes.unshift(
            svg("path", {
              class: c.columns[1] === M && u > 0.9 ? "mac-wire mac-on" : "mac-wire",
              fill: "none",
              d: `M${a} ${y}C${between(a, b, 0.6)} ${y} ${between(a, b, 0.4)} ${to} ${b} ${to}`,
            }),
          );
        }
      }
      return nodes;
    }

    // --- From accumulator to output, number by number ---
    let tabled = "";
    function steps(k) {
      const c = S.states[k].finished, stamp = `${key}/${c?.index}/${c?.index === k - 1}/${p.width < 560}`;
      if (tabled === (tabled = stamp)) return;
      table.hidden = S.real;
      if (S.real) return;
      const { layer } = S, [mult, shift] = layer.multiplier, narrow = p.width < 560;
      const heads = [
        "",
        "A",
        "A · M",
        `≫ ${shift}`,
        `${layer.zeroPoint < 0 ? "−" : "+"} ${Math.abs(layer.zeroPoint)}`,
        narrow ? "clamp" : "clamp = y",
        ...(quantized || narrow ? [] : ["stands for", "float32"]),
      ];
      const rows = Array.from({ length: Math.min(S.R, N) }, (_, r) => {
        if (!c)
          return h(
            "tr",
            {},
            h("th", { scope: "row" }, `y${low(r)}`),
            h("td", { colspan: heads.length - 1 }, "waits for its sum"),
          );
        if (r >= c.rows[1] - c.rows[0]) return h("tr", {}, h("td", { colspan: heads.length }, "\u00a0"));
        const n = c.rows[0] + r, a = c.after[r], q = requantize(a, layer.multiplier, layer.zeroPoint, layer.grid);
        const wrong = a !== S.states[c.index + 1].exact[c.vector][n],
          product = narrow ? fmt(Number(q.product)) : whole(q.product);
        const cells = [whole(a), product, whole(q.rounded), whole(q.rounded + layer.zeroPoint), h("b", {}, whole(q.y))];
        if (!quantized && !narrow) cells.push(fmt(layer.scale * (q.y - layer.zeroPoint)), fmt(S.ideal[c.vector][n]));
        return h(
          "tr",
          { class: wrong && "mac-wrong" },
          h("th", { scope: "row" }, `y${low(n)}`, wrong ? (narrow ? " wrong" : " (wrong sum)") : ""),
          cells.map(t => h("td", {}, t)),
        );
      });
      table.replaceChildren(
        h(
          "caption",
          {},
          h("b", {}, "Requantization"),
          " y = clamp((A · M + 2",
          h("sup", {}, "s − 1"),
          `) ≫ s + z; ${layer.grid.join(", ")})`,
          h("br"),
          `M = ${whole(mult)}, s = ${shift}, z = ${layer.zeroPoint}. `,
          c
            ? `${c.index === k - 1 ? "Now" : `Last in cycle ${c.index + 1}`}: vector ${c.vector + 1}, ` +
              `${spread("output", c.rows)}.`
            : "It follows when a sum is complete.",
        ),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            heads.map(t => h("th", { scope: "col" }, t)),
          ),
        ),
        h("tbody", {}, rows),
      );
    }

    return w.start(() => {
      scene();
      if (w.get("cycle") > S.K) w.set("cycle", S.K);
      const k = at(), c = S.cycles[k - 1] ?? null, s = S.states[k], t = k ? u : 1, g = place(p.width, S);
      if (p.height !== g.height) attr(p.svg, { viewBox: `0 0 ${p.width} ${g.height}`, height: (p.height = g.height) });
      if (scrub.node.max !== String(S.K)) scrub.limit({ max: S.K });
      p.layer("scene").replaceChildren(
        ...memory(g, s, c),
        ...outputs(g, k, c, t),
        ...accumulators(g, c, t, k),
        ...queue(g, c, t),
        ...elements(g, s, c, t),
      );
      steps(t > 0.9 || !k ? k : k - 1);
      const text = sentence(k);
      if (words.textContent !== text) {
        words.textContent = text;
        p.describe(`An array of ${S.R} by ${S.C} processing elements. ${text}`);
        if (!playing || k === S.K) w.say(text);
      }
      const size = (name, words = s.words[name]) => inBytes(words * S.bits[name]);
      out.set({
        macs: `${s.macs} of ${N * M * B}`, use: percent(k ? s.macs / (S.R * S.C * k) : 0),
        need: S.real ? "32 (float)" : `${s.bits} of ${S.array.accumulatorBits}`,
        weights: size("weights"), inputs: size("inputs"), outputs: size("outputs"),
      });
      more.set({ bias: size("bias"), partial_sums: size("partial_sums") });
    });
  },
};
