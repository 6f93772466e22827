// One layer computed twice: in integers as the device does it, in floats as the simulation does it.
// First the two computations, the twins of two_paths.py and minq/mac; then the picture.
import { bytes } from "./kit/data.js";
import { attr, h, sub, svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linear, logarithmic } from "./kit/scales.js";
import { clamp, roundHalfEven } from "./quantize.js";

// --- The two computations -------------------------------------------------------------------------

/** The nearest number of 11 significant bits that half precision has; infinite from 65,520 on. */
export function toHalf(v) {
  const size = Math.abs(v);
  if (!(size > 0) || size === Infinity) return v;
  const step = 2 ** Math.max(Math.floor(Math.log2(size)) - 10, -24), r = roundHalfEven(size / step) * step;
  return Math.sign(v) * (r > 65504 ? Infinity : r);
}
/** What every result of the simulation is rounded to. */
export const ROUND = { double: v => v, single: Math.fround, half: toHalf };

/** ratio ~ multiplier 2^-shift with a multiplier in [2^30, 2^31): [multiplier, shift]. */
export function fixedPoint(ratio) {
  let fraction = ratio, exponent = 0; // halving and doubling are exact
  while (fraction >= 1) { fraction /= 2; exponent += 1; }
  while (fraction < 0.5) { fraction *= 2; exponent -= 1; }
  const multiplier = roundHalfEven(fraction * 2 ** 31), shift = 31 - exponent;
  return multiplier === 2 ** 31 ? [2 ** 30, shift - 1] : [multiplier, shift];
}

/** acc multiplier 2^-shift, rounded half to even, and the product; it needs up to 62 bits: a BigInt. */
export function shifted(acc, [multiplier, shift]) {
  const product = BigInt(acc) * BigInt(multiplier), places = BigInt(shift), half = (1n << places) >> 1n;
  let y = (product + half) >> places; // the shift of a negative number rounds down
  if ((product & ((1n << places) - 1n)) === half && half && (y & 1n)) y -= 1n; // a tie goes to the even one
  return { product, y: Number(y) };
}

/** A layer with its integers, and where each product takes its input from; -1: from the padding. */
export function openLayer(meta, data) {
  const [C, H, W] = meta.in, [O, Cg, kh, kw] = meta.kernel, [, oh, ow] = meta.out;
  const K = Cg * kh * kw, P = oh * ow, size = C * H * W, one = v => (meta.s_w.length > 1 ? v : 0);
  const x = Int32Array.from(data.subarray(meta.at, meta.at + size), v => v + meta.x_grid[0]);
  const weight = Int32Array.from(data.subarray(meta.at + size, meta.at + size + O * K), v => (v << 24) >> 24);
  const taps = new Int32Array(P * K);
  for (let p = 0; p < P; p++) {
    for (let k = 0; k < K; k++) {
      const c = Math.floor(k / (kh * kw)), i = Math.floor(k / kw) % kh, j = k % kw;
      const r = Math.floor(p / ow) * meta.stride[0] - meta.padding[0] + i * meta.dilation[0];
      const s = (p % ow) * meta.stride[1] - meta.padding[1] + j * meta.dilation[1];
      taps[p * K + k] = r < 0 || s < 0 || r >= H || s >= W ? -1 : (c * H + r) * W + s;
    }
  }
  const L = { ...meta, C, H, W, O, Cg, kh, kw, oh, ow, K, P, x, weight, taps };
  L.base = o => Math.floor(o / (O / meta.groups)) * Cg * H * W;
  L.input = (o, p, k) => (taps[p * K + k] < 0 ? meta.z_x : x[L.base(o) + taps[p * K + k]]);
  L.sw = o => meta.s_w[one(o)];
  L.pair = (name, o) => meta[name][meta[name].length > 1 ? o : 0];
  L.sums = Array.from({ length: O }, (_, o) => weight.subarray(o * K, (o + 1) * K).reduce((s, v) => s + v, 0));
  L.folded = L.sums.map((s, o) => meta.bias[o] - meta.z_x * s); // eq. (13): b_int - z_x sum W
  L.ratio = o => L.sw(o) * meta.s_x / meta.s_y;
  const multipliers = meta.s_w.map((_, o) => fixedPoint(L.ratio(o)));
  L.multiplier = o => multipliers[one(o)];
  return L;
}

/** Integers alone. sum: W_int x_int, acc: with the bias; y: what leaves. */
export function onDevice(L) {
  const { O, P, K, taps, x, weight, z_x } = L,
    sum = new Float64Array(O * P),
    acc = new Float64Array(O * P),
    y = new Int32Array(O * P);
  for (let o = 0; o < O; o++) {
    const base = L.base(o), m = L.multiplier(o), [low, high] = L.pair("range", o);
    for (let p = 0; p < P; p++) {
      let s = 0;
      for (let k = 0; k < K; k++) {
        const t = taps[p * K + k];
        s += weight[o * K + k] * (t < 0 ? z_x : x[base + t]);
      }
      const n = o * P + p, a = s + L.folded[o];
      sum[n] = s;
      acc[n] = a;
      y[n] = clamp(shifted(a, m).y + L.z_y, low, high);
    }
  }
  return { sum, acc, y };
}

/** Floats on grids; f rounds each product, sum and quotient. steps: y / s_y before the activation. */
export function simulated(L, f) {
  const { O, P, K, taps, z_x, z_y } = L, [n, p] = L.y_grid, sy = f(L.s_y), sx = f(L.s_x), out = {};
  for (const k of ["sum", "acc", "active", "steps"]) out[k] = new Float64Array(O * P);
  out.y = new Int32Array(O * P);
  const xHat = Float64Array.from(L.x, v => f(sx * (v - z_x))); // eq. (6)
  for (let o = 0; o < O; o++) {
    const base = L.base(o), sw = f(L.sw(o)), b = f(L.sw(o) * L.s_x * L.bias[o]), [low, high] = L.pair("limits", o);
    const wHat = Float64Array.from(L.weight.subarray(o * K, (o + 1) * K), v => f(sw * v));
    for (let q = 0; q < P; q++) {
      let s = 0;
      for (let k = 0; k < K; k++) {
        const t = taps[q * K + k];
        if (t >= 0) s = f(s + f(wHat[k] * xHat[base + t])); // the padding holds 0
      }
      const i = o * P + q, v = f(s + b);
      const a = clamp(v, low === null ? -Infinity : f(low), high === null ? Infinity : f(high));
      Object.entries({ sum: s, acc: v, active: a, steps: f(v / sy) }).forEach(([k, e]) => { out[k][i] = e; });
      out.y[i] = clamp(roundHalfEven(f(a / sy)) + z_y, n, p);
    }
  }
  return out;
}

/** How far each output lies from the nearest tie that decides between two integers, in steps. */
export function tieDistances(L, acc) {
  return Float64Array.from(acc, (a, i) => {
    const o = Math.floor(i / L.P), [low, high] = L.pair("range", o), v = a * L.ratio(o) + L.z_y;
    return high > low ? Math.abs(v - clamp(Math.floor(v) + 0.5, low + 0.5, high - 0.5)) : Infinity;
  });
}

// --- Digits ---------------------------------------------------------------------------------------

const MAP = 260; // pixels at most
const DIGITS = { double: 15, single: 8, half: 4 }, PLACES = { double: 11, single: 6, half: 3 };
const NAMES = { double: "double precision", single: "single precision", half: "half precision" };
const whole = v => v.toLocaleString("en-US").replace("-", "−");
const level = v => String(v).replace("-", "−");
/** All digits that the precision has, zeros at the end too. */
const real = (v, digits) => {
  const size = Math.abs(v);
  return size >= 1e-4 && size < 10 ** digits ? level(v.toPrecision(digits)) : fmt(v, digits);
};
const signed = v => (v < 0 ? `(${whole(v)})` : whole(v));
/** The text, with all behind what it shares with another text set apart. */
const against = (text, other) => {
  let i = 0;
  while (i < text.length && text[i] === other[i]) i += 1;
  return [text.slice(0, i), i < text.length ? h("span", { class: "two-off" }, text.slice(i)) : null];
};
const times = (n, word) => `${whole(n)} ${word}${n === 1 ? "" : "s"}`;

export default {
  render({ model, el }) {
    const w = widget({ model, el }), metas = w.get("layers"), data = bytes(w.get("data"));

    // --- Computed once for each layer and precision ---
    const opened = new Map(), floated = new Map();
    const open = i => {
      if (!opened.has(i)) {
        const L = openLayer(metas[i], data), D = onDevice(L);
        opened.set(i, { L, D, ties: tieDistances(L, D.acc) });
      }
      return opened.get(i);
    };
    const float = i => {
      const key = `${i} ${w.get("floats")}`;
      if (!floated.has(key)) floated.set(key, simulated(open(i).L, ROUND[w.get("floats")]));
      return floated.get(key);
    };
    const layer = () => clamp(w.get("layer"), 0, metas.length - 1);
    const state = () => {
      const i = layer(), { L, D, ties } = open(i), S = float(i), at = (k, most) => clamp(w.get(k), 0, most - 1);
      const o = at("channel", L.O), r = at("row", L.oh), c = at("column", L.ow), k = at("term", L.K), p = r * L.ow + c;
      return { i, L, D, S, ties, o, r, c, k, p, n: o * L.P + p };
    };
    const go = n => {
      const { L } = open(layer()), p = n % L.P;
      w.set({ channel: Math.floor(n / L.P), row: Math.floor(p / L.ow), column: p % L.ow });
    };
    const move = i => {
      const [channel, row, column, term] = metas[i].start;
      w.set({ channel, row, column, term });
    };

    // --- Controls ---
    const channel = w.slider({
      trait: "channel",
      label: "Output channel",
      min: 0,
      max: 1,
      format: v => `${v + 1} of ${open(layer()).L.O}`,
    });
    w.controls(
      w.segmented({ trait: "layer", label: "Layer", options: metas.map((m, i) => [i, m.title]), onInput: move }),
      channel,
    );
    const nearest = w.button({
      label: "Nearest to a tie",
      onClick: () => {
        const { ties } = open(layer());
        go(ties.indexOf(ties.reduce((a, b) => Math.min(a, b))));
      },
    });
    const next = w.button({ label: "Next that differs", onClick: () => {
      const { n, D, S } = state(), N = D.y.length;
      for (let d = 1; d <= N; d++) if (D.y[(n + d) % N] !== S.y[(n + d) % N]) { go((n + d) % N); return; }
    } });
    w.controls(
      w.segmented({
        trait: "floats",
        label: "Floats of the simulation",
        options: [
          ["double", "double"],
          ["single", "single"],
          ["half", "half"],
        ],
      }),
      h("div", { class: "two-jumps" }, nearest.el, next.el),
    );

    // --- Pictures ---
    const map = w.plot({
      height: x => Math.min(x, MAP) + 40,
      margin: { left: 2, right: 2, top: 20, bottom: 20 },
      label: "The output",
      grow: 0,
      min: 190,
    });
    const patch = w.plot({
      height: 164,
      margin: { left: 2, right: 2, top: 20, bottom: 4 },
      label: "The products",
      grow: 1,
      min: 300,
    });
    const sums = w.plot({
      height: 172,
      margin: { left: 70, right: 50, top: 26, bottom: 36 },
      label: "The running sum",
      min: 280,
    });
    map.el.classList.add("two-map");
    w.add(map, h("div", { class: "two-products" }, patch.el, sums.el));
    w.legend([["line blue", "device"], ["dashed ink", "simulation"]]);
    const table = h("table", { class: "two-table" });
    w.add(table);
    const close = w.plot({
      height: 104,
      margin: { left: 8, right: 10, top: 18, bottom: 36 },
      label: "How close to a tie",
      min: 280,
    });
    w.add(close);
    const out = w.readouts([
      ["here", "this channel agrees", "outputs of the channel shown whose two integers are equal"],
      ["all", "whole layer agrees", "all outputs of the layer"],
      ["tie", "to the nearest tie", "distance, in steps of the output's grid, from the middle between two integers"],
      ["float", "floats are off by", "rounding errors of the simulation, in steps"],
      ["fixed", "multiplier is off by", "what rounding the multiplier to 31 bits does, in steps"],
    ]);
    const caption = w.caption();

    // Places in the output are picked by pointer, or by the arrow keys on the frame around them.
    let cells = { columns: 1, size: 1, x: 0, y: 0, count: 1 };
    const cursor = svg(
      "g",
      {
        class: "two-cursor",
        tabindex: 0,
        role: "slider",
        "aria-label": "Place in the output",
        "aria-valuemin": 1,
        "data-lm-suppress-shortcuts": true,
        keydown: e => {
          const jump = {
            ArrowLeft: -1,
            ArrowRight: 1,
            ArrowUp: -cells.columns,
            ArrowDown: cells.columns,
            Home: -cells.at,
            End: cells.count - 1 - cells.at,
          }[e.key];
          if (jump === undefined) return;
          e.preventDefault();
          e.stopPropagation();
          if (cells.at + jump >= 0 && cells.at + jump < cells.count) cells.pick(cells.at + jump);
        },
      },
      svg("rect", { class: "two-halo" }),
      svg("rect", { class: "two-frame" }),
    );
    attr(map.svg, { role: "group" });
    map.svg.append(cursor);
    const seek = (plot, fn) => {
      const tell = e => {
        if (e.target.closest(".mq-handle") || (e.type === "pointermove" && !e.buttons)) return;
        const box = plot.svg.getBoundingClientRect(), k = plot.width / (box.width || 1);
        fn((e.clientX - box.left) * k, (e.clientY - box.top) * k);
      };
      plot.svg.classList.add("mq-hover");
      for (const type of ["pointerdown", "pointermove"]) w.listen(plot.svg, type, tell);
    };
    seek(map, (x, y) => {
      const c = Math.floor((x - cells.x) / cells.size), r = Math.floor((y - cells.y) / cells.size);
      if (c >= 0 && c < cells.columns && r >= 0 && r * cells.columns + c < cells.count)
        cells.pick(r * cells.columns + c);
    });
    let grids = [];
    seek(patch, (x, y) => {
      for (const g of grids) {
        const c = Math.floor((x - g.x) / g.w), r = Math.floor((y - g.y) / g.h), j = r * g.columns + c;
        if (c >= 0 && c < g.columns && r >= 0 && j < g.count) w.set("term", g.from + j);
      }
    });
    let along = null;
    seek(sums, x => { if (along) w.set("term", clamp(Math.floor(along.invert(x)) - 1, 0, along.K - 1)); });
    const handle = sums.handle({ label: "Product", tone: "green", onInput: k => w.set("term", Math.round(k)) });

    const text = (x, y, words, kind = "mq-tick", anchor = "middle") =>
      svg("text", { class: kind, x, y, "text-anchor": anchor }, words);
    const box = (x, y, width, height, kind, more = {}) => svg("rect", { class: kind, x, y, width, height, ...more });
    const grey = (v, [low, high]) => {
      const g = Math.round(30 + (215 * (v - low)) / (high - low || 1));
      return `fill:rgb(${g},${g},${g})`;
    };
    const span = list => list.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);

    let painted = "";
    function drawMap({ i, L, D, S, o, p }) {
      const flat = L.P === 1,
        count = flat ? L.O : L.P,
        columns = flat ? Math.min(L.O, Math.ceil(Math.sqrt(L.O))) : L.ow,
        rows = Math.ceil(count / columns);
      const size = Math.min(map.right - map.left, MAP) / Math.max(columns, rows),
        from = flat ? 0 : o * L.P,
        height = Math.round(rows * size) + 40;
      if (map.height !== height)
        attr(map.svg, { viewBox: `0 0 ${map.width} ${height}`, height: (map.height = height) });
      cells = {
        columns,
        count,
        size,
        x: map.left,
        y: map.top,
        at: flat ? o : p,
        pick: k => (flat ? w.set("channel", k) : w.set({ row: Math.floor(k / L.ow), column: k % L.ow })),
      };
      const key = [i, flat || o, w.get("floats"), map.width].join();
      if (key !== painted) {
        painted = key;
        const ys = D.y.subarray(from, from + count), range = span(ys), nodes = [], bad = [];
        ys.forEach((v, k) => {
          const x = cells.x + (k % columns) * size, y = cells.y + Math.floor(k / columns) * size;
          nodes.push(svg("rect", { x, y, width: size + 0.3, height: size + 0.3, style: grey(v, range) }));
          if (size >= 28)
            nodes.push(
              svg(
                "text",
                {
                  x: x + size / 2,
                  y: y + size / 2 + 4,
                  "text-anchor": "middle",
                  style: `fill:${v > (range[0] + range[1]) / 2 ? "#111" : "#fff"}`,
                },
                level(v),
              ),
            );
          if (v !== S.y[from + k]) bad.push(box(x + 0.75, y + 0.75, size - 1.5, size - 1.5, "two-bad"));
        });
        map.layer("cells").replaceChildren(...nodes, ...bad);
        map.describe(
          `${flat ? `The ${count} outputs` : `Channel ${o + 1}, ${L.oh} by ${L.ow} outputs`} of the device, ` +
          `integers from ${level(range[0])} to ${level(range[1])}; in ${bad.length || "none"} of them the simulation ` +
          `differs.`,
        );
        map
          .layer("words")
          .replaceChildren(
            text(map.left, 12, flat ? "Outputs of the device" : "Output of the device", "mq-strong", "start"),
            text(
              map.left,
              cells.y + rows * size + 14,
              flat
                ? bad.length
                  ? "tap one; red: differs"
                  : "tap one"
                : bad.length
                  ? `channel ${o + 1}; red: differs`
                  : `channel ${o + 1}; tap a pixel`,
              "mq-tick",
              "start",
            ),
          );
      }
      const at = {
        x: cells.x + (cells.at % columns) * size,
        y: cells.y + Math.floor(cells.at / columns) * size,
        width: size,
        height: size,
      };
      for (const frame of cursor.children) attr(frame, at);
      const n = flat ? cells.at : from + p;
      const place = flat ? `output ${o + 1}` : `row ${Math.floor(p / L.ow) + 1}, column ${(p % L.ow) + 1}`;
      const differs = D.y[n] === S.y[n] ? "" : `, simulation ${S.y[n]}`;
      attr(cursor, {
        "aria-valuemax": count,
        "aria-valuenow": cells.at + 1,
        "aria-valuetext": `${place}: ${D.y[n]}${differs}`,
      });
    }

    /** Input, kernel and products of one input channel; without a kernel, of all channels. */
    function drawPatch({ L, o, p, k }) {
      const taps = L.kh * L.kw,
        block = taps > 1,
        from = block ? Math.floor(k / taps) * taps : 0,
        count = block ? taps : L.K;
      const columns = block ? L.kw : Math.ceil(Math.sqrt(L.K)), rows = Math.ceil(count / columns), nodes = [];
      const parts = [
        { title: [sub("x", "int")], words: "input", value: j => L.input(o, p, j), share: 0.26 },
        { title: [], words: "weight", value: j => L.weight[o * L.K + j], share: 0.28 },
        { title: [], words: "product", value: j => L.weight[o * L.K + j] * L.input(o, p, j), share: 0.38 },
      ];
      const wide = patch.right - patch.left, gap = 0.04 * wide, tall = wide < 420 ? 112 : 126;
      const digits = columns <= 3 && wide > 240; // then products get wider cells; else all are small squares
      let x = patch.left;
      grids = parts.map((part, g) => {
        const full = (digits ? part.share : 0.3) * wide,
          cw = Math.min(full / columns, 60),
          ch = Math.min(tall / rows, digits ? 40 : cw);
        const grid = { x, y: patch.top + 4, w: digits ? cw : ch, h: ch, columns, count, from };
        const values = Array.from({ length: count }, (_, j) => part.value(from + j)),
          most = Math.max(1, ...values.map(Math.abs)),
          ends = span(values);
        nodes.push(text(x, 12, part.words, "mq-strong", "start"));
        values.forEach((v, j) => {
          const u = x + (j % columns) * grid.w,
            y = grid.y + Math.floor(j / columns) * grid.h,
            padded = L.taps[p * L.K + from + j] < 0,
            on = from + j === k;
          nodes.push(
            g === 0
              ? svg("rect", { x: u, y, width: grid.w, height: grid.h, class: "two-cell", style: grey(v, L.x_grid) })
              : box(u, y, grid.w, grid.h, `two-cell ${v < 0 ? "two-minus" : "two-plus"}`, {
                  "fill-opacity": (0.04 + (0.5 * Math.abs(v)) / most).toFixed(2),
                }),
          );
          if (g === 0 && padded) nodes.push(box(u, y, grid.w, grid.h, "two-pad"));
          if (digits) {
            const light = g === 0 && (v - L.x_grid[0]) / (L.x_grid[1] - L.x_grid[0]) > 0.45;
            nodes.push(
              svg(
                "text",
                {
                  x: u + grid.w / 2,
                  y: y + grid.h / 2 + 4,
                  "text-anchor": "middle",
                  class: on ? "mq-strong" : "",
                  style: `font-size:${Math.min(12, (grid.w - 2) / (0.62 * level(v).length)).toFixed(1)}px` +
                    `${g ? "" : `;fill:${light ? "#111" : "#fff"}`}`,
                },
                level(v),
              ),
            );
          }
        });
        const u = x + ((k - from) % columns) * grid.w, y = grid.y + Math.floor((k - from) / columns) * grid.h;
        nodes.push(box(u, y, grid.w, grid.h, "two-halo"), box(u, y, grid.w, grid.h, "two-frame"));
        const middle = grid.y + rows * grid.h / 2 + 5;
        if (g < 2)
          nodes.push(
            text(x + columns * grid.w + gap / 2 + (full - columns * grid.w) / 2, middle, g ? "=" : "·", "mq-strong"),
          );
        x += full + gap;
        return grid;
      });
      const bottom = grids[0].y + rows * grids[0].h + 13;
      const where = block
        ? L.Cg > 1
          ? `input channel ${Math.floor(k / taps) + 1} of ${L.Cg}`
          : `input channel ${o + 1} alone`
        : `all ${L.K} input channels`;
      nodes.push(text(patch.left, bottom, where, "mq-tick", "start"));
      attr(patch.svg, { viewBox: `0 0 ${patch.width} ${bottom + 8}`, height: bottom + 8 });
      patch.layer("grids").replaceChildren(...nodes);
      patch.describe(
        `The products of ${where}: input ${L.input(o, p, k)} times weight ${L.weight[o * L.K + k]} is number ` +
        `${k + 1} of ${L.K}.`,
      );
    }

    function drawSums({ L, D, S, o, p, k, n }) {
      const { K, z_x } = L, unit = L.sw(o) * L.s_x, device = [0], floats = [0];
      for (let j = 0; j < K; j++) {
        const v = L.weight[o * K + j], x = L.input(o, p, j);
        device.push(device[j] + v * x);
        floats.push(floats[j] + v * (x - z_x));
      }
      const ends = [...device, ...floats, D.acc[n], 0],
        range = span(ends),
        pad = 0.06 * (range[1] - range[0] || 1),
        tail = Math.max(1, K * 0.08);
      const x = linear([0, K + tail], [sums.left, sums.right]),
        y = linear([range[0] - pad, range[1] + pad], [sums.bottom, sums.top]);
      along = { invert: x.invert, K };
      sums.axisY(y, { label: "sum in integers", ticks: 4, format: v => fmt(v, 6) });
      sums.axisX(linear([0, K], [sums.left, x(K)]), { label: "", ticks: Math.min(K, 6), format: v => fmt(v, 4) });
      const stairs = list =>
        list
          .map((v, j) => `${j ? "V" : `M${x(0)} `}${y(v).toFixed(1)}H${x(Math.min(j + 1, K)).toFixed(1)}`)
          .join("");
      const final = `V${y(D.acc[n]).toFixed(1)}H${sums.right}`;
      const yr = linear(y.domain.map(v => v * unit), [sums.bottom, sums.top]);
      const taps = L.kh * L.kw, block = Math.floor(k / taps) * taps;
      sums.layer("marks").replaceChildren(
        taps > 1 && L.Cg > 1 ? box(x(block + 0.5), sums.top, x(taps) - x(0), sums.bottom - sums.top, "two-block") : "",
        svg("line", { class: "mq-axis", x1: sums.left, x2: sums.right, y1: y(0), y2: y(0) }),
        svg("line", { class: "mq-grid", x1: x(K), x2: x(K), y1: sums.top, y2: sums.bottom }),
        svg("path", { class: "mq-stroke mq-blue two-thick", d: stairs(device) + final }),
        svg("path", { class: "mq-stroke mq-ink two-dash", d: stairs(floats) + final }),
        ...yr
          .ticks(4)
          .filter(v => v >= yr.domain[0] && v <= yr.domain[1])
          .map(v => text(sums.right + 6, yr(v) + 4, fmt(v, 3), "mq-tick", "start")),
        text(sums.width - 2, 15, "the same in reals", "mq-name", "end"),
        text((x(K) + sums.right) / 2 + 2, sums.bottom + 16, "+ b", "mq-tick"),
        text(sums.left, sums.bottom + 32, "products added", "mq-name", "start"),
        svg("circle", { class: "mq-area mq-blue", cx: sums.right, cy: y(D.acc[n]), r: 4 }),
      );
      handle.place({
        x: x(k + 1),
        y: y(device[k + 1]),
        value: k,
        min: 0,
        max: K - 1,
        step: 1,
        text: `${k + 1} of ${K}, the sum is now ${whole(device[k + 1])}`,
        invert: v => x.invert(v) - 1,
      });
      attr(handle.el, { display: K > 1 ? null : "none" });
      sums.describe(
        `The sum grows product by product, once in integers on the left scale and once in floats on the right one, ` +
          `and ends at ${whole(D.acc[n])} or ${real(S.acc[n], 5)}. ` +
          (z_x
            ? "The input's zero-point parts the two curves until the folded bias joins them."
            : "The curves coincide."),
      );
    }

    let stood = "";
    function drawTable(s) {
      const { L, D, S, o, n, p, k, i } = s,
        kind = w.get("floats"),
        f = ROUND[kind],
        digits = DIGITS[kind],
        show = v => real(v, digits);
      if (stood === (stood = [i, n, k, kind].join())) return;
      const [m, shift] = L.multiplier(o),
        [low, high] = L.pair("limits", o),
        [from, to] = L.pair("range", o),
        unit = L.sw(o) * L.s_x;
      const W = L.weight[o * L.K + k],
        X = L.input(o, p, k),
        padded = L.taps[p * L.K + k] < 0,
        wHat = f(f(L.sw(o)) * W),
        xHat = f(f(L.s_x) * (X - L.z_x)),
        b = f(unit * L.bias[o]);
      const a = low === 0 ? Math.max(D.acc[n], 0) : D.acc[n], { product, y: rounded } = shifted(a, [m, shift]);
      const active = S.active[n], steps = f(active / f(L.s_y)), up = roundHalfEven(steps), places = PLACES[kind];
      const exact = level((a * (m / 2 ** shift)).toFixed(places)),
        quotient = Number.isFinite(steps) ? level(steps.toFixed(places)) : fmt(steps);
      const name =
        low === null && high === null
          ? "none here"
          : low === 0 && high === null
            ? "ReLU"
            : low === 0 && high === 6
              ? "ReLU6"
              : [
                  low === 0 ? "ReLU" : low === null ? "" : `at least ${fmt(low)}`,
                  high === null ? "" : `at most ${fmt(high)}`,
                ]
                  .filter(Boolean)
                  .join(", ");
      const plus = v => (v < 0 ? `− ${whole(-v)}` : `+ ${whole(v)}`),
        strong = (...t) => h("b", {}, ...t),
        soft = (...t) => h("small", {}, ...t);
      const row = (title, note, device, floats) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, h("span", {}, title), soft(note)),
          h("td", {}, device),
          h("td", {}, floats),
        );
      const lines = list => list.map(t => h("div", {}, t));
      const same = D.y[n] === S.y[n], stands = real(unit * D.acc[n], digits);
      table.replaceChildren(
        h(
          "caption",
          {},
          `${L.title}: output ${o + 1} of ${L.O}${L.P > 1 ? `, row ${s.r + 1}, column ${s.c + 1}` : ""}`,
        ),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("td", {}),
            h("th", { scope: "col" }, "Device", soft("figure 4a: integers")),
            h("th", { scope: "col" }, "Simulation", soft(`figure 4b: ${NAMES[kind]}`)),
          ),
        ),
        h(
          "tbody",
          {},
          row(
            "one product",
            `${k + 1} of ${L.K}${padded ? ", padding" : ""}`,
            lines([
              [sub("W", "int"), " · ", sub("x", "int")],
              [`${whole(W)} · ${signed(X)} = `, strong(whole(W * X))],
            ]),
            lines([
              ["Ŵ · x̂"],
              [`${show(wHat)} · ${xHat < 0 ? `(${show(xHat)})` : show(xHat)} = `, strong(show(f(wHat * xHat)))],
            ]),
          ),
          row(
            "their sum",
            "32-bit integer | float",
            lines([[strong(whole(D.sum[n]))]]),
            lines([[strong(show(S.sum[n]))]]),
          ),
          row(
            "+ bias",
            "32-bit integer | float",
            lines([
              L.z_x
                ? [
                    sub("b", "int"),
                    " − ",
                    sub("z", "x"),
                    " Σ",
                    sub("W", "int"),
                    ` = ${whole(L.bias[o])} − ${L.z_x} · ${signed(L.sums[o])} = ${whole(L.folded[o])}`,
                  ]
                : [sub("b", "int"), ` = ${whole(L.bias[o])}`],
              ["A = ", strong(whole(D.acc[n]))],
              [soft(sub("s", "w"), sub("s", "x"), ` A = ${stands}`)],
            ]),
            lines([
              ["b̂ = ", sub("s", "w"), sub("s", "x"), sub("b", "int"), ` = ${show(b)}`],
              ["y = ", strong(against(show(S.acc[n]), stands))],
            ]),
          ),
          row(
            "activation",
            name,
            lines(
              low === 0
                ? [
                    ["max(A, 0) = ", strong(whole(a))],
                    high === null ? "" : [soft(`at most ${fmt(high)}: left to the clamp`)],
                  ]
                : [["A = ", strong(whole(a))]],
            ),
            lines([
              [
                low === 0 && high === null ? "max(y, 0) = " : low === null && high === null ? "y = " : "clamp(y) = ",
                strong(show(active)),
              ],
            ]),
          ),
          row(
            "to steps of y",
            "multiply, shift | divide",
            lines([
              [`A · ${whole(m)} = ${whole(product)}`],
              [`≫ ${shift}: `, strong(exact)],
              ["rounds to ", strong(level(rounded))],
            ]),
            lines([
              [`y / `, sub("s", "y"), ` = y / ${show(f(L.s_y))}`],
              ["= ", strong(against(quotient, exact))],
              ["rounds to ", strong(Number.isFinite(up) ? level(up) : fmt(up))],
            ]),
          ),
          row(
            "zero-point, clamp",
            `to ${level(from)} … ${level(to)}`,
            lines([[`${level(rounded)} ${plus(L.z_y)} = ${level(rounded + L.z_y)}`]]),
            lines([
              [
                `${Number.isFinite(up) ? level(up) : fmt(up)} ${plus(L.z_y)} = ` +
                `${Number.isFinite(up) ? level(up + L.z_y) : fmt(up)}`,
              ],
            ]),
          ),
        ),
        h(
          "tfoot",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "row" }, h("span", {}, sub("y", "int")), soft("8 bits")),
            h("td", {}, h("b", { class: "two-end" }, level(D.y[n]))),
            h("td", {}, h("b", { class: "two-end" }, level(S.y[n]))),
          ),
          h(
            "tr",
            {},
            h("td", {}),
            h(
              "td",
              { colspan: 2, class: same ? "two-same" : "two-differ" },
              same ? "the same integer" : `${times(Math.abs(D.y[n] - S.y[n]), "step")} apart`,
            ),
          ),
        ),
      );
    }

    function drawClose({ L, D, S, ties, o, n }) {
      const ratio = L.ratio(o), [m, shift] = L.multiplier(o);
      const found = {
        tie: ties[n],
        float: Math.abs(S.steps[n] - D.acc[n] * ratio),
        fixed: Math.abs(D.acc[n] * (m / 2 ** shift - ratio)),
      };
      const x = logarithmic([1e-14, 10], [close.left, close.right]), at = v => x(clamp(v, 1e-14, 10));
      const rug = Array.from(ties, v => (v < 0.5 ? `M${at(v).toFixed(1)} ${close.bottom - 9}v8` : "")).join("");
      const mark = (v, y, kind, words) => {
        const u = at(v), left = u > (close.width > 420 ? 210 : 90);
        return [
          svg("line", { class: `mq-stroke ${kind}`, x1: u, x2: u, y1: y + 4, y2: close.bottom }),
          svg("circle", { class: `mq-area ${kind}`, cx: u, cy: y + 4, r: 4 }),
          text(u + (left ? -9 : 9), y + 8, words, `mq-halo ${kind}`, left ? "end" : "start"),
        ];
      };
      close.axisX(x, {
        values: [1e-12, 1e-9, 1e-6, 1e-3, 1],
        format: v => (v === 1 ? "1" : fmt(v, 1).replace("1×", "")),
        label: "steps of the output's grid",
      });
      close
        .layer("rug")
        .replaceChildren(
          svg("path", { class: "mq-stroke mq-thin mq-soft", d: rug, opacity: 0.35 }),
          text(
            close.left,
            close.bottom + 32,
            close.width > 480
              ? "small ticks: how far each output of the layer is from a tie"
              : "ticks: all outputs' ties",
            "mq-name",
            "start",
          ),
        );
      const size = v => (v ? `${fmt(v, 2)}` : "nothing"), wide = close.width > 420;
      close.layer("marks").replaceChildren(
        ...mark(found.fixed, 30, "mq-blue", wide ? `multiplier off by ${size(found.fixed)}` : "multiplier"),
        ...mark(found.float, 12, "mq-red", wide ? `${w.get("floats")} off by ${size(found.float)}` : w.get("floats")),
        ...mark(found.tie, 48, "mq-green", wide ? `tie ${fmt(found.tie, 2)} away` : "tie"),
      );
      close.describe(
        `On a logarithmic scale of steps: the nearest tie is ${fmt(found.tie, 2)} away, ` +
        `the floats are off by ${size(found.float)}, the multiplier by ${size(found.fixed)}. Ticks below: ` +
        `the distance of every output of the layer.`,
      );
      return found;
    }

    return w.start(() => {
      const s = state(), { L, D, S, o, n } = s, kind = w.get("floats");
      if (channel.node.max !== String(L.O - 1)) channel.limit({ min: 0, max: L.O - 1 });
      drawMap(s);
      drawPatch(s);
      drawSums(s);
      drawTable(s);
      const found = drawClose(s),
        equal = (from, to) => {
          let k = 0;
          for (let j = from; j < to; j++) k += D.y[j] === S.y[j];
          return k;
        };
      const here = equal(o * L.P, (o + 1) * L.P), all = equal(0, D.y.length);
      next.limit({ disabled: all === D.y.length });
      const size = v => (v ? fmt(v, 2) : "0");
      out.set({
        here: `${whole(here)} of ${whole(L.P)}`,
        all: `${whole(all)} of ${whole(D.y.length)}`,
        tie: size(found.tie),
        float: size(found.float),
        fixed: size(found.fixed),
      });
      const end =
        D.y[n] === S.y[n]
          ? `Both end in ${level(D.y[n])}.`
          : `The device gets ${level(D.y[n])}, the simulation ${level(S.y[n])}: ` +
            `${times(Math.abs(D.y[n] - S.y[n]), "step")} apart.`;
      const why =
        D.y[n] !== S.y[n]
          ? ` The value lies ${fmt(found.tie, 2)} steps from a tie, and the floats are off by ` +
            `${fmt(found.float, 2)}: enough to round the other way.`
          : found.tie > 0.5
            ? " The value is clamped, so no small error can matter."
            : ` The nearest tie is ${fmt(found.tie, 2)} steps away, the floats are off by ${size(found.float)}.`;
      const total =
        all === D.y.length
          ? `In ${NAMES[kind]} all ${whole(all)} outputs of this layer agree.`
          : `In ${NAMES[kind]} ${times(D.y.length - all, "output")} of ${whole(D.y.length)} in this layer ` +
            `${D.y.length - all === 1 ? "differs" : "differ"}.`;
      caption.set(`${end}${why} ${total}`);
    });
  },
};
