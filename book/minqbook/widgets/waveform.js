// Waveforms of a simulated circuit, a cycle at a time; the cycle can be linked to that of MacArray.
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { clamp } from "./quantize.js";

/** The value before time `end` of a signal's [time, value] changes; null where it is not known. */
export const valueAt = (changes, end) => changes.findLast(([t]) => t < end)?.[1] ?? null;

/** [first, count] of at most `room` cycles, of which `cycle` (counted from 1) is one. */
export function visible(cycle, cycles, room) {
  const count = Math.min(room, cycles), before = Math.floor(count / 2);
  return [clamp(cycle - 1 - before, 0, cycles - count), count];
}

const ROW = 30, HIGH = 20, LEFT = 82, PITCH = 90;
const shown = v => (v === null ? "x" : String(v).replace("-", "−"));

/** A bit as a line that steps; what is not known yet runs through the middle. */
const line = (parts, top) =>
  parts.map(([a, b, v], i) => {
    const y = v === null ? top + HIGH / 2 : v ? top : top + HIGH;
    return `${i ? "L" : "M"}${a} ${y}H${b}`;
  }).join("");

/** A number as a lozenge from a to b. */
function lozenge([a, b, v], top) {
  const nose = Math.min(4, (b - a) / 2), middle = top + HIGH / 2, text = shown(v);
  const d = `M${a} ${middle}l${nose} ${-HIGH / 2}H${b - nose}L${b} ${middle}l${-nose} ${HIGH / 2}H${a + nose}Z`;
  const fits = b - a > 6.3 * text.length + 4;
  return [
    svg("path", { class: `mq-stroke mq-thin ${v === null ? "mq-grey" : "mq-blue"}`, d }),
    fits && svg("text", { class: "mq-tick", x: (a + b) / 2, y: middle + 4, "text-anchor": "middle" }, text),
  ].filter(Boolean);
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const records = w.get("records"), cycles = w.get("cycles"), period = w.get("period"), start = w.get("start");
    const step = by => w.set("cycle", clamp(w.get("cycle") + by, 0, cycles));
    w.controls(
      w.button({ label: "Back", onClick: () => step(-1) }),
      w.button({ label: "Step", onClick: () => step(1) }),
      w.slider({ trait: "cycle", label: "Cycle", min: 0, max: cycles, format: k => `${k} of ${cycles}` }),
    );
    const p = w.plot({ height: ROW * records.length + 30, margin: { left: LEFT, right: 4, top: 24, bottom: 4 } });
    w.add(p);
    const caption = w.caption();
    return w.start(() => {
      const cycle = w.get("cycle"), room = p.right - p.left;
      const [first, count] = visible(cycle, cycles, Math.max(2, Math.floor(room / PITCH)));
      const t0 = start + period * first, t1 = t0 + period * count, x = t => p.left + ((t - t0) / (t1 - t0)) * room;
      const grid = [];
      for (let k = 0; k < count; k++) {
        const a = x(t0 + k * period), here = first + k + 1 === cycle;
        if (here) grid.push(svg("rect", {
          class: "mq-area mq-fill", opacity: 0.5, x: a, y: 2, width: room / count, height: p.height - 4,
        }));
        grid.push(svg("line", { class: "mq-grid", x1: a, x2: a, y1: 18, y2: p.height }));
        const tone = here ? "mq-tick mq-ink mq-strong" : "mq-tick";
        const middle = a + room / count / 2;
        grid.push(svg("text", { class: tone, x: middle, y: 14, "text-anchor": "middle" }, String(first + k + 1)));
      }
      p.layer("cycles").replaceChildren(...grid);
      p.layer("waves", "mq-answer").replaceChildren(...records.flatMap((r, k) => {
        const top = p.top + k * ROW + 4, parts = [];
        for (const [i, [time, v]] of r.changes.entries()) {
          const end = r.changes[i + 1]?.[0] ?? Infinity, a = Math.max(time, t0), b = Math.min(end, t1);
          if (a < b) parts.push([x(a), x(b), v]);
        }
        const wrong = r.name.startsWith("overflow");
        const wave = r.bits === 1
          ? [svg("path", { class: `mq-stroke ${wrong ? "mq-red" : "mq-green"}`, d: line(parts, top) })]
          : parts.flatMap(part => lozenge(part, top));
        return [svg("text", { class: "mq-tick mq-ink", x: 2, y: top + 14 }, r.name), ...wave];
      }));
      const held = records.filter(r => r.name !== "clk").map(r => {
        return `${r.name} ${shown(valueAt(r.changes, start + period * cycle))}`;
      });
      const text = `${cycle ? `At the end of cycle ${cycle}` : "Before the first cycle"}: ${held.join(", ")}.`;
      caption.set(text);
      p.describe(`Waveforms of ${records.length} signals, cycles ${first + 1} to ${first + count}. ${text}`);
    });
  },
};
