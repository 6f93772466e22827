// The debugging flow as a chart to walk: questions lead down (no) and right (yes) to verdicts.
import { extent } from "./kit/data.js";
import { attr, h, svg } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fmt } from "./kit/format.js";
import { linear } from "./kit/scales.js";

// Where boxes stand: [column, row].
const GRID = {
  sanity: [0, 0],
  setup: [2, 0],
  all: [0, 1],
  ready: [2, 1],
  weights: [0, 2],
  fix_weights: [1, 2],
  weights_fixed: [2, 2],
  activations: [0, 3],
  fix_activations: [1, 3],
  ranges_fixed: [2, 3],
  sweep: [0, 4],
  look: [1, 4],
  one_fixed: [2, 4],
  train: [0, 5],
};
const [SHORT, FULL, YES, NO, WHY] = [0, 1, 2, 3, 4];

/** The boxes that these answers lead through, the last one being where the reader is. */
export function walk(questions, answers, start = "sanity") {
  const path = [start];
  for (const a of answers) {
    if (!questions[path.at(-1)]) break;
    path.push(questions[path.at(-1)][a === "yes" ? YES : NO]);
  }
  return path;
}

/** Words in lines of at most `most` letters. */
export function wrapped(text, most) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + 1 + word.length > most) lines.push(word);
    else lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines;
}

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const questions = w.get("questions"), verdicts = w.get("verdicts"), cases = w.get("cases");
    const known = () => cases[w.get("case")];
    const right = () => { // the way of the evidence, as answers
      const answers = [];
      for (let at = "sanity"; questions[at];) {
        const a = known().steps[at].answer;
        answers.push(a);
        at = questions[at][a === "yes" ? YES : NO];
      }
      return answers;
    };
    const go = answers => { w.set("answers", answers); w.redraw(); };
    const answer = a => go([...w.get("answers"), a]);

    // --- Choice of a case ---
    const pick = { trait: "case", label: "Network", options: cases.map((c, i) => [i, c.name]), onInput: () => go([]) };
    const names = cases.map(c => c.name).join("");
    if (cases.length > 1)
      w.controls(names.length > 90 || cases.length > 5 ? w.select(pick) : w.segmented(pick)).classList.add("dbg-cases");
    const note = h("p", { class: "mq-caption dbg-note" });
    w.add(note);

    const p = w.plot({
      height: x => (x < 400 ? 510 : 470),
      margin: { left: 2, right: 2, top: 4, bottom: 4 },
      label: model.get("alt"),
      grow: 6,
      min: 330,
    });
    const front = svg("g");
    p.svg.append(front);
    attr(p.svg, { role: "group" });

    // --- The panel beside the chart; the buttons stay where they are from question to question ---
    const title = h("b", { class: "dbg-title" }),
      full = h("p", { class: "dbg-full" }),
      why = h("p", { class: "dbg-why" });
    const evidence = h("dl", { class: "mq-readouts dbg-evidence" }), verdict = h("p", { class: "dbg-verdict" });
    const yes = w.button({ label: "Yes", onClick: () => answer("yes") }),
      no = w.button({ label: "No", onClick: () => answer("no") });
    const back = w.button({ label: "Back", onClick: () => go(w.get("answers").slice(0, -1)) });
    const again = w.button({ label: "Start over", onClick: () => go([]) });
    const wrong = w.button({
      label: "Back to where the evidence was left",
      onClick: () => go(w.get("answers").slice(0, astray().index)),
    });
    const reply = h("div", { class: "dbg-buttons" }, yes.el, no.el),
      other = h("div", { class: "dbg-buttons dbg-other" }, wrong.el, back.el, again.el);
    const told = h("p", { class: "dbg-told" });
    const panel = h(
      "div",
      { class: "mq-plot dbg-panel", style: "flex:5 1 270px", role: "region", "aria-label": "Question and evidence" },
      title,
      full,
      why,
      evidence,
      verdict,
      reply,
      other,
      told,
    );
    w.add(p, panel);
    const q = w.plot({ height: 178, margin: { left: 34, right: 8, top: 30, bottom: 26 }, label: "SQNR of each layer" });
    const bars = w.add(q);
    const legend = w.legend([["box grey", "weights"], ["box blue", "activations"], ["dot green", "after the fix"]]);
    const caption = w.caption();

    // --- Boxes: buttons for where one can go ---
    const nodes = new Map(Object.keys(GRID).map(name => {
      const act = () => {
        const path = walk(questions, w.get("answers")), here = path.at(-1), back = path.indexOf(name);
        if (back >= 0) go(w.get("answers").slice(0, back));
        else if (questions[here]?.[YES] === name) answer("yes");
        else if (questions[here]?.[NO] === name) answer("no");
      };
      const node = svg("g", {
        class: "dbg-node", role: "button", "data-name": name, "data-lm-suppress-shortcuts": true, click: act,
        keydown: e => {
          if (e.key !== "Enter" && e.key !== " ") return;
          e.preventDefault();
          e.stopPropagation();
          act();
        },
      });
      front.append(node);
      return [name, node];
    }));

    /** The first answer that the evidence speaks against: { index, question, given }, or null. */
    const astray = () => {
      const given = w.get("answers"), path = walk(questions, given);
      const index = given.findIndex((a, i) => known().steps[path[i]] && known().steps[path[i]].answer !== a);
      return index < 0 ? null : { index, question: path[index], given: given[index] };
    };
    const plain = v => (typeof v === "number" ? fmt(v) : v);

    function drawChart(path, off) {
      const narrow = p.width < 400, rows = 6, gapX = narrow ? 22 : 34, gapY = narrow ? 24 : 30;
      const bw = (p.width - 4 - 2 * gapX) / 3, bh = (p.height - 8 - (rows - 1) * gapY) / rows;
      const place = name => { const [c, r] = GRID[name]; return { x: 2 + c * (bw + gapX), y: 4 + r * (bh + gapY) }; };
      const here = path.at(-1), edges = [], labels = [];
      const lit = (from, to, a) => path.some((n, i) => n === from && path[i + 1] === to && w.get("answers")[i] === a);
      const bad = (from, a) =>
        Boolean(off) && path.indexOf(from) >= off.index && (path.indexOf(from) > off.index || off.given === a);
      for (const [from, texts] of Object.entries(questions)) {
        for (const [a, to] of [["yes", texts[YES]], ["no", texts[NO]]]) {
          const s = place(from), t = place(to), on = lit(from, to, a), wrongly = on && bad(from, a);
          const down = a === "no", across = down && GRID[from][0] !== GRID[to][0];
          const start = down ? [s.x + bw / 2, s.y + bh] : [s.x + bw, s.y + bh / 2];
          const bend = s.y + bh + gapY * 0.45;
          const d = !down
            ? `M${start}H${t.x - 1}`
            : across
              ? `M${start}V${bend}H${t.x + bw / 2 + 7}V${t.y - 1}`
              : `M${start}V${t.y - 1}`;
          const end = !down ? [t.x, t.y + bh / 2] : [t.x + bw / 2 + (across ? 7 : 0), t.y];
          const tip = down ? `M${end}l-4 -7h8z` : `M${end}l-7 -4v8z`;
          const kind = wrongly ? "dbg-astray" : on ? "dbg-lit" : "";
          // What is lit lies on top.
          edges[on ? "push" : "unshift"](
            svg(
              "g",
              { class: `dbg-edge ${kind}` },
              svg("path", { class: "dbg-line", d }),
              svg("path", { class: "dbg-tip", d: tip }),
            ),
          );
          const at = down ? [start[0] - 6, s.y + bh + gapY / 2 + 3] : [s.x + bw + (narrow ? 2 : 5), s.y + bh / 2 - 6];
          labels.push(
            svg(
              "text",
              {
                class: `mq-tick mq-halo ${on ? "mq-strong mq-ink" : ""}`,
                x: at[0],
                y: at[1],
                "text-anchor": down ? "end" : "start",
              },
              a,
            ),
          );
        }
      }
      p.layer("edges").replaceChildren(...edges);
      p.layer("labels").replaceChildren(...labels);
      for (const [name, node] of nodes) {
        const { x, y } = place(name),
          final = name in verdicts,
          text = (verdicts[name] ?? questions[name])[SHORT],
          been = path.includes(name);
        const size = narrow ? 11 : 12, lines = wrapped(text, Math.max(8, Math.floor((bw - 8) / (size * 0.63))));
        const leap = (lines.length > 3 ? 0.98 : 1.16) * size,
          next = questions[here]?.[YES] === name ? "yes" : questions[here]?.[NO] === name ? "no" : null;
        const active = been || next;
        node.replaceChildren(
          svg("rect", { class: "dbg-box", x, y, width: bw, height: bh, rx: final ? bh / 2 : 6 }),
          ...lines.map((t, i) =>
            svg(
              "text",
              {
                class: name === here ? "mq-strong" : "",
                style: `font-size:${size}px`,
                x: x + bw / 2,
                y: y + bh / 2 + size * 0.36 + (i - (lines.length - 1) / 2) * leap,
                "text-anchor": "middle",
              },
              t,
            ),
          ),
        );
        const wrongly = off && path.indexOf(name) > off.index;
        const standing = name === here ? ", you are here" : been ? ", go back to it" : next ? `, answer ${next}` : "";
        attr(node, {
          class:
            `dbg-node ${final ? "dbg-final" : ""} ${name === here ? "dbg-here" : been ? "dbg-been" : ""} ` +
            `${wrongly ? "dbg-wrong" : ""} ${active ? "dbg-active" : ""}`,
          tabindex: active ? 0 : -1,
          "aria-disabled": active ? null : "true",
          "aria-current": name === here ? "step" : null,
          "aria-label": `${text}${standing}`,
        });
      }
    }

    function drawBars(layers, after, at) {
      attr(bars, { hidden: !layers.length });
      const kinds = new Set(layers.map(l => l.kind));
      attr(legend.el, { hidden: !layers.length || (!kinds.has("activation") && !after.length) });
      [kinds.has("weight"), kinds.has("activation"), after.length > 0].forEach((on, i) =>
        attr(legend.el.children[i], { hidden: !on }),
      );
      if (!layers.length) return "";
      const [low, high] = extent([...layers, ...after].map(l => l.sqnr)),
        y = linear([Math.min(0, low), Math.max(high, 1)], [q.bottom, q.top]);
      const pitch = (q.right - q.left) / layers.length, width = Math.max(1.2, Math.min(26, pitch * 0.72));
      q.axisY(y, {
        label: `SQNR of each layer ` +
          `(dB)${q.width < 340 ? "" : at === "after" ? ", before the fix and after" : ", in the order of the network"}`,
        ticks: 3,
      });
      const cx = i => q.left + (i + 0.5) * pitch, new_ = new Map(after.map(l => [l.name + l.kind, l.sqnr]));
      const order = layers.map((l, i) => [l.sqnr, i]).sort((a, b) => a[0] - b[0]),
        worst = order[0][1],
        few = pitch * 0.95 > 7 * Math.max(...layers.map(l => l.name.length));
      q.layer("bars").replaceChildren(...layers.flatMap((l, i) => {
        const [a, b] = [y(0), y(l.sqnr)].sort((u, v) => u - v),
          box = {
            x: (cx(i) - width / 2).toFixed(1),
            y: a.toFixed(1),
            width: width.toFixed(1),
            height: Math.max(1, b - a).toFixed(1),
          };
        return [
          svg("rect", { class: `mq-area ${l.kind === "activation" ? "mq-blue" : "mq-grey"}`, ...box }),
          ...(i === worst ? [svg("rect", { class: "dbg-worst", ...box })] : []),
          ...(new_.has(l.name + l.kind)
            ? [
                svg("circle", {
                  class: "mq-area mq-green",
                  cx: cx(i).toFixed(1),
                  cy: y(new_.get(l.name + l.kind)).toFixed(1),
                  r: Math.max(2, Math.min(4.5, width / 2)),
                }),
              ]
            : []),
        ];
      }), svg("path", { class: "mq-axis", d: `M${q.left} ${y(0)}H${q.right}` }));
      const tag = (i, kind) => {
        const text = few ? layers[i].name : `lowest: ${layers[i].name}, ${fmt(layers[i].sqnr)} dB`,
          half = 3.2 * text.length,
          u = cx(i);
        const anchor = few || (u - half > 0 && u + half < q.width) ? "middle" : u < q.width / 2 ? "start" : "end";
        return svg(
          "text",
          {
            class: `mq-halo ${kind}`,
            x: anchor === "start" ? Math.max(2, u - 8) : anchor === "end" ? Math.min(q.width - 2, u + 8) : u,
            y: q.bottom + 17,
            "text-anchor": anchor,
          },
          text,
        );
      };
      q.layer("names").replaceChildren(
        ...(few
          ? layers.map((_, i) => tag(i, i === worst ? "mq-strong mq-red" : "mq-tick"))
          : [tag(worst, "mq-strong mq-red")]),
      );
      const three = order.slice(0, 3).map(([v, i]) => `${layers[i].name} ${fmt(v)} dB`).join(", ");
      q.describe(`SQNR of ${layers.length} layers, from ${fmt(low)} to ${fmt(high)} dB; lowest: ${three}.`);
      return ` Lowest layer: ${layers[worst].name}, ${fmt(layers[worst].sqnr)} dB.`;
    }

    const list = pairs => evidence.replaceChildren(...pairs.map(([k, v, old]) =>
      h("div", {}, h("dt", {}, k), h("dd", {}, old === undefined ? "" : h("span", {}, `${plain(old)} → `), plain(v)))));

    return w.start(() => {
      const c = known(),
        path = walk(questions, w.get("answers")),
        here = path.at(-1),
        off = astray(),
        end = here in verdicts;
      const step = c.steps[here], previous = path.at(-2), reached = end && !off;
      const held = root => root && root.contains(document.activeElement);
      const answered = held(reply) && end;
      drawChart(path, off);

      note.textContent = c.note;
      attr(note.parentNode, { hidden: !c.note });
      // What the last answer meant.
      const prior = previous && c.steps[previous], given = w.get("answers").at(path.length - 2);
      const spoken = !previous
        ? ""
        : !prior
          ? `You answered ${given} without a measurement.`
          : prior.answer === given
            ? `${given === "yes" ? "Yes" : "No"}: ${prior.text}`
            : `The evidence speaks against “${given}”: ${prior.text}`;
      told.textContent = spoken;
      told.className = `dbg-told ${prior && prior.answer !== given ? "dbg-no" : ""}`;
      attr(told, { hidden: !spoken });

      const count = path.length;
      title.textContent = end ? `Verdict: ${verdicts[here][0]}` : `${count}. ${questions[here][SHORT]}`;
      full.textContent = end ? verdicts[here][1] : questions[here][FULL];
      why.textContent = end ? "" : questions[here][WHY];
      let saidVerdict = "";
      if (end && off)
        saidVerdict = `This is not what is wrong here: at “${questions[off.question][SHORT]}” the evidence says ` +
          `${c.steps[off.question].answer}, you said ${off.given}.`;
      else if (end) saidVerdict = c.verdict;
      else if (!step)
        saidVerdict = "Nothing was measured for this question: the evidence does not lead here. Go back, or guess on.";
      verdict.textContent = saidVerdict;
      attr(verdict, { hidden: !saidVerdict });
      for (const node of [full, why]) attr(node, { hidden: !node.textContent });
      const before = (c.steps.all ?? c.steps.sanity).metric;
      if (reached) list(Object.entries(c.after.metric).map(([k, v]) => [k, v, before[k]]));
      else list(step ? Object.entries(step.metric) : []);
      attr(evidence, { hidden: !evidence.children.length });
      attr(reply, { hidden: end });
      attr(wrong.el, { hidden: !off });
      back.limit({ disabled: !w.get("answers").length });
      again.limit({ disabled: !w.get("answers").length });
      if (answered) back.el.focus({ preventScroll: true }); // the buttons that had the focus are gone

      const layers = step?.layers.length ? step.layers : c.layers;
      const low = drawBars(layers, reached ? c.after.layers : [], reached && c.after.layers.length ? "after" : "");
      const numbers = reached
        ? Object.entries(c.after.metric).map(
            ([k, v]) => `${k} ${before[k] === undefined ? "" : `from ${plain(before[k])} to `}${plain(v)}`,
          )
        : Object.entries(step?.metric ?? {}).map(([k, v]) => `${k} ${plain(v)}`);
      const facts = numbers.length ? ` ${reached ? "After the fix" : "Measured"}: ${numbers.join(", ")}.` : "";
      const progress = reached
        ? `Verdict reached in ${path.length - 1} answers.`
        : off
          ? "You have left the way of the evidence."
          : end
            ? ""
            : `Question ${count}; answer by the buttons, or by the next box in the chart.`;
      caption.set(progress);
      const reads = end ? `Verdict: ${verdicts[here][0]}.` : `Question: ${full.textContent}`;
      w.say(`${spoken} ${reads} ${saidVerdict}${facts}`.trim());
      const turn = i => (i < path.length - 1 ? ` ${w.get("answers")[i]}` : "");
      const way = path.map((n, i) => `${(verdicts[n] ?? questions[n])[SHORT]}${turn(i)}`).join("; ");
      p.describe(`Flow chart, ${c.name}. The way so far: ${way}.${facts}${low}`);
    });
  },
};
