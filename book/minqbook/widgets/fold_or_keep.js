// Batch norm folded or kept: which integers of a weight flip when nothing but statistics move.
import { clamp, integerGrid, roundHalfEven, scaleZeroPoint } from "./quantize.js";
import { floats } from "./kit/data.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linear, px } from "./kit/scales.js";

const BITS = 4,
  GRID = { signed: true },
  MOMENTUM = 0.1;
const WAYS = [
  ["fold once", "fold once"],
  ["by the batch", "fold by the batch"],
  ["dynamic", "dynamic"],
  ["keep", "keep"],
];

/** The parts of the data: { weight, gamma, beta, mean, variance, means: [batch], variances: [batch] }. */
export function unpack(all, [channels, size, batches]) {
  let at = 0;
  const take = n => Float64Array.from(all.subarray(at, (at += n)));
  const [weight, gamma, beta, mean, variance] = [channels * size, ...Array(4).fill(channels)].map(take);
  const [means, variances] = [0, 1].map(() => Array.from({ length: batches }, () => take(channels)));
  return { weight, gamma, beta, mean, variance, means, variances };
}

/** One scale for each channel of (channels, size) values, all alike unless perChannel. */
function scalesOf(values, channels, perChannel) {
  const size = values.length / channels;
  const of = part =>
    scaleZeroPoint(
      part.reduce((a, b) => Math.min(a, b)),
      part.reduce((a, b) => Math.max(a, b)),
      BITS,
      {
        ...GRID,
        symmetric: true,
      },
    )[0];
  if (!perChannel) return Array(channels).fill(of(values));
  return Array.from({ length: channels }, (_, k) => of(values.subarray(k * size, (k + 1) * size)));
}

/** What FoldOrKeep.result() has in Python. */
export function result(v, sizes, { eps, way, perChannel, batch, spread, shift }) {
  const [channels, size] = sizes,
    root = variance => variance.map(x => Math.sqrt(x + eps));
  const first = root(v.variance),
    meanB = (batch ? v.means[batch - 1] : v.mean).map((m, k) => m + shift * first[k]);
  const varianceB = (batch ? v.variances[batch - 1] : v.variance).map(x => x * spread);
  const mixed = (a, b) => a.map((x, k) => (1 - MOMENTUM) * x + MOMENTUM * b[k]);
  const [mean, used] =
    way === "fold once"
      ? [v.mean, v.variance]
      : way === "by the batch"
        ? [meanB, varianceB]
        : [mixed(v.mean, meanB), mixed(v.variance, varianceB)];
  const over = roots => v.gamma.map((g, k) => g / roots[k]),
    atFirst = over(first),
    now = over(root(used));
  const times = f => v.weight.map((w, i) => w * f[Math.floor(i / size)]);
  const kept = way === "keep",
    folded = kept ? v.weight : times(atFirst);
  const s = scalesOf(folded, channels, kept || perChannel),
    by = values => values.map((x, i) => x / s[Math.floor(i / size)]);
  const firstPlaces = by(folded),
    places = kept ? firstPlaces : by(times(now));
  const [n, p] = integerGrid(BITS, GRID),
    whole = values => values.map(u => clamp(roundHalfEven(u), n, p) + 0);
  const once = way === "fold once",
    factor = once ? atFirst : over(root(varianceB));
  return {
    places,
    firstPlaces,
    integers: whole(places),
    before: whole(firstPlaces),
    scale: s.map((x, k) => (kept ? x * Math.abs(now[k]) : x)),
    bias: v.beta.map((b, k) => b - now[k] * mean[k]),
    mean: v.beta.map((b, k) => b + (once ? factor[k] * (meanB[k] - v.mean[k]) : 0)),
    deviation: factor.map((f, k) => Math.abs(f) * Math.sqrt(varianceB[k])),
    passes: once || kept ? 1 : 2,
  };
}

const TOLD = {
  "fold once":
    "Batch norm was folded once, with the running statistics. The integers do not know of the batch, and " +
    "neither does the output: it is not normalized any more.",
  "by the batch":
    "The weights are folded with the deviation of this batch. No weight was trained, and yet integers flip.",
  dynamic:
    "The weights are folded with the running deviation, which takes in a tenth of the batch's. " +
    "The output is corrected to the batch's own statistics, for which the layer is computed twice.",
  keep:
    "The weights are rounded as they are, with a scale for each channel, and batch norm follows. " +
    "Statistics move only the scale and the bias.",
};

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const sizes = w.get("sizes"),
      [channels, size, batches] = sizes,
      total = channels * size;
    const v = unpack(floats(model.get("data")), sizes);
    const now = () =>
      result(v, sizes, {
        eps: w.get("eps"),
        way: w.get("way"),
        perChannel: w.get("per_channel"),
        batch: w.get("batch"),
        spread: w.get("spread"),
        shift: w.get("shift"),
      });
    const flipsOf = (r, k) => {
      let count = 0;
      for (let i = k * size; i < (k + 1) * size; i++) if (r.integers[i] !== r.before[i]) count += 1;
      return count;
    };
    w.controls(w.segmented({ trait: "way", label: "Batch norm", options: WAYS }));
    const scales = w.segmented({
      trait: "per_channel",
      label: "Scales",
      options: [
        [false, "one for the tensor"],
        [true, "one a channel"],
      ],
    });
    const next = w.button({
      label: "Next flip",
      onClick: () => {
        const r = now(),
          k = w.get("channel");
        for (let j = 1; j <= channels; j++) {
          if (!flipsOf(r, (k + j) % channels)) continue;
          w.set("channel", (k + j) % channels);
          return;
        }
      },
    });
    w.controls(
      w.slider({
        trait: "batch",
        label: "Batch",
        min: 0,
        max: batches,
        format: b => (b ? `${b} of ${batches}` : "as running"),
      }),
      w.slider({ trait: "spread", label: "its variances ×", log: true, min: 0.25, max: 4 }),
      w.slider({
        trait: "shift",
        label: "its means +",
        min: -2,
        max: 2,
        step: 0.1,
        format: d => `${fmt(d, 2)} σ`,
      }),
      w.slider({
        trait: "channel",
        label: "Channel",
        min: 0,
        max: channels - 1,
        format: k => `${k + 1} of ${channels}`,
      }),
    );
    w.controls(scales, next);
    const field = w.plot({
      height: 16 * Math.min(size, 12) + 64,
      margin: { left: 12, right: 12, top: 30, bottom: 34 },
    });
    w.add(field);
    const line = w.plot({ height: 150, margin: { left: 60, right: 14, top: 28, bottom: 40 } });
    w.add(line);
    w.legend([
      ["box fill", "0"],
      ["box grey", "another integer"],
      ["box red", "an integer that flipped"],
      ["dashed soft", "between two integers"],
    ]);
    const out = w.readouts([
      ["flips", "integers that flip"],
      ["scale", "scale", "of the channel shown, on the device"],
      ["bias", "bias", "of the channel shown, on the device"],
      ["mean", "output mean", "of the channel on this batch, rounding left out"],
      ["deviation", "output deviation"],
      ["passes", "computed"],
    ]);
    const caption = w.caption();

    const drawField = (r, k) => {
      const p = field,
        x = linear([0, channels], [p.left, p.right]),
        y = linear([0, size], [p.top, p.bottom]);
      const shapes = { fill: "", grey: "", red: "" },
        wide = x(1) - x(0),
        high = y(1) - y(0);
      for (let i = 0; i < total; i++) {
        const c = Math.floor(i / size),
          flipped = r.integers[i] !== r.before[i];
        const kind = flipped ? "red" : r.integers[i] === 0 ? "fill" : "grey";
        const width = flipped ? Math.max(3.5, wide) : 0.86 * wide,
          left = x(c) + (wide - width) / 2;
        shapes[kind] += `M${px(left)} ${px(y(i % size) + 1)}h${px(width)}v${px(high - 2)}h${px(-width)}Z`;
      }
      p.layer("cells", "mq-answer").replaceChildren(
        ...Object.entries(shapes).map(([kind, d]) => svg("path", { class: `mq-area mq-${kind}`, d })),
      );
      const at = x(k + 0.5);
      p.layer("mark").replaceChildren(
        svg("path", { class: "mq-area mq-ink", d: `M${at} ${p.top - 2}l5 -8h-10Z` }),
        svg("rect", {
          class: "mq-stroke mq-thin mq-ink",
          x: x(k) - 1,
          y: p.top - 1,
          width: wide + 2,
          height: p.bottom - p.top + 2,
        }),
        svg(
          "text",
          { class: "mq-name", x: 2, y: 12 },
          `${channels} channels of ${size} integers, by their factor γ / σ`,
        ),
        svg("text", { class: "mq-tick", x: p.left, y: p.bottom + 16 }, "smallest"),
        svg("text", { class: "mq-tick", x: p.right, y: p.bottom + 16, "text-anchor": "end" }, "largest"),
      );
    };
    w.listen(field.svg, "pointerdown", event => {
      const box = field.svg.getBoundingClientRect();
      const share = (event.clientX - box.left - field.left) / (field.right - field.left);
      w.set("channel", clamp(Math.floor(share * channels), 0, channels - 1));
    });

    const drawLine = (r, k) => {
      const p = line,
        own = [...r.places.subarray(k * size, (k + 1) * size)],
        first = [...r.firstPlaces.subarray(k * size, (k + 1) * size)];
      const [n, q] = integerGrid(BITS, GRID),
        ends = [...own, ...first].map(u => clamp(u, n - 2, q + 2));
      const low = Math.min(-1, Math.floor(Math.min(...ends))) - 0.3,
        high = Math.max(1, Math.ceil(Math.max(...ends))) + 0.3;
      const x = linear([low, high], [p.left, p.right]),
        rows = [p.top + 16, p.bottom - 14];
      const levels = [],
        edges = [];
      for (let u = n; u <= q; u++) {
        if (u >= low && u <= high && (high - low < 11 || u % 2 === 0)) levels.push(u);
        if (u > n && u - 0.5 >= low && u - 0.5 <= high) edges.push(u - 0.5);
      }
      p.axisX(x, { label: "integers of the grid", values: levels });
      const flipped = own.map((_, j) => r.integers[k * size + j] !== r.before[k * size + j]);
      const at = u => x(clamp(u, low, high));
      p.layer("edges").replaceChildren(
        ...edges.map(u =>
          svg("path", { class: "mq-stroke mq-soft mq-thin mq-dashed", d: `M${x(u)} ${p.top}V${p.bottom}` }),
        ),
        svg("text", { class: "mq-name", x: 2, y: 12 }, `channel ${k + 1}: its weights in steps of the scale`),
        svg("text", { class: "mq-tick", x: 2, y: rows[0] + 4 }, "running"),
        svg("text", { class: "mq-tick", x: 2, y: rows[1] + 4 }, "now"),
      );
      p.layer("dots", "mq-answer").replaceChildren(
        ...own.flatMap((u, j) => {
          const tone = flipped[j] ? "red" : "blue";
          return [
            svg("path", {
              class: `mq-stroke mq-thin mq-${tone}`,
              d: `M${at(first[j])} ${rows[0]}L${at(u)} ${rows[1]}`,
            }),
            svg("circle", { class: "mq-area mq-grey", cx: at(first[j]), cy: rows[0], r: 4 }),
            svg("circle", { class: `mq-area mq-${tone}`, cx: at(u), cy: rows[1], r: flipped[j] ? 6 : 4 }),
          ];
        }),
      );
    };

    return w.start(() => {
      const r = now(),
        k = w.get("channel"),
        way = w.get("way");
      let flips = 0;
      for (let c = 0; c < channels; c++) flips += flipsOf(r, c);
      scales.limit({ disabled: way === "keep" });
      next.limit({ disabled: flips === 0 });
      drawField(r, k);
      drawLine(r, k);
      const wanted = `batch norm's are ${fmt(v.beta[k])} and ${fmt(Math.abs(v.gamma[k]))}`;
      out.set({
        flips: `${fmt(flips, 6)} of ${fmt(total, 6)}`,
        scale: r.scale[k],
        bias: r.bias[k],
        mean: r.mean[k],
        deviation: r.deviation[k],
        passes: r.passes === 1 ? "once" : "twice",
      });
      const text =
        `${TOLD[way]} ${flips ? `${fmt(flips, 6)} of ${fmt(total, 6)} integers flip` : "No integer flips"}. ` +
        `The outputs of channel ${k + 1} have the mean ${fmt(r.mean[k])} and the deviation ` +
        `${fmt(r.deviation[k])}; ${wanted}.`;
      caption.set(text);
      field.describe(`A field of ${fmt(total, 6)} cells, one an integer of the weight. ${text}`);
      line.describe(
        `The ${size} weights of channel ${k + 1} on the grid, with the running statistics and now; ` +
          `${flipsOf(r, k)} of them are rounded to another integer.`,
      );
    });
  },
};
