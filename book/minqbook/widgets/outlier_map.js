// Activations of a transformer, token by channel: the range of a few outliers, and what it costs.
import { clamp, integerGrid, roundHalfEven, scaleZeroPoint } from "./quantize.js";
import { half } from "./floats.js";
import { bytes, extent } from "./kit/data.js";
import { h, svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent } from "./kit/format.js";
import { linear, logarithmic } from "./kit/scales.js";

const FEW = [1, 2, 3, 4, 6, 8, 16, 32]; // groups to choose from, besides one for each channel
const LEAST = 0.005; // the smallest share of the range to clip to

export const halves = view => {
  const b = bytes(view);
  return Float64Array.from({ length: b.length / 2 }, (_, i) => half(b[2 * i] | (b[2 * i + 1] << 8)));
};

/** minq.ranges.channel_groups: the cut of the sorted widths with the least sum of N r^2. */
export function channelGroups(widths, groups) {
  const C = widths.length, order = Array.from(widths.keys()).sort((a, b) => widths[a] - widths[b] || a - b);
  const square = order.map(i => widths[i] ** 2), cuts = [];
  let best = Float64Array.from({ length: C + 1 }, (_, j) => (j ? j * square[j - 1] : Infinity));
  for (let g = 1; g < groups; g++) {
    const next = new Float64Array(C + 1).fill(Infinity), cut = new Int32Array(C + 1);
    for (let j = 1; j <= C; j++) {
      for (let i = 0; i < j; i++) {
        const total = best[i] + (j - i) * square[j - 1];
        if (total < next[j]) { next[j] = total; cut[j] = i; }
      }
    }
    cuts.push(cut);
    best = next;
  }
  const label = new Int32Array(C);
  let end = C;
  for (let g = groups - 1; g > 0; g--) {
    const start = cuts[g - 1][end];
    for (let k = start; k < end; k++) label[order[k]] = g;
    end = start;
  }
  return label;
}

const decibel = (signal, noise) => (noise === 0 ? Infinity : signal ? 10 * Math.log10(signal / noise) : -Infinity);
const middle = values => values.sort((a, b) => a - b)[values.length >> 1];

/** Quantize (tokens, channels): a group's range, cut at `clip` times its largest size. */
export function cover(x, channels, { bits, groups, clip }) {
  const rows = x.length / channels, [n, p] = integerGrid(bits);
  const low = new Float64Array(channels).fill(Infinity), high = new Float64Array(channels).fill(-Infinity);
  for (let i = 0; i < x.length; i++) {
    const c = i % channels;
    if (x[i] < low[c]) low[c] = x[i];
    if (x[i] > high[c]) high[c] = x[i];
  }
  const group = channelGroups(high.map((v, c) => v - low[c]), groups);
  const ends = Array.from({ length: groups }, () => [Infinity, -Infinity]);
  group.forEach((g, c) => { ends[g] = [Math.min(ends[g][0], low[c]), Math.max(ends[g][1], high[c])]; });
  const limits = ends.map(([a, b]) => clip * Math.max(Math.abs(a), Math.abs(b)));
  const grids = ends.map(([a, b], k) =>
    scaleZeroPoint(clamp(a, -limits[k], limits[k]), clamp(b, -limits[k], limits[k]), bits),
  );
  const int = new Int32Array(x.length), hat = new Float64Array(x.length);
  const signal = new Float64Array(rows),
    noise = new Float64Array(rows),
    seen = Array.from({ length: channels }, () => new Set());
  let rounding = 0, clipping = 0, clipped = 0;
  for (let i = 0; i < x.length; i++) {
    const c = i % channels, row = (i - c) / channels, [s, z] = grids[group[c]];
    const k = roundHalfEven(x[i] / s) + z;
    int[i] = clamp(k, n, p); // eq. (4)
    hat[i] = s * (int[i] - z); // eq. (6)
    const square = (x[i] - hat[i]) ** 2;
    signal[row] += x[i] ** 2;
    noise[row] += square;
    seen[c].add(int[i]);
    if (k < n || k > p) { clipping += square; clipped += 1; } else rounding += square;
  }
  const total = v => v.reduce((a, b) => a + b, 0), N = x.length;
  return {
    low, high, group, limits, grids, int, hat, rounding: rounding / N, clipping: clipping / N, clipped: clipped / N,
    sqnr: decibel(total(signal), total(noise)), typical: middle(Array.from(signal, (v, i) => decibel(v, noise[i]))),
    levels: middle(seen.map(v => v.size)),
  };
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const all = halves(model.get("data")), tokens = w.get("tokens"), titles = w.get("titles");
    const rows = tokens.length, size = all.length / titles.length, channels = size / rows;
    const tensors = titles.map((_, k) => all.subarray(k * size, (k + 1) * size));
    const choices = [...FEW.filter(k => k < channels), channels];
    const nearest = () => choices.findIndex(k => k >= w.get("groups"));
    const dB = v => (Number.isFinite(v) ? `${fmt(v)} dB` : v > 0 ? "exact" : "–");

    w.controls(
      ...(titles.length > 1
        ? [w.select({ trait: "tensor", label: "Activation", options: titles.map((t, k) => [k, t]) })]
        : []),
      w.slider({ trait: "bits", label: "Bits", min: 4, max: 16 }),
    );
    const groups = w.slider({
      label: "Groups of channels",
      value: nearest(),
      min: 0,
      max: choices.length - 1,
      format: k => (choices[k] === channels && k ? `${channels}, one a channel` : String(choices[k])),
      onInput: k => w.set("groups", choices[k]),
    });
    w.on("groups", () => { if (nearest() !== groups.value) groups.value = nearest(); });
    w.controls(
      w.slider({ trait: "clip", label: "Range kept", min: LEAST, max: 1, log: true, format: percent }),
      groups,
    );

    const row = v => clamp(Math.floor(280 / rows), 9, v < 480 ? 13 : 16), wide = Math.max(...tokens.map(t => t.length));
    const side = clamp(8 + 7 * wide, 40, 92), map = { left: side, right: 10, top: 28, bottom: 6 };
    const before = w.plot({ height: v => rows * row(v) + 34, margin: map });
    w.add(before);
    const after = w.plot({ height: v => rows * row(v) + 34 + 30, margin: { ...map, bottom: 36 } });
    w.add(after);
    w.controls(
      w.segmented({ trait: "view", label: "Lower map", options: [["quantized", "quantized"], ["error", "error"]] }),
      w.slider({ trait: "token", label: "Picked token", min: 0, max: rows - 1, format: k => `${k}: ${tokens[k]}` }),
      w.slider({ trait: "channel", label: "Picked channel", min: 0, max: channels - 1 }),
    );
    const cell = w.steps([
      ["x", "x"],
      ["s", "its scale"],
      ["int", h("span", {}, "x", h("sub", {}, "int"))],
      ["hat", "x̂"],
      ["e", "error"],
    ]);
    const spread = w.plot({ height: 210, margin: { left: 46, right: 30, top: 30, bottom: 36 } });
    w.add(spread);
    w.legend([
      ["line soft", "a channel's largest value"],
      ["line blue", "end of its group's grid"],
      ["box blue", "half a step: all below rounds to 0"],
      ["hatch", "clipped"],
    ]);
    const out = w.readouts([
      ["typical", "SQNR, median token"],
      ["sqnr", "SQNR of all values", "dominated by the largest values"],
      ["levels", "integers used", "by the median channel"],
      ["rounding", "rounding error", "mean square"],
      ["clipping", "clipping error", "mean square"],
      ["clipped", "values clipped"],
    ]);
    const caption = w.caption();

    // --- The maps: a pixel for each value, stretched ---
    const pixel = h("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const rgb = name => {
      pixel.clearRect(0, 0, 1, 1);
      pixel.fillStyle = w.color(name);
      pixel.fillRect(0, 0, 1, 1);
      return [...pixel.getImageData(0, 0, 1, 1).data];
    };
    const sheet = h("canvas", { width: channels, height: rows }), ink = sheet.getContext("2d");
    const paint = (p, values, ceiling, tone) => {
      const picture = ink.createImageData(channels, rows), from = rgb("raised"), to = rgb(tone);
      for (let i = 0; i < values.length; i++) {
        const t = Math.min(1, Math.abs(values[i]) / ceiling);
        for (let k = 0; k < 3; k++) picture.data[4 * i + k] = from[k] + t * (to[k] - from[k]);
        picture.data[4 * i + 3] = 255;
      }
      ink.putImageData(picture, 0, 0);
      const tall = (p.bottom - p.top) / rows, font = Math.min(12, tall + 1);
      p.layer("map").replaceChildren(svg("image", {
        x: p.left, y: p.top, width: p.right - p.left, height: p.bottom - p.top, href: sheet.toDataURL(),
        preserveAspectRatio: "none", style: "image-rendering: pixelated",
      }));
      p.layer("tokens").replaceChildren(
        ...tokens.map((t, k) =>
          svg(
            "text",
            {
              class: k === w.get("token") ? "mq-green mq-strong" : "mq-soft",
              x: p.left - 6,
              y: p.top + (k + 0.5) * tall + font / 3,
              "text-anchor": "end",
              style: `font-size: ${font}px`,
            },
            t,
          ),
        ),
      );
      const x = linear([0, channels], [p.left, p.right]), at = w.get("channel"), y = p.top + w.get("token") * tall;
      const u = x(at), v = Math.max(x(at + 1), u + 2);
      p.layer("picked").replaceChildren(
        svg("path", {
          class: "mq-stroke mq-green mq-thin",
          d: `M${(u + v) / 2} ${p.top - 5}V${p.top}M${(u + v) / 2} ${p.bottom}v5`,
        }),
        svg("rect", { class: "mq-stroke mq-green", x: u - 3, y: y - 2, width: v - u + 6, height: tall + 4, rx: 2 }),
      );
      return x;
    };
    const title = (p, text) => p.layer("title").replaceChildren(svg("text", { class: "mq-name", x: 2, y: 14 }, text));
    for (const p of [before, after]) {
      p.hover((u, v) => {
        if (u < p.left || u > p.right || v < p.top || v > p.bottom) return;
        w.set({
          channel: clamp(Math.floor(((u - p.left) / (p.right - p.left)) * channels), 0, channels - 1),
          token: clamp(Math.floor(((v - p.top) / (p.bottom - p.top)) * rows), 0, rows - 1),
        });
      });
    }

    // --- The ranges of the channels, sorted, and the grids over them ---
    const knob = spread.handle({
      label: "End of the widest range",
      vertical: true,
      tone: "blue",
      onInput: v => w.set("clip", Number(clamp(v, LEAST, 1).toPrecision(3))),
    });
    const drawSpread = (g, x, text) => {
      const p = spread, size_ = g.low.map((v, c) => Math.max(Math.abs(v), Math.abs(g.high[c])));
      const width = g.high.map((v, c) => v - g.low[c]),
        order = Array.from(size_.keys()).sort((a, b) => width[a] - width[b] || a - b);
      const top = Math.max(...size_), y = logarithmic([Math.max(top / 2e4, 1e-6), 1.5 * top], [p.bottom, p.top]);
      const u = linear([0, channels], [p.left, p.right]), clip = w.get("clip"), at = v => y(Math.max(v, y.domain[0]));
      let bars = "", end = "", lost = "", cut = "";
      order.forEach((c, k) => {
        const a = u(k).toFixed(1), b = u(k + 1).toFixed(1), e = g.limits[g.group[c]];
        const join = k && g.group[order[k - 1]] === g.group[c] ? "L" : "M";
        bars += `${k ? "L" : "M"}${a} ${at(size_[c]).toFixed(1)}H${b}`;
        end += `${join}${a} ${at(e).toFixed(1)}H${b}`;
        lost += `M${a} ${p.bottom}V${Math.max(p.top, at(g.grids[g.group[c]][0] / 2)).toFixed(1)}H${b}V${p.bottom}Z`;
        if (size_[c] > e)
          cut += `M${a} ${at(e).toFixed(1)}V${at(size_[c]).toFixed(1)}H${Math.max(b, Number(a) + 2)}V` +
            `${at(e).toFixed(1)}Z`;
      });
      p.axisY(y, { label: "size of a value, |x|", ticks: 4 });
      p.axisX(u, { values: [0, channels], label: "channels, the widest at the right" });
      p.layer("lost").replaceChildren(svg("path", { class: "mq-area mq-blue", opacity: 0.16, d: lost }));
      p.layer("cut").replaceChildren(svg("path", { class: "mq-veil", d: cut }), svg("path", { fill: p.hatch, d: cut }));
      p.layer("lines").replaceChildren(
        svg("path", { class: "mq-stroke mq-soft", d: bars }), svg("path", { class: "mq-stroke mq-blue", d: end }),
      );
      const here = order.indexOf(w.get("channel")), right = here > 0.6 * channels;
      p.layer("picked").replaceChildren(
        svg("path", { class: "mq-stroke mq-green mq-thin", d: `M${u(here + 0.5)} ${p.top}V${p.bottom}` }),
        svg(
          "text",
          {
            class: "mq-green mq-strong mq-halo",
            x: u(here + 0.5) + (right ? -8 : 8),
            y: p.bottom - 8,
            "text-anchor": right ? "end" : "start",
          },
          `channel ${w.get("channel")}`,
        ),
      );
      const last = g.limits[g.group[order.at(-1)]];
      knob.place({
        x: p.right + 10,
        y: at(last),
        value: clip,
        min: LEAST,
        max: 1,
        step: 0.01,
        text: `${fmt(last)}, ${percent(clip)} of the range`,
        invert: v => y.invert(v) / (last / clip),
      });
      p.describe(
        `Largest value of each channel, from ${fmt(Math.min(...size_))} to ${fmt(top)}, ` +
        `with the end of its group's grid. ${text}`,
      );
    };

    return w.start(() => {
      const x = tensors[w.get("tensor")],
        g = cover(x, channels, { bits: w.get("bits"), groups: w.get("groups"), clip: w.get("clip") });
      const i = w.get("token") * channels + w.get("channel"),
        error = x.map((v, k) => g.hat[k] - v),
        [s] = g.grids[g.group[w.get("channel")]];
      const ceiling = x.map(Math.abs).sort()[Math.floor(0.99 * x.length)] || 1,
        most = Math.max(...extent(x).map(Math.abs));
      paint(before, x, ceiling, "ink");
      const across = paint(
        after,
        w.get("view") === "error" ? error : g.hat,
        ceiling,
        w.get("view") === "error" ? "red" : "blue",
      );
      after.axisX(across, {
        label: "channel",
        values: across.ticks(6).filter(v => Number.isInteger(v) && v < channels),
      });
      title(before, `|x|, full tone from ${fmt(ceiling)} on; the largest is ${fmt(most)}`);
      title(after, w.get("view") === "error" ? "|x̂ − x|, same tones" : "|x̂|, same tones");
      cell.set(
        { x: fmt(x[i]), s: fmt(s), int: String(g.int[i]), hat: fmt(g.hat[i]), e: fmt(error[i]) },
        { e: Math.abs(error[i]) > Math.abs(x[i]) / 2 },
      );
      out.set({
        typical: dB(g.typical), sqnr: dB(g.sqnr), levels: fmt(g.levels, 6),
        rounding: g.rounding, clipping: g.clipping, clipped: percent(g.clipped),
      });
      const many = w.get("groups"), steps = extent(g.grids.map(([v]) => v));
      const span = `${fmt(steps[0])} to ${fmt(steps[1])}`;
      const ranges =
        many === 1
          ? `one range for all ${channels} channels, a step of ${fmt(steps[0])}`
          : many === channels
            ? `a range for each channel, steps of ${span}`
            : `${many} ranges, steps of ${span}`;
      const text =
        `${w.get("bits")} bits, ${ranges}: ` +
        `the median channel uses ${g.levels} ${g.levels === 1 ? "integer" : "integers"}, ` +
        `the median token has ${dB(g.typical)}.`;
      caption.set(text);
      drawSpread(g, x, text);
      before.describe(
        `${titles[w.get("tensor")]}: ${rows} tokens by ${channels} channels; the largest value is ${fmt(most)}, ` +
        `99 of 100 are below ${fmt(ceiling)}.`,
      );
      after.describe(
        `${w.get("view") === "error" ? "The error of the same values" : "The same values after quantization"}. ${text}`,
      );
    });
  },
};
