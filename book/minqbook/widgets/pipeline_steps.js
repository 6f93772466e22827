// The PTQ pipeline as a chain of switches: results computed beforehand, looked up and compared.
import { extent } from "./kit/data.js";
import { attr, h, svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fixed, fmt } from "./kit/format.js";
import { linear } from "./kit/scales.js";

/** A swarm: each value as a dot at its place, moved aside until it touches no other. [[x, side], ...] */
export function swarm(places, radius) {
  const order = places.map((x, i) => [x, i]).sort((a, b) => a[0] - b[0] || a[1] - b[1]), placed = [], out = [];
  for (const [x, i] of order) {
    const near = placed.filter(d => x - d[0] < 2 * radius),
      free = side => near.every(d => (d[0] - x) ** 2 + (d[1] - side) ** 2 >= 4 * radius * radius - 1e-6);
    const tries = [0, ...near.flatMap(d => {
      const reach = Math.sqrt(Math.max(0, 4 * radius * radius - (d[0] - x) ** 2));
      return [d[1] + reach, d[1] - reach];
    })].sort((a, b) => Math.abs(a) - Math.abs(b) || a - b);
    const side = tries.find(free) ?? 0;
    placed.push([x, side]);
    out[i] = [x, side];
  }
  return out;
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const chain = w.get("chain"), records = w.get("records"), metrics = w.get("metrics");
    const table = new Map(records.map(r => [r.at.join(), r.values]));
    const every = chain.reduce((n, s) => n * s.options.length, 1);
    const at = () => w.get("choice");
    const column = () => Math.max(0, metrics.findIndex(m => m.key === w.get("metric")));
    const valueOf = choice => table.get(choice.join())?.[column()] ?? null;

    const sized = m => (["dB", "%"].includes(m.unit) ? v => fixed(v, 1) : v => fmt(v));
    const show = (m, v) => `${sized(m)(v)} ${m.unit}`.trim();
    const unitOf = m => (m.unit === "%" ? "points" : m.unit); // a difference of percentages
    const signed = (m, v) => {
      const text = sized(m)(Math.abs(v)), none = Number(text) === 0;
      return `${none ? "±" : v < 0 ? "−" : "+"}${text} ${unitOf(m)}`.trim();
    };

    // --- The chain of switches ---
    let last = null; // the step flipped last: { step, from, to } as choices
    const go = (choice, step = null) => {
      last = step === null ? null : { step, from: at(), to: choice };
      w.set("choice", choice);
      w.redraw();
    };
    const flip = (step, option) => go(at().map((o, i) => (i === step ? option : o)), step);
    const fields = chain.map((s, i) => {
      const options = s.options.map((text, o) => [o, text]),
        long = s.options.join("").length > 34 || s.options.length > 5;
      const all = { label: s.label, options, value: at()[i], onInput: o => flip(i, o) };
      return long ? w.select(all) : w.segmented(all);
    });
    w.controls(...fields).classList.add("pipe-chain");
    const which =
      metrics.length > 1
        ? w.segmented({ trait: "metric", label: "Measured by", options: metrics.map(m => [m.key, m.label]) })
        : null;
    const toBest = w.button({ label: "Go to the best", onClick: () => go(best()) });
    const toNaive = w.button({ label: "Back to naive", onClick: () => go([...w.get("naive")]) });
    w.controls(...[which, h("div", { class: "pipe-buttons" }, toNaive.el, toBest.el)].filter(Boolean));
    const best = () => {
      const m = metrics[column()], k = column();
      return [...records].filter(r => r.values[k] !== null)
        .reduce((a, b) => ((m.lower ? b.values[k] < a.values[k] : b.values[k] > a.values[k]) ? b : a)).at;
    };

    const p = w.plot({ height: 218, margin: { left: 12, right: 12, top: 34, bottom: 38 }, label: model.get("alt") });
    w.add(p);
    const out = w.readouts([
      ...metrics.map(m => [m.key, m.label]),
      ["gain", "against naive"],
      ["rank", "rank", "among all combinations that were measured"],
    ]);

    // --- What each switch is worth ---
    const body = h("tbody"), head = h("th", { scope: "col", colspan: 2 });
    w.add(h("table", { class: "pipe-table" },
      h("caption", {}, "What each switch is worth from here"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "flip"), head, h("th", { scope: "col" }, "then"))), body));
    const caption = w.caption();
    const rows = chain.flatMap((s, step) => s.options.map((text, option) => {
      const flipIt = h("button", {
        type: "button",
        class: "pipe-flip",
        click: () => {
          refocus = step;
          flip(step, option);
        },
      });
      const bar = h("i"), diff = h("td", { class: "pipe-diff" }), then = h("td");
      return {
        step,
        option,
        flipIt,
        bar,
        diff,
        then,
        row: h("tr", {}, h("th", { scope: "row" }, flipIt), h("td", { class: "pipe-bar" }, bar), diff, then),
      };
    }));
    let refocus = null;

    let dots = []; // [{ x, y, at }] of this drawing
    w.listen(p.svg, "click", e => {
      const frame = p.svg.getBoundingClientRect(), k = p.width / (frame.width || 1);
      const [x, y] = [(e.clientX - frame.left) * k, (e.clientY - frame.top) * k];
      const near = dots.map(d => [Math.hypot(d.x - x, d.y - y), d]).sort((a, b) => a[0] - b[0])[0];
      if (near && near[0] < 18) go(near[1].at);
    });

    const draw = () => {
      const k = column(),
        m = metrics[k],
        choice = at(),
        now = valueOf(choice),
        naive = w.get("naive"),
        base = naive.length ? valueOf(naive) : null;
      const better = v => (m.lower ? -v : v);
      fields.forEach((c, i) => { if (c.value !== choice[i]) c.value = choice[i]; });
      toNaive.limit({ disabled: !naive.length || choice.join() === naive.join() });
      toBest.limit({ disabled: choice.join() === best().join() });

      const known = records.filter(r => r.values[k] !== null), level = w.get("levels")[k];
      const ends = extent([...known.map(r => r.values[k]), ...(typeof level === "number" ? [level] : [])]);
      const spare = 0.05 * (ends[1] - ends[0]) || 1;
      const x = linear([ends[0] - spare, ends[1] + spare], [p.left, p.right]);
      const name = `${m.label}${m.unit ? ` (${m.unit})` : ""}${m.lower ? ", less is better" : ""}`;
      p.axisX(x, { label: name });

      // All others as faint dots, as large as the room lets them be.
      const room = [p.top + 4, p.bottom - 44],
        middle = (room[0] + room[1]) / 2,
        places = known.map(r => x(r.values[k]));
      let radius = 4.5, spots = swarm(places, radius);
      const reach = () => Math.max(...spots.map(s => Math.abs(s[1]))), half = (room[1] - room[0]) / 2;
      while (radius > 2.4 && reach() > half - radius) {
        radius *= 0.85;
        spots = swarm(places, radius);
      }
      const squeeze = Math.min(1, (half - radius) / (reach() || 1)); // where very many are alike, they overlap
      dots = spots.map(([u, side], i) => ({ x: u, y: middle + squeeze * side, at: known[i].at }));
      const mine = dots.find(d => d.at.join() === choice.join());
      p.layer("others").replaceChildren(
        ...dots
          .filter(d => d !== mine)
          .map(d =>
            svg("circle", {
              class: "mq-area mq-grey pipe-dot",
              cx: d.x.toFixed(1),
              cy: d.y.toFixed(1),
              r: Math.max(1.8, radius - 0.6),
            }),
          ),
      );

      const word = (u, text, kind = "", y = p.top - 12) => {
        const width = 6.6 * text.length,
          anchor = u - width / 2 < 2 ? "start" : u + width / 2 > p.width - 2 ? "end" : "middle";
        return svg(
          "text",
          {
            class: `mq-halo ${kind}`,
            x: anchor === "start" ? Math.max(2, u - 4) : anchor === "end" ? Math.min(p.width - 2, u + 4) : u,
            y,
            "text-anchor": anchor,
          },
          text,
        );
      };
      const upright = (u, kind) =>
        svg("path", { class: `mq-stroke ${kind}`, d: `M${u.toFixed(1)} ${p.top - 6}V${p.bottom}` });
      const marks = [];
      if (base !== null)
        marks.push(upright(x(base), "mq-soft mq-thin mq-dashed"), word(x(base), `naive ${show(m, base)}`, "mq-soft"));
      if (typeof level === "number") {
        const close = base !== null && Math.abs(x(level) - x(base)) < 150;
        marks.push(
          upright(x(level), "mq-ink mq-thin"),
          word(x(level), `FP32 ${show(m, level)}`, "mq-strong", p.top - (close ? 24 : 12)),
        );
      } else if (level === "inf") {
        const close = base !== null && x(base) > p.right - 170;
        marks.push(
          svg(
            "text",
            { class: "mq-halo mq-strong", x: p.right, y: p.top - (close ? 24 : 12), "text-anchor": "end" },
            "FP32: no noise, ∞ →",
          ),
        );
      }
      p.layer("levels").replaceChildren(...marks);

      // The bar: from naive to here; the step that was just taken above it.
      const y = p.bottom - 21, from = base === null ? x.domain[0] : base, bar = [];
      if (now !== null) {
        const [a, b] = [x(from), x(now)].sort((u, v) => u - v),
          worse = base !== null && better(now - base) < 0;
        bar.push(
          svg("rect", {
            class: `mq-area ${worse ? "mq-red" : "mq-green"}`,
            opacity: worse ? 0.35 : 1,
            x: a,
            y: y - 7,
            width: Math.max(b - a, 0.01),
            height: 14,
          }),
        );
        if (worse) bar.push(svg("rect", { fill: p.hatch, x: a, y: y - 7, width: b - a, height: 14 }));
        bar.push(
          svg("path", { class: "mq-stroke mq-green mq-thin", d: `M${mine.x.toFixed(1)} ${mine.y.toFixed(1)}V${y}` }),
          svg("circle", { class: "pipe-here", cx: mine.x, cy: mine.y, r: 6.5 }),
        );
        // The number stands behind the tip of the bar, or inside it, or at its other end.
        const text = show(m, now),
          room = 9 + 7.5 * text.length,
          left = x(now) < x(from);
        const place = left
          ? x(now) - room > 0
            ? [-1, x(now)]
            : [1, x(from)]
          : x(now) + room < p.width
            ? [1, x(now)]
            : b - a > room + 9
              ? [-1, x(now), "pipe-inside"]
              : [-1, a];
        bar.push(
          svg(
            "text",
            {
              class: `mq-strong ${place[2] ?? "mq-halo"}`,
              x: place[1] + 9 * place[0],
              y: y + 4,
              "text-anchor": place[0] < 0 ? "end" : "start",
            },
            text,
          ),
        );
      } else
        bar.push(
          svg(
            "text",
            { class: "mq-soft", x: (p.left + p.right) / 2, y: y + 4, "text-anchor": "middle" },
            "this combination was not measured",
          ),
        );
      const previous = last && last.to.join() === choice.join() ? valueOf(last.from) : null;
      if (previous !== null && now !== null && Math.abs(x(now) - x(previous)) > 3) {
        const up = better(now - previous) > 0,
          tone = up ? "mq-purple" : "mq-red",
          [a, b] = [x(previous), x(now)],
          s = Math.sign(b - a),
          v = y - 15;
        bar.push(
          svg("path", {
            class: `mq-stroke ${tone}`,
            d: `M${a.toFixed(1)} ${v - 4}v8M${a.toFixed(1)} ${v}H${(b - s).toFixed(1)}m${-6 * s} -4l${6 * s} ` +
              `4l${-6 * s} 4`,
          }),
        );
        bar.push(word((a + b) / 2, signed(m, now - previous), `mq-strong ${tone}`, v - 6));
      }
      p.layer("bar").replaceChildren(...bar);

      // The table.
      head.textContent = `gains (${unitOf(m) || m.label})`;
      const flips = rows.filter(r => r.option !== choice[r.step]).map(r => {
        const then = valueOf(choice.map((o, i) => (i === r.step ? r.option : o)));
        return { ...r, value: then, gain: then === null || now === null ? null : then - now };
      });
      const most = Math.max(1e-12, ...flips.map(r => Math.abs(r.gain ?? 0)));
      const rank = r => (r.gain !== null ? better(r.gain) : r.value !== null ? -1e300 : -Infinity);
      flips.sort((a, b) => rank(b) - rank(a) || 0);
      for (const r of flips) {
        const s = chain[r.step];
        r.flipIt.replaceChildren(
          h("span", {}, `${s.label}: `),
          `${s.options[choice[r.step]]} → ${s.options[r.option]}`,
        );
        r.then.textContent = r.value === null ? "not measured" : show(m, r.value);
        r.diff.textContent = r.gain === null ? "–" : signed(m, r.gain).replace(` ${unitOf(m)}`, "");
        const good = r.gain !== null && better(r.gain) >= 0, share = (50 * Math.abs(r.gain ?? 0)) / most;
        attr(r.bar, {
          class: good ? "mq-green" : "pipe-loss mq-red",
          style: `width:${share.toFixed(1)}%;${(r.gain ?? 0) < 0 ? "right" : "left"}:50%`,
        });
      }
      const order = flips.map(r => r.row), held = body.contains(document.activeElement) || refocus !== null;
      if (order.length !== body.children.length || order.some((row, i) => body.children[i] !== row)) {
        const focused = document.activeElement;
        body.replaceChildren(...order);
        if (held)
          (refocus === null ? focused : flips.find(r => r.step === refocus)?.flipIt)?.focus({ preventScroll: true });
      }
      refocus = null;

      // Words.
      const place = now === null ? null : 1 + known.filter(r => better(r.values[k]) > better(now)).length;
      const values = table.get(choice.join());
      out.set({
        ...Object.fromEntries(
          metrics.map((n, i) => [
            n.key,
            values?.[i] === undefined || values[i] === null ? "not measured" : show(n, values[i]),
          ]),
        ),
        gain: now === null || base === null ? "–" : signed(m, now - base),
        rank: place === null ? "–" : `${place} of ${known.length}`,
      });
      const step = last && last.to.join() === choice.join() ? chain[last.step] : null;
      const did = step
        ? `${step.label}: ${step.options[last.from[last.step]]} → ${step.options[choice[last.step]]}`
        : "";
      const moved =
        step && previous !== null && now !== null
          ? `${did}: ${signed(m, now - previous)} here. `
          : step
            ? `${did}. `
            : "";
      const here = chain.map((s, i) => `${s.label}: ${s.options[choice[i]]}`).join(", ");
      const lead = flips[0];
      const next =
        !lead || lead.gain === null
          ? ""
          : better(lead.gain) > 0
            ? ` The switch worth most from here is ${chain[lead.step].label}: ` +
              `${chain[lead.step].options[lead.option]} (${signed(m, lead.gain)}).`
            : " No single switch improves it from here.";
      const state =
        now === null
          ? "This combination was not measured; flip a switch that leads to a measured one."
          : `${m.label} ${show(m, now)}, ${place === 1 ? "the best" : `rank ${place}`} of ${known.length} ` +
            `combinations measured${known.length < every ? ` (${every} are possible)` : ""}.`;
      caption.set(`${moved}${state[0].toUpperCase()}${state.slice(1)}${next}`);
      p.describe(
        `${m.label} of the combination ${here}. ${state} ` +
          `${base === null ? "" : `Naive: ${show(m, base)}. `}` +
          `${typeof level === "number" ? `FP32: ${show(m, level)}. ` : ""}${moved}`,
      );
    };
    return w.start(draw);
  },
};
