// AdaRound on a small layer, whole: h(V) of every weight from its fraction to 0 or 1, and the error.
import { clamp, integerGrid, roundHalfEven } from "./quantize.js";
import { floats } from "./kit/data.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linePath, linear } from "./kit/scales.js";

const ZETA = 1.1, GAMMA = -0.1, WARM = 0.2, DRAWS = 200, SECONDS = 9;

const logistic = v => 1 / (1 + Math.exp(-v));
/** h(V) = clamp(sigmoid(V) (zeta - gamma) + gamma; 0, 1), the h of eq. (33). */
export const rectifiedSigmoid = v => clamp(logistic(v) * (ZETA - GAMMA) + GAMMA, 0, 1);
/** The V with h(V) = W / s - floor(W / s): the run starts at the weights themselves. */
export const initialV = (w, s) => {
  const q = (w / s - Math.floor(w / s) - GAMMA) / (ZETA - GAMMA);
  return Math.log(q / (1 - q));
};
/** s clamp(floor(W / s) + h(V); n, p), eq. (33). */
export const softWeight = (w, v, s, [n, p]) => s * clamp(Math.floor(w / s) + rectifiedSigmoid(v), n, p);
/** f_reg = sum 1 - |2 h(V) - 1|^beta. */
export const roundingPenalty = (vs, beta) =>
  vs.reduce((t, v) => t + 1 - Math.abs(2 * rectifiedSigmoid(v) - 1) ** beta, 0);
/** Half a cosine from 20 to 2 after the warm start. */
export function annealedBeta(step, steps, warm = WARM, start = 20, end = 2) {
  const first = warm * (steps - 1), last = steps - 1;
  const share = first >= last ? 1 : clamp((step - first) / (last - first), 0, 1);
  return end + (start - end) * (1 + Math.cos(Math.PI * share)) / 2;
}

/** A layer ready to be rounded: fractions, the ends of the grid, and the error of any weights. */
export function layerOf(data, [rows, K], scales, bits) {
  const w = Float64Array.from(data.subarray(0, rows * K)), gram = Float64Array.from(data.subarray(rows * K));
  const grid = integerGrid(bits, { signed: true }), [n, p] = grid, N = w.length;
  const s = Float64Array.from(w, (_, j) => scales[scales.length > 1 ? Math.floor(j / K) : 0]);
  const down = w.map((v, j) => Math.floor(v / s[j])), fraction = w.map((v, j) => v / s[j] - down[j]);
  const free = Array.from(down, d => d >= n && d < p); // elsewhere the grid has ended: nothing to decide
  const up = Uint8Array.from(w, (v, j) => roundHalfEven(v / s[j]) - down[j]);
  const L = { rows, K, N, w, gram, grid, s, down, fraction, free, up };
  L.put = (h, out) => {
    for (let j = 0; j < N; j++) out[j] = s[j] * clamp(down[j] + (free[j] ? h[j] : 0), n, p);
    return out;
  };
  /** (w~ - w) G of every output into `slope`, and (w~ - w) G (w~ - w)^T into `each`; returns the sum. */
  L.errors = (q, slope, each) => {
    let all = 0;
    for (let r = 0; r < rows; r++) {
      const from = r * K;
      let sum = 0;
      for (let k = 0; k < K; k++) slope[from + k] = 0;
      for (let i = 0; i < K; i++) {
        const d = q[from + i] - w[from + i];
        if (d !== 0) for (let k = 0, g = i * K; k < K; k++) slope[from + k] += d * gram[g + k];
      }
      for (let k = 0; k < K; k++) sum += slope[from + k] * (q[from + k] - w[from + k]);
      each[r] = Math.max(sum, 0);
      all += each[r];
    }
    return all;
  };
  const slope = new Float64Array(N), each = new Float64Array(rows), q = new Float64Array(N);
  L.error = h => L.errors(L.put(h, q), slope, each);
  L.nearest = L.error(up);
  L.worst = each.slice();
  const zero = q.fill(0);
  L.signal = L.errors(zero, slope, each); // w G w^T: all weights wrong by themselves
  return L;
}

/** The run: h after each step, the error of soft and of hard-rounded weights, and who left nearest. */
export function runAdaRound(L, { steps, penalty, lr }) {
  const { N, K, w, s } = L, h = [], soft = [], hard = [], away = [], settled = [];
  const V = Float64Array.from(w, (v, j) => initialV(v, s[j])), sig = new Float64Array(N), now = new Float64Array(N);
  const m = new Float64Array(N),
    u = new Float64Array(N),
    q = new Float64Array(N),
    slope = new Float64Array(N),
    each = new Float64Array(L.rows);
  const up = new Uint8Array(N), unit = L.worst.map(e => (e > 0 ? e : 1));
  up.fill(2);
  for (let t = 0; ; t++) {
    let changed = false, far = 0, done = 0;
    for (let j = 0; j < N; j++) {
      sig[j] = logistic(V[j]);
      now[j] = clamp(sig[j] * (ZETA - GAMMA) + GAMMA, 0, 1);
      const side = t ? (now[j] > 0.5 ? 1 : 0) : L.up[j]; // before the first step there is only nearest
      if (side !== up[j]) { up[j] = side; changed = true; }
      if (L.free[j] && side !== L.up[j]) far += 1;
      if (!L.free[j] || now[j] === 0 || now[j] === 1) done += 1;
    }
    hard.push(changed ? L.error(up) : hard.at(-1));
    soft.push(L.errors(L.put(now, q), slope, each));
    h.push(now.slice());
    away.push(far);
    settled.push(done);
    if (t === steps) break;
    // Where the error is 0, so is the gradient, but for float64 rounding, which Adam would blow up to full steps.
    each.forEach((e, r) => { if (e < 1e-20 * L.signal) slope.fill(0, r * K, (r + 1) * K); });
    const beta = annealedBeta(t, steps), pulled = t >= WARM * steps, b1 = 1 - 0.9 ** (t + 1), b2 = 1 - 0.999 ** (t + 1);
    for (let j = 0; j < N; j++) {
      let g = L.free[j] ? 2 * K * s[j] * slope[j] / unit[Math.floor(j / K)] : 0;
      const d = 2 * now[j] - 1;
      if (pulled) g -= 2 * beta * penalty * Math.sign(d) * Math.abs(d) ** (beta - 1);
      g *= now[j] > 0 && now[j] < 1 ? sig[j] * (1 - sig[j]) * (ZETA - GAMMA) : 0;
      m[j] += 0.1 * (g - m[j]);
      u[j] += 0.001 * (g * g - u[j]);
      V[j] -= (lr / b1) * m[j] / (Math.sqrt(u[j]) / Math.sqrt(b2) + 1e-8); // Adam
    }
  }
  return { h, soft, hard, away, settled };
}

/** A stream of numbers in [0, 1) from a seed (mulberry32). */
export function seeded(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
/** The errors of random roundings: up with the probability of the fraction. */
export function randomRoundings(L, count, seed) {
  const random = seeded(seed), h = new Uint8Array(L.N);
  return Array.from({ length: count }, () => L.error(h.map((_, j) => (random() < L.fraction[j] ? 1 : 0))));
}

const curveOf = (kind, d, more = {}) => svg("path", { class: `mq-stroke ${kind}`, d, ...more });
const loss = v => (Number.isFinite(v) ? `${fmt(v)} dB` : fmt(v));

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const bits = w.get("bits"),
      steps = w.get("steps"),
      L = layerOf(floats(w.get("data")), w.get("sizes"), w.get("scale"), bits);
    const rel = e => (e > 0 ? 10 * Math.log10(e / L.signal) : -Infinity); // error in dB of the signal
    const finite = list => list.map(v => Math.max(v, -200)); // for places in the picture
    const draws = randomRoundings(L, DRAWS, w.get("seed")).map(rel), nearest = rel(L.nearest);
    let R = null, ran = null;
    const run = () => {
      const setting = `${w.get("penalty")} ${w.get("lr")}`;
      if (ran !== setting) {
        ran = setting;
        R = runAdaRound(L, { steps, penalty: w.get("penalty"), lr: w.get("lr") });
      }
      return R;
    };

    const at = () => clamp(w.get("step"), 0, steps);
    const go = t => { stop(); w.set("step", clamp(t, 0, steps)); };
    let exact = 0;
    const motion = w.loop(dt => {
      exact = Math.min(steps, exact + dt * steps / SECONDS);
      w.set("step", Math.floor(exact));
      if (exact >= steps) stop();
    });
    const stop = () => { motion.pause(); play.label("Play"); };
    const play = w.button({ label: "Play", onClick: () => {
      if (motion.playing) { stop(); w.redraw(); return; }
      exact = at() >= steps ? 0 : at();
      if (w.still()) { go(steps); return; }
      motion.play();
      play.label("Pause");
    } });
    const next = w.button({ label: "One step", onClick: () => go(at() + 1) });
    const reset = w.button({ label: "Reset", onClick: () => go(0) });
    w.controls(
      w.slider({ trait: "step", label: "Step of the run", min: 0, max: steps, onInput: () => stop() }),
      w.slider({ trait: "penalty", label: "Regularizer weight λ", log: true, min: 0.01, max: 100 }), play, next, reset);
    const dots = w.plot({
      height: x => clamp(x, 260, 330),
      margin: { top: 30, right: 12, bottom: 40, left: 34 },
      grow: 1,
      min: 270,
    });
    const chart = w.plot({
      height: x => clamp(x, 260, 330),
      margin: { top: 30, right: 74, bottom: 40, left: 38 },
      grow: 1.25,
      min: 290,
    });
    w.add(dots, chart);
    w.legend([["dot blue", "weight"], ["dot purple", "away from nearest"], ["dashed soft", "start: h = fraction"]]);
    const out = w.readouts([
      ["hard", "error now, rounded", "error of the layer's output with h rounded to 0 or 1, relative to the output"],
      ["nearest", "rounding to nearest"],
      ["best", `best of ${DRAWS} random`, "roundings up with the probability of the fraction"],
      ["away", "away from nearest"],
      ["settled", "settled", "h is 0 or 1, or the grid ends there"],
      ["beta", "exponent β"],
    ]);
    const caption = w.caption();
    const cursor = chart.handle({ label: "Step of the run", tone: "ink", onInput: t => go(Math.round(t)) });

    const drawDots = (h, up, t) => {
      const p = dots, x = linear([0, 1], [p.left, p.right]), y = linear([-0.04, 1.04], [p.bottom, p.top]);
      const values = [0, 0.25, 0.5, 0.75, 1],
        zone = (a, b, c, d) => ({ x: x(a), width: x(b) - x(a), y: y(d), height: y(c) - y(d) });
      p.layer("zones").replaceChildren(
        svg("rect", { class: "mq-area mq-purple", opacity: 0.1, ...zone(0, 0.5, 0.5, 1.04) }),
        svg("rect", { class: "mq-area mq-purple", opacity: 0.1, ...zone(0.5, 1, -0.04, 0.5) }),
      );
      p.axisX(x, { values, label: "fraction of W/s" });
      p.axisY(y, { values, label: "h(V)" });
      let near = "", far = "", lost = "";
      for (let j = 0; j < L.N; j++) {
        const spot = `M${x(L.fraction[j]).toFixed(1)} ${y(h[j]).toFixed(1)}h0`;
        if (!L.free[j]) lost += spot;
        else if (up(j) !== L.up[j]) far += spot;
        else near += spot;
      }
      const size = L.N > 1000 ? 3.5 : 5, dot = (kind, d, width = size, opacity = 0.7) =>
        svg("path", { class: `mq-stroke ${kind}`, d, style: `stroke-width:${width}px`, opacity });
      const words = (a, b, lines) =>
        lines.map((text, k) =>
          svg("text", { class: "mq-halo mq-purple mq-tick", x: x(a), y: y(b) + 13 * k, "text-anchor": "middle" }, text),
        );
      p.layer("dots", "mq-answer").replaceChildren(
        curveOf("mq-soft mq-thin mq-dashed", `M${x(0)} ${y(0)}L${x(1)} ${y(1)}`),
        ...words(0.25, 0.78, ["up, though", "down is nearer"]), ...words(0.75, 0.28, ["down, though", "up is nearer"]),
        dot("mq-grey", lost), dot("mq-blue", near), dot("mq-purple", far, size + 1.5, 0.9),
      );
    };

    const drawChart = t => {
      const p = chart,
        hard = finite(R.hard.map(rel)),
        random = finite(draws),
        worst = Math.max(...random, ...hard),
        best = Math.min(...hard);
      const early = Math.max(rel(R.soft[Math.round(0.4 * steps)]), -200),
        deep = Math.max(Math.min(best - 4, early - 3), best - 25);
      const high = 5 * Math.ceil((worst + 1) / 5), low = 5 * Math.floor(deep / 5);
      const x = linear([0, steps], [p.left, p.right]),
        y = linear([low, high], [p.bottom, p.top]),
        cut = v => y(Math.max(v, low - 40));
      const line = (kind, list, from, to, more) =>
        curveOf(kind, linePath(list.slice(from, to + 1).map((e, k) => [x(from + k), cut(rel(e))])), {
          "clip-path": p.clip,
          ...more,
        });
      p.axisY(y, {
        label: p.width < 330 ? "error of the output (dB)" : "error of the output, dB relative to the output",
        ticks: 5,
      });
      p.axisX(x, { label: "step", ticks: 4 });
      // The random roundings stand on the same axis, at its right.
      const bins = Math.round((p.bottom - p.top) / 5), counts = new Array(bins).fill(0);
      for (const v of random) counts[clamp(Math.floor((v - low) / (high - low) * bins), 0, bins - 1)] += 1;
      const most = Math.max(...counts), thick = (high - low) / bins;
      const bars = counts
        .map((c, k) =>
          c
            ? `M${p.right + 6} ` +
              `${y(low + k * thick).toFixed(1)}h${((52 * c) / most).toFixed(1)}V` +
              `${y(low + (k + 1) * thick).toFixed(1)}h${((-52 * c) / most).toFixed(1)}Z`
            : "",
        )
        .join("");
      const tag = (u, v, kind, words, anchor = "start") =>
        svg("text", { class: `mq-halo ${kind}`, x: u, y: v, "text-anchor": anchor }, words);
      const level = y(clamp(nearest, low, high)), warm = x(WARM * steps);
      // The two curves are named where they are far from each other: before they meet.
      const third = Math.round(0.45 * steps), softAt = clamp(cut(rel(R.soft[third])) - 9, p.top + 20, p.bottom - 6);
      const hardAt = Math.min(cut(Math.min(...hard.slice(third, third + Math.round(0.2 * steps)))) + 17, softAt - 16);
      p.layer("draws", "mq-answer").replaceChildren(
        svg("path", { class: "mq-area mq-fill", d: bars }),
        tag(p.right + 8, y(Math.max(...random)) - 19, "mq-soft mq-tick", `${DRAWS} random`),
        tag(p.right + 8, y(Math.max(...random)) - 6, "mq-soft mq-tick", "roundings"),
      );
      p.layer("curves", "mq-answer").replaceChildren(
        svg("line", { class: "mq-grid", x1: warm, x2: warm, y1: p.top, y2: p.bottom }),
        tag(p.left + 3, p.bottom - 6, "mq-soft mq-tick", "warm-up"),
        curveOf("mq-ink mq-dashed", `M${p.left} ${level}H${p.width - 6}`),
        tag(p.left + 4, level - 6, "mq-strong", `nearest ${loss(nearest)}`),
        line("mq-green mq-thick", R.hard, t, steps, { opacity: 0.3 }),
        line("mq-blue", R.soft, t, steps, { opacity: 0.3 }),
        line("mq-green mq-thick", R.hard, 0, t),
        line("mq-blue", R.soft, 0, t),
        tag(x(third), hardAt, "mq-green mq-strong", "rounded"),
        tag(x(third), softAt, "mq-blue mq-strong", "soft: h(V)", "end"),
        curveOf("mq-ink mq-thin", `M${x(t).toFixed(1)} ${p.top}V${p.bottom}`),
      );
      const here = clamp(cut(rel(R.hard[t])), p.top, p.bottom);
      cursor.place({
        x: x(t),
        y: here,
        value: t,
        min: 0,
        max: steps,
        step: 1,
        text: `${t} of ${steps}, ${loss(rel(R.hard[t]))}`,
        invert: x.invert,
      });
    };

    return w.start(() => {
      run();
      const t = at(), h = R.h[t], side = j => (t ? (h[j] > 0.5 ? 1 : 0) : L.up[j]);
      drawDots(h, side, t);
      drawChart(t);
      next.limit({ disabled: t >= steps });
      reset.limit({ disabled: t === 0 });
      const free = L.free.reduce((n, f) => n + f, 0),
        settled = R.settled[t],
        now = rel(R.hard[t]),
        best = Math.min(...draws);
      const count = `${R.away[t]} of ${fmt(L.N, 6)}`,
        beta = t < WARM * steps ? "off" : fmt(annealedBeta(Math.min(t, steps - 1), steps), 2);
      out.set({
        hard: loss(now),
        nearest: loss(nearest),
        best: loss(best),
        away: count,
        settled: `${settled} of ${fmt(L.N, 6)}`,
        beta,
      });
      const gain = nearest - now,
        better = draws.filter(v => v < nearest).length,
        beaten = draws.filter(v => v > now).length;
      const than =
        Math.abs(gain) < 0.05
          ? "as with rounding to nearest"
          : `${fmt(Math.abs(gain), 2)} dB ${gain > 0 ? "less" : "more"} than with rounding to nearest`;
      const phase =
        t === 0
          ? "Start: h is the fraction itself, so that the soft weights are the trained ones."
          : t < WARM * steps
            ? `Warm start: only the error ` +
              `counts${R.soft[0] < 1e-12 * L.signal ? ", and it is least where the weights already are" : ""}.`
            : t < steps
              ? `The regularizer, β = ${beta}, pushes each h to 0 or 1 while the others make up for it.`
              : `The run is over: ` +
                (settled === L.N
                  ? "every h is 0 or 1."
                  : `${L.N - settled} of ${L.N} weights are still between 0 and 1.`);
      const rest = DRAWS - beaten;
      const asGood = rest ? `${rest} ${rest === 1 ? "is" : "are"} at least as good` : "none is as good";
      const text =
        `${phase} Rounded now, ${count} weights would go away from nearest, and the output's error is ${loss(now)}, ` +
        `${than}; ` +
        `of ${DRAWS} random roundings ${better || "none"} beat${better > 1 ? "" : "s"} nearest, ` +
        `and ${asGood}.`;
      dots.describe(
        `${L.N} weights, ${free} of them free to go up or down: h(V) over the fraction of W/s after step ${t} of ` +
        `${steps}; ${settled} are settled. ${text}`,
      );
      chart.describe(
        `Error of the output over the steps, for soft and for rounded weights: ` +
        `${loss(rel(R.soft[t]))} and ${loss(now)} at step ${t}; in the end ${loss(rel(R.hard.at(-1)))} against ` +
        `${loss(nearest)} for nearest. ${text}`,
      );
      if (!motion.playing || t === steps) caption.set(text);
      else caption.el.textContent = text;
    });
  },
};
