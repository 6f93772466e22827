// What is seen of the answers: a card for each form, the decibels between the layers, the times of each network.
import { h, svg } from "../kit/elements.js";
import { fixed, fmt } from "../kit/format.js";
import { linePath, linear } from "../kit/scales.js";
import { FORMS, chance, size } from "./answers.js";

const TONE = { fp32: "ink", int8: "blue", int4: "red" };

/** Three cards side by side: c.set(form, {tops, bytes, time, name, waits}). */
export function cards() {
  const made = new Map(FORMS.map(([form, label]) => {
    const facts = h("p", { class: "mqp-facts" }), answers = h("ol", { class: "mqp-answers" });
    const title = h("p", { class: `mq-title mq-${TONE[form]}` }, label);
    const el = h("section", { class: "mqp-card", "aria-label": label }, title, facts, answers);
    return [form, { facts, answers, el }];
  }));
  return {
    el: h("div", { class: "mqp-cards" }, [...made.values()].map(card => card.el)),
    set(form, { tops, bytes, time, name, waits = "" }) {
      const { facts, answers } = made.get(form);
      facts.textContent = `${size(bytes)}, ${time ? `${fmt(time)} ms` : "not timed"}`;
      const bars = (tops ?? []).map(([index, p], rank) => h(
        "li",
        { class: rank ? "" : "mqp-first" },
        h("span", {}, name(index)),
        h("b", {}, chance(p)),
        h("i", { "aria-hidden": "true", style: `width:${(100 * p).toFixed(1)}%` }),
      ));
      answers.replaceChildren(...(bars.length ? bars : [h("li", { class: "mqp-waits" }, waits)]));
    },
  };
}

/** Signal over error at every site, a line for each quantized form. */
export function drawDecibels(p, { sqnr, sites, at }) {
  const drawn = ["int8", "int4"].filter(form => sqnr?.[form]);
  const all = drawn.flatMap(form => sqnr[form]).filter(Number.isFinite);
  const x = linear([0, Math.max(1, sites.length - 1)], [p.left, p.right]);
  const y = linear([Math.min(0, ...all), Math.max(10, ...all) + 3], [p.bottom, p.top]);
  p.axisX(x, { values: [] });
  p.layer("ends").replaceChildren(
    svg("text", { class: "mq-tick", x: p.left, y: p.bottom + 16 }, "the picture"),
    svg("text", { class: "mq-tick", x: p.right, y: p.bottom + 16, "text-anchor": "end" }, "the answer"),
  );
  p.axisY(y, { label: "signal over error, dB" });
  p.layer("lines").replaceChildren(...drawn.flatMap(form => {
    const points = sqnr[form].map((v, i) => [x(i), y(Number.isFinite(v) ? v : y.domain[1])]);
    const middle = Math.floor(points.length / 2), around = points.slice(middle - 1, middle + 3).map(([, cy]) => cy);
    const ly = form === "int8" ? Math.min(...around) - 8 : Math.max(...around) + 18; // above one line, below the other
    return [
      svg("path", { class: `mq-stroke mq-${TONE[form]}`, d: linePath(points) }),
      ...points.map(([cx, cy]) => svg("circle", { class: `mq-area mq-${TONE[form]}`, cx, cy, r: 2.25 })),
      svg("text", { class: `mq-${TONE[form]} mq-strong mq-halo`, x: points[middle]?.[0], y: ly }, form.toUpperCase()),
    ];
  }));
  const mark = at === null || !drawn.length ? [] : [
    svg("line", { class: "mq-stroke mq-grey mq-thin", x1: x(at), x2: x(at), y1: p.top, y2: p.bottom }),
  ];
  p.layer("mark").replaceChildren(...mark);
  const said = drawn.map(form => `${form.toUpperCase()} from ${fmt(Math.min(...sqnr[form]))} to ` +
    `${fmt(Math.max(...sqnr[form]))} dB`).join(", ");
  p.describe(said ? `Signal over quantization error at ${sites.length} places of the network: ${said}.`
    : "Signal over quantization error between the layers; it appears with the answers.");
  return x;
}

/** One place in words. */
export function sayPlace({ sqnr, sites, at }) {
  if (at === null || !sqnr?.int8) return "Point at the picture to read a layer.";
  const parts = ["int8", "int4"].filter(f => sqnr[f]).map(f => `${f.toUpperCase()} ${fixed(sqnr[f][at], 1)} dB`);
  return `${sites[at]}: ${parts.join(", ")}`;
}

/** The times of all networks so far, as rows. */
export function timesTable(found, titles) {
  const rows = Object.entries(found).map(([network, of]) =>
    h("tr", {}, h("th", { scope: "row" }, titles[network]), FORMS.map(([form]) => h("td", {}, `${fmt(of[form])} ms`))));
  const head = h("tr", {}, h("th", { scope: "col" }, "a picture on your machine"),
    FORMS.map(([, label]) => h("th", { scope: "col" }, label)));
  return rows.length ? [h("table", { class: "mqp-times" }, h("thead", {}, head), h("tbody", {}, rows))] : [];
}
