// Train or not: the smallest network that loses no more than is allowed, and how to get it.
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fixed, fmt } from "./kit/format.js";
import { linear } from "./kit/scales.js";

const WORDS = { ptq: "PTQ", qat: "QAT" };

/** Rows come from many bits to few; the last one with a method inside, and the cheaper method. */
export function choose(rows, limit, methods = ["ptq", "qat"]) {
  for (const row of [...rows].reverse()) {
    const method = methods.find(m => row[m] && row[m][0] >= limit - 1e-9);
    if (method) return { row, method };
  }
  return null;
}

const amount = bytes =>
  bytes < 1e3 ? `${fmt(bytes)} B` : bytes < 1e6 ? `${fmt(bytes / 1e3)} kB` : `${fmt(bytes / 1e6)} MB`;
const difference = v =>
  Math.abs(v) < 0.05 ? "0.0 points" : v > 0 ? `${fixed(v, 1)} points` : `gains ${fixed(-v, 1)} points`;

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const networks = w.get("networks"), every = w.get("rows");
    const trained = networks.some(n => n.trained !== null), grains = new Set(every.map(r => r.per_channel));
    w.controls(
      ...[
        w.select({ trait: "network", label: "Network", options: networks.map(n => [n.name, n.name]) }),
        grains.size > 1 &&
          w.segmented({
            trait: "per_channel",
            label: "Scales",
            options: [
              [false, "per tensor"],
              [true, "per channel"],
            ],
          }),
        w.slider({
          trait: "allowed",
          label: "May be lost",
          min: 0,
          max: w.get("most"),
          step: 0.1,
          unit: "points",
          format: v => fixed(v, 1),
        }),
        trained &&
          w.segmented({
            trait: "reference",
            label: "Against FP32",
            options: [
              ["fp32", "as it was"],
              ["trained", "trained on"],
            ],
          }),
      ].filter(Boolean),
    );
    const widths = Math.max(
      ...networks.map(n =>
        Math.max(...[false, true].map(c => every.filter(r => r.network === n.name && r.per_channel === c).length)),
      ),
    );
    const p = w.plot({
      height: 90 + 54 * widths,
      margin: { left: 54, right: 70, top: 52, bottom: 38 },
      label: model.get("alt"),
    });
    w.add(p);
    w.legend([["dot blue", "PTQ"], ["box purple", "QAT"], ["line ink", "compared with"], ["hatch", "loses too much"]]);
    const out = w.readouts([
      ["bits", "smallest inside"],
      ["method", "cheapest way"],
      ["accuracy", "accuracy"],
      ["lost", "lost"],
      ["size", "weights", "bytes of the weights alone, without scales and biases"],
      ["part", "of FP32"],
    ]);
    const caption = w.caption();

    const diamond = (x, y, r, kind) =>
      svg("path", { class: kind, d: `M${x - r} ${y}L${x} ${y - r}L${x + r} ${y}L${x} ${y + r}Z` });
    const draw = () => {
      const now = networks.find(n => n.name === w.get("network")),
        grain = w.get("per_channel"),
        allowed = w.get("allowed");
      const rows = every.filter(r => r.network === now.name && r.per_channel === grain);
      const against = w.get("reference") === "trained" && now.trained !== null ? "trained" : "fp32";
      const level = now[against],
        limit = level - allowed,
        best = choose(rows, limit),
        free = choose(rows, limit, ["ptq"]);

      // One axis for both granularities, so that they can be compared by eye.
      const values = [
        now.fp32,
        now.trained ?? now.fp32,
        ...every.filter(r => r.network === now.name).flatMap(r => [...(r.ptq ?? []), ...(r.qat ?? [])]),
      ];
      const [low, high] = [Math.min(...values), Math.max(...values)], spare = Math.max(0.4, 0.07 * (high - low));
      const x = linear([low - spare, high + spare], [p.left, p.right]),
        end = Math.max(p.left, Math.min(p.right, x(limit)));
      p.axisX(x, { label: "accuracy, %", ticks: Math.max(4, Math.round((p.right - p.left) / 110)) });
      const lines = [];
      if (end > p.left) {
        const outside = { x: p.left, y: p.top, width: end - p.left, height: p.bottom - p.top };
        lines.push(svg("rect", { class: "mq-veil", ...outside }), svg("rect", { fill: p.hatch, ...outside }),
          svg("path", { class: "mq-stroke mq-red", d: `M${end} ${p.top}V${p.bottom}` }));
      }
      // Names of the two levels, above each other.
      const mark = (key, text, y) => {
        const u = x(now[key]), half = 3.4 * text.length, chosen = key === against;
        lines.push(
          svg("path", {
            class: `mq-stroke ${chosen ? "mq-ink" : "mq-soft mq-thin mq-dashed"}`,
            d: `M${u} ${y + 4}V${p.bottom}`,
          }),
          svg(
            "text",
            {
              class: `mq-halo ${chosen ? "mq-strong" : "mq-soft"}`,
              x: Math.min(u + half, p.width - 2) - half,
              y,
              "text-anchor": "middle",
            },
            text,
          ),
        );
      };
      mark("fp32", `FP32 ${fixed(now.fp32, 1)}`, p.top - 28);
      if (now.trained !== null) mark("trained", `trained on ${fixed(now.trained, 1)}`, p.top - 10);
      p.layer("band").replaceChildren(...lines);

      const marks = [], pitch = (p.bottom - p.top) / Math.max(rows.length, 1);
      rows.forEach((row, i) => {
        const y = p.top + pitch * (i + 0.5), mine = best && best.row === row;
        if (mine)
          marks.push(
            svg("rect", {
              class: "mq-stroke mq-green",
              rx: 8,
              x: 1,
              y: y - pitch / 2 + 2,
              width: p.width - 2,
              height: pitch - 4,
            }),
          );
        marks.push(
          svg("text", { class: mine ? "mq-strong mq-green" : "mq-strong", x: 8, y: y + 4 }, row.bits),
          svg(
            "text",
            { class: "mq-halo", x: p.width - 8, y: y + 4, "text-anchor": "end" },
            amount((now.weights * row.w) / 8),
          ),
        );
        if (row.ptq && row.qat)
          marks.push(svg("path", { class: "mq-stroke mq-grey mq-thin", d: `M${x(row.ptq[0])} ${y}H${x(row.qat[0])}` }));
        for (const m of ["ptq", "qat"]) {
          if (!row[m]) continue;
          const [mean, least, most] = row[m],
            u = x(mean),
            tone = m === "ptq" ? "mq-blue" : "mq-purple",
            chosen = mine && best.method === m;
          if (most > least)
            marks.push(
              svg("path", {
                class: `mq-stroke ${tone} mq-thin`,
                d: `M${x(least)} ${y}H${x(most)}M${x(least)} ${y - 4}v8M${x(most)} ${y - 4}v8`,
              }),
            );
          if (chosen) marks.push(svg("circle", { class: "mq-stroke mq-green mq-thick", cx: u, cy: y, r: 10 }));
          marks.push(
            m === "ptq"
              ? svg("circle", { class: `mq-area ${tone} choice-ptq`, cx: u, cy: y, r: 5 })
              : diamond(u, y, 6, `mq-area ${tone} choice-qat`),
          );
          // One number above the line, one below: they never meet. The halo hides upright lines.
          marks.push(
            svg(
              "text",
              {
                class: `mq-halo ${tone} ${chosen ? "mq-strong" : ""}`,
                x: u,
                y: m === "ptq" ? y - 11 : y + 20,
                "text-anchor": "middle",
                style: "stroke-width: 8px",
              },
              fixed(mean, 1),
            ),
          );
        }
      });
      p.layer("rows", "mq-answer").replaceChildren(...marks);

      // Words.
      const accuracy = best ? best.row[best.method][0] : null;
      out.set({
        bits: best ? best.row.bits : "none",
        method: best ? WORDS[best.method] : "–",
        accuracy: best ? `${fixed(accuracy, 1)} %` : "–",
        lost: best ? difference(level - accuracy) : "–",
        size: best ? amount((now.weights * best.row.w) / 8) : amount(4 * now.weights),
        part: best ? `${fmt((100 * best.row.w) / 32)} %` : "100 %",
      });
      const paid = (m, row = best.row) => (row[`${m}_cost`] ? ` (${row[`${m}_cost`]})` : "");
      const points = `${fixed(allowed, 1)} point${fixed(allowed, 1) === "1.0" ? "" : "s"}`;
      let words;
      if (!rows.length) words = "Nothing was measured with these scales: take the others, or keep FP32.";
      else if (!best)
        words = `No network here stays within ${points} of ${fixed(level, 1)} %: allow more, take another scale, ` +
          `or keep FP32.`;
      else if (best.method === "ptq")
        words = `${best.row.bits} is the smallest that stays within ${points}, and PTQ${paid("ptq")} is enough. ` +
          `Training would make nothing smaller here.`;
      else {
        const alone = free
          ? `Without training, ${free.row.bits} is the ` +
            `smallest${free.row.w === best.row.w ? ", with weights of the same size" : ""}`
          : "Without training, none stays inside";
        words = `${best.row.bits} is the smallest that stays within ${points}, and takes QAT${paid("qat")}. ` +
          `${alone}${free ? paid("ptq", free.row) : ""}.`;
      }
      caption.set(words);
      const measured = (r, m) => `${WORDS[m]} ${r[m] ? fixed(r[m][0], 1) : "not measured"}`;
      const told = rows.map(r => `${r.bits}: ${measured(r, "ptq")}, ${measured(r, "qat")}`).join("; ");
      p.describe(
        `${now.name}, ${grain ? "per channel" : "per tensor"}, compared with ${fixed(level, 1)} %. ${told}. ${words}`,
      );
    };
    return w.start(draw);
  },
};
