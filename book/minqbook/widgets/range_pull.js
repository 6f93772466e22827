// How values pull at the scale that rounds them: eq. (38), (39), the balance, and descent towards it.
import { clamp, gridLimits, integerGrid, roundHalfEven, scaleZeroPoint } from "./quantize.js";
import { extent, floats, histogram } from "./kit/data.js";
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent } from "./kit/format.js";
import { histogramPath, linePath, linear, logarithmic } from "./kit/scales.js";

const STEPS = 100, RATE = 0.15, SECONDS = 2.5; // of the descent
const MARGINS = { left: 54, right: 16 };
const COUNT = 90; // scales tried for the curves

/** d x_hat / d s of one value, eq. (38), and whether it is clipped. */
export function byScale(x, s, z, [n, p]) {
  const u = x / s, r = roundHalfEven(u), k = r + z;
  return k < n ? [n - z, true] : k > p ? [p - z, true] : [r - u, false];
}

/** Mean squared error, and the sums of dL/dx_hat times the derivatives: by the scale, in two parts,
 *  and by the zero-point, eq. (39). dL/dx_hat = 2 (x_hat - x) / N. */
export function pullsOf(x, s, z, grid) {
  const [n, p] = grid, N = x.length;
  let rounding = 0, clipping = 0, zero = 0, mse = 0, clipped = 0;
  for (let i = 0; i < N; i++) {
    const u = x[i] / s, r = roundHalfEven(u), k = r + z, level = (k < n ? n : k > p ? p : k) - z;
    const error = s * level - x[i], g = (2 * error) / N;
    mse += error * error;
    if (k < n || k > p) {
      clipping += g * level;
      zero -= g * s;
      clipped += 1;
    } else rounding += g * (r - u);
  }
  return { rounding, clipping, zero, mse: mse / N, clipped: clipped / N };
}

/** Adam on log2 s, its rate falling to 0 along a cosine; all scales from the first to the last. */
export function learnScale(x, s, z, grid, steps = STEPS, rate = RATE) {
  const path = [s];
  let v = Math.log2(s), m1 = 0, m2 = 0;
  for (let t = 0; t < steps; t++) {
    const { rounding, clipping } = pullsOf(x, 2 ** v, z, grid), g = (rounding + clipping) * 2 ** v * Math.LN2;
    m1 += 0.1 * (g - m1);
    m2 += 0.001 * (g * g - m2);
    const now = (rate * (1 + Math.cos((Math.PI * t) / steps))) / 2;
    v -= (now * m1) / (1 - 0.9 ** (t + 1)) / (Math.sqrt(m2 / (1 - 0.999 ** (t + 1))) + 1e-30);
    path.push(2 ** v);
  }
  return path;
}

/** Pulls at many scales; the scale of least error; the balance of the pulls that is closest to it. */
export function pullCurves(x, z, grid, [from, to]) {
  const at = s => ({ s, ...pullsOf(x, s, z, grid) }), net = g => g.rounding + g.clipping;
  const curve = Array.from({ length: COUNT + 1 }, (_, i) => at(from * (to / from) ** (i / COUNT)));
  let best = curve.reduce((a, b) => (b.mse < a.mse ? b : a));
  for (const reach of [0.04, 0.004]) {
    const middle = best.s;
    for (let k = -10; k <= 10; k++) { const g = at(middle * 2 ** ((reach * k) / 10)); if (g.mse < best.mse) best = g; }
  }
  let balance = null;
  for (let i = 0; i < COUNT; i++) {
    if (!(net(curve[i]) < 0 && net(curve[i + 1]) >= 0)) continue;
    let [a, b] = [curve[i], curve[i + 1]];
    for (let k = 0; k < 16; k++) { const m = at(Math.sqrt(a.s * b.s)); if (net(m) < 0) a = m; else b = m; }
    const far = g => Math.abs(Math.log(g.s / best.s));
    if (!balance || far(b) < far(balance)) balance = b;
  }
  return { curve, best, balance };
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const data = floats(w.get("data")),
      name = w.get("name"),
      signed = w.get("signed"),
      options = { signed, symmetric: signed };
    const [low, high] = extent(data), seen = [Math.min(low, 0), Math.max(high, 0)];
    const reach = signed ? Math.max(-low, high) : 0, spare = 0.1 * (seen[1] - seen[0]);
    const view = signed ? [-1.1 * reach, 1.1 * reach] : [seen[0] - (low < 0 ? spare : spare / 4), seen[1] + spare];

    const state = () => {
      const bits = w.get("bits"), s = w.get("scale"), z = w.get("zero_point");
      return { bits, s, z, grid: integerGrid(bits, { signed }), ends: gridLimits(s, z, bits, { signed }) };
    };
    const widest = bits => scaleZeroPoint(...seen, bits, options)[0];
    const limits = bits => [widest(bits) / 24, 1.6 * widest(bits)];
    let known = "", found = null;
    const curves = q => {
      const key = `${q.bits} ${q.z}`;
      if (key !== known) { known = key; found = pullCurves(data, q.z, q.grid, limits(q.bits)); }
      return found;
    };

    // --- Controls ---
    let path = null, spent = 0;
    const stop = () => { if (motion.playing) { motion.pause(); learn.label("Let gradient descent run"); } };
    const motion = w.loop(dt => {
      spent = Math.min(1, spent + dt / SECONDS);
      w.set("scale", path[Math.round(spent * (path.length - 1))]);
      if (spent === 1) stop();
    });
    const learn = w.button({ label: "Let gradient descent run", onClick: () => {
      if (motion.playing) return stop();
      const q = state();
      path = learnScale(data, q.s, q.z, q.grid);
      if (w.still()) return w.set("scale", path.at(-1));
      spent = 0;
      learn.label("Stop");
      motion.play();
    } });
    const setScale = s => { stop(); w.set("scale", clamp(s, ...limits(w.get("bits")))); };
    const setBits = bits => {
      stop();
      const q = state(),
        [scale, zero_point] = scaleZeroPoint(Math.min(q.ends[0], 0), Math.max(q.ends[1], 0), bits, options);
      w.set({ bits, scale: clamp(scale, ...limits(bits)), zero_point });
    };
    const [n0, p0] = integerGrid(w.get("bits"), { signed });
    const bits = w.slider({ label: "Bits", value: w.get("bits"), min: 2, max: 8, onInput: setBits });
    const scale = w.slider({
      label: "Scale s",
      value: w.get("scale"),
      log: true,
      min: limits(w.get("bits"))[0],
      max: limits(w.get("bits"))[1],
      onInput: setScale,
    });
    const zero = signed
      ? null
      : w.slider({ trait: "zero_point", label: "Zero-point z", min: n0, max: p0, onInput: stop });
    w.controls(bits, scale, ...(zero ? [zero] : []));
    const goTo = which => () => { const to = curves(state())[which]; if (to) setScale(to.s); };
    const fit = w.button({ label: "Go to min–max", onClick: () => {
      stop();
      const [scale, zero_point] = scaleZeroPoint(...seen, w.get("bits"), options);
      w.set({ scale, zero_point });
    } });
    w.controls(learn, w.button({ label: "Go to least error", onClick: goTo("best") }), fit);

    const top = w.plot({ height: x => (x < 480 ? 160 : 180), margin: { ...MARGINS, top: 44, bottom: 24 } });
    const slope = w.plot({ height: 134, margin: { ...MARGINS, top: 26, bottom: 12 } });
    const force = w.plot({ height: 150, margin: { ...MARGINS, top: 26, bottom: 40 } });
    const arrow = w.plot({ height: 74, margin: { ...MARGINS, top: 20, bottom: 6 } });
    const all = w.plot({ height: x => (x < 480 ? 220 : 230), margin: { ...MARGINS, top: 40, bottom: 40 } });
    for (const p of [top, slope, force, arrow, all]) w.add(p);
    const out = w.readouts([
      ["by_s", ["∂L/∂s"], "eq. (38) times the gradient of the loss, summed over all values"],
      ["rounding", "of rounding"],
      ["clipping", "of clipping"],
      ...(signed ? [] : [["by_z", "∂L/∂z", "eq. (39) likewise"]]),
      ["mse", "loss: MSE"],
      ["clipped", "clipped values"],
    ]);
    const caption = w.caption();
    const end = top.handle({ label: "End of the grid", tone: "blue", onInput: v => {
      const q = state(), k = upper(q) ? q.grid[1] - q.z : q.grid[0] - q.z;
      setScale(Math.max(v / k, 0) || limits(q.bits)[0]);
    } });
    const here = all.handle({ label: "Scale", onInput: setScale });
    const upper = q => 2 * (q.grid[1] - q.z) >= q.z - q.grid[0];

    const mark = (kind, d, more = {}) => svg("path", { class: `mq-stroke ${kind}`, d, ...more });
    const up = (kind, x, a, b) => mark(kind, `M${x.toFixed(1)} ${a}V${b}`);
    const word = (x, y, kind, text, anchor = "start") =>
      svg("text", { class: `mq-halo ${kind}`, x, y, "text-anchor": anchor }, text);
    const veil = (p, q, x) => {
      const a = clamp(q.s * (q.grid[0] - 0.5 - q.z), ...view), b = clamp(q.s * (q.grid[1] + 0.5 - q.z), ...view);
      p.layer("zones").replaceChildren(...[[view[0], a], [b, view[1]]].filter(([u, v]) => v > u).flatMap(([u, v]) => {
        const box = { x: x(u), width: x(v) - x(u), y: p.top, height: p.bottom - p.top };
        return [svg("rect", { class: "mq-veil", ...box }), svg("rect", { fill: p.hatch, ...box })];
      }));
    };

    const drawData = q => {
      const x = linear(view, [top.left, top.right]),
        bins = Math.round((top.right - top.left) / 6),
        counts = histogram(data, ...view, bins);
      const y = logarithmic([0.5, 1.6 * Math.max(1, ...counts)], [top.bottom, top.top]),
        [n, p] = q.grid,
        gap = x(q.s) - x(0),
        rungs = [];
      for (let k = n; k <= p; k++) { const v = q.s * (k - q.z); if (v >= view[0] && v <= view[1]) rungs.push(x(v)); }
      veil(top, q, x);
      top.axisX(x, {});
      top.axisY(y, { label: "", ticks: 3, format: v => fmt(v, 6) });
      const side = upper(q) ? 1 : 0,
        v = q.ends[side],
        ex = x(clamp(v, ...view)),
        knob = top.top - 22,
        right = ex > (top.left + top.right) / 2;
      top
        .layer("data")
        .replaceChildren(
          svg("path", { class: "mq-area mq-fill", d: histogramPath(counts, ...view, x, c => y(Math.max(c, 0.5))) }),
          mark(
            "mq-blue mq-thin",
            (gap >= 3 ? rungs : rungs.slice(0, 1).concat(rungs.slice(-1)))
              .map(u => `M${u.toFixed(1)} ${top.top}V${top.bottom}`)
              .join(""),
            { opacity: gap >= 8 ? 0.7 : 0.35 },
          ),
          up("mq-blue", ex, knob, top.bottom),
          word(ex + (right ? -14 : 14), knob + 4, "mq-blue mq-strong", "end of the grid", right ? "end" : "start"),
          right || ex > 120 ? word(2, top.top - 9, "mq-soft mq-tick", "values per bin") : "",
        );
      end.place({
        x: ex,
        y: knob,
        value: v,
        min: side ? 0 : view[0],
        max: side ? view[1] : 0,
        step: (view[1] - view[0]) / 200,
        text: fmt(v, 4),
        invert: x.invert,
      });
      return { x, bins };
    };

    /** Eq. (38): teeth of half a step inside, flat outside. Logarithms beyond 1 keep both in sight. */
    const drawSlope = (q, x) => {
      const [n, p] = q.grid, squeeze = v => (Math.abs(v) <= 1 ? v : Math.sign(v) * (1 + Math.log2(Math.abs(v)) / 2));
      const y = linear(
          [q.z > n ? 1.15 * squeeze(n - q.z) : -1, Math.max(1, 1.15 * squeeze(p - q.z))],
          [slope.bottom, slope.top],
        ),
        at = v => y(squeeze(v));
      veil(slope, q, x);
      const named = [n - q.z, 0, p - q.z].filter((v, i) => i === 1 || Math.abs(v) >= 1);
      slope.axisY(linear(y.domain, y.range), {
        label: "∂x̂/∂s of each value",
        values: named.map(squeeze),
        format: v => fmt(named[named.map(squeeze).indexOf(v)], 5),
      });
      const gap = x(q.s) - x(0), teeth = [];
      const from = Math.max(n, Math.floor(view[0] / q.s + q.z)), to = Math.min(p, Math.ceil(view[1] / q.s + q.z));
      for (let k = from; k <= to && gap >= 3; k++) {
        teeth.push(linePath([-0.5, 0.5].map(j => [x(q.s * (k - q.z + j)), at(-j)])));
      }
      const [a, b] = [q.s * (n - 0.5 - q.z), q.s * (p + 0.5 - q.z)].map(v => x(clamp(v, ...view)));
      const flat = [];
      if (a > slope.left) flat.push(`M${slope.left} ${at(n - q.z).toFixed(1)}H${a.toFixed(1)}`);
      if (b < slope.right) flat.push(`M${b.toFixed(1)} ${at(p - q.z).toFixed(1)}H${slope.right}`);
      slope
        .layer("curve")
        .replaceChildren(
          gap >= 3
            ? mark("mq-blue", teeth.join(""), { "clip-path": slope.clip })
            : svg("rect", {
                class: "mq-area mq-blue",
                opacity: 0.4,
                x: a,
                width: Math.max(0, b - a),
                y: at(0.5),
                height: at(-0.5) - at(0.5),
              }),
          mark("mq-red mq-thick", flat.join("")),
          word(
            clamp((a + b) / 2, slope.left + 60, slope.right - 60),
            at(0.5) - 8,
            "mq-blue",
            "rounded: −½ to ½",
            "middle",
          ),
          ...(slope.right - b > 80
            ? [word((b + slope.right) / 2, at(p - q.z) + 18, "mq-red", "clipped: p − z", "middle")]
            : []),
          ...(a - slope.left > 80
            ? [word((a + slope.left) / 2, at(n - q.z) - 9, "mq-red", "clipped: n − z", "middle")]
            : []),
        );
    };

    /** s dL/ds bin by bin: blue above zero (a smaller scale would help), red below. */
    const drawForce = (q, x, bins) => {
      const N = data.length, width = (view[1] - view[0]) / bins, sums = new Float64Array(bins);
      for (const v of data) {
        const [d] = byScale(v, q.s, q.z, q.grid), k = clamp(roundHalfEven(v / q.s) + q.z, ...q.grid);
        sums[Math.min(bins - 1, Math.floor((v - view[0]) / width))] += ((2 * (q.s * (k - q.z) - v)) / N) * d;
      }
      const [least, most] = extent(sums),
        y = linear([Math.min(least, -0.15 * most), Math.max(most, -0.15 * least)], [force.bottom, force.top]);
      veil(force, q, x);
      force.axisX(x, { label: name });
      force.axisY(y, { label: "their pull: times ∂L/∂x̂, summed in each bin", values: [0] });
      const bars = keep =>
        Array.from(sums, (v, i) =>
          keep(v) ? `M${x(view[0] + (i + 0.5) * width).toFixed(1)} ${y(0).toFixed(1)}V${y(v).toFixed(1)}` : "",
        ).join("");
      const thick = { style: `stroke-width: ${Math.max(2, 0.75 * (x(width) - x(0)))}px; stroke-linecap: butt` };
      force.layer("bars").replaceChildren(
        mark(
          "mq-blue",
          bars(v => v > 0),
          thick,
        ),
        mark(
          "mq-red",
          bars(v => v < 0),
          thick,
        ),
      );
    };

    const drawArrow = g => {
      const thin = arrow.width < 480;
      const middle = (arrow.left + arrow.right) / 2,
        room = (arrow.right - arrow.left) / 2 - 8,
        biggest = Math.max(g.rounding, -g.clipping) || 1;
      const y = (arrow.top + arrow.bottom) / 2 + 4,
        a = middle - (room * g.rounding) / biggest,
        b = middle - (room * g.clipping) / biggest;
      const net = middle - (room * (g.rounding + g.clipping)) / biggest, tip = net > middle ? -1 : 1;
      const arrowHead = Math.abs(net - middle) > 7 ? `M${net} ${y + 17}l${9 * tip} -5v10Z` : "";
      arrow.layer("bars").replaceChildren(
        svg("rect", { class: "mq-area mq-blue", x: a, width: middle - a, y: y - 10, height: 12 }),
        svg("rect", { class: "mq-area mq-red", x: middle, width: b - middle, y: y - 10, height: 12 }),
        up("mq-ink mq-thin", middle, y - 14, y + 24),
        mark("mq-ink mq-thick", `M${middle} ${y + 17}H${net}`), svg("path", { class: "mq-area mq-ink", d: arrowHead }),
        word(arrow.left, arrow.top - 4, "mq-blue mq-strong", thin ? "← rounding" : "← rounding: smaller scale"),
        word(arrow.right, arrow.top - 4, "mq-red mq-strong", thin ? "clipping →" : "clipping: larger scale →", "end"),
      );
    };

    const drawAll = (q, { curve, best, balance }, g) => {
      const { left, right, top: t, bottom } = all, thin = all.width < 480;
      const x = logarithmic(limits(q.bits), [left, right], 2), y0 = c => Math.max(c, 1e-300);
      const lines = [
        ["rounding", "mq-blue", c => c.rounding * c.s],
        ["clipping", "mq-red mq-dashed", c => -c.clipping * c.s],
        ["loss", "mq-ink", c => c.mse],
      ];
      const highest = Math.max(...curve.flatMap(c => [c.rounding * c.s, c.mse])) * 1.6,
        floor = (best.mse || highest / 1e6) / 8;
      const y = logarithmic([floor, highest], [bottom, t]);
      all.axisX(x, { label: "scale s", format: v => fmt(v, 3) });
      all.axisY(y, {
        label: thin ? "pulls, loss" : "both pulls times s, and the loss",
        ticks: 4,
        format: v => fmt(v, 2),
      });
      const dots = of => linePath(curve.map(c => [x(c.s), y(y0(of(c)))]));
      const b = balance && x(balance.s), m = x(best.s), close = balance && Math.abs(b - m) < 90;
      const name = (i, of, dy, anchor) =>
        word(
          x(curve[i].s) + (anchor === "end" ? -4 : 4),
          clamp(y(y0(of(curve[i]))) + dy, t + 10, bottom - 6),
          lines.find(l => l[2] === of)[1].split(" ")[0],
          lines.find(l => l[2] === of)[0],
          anchor,
        );
      all
        .layer("curves")
        .replaceChildren(
          ...lines.map(([, kind, of]) => mark(kind, dots(of), { "clip-path": all.clip })),
          up("mq-green mq-dashed", m, t - 4, bottom),
          word(
            close && m > b ? m + 4 : close ? m - 4 : m,
            t - 9,
            "mq-green mq-strong",
            "least error",
            close ? (m > b ? "start" : "end") : "middle",
          ),
          ...(balance
            ? [
                up("mq-purple mq-dashed", b, t - 4, bottom),
                word(
                  close && m > b ? b - 4 : close ? b + 4 : b,
                  t - 9,
                  "mq-purple mq-strong",
                  "balance",
                  close ? (m > b ? "end" : "start") : "middle",
                ),
                svg("circle", { class: "mq-area mq-purple", cx: b, cy: y(y0(balance.rounding * balance.s)), r: 4.5 }),
              ]
            : []),
          name(COUNT - 8, lines[0][2], -8, "end"),
          name(8, lines[1][2], 18, "start"),
          name(8, lines[2][2], -8, "start"),
        );
      const s = clamp(q.s, ...limits(q.bits));
      all.layer("here").replaceChildren(up("mq-ink mq-thin", x(s), t, bottom));
      here.place({
        x: x(s),
        y: clamp(y(y0(g.mse)), t, bottom),
        value: q.s,
        min: limits(q.bits)[0],
        max: limits(q.bits)[1],
        step: 0.02 * q.s,
        text: fmt(q.s),
        invert: x.invert,
      });
    };

    return w.start(() => {
      const q = state(), g = pullsOf(data, q.s, q.z, q.grid), C = curves(q), net = g.rounding + g.clipping;
      if (bits.value !== q.bits) bits.value = q.bits;
      const [from, to] = limits(q.bits);
      scale.limit({ min: Math.min(from, q.s), max: Math.max(to, q.s) });
      if (scale.value !== q.s) scale.value = q.s;
      zero?.limit({ min: q.grid[0], max: q.grid[1] });
      const { x, bins } = drawData(q);
      drawSlope(q, x);
      drawForce(q, x, bins);
      drawArrow(g);
      drawAll(q, C, g);
      out.set({
        by_s: net,
        rounding: g.rounding,
        clipping: g.clipping,
        ...(signed ? {} : { by_z: g.zero }),
        mse: g.mse,
        clipped: percent(g.clipped),
      });
      const weak = Math.abs(net) < 0.02 * Math.max(g.rounding, -g.clipping);
      const pull = weak
        ? "the two pulls balance"
        : net > 0
          ? "rounding pulls more: descent makes the scale smaller"
          : "clipping pulls more: descent makes the scale larger";
      const octaves = C.balance ? Math.log2(C.balance.s / C.best.s) : 0;
      const higher = C.balance ? fmt(10 * Math.log10(C.balance.mse / C.best.mse), 2) : "";
      const apart = Math.abs(octaves) < 0.02 ? "practically the same" : `and ${higher} dB higher at the balance`;
      const where = !C.balance
        ? "The pulls balance nowhere in sight."
        : `They balance at s = ${fmt(C.balance.s)}; the error is least at ${fmt(C.best.s)}, ${apart}.`;
      const text = `Scale ${fmt(q.s)}, ${percent(g.clipped)} of the values clipped: ${pull}. ${where}`;
      top.describe(`Histogram of ${name} with its grid from ${fmt(q.ends[0])} to ${fmt(q.ends[1])}. ${text}`);
      slope.describe(
        `The derivative by the scale: between minus and plus one half for rounded values, ` +
        `${fmt(q.grid[0] - q.z)} below the grid, ${fmt(q.grid[1] - q.z)} above it.`,
      );
      force.describe(
        "The pull of the values in each bin: positive where they are rounded, negative where they are clipped.",
      );
      arrow.describe(
        `Rounding pulls with ${fmt(g.rounding)} to a smaller scale, clipping with ${fmt(-g.clipping)} to a larger one.`,
      );
      all.describe(`Pulls and loss over the scale. ${where}`);
      if (motion.playing) caption.el.textContent = text;
      else caption.set(text);
    });
  },
};
