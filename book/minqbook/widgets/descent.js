// One weight on a staircase: gradient descent with the true, the straight-through and the plain gradient.
import { clamp, fakeQuantize, integerGrid, roundHalfEven, scaleZeroPoint } from "./quantize.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linePath, linear, stepPath } from "./kit/scales.js";

const GRID = { signed: true, narrowRange: true, symmetric: true };
const SECONDS = 6; // of a whole run
const SIDES = { left: 50, right: 16 };
const ROOM = 1.25; // the picture reaches a little beyond the grid: there weights are clipped

/** The grid over [-limit, limit]: q(w), and whether w lies inside it. */
export function weightGrid(limit, bits) {
  const [s] = scaleZeroPoint(-limit, limit, bits, GRID), [n, p] = integerGrid(bits, GRID);
  const q = w => fakeQuantize(w, s, 0, bits, GRID), level = w => roundHalfEven(w / s);
  return { s, n, p, q, inside: w => level(w) >= n && level(w) <= p };
}

/** L = E[(q x - t)^2] and dL/dq from the means of x^2, x t, t^2. */
export const squareLoss = ([xx, xt, tt], q) => xx * q * q - 2 * xt * q + tt;
export const squareSlope = ([xx, xt], q) => 2 * (xx * q - xt);

/** The gradient by w that descent is told. */
export function gradientBy(kind, moments, grid, w) {
  if (kind === "full precision") return squareSlope(moments, w);
  if (kind === "true") return 0; // between its jumps a staircase is flat
  return grid.inside(w) ? squareSlope(moments, grid.q(w)) : 0; // eq. (36), (37)
}

/** All weights of a run: w_{t+1} = w_t - rate * gradient; one that runs away is left far out. */
export function descend({ moments, limit, bits, rate, start, gradient }, steps) {
  const grid = weightGrid(limit, bits), w = [start], far = 1e6 * limit;
  for (let t = 0; t < steps; t++) w.push(clamp(w[t] - rate * gradientBy(gradient, moments, grid, w[t]), -far, far));
  return { grid, w, q: w.map(grid.q) };
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const moments = w.get("moments"), limit = w.get("limit"), steps = w.get("steps"), best = moments[1] / moments[0];
    const ends = [-ROOM * limit, ROOM * limit];

    let exact = 0;
    const at = () => clamp(w.get("step"), 0, steps);
    const stop = () => { motion.pause(); run.label("Run"); };
    const go = t => { stop(); w.set("step", clamp(t, 0, steps)); };
    const motion = w.loop(dt => {
      exact = Math.min(steps, exact + dt * steps / SECONDS);
      w.set("step", Math.floor(exact));
      if (exact >= steps) stop();
    });
    const run = w.button({ label: "Run", onClick: () => {
      if (motion.playing) { stop(); w.redraw(); return; }
      exact = at() >= steps ? 0 : at();
      if (w.still()) { go(steps); return; }
      motion.play();
      run.label("Pause");
    } });
    const one = w.button({ label: "One step", onClick: () => go(at() + 1) });
    const reset = w.button({ label: "Reset", onClick: () => go(0) });
    w.controls(
      w.slider({ trait: "bits", label: "Bits", min: 2, max: 8 }),
      w.slider({ trait: "rate", label: "Learning rate", log: true, min: 0.001, max: 2 }),
      w.slider({ trait: "step", label: "Steps taken", min: 0, max: steps, onInput: () => stop() }),
    );
    const kinds = [["straight-through", "straight-through"], ["true", "true"], ["full precision", "full precision"]];
    w.controls(w.segmented({ trait: "gradient", label: "Gradient used", options: kinds }), one, run, reset);

    const land = w.plot({ height: x => (x < 480 ? 230 : 260), margin: { ...SIDES, top: 26, bottom: 54 } });
    w.add(land);
    const time = w.plot({ height: x => (x < 480 ? 200 : 220), margin: { ...SIDES, top: 26, bottom: 40, right: 70 } });
    w.add(time);
    const first = land.handle({
      label: "Start of the weight",
      tone: "green",
      onInput: v => {
        stop();
        w.set("start", clamp(v, ...ends));
      },
    });
    const out = w.readouts([
      ["latent", "weight w"], ["rounded", "q(w)"], ["loss", "loss"], ["slope", "gradient used"],
      ["mean", "mean of q(w)", "over the last third of the steps taken"], ["best", "optimum of w", "without quantizer"],
      ["jumps", "changes of level"],
    ]);
    const caption = w.caption();

    const mark = (kind, d, more = {}) => svg("path", { class: `mq-stroke ${kind}`, d, ...more });
    const word = (x, y, kind, text, anchor = "start") =>
      svg("text", { class: `mq-halo ${kind}`, x, y, "text-anchor": anchor }, text);

    const drawLand = (R, t, g, full) => {
      const { left, right, top, bottom } = land, { s, n, p, q } = R.grid;
      const x = linear(ends, [left, right]), loss = v => squareLoss(moments, v);
      const highest = Math.max(...ends.map(loss)),
        y = linear([loss(best) - 0.06 * (highest - loss(best)), highest], [bottom, top]);
      const bowl = Array.from({ length: 81 }, (_, i) => ends[0] + (i * (ends[1] - ends[0])) / 80);
      const stairs = [[x(ends[0]), y(loss(q(ends[0])))]];
      for (let k = n; k < p; k++) stairs.push([x(s * (k + 0.5)), y(loss(s * (k + 1)))]);
      const edge = s * (p + 0.5), zones = edge < ends[1] ? [[ends[0], -edge], [edge, ends[1]]] : [];
      land.layer("zones").replaceChildren(...zones.flatMap(([a, b]) => {
        const box = { x: x(a), width: x(b) - x(a), y: top, height: bottom - top };
        return [svg("rect", { class: "mq-veil", ...box }), svg("rect", { fill: land.hatch, ...box })];
      }));
      land.axisY(y, { label: "loss", ticks: 3 });
      land.axisX(x, { label: "weight w" });
      const now = full ? R.w[t] : R.q[t],
        spot = [x(clamp(R.w[t], ...ends)), y(loss(now))],
        from = [x(clamp(now, ...ends)), spot[1]];
      const tilt = (g * (y(1) - y(0))) / (x(1) - x(0)), reach = 46 / Math.hypot(1, tilt); // in pixels
      const tangent = ([u, v]) => linePath([[u - reach, v - tilt * reach], [u + reach, v + tilt * reach]]);
      land.layer("curves").replaceChildren(
        mark("mq-soft mq-dashed", linePath(bowl.map(v => [x(v), y(loss(v))])), { "clip-path": land.clip }),
        mark("mq-blue", stepPath(stairs, x(ends[1])), full ? { opacity: 0.35 } : {}),
        mark("mq-green mq-thin mq-dashed", `M${x(best).toFixed(1)} ${top}V${bottom}`),
        word(x(best), top - 6, "mq-green", "optimum", "middle"),
      );
      const trail = R.w.slice(0, t + 1).map((v, i) => [x(clamp(v, ...ends)), y(loss(full ? v : R.q[i]))]);
      land.layer("path").replaceChildren(...trail.slice(-60, -1).map(([u, v], i, all) =>
        svg("circle", { class: "mq-area mq-ink", cx: u, cy: v, r: 2.5, opacity: 0.1 + (0.4 * (i + 1)) / all.length })));
      const borrowed = !full && w.get("gradient") === "straight-through" && g !== 0;
      land
        .layer("now")
        .replaceChildren(
          mark("mq-green mq-thin", `M${x(R.w[0]).toFixed(1)} ${bottom}V${y(loss(full ? R.w[0] : R.q[0])).toFixed(1)}`, {
            opacity: 0.6,
          }),
          borrowed ? mark("mq-soft mq-thin", linePath([spot, from])) : "",
          borrowed ? mark("mq-purple mq-thin", tangent(from)) : "",
          mark("mq-purple mq-thick", tangent(spot)),
          svg("circle", { class: "mq-area mq-blue", cx: from[0], cy: from[1], r: full ? 0 : 4 }),
          svg("circle", { class: "mq-area mq-ink", cx: spot[0], cy: spot[1], r: 5 }),
        );
      first.place({
        x: x(R.w[0]), y: bottom + 30, value: R.w[0], min: ends[0], max: ends[1], step: (ends[1] - ends[0]) / 200,
        text: `start ${fmt(R.w[0])}`, invert: x.invert,
      });
      land
        .layer("start")
        .replaceChildren(
          word(
            x(R.w[0]) + (R.w[0] > 0 ? -14 : 14),
            bottom + 34,
            "mq-green mq-strong",
            "start",
            R.w[0] > 0 ? "end" : "start",
          ),
        );
    };

    const drawTime = (R, t, full) => {
      const { left, right, top, bottom } = time, { s, n, p } = R.grid;
      const seen = R.w.slice(0, t + 1), shown = full ? seen : seen.concat(R.q.slice(0, t + 1));
      const low = Math.max(2 * ends[0], Math.min(best, ...shown)),
        high = Math.min(2 * ends[1], Math.max(best, ...shown)),
        pad = Math.max(0.7 * s, 0.1 * (high - low));
      const x = linear([0, steps], [left, right]), y = linear([low - pad, high + pad], [bottom, top]);
      const levels = [];
      for (let k = n; k <= p; k++) if (s * k >= low - pad && s * k <= high + pad) levels.push(s * k);
      const few = levels.length < 18 ? levels : [];
      time.axisY(y, { label: "w and q(w) over the steps", ticks: 4, grid: few.length === 0 });
      time.axisX(x, { label: "step" });
      const trace = R.w.map((v, i) => [x(i), clamp(y(v), top - 4, bottom + 4)]),
        jumps = R.q.map((v, i) => [x(i), y(v)]);
      const last = y(R.w[t]), lastQ = y(R.q[t]), apart = Math.abs(last - lastQ) < 13 ? (last < lastQ ? -7 : 7) : 0;
      time.layer("curves").replaceChildren(
        ...few.map(v => mark("mq-blue mq-thin", `M${left} ${y(v).toFixed(1)}H${right}`, { opacity: 0.25 })),
        mark("mq-green mq-thin mq-dashed", `M${left} ${y(best).toFixed(1)}H${right}`),
        mark("mq-blue", stepPath(jumps.slice(0, t + 1)), { "clip-path": time.clip, opacity: full ? 0.35 : 1 }),
        mark("mq-ink", linePath(trace.slice(0, t + 1)), { "clip-path": time.clip }),
        svg("circle", { class: "mq-area mq-ink", cx: x(t), cy: clamp(last, top, bottom), r: 3.5 }),
        word(x(t) + 8, clamp(last, top, bottom) + 4 + apart, "mq-strong", "w"),
        word(x(t) + 8, clamp(lastQ, top, bottom) + 4 - apart, "mq-blue mq-strong", "q(w)"),
      );
    };

    return w.start(() => {
      const t = at(), gradient = w.get("gradient"), full = gradient === "full precision", bits = w.get("bits");
      const R = descend({ moments, limit, bits, rate: w.get("rate"), start: w.get("start"), gradient }, t);
      const g = gradientBy(gradient, moments, R.grid, R.w[t]), used = full ? R.w[t] : R.q[t];
      drawLand(R, t, g, full);
      drawTime(R, t, full);
      one.limit({ disabled: t >= steps });
      reset.limit({ disabled: t === 0 });
      const since = Math.floor((2 * (t + 1)) / 3),
        late = R.q.slice(since),
        mean = late.reduce((a, b) => a + b, 0) / late.length;
      let jumps = 0, lately = 0;
      for (let i = 1; i <= t; i++) if (R.q[i] !== R.q[i - 1]) { jumps += 1; lately += i > since ? 1 : 0; }
      const level = R.grid.q(best), loss = squareLoss(moments, used);
      out.set({ latent: R.w[t], rounded: R.q[t], loss, slope: g, mean, best, jumps: String(jumps) });
      const clipped = !R.grid.inside(R.w[t]);
      const what =
        gradient === "true"
          ? "The staircase is flat here: its true gradient is 0, and the weight does not move."
          : full && Math.abs(R.w[t]) > 4 * limit
            ? "The learning rate is too high: each step overshoots further than the one before."
            : full
              ? `The quantizer is left out while w trains. Rounded now, w = ${fmt(R.w[t])} becomes ${fmt(R.q[t])}, ` +
                `with a loss of ${fmt(squareLoss(moments, R.q[t]))}.`
              : clipped
                ? "The weight is clipped: the straight-through gradient is 0 out there, and it is stuck."
                : `The parabola's slope at q(w) = ${fmt(R.q[t])}, ${fmt(g)}, is used at w = ${fmt(R.w[t])}.`;
      const swing =
        !full && lately > 1
          ? ` q(w) jumps between levels around the optimum, ${lately} times in the last ${t - since} steps; ` +
            `on average it is ${fmt(mean)}, and the optimum is ${fmt(best)}.`
          : !full && t > 0 && R.q[t] === level
            ? ` This is the best level of the grid.`
            : "";
      const text = `${t ? `After ${t} ${t === 1 ? "step" : "steps"}` : "At the start"}, ${bits} bits: ` +
        `loss ${fmt(loss)}. ${what}${swing}`;
      land.describe(`The loss over the weight: a parabola, and the staircase of the rounded weight. ${text}`);
      time.describe(`The weight and its rounded value over ${t} steps; ${jumps} changes of level.`);
      if (motion.playing && t < steps) caption.el.textContent = text;
      else caption.set(text);
    });
  },
};
