// The affine quantizer on the real line: data, grid, staircase and error; eq. (4) to (7) by hand.
import { extent, floats, histogram } from "./kit/data.js";
import { attr, sub, svg, tsub } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent } from "./kit/format.js";
import { areaPath, histogramPath, linePath, linear, stepPath } from "./kit/scales.js";
import {
  dequantize,
  errorParts,
  fakeQuantize,
  gridLimits,
  integerGrid,
  quantize,
  roundHalfEven,
  scaleZeroPoint,
} from "./quantize.js";

const SIGNAL_MOST = 2000; // samples drawn one by one
const SIDE = { left: 46, right: 16 };

/** The staircase x -> x_hat on [a, b] as corner points [x, x_hat]. */
function staircase(a, b, scale, z, [n, p]) {
  const level = x => Math.max(n, Math.min(p, roundHalfEven(x / scale) + z));
  const first = level(a), last = level(b), points = [[a, scale * (first - z)]];
  for (let k = first; k < last; k++) points.push([scale * (k + 0.5 - z), scale * (k + 1 - z)]);
  return points;
}

/** Corners of the error x_hat - x over [a, b]: a saw inside the grid, slopes outside. */
function saw(a, b, corners) {
  const points = [];
  corners.forEach(([x, xHat], i) => {
    points.push([x, xHat - x]);
    const end = corners[i + 1]?.[0] ?? b;
    points.push([end, xHat - end]);
  });
  return points;
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const data = floats(model.get("data")), wave = data.slice(0, SIGNAL_MOST), name = model.get("name");
    const [low, high] = extent(data), seen = [Math.min(low, 0), Math.max(high, 0)];
    const width = seen[1] - seen[0] || 1;
    const domain = [seen[0] - 0.18 * width, seen[1] + 0.18 * width]; // stands still: only the grid moves
    const tiny = width / 500;

    const state = () => {
      const bits = w.get("bits"), scale = w.get("scale"), signed = w.get("signed"), symmetric = w.get("symmetric");
      const options = { signed }, [n, p] = integerGrid(bits, options);
      return { bits, scale, z: w.get("zero_point"), signed, symmetric, options, n, p };
    };
    const limits = () => { const q = state(); return gridLimits(q.scale, q.z, q.bits, q.options); };
    // What the grid is meant to cover. The zero-point's rounding moves its ends a little, so the wish is
    // kept, until someone else (a slider, Python) sets scale or zero-point.
    let range = limits(), known = "";
    const key = () => { const q = state(); return [q.bits, q.scale, q.z, q.signed].join(); };
    const wish = () => { if (key() !== known) range = limits(); return range; };
    const put = change => { w.set(change); known = key(); };
    known = key();

    const cover = (change = {}) => {
      const { bits, signed, symmetric } = { ...state(), ...change };
      const ends = symmetric && !signed ? [0, Math.max(range[1], tiny)] : range;
      const [scale, zero_point] = scaleZeroPoint(ends[0], ends[1], bits, { signed, symmetric });
      put({ ...change, scale, zero_point });
    };
    const drag = end => v => {
      const { symmetric, signed } = state(), [a, b] = wish();
      if (symmetric && signed) range = [-Math.max(Math.abs(v), tiny), Math.max(Math.abs(v), tiny)];
      else range = end ? [a, Math.max(v, a + tiny)] : [Math.min(v, b - tiny), b];
      cover();
    };
    const setBits = bits => {
      const q = state(), signed = q.signed && bits > 1, [n, p] = integerGrid(bits, { signed });
      wish();
      if (w.get("keep") === "range") return cover({ bits, signed });
      w.set({ bits, signed, zero_point: q.symmetric ? 0 : n + roundHalfEven(((q.z - q.n) / (q.p - q.n)) * (p - n)) });
    };
    const setSigned = signed => {
      const q = state();
      wish();
      if (q.symmetric) return cover({ signed });
      put({ signed, zero_point: q.z - q.n + integerGrid(q.bits, { signed })[0] }); // the same real grid, renamed
    };

    // --- Controls above, pictures, numbers, further choices below ---
    const bits = w.slider({
      label: "Bits b",
      value: w.get("bits"),
      min: 1,
      max: Math.max(8, w.get("bits")),
      onInput: setBits,
    });
    const scale = w.slider({
      label: "Scale s", trait: "scale", log: true, format: v => fmt(v, 4),
      min: Math.min(width / 4096, w.get("scale")), max: Math.max(2 * width, w.get("scale")),
    });
    const zero = w.slider({ label: "Zero-point z", trait: "zero_point", min: 0, max: 15, format: v => fmt(v, 6) });
    w.controls(bits, scale, zero);

    const hist = w.plot({ height: 190, margin: { ...SIDE, top: 52, bottom: 24 } });
    const stair = w.plot({ height: x => (x < 480 ? 190 : 230), margin: { ...SIDE, top: 24, bottom: 12 } });
    const err = w.plot({ height: 124, margin: { ...SIDE, top: 24, bottom: 40 } });
    const onLine = [hist, stair, err].map(p => w.add(p));
    const signal = w.plot({ height: x => (x < 480 ? 260 : 320), margin: { ...SIDE, top: 24, bottom: 20 } });
    const signalErr = w.plot({ height: 124, margin: { ...SIDE, top: 24, bottom: 40 } });
    const onTime = [signal, signalErr].map(p => w.add(p));

    const steps = w.steps([
      ["x", "x"],
      ["ratio", "x / s"],
      ["round", "round"],
      ["shift", "+ z"],
      ["clamp", ["clamp = ", sub("x", "int")]],
      ["hat", ["s (", sub("x", "int"), " − z) = x̂"]],
      ["error", "error x̂ − x"],
    ]);
    const out = w.readouts([
      ["mse", "MSE", "mean squared error"], ["sqnr", "SQNR", "signal-to-quantization-noise ratio"],
      ["clipped", "clipped values"], ["low", sub("q", "min")], ["high", sub("q", "max")], ["levels", "levels"],
    ]);
    const caption = w.caption();
    const view = w.segmented({
      label: "Look at the data",
      trait: "view",
      options: [
        ["line", "on the real line"],
        ["signal", "as a signal"],
      ],
    });
    const grid = w.segmented({
      label: "Integers",
      value: w.get("signed"),
      options: [
        [false, "unsigned"],
        [true, "signed"],
      ],
      onInput: setSigned,
    });
    const symmetry = w.segmented({
      label: "Grid",
      trait: "symmetric",
      options: [
        [false, "asymmetric"],
        [true, "symmetric (z = 0)"],
      ],
      onInput: () => {
        wish();
        cover();
      },
    });
    const keep = w.segmented({
      label: "A change of bits keeps",
      trait: "keep",
      options: [
        ["range", "the range"],
        ["scale", "the scale"],
      ],
    });
    const fit = w.button({
      label: "Fit to data (min–max)",
      onClick: () => {
        range = seen[1] > seen[0] ? [...seen] : [-tiny, tiny];
        cover();
      },
    });
    w.controls(view, grid, symmetry, keep, fit);
    w.on("bits", () => { if (bits.value !== w.get("bits")) bits.value = w.get("bits"); });
    w.on("signed", () => { if (grid.value !== w.get("signed")) grid.value = w.get("signed"); });

    // --- The value under the loupe: pointer, finger, or the green handle by keys ---
    let at = Math.max(0, Math.floor(wave.length * 0.19)), probe = data[at] ?? 0;
    const lookAt = x => { probe = Math.max(domain[0], Math.min(domain[1], x)); w.redraw(); };
    const lookAtSample = i => {
      at = Math.max(0, Math.min(wave.length - 1, Math.round(i)));
      probe = wave[at] ?? 0;
      w.redraw();
    };
    let xLine = linear(domain, [0, 1]), xTime = xLine;
    for (const p of [hist, stair, err]) p.hover(px => lookAt(xLine.invert(px)));
    for (const p of [signal, signalErr]) p.hover(px => lookAtSample(xTime.invert(px)));
    const lowEnd = hist.handle({ label: "Lower end of the grid, q min", tone: "blue", onInput: drag(0) });
    const highEnd = hist.handle({ label: "Upper end of the grid, q max", tone: "blue", onInput: drag(1) });
    const lowLine = signal.handle({
      label: "Lower end of the grid, q min",
      vertical: true,
      tone: "blue",
      onInput: drag(0),
    });
    const highLine = signal.handle({
      label: "Upper end of the grid, q max",
      vertical: true,
      tone: "blue",
      onInput: drag(1),
    });
    const finger = stair.handle({ label: "Value x to follow", tone: "green", onInput: lookAt });
    const fingerTime = signal.handle({ label: "Sample to follow", tone: "green", onInput: lookAtSample });

    const zones = (p, q, scaleAlong, vertical) => {
      // Beyond half a step from its end the grid clips: errors grow without bound.
      const [a, b] = [q.scale * (q.n - 0.5 - q.z), q.scale * (q.p + 0.5 - q.z)].map(v =>
        Math.max(domain[0], Math.min(domain[1], v)),
      );
      const boxes = [[domain[0], a], [b, domain[1]]].filter(([u, v]) => v > u).map(pair => pair.map(scaleAlong));
      p.layer("zones").replaceChildren(...boxes.flatMap(([u, v]) => {
        const [first, size] = [Math.min(u, v), Math.abs(v - u)];
        const box = vertical
          ? { x: p.left, width: p.right - p.left, y: first, height: size }
          : { x: first, width: size, y: p.top, height: p.bottom - p.top };
        return [svg("rect", { class: "mq-veil", ...box }), svg("rect", { fill: p.hatch, ...box })];
      }));
    };

    /** The integer ruler above the histogram: one blue mark a level, names where there is room. */
    const ruler = (q, x) => {
      const y = hist.top - 14, gap = Math.abs(x(q.scale) - x(0)), inside = v => v >= domain[0] && v <= domain[1];
      const real = k => dequantize(k, q.scale, q.z), marks = [], names = [];
      const from = Math.max(q.n, Math.ceil(domain[0] / q.scale + q.z)),
        to = Math.min(q.p, Math.floor(domain[1] / q.scale + q.z));
      marks.push(
        svg("line", {
          class: "mq-stroke mq-blue",
          x1: x(Math.max(domain[0], real(q.n))),
          x2: x(Math.min(domain[1], real(q.p))),
          y1: y,
          y2: y,
        }),
      );
      if (gap >= 3) {
        for (let k = from; k <= to; k++)
          marks.push(
            svg("line", {
              class: `mq-stroke mq-blue${k === q.z ? " mq-thick" : " mq-thin"}`,
              x1: x(real(k)),
              x2: x(real(k)),
              y1: y,
              y2: y + (k === q.z ? 14 : 7),
            }),
          );
      }
      const every =
        [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000].find(m => m * gap >= 34) ?? 50000;
      const room = Math.min(34, Math.max(26, every * gap));
      const fixedNames = [...new Set([q.n, q.p, q.z])].filter(k => inside(real(k)));
      const name = (k, strong) =>
        names.push(
          svg(
            "text",
            {
              class: `mq-tick mq-blue${strong ? " mq-strong" : ""}`,
              x: x(real(k)),
              y: y - 14,
              "text-anchor": "middle",
            },
            strong ? `z = ${fmt(k, 6)}` : fmt(k, 6),
          ),
        );
      for (const k of fixedNames) {
        if (k === q.z || Math.abs(x(real(k)) - x(real(q.z))) > 48) name(k, k === q.z);
      }
      for (let k = Math.ceil(from / every) * every; k <= to; k += every) {
        if (fixedNames.every(f => Math.abs(x(real(k)) - x(real(f))) > (f === q.z ? room + 14 : room))) name(k, false);
      }
      hist.layer("ruler").replaceChildren(...marks, ...names,
        svg("text", { class: "mq-name mq-blue", x: 2, y: y + 4 }, tsub("x", "int")));
      return y;
    };

    const placeEnds = (q, ends, lower, upper, invert, where) => {
      const common = { step: width / 100, invert };
      lower.place({ ...where(ends[0]), ...common, value: range[0], min: domain[0], max: 0, text: fmt(ends[0], 4) });
      upper.place({ ...where(ends[1]), ...common, value: range[1], min: 0, max: domain[1], text: fmt(ends[1], 4) });
      lower.show(!(q.symmetric && !q.signed)); // that grid begins at 0
    };

    const drawLine = (q, ends, hat) => {
      const x = xLine = linear(domain, [hist.left, hist.right]);
      const levels = q.p - q.n + 1,
        gap = x(q.scale) - x(0),
        corners = levels < 3000 ? staircase(...domain, q.scale, q.z, [q.n, q.p]) : null;
      const bins = Math.max(24, Math.min(80, Math.round(hist.width / 9))), counts = histogram(data, ...domain, bins);
      const up = linear([0, 1.05 * Math.max(1, ...counts)], [hist.bottom, hist.top]);
      zones(hist, q, x, false);
      hist
        .layer("data")
        .replaceChildren(svg("path", { class: "mq-area mq-fill", d: histogramPath(counts, ...domain, x, up) }));
      hist.axisX(x, {});
      const y = ruler(q, x), edge = v => Math.max(hist.left, Math.min(hist.right, x(v)));
      hist
        .layer("ends")
        .replaceChildren(
          ...ends
            .filter(v => v > domain[0] && v < domain[1])
            .map(v =>
              svg("line", {
                class: "mq-stroke mq-blue mq-thin mq-dashed",
                x1: edge(v),
                x2: edge(v),
                y1: y,
                y2: hist.bottom,
              }),
            ),
        );
      hist
        .layer("probe")
        .replaceChildren(
          svg("line", {
            class: "mq-stroke mq-green mq-thin",
            x1: x(probe),
            x2: x(probe),
            y1: hist.top - 4,
            y2: hist.bottom,
          }),
        );
      placeEnds(q, ends, lowEnd, highEnd, x.invert, v => ({ x: edge(v), y }));

      const v = linear(domain, [stair.bottom, stair.top]);
      zones(stair, q, x, false);
      stair.axisY(v, { label: "x̂", ticks: 4 });
      const steps =
        corners && gap >= 2
          ? stepPath(
              corners.map(([a, b]) => [x(a), v(b)]),
              x(domain[1]),
            )
          : linePath([
              [x(domain[0]), v(ends[0])],
              [x(ends[0]), v(ends[0])],
              [x(ends[1]), v(ends[1])],
              [x(domain[1]), v(ends[1])],
            ]);
      const labelAt = domain[1] - 0.07 * (domain[1] - domain[0]);
      stair.layer("curve").replaceChildren(
        svg("path", {
          class: "mq-stroke mq-grey mq-thin",
          d: linePath([
            [x(domain[0]), v(domain[0])],
            [x(domain[1]), v(domain[1])],
          ]),
        }),
        svg("path", { class: "mq-stroke mq-blue", d: steps, "clip-path": stair.clip }),
        svg("text", { class: "mq-tick mq-halo", x: x(labelAt), y: v(labelAt) - 6, "text-anchor": "end" }, "x̂ = x"),
        svg("line", { class: "mq-axis", x1: stair.left, x2: stair.right, y1: stair.bottom, y2: stair.bottom }),
      );
      const hatY = v(Math.max(domain[0], Math.min(domain[1], hat)));
      stair.layer("probe").replaceChildren(
        svg("path", {
          class: "mq-stroke mq-green mq-thin",
          d: linePath([
            [x(probe), stair.bottom],
            [x(probe), stair.top],
          ]),
        }),
        svg("path", {
          class: "mq-stroke mq-green mq-thin mq-dashed",
          d: linePath([
            [x(probe), hatY],
            [stair.left, hatY],
          ]),
        }),
        svg("path", {
          class: "mq-stroke mq-red mq-thick",
          d: linePath([
            [x(probe), v(probe)],
            [x(probe), hatY],
          ]),
        }),
        svg("circle", { class: "mq-area mq-blue", cx: x(probe), cy: hatY, r: 4 }),
      );
      finger.place({
        x: x(probe),
        y: stair.bottom,
        value: probe,
        min: domain[0],
        max: domain[1],
        step: (domain[1] - domain[0]) / 200,
        invert: x.invert,
        text: `x = ${fmt(probe, 4)}, x hat = ${fmt(hat, 4)}`,
      });

      drawError(err, x, q.scale / 2, corners && gap >= 3 ? saw(...domain, corners) : null, ends, [probe, hat - probe]);
      err.axisX(x, { label: name });
    };

    /** The frame shows a bit more than +-s/2, which rounding never leaves; clipping runs out of it. */
    const drawError = (p, x, half, points, ends, [px, e]) => {
      const most = 1.9 * half, y = linear([-most, most], [p.bottom, p.top]);
      p.axisY(y, {
        label: "error x̂ − x",
        values: [-half, 0, half],
        format: v => (v ? `${v < 0 ? "−" : "+"}s/2` : "0"),
      });
      const marks = points
        ? [
            svg("path", {
              class: "mq-stroke mq-red",
              d: linePath(points.map(([a, b]) => [x(a), y(b)])),
              "clip-path": p.clip,
            }),
          ]
        : [
            svg("path", {
              class: "mq-area mq-red",
              opacity: 0.35,
              "clip-path": p.clip,
              d: areaPath(
                [
                  [x(ends[0]), y(half)],
                  [x(ends[1]), y(half)],
                ],
                y(-half),
              ),
            }),
            ...[
              [ends[0], domain[0]],
              [ends[1], domain[1]],
            ]
              .filter(([a, b]) => Math.sign(b - a) === Math.sign(a - (ends[0] + ends[1]) / 2))
              .map(([a, b]) =>
                svg("path", {
                  class: "mq-stroke mq-red",
                  "clip-path": p.clip,
                  d: linePath([
                    [x(a), y(0)],
                    [x(b), y(a - b)],
                  ]),
                }),
              ),
          ];
      const ey = y(Math.max(-most, Math.min(most, e)));
      p.layer("error").replaceChildren(
        ...marks,
        svg("line", { class: "mq-stroke mq-green mq-thin", x1: x(px), x2: x(px), y1: p.top, y2: p.bottom }),
        svg("circle", { class: "mq-area mq-red", cx: x(px), cy: ey, r: 4 }),
      );
    };

    const drawSignal = (q, ends, hat) => {
      const last = Math.max(1, wave.length - 1), x = xTime = linear([0, last], [signal.left, signal.right]);
      const y = linear(domain, [signal.bottom, signal.top]),
        gap = y(0) - y(q.scale),
        real = k => dequantize(k, q.scale, q.z);
      zones(signal, q, y, true);
      signal.axisY(y, { label: name, grid: false });
      const from = Math.max(q.n, Math.ceil(domain[0] / q.scale + q.z)),
        to = Math.min(q.p, Math.floor(domain[1] / q.scale + q.z)),
        rungs = [];
      if (gap >= 4)
        for (let k = from; k <= to; k++)
          rungs.push(
            svg("line", {
              class: "mq-stroke mq-blue mq-thin",
              opacity: k === q.z ? 0.8 : 0.22,
              x1: signal.left,
              x2: signal.right,
              y1: y(real(k)),
              y2: y(real(k)),
            }),
          );
      const hats = Array.from(wave, v => fakeQuantize(v, q.scale, q.z, q.bits, q.options));
      signal.layer("curve").replaceChildren(
        ...rungs,
        svg("path", { class: "mq-stroke mq-soft mq-thin", d: linePath(Array.from(wave, (v, i) => [x(i), y(v)])) }),
        svg("path", {
          class: "mq-stroke mq-blue",
          "clip-path": signal.clip,
          d: stepPath(
            hats.map((v, i) => [x(Math.max(0, i - 0.5)), y(v)]),
            x(last),
          ),
        }),
        svg("line", { class: "mq-axis", x1: signal.left, x2: signal.right, y1: signal.bottom, y2: signal.bottom }),
      );
      signal.layer("probe").replaceChildren(
        svg("line", { class: "mq-stroke mq-green mq-thin", x1: x(at), x2: x(at), y1: signal.top, y2: signal.bottom }),
        svg("path", {
          class: "mq-stroke mq-red mq-thick",
          "clip-path": signal.clip,
          d: linePath([
            [x(at), y(probe)],
            [x(at), y(hat)],
          ]),
        }),
        svg("circle", { class: "mq-area mq-blue", "clip-path": signal.clip, cx: x(at), cy: y(hat), r: 4 }),
      );
      placeEnds(q, ends, lowLine, highLine, y.invert, v => ({
        x: signal.right,
        y: Math.max(signal.top, Math.min(signal.bottom, y(v))),
      }));
      fingerTime.place({
        x: x(at),
        y: signal.bottom,
        value: at,
        min: 0,
        max: last,
        step: Math.max(1, Math.round(last / 200)),
        invert: x.invert,
        text: `sample ${at}, x = ${fmt(probe, 4)}, x hat = ${fmt(hat, 4)}`,
      });
      drawError(signalErr, x, q.scale / 2, hats.map((v, i) => [i, v - wave[i]]), ends, [at, hat - probe]);
      signalErr.axisX(x, {
        label:
          data.length > wave.length ? `sample (the first ${fmt(wave.length, 6)} of ${fmt(data.length, 6)})` : "sample",
        format: v => fmt(v, 6),
      });
    };

    return w.start(() => {
      wish();
      const q = state(), ends = gridLimits(q.scale, q.z, q.bits, q.options), levels = q.p - q.n + 1;
      const part = errorParts(data, q.scale, q.z, q.bits, q.options);
      const line = w.get("view") !== "signal";
      onLine.forEach(row => attr(row, { hidden: !line }));
      onTime.forEach(row => attr(row, { hidden: line }));
      bits.limit({ max: Math.max(8, q.bits) });
      zero.limit({ min: q.n, max: q.p, disabled: q.symmetric });
      scale.limit({ min: Math.min(width / 4096, q.scale), max: Math.max(2 * width, q.scale) });
      grid.limit({ disabled: q.bits === 1 });

      const ratio = probe / q.scale,
        round = roundHalfEven(ratio),
        shift = round + q.z,
        xInt = quantize(probe, q.scale, q.z, q.bits, q.options);
      const hat = dequantize(xInt, q.scale, q.z);
      if (line) drawLine(q, ends, hat);
      else drawSignal(q, ends, hat);
      steps.set(
        { x: probe, ratio, round: fmt(round, 6), shift: fmt(shift, 6), clamp: fmt(xInt, 6), hat, error: hat - probe },
        { clamp: xInt !== shift, error: xInt !== shift },
      );
      const dB = Number.isFinite(part.sqnr) ? `${fmt(part.sqnr)} dB` : `${fmt(part.sqnr)}`;
      out.set({
        mse: part.mse,
        sqnr: dB,
        clipped: percent(part.clipped),
        low: fmt(ends[0], 4),
        high: fmt(ends[1], 4),
        levels: fmt(levels, 6),
      });
      const text =
        `${q.bits} ${q.bits === 1 ? "bit gives" : "bits give"} ${fmt(levels, 6)} levels, ${fmt(q.scale)} apart, ` +
        `from ${fmt(ends[0])} to ${fmt(ends[1])}; ` +
        `real 0 is stored as ${fmt(q.z, 6)}. ` +
        `${part.clipped ? `${percent(part.clipped)} of the values are clipped` : "No value is clipped"}; SQNR ${dB}.`;
      caption.set(text);
      const here = `At x = ${fmt(probe, 4)} the quantizer stores ${fmt(xInt, 6)} and returns ${fmt(hat, 4)}.`;
      hist.describe(`Histogram of the data on the real line below the ruler of integers. ${text}`);
      stair.describe(`Staircase from x to x hat, flat beyond the ends of the grid. ${here}`);
      err.describe(
        `Error of the staircase: a saw between minus and plus half a step inside the grid, growing outside. ${here}`,
      );
      signal.describe(`The signal and its quantized steps. ${text} ${here}`);
      signalErr.describe(`Error at each sample. ${here}`);
    });
  },
};
