// One block of a language model's file: 20 bytes, their bits to flip, and the 32 weights they give back.
import { half } from "./floats.js";
import { bytes } from "./kit/data.js";
import { attr, h, svg, unique } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linear } from "./kit/scales.js";

const SIZE = 20, WEIGHTS = 32;

/** The bytes of a block with some bits turned over. */
export function flip(block, flipped) {
  const turned = Uint8Array.from(block);
  for (const bit of flipped) turned[bit >> 3] ^= 1 << (bit & 7);
  return turned;
}

/** { d, m, q, w } of a block: w = d q + m; BlockBytes.result() in Python. */
export function read(block) {
  const d = half(block[0] | (block[1] << 8)), m = half(block[2] | (block[3] << 8));
  const codes = block.subarray(4), q = [...codes].map(b => b & 15).concat([...codes].map(b => b >> 4));
  return { d, m, q, w: q.map(k => d * k + m) };
}

/** What a byte holds: [class, words, the weights that change with it]. */
function meaning(byte) {
  const all = Array.from({ length: WEIGHTS }, (_, i) => i);
  const halves = ["the low byte", "the high byte"];
  if (byte < 2) return ["blue", `${halves[byte]} of the scale d`, all];
  if (byte < 4) return ["red", `${halves[byte - 2]} of the minimum m`, all];
  const j = byte - 4;
  return ["code", `the codes of weights ${j} (bits 3 to 0) and ${j + 16} (bits 7 to 4)`, [j, j + 16]];
}

const hex = v => v.toString(16).padStart(2, "0");
const number = v => (Number.isNaN(v) ? "not a number" : Number.isFinite(v) ? fmt(v, 4) : "infinite");

/** Twenty radio buttons, one a byte: { el, put(block, chosen, flipped) }. */
function byteRow(choose) {
  const name = unique("byte");
  const cells = Array.from({ length: SIZE }, (_, k) => {
    const input = h("input", { type: "radio", name, "data-lm-suppress-shortcuts": true, change: () => choose(k) });
    const text = h("span");
    return { input, text, el: h("label", { class: `blk-${meaning(k)[0]}` }, input, text) };
  });
  const row = h("div", { class: "blk-bytes" }, cells.map(c => c.el));
  return {
    el: h("fieldset", { class: "blk-field" }, h("legend", {}, "The 20 bytes, in hexadecimal"), row),
    put(block, chosen, flipped) {
      cells.forEach(({ input, text, el }, k) => {
        text.textContent = hex(block[k]);
        input.checked = k === chosen;
        attr(input, { "aria-label": `byte ${k}, ${hex(block[k])}, ${meaning(k)[1]}` });
        el.classList.toggle("blk-flipped", flipped.some(bit => bit >> 3 === k));
      });
    },
  };
}

/** Eight buttons, the highest bit first: { el, put(byte, value, flipped) }. */
function bitRow(turn) {
  const buttons = Array.from({ length: 8 }, (_, i) =>
    h("button", { type: "button", class: "mq-button", click: () => turn(7 - i) }));
  const legend = h("legend");
  return {
    el: h("fieldset", { class: "blk-field" }, legend, h("div", { class: "blk-bits" }, buttons)),
    put(byte, value, flipped) {
      legend.textContent = `Byte ${byte}, bits 7 to 0: ${meaning(byte)[1]}`;
      buttons.forEach((button, i) => {
        const bit = 7 - i, on = (value >> bit) & 1;
        button.textContent = String(on);
        button.classList.toggle("blk-flipped", flipped.includes(8 * byte + bit));
        attr(button, { "aria-label": `bit ${bit} is ${on}; turn it over` });
      });
    },
  };
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const data = bytes(model.get("data"));
    const turn = bit => {
      const flipped = w.get("flipped");
      w.set("flipped", flipped.includes(bit) ? flipped.filter(b => b !== bit) : [...flipped, bit]);
    };
    const undo = w.button({ label: "Undo all", onClick: () => w.set("flipped", []) });
    const blocks = w.get("blocks");
    w.controls(
      ...(blocks > 1 ? [w.slider({ trait: "block", label: "Block", min: 0, max: blocks - 1 })] : []),
      undo,
    );
    w.on("block", () => w.set("flipped", []));
    const row = byteRow(k => w.set("byte", k)), bits = bitRow(bit => turn(8 * w.get("byte") + bit));
    w.add(row.el);
    w.add(bits.el);
    const p = w.plot({ height: 230, margin: { left: 64, top: 26 } });
    w.add(p);
    w.legend([
      ["line grey", "the 16 levels d q + m"],
      ["box grey", "weights as stored"],
      ["box blue", "weights now"],
      ["box red", "those of the chosen byte"],
    ]);
    const out = w.readouts([
      ["d", "scale d"],
      ["m", "minimum m"],
      ["changed", "weights changed"],
      ["most", "largest change"],
      ["bits", "bits per weight", "20 bytes for 32 weights"],
    ]);
    const caption = w.caption();

    const draw = (before, now, own) => {
      const levels = Array.from({ length: 16 }, (_, q) => now.d * q + now.m);
      const seen = [...before.w, ...now.w, ...levels].filter(Number.isFinite);
      const low = Math.min(0, ...seen), high = Math.max(0, ...seen), room = 0.06 * (high - low) || 1;
      const x = linear([-0.7, WEIGHTS - 0.3], [p.left, p.right]);
      const y = linear([low - room, high + room], [p.bottom, p.top]);
      p.axisX(x, { label: "weight", values: [0, 8, 16, 24, 31] });
      p.axisY(y, { label: "value", grid: false });
      const line = v => svg("line", { class: "mq-grid", x1: p.left, x2: p.right, y1: y(v), y2: y(v) });
      p.layer("levels").replaceChildren(...levels.filter(Number.isFinite).map(line));
      const dot = (v, i, tone, r) => svg("circle", { class: `mq-area mq-${tone}`, cx: x(i), cy: y(v), r });
      const dots = (values, tone, r) => values.flatMap((v, i) => (Number.isFinite(v) ? [dot(v, i, tone(i), r)] : []));
      p.layer("before").replaceChildren(...dots(before.w, () => "grey", 5));
      const chosen = i => own.length < WEIGHTS && own.includes(i);
      p.layer("now").replaceChildren(...dots(now.w, i => (chosen(i) ? "red" : "blue"), 3.5));
    };

    return w.start(() => {
      const k = w.get("block"), byte = w.get("byte"), flipped = w.get("flipped");
      const stored = data.subarray(k * SIZE, (k + 1) * SIZE), turned = flip(stored, flipped);
      const before = read(stored), now = read(turned), [, words, own] = meaning(byte);
      row.put(turned, byte, flipped);
      bits.put(byte, turned[byte], flipped);
      undo.limit({ disabled: flipped.length === 0 });
      draw(before, now, own);
      const moves = now.w.map((v, i) => Math.abs(v - before.w[i])), broken = now.w.some(v => !Number.isFinite(v));
      const changed = moves.filter(v => v !== 0).length, most = broken ? NaN : Math.max(...moves);
      out.set({ d: number(now.d), m: number(now.m), changed: String(changed), most: number(most), bits: "5" });
      const text = flipped.length === 0
        ? `Byte ${byte} is ${hex(stored[byte])}: ${words}. Turn one of its bits over.`
        : `${flipped.length} ${flipped.length === 1 ? "bit is" : "bits are"} turned over: ` +
          `${changed} of ${WEIGHTS} weights change, ` +
          (broken ? "and some are no finite numbers any more." : `by ${number(most)} at most.`);
      caption.set(text);
      p.describe(
        `${WEIGHTS} weights on the 16 levels from ${number(now.m)} to ${number(now.m + 15 * now.d)}, ` +
        `${number(now.d)} apart. ${text}`,
      );
    });
  },
};
