// A dead start: ranges of 2-bit weights, how many weights become 0, and what gradient is left, while a chain trains.
import { clamp, integerGrid, roundHalfEven } from "./quantize.js";
import { bytes, floats } from "./kit/data.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent, raised } from "./kit/format.js";
import { linePath, linear, logarithmic } from "./kit/scales.js";

const BITS = 2,
  GRID = { signed: true },
  TINY = 2 ** -126;
const STARTS = ["too narrow", "MSE", "min-max", "too wide"],
  SECONDS = 7; // of a whole run

/** Weights, pictures and digits from their bytes: { weights, x, digits, sizes }. */
export function unpack(data, sizes, count) {
  let at = 0;
  const weights = sizes.slice(1).map((outputs, l) => {
    const length = outputs * sizes[l],
      w = Float64Array.from(floats(data.subarray(4 * at, 4 * (at + length))));
    at += length;
    return w;
  });
  const pixels = data.subarray(4 * at, 4 * at + count * sizes[0]);
  const x = Array.from({ length: sizes[0] }, (_, i) =>
    Float64Array.from({ length: count }, (_, r) => pixels[r * sizes[0] + i] / 16),
  );
  return { weights, x, digits: data.subarray(4 * at + count * sizes[0]), sizes };
}

/** Integers of a weight, 1 where they are inside the grid, eq. (37), and the derivative by s, eq. (38). */
function quantized(w, s) {
  const [n, p] = integerGrid(BITS, GRID),
    k = new Float64Array(w.length),
    inside = k.slice(),
    slope = k.slice();
  for (let i = 0; i < w.length; i++) {
    const u = w[i] / s,
      level = roundHalfEven(u);
    k[i] = clamp(level, n, p) + 0;
    inside[i] = k[i] === level ? 1 : 0;
    slope[i] = k[i] - u * inside[i];
  }
  return { k, inside, slope };
}

/** y += k x, picture by picture. */
function addTo(y, k, x) {
  for (let r = 0; r < y.length; r++) y[r] += k * x[r];
}
function dot(a, b) {
  let sum = 0;
  for (let r = 0; r < a.length; r++) sum += a[r] * b[r];
  return sum;
}
const columns = (count, N) => Array.from({ length: count }, () => new Float64Array(N));

/** Mean cross-entropy and the share of right answers; the logits become the derivatives by them. */
function crossEntropy(z, digits) {
  let loss = 0,
    right = 0;
  const N = digits.length;
  for (let r = 0; r < N; r++) {
    const row = z.map(column => column[r]),
      most = Math.max(...row),
      e = row.map(v => Math.exp(v - most));
    const sum = e.reduce((a, b) => a + b, 0);
    if (row.indexOf(most) === digits[r]) right += 1;
    loss += Math.log(sum) - (row[digits[r]] - most);
    z.forEach((column, c) => {
      column[r] = (e[c] / sum - (c === digits[r] ? 1 : 0)) / N;
    });
  }
  return { loss: loss / N, right: right / N };
}

/** The loss of a chain of integer layers with their scales, and its derivative by each rounded weight.
 *  The scales are all multiplied at the end: sums of integers are exact, and so is what ReLU makes of them. */
function lossAndGradients(layers, scales, { x, digits, sizes }) {
  const N = digits.length,
    values = [x],
    gradients = [],
    L = layers.length;
  for (let l = 0; l < L; l++) {
    const y = columns(sizes[l + 1], N),
      { k } = layers[l];
    for (let i = 0; i < k.length; i++) if (k[i]) addTo(y[Math.floor(i / sizes[l])], k[i], values[l][i % sizes[l]]);
    values.push(l < L - 1 ? y.map(column => column.map(v => Math.max(v, 0))) : y);
  }
  let factor = scales.reduce((a, b) => a * b, 1),
    g = values[L].map(column => column.map(v => v * factor));
  const found = crossEntropy(g, digits);
  for (let l = L - 1; l >= 0; l--) {
    const inputs = sizes[l],
      h = values[l],
      { k } = layers[l],
      dW = new Float64Array(k.length);
    factor /= scales[l]; // what came in was that many times the integers
    for (let i = 0; i < k.length; i++) dW[i] = factor * dot(g[Math.floor(i / inputs)], h[i % inputs]);
    gradients.unshift(dW);
    if (l === 0) break;
    const back = columns(inputs, N);
    for (let i = 0; i < k.length; i++) if (k[i]) addTo(back[i % inputs], scales[l] * k[i], g[Math.floor(i / inputs)]);
    g = back.map((column, i) => column.map((v, r) => (h[i][r] > 0 ? v : 0)));
  }
  return { ...found, gradients };
}

const share = (values, test) => values.reduce((sum, v) => sum + (test(v) ? 1 : 0), 0) / values.length;

/** A training that goes on when it is asked for more: run.seen(t) is what was seen before step t + 1. */
export function training(chain, scales, rate) {
  const seen = [],
    p = integerGrid(BITS, GRID)[1];
  let weights = chain.weights,
    s = scales,
    change = null;
  const look = () => {
    const size = s.map(v => Math.max(Math.abs(v), TINY)),
      layers = weights.map((w, l) => quantized(w, size[l]));
    const { loss, right, gradients } = lossAndGradients(layers, size, chain);
    const byWeight = gradients.map((g, l) => g.map((v, i) => v * layers[l].inside[i]));
    const byScale = gradients.map((g, l) => {
      const sum = g.reduce((a, v, i) => a + v * layers[l].slope[i], 0); // eq. (38), divided by sqrt(N p)
      return ((s[l] < 0 ? -1 : 1) * sum) / Math.sqrt(g.length * p);
    });
    seen.push({
      loss,
      right,
      scales: size,
      zeros: layers.map(({ k }) => share(k, v => v === 0)),
      clipped: layers.map(({ inside }) => share(inside, v => v === 0)),
      scaleGradients: byScale,
      weightGradients: byWeight.map(g => Math.sqrt(g.reduce((a, v) => a + v * v, 0) / g.length)),
    });
    change = { byWeight, byScale };
  };
  look();
  return {
    get taken() {
      return seen.length - 1;
    },
    seen(t) {
      while (seen.length <= t) {
        weights = weights.map((w, l) => w.map((v, i) => v - rate * change.byWeight[l][i]));
        s = s.map((v, l) => v - rate * change.byScale[l]);
        look();
      }
      return seen[t];
    },
  };
}

const ROW = 34,
  TONES = { "too narrow": "yellow", MSE: "blue", "min-max": "red", "too wide": "purple" };
const FLOOR = 1e-6; // of the picture of gradients

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const sizes = w.get("sizes"),
      steps = w.get("steps"),
      scales = w.get("scales"),
      L = sizes.length - 1;
    const chain = unpack(bytes(w.get("data")), sizes, w.get("count"));
    const counts = chain.weights.map(v => v.length),
      total = counts.reduce((a, b) => a + b, 0);
    const overall = shares => shares.reduce((sum, v, l) => sum + v * counts[l], 0) / total;
    let rate = 0,
      runs = {}; // of this rate, as far as the reader took them
    const run = () => {
      if (rate !== w.get("rate")) [rate, runs] = [w.get("rate"), {}];
      const start = w.get("start");
      return (runs[start] ??= training(chain, scales[start], rate));
    };

    let exact = 0;
    const stop = () => {
      motion.pause();
      play.label("Run");
    };
    const go = t => {
      stop();
      w.set("step", clamp(t, 0, steps));
    };
    const motion = w.loop(dt => {
      exact = Math.min(steps, exact + (dt * steps) / SECONDS);
      w.set("step", Math.floor(exact));
      if (exact >= steps) stop();
    });
    const play = w.button({
      label: "Run",
      onClick: () => {
        if (motion.playing) {
          stop();
          w.redraw();
          return;
        }
        exact = w.get("step") >= steps ? 0 : w.get("step");
        if (w.still()) {
          go(steps);
          return;
        }
        motion.play();
        play.label("Pause");
      },
    });
    const one = w.button({ label: "One step", onClick: () => go(w.get("step") + 1) });
    const reset = w.button({ label: "Reset", onClick: () => go(0) });
    w.controls(
      w.segmented({
        trait: "start",
        label: "Ranges at the start",
        options: STARTS.map(k => [k, k]),
        onInput: () => go(0),
      }),
    );
    w.controls(
      w.slider({ trait: "rate", label: "Learning rate", log: true, min: 0.003, max: 1, onInput: () => stop() }),
      w.slider({ trait: "step", label: "Steps taken", min: 0, max: steps, onInput: () => stop() }),
      one,
      play,
      reset,
    );
    const height = ROW * L + 62,
      margin = { left: 52, top: 26, bottom: 36, right: 12 };
    const parts = w.plot({ height, margin, min: 250 }),
      slopes = w.plot({ height, margin, min: 250 });
    w.add(parts, slopes);
    const time = w.plot({ height: 190, margin: { left: 40, top: 26, bottom: 38, right: 84 } });
    w.add(time);
    w.legend([
      ["box fill", "weights that are 0"],
      ["box green", "inside the grid, not 0"],
      ["hatch", "clipped"],
      ["box blue", "gradient of the weights"],
      ["box purple", "gradient of the scale"],
    ]);
    const out = w.readouts([
      ["loss", "loss"],
      ["right", "right answers"],
      ["zeros", "weights at 0"],
      ["clipped", "clipped"],
      ["weight", "gradient of weights", "the root of the mean square, over all layers"],
      ["scale", "gradient of scales", "the root of the mean square, over all layers"],
    ]);
    const caption = w.caption();

    const rowNames = (p, title) => [
      svg("text", { class: "mq-name", x: 2, y: 14 }, title),
      ...counts.map((_, l) =>
        svg("text", { class: "mq-tick", x: 2, y: p.top + ROW * (l + 0.5) + 4 }, `layer ${l + 1}`),
      ),
    ];

    const drawParts = r => {
      const p = parts,
        x = linear([0, 1], [p.left, p.right]);
      p.axisX(x, { values: [0, 0.25, 0.5, 0.75, 1], format: v => `${100 * v} %` });
      p.layer("names").replaceChildren(...rowNames(p, "where the weights are"));
      p.layer("bars", "mq-answer").replaceChildren(
        ...counts.flatMap((_, l) => {
          const y = p.top + ROW * l + 5,
            h = ROW - 10,
            zero = r.zeros[l],
            clipped = r.clipped[l],
            from = 1 - clipped;
          const bar = (a, b, more) => svg("rect", { x: x(a), y, width: Math.max(0, x(b) - x(a)), height: h, ...more });
          return [
            bar(0, zero, { class: "mq-area mq-fill" }),
            bar(zero, from, { class: "mq-area mq-green" }),
            bar(from, 1, { fill: p.hatch }),
            bar(from, 1, { class: "mq-stroke mq-thin mq-red", opacity: clipped > 0 ? 1 : 0 }),
            ...(x(zero) - x(0) > 78 ? [svg("text", { x: x(0) + 5, y: y + h / 2 + 4 }, `${percent(zero)} are 0`)] : []),
          ];
        }),
      );
    };

    const drawSlopes = r => {
      const p = slopes,
        x = logarithmic([FLOOR, 10], [p.left, p.right]);
      p.axisX(x, {
        values: [-6, -4, -2, 0].map(k => 10 ** k),
        format: v => (v === 1 ? "1" : `10${raised(Math.round(Math.log10(v)))}`),
      });
      p.layer("names").replaceChildren(...rowNames(p, "size of the gradients that reach them"));
      const bar = (l, size, tone, low) => {
        const y = p.top + ROW * l + (low ? ROW / 2 : 5),
          h = ROW / 2 - 5;
        if (size === 0) return svg("text", { class: `mq-${tone} mq-strong`, x: p.left + 4, y: y + h - 1 }, "exactly 0");
        const end = x(clamp(size, FLOOR * 1.3, 10));
        return svg("rect", { class: `mq-area mq-${tone}`, x: p.left, y, width: end - p.left, height: h - 1 });
      };
      p.layer("bars", "mq-answer").replaceChildren(
        ...counts.flatMap((_, l) => [
          bar(l, r.weightGradients[l], "blue", false),
          bar(l, Math.abs(r.scaleGradients[l]), "purple", true),
        ]),
      );
    };

    const drawTime = t => {
      const p = time,
        start = w.get("start"),
        guess = Math.log(sizes[L]);
      const x = linear([0, steps], [p.left, p.right]),
        y = linear([0, 1.5 * guess], [p.bottom, p.top]);
      const at = v => y(Math.min(v, 1.5 * guess));
      p.axisY(y, { label: "loss", ticks: 3 });
      p.axisX(x, { label: "step" });
      const curve = ([name, r], last) => {
        const points = Array.from({ length: last + 1 }, (_, k) => [x(k), at(r.seen(k).loss)]),
          tone = TONES[name];
        const own = name === start,
          end = points.at(-1);
        return [
          svg("path", { class: `mq-stroke mq-${tone}`, d: linePath(points), opacity: own ? 1 : 0.45 }),
          svg("circle", { class: `mq-area mq-${tone}`, cx: end[0], cy: end[1], r: own ? 4.5 : 2.5 }),
          svg("text", { class: `mq-halo mq-${tone} ${own ? "mq-strong" : ""}`, x: end[0] + 8, y: end[1] + 4 }, name),
        ];
      };
      const others = Object.entries(runs).filter(([name]) => name !== start);
      p.layer("guess").replaceChildren(
        svg("path", { class: "mq-stroke mq-soft mq-thin mq-dashed", d: `M${p.left} ${at(guess)}H${p.right}` }),
        svg("text", { class: "mq-tick", x: p.left + 4, y: at(guess) + 14 }, "the loss of guessing"),
      );
      p.layer("curves", "mq-answer").replaceChildren(
        ...others.flatMap(entry => curve(entry, entry[1].taken)),
        ...curve([start, run()], t),
      );
    };

    const told = (r, zero, clipped, weight) => {
      if (weight === 0) return "Not one weight and not one scale gets a gradient: nothing will ever move.";
      if (clipped > 0.3)
        return (
          `${percent(clipped)} of the weights are clipped and get no gradient of their own. ` +
          `The rounded weights are so small that ${L} layers in a row let hardly any signal through, ` +
          "so the others get little."
        );
      if (zero > 0.8)
        return (
          `${percent(zero)} of the weights are 0. What passes through the few others says little about the pictures, ` +
          "and so do the gradients that come back."
        );
      const alive = percent(1 - zero - clipped);
      return `${alive} of the weights are neither 0 nor clipped, and every layer gets a gradient.`;
    };

    return w.start(() => {
      const t = clamp(w.get("step"), 0, steps),
        r = run().seen(t),
        start = w.get("start");
      const zero = overall(r.zeros),
        clipped = overall(r.clipped);
      const weight = Math.sqrt(overall(r.weightGradients.map(v => v * v)));
      const scale = Math.sqrt(r.scaleGradients.reduce((sum, v) => sum + v * v, 0) / L);
      drawParts(r);
      drawSlopes(r);
      drawTime(t);
      one.limit({ disabled: t >= steps });
      reset.limit({ disabled: t === 0 });
      out.set({
        loss: r.loss,
        right: percent(r.right),
        zeros: percent(zero),
        clipped: percent(clipped),
        weight: weight ? fmt(weight, 2) : "exactly 0",
        scale: scale ? fmt(scale, 2) : "exactly 0",
      });
      const text =
        `${start}, ${t ? `after ${t} ${t === 1 ? "step" : "steps"}` : "before the first step"}: loss ${fmt(r.loss)}, ` +
        `${percent(r.right)} of the answers right (a guess: 10 %). ${told(r, zero, clipped, weight)}`;
      const rows = (a, b) => counts.map((_, l) => `layer ${l + 1} ${a[l]}${b[l]}`).join("; ");
      const shares = rows(r.zeros.map(v => `${percent(v)} at 0, `), r.clipped.map(v => `${percent(v)} clipped`));
      parts.describe(`Shares of the weights: ${shares}.`);
      const [ofWeights, ofScales] = [r.weightGradients, r.scaleGradients].map(v => v.map(g => fmt(Math.abs(g), 2)));
      slopes.describe(`Gradients: ${rows(ofWeights.map(v => `weights ${v}, `), ofScales.map(v => `scale ${v}`))}.`);
      time.describe(
        `The loss over ${t} steps, with a line at ${fmt(Math.log(sizes[L]))}, the loss of guessing. ${text}`,
      );
      if (motion.playing && t < steps) caption.el.textContent = text;
      else caption.set(text);
    });
  },
};
