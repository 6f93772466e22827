// A photo in fewer bits: the picture, its quantized twin, the error, and where the pixel values go.
import { bytes } from "./kit/data.js";
import { h, svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { histogramPath, linear } from "./kit/scales.js";
import { fakeQuantize, integerGrid, mse, scaleZeroPoint, sqnr } from "./quantize.js";

const WHITE = 255;
const CHANNELS = { 1: ["grey"], 3: ["red", "green", "blue"] };

/** Interleaved values to RGBA for a canvas, which rounds and clamps. */
function toRGBA(values, channels) {
  const rgba = new Uint8ClampedArray((values.length / channels) * 4).fill(WHITE);
  for (let i = 0, o = 0; i < values.length; i += channels, o += 4) {
    for (let c = 0; c < 3; c++) rgba[o + c] = values[i + (channels === 3 ? c : 0)];
  }
  return rgba;
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const pixels = bytes(model.get("pixels")), [rows, columns, channels] = model.get("shape");
    const names = CHANNELS[channels], on = () => w.get("channels");

    const bits = w.slider({ label: "Bits per value b", trait: "bits", min: 1, max: 8 });
    const gain = w.segmented({
      label: "Amplify the error (grey: none)",
      trait: "gain",
      options: [1, 4, 16].map(k => [k, `× ${k}`]),
    });
    const boxes = names.map((name, c) => w.checkbox({
      label: name, value: on()[c], onInput: v => w.set("channels", on().map((old, k) => (k === c ? v : old))),
    }));
    w.on("channels", () => boxes.forEach((box, c) => { if (box.value !== on()[c]) box.value = on()[c]; }));
    const choice = h(
      "fieldset",
      { class: "mq-field mq-segmented" },
      h("legend", {}, "Quantize"),
      h(
        "div",
        { class: "mq-checks" },
        boxes.map(box => box.el),
      ),
    );
    w.controls(bits, gain, ...(channels > 1 ? [choice] : []));

    const picture = title => w.pixels({ width: columns, height: rows, title, min: 80 });
    const before = picture("Original"), after = picture(""), error = picture("");
    w.add(before, after, error);
    const hist = w.plot({ height: 190, margin: { top: 38, left: 12, right: 12 }, grow: 3, min: 280 });
    const size = w.plot({ height: 186, margin: { top: 38, left: 2, right: 2, bottom: 4 }, grow: 2, min: 220 });
    w.add(hist, size);
    const out = w.readouts([
      ["psnr", "PSNR", "peak signal-to-noise ratio: 255 squared over the mean squared error"],
      ["sqnr", "SQNR", "signal-to-quantization-noise ratio"],
      ["mse", "MSE"],
      ["levels", "levels"],
      ["bytes", "bytes"],
      ["times", "compression", "bytes in float32 over bytes here"],
    ]);
    const caption = w.caption();
    before.put(toRGBA(pixels, channels));

    const share = new Array(256).fill(0);
    return w.start(() => {
      const b = w.get("bits"), [n, p] = integerGrid(b), [scale, z] = scaleZeroPoint(0, WHITE, b);
      const table = Array.from({ length: 256 }, (_, v) => fakeQuantize(v, scale, z, b)); // 256 values a pixel can have
      const chosen = on(),
        hat = new Float64Array(pixels.length),
        shown = new Float64Array(pixels.length),
        k = w.get("gain");
      share.fill(0);
      for (let i = 0; i < pixels.length; i++) {
        const quantized = chosen[i % channels];
        hat[i] = quantized ? table[pixels[i]] : pixels[i];
        shown[i] = 128 + k * (hat[i] - pixels[i]);
        if (quantized) share[pixels[i]] += 1;
      }
      const left = chosen.filter(Boolean).length, noise = mse(pixels, hat);
      const psnr = noise ? 10 * Math.log10(WHITE ** 2 / noise) : Infinity,
        dB = v => (Number.isFinite(v) ? `${fmt(v)} dB` : fmt(v));
      const all = rows * columns * channels,
        stored = Math.ceil((rows * columns * (left * b + (channels - left) * 8)) / 8);
      after.put(toRGBA(hat, channels));
      error.put(toRGBA(shown, channels));
      after.title(`${b} ${b === 1 ? "bit" : "bits"}`);
      error.title(`Error × ${k}`);

      const x = linear([-2, WHITE + 2], [hist.left, hist.right]);
      // Each level stands for the values that round to it; its stem is their average, so that stems
      // and histogram share one height.
      const held = new Array(p - n + 1).fill(0), wide = new Array(p - n + 1).fill(0);
      share.forEach((count, v) => {
        const level = Math.round(table[v] / scale);
        held[level] += count;
        wide[level] += 1;
      });
      const stems = held.map((count, level) => (wide[level] ? count / wide[level] : 0));
      const top = [...share].sort((a, c) => c - a)[3] || 1; // a few spikes (pure black or white) may leave the frame
      const y = linear([0, 1.1 * top], [hist.bottom, hist.top]);
      hist
        .layer("data")
        .replaceChildren(
          svg("path", { class: "mq-area mq-fill", "clip-path": hist.clip, d: histogramPath(share, -0.5, 255.5, x, y) }),
        );
      hist.layer("grid").replaceChildren(...stems.flatMap((height, level) => {
        const at = x(level * scale), end = Math.max(hist.top, y(height));
        return [
          svg("line", {
            class: `mq-stroke mq-blue${b > 6 ? " mq-thin" : ""}`,
            opacity: b === 8 ? 0.5 : 1,
            x1: at,
            x2: at,
            y1: hist.bottom,
            y2: end,
          }),
          b < 6 ? svg("circle", { class: "mq-area mq-blue", cx: at, cy: end, r: 3 }) : null,
        ];
      }).filter(Boolean));
      hist.axisX(x, { label: "value of a pixel", values: [0, 64, 128, 192, 255] });
      hist.layer("names").replaceChildren(
        svg("text", { class: "mq-soft", x: hist.left, y: 24 }, "pixel values ",
          svg("tspan", { class: "mq-blue mq-strong" }, `and the ${fmt(p - n + 1, 6)} levels they become`)));

      const bars = [
        ["float32", all * 4, "mq-fill"],
        ["8 bits", all, "mq-grey"],
        [`${b} ${b === 1 ? "bit" : "bits"}`, stored, "mq-blue"],
      ];
      const length = linear([0, all * 4], [0, size.right - size.left]);
      size.layer("bars").replaceChildren(
        svg("text", { class: "mq-soft", x: size.left, y: 24 }, "bytes of the picture, uncompressed"),
        ...bars.flatMap(([name, count, tone], i) => {
          const row = size.top + 10 + i * 48;
          return [
            svg(
              "text",
              { x: size.left, y: row + 6, class: i === 2 ? "mq-blue mq-strong" : "" },
              `${name}: ${fmt(count, 9)}`,
            ),
            svg("rect", {
              class: `mq-area ${tone}`,
              x: size.left,
              y: row + 13,
              width: Math.max(1, length(count)),
              height: 12,
              rx: 1,
            }),
          ];
        }));

      const times = (all * 4) / stored;
      out.set({
        psnr: dB(psnr),
        sqnr: dB(sqnr(pixels, hat)),
        mse: noise,
        levels: fmt(p - n + 1, 6),
        bytes: fmt(stored, 9),
        times: `${fmt(times)} ×`,
      });
      const part =
        left === channels
          ? ""
          : left
            ? ` Only ${names.filter((_, c) => chosen[c]).join(" and ")} ${left > 1 ? "are" : "is"} quantized.`
            : " No channel is quantized.";
      const text =
        `With ${b} ${b === 1 ? "bit" : "bits"} a value has ${fmt(p - n + 1, 6)} levels, ${fmt(scale)} apart: ` +
        `${fmt(stored, 9)} bytes, ${fmt(times)} times smaller than float32. ` +
        `${noise ? `PSNR ${dB(psnr)}.` : "Nothing is lost."}${part}`;
      caption.set(text);
      before.describe(`${w.get("subject")}, ${columns} by ${rows} pixels, 8 bits per value.`);
      after.describe(`The same picture. ${text}`);
      error.describe(`The error of each pixel, ${k} times amplified around grey; mean squared error ${fmt(noise)}.`);
      hist.describe(`Histogram of the pixel values and the ${fmt(p - n + 1, 6)} levels that replace them.`);
      size.describe(`Bytes: ${bars.map(([name, count]) => `${name} ${fmt(count, 9)}`).join(", ")}.`);
      gain.limit({ disabled: noise === 0 });
    });
  },
};
