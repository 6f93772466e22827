// A number bit by bit in seven formats: switches, the number on a logarithmic line, and its neighbours.
import { bitsOf, decode, encode, fields, finiteCodes, isFloat } from "./floats.js";
import { attr, h, svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt, raised } from "./kit/format.js";
import { linear, logarithmic } from "./kit/scales.js";

/** [exponent bits, mantissa bits, what the largest codes mean], or [bits] of a signed integer. */
export const FORMATS = {
  float32: [8, 23, "ieee"],
  bfloat16: [8, 7, "ieee"],
  float16: [5, 10, "ieee"],
  "FP8 E4M3": [4, 3, "nan"],
  "FP8 E5M2": [5, 2, "ieee"],
  INT8: [8],
  INT4: [4],
};
const NAMES = Object.keys(FORMATS),
  DIGITS = { float32: 9, float16: 6 };
const STARTS = [
  ["0.1", 0.1],
  ["1", 1],
  ["π", Math.PI],
  ["300", 300],
  ["70,000", 70000],
  ["10⁻⁶", 1e-6],
];

/** The next number up (way 1) or down (-1); null beyond the ends, and of what is no number. */
export function neighbour(value, format, way) {
  if (Number.isNaN(value)) return null;
  if (!isFloat(format)) {
    const p = 2 ** (format[0] - 1) - 1;
    return value + way <= p && value + way >= -p - 1 ? value + way : null;
  }
  const outward = value === 0 || value > 0 === way > 0,
    last = finiteCodes(format) - (format[2] === "ieee" ? 0 : 1);
  const code = encode(Math.abs(value), format) + (outward ? 1 : -1);
  if (code > last) return null;
  return decode(code, format) * (value === 0 ? way : value < 0 || Object.is(value, -0) ? -1 : 1);
}

export function kindOf(value, format) {
  if (!isFloat(format)) return "integer";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return "infinity";
  if (value === 0) return "zero";
  return Math.abs(value) >= 2 ** (2 - 2 ** (format[0] - 1)) ? "normal" : "subnormal";
}

/** What FloatBits.result() has in Python. */
export function result(name, origin, code) {
  const format = FORMATS[name],
    given = decode(code, FORMATS[origin]);
  if (name !== origin) code = encode(given, format);
  const value = decode(code, format),
    bits = code.toString(2).padStart(bitsOf(format), "0");
  const [below, above] = [-1, 1].map(way => neighbour(value, format, way));
  return { given, value, code, bits, kind: kindOf(value, format), below, above };
}

const said = (v, digits) =>
  v === null ? "none" : Number.isNaN(v) ? "not a number" : Object.is(v, -0) ? "−0" : fmt(v, digits);

/** The parts of a code: [class, name, index of the first bit, one behind the last]. */
function partsOf(format) {
  if (!isFloat(format))
    return [
      ["sign", `worth −${2 ** (format[0] - 1)}`, 0, 1],
      ["mantissa", `worth ${2 ** (format[0] - 2)} to 1`, 1, format[0]],
    ];
  const [E, M] = format;
  return [
    ["sign", "sign", 0, 1],
    ["exponent", `exponent, ${E} bits`, 1, 1 + E],
    ["mantissa", `mantissa, ${M} bits`, 1 + E, 1 + E + M],
  ];
}

/** What a bit is worth, for those who hear it. */
function worth(i, format) {
  const bits = bitsOf(format),
    place = bits - 1 - i;
  if (!isFloat(format)) return i ? `worth ${2 ** place}` : `worth −${2 ** place}`;
  const [, M] = format;
  if (i === 0) return "sign";
  return place >= M ? `exponent, worth ${2 ** (place - M)}` : `mantissa, worth 2${raised(place - M)} of the power`;
}

/** The switches of one format: { el, put(bits) }. */
function switches(format, turn) {
  const buttons = Array.from({ length: bitsOf(format) }, (_, i) =>
    h("button", {
      type: "button",
      "data-lm-suppress-shortcuts": true,
      "aria-label": `bit ${bitsOf(format) - 1 - i}`,
      click: () => turn(i),
    }),
  );
  const keys = { ArrowRight: 1, ArrowLeft: -1 };
  const move = event => {
    const to = buttons[buttons.indexOf(event.target) + keys[event.key]];
    if (!to) return;
    to.focus();
    event.preventDefault();
  };
  const groups = partsOf(format).map(([kind, name, from, to]) =>
    h(
      "fieldset",
      { class: `fb-field fb-${kind}` },
      h("legend", {}, name),
      h("div", { class: "fb-bits" }, buttons.slice(from, to)),
    ),
  );
  return {
    el: h("div", { class: "fb-fields", keydown: move }, groups),
    put(bits) {
      buttons.forEach((button, i) => {
        button.textContent = bits[i];
        button.classList.toggle("fb-on", bits[i] === "1");
        attr(button, { "aria-label": `bit ${bits.length - 1 - i}, ${worth(i, format)}, is ${bits[i]}; turn it over` });
      });
    },
  };
}

/** The value as sign, power and mantissa, or as a sum: nodes of a line. */
function formula(r, format, digits) {
  const end = ` = ${said(r.value, digits)}`;
  if (!isFloat(format)) {
    const weights = [...r.bits]
      .map((b, i) => (b === "1" ? (i ? 1 : -1) * 2 ** (r.bits.length - 1 - i) : 0))
      .filter(v => v);
    return [
      weights.length ? weights.map(v => fmt(v, 4)).join(" + ") + (weights.length > 1 ? end : "") : "no bit is set: 0",
    ];
  }
  const [E, M] = format,
    { sign, exponent, mantissa } = fields(r.code, format),
    lead = sign ? "−" : "+";
  if (r.kind === "infinity" || r.kind === "NaN") return [`exponent ${exponent}, mantissa ${mantissa}:${end.slice(2)}`];
  const bias = 2 ** (E - 1) - 1,
    normal = exponent > 0,
    m = mantissa / 2 ** M;
  const power = normal ? `${exponent} − ${bias}` : `1 − ${bias}`;
  return [`${lead} 2`, h("sup", {}, power), ` × ${normal ? fmt(1 + m, digits) : `0 + ${fmt(m, digits)}`}${end}`];
}

const TOLD = {
  zero: () => "All bits behind the sign are 0: this is zero.",
  subnormal: ([E, M]) =>
    `The exponent field is 0: a subnormal number, without the leading 1. From here down to 0 all numbers are ` +
    `2${raised(2 - 2 ** (E - 1) - M)} apart.`,
  normal: () => "A normal number: 1 and the mantissa, times a power of two.",
  infinity: () => "The exponent is all ones and the mantissa is 0: infinity.",
  NaN: ([, , special]) =>
    special === "nan"
      ? "All bits behind the sign are 1: not a number. It is the only such code of this format, which has no infinity."
      : "The exponent is all ones and the mantissa is not 0: not a number, as 0/0 gives.",
  integer: ([b]) =>
    `A whole number from −${2 ** (b - 1)} to ${2 ** (b - 1) - 1}: the first bit counts −${2 ** (b - 1)}, ` +
    `and neighbours are 1 apart everywhere.`,
};
const ROW = 20,
  MIN = 2 ** -149,
  MAX = 2 ** 128;

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const now = () => result(w.get("format"), w.get("origin"), w.get("code"));
    const put = (code, origin = w.get("format")) => w.set({ origin, code });
    const go = way => {
      const to = neighbour(now().value, FORMATS[w.get("format")], way);
      if (to !== null) put(encode(to, FORMATS[w.get("format")]));
    };
    w.controls(w.segmented({ trait: "format", label: "Format", options: NAMES.map(k => [k, k]) }));
    const starts = STARTS.map(([text, v]) =>
      w.button({ label: text, title: `start from ${text}`, onClick: () => put(encode(v, FORMATS.float32), "float32") }),
    );
    const lower = w.button({ label: "Next below", onClick: () => go(-1) });
    const upper = w.button({ label: "Next above", onClick: () => go(1) });
    w.controls(
      h(
        "fieldset",
        { class: "mq-field" },
        h("legend", {}, "Start from"),
        h(
          "div",
          { class: "fb-starts" },
          starts.map(b => b.el),
        ),
      ),
      lower,
      upper,
    );
    const panels = Object.fromEntries(
      NAMES.map(name => [
        name,
        switches(FORMATS[name], i => {
          const bits = now().bits;
          put(parseInt(bits.slice(0, i) + (bits[i] === "1" ? "0" : "1") + bits.slice(i + 1), 2));
        }),
      ]),
    );
    const line = h("p", { class: "fb-formula" });
    w.add(...NAMES.map(name => panels[name].el), line);
    const all = w.plot({ height: 30 + ROW * NAMES.length + 40, margin: { left: 78, top: 26, bottom: 44, right: 18 } });
    w.add(all);
    const near = w.plot({ height: 126, margin: { left: 14, right: 14, top: 40, bottom: 44 } });
    w.add(near);
    w.legend([
      ["box blue", "the chosen format"],
      ["box grey", "the others"],
      ["hatch", "subnormal numbers"],
      ["line green", "your number"],
      ["dot ink", "what the format holds"],
    ]);
    const knob = all.handle({
      label: "Size of your number",
      tone: "green",
      onInput: k => put(encode((now().given < 0 ? -1 : 1) * 2 ** k, FORMATS.float32), "float32"),
    });
    const out = w.readouts([
      ["value", "value"],
      ["step", "step up", "to the next number above"],
      ["off", "off your number"],
      ["least", "smallest above 0"],
      ["most", "largest"],
    ]);
    const caption = w.caption();

    const drawAll = r => {
      const p = all,
        x = logarithmic([MIN, MAX], [p.left, p.right]),
        chosen = w.get("format");
      const every = p.width < 500 ? 20 : 10;
      const powers = Array.from({ length: 9 }, (_, i) => (i - 4) * every).filter(k => k >= -44 && k <= 38);
      const label = k => (k ? `10${raised(k)}` : "1");
      p.axisX(x, {
        label: "size of the number",
        values: powers.map(k => 10 ** k),
        format: v => label(Math.round(Math.log10(v))),
      });
      const nodes = NAMES.flatMap((name, i) => {
        const format = FORMATS[name],
          y = p.top + 4 + i * ROW,
          on = name === chosen,
          tone = on ? "blue" : "grey";
        const bar = (from, to, more) =>
          svg("rect", {
            x: x(from),
            y,
            width: Math.max(1.5, x(to) - x(from)),
            height: ROW - 7,
            rx: 2,
            ...more,
          });
        const [least, first, most] = isFloat(format)
          ? [decode(1, format), 2 ** (2 - 2 ** (format[0] - 1)), decode(finiteCodes(format) - 1, format)]
          : [1, 1, 2 ** (format[0] - 1) - 1];
        return [
          bar(first, most, { class: `mq-area mq-${tone}` }),
          ...(least < first
            ? [bar(least, first, { fill: p.hatch }), bar(least, first, { class: `mq-stroke mq-thin mq-${tone}` })]
            : []),
          svg("text", { class: on ? "mq-blue mq-strong" : "mq-soft", x: 2, y: y + 11 }, name),
        ];
      });
      p.layer("ranges", "mq-answer").replaceChildren(...nodes);
      const size = Math.abs(r.given),
        held = Math.abs(r.value),
        at = v => x(Math.max(MIN, Math.min(MAX, v || MIN)));
      const here = Number.isNaN(r.given)
        ? []
        : [svg("path", { class: "mq-stroke mq-green", d: `M${at(size)} ${p.top - 2}V${p.bottom}` })];
      const word = Number.isNaN(r.given)
        ? "your number is not a number"
        : size === 0
          ? "0, off this line"
          : "your number";
      const left = at(size) > (p.left + p.right) / 2;
      const text = svg(
        "text",
        {
          class: "mq-halo mq-green mq-strong",
          x: Number.isNaN(r.given) ? p.left : at(size),
          y: p.top - 8,
          "text-anchor": Number.isNaN(r.given) ? "start" : left ? "end" : "start",
        },
        word,
      );
      const y = p.top + 4 + NAMES.indexOf(chosen) * ROW + (ROW - 7) / 2;
      const dot =
        Number.isNaN(held) || held === 0 ? [] : [svg("circle", { class: "mq-knob mq-ink", cx: at(held), cy: y, r: 5 })];
      p.layer("number").replaceChildren(...here, text, ...dot);
      const k = Math.log2(Math.max(MIN, Math.min(2 ** 127.99, size || MIN)));
      knob.place({
        x: x(2 ** k),
        y: p.bottom,
        value: Number.isNaN(k) ? 0 : k,
        min: -149,
        max: 127.99,
        step: 0.25,
        text: `${said(r.given, 4)}`,
        invert: v => Math.log2(x.invert(v)),
      });
    };

    /** The numbers around the value, on a line where a step is a step. */
    const drawNear = (r, digits) => {
      const p = near,
        format = FORMATS[w.get("format")],
        reach = p.width < 500 ? 3 : 6;
      const finite = Number.isFinite(r.value) ? [r.value] : [];
      for (const way of finite.length ? [-1, 1] : []) {
        let v = r.value;
        for (let k = 0; k < reach && (v = neighbour(v, format, way)) !== null && Number.isFinite(v); k++)
          finite.push(v);
      }
      const low = Math.min(...finite),
        high = Math.max(...finite),
        pad = 0.06 * (high - low);
      if (!finite.length) {
        p.layer("numbers").replaceChildren(
          svg(
            "text",
            { class: "mq-soft", x: p.left, y: p.top + 10 },
            "What is no finite number has no place on the line.",
          ),
        );
        return;
      }
      const x = linear([low - pad, high + pad], [p.left, p.right]),
        base = (p.top + p.bottom) / 2;
      const tick = v =>
        svg("path", {
          class: `mq-stroke ${v === r.value ? "mq-thick mq-ink" : "mq-blue"}`,
          d: `M${x(v)} ${base - 11}V${base + 11}`,
        });
      const word = (v, y, anchor, kind = "") =>
        svg("text", { class: `mq-halo ${kind}`, x: x(v), y, "text-anchor": anchor }, said(v, digits));
      const beside = [
        [r.below, "end", 4],
        [r.above, "start", -4],
      ].filter(([v]) => v !== null && Number.isFinite(v));
      const inside = r.given >= low - pad && r.given <= high + pad;
      const anchor = x(r.value) < p.left + 60 ? "start" : x(r.value) > p.right - 60 ? "end" : "middle";
      p.layer("numbers").replaceChildren(
        svg("line", { class: "mq-axis", x1: p.left, x2: p.right, y1: base, y2: base }),
        ...finite.map(tick),
        ...(inside
          ? [svg("path", { class: "mq-stroke mq-green", d: `M${x(r.given)} ${base - 19}v-3l5 -8h-10l5 8` })]
          : []),
        word(r.value, base - 26 - (inside ? 10 : 0), anchor, "mq-strong"),
        ...beside.map(([v, at]) => word(v, base + 28, at)),
        svg("text", { class: "mq-name", x: p.right, y: p.height - 4, "text-anchor": "end" }, "its neighbours here"),
      );
    };

    return w.start(() => {
      const name = w.get("format"),
        format = FORMATS[name],
        r = now(),
        digits = DIGITS[name] ?? 5;
      for (const k of NAMES) panels[k].el.hidden = k !== name;
      panels[name].put(r.bits);
      line.replaceChildren(...formula(r, format, digits));
      lower.limit({ disabled: r.below === null });
      upper.limit({ disabled: r.above === null });
      drawAll(r);
      drawNear(r, digits);
      const off = Math.abs(r.value - r.given),
        share = off / Math.abs(r.given);
      const missed =
        off === 0 || Object.is(r.value, r.given)
          ? "nothing"
          : Number.isFinite(share)
            ? `${fmt(100 * share, 2)} %`
            : "–";
      const most = isFloat(format) ? decode(finiteCodes(format) - 1, format) : 2 ** (format[0] - 1) - 1;
      out.set({
        value: said(r.value, digits),
        step: r.above === null || !Number.isFinite(r.above - r.value) ? "none" : fmt(r.above - r.value),
        off: missed,
        least: fmt(isFloat(format) ? decode(1, format) : 1),
        most: fmt(most, 4),
      });
      const zero = r.value === 0 && r.given !== 0 ? " Your number is too small for this format and becomes 0." : "";
      const large =
        Number.isFinite(r.given) && Math.abs(r.given) > most
          ? " Your number is too large for this format, and its nearest is the last one."
          : "";
      const text = `${said(r.value, digits)} in ${name}. ${TOLD[r.kind](format)}${zero}${large}`;
      caption.set(text);
      all.describe(
        `Seven formats as bars over the sizes that they hold, from 2⁻¹⁴⁹ to 2¹²⁸; your number, ` +
          `${said(r.given, 4)}, is a line across. ${text}`,
      );
      near.describe(
        `The value ${said(r.value, digits)} between its neighbours ${said(r.below, digits)} ` +
          `and ${said(r.above, digits)}.`,
      );
    });
  },
};
