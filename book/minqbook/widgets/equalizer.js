// Two layers, one scale a channel between them: ranges move, the output stays, the grid fits better.
import { clamp, fakeQuantize, scaleZeroPoint, sqnr } from "./quantize.js";
import { extent, floats } from "./kit/data.js";
import { svg, tsub } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linear, logarithmic } from "./kit/scales.js";

const FAINT = 1e-4; // of the largest range of its layer: a channel below it computes next to nothing
const SQNR_ROWS = [["w1", "W", "1"], ["w2", "W", "2"], ["y", "y", ""]];

/** Cut the packed floats into W1 (C, K), b1 (C), W2 (outputs, C), x; all in float64. */
export function unpackPair(data, [C, K, out, N], depthwise) {
  const all = Float64Array.from(data), ends = [C * K, C, out * C].reduce((e, n) => [...e, e.at(-1) + n], [0]);
  const [w1, b1, w2] = [0, 1, 2].map(i => all.slice(ends[i], ends[i + 1]));
  const P = { C, K, out, N, depthwise, w1, b1, w2, x: all.slice(ends[3]) };
  P.r1 = Array.from({ length: C }, (_, i) => Math.max(...w1.subarray(i * K, (i + 1) * K).map(Math.abs)));
  P.r2 = Array.from({ length: C }, (_, i) =>
    Math.max(...Array.from({ length: out }, (_, o) => Math.abs(w2[o * C + i]))),
  );
  return P;
}

/** s_i = sqrt(r1_i / r2_i), eq. (22); a channel without range keeps 1. */
export const equalScales = (r1, r2) => r1.map((r, i) => (r > 0 && r2[i] > 0 ? Math.sqrt(r) / Math.sqrt(r2[i]) : 1));

/** S^-1 W1, S^-1 b1, W2 S, eq. (21). */
export const scaledPair = ({ C, K, w1, b1, w2 }, s) => ({
  w1: w1.map((v, j) => v / s[Math.floor(j / K)]), b1: b1.map((v, i) => v / s[i]), w2: w2.map((v, j) => v * s[j % C]),
});

/** W2 ReLU(W1 x + b1) of all inputs, (N, outputs). */
export function pairOutput({ C, K, out, N, x, depthwise }, { w1, b1, w2 }) {
  const y = new Float64Array(N * out), hidden = new Float64Array(C);
  for (let n = 0; n < N; n++) {
    for (let i = 0; i < C; i++) {
      const from = depthwise ? (n * C + i) * K : n * K;
      let sum = b1[i];
      for (let k = 0; k < K; k++) sum += w1[i * K + k] * x[from + k];
      hidden[i] = Math.max(sum, 0);
    }
    for (let o = 0; o < out; o++) {
      let sum = 0;
      for (let i = 0; i < C; i++) sum += w2[o * C + i] * hidden[i];
      y[n * out + o] = sum;
    }
  }
  return y;
}

/** A whole tensor with one symmetric min-max scale: {hat, scale, sqnr}. */
export function roundTensor(w, bits) {
  const options = { signed: true, symmetric: true }, [s] = scaleZeroPoint(...extent(w), bits, options);
  const hat = w.map(v => fakeQuantize(v, s, 0, bits, options));
  return { hat, scale: s, sqnr: sqnr(w, hat) };
}

/** Everything about the pair with scales s: its ranges, SQNRs, how far the output moved. */
export function assess(P, s, bits) {
  const pair = scaledPair(P, s), q1 = roundTensor(pair.w1, bits), q2 = roundTensor(pair.w2, bits);
  const r1 = P.r1.map((r, i) => r / s[i]), r2 = P.r2.map((r, i) => r * s[i]);
  const g = {
    s,
    pair,
    r1,
    r2,
    max1: Math.max(...r1),
    max2: Math.max(...r2),
    step1: q1.scale,
    step2: q2.scale,
    w1: q1.sqnr,
    w2: q2.sqnr,
  };
  if (!P.N) return g;
  P.y ??= pairOutput(P, P);
  const y = pairOutput(P, pair), yHat = pairOutput(P, { w1: q1.hat, b1: pair.b1, w2: q2.hat });
  const moved = y.reduce((most, v, i) => Math.max(most, Math.abs(v - P.y[i])), 0);
  return { ...g, y: sqnr(P.y, yHat), moved };
}

const inDecibels = v => (Number.isFinite(v) ? `${fmt(v)} dB` : fmt(v));
const strokePath = (kind, d, more = {}) => svg("path", { class: `mq-stroke ${kind}`, d, ...more });

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const P = unpackPair(floats(w.get("data")), w.get("sizes"), w.get("depthwise")), { C } = P;
    const ones = P.r1.map(() => 1), goal = equalScales(P.r1, P.r2);
    const top1 = Math.max(...P.r1), top2 = Math.max(...P.r2);
    const faint = i => P.r1[i] < FAINT * top1 || P.r2[i] < FAINT * top2;
    const live = P.r1.map((_, i) => i).filter(i => !faint(i));
    // One axis for both layers and all scales: a channel can go as far as both of its bars stay on it.
    const most = 1.6 * Math.max(top1, top2, ...live.map(i => Math.sqrt(P.r1[i] * P.r2[i])));
    const least = Math.min(
      most / 100,
      0.5 * Math.min(...live.flatMap(i => [P.r1[i], P.r2[i], Math.sqrt(P.r1[i] * P.r2[i])])),
    );
    const limits = i =>
      faint(i) ? [1, 1] : [Math.max(P.r1[i] / most, least / P.r2[i]), Math.min(P.r1[i] / least, most / P.r2[i])];

    const put = (i, s) => {
      motion.pause();
      const [a, b] = limits(i), scales = [...w.get("scales")];
      scales[i] = clamp(s, a, b);
      w.set("scales", scales);
    };
    let from = null, to = null, spent = 0;
    const motion = w.loop(dt => {
      spent = Math.min(1, spent + dt / 0.9);
      const k = spent * spent * (3 - 2 * spent);
      w.set("scales", spent === 1 ? to : to.map((s, i) => from[i] * (s / from[i]) ** k));
      if (spent === 1) motion.pause();
    });
    const glide = scales => {
      [from, to, spent] = [w.get("scales"), scales, 0];
      if (w.still()) { motion.pause(); w.set("scales", scales); } else motion.play();
    };

    const channel = w.slider({ trait: "channel", label: "Channel", min: 0, max: C - 1, format: v => fmt(v, 6) });
    const scaleOf = w.slider({
      label: "Its scale s",
      log: true,
      min: 0.1,
      max: 10,
      value: 1,
      onInput: s => put(w.get("channel"), s),
    });
    w.controls(channel, scaleOf, w.slider({ trait: "bits", label: "Bits", min: 2, max: 8 }));
    const one = w.button({
      label: "Equalize this channel",
      onClick: () => glide(w.get("scales").map((s, i) => (i === w.get("channel") ? goal[i] : s))),
    });
    const all = w.button({ label: "Equalize all", onClick: () => glide([...goal]) });
    const reset = w.button({ label: "Reset", onClick: () => glide(ones) });
    w.controls(
      one,
      all,
      reset,
      w.segmented({
        trait: "log",
        label: "Axis",
        options: [
          [true, "logarithmic"],
          [false, "linear"],
        ],
      }),
    );

    const p = w.plot({ height: x => (x < 480 ? 340 : 380), margin: { top: 26, right: 12, bottom: 26, left: 44 } });
    w.add(p);
    w.legend([
      ["line soft", "as trained"],
      ["dashed blue", "range of the whole layer: the grid ends here"],
      ["hatch", "below half a step: rounds to 0"],
    ]);
    const levels = w.plot({ height: P.N ? 132 : 102, margin: { top: 28, right: 104, bottom: 24, left: 30 } });
    w.add(levels);
    const out = w.readouts([
      ["s", "scale s of the channel"],
      ["r1", "its range in layer 1"],
      ["r2", "its range in layer 2"],
      ...(P.N
        ? [
            ["moved", "largest change of y", "largest |y − y'| over all inputs, before any quantization, in float64"],
            ["error", "SQNR of quantized y", "both layers quantized, over all inputs"],
          ]
        : []),
    ]);
    const caption = w.caption();

    let xs = linear([0, C], [0, 1]);
    w.listen(p.svg, "click", e => {
      if (e.target.closest(".mq-handle")) return;
      const box = p.svg.getBoundingClientRect();
      w.set("channel", clamp(Math.floor(xs.invert((e.clientX - box.left) * p.width / box.width)), 0, C - 1));
    });
    p.svg.style.cursor = "pointer";
    // Up is more range in layer 1, so a smaller s.
    const knob = p.handle({
      label: "Range of the channel in layer 1", vertical: true, tone: "green",
      onInput: v => put(w.get("channel"), P.r1[w.get("channel")] / 2 ** v),
    });

    const drawBars = (g, i, before) => {
      const log = w.get("log"), middle = Math.round((p.top + p.bottom) / 2), gap = 11;
      xs = linear([0, C], [p.left, p.right]);
      const axis = range => (log ? logarithmic([least, most], range) : linear([0, most], range));
      const up = axis([middle - gap, p.top]), down = axis([middle + gap, p.bottom]), floor = log ? least : 0;
      const layers = [
        {
          y: up,
          r: g.r1,
          r0: P.r1,
          base: middle - gap,
          end: p.top,
          max: g.max1,
          step: g.step1,
          tone: "mq-blue",
          n: "1",
        },
        {
          y: down,
          r: g.r2,
          r0: P.r2,
          base: middle + gap,
          end: p.bottom,
          max: g.max2,
          step: g.step2,
          tone: "mq-purple",
          n: "2",
        },
      ];
      const wide = xs(1) - xs(0), pad = wide < 4 ? 0.4 : clamp(0.2 * wide, 1, 5);
      const box = (j, a, b) =>
        `M${(xs(j) + pad).toFixed(1)} ` +
        `${a.toFixed(1)}H${(xs(j + 1) - pad).toFixed(1)}V${b.toFixed(1)}H${(xs(j) + pad).toFixed(1)}Z`;
      const at = (L, v) => L.y(clamp(v, floor, most)), moved = before !== g;
      const values = log ? up.ticks(3) : up.ticks(3).filter(v => v > 0);
      const ticks = L => values.flatMap(v => [
        svg("line", { class: "mq-grid", x1: p.left, x2: p.right, y1: L.y(v), y2: L.y(v) }),
        svg("text", { class: "mq-tick", x: p.left - 8, y: L.y(v) + 4, "text-anchor": "end" }, fmt(v)),
      ]);
      p.layer("axis").replaceChildren(...layers.flatMap(ticks));
      p.layer("lost").replaceChildren(...layers.flatMap(L => {
        const [a, b] = [at(L, L.step / 2), L.base],
          place = { x: p.left, y: Math.min(a, b), width: p.right - p.left, height: Math.abs(a - b) };
        return place.height < 1
          ? []
          : [svg("rect", { class: "mq-veil", ...place }), svg("rect", { fill: p.hatch, ...place })];
      }));
      p.layer("bars").replaceChildren(
        ...layers.flatMap(L =>
          [
            svg("path", {
              class: `mq-area ${L.tone}`,
              opacity: 0.42,
              d: live.map(j => box(j, at(L, L.r[j]), L.base)).join(""),
            }),
            svg("path", {
              class: `mq-area ${L.tone}`,
              d: live
                .map(j => {
                  const v = at(L, L.r[j]);
                  return box(j, v, v + (L.n === "1" ? 2 : -2));
                })
                .join(""),
            }),
            moved
              ? strokePath(
                  "mq-soft",
                  live
                    .filter(j => Math.abs(g.s[j] - 1) > 1e-9)
                    .map(
                      j => `M${(xs(j) + pad).toFixed(1)} ${at(L, L.r0[j]).toFixed(1)}H${(xs(j + 1) - pad).toFixed(1)}`,
                    )
                    .join(""),
                )
              : null,
            strokePath(
              "mq-soft mq-thin",
              ones
                .map((_, j) => j)
                .filter(faint)
                .map(j => {
                  const u = xs(j + 0.5),
                    v = L.base + (L.n === "1" ? -6 : 6),
                    r = Math.min(3, wide / 2.2);
                  return `M${u - r} ${v - r}l${2 * r} ${2 * r}M${u - r} ${v + r}l${2 * r} ${-2 * r}`;
                })
                .join(""),
            ),
          ].filter(Boolean),
        ),
      );
      // The tensor's own range is that of its widest channel; what is below half a step is lost.
      const name = (L, y, words, kind = "") =>
        svg("text", { class: `mq-halo ${L.tone} ${kind}`, x: p.right, y, "text-anchor": "end" }, words);
      p.layer("range").replaceChildren(...layers.flatMap(L => {
        const v = at(L, L.max),
          sign = L.n === "1" ? -1 : 1,
          lost = at(L, L.step / 2),
          tall = Math.abs(lost - L.base) > 15;
        return [
          strokePath(`${L.tone} mq-dashed`, `M${p.left} ${v.toFixed(1)}H${p.right}`),
          name(
            L,
            v + (sign < 0 ? -7 : 16),
            [...tsub("max |W", L.n), svg("tspan", { dy: -3 }, `| = ${fmt(L.max)}`)],
            "mq-strong",
          ),
          tall
            ? svg("text", { class: "mq-halo mq-red mq-tick", x: p.left + 6, y: (lost + L.base) / 2 + 4 }, "rounds to 0")
            : null,
        ].filter(Boolean);
      }));
      p.layer("names").replaceChildren(
        svg("text", { class: "mq-name", x: 2, y: 12 }, "range of each channel in layer 1"),
        svg("text", { class: "mq-name", x: 2, y: p.height - 6 }, "and in layer 2"),
      );
      const every = Math.max(1, Math.ceil(30 / wide)),
        step = [1, 2, 4, 5, 8, 10, 16, 20, 32, 50].find(v => v >= every) ?? 100;
      const apart = j => Math.abs(j - i) * wide > 20;
      p.layer("channels").replaceChildren(
        ...ones
          .map((_, j) => j)
          .filter(j => (j % step === 0 && apart(j)) || j === i)
          .map(j =>
            svg(
              "text",
              {
                class: `mq-tick ${j === i ? "mq-green mq-strong" : ""}`,
                x: xs(j + 0.5),
                y: middle + 4,
                "text-anchor": "middle",
              },
              String(j),
            ),
          ),
      );
      const [u, v] = [xs(i) + pad - 2.5, xs(i + 1) - pad + 2.5], [a, b] = layers.map(L => at(L, L.r[i]));
      const frame = (y0, y1) => `M${u} ${y0}V${y1}H${v}V${y0}`;
      p.layer("picked").replaceChildren(...(faint(i) ? [] : [
        strokePath("mq-green", frame(layers[0].base, a) + frame(layers[1].base, b)),
      ]));
      const [s0, s1] = limits(i), r = P.r1[i];
      knob.show(!faint(i));
      if (!faint(i)) knob.place({
        x: xs(i + 0.5), y: a, value: Math.log2(r / g.s[i]), min: Math.log2(r / s1), max: Math.log2(r / s0), step: 0.05,
        text: `${fmt(g.r1[i])}, scale ${fmt(g.s[i])}`, invert: y => Math.log2(Math.max(up.invert(y), least)),
      });
    };

    const drawLevels = (g, before) => {
      const q = levels, rows = SQNR_ROWS.filter(([key]) => key in g), finite = v => (Number.isFinite(v) ? v : 0);
      const high =
        10 *
        Math.ceil(
          (Math.max(...rows.flatMap(([key]) => [finite(g[key]), finite(before[key]), finite(ideal[key])])) + 2) / 10,
        );
      const low = Math.min(0, ...rows.flatMap(([key]) => [finite(g[key]), finite(before[key])]));
      const x = linear([low, high], [q.left, q.right]),
        row = (q.bottom - q.top) / rows.length,
        at = v => x(clamp(v, low, high));
      q.axisX(x, { ticks: 5, grid: true });
      q.layer("rows").replaceChildren(
        svg(
          "text",
          { class: "mq-name", x: 2, y: 14 },
          q.width < 480
            ? "SQNR in dB: now, and as trained"
            : "SQNR in dB of both weights, and of y when both are quantized: now, and as trained",
        ),
        ...rows.flatMap(([key, word, low], j) => {
          const y = q.top + (j + 0.5) * row,
            tone = ["mq-blue", "mq-purple", "mq-ink"][j],
            [a, b] = [at(before[key]), at(g[key])];
          const gain = g[key] - before[key],
            text =
              Math.abs(gain) >= 0.05 && Number.isFinite(gain)
                ? `${inDecibels(g[key])} (${gain > 0 ? "+" : "−"}${fmt(Math.abs(gain), 2)})`
                : inDecibels(g[key]);
          const right = Math.max(a, b);
          return [
            svg("text", { class: `mq-strong ${tone}`, x: 2, y: y + 4 }, low ? tsub(word, low) : word),
            strokePath(`${tone} mq-thick`, `M${a} ${y}H${b}`, { opacity: 0.5 }),
            svg("circle", { class: "mq-stroke mq-soft", cx: a, cy: y, r: 4 }),
            svg("circle", { class: `mq-area ${tone}`, cx: b, cy: y, r: 5 }),
            svg("text", { class: "mq-halo mq-strong", x: right + 10, y: y + 4 }, text),
          ];
        }),
      );
    };

    const start = {}, best = {};
    let ideal = {};
    return w.start(() => {
      const bits = w.get("bits"), s = w.get("scales"), i = w.get("channel"), plain = s.every(v => v === 1);
      const before = (start[bits] ??= assess(P, ones, bits)), g = plain ? before : assess(P, s, bits);
      ideal = (best[bits] ??= assess(P, goal, bits));
      const [a, b] = limits(i);
      scaleOf.limit({ min: Math.min(a, s[i], 0.999), max: Math.max(b, s[i], 1.001), disabled: faint(i) });
      if (scaleOf.value !== s[i]) scaleOf.value = s[i];
      one.limit({ disabled: faint(i) || Math.abs(s[i] / goal[i] - 1) < 1e-9 });
      all.limit({ disabled: s.every((v, j) => Math.abs(v / goal[j] - 1) < 1e-9) });
      reset.limit({ disabled: plain });
      drawBars(g, i, before);
      drawLevels(g, before);
      out.set({ s: g.s[i], r1: g.r1[i], r2: g.r2[i], ...(P.N ? { moved: g.moved, error: inDecibels(g.y) } : {}) });

      const gains = `SQNR ${inDecibels(g.w1)} for the weights of layer 1, ${inDecibels(g.w2)} for those of layer 2`;
      const mine = faint(i) ? `Channel ${i} is dead (×): there is nothing to move.`
        : `Channel ${i}: s = ${fmt(g.s[i])}, range ${fmt(g.r1[i])} in layer 1 and ${fmt(g.r2[i])} in layer 2`
          + `${Math.abs(s[i] / goal[i] - 1) < 1e-6 ? ", equal" : ""}.`;
      const gain = g.y - before.y,
        more =
          Number.isFinite(gain) && Math.abs(gain) >= 0.05
            ? ` (${fmt(Math.abs(gain), 2)} dB ${gain > 0 ? "more" : "less"} than as trained)`
            : "";
      const result = P.N
        ? ` With both quantized, the SQNR of y is ` +
          `${inDecibels(g.y)}${more}.` +
          `${plain ? "" : ` Before quantization y moved by at most ${fmt(g.moved, 2)}: only float64 rounding.`}`
        : "";
      const dead = C - live.length,
        gone = dead && !faint(i) ? ` ${dead} ${dead === 1 ? "channel is" : "channels are"} dead (×).` : "";
      const text = `${bits} bits, one scale for each layer: ${gains}.${result} ${mine}${gone}`;
      p.describe(
        `Ranges of ${C} channels in two layers, mirrored. The tensors' ranges are ${fmt(g.max1)} and ${fmt(g.max2)}. ` +
        `${text}`,
      );
      levels.describe(`Now and as trained: ${gains}.${result}`);
      caption.set(text);
    });
  },
};
