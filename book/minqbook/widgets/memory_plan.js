// The results of a network's steps in one piece of memory: bars over time; steps change places.
import { svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linear } from "./kit/scales.js";

const COLORS = ["mq-blue", "mq-red", "mq-green", "mq-purple"];

/** From the step that writes a tensor to the last that reads it: [name, bytes, first, last], scratch behind. */
export function lifetimes(steps) {
  const last = {}, lives = [], scratch = [];
  steps.forEach(([, , reads], k) => reads.forEach(name => { last[name] = k; }));
  steps.forEach(([name, bytes, , more = 0], k) => {
    lives.push([name, bytes, k, Math.max(k, last[name] ?? k)]);
    if (more) scratch.push([`${name}.scratch`, more, k, k]);
  });
  return [...lives, ...scratch];
}

const byName = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/** An offset for each, the largest first, each at the lowest place that is free while it lives. */
export function place(lives) {
  const done = [], offsets = Array(lives.length);
  const turn = lives.map((t, i) => [...t, i]).sort((a, b) => b[1] - a[1] || a[2] - b[2] || byName(a[0], b[0]));
  for (const [, bytes, first, last, i] of turn) {
    let offset = 0;
    const beside = done.filter(p => p.first <= last && first <= p.last).sort((a, b) => a.offset - b.offset);
    for (const p of beside) {
      if (offset + bytes <= p.offset) break;
      offset = Math.max(offset, p.offset + p.bytes);
    }
    done.push({ offset, bytes, first, last });
    offsets[i] = offset;
  }
  return offsets;
}

/** Bytes that are alive at once, at the worst step. */
export const needed = lives =>
  Math.max(...lives.map(([, , k]) => lives.reduce((sum, t) => sum + (t[2] <= k && k <= t[3] ? t[1] : 0), 0)));

/** How high the memory is, and what is needed at once, for steps in an order: for the tests. */
export function sizes(steps, order) {
  const lives = lifetimes(order.map(k => steps[k])), offsets = place(lives);
  return [Math.max(...lives.map((t, i) => offsets[i] + t[1])), needed(lives), ...offsets];
}

/** The first and the last place to which the step at a place can move. */
export function reach(steps, order, at) {
  const [name, , reads] = steps[order[at]];
  let from = at, to = at;
  while (from > 0 && !reads.includes(steps[order[from - 1]][0])) from -= 1;
  while (to < order.length - 1 && !steps[order[to + 1]][2].includes(name)) to += 1;
  return [from, to];
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const steps = w.get("steps"), plan = w.get("best"), first = steps.map((_, k) => k);
    const at = () => w.get("order").indexOf(w.get("selected"));
    const move = to => {
      const order = [...w.get("order")], [from, end] = reach(steps, order, at());
      const k = order.splice(at(), 1)[0];
      order.splice(Math.max(from, Math.min(end, Math.round(to))), 0, k);
      w.set("order", order);
    };
    const pick = w.select({
      label: "Step",
      trait: "selected",
      options: steps.map(([name], k) => [k, name]),
    });
    const earlier = w.button({ label: "Earlier", onClick: () => move(at() - 1) });
    const later = w.button({ label: "Later", onClick: () => move(at() + 1) });
    w.controls(pick, earlier, later);
    w.controls(
      w.button({ label: "As the network says", onClick: () => w.set("order", first) }),
      w.button({ label: "Least memory", onClick: () => w.set("order", [...plan]) }),
    );
    const p = w.plot({ height: x => (x < 480 ? 260 : 300), margin: { left: 60, right: 16, top: 30, bottom: 40 } });
    w.add(p);
    const out = w.readouts([["high", "bytes of memory"], ["least", "alive at once"], ["asked", "without sharing"]]);
    const caption = w.caption();
    const knob = p.handle({ label: "Place of the step", tone: "ink", onInput: move });

    return w.start(() => {
      const order = w.get("order"), lives = lifetimes(order.map(k => steps[k])), offsets = place(lives);
      const high = Math.max(...lives.map((t, i) => offsets[i] + t[1])), least = needed(lives);
      const all = lives.reduce((sum, t) => sum + t[1], 0), chosen = steps[w.get("selected")][0];
      const x = linear([0, order.length], [p.left, p.right]), y = linear([0, 1.05 * high], [p.bottom, p.top]);
      p.axisX(linear([0.5, order.length + 0.5], [p.left, p.right]), {
        label: "step",
        values: [1, order.length],
      });
      p.axisY(y, { label: "byte", ticks: 4, format: v => fmt(v, 6) });
      const bars = lives.map(([name, bytes, from, to], i) => {
        const box = { x: x(from) + 0.5, width: Math.max(x(to + 1) - x(from) - 1, 1) };
        const color = name.endsWith(".scratch") ? "mq-fill" : COLORS[steps.findIndex(s => s[0] === name) % 4];
        const tall = y(offsets[i]) - y(offsets[i] + bytes);
        const opacity = name === chosen ? 0.95 : 0.5;
        return svg("rect", {
          class: `mq-area ${color}`, opacity, y: y(offsets[i] + bytes), height: Math.max(tall - 1, 0.5), ...box,
        });
      });
      p.layer("bars").replaceChildren(...bars);
      p.layer("top").replaceChildren(
        svg("path", { class: "mq-stroke mq-ink mq-dashed", d: `M${p.left} ${y(high)}H${p.right}` }),
      );
      const here = at(), [from, to] = reach(steps, order, here);
      knob.place({
        x: x(here + 0.5), y: p.top - 12, value: here, min: from, max: to, step: 1, text: `${chosen}, step ${here + 1}`,
        invert: v => x.invert(v) - 0.5,
      });
      earlier.el.disabled = here === from;
      later.el.disabled = here === to;
      out.set({ high: fmt(high, 7), least: fmt(least, 7), asked: fmt(all, 7) });
      const text =
        `${order.length} steps need ${fmt(high, 7)} bytes in this order; ${fmt(least, 7)} are alive at once. ` +
        `${chosen} is step ${here + 1} and could be step ${from + 1}${to > from ? ` to ${to + 1}` : ""}.`;
      p.describe(text);
      caption.set(text);
    });
  },
};
