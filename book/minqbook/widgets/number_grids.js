// The grids of small integers and small floats under real data: ticks, steps, and what each loses.
import { clamp } from "./quantize.js";
import { bitsOf, nearest, positives, power } from "./floats.js";
import { floats, histogram } from "./kit/data.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent } from "./kit/format.js";
import { histogramPath, linear, logarithmic, stepPath } from "./kit/scales.js";

/** [bits] of a signed integer, or [exponent bits, mantissa bits, what the largest codes mean]. */
export const GRIDS = {
  INT4: [4], "FP4 E2M1": [2, 1, "none"], INT8: [8], "FP8 E4M3": [4, 3, "nan"], "FP8 E5M2": [5, 2, "ieee"],
};

const BEYOND = 1 + 1e-9; // of the largest number: x / s may round up a little

/** Quantize x in blocks: what NumberGrids.result() has in Python. */
export function run(x, grid, { block, powers, reach }) {
  const N = x.length,
    group = Math.min(block, N) || N,
    largest = positives(grid).at(-1),
    e = 2 ** -Math.floor(Math.log2(largest));
  const scale = [], hat = new Float64Array(N);
  let signal = 0, noise = 0, zeros = 0, clipped = 0;
  for (let a = 0; a < N; a += group) {
    const b = Math.min(a + group, N);
    let most = 0;
    for (let i = a; i < b; i++) most = Math.max(most, Math.abs(x[i]));
    most *= reach;
    const s = most === 0 ? 1 : powers ? clamp(power(most) * e, 2 ** -127, 2 ** 127) : most / largest;
    scale.push(s);
    for (let i = a; i < b; i++) {
      const v = x[i], u = v / s;
      hat[i] = s * nearest(u, grid, largest);
      signal += v * v;
      noise += (v - hat[i]) ** 2;
      if (v !== 0 && hat[i] === 0) zeros += 1;
      if (Math.abs(u) > largest * BEYOND) clipped += 1;
    }
  }
  return {
    scale, hat, group, mse: noise / N, sqnr: noise ? 10 * Math.log10(signal / noise) : Infinity,
    zeros: zeros / N, clipped: clipped / N, bits: bitsOf(grid) + (powers ? 8 : 16) / group,
  };
}

const ROW = 26, NAMES = Object.keys(GRIDS);

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const all = floats(model.get("data")), sizes = w.get("sizes");
    const tensors = sizes.map((n, k) => all.subarray(sizes.slice(0, k).reduce((a, b) => a + b, 0)).subarray(0, n));
    const dB = v => (Number.isFinite(v) ? `${fmt(v)} dB` : "exact");

    w.controls(
      ...(sizes.length > 1
        ? [w.select({ trait: "tensor", label: "Data", options: w.get("titles").map((t, k) => [k, t]) })]
        : []),
      w.segmented({ trait: "format", label: "Format", options: NAMES.map(k => [k, k]) }),
    );
    w.controls(
      w.segmented({
        trait: "block",
        label: "One scale for",
        options: [[0, "all"], ...[128, 64, 32, 16].map(k => [k, String(k)])],
      }),
      w.segmented({
        trait: "powers",
        label: "Scales",
        options: [
          [false, "any, 16 bits"],
          [true, "powers of two, 8 bits"],
        ],
      }),
    );
    const block = w.slider({ trait: "shown_block", label: "Block shown", min: 0, max: 1 });
    w.controls(
      w.slider({ trait: "reach", label: "End of the grid, of max |x|", min: 0.02, max: 2, log: true, format: percent }),
      w.slider({ trait: "zoom", label: "Zoom", min: 0, max: 8, format: k => `${2 ** k}×` }),
      block,
    );

    const margin = { left: 78, right: 66 };
    const data = w.plot({ height: 150 + ROW * NAMES.length, margin: { ...margin, top: 12, bottom: 38 } });
    w.add(data);
    const steps = w.plot({ height: 200, margin: { ...margin, top: 28, bottom: 38 } });
    w.add(steps);
    w.legend([
      ["box grey", "the data"],
      ["line blue", "the chosen grid"],
      ["line soft", "the other grids"],
      ["line green", "values of the block shown"],
    ]);
    const out = w.readouts([
      ["sqnr", "SQNR"],
      ["mse", "mean squared error"],
      ["bits", "bits per value", "with the scales"],
      ["zeros", "became 0"],
      ["clipped", "clipped", "beyond the end of the grid"],
      ["scale", "scale s", "of the block shown"],
    ]);
    const caption = w.caption();

    const ticks = (levels, s, x, top, bottom) => {
      let d = "", last = -Infinity;
      for (const v of [...levels.slice(1).map(q => -q).reverse(), ...levels]) {
        const u = x(v * s);
        if (u < x.range[0] - 0.5 || u > x.range[1] + 0.5 || u - last < 0.7) continue; // unseen, or all one line
        d += `M${u.toFixed(1)} ${top}V${bottom}`;
        last = u;
      }
      return d;
    };

    const drawData = (x, results, chosen, own) => {
      const p = data,
        most = Math.max(...x.map(Math.abs)),
        end = (1.04 * most) / 2 ** w.get("zoom"),
        base = p.bottom - ROW * NAMES.length;
      const across = linear([-end, end], [p.left, p.right]), bins = Math.max(20, Math.round((p.right - p.left) / 4));
      const counts = histogram(x, -end, end, bins),
        up = logarithmic([0.5, 1.5 * Math.max(1, ...counts)], [base - 8, p.top]);
      p.axisX(across, { label: "x" });
      p.layer("bars").replaceChildren(
        svg("path", {
          class: "mq-area mq-grey",
          d: histogramPath(counts, -end, end, across, c => up(Math.max(c, 0.5))),
        }),
      );
      const rug = own.filter(v => Math.abs(v) <= end).map(v => `M${across(v).toFixed(1)} ${base - 8}v6`).join("");
      p.layer("rug").replaceChildren(
        svg("path", { class: "mq-stroke mq-green mq-thin", d: w.get("block") ? rug : "" }),
      );
      p.layer("grids").replaceChildren(...NAMES.flatMap((name, k) => {
        const y = base + k * ROW,
          on = name === chosen,
          s = results[name].scale[Math.min(w.get("shown_block"), results[name].scale.length - 1)];
        return [
          on
            ? svg("rect", {
                class: "mq-raised",
                fill: "currentColor",
                opacity: 0.07,
                x: 0,
                y: y + 1,
                width: p.width,
                height: ROW - 2,
                rx: 4,
              })
            : null,
          svg("path", {
            class: `mq-stroke mq-thin ${on ? "mq-blue" : "mq-soft"}`,
            d: ticks(positives(GRIDS[name]), s, across, y + 6, y + ROW - 6),
          }),
          svg("text", { class: on ? "mq-blue mq-strong" : "mq-soft", x: 4, y: y + ROW / 2 + 4 }, name),
          svg(
            "text",
            { class: on ? "mq-blue mq-strong" : "mq-soft", x: p.width - 4, y: y + ROW / 2 + 4, "text-anchor": "end" },
            dB(results[name].sqnr),
          ),
        ].filter(Boolean);
      }));
    };

    /** The distance between neighbours against |x|: flat for integers, along the diagonal for floats. */
    const drawSteps = (x, results, chosen) => {
      const p = steps, most = Math.max(...x.map(Math.abs)), low = most / 2 ** 14, base = p.bottom;
      const across = logarithmic([low, 1.2 * most], [p.left, p.right], 2),
        up = logarithmic([most / 2 ** 16, most], [base, p.top], 2);
      const logs = x.map(v => Math.log2(Math.max(Math.abs(v), low))), [a, b] = across.domain.map(Math.log2);
      const bins = 56,
        counts = histogram(
          logs.filter(v => v > a),
          a,
          b,
          bins,
        ),
        tall = linear([0, Math.max(1, ...counts)], [base, p.top + 30]);
      const name = v => (v >= 0.01 && v < 1e4 ? fmt(v) : `2^${Math.round(Math.log2(v))}`);
      p.axisX(across, { label: "|x|", values: across.ticks(5), format: name });
      p.axisY(up, { label: "distance between neighbours on the grid", values: up.ticks(4), format: name });
      p.layer("bars").replaceChildren(
        svg("path", {
          class: "mq-area mq-grey",
          opacity: 0.5,
          d: histogramPath(counts, a, b, v => across(2 ** v), tall),
        }),
      );
      const order = [...NAMES.filter(k => k !== chosen), chosen];
      p.layer("lines").replaceChildren(...order.map(k => {
        const s = results[k].scale[Math.min(w.get("shown_block"), results[k].scale.length - 1)],
          q = positives(GRIDS[k]).map(v => v * s);
        const points = q.slice(1).map((v, i) => [across(Math.max(q[i], low / 4)), up(v - q[i])]);
        return svg("path", {
          class: `mq-stroke ${k === chosen ? "mq-blue mq-thick" : "mq-soft mq-thin"}`,
          "clip-path": p.clip,
          d: stepPath(points, across(q.at(-1))),
        });
      }));
    };

    return w.start(() => {
      const x = tensors[w.get("tensor")], chosen = w.get("format");
      const options = { block: w.get("block"), powers: w.get("powers"), reach: w.get("reach") };
      const results = Object.fromEntries(NAMES.map(k => [k, run(x, GRIDS[k], options)]));
      const r = results[chosen], blocks = r.scale.length, k = Math.min(w.get("shown_block"), blocks - 1);
      block.limit({ max: Math.max(1, blocks - 1), disabled: blocks === 1 });
      drawData(x, results, chosen, Array.from(x.subarray(k * r.group, (k + 1) * r.group)));
      drawSteps(x, results, chosen);
      out.set({
        sqnr: dB(r.sqnr),
        mse: r.mse,
        bits: fmt(r.bits, 4),
        zeros: percent(r.zeros),
        clipped: percent(r.clipped),
        scale: r.scale[k],
      });
      const best = NAMES.filter(n => bitsOf(GRIDS[n]) === bitsOf(GRIDS[chosen])).sort(
        (a, b) => results[b].sqnr - results[a].sqnr,
      )[0];
      const text =
        `${chosen}, ${blocks === 1 ? "one scale for all" : `${fmt(blocks, 6)} blocks of ${r.group}`}: ` +
        `${dB(r.sqnr)} at ${fmt(r.bits, 4)} bits per value, ` +
        `${percent(r.zeros)} of the values become 0. Of the formats with ${bitsOf(GRIDS[chosen])} bits ` +
        `${best === chosen ? "it is the best here" : `${best} is better here, ${dB(results[best].sqnr)}`}.`;
      caption.set(text);
      data.describe(`Histogram of ${w.get("titles")[w.get("tensor")]} with five grids below. ${text}`);
      steps.describe(
        `Distance between neighbours against the size of the number: the same everywhere for integers, ` +
        `doubling with every power of two for floats. ${text}`,
      );
    });
  },
};
