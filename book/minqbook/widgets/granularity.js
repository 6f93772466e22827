// One scale a tensor, a channel or a group: the grids over the channels' ranges, and who survives.
import { clamp, dequantize, integerGrid, roundHalfEven, scaleZeroPoint } from "./quantize.js";
import { extent, floats } from "./kit/data.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linear, logarithmic } from "./kit/scales.js";

const DEAD = 1e-4; // of the tensor's largest weight: a channel below it computes nothing
const MARGIN = { left: 46, right: 16 };
const stroke = (kind, d, more = {}) => svg("path", { class: `mq-stroke ${kind}`, d, ...more });
const area = (kind, d) => svg("path", { class: `mq-area ${kind}`, d });

/** Quantize a tensor of `rows` channels, min-max, and say what became of it.
 *  Pieces: the stretches that share a scale, in order; `per` of them in a channel (0: one for all). */
export function analyse(x, rows, { bits, granularity, group, symmetric }) {
  const length = x.length / rows, size = { tensor: x.length, channel: length, group }[granularity];
  const signed = symmetric, options = { signed, symmetric }, [n, p] = integerGrid(bits, options);
  const per = granularity === "tensor" ? 0 : Math.ceil(length / size), pieces = [], hat = new Float64Array(x.length);
  const seen = new Int32Array(p - n + 1), channels = [];
  for (let row = 0; row < (per ? rows : 1); row++) {
    const start = row * length, stop = per ? start + length : x.length;
    for (let a = start; a < stop; a += size) {
      const b = Math.min(a + size, stop), [low, high] = extent(x.subarray(a, b));
      const [s, z] = scaleZeroPoint(low, high, bits, options);
      pieces.push({ row, a, b, low, high, s, z });
    }
  }
  let largest = 0;
  for (const v of x) largest = Math.max(largest, Math.abs(v));
  for (let row = 0; row < rows; row++) {
    const c = {
      row,
      low: Infinity,
      high: -Infinity,
      most: 0,
      least: Infinity,
      signal: 0,
      noise: 0,
      levels: 0,
      zero: true,
    };
    for (let i = row * length; i < (row + 1) * length; i++) {
      const { s, z } = pieces[per ? row * per + Math.floor((i - row * length) / size) : 0];
      const v = x[i];
      const k = clamp(roundHalfEven(v / s) + z, n, p) + 0; // eq. (4)
      if (seen[k - n] !== row + 1) { seen[k - n] = row + 1; c.levels += 1; }
      hat[i] = dequantize(k, s, z); // eq. (6)
      if (hat[i] !== 0) c.zero = false;
      c.low = Math.min(c.low, v);
      c.high = Math.max(c.high, v);
      c.most = Math.max(c.most, Math.abs(v));
      c.least = Math.min(c.least, Math.abs(v));
      c.signal += v * v;
      c.noise += (v - hat[i]) ** 2;
    }
    c.dead = c.most < DEAD * largest;
    c.wiped = c.zero && !c.dead;
    c.sqnr = c.noise ? 10 * Math.log10(c.signal / c.noise) : Infinity;
    channels.push(c);
  }
  const signal = channels.reduce((t, c) => t + c.signal, 0), noise = channels.reduce((t, c) => t + c.noise, 0);
  return {
    n,
    p,
    per,
    size,
    length,
    pieces,
    hat,
    channels,
    largest,
    sqnr: noise ? 10 * Math.log10(signal / noise) : Infinity,
  };
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const x = floats(model.get("weights")), rows = w.get("channels"), length = x.length / rows;

    w.controls(
      w.slider({ trait: "bits", label: "Bits", min: 2, max: 8 }),
      w.segmented({
        trait: "granularity",
        label: "One scale per",
        options: ["tensor", "channel", "group"].map(k => [k, k]),
      }),
    );
    // A long channel is cut at powers of two, as real kernels do; a short one anywhere.
    const long = length > 64, exponent = () => Math.round(Math.log2(w.get("group")));
    const group = long
      ? w.slider({
        label: "Weights per group", value: exponent(), min: 1, max: Math.floor(Math.log2(length)),
        format: v => fmt(2 ** v, 6), onInput: v => w.set("group", 2 ** v),
      })
      : w.slider({ trait: "group", label: "Weights per group", min: Math.min(2, length), max: length });
    if (long) w.on("group", () => { if (2 ** group.value !== w.get("group")) group.value = exponent(); });
    w.controls(
      group,
      w.segmented({
        trait: "symmetric",
        label: "Grid",
        options: [
          [true, "symmetric"],
          [false, "asymmetric"],
        ],
      }),
    );

    const ranges = w.plot({ height: v => (v < 480 ? 220 : 260), margin: { ...MARGIN, top: 30, bottom: 26 } });
    w.add(ranges);
    const quality = w.plot({ height: 128, margin: { ...MARGIN, top: 28, bottom: 36 } });
    w.add(quality);
    w.legend([
      ["box grey", "a channel's weights"],
      ["box red", "becomes all zero"],
      ["hatch", "rounds to 0"],
      ["line blue", "levels of the grid"],
    ]);
    w.controls(
      w.segmented({
        trait: "order",
        label: "Channels",
        options: [
          ["natural", "as stored"],
          ["sorted", "largest first"],
        ],
      }),
      w.segmented({
        trait: "log",
        label: "Weights",
        options: [
          [false, "linear"],
          [true, "log |w|"],
        ],
      }),
    );
    const four = r => { r.el.style.gridTemplateColumns = "repeat(auto-fit, minmax(150px, 1fr))"; return r; };
    const out = four(w.readouts([
      ["sqnr", "SQNR of all weights"], ["worst", "worst live channel", "its SQNR"],
      ["wiped", "became all zero", "live channels that are only zeros after quantization"],
      ["levels", "levels used", "by the median live channel, of those that the bits give"],
      ["scales", "scales stored"], ["size", "their size", "with zero-points where the grid is asymmetric"],
      ["cost", "bits per weight", "weights, scales and zero-points"],
      ["dead", "dead channels", `all weights below ${DEAD} of the largest in the tensor`],
    ]));
    const caption = w.caption();
    const detail = w.plot({ height: v => (v < 480 ? 190 : 210), margin: { ...MARGIN, top: 34, bottom: 36 } });
    w.add(detail);
    w.legend([["dot soft", "weight before"], ["line blue", "weight after"], ["line red", "its error"]]);
    const one = four(w.readouts([
      ["range", "range of the channel"], ["scale", "its scale"], ["used", "levels it uses"], ["sqnr", "its SQNR"],
    ]));

    // --- Which channel: by pointer, by tap, by keys ---
    let order = [], rank = [], xs = linear([0, rows], [0, 1]);
    const pick = position => w.set("channel", order[clamp(Math.floor(position), 0, rows - 1)]);
    for (const p of [ranges, quality]) p.hover(u => pick(xs.invert(u)));
    const knob = ranges.handle({ label: "Channel", tone: "green", onInput: v => pick(Math.round(v)) });

    const box = (u, v, y0, y1) => `M${u.toFixed(1)} ${y0.toFixed(1)}H${v.toFixed(1)}V${y1.toFixed(1)}H${u.toFixed(1)}Z`;

    /** The stretch of each scale on the axis of channels: [from, to, piece]. Where groups would be
     *  narrower than a pixel, the coarsest of a channel stands for all of them. */
    const columns = g => {
      if (!g.per) return [[0, rows, g.pieces[0]]];
      if (xs(1 / g.per) - xs(0) > 1) return g.pieces.map((piece, i) => {
        const at = rank[piece.row] + (i % g.per) / g.per;
        return [at, at + 1 / g.per, piece];
      });
      return g.channels.map(({ row }) => {
        const own = g.pieces.slice(row * g.per, (row + 1) * g.per);
        return [rank[row], rank[row] + 1, own.reduce((a, b) => (b.s > a.s && b.high > b.low ? b : a))];
      });
    };

    const drawRanges = g => {
      const p = ranges, log = w.get("log"), live = g.channels.filter(c => !c.dead);
      const floor = Math.min(...live.map(c => c.most)) / 40,
        [low, high] = extent([0, ...g.channels.flatMap(c => [c.low, c.high])]);
      const spare = 0.04 * (high - low), frame = [p.bottom, p.top];
      const y = log ? logarithmic([floor, 1.4 * g.largest], frame) : linear([low - spare, high + spare], frame);
      const at = v => (log ? y(Math.max(v, floor)) : y(v)), zero = log ? p.bottom : y(0);
      let eaten = "", grid = "", ends = "";
      const noisy = g.per > 1 && xs(1 / g.per) - xs(0) < 4; // levels of narrow groups are but dots
      for (const [from, to, piece] of columns(g)) {
        const u = xs(from), v = xs(to), { s, z } = piece, dead = piece.low === 0 && piece.high === 0;
        if (dead) continue;
        eaten += log
          ? box(u, v, at(s / 2), p.bottom)
          : box(u, v, Math.max(p.top, at(s / 2)), Math.min(p.bottom, at(-s / 2)));
        const across = level =>
          log && level < floor ? "" : `M${u.toFixed(1)} ${at(level).toFixed(1)}H${v.toFixed(1)}`;
        if (log) {
          const top = Math.max(g.p - z, z - g.n);
          for (let k = 1; k < top && !noisy; k++) {
            if (k > 1 && at(k * s) - at((k + 1) * s) < 3.5) break;
            grid += across(k * s);
          }
          ends += across(Math.max(g.p - z, 1) * s);
        } else {
          const gap = at(0) - at(s), inside = k => s * (k - z) >= y.domain[0] && s * (k - z) <= y.domain[1];
          if (gap >= 3 && !noisy) for (let k = g.n; k <= g.p; k++) if (inside(k)) grid += across(s * (k - z));
          if (gap < 3 || noisy)
            ends += across(Math.min(s * (g.p - z), y.domain[1])) + across(Math.max(s * (g.n - z), y.domain[0]));
        }
      }
      let bars = "", lost = "";
      const wide = xs(1) - xs(0), pad = wide < 3 ? 0 : Math.min(0.22 * wide, 4);
      for (const c of g.channels) {
        const u = xs(rank[c.row]) + pad, v = xs(rank[c.row] + 1) - pad;
        const [a, b] = log
          ? [at(c.most), at(Math.max(c.least, floor))]
          : [at(Math.max(c.high, 0)), at(Math.min(c.low, 0))];
        const shape = box(u, v, Math.min(a, b - 2), b); // never thinner than 2 px
        if (c.wiped) lost += shape;
        else if (!c.dead) bars += shape;
      }
      p.axisY(y, { label: log ? "magnitude of the weights, |w|" : "weights, smallest to largest", ticks: 5 });
      p.layer("bars").replaceChildren(area("mq-grey", bars), area("mq-red", lost));
      p.layer("eaten").replaceChildren(
        svg("path", { class: "mq-veil", d: eaten }),
        svg("path", { fill: p.hatch, d: eaten }),
      );
      const crowded = g.per * rows * 6 > p.right - p.left || (!log && at(0) - at(g.pieces[0].s) < 7);
      p.layer("grid").replaceChildren(
        stroke("mq-blue mq-thin", grid, { opacity: crowded ? 0.45 : 0.8 }),
        stroke(`mq-blue${noisy ? " mq-thin" : ""}`, ends),
        svg("line", { class: "mq-axis", x1: p.left, x2: p.right, y1: zero, y2: zero }),
      );
      p.layer("names").replaceChildren(
        ...g.channels
          .filter(c => c.dead)
          .map(c => stroke("mq-soft mq-thin", cross(xs(rank[c.row] + 0.5), zero - 7, Math.min(3, wide / 2)))),
      );
    };
    const drawChosen = chosen => {
      const p = ranges;
      for (const q of [p, quality]) mark(q, chosen);
      const here = xs(rank[chosen.row] + 0.5), right = here < (p.left + p.right) / 2;
      p.layer("picked").append(
        svg(
          "text",
          {
            class: "mq-green mq-strong mq-halo",
            x: here + (right ? 14 : -14),
            y: p.bottom + 18,
            "text-anchor": right ? "start" : "end",
          },
          `channel ${chosen.row}`,
        ),
      );
      knob.place({
        x: here, y: p.bottom + 14, value: rank[chosen.row], min: 0, max: rows - 1, step: 1,
        text: `channel ${chosen.row}, ${word(chosen)}`, invert: u => xs.invert(u) - 0.5,
      });
    };
    const cross = (u, v, r) => `M${u - r} ${v - r}l${2 * r} ${2 * r}M${u - r} ${v + r}l${2 * r} ${-2 * r}`;
    const mark = (p, c) =>
      p.layer("picked").replaceChildren(stroke("mq-green", `M${xs(rank[c.row] + 0.5)} ${p.top}V${p.bottom}`));
    const word = c => (c.dead ? "dead" : c.sqnr === Infinity ? "exact" : `${fmt(c.sqnr)} dB`);

    const drawQuality = g => {
      const p = quality, y = linear([0, 55], [p.bottom, p.top]), wide = xs(1) - xs(0), r = Math.min(3, wide / 2.2);
      p.axisY(y, { label: "SQNR of each channel (dB)", values: [0, 20, 40] });
      const ticks = [...new Set(xs.ticks(p.width < 480 ? 4 : 8))].filter(v => v < rows && Number.isInteger(v));
      p.axisX(linear([-0.5, rows - 0.5], [p.left, p.right]), {
        values: ticks,
        format: v => fmt(v, 6),
        label: w.get("order") === "sorted" ? "channels, largest weight first" : "channel",
      });
      let bars = "", lost = "", dead = "";
      for (const c of g.channels) {
        const u = xs(rank[c.row]), v = u + wide, pad = wide < 3 ? 0 : Math.min(0.22 * wide, 4);
        if (c.dead) dead += cross((u + v) / 2, p.bottom - 5, r);
        else if (c.wiped) lost += cross((u + v) / 2, p.bottom - 5, r);
        else bars += box(u + pad, v - pad, y(clamp(c.sqnr, 0, 55)), p.bottom);
      }
      const all = y(clamp(g.sqnr, 0, 55));
      p.layer("bars").replaceChildren(
        svg("path", { class: "mq-area mq-blue", opacity: 0.75, d: bars }),
        stroke("mq-red", lost),
        stroke("mq-soft mq-thin", dead),
        stroke("mq-ink mq-dashed", `M${p.left} ${all}H${p.right}`),
        svg(
          "text",
          { class: "mq-tick", x: p.right, y: p.top - 9, "text-anchor": "end" },
          `– – all weights: ${word(g)}`,
        ),
      );
    };

    // as wide as the margin
    const brief = v => (v && Math.abs(v) < 1e-3 ? v.toExponential().replaceAll("-", "−") : fmt(v, 2));
    const drawDetail = (g, c) => {
      const p = detail,
        start = c.row * length,
        stop = start + length,
        own = x.subarray(start, stop),
        after = g.hat.subarray(start, stop);
      const [a, b] = extent([...own, ...after, 0]), spare = 0.12 * (b - a) || 1;
      const u = linear([-0.5, length - 0.5], [p.left, p.right]), y = linear([a - spare, b + spare], [p.bottom, p.top]);
      const pieces = g.per
        ? g.pieces.slice(c.row * g.per, (c.row + 1) * g.per)
        : [{ ...g.pieces[0], a: start, b: stop }];
      let grid = "", cuts = "";
      for (const { a: from, b: to, s, z } of pieces) {
        const left = u(from - start - 0.5), right = u(to - start - 0.5), gap = y(0) - y(s);
        if (from > start) cuts += `M${left.toFixed(1)} ${p.top}V${p.bottom}`;
        if (gap < 3) continue;
        for (let k = g.n; k <= g.p; k++) {
          const v = s * (k - z);
          if (v >= y.domain[0] && v <= y.domain[1])
            grid += `M${(left + 2).toFixed(1)} ${y(v).toFixed(1)}H${(right - 2).toFixed(1)}`;
        }
      }
      const r = clamp((u(1) - u(0)) / 4, 1.2, 4.5), dot = clamp((u(1) - u(0)) / 5, 1.2, 4);
      const all = length === 1 ? "weight" : `${fmt(length, 6)} weights`,
        ticks = length <= 30 ? Array.from(own.keys()) : u.ticks(6);
      p.axisY(y, { label: `channel ${c.row}: its ${all} before and after`, ticks: 4, grid: false, format: brief });
      p.axisX(u, {
        values: ticks.filter(v => v >= 0 && v < length && Number.isInteger(v)),
        format: v => fmt(v, 6),
        label: "weight",
      });
      p.layer("grid").replaceChildren(
        stroke("mq-blue mq-thin", grid, { opacity: 0.4 }),
        stroke("mq-soft mq-thin mq-dashed", cuts),
        svg("line", { class: "mq-axis", x1: p.left, x2: p.right, y1: y(0), y2: y(0) }),
      );
      const errors = Array.from(own, (v, i) => `M${u(i).toFixed(1)} ${y(v).toFixed(1)}V${y(after[i]).toFixed(1)}`).join(
        "",
      );
      p.layer("weights").replaceChildren(
        stroke("mq-red", errors),
        ...Array.from(own, (v, i) =>
          svg("circle", { class: "mq-area mq-soft", cx: u(i).toFixed(1), cy: y(v).toFixed(1), r }),
        ),
        ...Array.from(after, (v, i) =>
          svg("rect", {
            class: "mq-area mq-blue",
            x: (u(i) - 1.4 * dot).toFixed(1),
            y: (y(v) - dot / 2.5).toFixed(1),
            width: (2.8 * dot).toFixed(1),
            height: (dot / 1.25).toFixed(1),
            rx: 1,
          }),
        ),
      );
    };

    const drawAll = g => {
      order = g.channels.map(c => c.row);
      if (w.get("order") === "sorted") order.sort((a, b) => g.channels[b].most - g.channels[a].most);
      rank = [];
      order.forEach((row, i) => { rank[row] = i; });
      xs = linear([0, rows], [ranges.left, ranges.right]);
      drawRanges(g);
      drawQuality(g);
    };

    let drawn = "", last = null; // another channel alone redraws neither ranges nor SQNR
    return w.start(() => {
      const q = Object.fromEntries(["bits", "granularity", "group", "symmetric"].map(k => [k, w.get(k)]));
      group.limit({ disabled: q.granularity !== "group" });
      const state = JSON.stringify([q, w.get("order"), w.get("log"), ranges.width, quality.width]);
      const fresh = state !== drawn, g = fresh ? analyse(x, rows, q) : last, c = g.channels[w.get("channel")];
      [drawn, last] = [state, g];
      if (fresh) drawAll(g);
      drawChosen(c);
      drawDetail(g, c);
      const live = g.channels.filter(v => !v.dead), gone = live.filter(v => v.wiped).length, dead = rows - live.length;
      const worst = live.reduce((a, b) => (b.sqnr < a.sqnr ? b : a));
      const used = live.map(v => v.levels).sort((a, b) => a - b)[live.length >> 1];
      const each = w.get("scale_bits") + (q.symmetric ? 0 : q.bits),
        many = g.pieces.length,
        bytes = Math.ceil((many * each) / 8);
      const total = word(g), size = bytes < 1e4 ? `${fmt(bytes, 5)} B` : `${fmt(bytes / 1000)} kB`;
      out.set({
        sqnr: total, worst: word(worst), wiped: `${gone} of ${live.length}`, levels: `${used} of ${g.p - g.n + 1}`,
        scales: fmt(many, 7), size, cost: fmt(q.bits + many * each / x.length, 4), dead: `${dead} of ${rows}`,
      });
      const levels = n => `${n} ${n === 1 ? "level" : "levels"}`;
      const mine = g.per ? g.pieces.slice(c.row * g.per, (c.row + 1) * g.per) : g.pieces,
        [s0, s1] = extent(mine.map(v => v.s));
      one.set({
        range: `${fmt(c.low, 2)} to ${fmt(c.high, 2)}`, scale: s0 === s1 ? fmt(s0) : `${fmt(s0, 2)} to ${fmt(s1, 2)}`,
        used: String(c.levels), sqnr: word(c),
      });

      const whose = {
        tensor: "one scale for the whole tensor",
        channel: "a scale for each channel",
        group: `a scale for every ${q.group} weights`,
      }[q.granularity];
      const fate = gone ? `${gone} of ${live.length} live channels become all zero` : "no live channel is lost";
      const text = `${q.bits} bits, ${whose}: ${fate}, `
        + `the worst has ${word(worst)} against ${total} for all weights together.`
        + (dead ? ` ${dead} ${dead === 1 ? "channel is" : "channels are"} dead (×): about zero already before.` : "");
      caption.set(text);
      ranges.describe(`The range of each of ${rows} channels, with the grid over it. ${text}`);
      quality.describe(`SQNR of each channel. ${text}`);
      detail.describe(`Channel ${c.row} before and after: its weights lie from ${fmt(c.low)} to ${fmt(c.high)} `
        + `and use ${levels(c.levels)}; SQNR: ${word(c)}.`);
    });
  },
};
