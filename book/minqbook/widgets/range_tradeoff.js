// Clipping error against rounding error: the range on the histogram, and all ranges as curves.
import { clamp, errorParts, gridLimits, integerGrid, roundHalfEven, scaleZeroPoint } from "./quantize.js";
import { floats, histogram } from "./kit/data.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent } from "./kit/format.js";
import { histogramPath, linePath, linear, logarithmic } from "./kit/scales.js";

const NARROWEST = 1 / 256, WIDEST = 1.25; // widths looked at, as a share of the min-max range
const MARGIN = { left: 46, right: 16 };

/** Sorted data with running sums of x and x^2: the error of any interval at one level in no time. */
export function prepare(data) {
  const x = Float64Array.from(data).sort(), N = x.length;
  const one = new Float64Array(N + 1), two = new Float64Array(N + 1);
  for (let i = 0; i < N; i++) {
    one[i + 1] = one[i] + x[i];
    two[i + 1] = two[i] + x[i] * x[i];
  }
  return { x, one, two, low: Math.min(x[0], 0), high: Math.max(x[N - 1], 0), signal: two[N] / N };
}

/** The smallest index from which on sorted x is above v; the search doubles its step from `start`. */
function above(x, v, start) {
  let step = 1, a = start, b = start;
  while (b < x.length && x[b] <= v) { a = b + 1; b += step; step *= 2; }
  b = Math.min(b, x.length);
  while (a < b) {
    const middle = (a + b) >> 1;
    if (x[middle] <= v) a = middle + 1;
    else b = middle;
  }
  return a;
}

/** Mean squared rounding and clipping error with scale s on the levels [z0 - z], best zero-point z.
 *
 *  The grid is s (n - z) .. s (p - z). Rounding to s times an integer does not depend on z, only the
 *  two ends do: so all zero-points cost little more than one. zs: [first, last] to choose from. */
export function bestGrid({ x, one, two, signal }, s, [n, p], zs) {
  const N = x.length, least = n - zs[1], most = p - zs[0]; // levels that any of the grids has
  const first = clamp(roundHalfEven(x[0] / s), least, most), last = clamp(roundHalfEven(x[N - 1] / s), least, most);
  const cost = (i, j, level) => Math.max(0, two[j] - two[i] - 2 * level * (one[j] - one[i]) + (j - i) * level * level);
  const cut = [], sum = [0]; // values from cut[k] on are nearest to level first + k or higher
  for (let k = first, i = 0; k <= last + 1; k++) {
    const j = above(x, s * (k - 0.5), i);
    if (k > first) sum.push(sum.at(-1) + cost(i, j, s * (k - 1)));
    cut.push(i = j);
  }
  let best = null;
  for (let z = zs[0]; z <= zs[1]; z++) {
    const a = clamp(n - z, first, last + 1) - first, b = clamp(p - z + 1, first, last + 1) - first;
    const rounding = sum[b] - sum[a];
    const clipping = cost(0, cut[a], s * (n - z)) + cost(cut[b], N, s * (p - z));
    if (!best || rounding + clipping < best.mse * N) {
      best = { z, rounding: rounding / N, clipping: clipping / N, mse: (rounding + clipping) / N };
    }
  }
  return { ...best, s, signal };
}

/** The range with the least error at each width (a share of the min-max range), and the best of all.
 *  Symmetric: the range is its width. Asymmetric: each width stands where it errs least. */
export function sweep(S, bits, symmetric, narrowest = NARROWEST) {
  const signed = symmetric && S.low < 0, options = { signed, symmetric };
  const [n, p] = integerGrid(bits, { signed }), most = Math.max(-S.low, S.high);
  const at = share => {
    const c = share * most, width = share * (S.high - S.low);
    const [s] = symmetric ? scaleZeroPoint(signed ? -c : 0, c, bits, options) : [width / (p - n)];
    const g = bestGrid(S, s, [n, p], symmetric ? [0, 0] : [n, p]);
    const ends = symmetric ? [signed ? -c : 0, c] : [s * (n - g.z), s * (p - g.z)];
    return { ...g, share, low: ends[0] + 0, high: ends[1] + 0 };
  };
  const curve = [], count = 100;
  for (let i = 0; i <= count; i++) curve.push(at(narrowest * (WIDEST / narrowest) ** (i / count)));
  let best = curve.reduce((a, b) => (b.mse < a.mse ? b : a));
  // The error is bumpy where values are few: look closely around the best, then closer.
  for (const reach of [0.1, 0.005]) {
    const middle = best.share;
    for (let k = -24; k <= 24; k++) {
      const share = middle * (1 + (reach * k) / 24), g = share >= narrowest && share <= WIDEST ? at(share) : best;
      if (g.mse < best.mse) best = g;
    }
  }
  return { curve, best };
}

const dB = ratio => 10 * Math.log10(ratio);
const stroke = (kind, d, more = {}) => svg("path", { class: `mq-stroke ${kind}`, d, ...more });
const upright = (kind, x, y1, y2) => stroke(kind, `M${x.toFixed(1)} ${y1}V${y2}`);

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const name = w.get("name");

    let S = null, source = null, curves = {}, least = {};
    const stock = () => {
      if (source === w.get("data")) return;
      source = w.get("data");
      S = prepare(floats(source));
      S.raw = floats(source);
      [curves, least] = [{}, {}];
      forget();
    };
    /** The narrowest range in the picture: a quarter of the best one for 2 bits, which is narrower
     *  than that for more; one axis for all bits, so that the curves can be compared. */
    const narrowest = symmetric => (least[symmetric] ??=
      clamp(2 ** Math.floor(Math.log2(sweep(S, 2, symmetric).best.share / 4)), NARROWEST, 1 / 16));
    const curveOf = (bits, symmetric) =>
      (curves[`${bits} ${symmetric}`] ??= sweep(S, bits, symmetric, narrowest(symmetric)));

    /** The range shown: as it is, or widened to be symmetric. */
    const ends = (symmetric = w.get("symmetric")) => {
      const low = Math.min(w.get("low"), 0), high = Math.max(w.get("high"), 0);
      if (!symmetric) return [low, high];
      const c = Math.max(-low, high);
      return [S.low < 0 ? -c : 0, c];
    };
    const full = symmetric => (symmetric ? Math.max(-S.low, S.high) * (S.low < 0 ? 2 : 1) : S.high - S.low);
    const shareOf = ([low, high], symmetric) => (high - low) / full(symmetric);
    /** A range that is allowed: 0 in it, neither too narrow nor too wide; `held` is the end to keep. */
    const put = (low, high, held = null) => {
      const symmetric = w.get("symmetric"), [u, v] = view(symmetric), slim = narrowest(symmetric) * full(symmetric);
      if (symmetric) {
        const c = clamp(Math.max(-low, high), S.low < 0 ? slim / 2 : slim, v);
        return w.set({ low: S.low < 0 ? -c : 0, high: c });
      }
      low = clamp(low, u, 0);
      high = clamp(high, 0, v);
      if (high - low < slim) [low, high] = held === "low" ? [low, low + slim] : [high - slim, high];
      w.set({ low: Math.min(low, 0), high: Math.max(high, 0) });
    };
    const view = symmetric => {
      const most = Math.max(-S.low, S.high), width = S.high - S.low, spare = (WIDEST - 1) * width / 2;
      if (symmetric) return [S.low < 0 ? -WIDEST * most : -0.04 * most, WIDEST * most];
      return [
        S.low < 0 ? S.low - spare : -0.04 * width,
        S.high > 0 ? S.high + (S.low < 0 ? spare : 2 * spare) : 0.04 * width,
      ];
    };

    // --- The search by hand: the widths tried, and the guess that was made when the curves appeared ---
    let trail = [], guess = null, game = "";
    const forget = () => { trail = []; guess = null; };

    const bits = w.slider({ trait: "bits", label: "Bits", min: 2, max: 8 });
    const kind = w.segmented({
      label: "Range", trait: "symmetric", options: [[false, "asymmetric"], [true, "symmetric"]],
      onInput: on => put(...ends(on)),
    });
    w.controls(bits, kind);

    const top = w.plot({ height: x => (x < 480 ? 190 : 220), margin: { ...MARGIN, top: 56, bottom: 34 } });
    w.add(top);
    const below = w.plot({ height: x => (x < 480 ? 230 : 250), margin: { ...MARGIN, top: 40, bottom: 40 } });
    w.add(below);
    const show = w.button({ label: "", onClick: () => {
      if (w.get("reveal")) forget();
      else guess = { ends: ends(), ...state() };
      w.set("reveal", !w.get("reveal"));
    } });
    const optimum = w.button({
      label: "Go to the optimum",
      onClick: () => glide(curveOf(w.get("bits"), w.get("symmetric")).best),
    });
    const widest = w.button({ label: "Go to min–max", onClick: () => glide(minMax()) });
    w.controls(show, optimum, widest);
    const out = w.readouts([
      ["rounding", "rounding MSE", "mean squared error of the values inside the grid, over all values"],
      ["clipping", "clipping MSE", "mean squared error of the values beyond the grid, over all values"],
      ["mse", "total MSE"], ["sqnr", "SQNR", "signal-to-quantization-noise ratio"],
      ["clipped", "clipped values"], ["scale", "scale s"],
    ]);
    const caption = w.caption();

    const minMax = () => {
      const c = Math.max(-S.low, S.high);
      return w.get("symmetric") ? { low: S.low < 0 ? -c : 0, high: c } : { low: S.low, high: S.high };
    };
    const state = () => {
      const b = w.get("bits"), symmetric = w.get("symmetric"), signed = symmetric && S.low < 0, [low, high] = ends();
      const [s, z] = scaleZeroPoint(low, high, b, { signed, symmetric });
      return {
        b,
        symmetric,
        signed,
        s,
        z,
        share: shareOf([low, high], symmetric),
        ...errorParts(S.raw, s, z, b, { signed }),
      };
    };

    let from = null, goal = null, spent = 0;
    const motion = w.loop(dt => {
      spent = Math.min(1, spent + dt / 0.7);
      const k = spent * spent * (3 - 2 * spent);
      w.set({ low: from[0] + k * (goal.low - from[0]), high: from[1] + k * (goal.high - from[1]) });
      if (spent === 1) motion.pause();
    });
    const glide = to => {
      [from, goal, spent] = [ends(), to, 0];
      if (w.still()) w.set({ low: to.low, high: to.high });
      else motion.play();
    };
    const stop = fn => v => { motion.pause(); fn(v); };
    const lowEnd = top.handle({
      label: "Lower end of the range",
      onInput: stop(v => (w.get("symmetric") ? put(v, -v) : put(v, ends()[1], "high"))),
    });
    const highEnd = top.handle({
      label: "Upper end of the range", onInput: stop(v => (w.get("symmetric") ? put(-v, v) : put(ends()[0], v, "low"))),
    });
    const width = below.handle({ label: "Width of the range", onInput: stop(share => {
      const [low, high] = ends(), k = share / (shareOf([low, high], w.get("symmetric")) || 1);
      put(k * low, k * high);
    }) });

    const drawData = (q, [low, high], best) => {
      const knobY = top.top - 28,
        range = view(q.symmetric),
        x = linear(range, [top.left, top.right]),
        left = top.left,
        right = top.right;
      const bins = Math.round((right - left) / 5), counts = histogram(S.raw, ...range, bins);
      const y = logarithmic([0.5, 1.6 * Math.max(1, ...counts)], [top.bottom, top.top]), up = c => y(Math.max(c, 0.5));
      const [gl, gh] = gridLimits(q.s, q.z, q.b, { signed: q.signed }), inside = v => clamp(v, ...range);
      const [n, p] = integerGrid(q.b, { signed: q.signed }), gap = x(q.s) - x(0), levels = [];
      for (let k = n; k <= p; k++)
        if (q.s * (k - q.z) >= range[0] && q.s * (k - q.z) <= range[1]) levels.push(x(q.s * (k - q.z)));
      const rungs = (from, to) => levels.map(u => `M${u.toFixed(1)} ${from}V${to}`).join("");
      const box = { y: top.top, height: top.bottom - top.top };
      const off = [[range[0], gl - q.s / 2], [gh + q.s / 2, range[1]]].filter(([a, b]) => b > a);
      top.layer("clipped").replaceChildren(...off.flatMap(([a, b]) => {
        const place = { ...box, x: x(a), width: x(b) - x(a) };
        return [svg("rect", { class: "mq-veil", ...place }), svg("rect", { fill: top.hatch, ...place })];
      }));
      top.axisY(y, { label: "values per bin", ticks: 3, format: v => fmt(v, 6) });
      top
        .layer("data")
        .replaceChildren(svg("path", { class: "mq-area mq-fill", d: histogramPath(counts, ...range, x, up) }));
      top
        .layer("levels")
        .replaceChildren(
          gap >= 7 ? stroke("mq-blue mq-thin", rungs(top.top, top.bottom), { opacity: 0.5 }) : "",
          gap >= 2.5
            ? stroke("mq-blue", rungs(top.bottom, top.bottom + 6))
            : svg("rect", {
                class: "mq-area mq-blue",
                x: levels[0],
                y: top.bottom,
                width: levels.at(-1) - levels[0],
                height: 5,
              }),
        );
      top.axisX(x, { label: name, y: top.bottom + 6 });
      const flag = v => upright("mq-green mq-dashed", x(v), top.top, top.bottom);
      const far = best && Math.abs(x(best.high) - x(high)) > 4, roomy = best && x(best.high) < right - 64;
      top.layer("best").replaceChildren(...(!best ? [] : [
        ...(S.low < 0 ? [flag(best.low)] : []), flag(best.high),
        ...(far ? [svg("text", {
          class: "mq-tick mq-green mq-strong mq-halo", x: x(best.high) + (roomy ? 6 : -6), y: top.top + 11,
          "text-anchor": roomy ? "start" : "end" }, "optimum")] : []),
      ]));
      const ink = v => upright("mq-ink", x(v), knobY, top.bottom);
      const narrow = x(high) - x(low) < 76, word = (v, side) => svg("text", {
        class: "mq-halo mq-strong", x: x(v) + (narrow ? side * 10 : 0), y: knobY - 13,
        "text-anchor": narrow ? (side < 0 ? "end" : "start") : "middle" }, fmt(v));
      const lower = S.low < 0, upper = S.high > 0 || q.signed;
      const marked = [...(lower ? [[low, -1]] : []), ...(upper ? [[high, 1]] : [])];
      top.layer("range").replaceChildren(...marked.flatMap(([v, side]) => [ink(v), word(v, side)]));
      const step = (range[1] - range[0]) / 250, knob = { y: knobY, step, invert: x.invert };
      lowEnd.place({ ...knob, x: x(inside(low)), value: low, min: range[0], max: 0, text: fmt(low, 4) });
      highEnd.place({ ...knob, x: x(inside(high)), value: high, min: 0, max: range[1], text: fmt(high, 4) });
      lowEnd.show(lower);
      highEnd.show(upper);
    };

    /** An error in dB relative to the signal; none at all counts as -200 dB. */
    const relative = mse => Math.max(-200, dB(mse / S.signal));
    const drawCurves = (q, { curve, best }, shown) => {
      const rel = relative, worst = Math.max(0, ...curve.map(g => rel(g.mse)));
      const floor = 10 * Math.floor((Math.min(rel(best.mse), rel(Math.max(curve.at(-1).mse, best.mse))) - 7) / 10);
      const least = curve[0].share, thin = below.width < 480;
      const x = logarithmic([least, WIDEST], [below.left, below.right], 2);
      const y = linear([Math.max(-120, floor), worst + 2], [below.bottom, below.top]);
      const octave = -Math.log2(least), every = Math.ceil(octave / (thin ? 4 : 8)), shares = [];
      for (let k = 0; k <= octave; k += every) shares.push(2 ** -k);
      below.axisX(x, {
        values: shares, format: v => `${fmt(100 * v, 2)} %`,
        label: q.symmetric ? `half width of the range, share of max |${name}|` : "width of the range, share of min–max",
      });
      below.axisY(y, { label: thin ? "error (dB)" : "error, dB relative to the signal", ticks: 4 });
      const clip = { "clip-path": below.clip };
      const line = (key, kind) => stroke(kind, linePath(curve.map(g => [x(g.share), y(rel(g[key]))])), clip);
      const tag = (u, v, kind, words, anchor = "start") =>
        svg("text", { class: `mq-halo ${kind}`, x: u, y: v, "text-anchor": anchor }, words);
      // The curves of rounding and clipping are named where they part from the floor and from the total.
      const rise = curve.find(g => rel(g.rounding) > y.domain[0] + 0.14 * (y.domain[1] - y.domain[0])) ?? curve.at(-1);
      const dive = curve.find(g => g.share >= best.share / 2.2 && g.clipping < 0.999 * g.mse) ?? curve[20];
      const spot = [x(best.share), Math.min(y(rel(best.mse)), below.bottom)],
        mm = curve.find(g => g.share >= 1) ?? curve.at(-1);
      below
        .layer("curves")
        .replaceChildren(
          ...(!shown
            ? []
            : [
                line("rounding", "mq-blue"),
                line("clipping", "mq-red mq-dashed"),
                line("mse", "mq-ink mq-thick"),
                tag(
                  Math.max(x(rise.share) - 8, below.left + 58),
                  y(rel(rise.rounding)) - 6,
                  "mq-blue",
                  "rounding",
                  "end",
                ),
                tag(
                  Math.max(x(dive.share) - 10, below.left + 52),
                  Math.min(y(rel(dive.clipping)) + 18, below.bottom - 8),
                  "mq-red",
                  "clipping",
                  "end",
                ),
                tag(below.left + 8, y(rel(curve[0].mse)) - 9, "mq-strong", "total"),
                upright("mq-soft mq-thin", x(1), below.top - 4, below.bottom),
                tag(x(1), below.top - 9, "mq-soft", "min–max", "middle"),
                upright("mq-green mq-dashed", spot[0], below.top - 4, below.bottom),
                tag(
                  Math.min(spot[0], x(1) - 62),
                  below.top - 9,
                  "mq-green mq-strong",
                  "MSE optimum",
                  spot[0] > x(1) - 110 ? "end" : "middle",
                ),
                svg("circle", { class: "mq-area mq-green", cx: spot[0], cy: spot[1], r: 5 }),
              ]),
        );
      below
        .layer("tried")
        .replaceChildren(
          ...(shown
            ? []
            : trail.map(t =>
                svg("circle", {
                  class: "mq-area mq-soft",
                  opacity: 0.55,
                  cx: x(t.share),
                  cy: y(rel(t.mse)),
                  r: 2.5,
                  ...clip,
                }),
              )),
        );
      const mine = guess && [x(guess.share), y(rel(guess.mse))];
      below
        .layer("guess")
        .replaceChildren(
          ...(mine && shown
            ? [
                stroke("mq-purple mq-thick", `M${mine[0] - 6} ${mine[1]}l6 -6l6 6l-6 6Z`),
                tag(
                  clamp(mine[0], below.left + 32, below.right - 32),
                  mine[1] - 13,
                  "mq-purple mq-strong",
                  "your range",
                  "middle",
                ),
              ]
            : []),
        );
      const here = clamp(q.share, least, WIDEST), hy = clamp(y(rel(q.mse)), below.top, below.bottom);
      below.layer("here").replaceChildren(upright("mq-ink mq-thin", x(here), below.top, below.bottom));
      width.place({
        x: x(here), y: hy, value: q.share, min: least, max: WIDEST, step: 0.02 * q.share, invert: x.invert,
        text: `${percent(q.share)} of ${q.symmetric ? "the largest magnitude" : "min–max"}`,
      });
    };

    return w.start(() => {
      stock();
      const round = `${w.get("bits")} ${w.get("symmetric")}`;
      if (round !== game) { game = round; forget(); }
      const q = state(),
        [low, high] = ends(),
        found = curveOf(q.b, q.symmetric),
        { best } = found,
        shown = w.get("reveal");
      if (!shown && trail.at(-1)?.share !== q.share) trail = [...trail.slice(-300), { share: q.share, mse: q.mse }];
      show.label(shown ? "Hide the optimum" : "Show the optimum");
      optimum.limit({ disabled: !shown });
      drawData(q, [low, high], shown && best);
      drawCurves(q, found, shown);
      const level = Number.isFinite(q.sqnr) ? `${fmt(q.sqnr)} dB` : fmt(q.sqnr);
      out.set({
        rounding: q.rounding,
        clipping: q.clipping,
        mse: q.mse,
        sqnr: level,
        clipped: percent(q.clipped),
        scale: q.s,
      });

      const lost = mse => relative(mse) - relative(best.mse);
      const short = mse => (lost(mse) < 0.05 ? "the best there is"
        : best.mse ? `${fmt(lost(mse), 2)} dB short of the best` : "short of the best, which is exact");
      const span = (a, b) => (q.signed ? `±${fmt(b)}` : `${fmt(a)} to ${fmt(b)}`);
      const share = q.mse ? q.clipping / q.mse : 0;
      const cause =
        share > 0.9
          ? "nearly all of the error is clipping"
          : share < 0.1
            ? "nearly all of the error is rounding"
            : `${percent(share)} of the error is clipping, the rest rounding`;
      const now = `Range ${span(low, high)}: SQNR ${level}, ${q.clipped ? percent(q.clipped) : "none"} of the values ` +
        `clipped`;
      const moved = guess && (guess.ends[0] !== low || guess.ends[1] !== high),
        goal = `the best is ${span(best.low, best.high)}`;
      const text = !shown
        ? `${now}. Find the range with the highest SQNR, then compare.`
        : guess
          ? `Your range ${span(...guess.ends)} was ${short(guess.mse)}; ${goal}. ` +
            `${moved ? `${now}; ${cause}.` : `There ${cause}.`}`
          : `${now}; ${cause}. That is ${short(q.mse)}; ${goal}.`;
      top.describe(`Histogram with the range and its grid. ${now}.`);
      below.describe(
        shown
          ? `Rounding, clipping and total error against the width of the range; ` +
            `least in total at ${percent(best.share)} of it. ${text}`
          : `The total error of the ranges tried so far; the curves are hidden. ${text}`,
      );
      caption.set(text);
    });
  },
};
