// What rounding the weights does to a channel's output: its mean moves, by exactly Delta W E[x].
import { clamp, fakeQuantize, scaleZeroPoint, sqnr } from "./quantize.js";
import { extent, floats, histogram } from "./kit/data.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent } from "./kit/format.js";
import { histogramPath, linear } from "./kit/scales.js";

/** Cut the packed floats into W (C, K), b (C) and x, in float64. */
export function unpackLayer(data, [C, K, N], channels, depthwise) {
  const all = Float64Array.from(data);
  return {
    C,
    K,
    N,
    channels,
    depthwise,
    w: all.slice(0, C * K),
    b: all.slice(C * K, C * K + C),
    x: all.slice(C * K + C),
  };
}

/** All weights on their grid: symmetric, min-max, one scale for all or one for each channel. */
export function roundWeights({ C, K, w }, bits, perChannel) {
  const options = { signed: true, symmetric: true }, hat = new Float64Array(w.length), size = perChannel ? K : C * K;
  for (let from = 0; from < w.length; from += size) {
    const part = w.subarray(from, from + size), [s] = scaleZeroPoint(...extent(part), bits, options);
    for (let j = 0; j < size; j++) hat[from + j] = fakeQuantize(part[j], s, 0, bits, options);
  }
  return hat;
}

const averageOf = values => values.reduce((t, v) => t + v, 0) / values.length;

/** W x + b of the channel at a position of `channels`, for all rows. */
export function outputsOf(P, position, w) {
  const c = P.channels[position], y = new Float64Array(P.N);
  for (let n = 0; n < P.N; n++) {
    const from = P.depthwise ? (n * P.channels.length + position) * P.K : n * P.K;
    let sum = P.b[c];
    for (let k = 0; k < P.K; k++) sum += w[c * P.K + k] * P.x[from + k];
    y[n] = sum;
  }
  return y;
}

/** The shift of a channel, twice: measured, E[y_hat] - E[y], and term by term, Delta w_k E[x_k]. */
export function shiftOf(P, position, hat) {
  const { K, N, w } = P, c = P.channels[position], y = outputsOf(P, position, w), yHat = outputsOf(P, position, hat);
  const terms = Array.from({ length: K }, (_, k) => {
    let sum = 0;
    for (let n = 0; n < N; n++) sum += P.x[P.depthwise ? (n * P.channels.length + position) * K + k : n * K + k];
    return (hat[c * K + k] - w[c * K + k]) * (sum / N);
  });
  const mean = averageOf(y), meanHat = averageOf(yHat), spread = Math.sqrt(averageOf(y.map(v => (v - mean) ** 2)));
  const computed = terms.reduce((t, v) => t + v, 0);
  return {
    c,
    y,
    yHat,
    mean,
    meanHat,
    spread,
    terms,
    computed,
    measured: meanHat - mean,
    wiped: hat.subarray(c * K, (c + 1) * K).every(v => v === 0),
    share: spread > 0 ? computed / spread : 0,
  };
}

const levelWord = v => (Number.isFinite(v) ? `${fmt(v)} dB` : fmt(v));
const pathOf = (kind, d, more = {}) => svg("path", { class: `mq-stroke ${kind}`, d, ...more });

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const channels = w.get("channels"),
      P = unpackLayer(floats(w.get("data")), w.get("sizes"), channels, w.get("depthwise"));
    const count = channels.length, { K } = P, place = () => Math.max(0, channels.indexOf(w.get("channel")));

    const known = {};
    const layer = () => (known[`${w.get("bits")} ${w.get("per_channel")}`] ??= (() => {
      const hat = roundWeights(P, w.get("bits"), w.get("per_channel"));
      return channels.map((_, i) => shiftOf(P, i, hat));
    })());

    const picker = w.slider({
      label: "Channel",
      min: 0,
      max: count - 1,
      value: place(),
      format: i => fmt(channels[i], 6),
      onInput: i => w.set("channel", channels[i]),
    });
    if (count > 1) w.controls(w.slider({ trait: "bits", label: "Bits", min: 2, max: 8 }), picker);
    else w.controls(w.slider({ trait: "bits", label: "Bits", min: 2, max: 8 }));
    w.controls(
      w.segmented({
        trait: "per_channel",
        label: "One scale per",
        options: [
          [false, "tensor"],
          [true, "channel"],
        ],
      }),
      w.checkbox({ trait: "corrected", label: "Correct the bias" }),
    );

    const top = w.plot({ height: x => (x < 480 ? 230 : 250), margin: { top: 66, right: 14, bottom: 38, left: 40 } });
    w.add(top);
    w.legend([
      ["box fill", "y, full precision"],
      ["line blue", "ŷ, weights rounded"],
      ["line red", "shift of the mean"],
    ]);
    const parts = w.plot({ height: 190, margin: { top: 30, right: 14, bottom: 38, left: 46 }, grow: 1, min: 260 });
    const strip = w.plot({ height: 190, margin: { top: 30, right: 8, bottom: 38, left: 40 }, grow: 1.2, min: 260 });
    w.add(parts, ...(count > 1 ? [strip] : []));
    const out = w.readouts([
      ["measured", "E[ŷ] − E[y]", "measured: the difference of the two means over all rows"],
      ["computed", "ΔW E[x]", "computed: the error of each weight times the mean of its input, added up"],
      ["share", "shift, share of MSE", "the squared shift, as a share of the mean squared error of ŷ"],
      ["own", "SQNR of this channel"], ["all", count > 1 ? "SQNR of all channels" : "SQNR when corrected"],
    ]);
    const caption = w.caption();

    let xs = linear([0, count], [0, 1]);
    strip.hover(u => {
      const i = Math.floor(xs.invert(u));
      if (i >= 0 && i < count) w.set("channel", channels[i]);
    });

    const drawOutputs = (g, corrected) => {
      const p = top, shift = corrected ? g.computed : 0, hat = g.yHat.map(v => v - shift);
      const [a, b] = extent([...g.y, ...g.yHat, ...g.yHat.map(v => v - g.computed)]), spare = 0.03 * (b - a) || 1;
      const range = [a - spare, b + spare],
        x = linear(range, [p.left, p.right]),
        bins = clamp(Math.round((p.right - p.left) / 9), 20, 80);
      const counts = histogram(g.y, ...range, bins), after = histogram(hat, ...range, bins);
      // A channel whose weights all round to 0 is one tall bar: cut it, or y would vanish beside it.
      const tallest = Math.max(...counts),
        peak = Math.max(...after),
        high = Math.min(Math.max(tallest, peak), 2.5 * tallest);
      const y = linear([0, 1.08 * Math.max(1, high)], [p.bottom, p.top]);
      p.axisY(y, { label: "rows", ticks: 3 });
      p.axisX(x, { label: `output of channel ${g.c}` });
      p.layer("data").replaceChildren(
        svg("path", { class: "mq-area mq-fill", d: histogramPath(counts, ...range, x, y) }),
        svg(
          "g",
          { class: "mq-answer", "clip-path": p.clip },
          svg("path", { class: "mq-area mq-blue", opacity: 0.13, d: histogramPath(after, ...range, x, y) }),
          pathOf("mq-blue", histogramPath(after, ...range, x, y)),
        ),
        ...(peak > y.domain[1]
          ? [
              svg(
                "text",
                {
                  class: "mq-halo mq-blue mq-tick",
                  x: x(range[0] + ((after.indexOf(peak) + 1) * (range[1] - range[0])) / bins) + 6,
                  y: p.top + 14,
                },
                `↑ ${peak} rows`,
              ),
            ]
          : []),
      );
      const m0 = x(g.mean), m1 = x(g.meanHat - shift), flag = p.top - 18, gap = m1 - m0, side = gap < 0 ? -1 : 1;
      const line = (kind, u) => pathOf(kind, `M${u.toFixed(1)} ${flag}V${p.bottom}`);
      const anchor = u => (u < p.left + 40 ? "start" : u > p.right - 40 ? "end" : "middle"); // near the edge
      const close = Math.abs(gap) < 64; // then both names stand outside of the two lines
      const name = (u, kind, words, out) =>
        svg(
          "text",
          {
            class: `mq-halo mq-strong ${kind}`,
            y: flag - 8,
            x: close ? clamp(u + out * 6, p.left, p.right) : u,
            "text-anchor": close
              ? out < 0
                ? u < p.left + 40
                  ? "start"
                  : "end"
                : u > p.right - 40
                  ? "end"
                  : "start"
              : anchor(u),
          },
          words,
        );
      const moved = g.measured - shift, tip = Math.min(7, Math.abs(gap));
      const words = corrected ? "corrected: no shift" : `shift ${fmt(moved)}`;
      p.layer("means", "mq-answer").replaceChildren(
        line("mq-ink", m0),
        line("mq-blue mq-dashed", m1),
        name(m0, "mq-ink", `E[y] ${fmt(g.mean)}`, -side),
        name(m1, "mq-blue", `E[ŷ] ${fmt(g.meanHat - shift)}`, side),
        ...(Math.abs(gap) < 1
          ? []
          : [
              pathOf(
                "mq-red mq-thick",
                `M${m0.toFixed(1)} ${flag + 5}H${m1.toFixed(1)}M${(m1 - side * tip).toFixed(1)} ` +
                `${flag + 5 - tip * 0.7}L${m1.toFixed(1)} ${flag + 5}L${(m1 - side * tip).toFixed(1)} ` +
                `${flag + 5 + tip * 0.7}`,
              ),
            ]),
        svg(
          "text",
          {
            class: `mq-halo mq-strong ${corrected ? "mq-green" : "mq-red"}`,
            y: 14,
            x: clamp((m0 + m1) / 2, p.left + 60, p.right - 60),
            "text-anchor": "middle",
          },
          words,
        ),
      );
    };

    const drawParts = g => {
      const p = parts, ends = [0];
      for (const v of g.terms) ends.push(ends.at(-1) + v);
      const [a, b] = extent(ends), spare = 0.2 * (b - a) || 1, y = linear([a - spare, b + spare], [p.bottom, p.top]);
      const slots = K + (K > 16 ? Math.max(3, K * 0.12) : 1.4),
        x = linear([0, slots], [p.left, p.right]),
        wide = x(1) - x(0),
        pad = wide < 5 ? 0 : 0.14 * wide;
      const box = (u, v, c, d) =>
        `M${u.toFixed(1)} ${y(c).toFixed(1)}H${v.toFixed(1)}V${y(d).toFixed(1)}H${u.toFixed(1)}Z`;
      p.axisY(y, { label: K > 1 ? "ΔW E[x]: added up, weight by weight" : "ΔW E[x]", ticks: 4 });
      const every = Math.ceil(20 / wide), shown = g.terms.map((_, k) => k).filter(k => k % every === 0);
      p.axisX(x, {
        values: shown.map(k => k + 0.5),
        format: v => fmt(v - 0.5, 4),
        label: "weight k of the channel",
        y: p.bottom,
      });
      const from = x(slots) - Math.max(14, 0.9 * wide);
      p.layer("terms", "mq-answer").replaceChildren(
        svg("line", { class: "mq-axis", x1: p.left, x2: p.right, y1: y(0), y2: y(0) }),
        svg("path", {
          class: "mq-area mq-red",
          opacity: 0.5,
          d: g.terms.map((_, k) => box(x(k) + pad, x(k + 1) - pad, ends[k], ends[k + 1])).join(""),
        }),
        pathOf(
          "mq-soft mq-thin",
          ends
            .slice(1)
            .map(
              (v, k) =>
                `M${(x(k) + pad).toFixed(1)} ${y(v).toFixed(1)}H${(k + 1 < K ? x(k + 2) - pad : p.right).toFixed(1)}`,
            )
            .join(""),
        ),
        svg("path", { class: "mq-area mq-red", d: box(from, p.right, 0, g.computed) }),
        svg(
          "text",
          {
            class: "mq-halo mq-red mq-strong",
            x: p.right,
            "text-anchor": "end",
            y: clamp(y(g.computed) + (g.computed < 0 ? 14 : -6), p.top + 8, p.bottom - 3),
          },
          fmt(g.computed),
        ),
      );
    };

    const drawStrip = (all, i, corrected) => {
      const p = strip, [a, b] = extent([0, ...all.map(g => g.share)]), spare = 0.08 * (b - a) || 1;
      const y = linear([a - spare, b + spare], [p.bottom, p.top]);
      xs = linear([0, count], [p.left, p.right]);
      const wide = xs(1) - xs(0), pad = wide < 4 ? 0.3 : 0.16 * wide;
      const box = (j, v) =>
        `M${(xs(j) + pad).toFixed(1)} ` +
        `${y(0).toFixed(1)}H${(xs(j + 1) - pad).toFixed(1)}V${y(v).toFixed(1)}H${(xs(j) + pad).toFixed(1)}Z`;
      p.axisY(y, { label: "shift, in standard deviations of y", ticks: 4 });
      const every = Math.ceil(24 / wide);
      p.layer("bars", "mq-answer").replaceChildren(
        svg("line", { class: "mq-axis", x1: p.left, x2: p.right, y1: y(0), y2: y(0) }),
        svg("rect", {
          class: "mq-area mq-green",
          opacity: 0.14,
          x: xs(i),
          y: p.top - 4,
          width: wide,
          height: p.bottom - p.top + 4,
        }),
        corrected
          ? pathOf("mq-soft mq-thin mq-dashed", all.map((g, j) => box(j, g.share)).join(""))
          : svg("path", { class: "mq-area mq-red", d: all.map((g, j) => box(j, g.share)).join("") }),
        svg("text", { class: "mq-name", x: p.right, y: p.bottom + 32, "text-anchor": "end" }, "channel"),
        ...channels
          .map((c, j) => [c, j])
          .filter(([, j]) => j === i || (j % every === 0 && Math.abs(j - i) * wide > 22))
          .map(([c, j]) =>
            svg(
              "text",
              {
                class: `mq-tick ${j === i ? "mq-green mq-strong" : ""}`,
                x: xs(j + 0.5),
                y: p.bottom + 16,
                "text-anchor": "middle",
              },
              String(c),
            ),
          ),
      );
    };

    return w.start(() => {
      const i = place(), all = layer(), g = all[i], corrected = w.get("corrected"), bits = w.get("bits");
      if (picker.value !== i) picker.value = i;
      drawOutputs(g, corrected);
      drawParts(g);
      if (count > 1) drawStrip(all, i, corrected);
      const centred = q => q.yHat.map(v => v - q.computed), hat = corrected ? centred : q => q.yHat;
      const joined = f => { const t = all.flatMap(q => Array.from(f(q))); return t; };
      const own = sqnr(g.y, hat(g)), other = sqnr(g.y, (corrected ? g.yHat : centred(g)));
      const whole = sqnr(
          joined(q => q.y),
          joined(hat),
        ),
        wholeOther = sqnr(
          joined(q => q.y),
          joined(corrected ? q => q.yHat : centred),
        );
      const error = averageOf(g.yHat.map((v, n) => (v - g.y[n]) ** 2)),
        share = error > 0 ? Math.min(1, g.computed ** 2 / error) : 0;
      out.set({
        measured: fmt(g.measured, 4), computed: fmt(g.computed, 4), share: percent(share), own: levelWord(own),
        all: count > 1 ? levelWord(whole) : levelWord(corrected ? own : other),
      });
      const scale = w.get("per_channel") ? "a scale for each channel" : "one scale for all weights";
      const start = `${bits} bits, ${scale}. Rounding moves the mean of channel ${g.c} from ${fmt(g.mean)} to ` +
        `${fmt(g.meanHat)}, by ${fmt(g.measured)}${g.wiped ? ", as all its weights round to 0" : ""}; ` +
        `ΔW E[x] = ${fmt(g.computed)}.`;
      const kept = corrected
        ? `Taken off the bias, the means agree, and only the spread remains: ` +
          `SQNR ${levelWord(own)} instead of ${levelWord(other)}`
        : `The shift is ${percent(share)} of the channel's squared error; without it, ` +
          `SQNR would be ${levelWord(other)} instead of ${levelWord(own)}`;
      const versus = corrected ? " instead of " : ", corrected ";
      const overall = `, and over all ${count} channels ${levelWord(whole)}${versus}${levelWord(wholeOther)}`;
      const text = `${start} ${kept}${count > 1 ? overall : ""}.`;
      top.describe(`Histograms of the output of channel ${g.c} before and after rounding its weights. ${text}`);
      parts.describe(
        `The error of each of ${K} weights times the mean of its input; they add up to ${fmt(g.computed)}.`,
      );
      const far = all.reduce((q, r) => (Math.abs(r.share) > Math.abs(q.share) ? r : q));
      strip.describe(
        `The shift of ${count} channels in standard deviations of y${corrected ? ", corrected to 0" : ""}; ` +
        `without correction the largest is ${fmt(far.share)}, in channel ${far.c}.`,
      );
      caption.set(text);
    });
  },
};
