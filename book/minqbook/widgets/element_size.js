// One element of the array to scale, and how often it fits into the area of a float32 multiply-add.
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, percent } from "./kit/format.js";

const PARTS = ["multiplier", "adder", "flip_flops"], TONES = ["blue", "red", "grey"];
const FLOATS = { float32: ["float32", "FP32"], bfloat16: ["bfloat16", "BF16"], fp8_e4m3: ["FP8 E4M3", "FP8"] };
const PRODUCTS = 1152, UNITS = 64;
const sum = values => values.reduce((a, b) => a + b, 0);

/** Bits of an accumulator that PRODUCTS products cannot overflow: minq.mac.accumulator_bits. */
export const safeBits = (w, x) => 1 + Math.ceil(Math.log2(PRODUCTS * 2 ** (w - 1) * (2 ** x - 1)));

/** What ElementSize.result() has in Python. */
export function result(elements, floats, { weightBits: w, inputBits: x, accumulator }) {
  const acc = accumulator === "32" ? 32 : safeBits(w, x);
  const parts = elements.find(e => e[0] === w && e[1] === x && e[2] === acc).slice(3), cells = sum(parts);
  return {
    acc_bits: acc, ...Object.fromEntries(PARTS.map((k, i) => [k, parts[i]])), cells,
    products: Math.floor(2 ** (acc - 1) / (2 ** (w - 1) * (2 ** x - 1))),
    per_cycle: Math.floor((UNITS * sum(floats.float32)) / cells),
  };
}

/** A square of `cells` at (x, y), its parts as bands: their areas are to scale. */
function square(x, y, side, parts, opacity = 1) {
  let top = y;
  const total = sum(parts);
  return parts.map((cells, i) => {
    const height = (side * cells) / total, band = { x, y: top, width: side, height, opacity };
    top += height;
    return svg("rect", { class: `mq-area mq-${TONES[i]}`, ...band });
  });
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const elements = w.get("elements"), floats = w.get("floats");
    const bits = [...new Set(elements.map(e => e[0]))].map(b => [b, String(b)]);
    w.controls(
      w.segmented({ trait: "weight_bits", label: "Weight bits", options: bits }),
      w.segmented({ trait: "input_bits", label: "Input bits", options: bits }),
      w.segmented({
        trait: "accumulator", label: "Accumulator",
        options: [["32", "32 bits"], ["safe", "safe for 1,152 products"]],
      }),
    );
    const p = w.plot({ height: width => Math.min(240, width * 0.28) + 44, margin: { left: 0, right: 0 } });
    w.add(p);
    w.legend([["box blue", "multiplier"], ["box red", "adder"], ["box grey", "flip-flops"]]);
    const out = w.readouts([
      ["cells", "cells", "gates and flip-flops"],
      ["multiplier", "multiplier"],
      ["adder", "adder"],
      ["flip_flops", "flip-flops"],
      ["products", "safe products", "so many of them cannot overflow the sum"],
      ["per_cycle", "done in a cycle", "multiply-adds on the area of 64 float32 ones"],
    ]);
    const caption = w.caption();
    return w.start(() => {
      const setting = { weightBits: w.get("weight_bits"), inputBits: w.get("input_bits") };
      const r = result(elements, floats, { ...setting, accumulator: w.get("accumulator") });
      const parts = PARTS.map(k => r[k]), all = Object.entries(floats), big = sum(floats.float32);
      const narrow = p.width < 560, gap = 14, edge = 30, roots = all.map(([, v]) => Math.sqrt(sum(v)));
      // Three floats and the element in a row; the first is also the frame that copies fill.
      const unit = Math.min(
        (p.width - 4 * gap) / (sum(roots) + Math.sqrt(r.cells) + Math.sqrt(big)),
        (p.height - edge - 10) / Math.sqrt(big),
      );
      const nodes = [], base = edge + unit * Math.sqrt(big);
      let x = 2;
      const put = (name, cells, draw) => {
        const side = unit * Math.sqrt(cells), y = base - side;
        draw(x, y, side);
        const middle = x + side / 2;
        if (name) nodes.push(svg("text", { class: "mq-tick", x: middle, y: y - 6, "text-anchor": "middle" }, name));
        x += side + gap;
      };
      put(narrow ? "filled" : "the same area, filled", big, (left, y, side) => {
        const own = unit * Math.sqrt(r.cells), across = Math.max(1, Math.floor(side / own + 1e-9));
        nodes.push(svg("rect", { class: "mq-stroke mq-soft", x: left, y, width: side, height: side }));
        for (let k = 0; k < across * across; k++) {
          const at = [left + (k % across) * own, base - (Math.floor(k / across) + 1) * own];
          if (own <= side) nodes.push(...square(at[0] + 0.5, at[1] + 0.5, own - 1, parts, 0.85));
        }
      });
      put("", r.cells, (left, y, side) => nodes.push(...square(left, y, side, parts)));
      for (const [k, v] of all) put(FLOATS[k][narrow ? 1 : 0], sum(v), (left, y, side) => {
        nodes.push(...square(left, y, side, v));
      });
      p.layer("squares").replaceChildren(...nodes);
      const share = k => percent(r[k] / r.cells);
      const text =
        `${setting.weightBits}-bit weights, ${setting.inputBits}-bit inputs and a ${r.acc_bits}-bit accumulator take ` +
        `${fmt(r.cells, 5)} cells: ${share("multiplier")} multiply, ${share("adder")} add, ` +
        `${share("flip_flops")} are flip-flops. ` +
        `On the area of 64 float32 multiply-adds an array of them does ${fmt(r.per_cycle, 5)} in a cycle.`;
      out.set({
        cells: fmt(r.cells, 5), multiplier: share("multiplier"), adder: share("adder"), flip_flops: share("flip_flops"),
        products: r.products < 1 ? "none" : fmt(r.products), per_cycle: fmt(r.per_cycle, 5),
      });
      caption.set(text);
      p.describe(`Squares to scale. ${text}`);
    });
  },
};
