// A residual block with its quantizers: the simulation in float, and the integers of the device.
// block() is the twin of SimulatedBlock.quantizers in Python; the rest draws and explains.
import { attr, h, svg, tsub } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { fixed, fmt } from "./kit/format.js";

const SWITCHES = ["activations", "add", "fold", "fuse", "pool", "weights"];

/** The switches that are on and change something, as a key of `measured`. */
export const keyOf = on =>
  SWITCHES.filter(k => on[k] && (on.activations || !["add", "fuse", "pool"].includes(k))).join("+");

/** The tensors that are rounded: {name: true or false}. */
export function rounded({ activations: a, add, fold, fuse, pool, weights }) {
  return {
    x: a, weight1: weights, conv1: a && !fold, bn1: a && !fuse, relu1: a, weight2: weights, conv2: a && !fold,
    bn2: a && add, skip: a && add, add: a && add && !fuse, relu2: a, pool: a && !pool,
  };
}

/** The block as it is wired now: parts in a row; on the wire behind each, what is rounded and which
 *  numbers flow before and after: "float", "acc" (32-bit accumulator) or "int" (few bits). */
export function block(on) {
  const q = rounded(on);
  const parts = [
    "x",
    "conv1",
    ...(on.fold ? [] : ["bn1"]),
    "relu1",
    "conv2",
    ...(on.fold ? [] : ["bn2"]),
    "add",
    "relu2",
    "pool",
    "y",
  ];
  const wires = [];
  let kind = "float";
  parts.slice(0, -1).forEach((part, i) => {
    if (part.startsWith("conv")) kind = kind === "int" && on.weights ? "acc" : "float";
    else if (kind === "int" && part.match(/^(bn|add)/)) kind = "acc";
    const tensor = on.fold && part.startsWith("conv") ? part.replace("conv", "bn") : part; // folded: one tensor
    const before = kind;
    if (q[tensor]) kind = "int";
    wires.push({ from: part, to: parts[i + 1], tensor, q: q[tensor], before, after: kind });
  });
  const skip = { from: "x", to: "add", tensor: "skip", q: q.skip, before: wires[0].after, after: wires[0].after };
  // What lies between two roundings of the path is one operation on the device.
  const groups = [];
  let run = [];
  parts.slice(1, -1).forEach((part, i) => {
    run.push(part);
    if (wires[i + 1].q || part === "pool") { groups.push(run); run = []; }
  });
  return { q, parts, wires, skip, groups: on.activations ? groups.filter(g => g.length > 1) : [] };
}

const SIZE = { x: 18, y: 18, conv: 48, bn: 36, relu1: 46, add: 28, relu2: 42, pool: 44 };
const sizeOf = part => SIZE[part] ?? SIZE[part.slice(0, -1)];
const STAIRS = "M-6 5h4v-4h4v-4h4v-2";

export default {
  render({ model, el }) {
    const w = widget({ model, el });
    const state = () => Object.fromEntries(SWITCHES.map(k => [k, w.get(k)]));

    // --- Switches ---
    const check = (trait, label) => w.checkbox({ trait, label, onInput: () => flipped(trait) });
    const boxes = {
      weights: check("weights", "weights"),
      activations: check("activations", "activations"),
      add: check("add", "residual add"),
      fold: check("fold", "fold batch norm"),
      fuse: check("fuse", "fuse activations"),
      pool: check("pool", "max-pool passes through"),
    };
    const group = (label, ...names) => h("fieldset", { class: "mq-field sim-switches" }, h("legend", {}, label),
      h("div", { class: "mq-checks" }, names.map(k => boxes[k].el)));
    let last = null; // the switch flipped last, and the configuration before it
    let before = keyOf(state());
    const flipped = trait => {
      const now = keyOf(state());
      if (now !== before) last = { trait, from: before, to: now };
      before = now;
    };
    w.controls(group("Round", "weights", "activations", "add"), group("The graph", "fold", "fuse", "pool"));
    w.controls(w.segmented({
      label: "Numbers on the wires", trait: "view", options: [["simulation", "simulation"], ["device", "device"]],
    }));

    const tall = width => width < 600;
    const p = w.plot({
      height: x => (tall(x) ? 640 : 236),
      margin: { left: 4, right: 4, top: 6, bottom: 6 },
      label: model.get("alt"),
    });
    w.add(p);
    attr(p.svg, { role: "group" });
    w.legend([["dashed grey", "float32"], ["line ink", "sum, 32 bits"], ["line blue", "on a grid of few bits"]]);
    const front = svg("g");
    p.svg.append(front);

    const heading = h("b", { class: "sim-name" }), inFloat = h("dd"), inInteger = h("dd");
    w.add(
      h(
        "div",
        { class: "sim-panel", role: "region", "aria-label": "What is computed there", "aria-live": "polite" },
        heading,
        h(
          "dl",
          {},
          h("div", {}, h("dt", {}, "In the simulation (float32)"), inFloat),
          h("div", {}, h("dt", {}, "On the device"), inInteger),
        ),
      ),
    );
    const metrics = w.get("metrics");
    const show = (m, v) => (["dB", "%"].includes(m.unit) ? `${fixed(v, 1)} ${m.unit}` : `${fmt(v)} ${m.unit}`.trim());
    const out = w.readouts([
      ["rounds", "activations rounded", "how often a tensor between input and output is rounded"],
      ["weights", "weights rounded"],
      ...metrics.map(m => [`m-${m.key}`, m.label, "measured by the chapter in this configuration"]),
    ]);
    const caption = w.caption();

    // --- Boxes and quantizers: made once, so that the keyboard's focus stays while they move ---
    const nodes = new Map();
    const pick = name => { w.set("selected", name); w.redraw(); };
    const button = (name, kind) => {
      const node = svg("g", {
        class: `sim-node sim-${kind}`,
        role: "button",
        tabindex: 0,
        "data-name": name,
        "data-lm-suppress-shortcuts": true,
        click: () => pick(name),
        keydown: e => {
          if (e.key !== "Enter" && e.key !== " ") return;
          e.preventDefault();
          e.stopPropagation();
          pick(name);
        },
        focus: () => {
          if (node.matches(":focus-visible")) pick(name);
        },
      });
      nodes.set(name, node);
      return node;
    };
    // In the order of computation, which is the order of the Tab key.
    const ORDER = ["x", "weight1", "conv1", "bn1", "relu1", "weight2", "conv2", "bn2", "add", "relu2", "pool", "y"];
    for (const name of ORDER) {
      if (name === "add") front.append(button("q-skip", "quantizer"));
      if (name.startsWith("weight")) front.append(button(name, "box"), button(`q-${name}`, "quantizer"));
      else front.append(button(name, "box"), ...(name === "y" ? [] : [button(`q-${name}`, "quantizer")]));
    }

    // --- Words ---
    const bits = k => `${w.get(k)}-bit`, deep = () => `${w.get("activation_bits")} bits`;
    const TENSOR = {
      x: "the input x",
      weight1: "the weights W₁",
      weight2: "the weights W₂",
      conv1: "the output of the first convolution",
      conv2: "the output of the second convolution",
      bn1: "what enters ReLU6",
      bn2: "the branch at the add",
      skip: "the input x at the add",
      relu1: "the output of ReLU6",
      add: "the sum",
      relu2: "the output of the block",
      pool: "the output of max-pool",
    };
    const label = (part, on) => {
      const n = part.at(-1) === "1" ? "First" : "Second";
      if (part.startsWith("conv")) return on.fold ? `${n} convolution, batch norm folded in` : `${n} convolution`;
      if (part.startsWith("bn")) return `${n} batch norm`;
      if (part.startsWith("weight")) return `Weights of the ${n.toLowerCase()} convolution`;
      if (part.startsWith("q-")) return `Quantizer: ${TENSOR[part.slice(2)]}`;
      return { x: "Input x", relu1: "ReLU6", add: "Residual add", relu2: "ReLU", pool: "Max-pool", y: "Output y" }[
        part
      ];
    };
    /** Two texts: what the simulation does here, and what the device does. */
    const explain = (part, on, S) => {
      const wb = bits("weight_bits"), ab = bits("activation_bits");
      const wire = S.wires.find(e => e.from === part), entering = S.wires.find(e => e.to === part)?.after ?? "float";
      const missing = on.activations ? "weights" : on.weights ? "activations" : "weights and activations";
      const alone = `No integers here: the ${missing} are not rounded, so a device would need floating point.`;
      const wide =
        wire && !wire.q
          ? ` The result stays ${wire.after === "acc" ? "in the accumulator" : "as it is"}; ` +
            `nothing is rounded before the next box.`
          : "";
      if (part.startsWith("q-weight")) {
        return [
          `Rounds the weights${on.fold ? ", with batch norm already multiplied in," : ""} to a symmetric grid, ` +
          `then goes on in float: ŵ = s·clamp(round(w/s)).`,
          `Happens once, before deployment. Stored are ${wb} integers and a scale, ` +
          `so nothing is left to do at run time.`,
        ];
      }
      if (part === "q-skip") {
        return [
          "Rounds x again, onto the grid that both inputs of the add share.",
          `Integers can be added only if they have one scale: x is multiplied by the ratio of the two scales and ` +
          `rounded to ${deep()} again.`,
        ];
      }
      if (part === "q-x") {
        return [
          "Rounds the input to the activation grid and maps it back to float: x̂ = s·(clamp(round(x/s) + z) − z).",
          `The input arrives as, or is turned into, ${ab} integers with scale s and zero-point z.`,
        ];
      }
      if (part.startsWith("q-")) {
        const name = TENSOR[part.slice(2)], e = S.wires.find(v => v.tensor === part.slice(2));
        const odd =
          part === "q-pool"
            ? " It need not: its values are on the input's grid already, and a second range can only lose."
            : "";
        return [
          `Rounds ${name} to its grid and maps it back to float, so the next box sees only values that the device ` +
          `can have.${odd}`,
          e?.before === "acc"
            ? `Requantization: the 32-bit sum is multiplied by a ratio of scales, ` +
              `rounded to ${deep()} and written to memory.`
            : e?.before === "int"
              ? `Requantization: ${ab} integers are rescaled and rounded to another ${ab} grid.`
              : `The value is rounded to ${ab} integers and written to memory.`,
        ];
      }
      if (part.startsWith("weight")) {
        return [
          on.fold
            ? "W̃ = γ W / √(σ² + ε): the trained weights with batch norm multiplied in, eq. (11)."
            : "The trained weights, one float32 each.",
          on.weights
            ? `Kept in memory as ${wb} integers.`
            : "Kept in memory as 32-bit floats: four bytes each to fetch.",
        ];
      }
      if (part.startsWith("conv")) {
        return [
          `Multiplies and adds in ` +
            `float32${on.weights || on.activations ? ", on values that lie on grids" : ""}` +
            `${on.fold ? "; batch norm is already in W and b" : ""}.`,
          wire.before === "acc"
            ? `${ab} inputs times ${wb} weights, summed exactly in a 32-bit accumulator that starts at the 32-bit ` +
              `bias.${wide}`
            : alone,
        ];
      }
      if (part.startsWith("bn")) {
        return [
          "Scales and shifts each channel in float32: γ (x − μ)/√(σ² + ε) + β, eq. (9).",
          on.activations
            ? `A second pass over the tensor: it is read again as ${ab} integers, multiplied and shifted. ` +
              `Folding saves the pass and a rounding.${wide}`
            : "A second pass over the tensor in floating point. Folding saves it, and changes no result.",
        ];
      }
      if (part.startsWith("relu")) {
        const six = part === "relu1";
        return [
          six ? "min(max(x, 0), 6) in float32." : "max(x, 0) in float32.",
          entering === "acc"
            ? `Clamps the 32-bit sums before they leave the ` +
              `accumulator${six ? "; with a range of 0 to 6 the clamp of requantization does it for free" : ""}. ` +
              `No extra rounding.`
            : entering === "int"
              ? `Reads ${ab} integers, clamps them at the zero-point${six ? " and at the integer of 6" : ""} and ` +
                `writes them again: all levels below zero were spent for nothing.`
              : "Floating point, since the activations are not rounded.",
        ];
      }
      if (part === "add") {
        return [
          on.activations && on.add
            ? "Adds two rounded tensors in float32."
            : on.activations
              ? "Adds in float32; the branch comes unrounded, so the simulation hides what many devices lose here."
              : "Adds in float32.",
          on.activations && on.add
            ? `Adds two ${ab} integers of one scale; the sum needs one bit more and goes through 32 bits.${wide}`
            : on.activations
              ? on.weights
                ? "Possible only where x can be added inside the accumulator of the convolution, as a second bias."
                : alone
              : "Floating point, since the activations are not rounded.",
        ];
      }
      if (part === "pool") {
        return [
          "The largest of each window, in float32.",
          on.activations
            ? `Compares ${ab} integers: order is the same as that of the floats, ` +
              `so scale and zero-point pass ` +
              `through${on.pool ? " and nothing is rounded" : "; still the output is rounded here"}.`
            : "Floating point, since the activations are not rounded.",
        ];
      }
      if (part === "x")
        return ["float32 numbers.", on.activations ? `${ab} integers, once rounded.` : "float32 numbers."];
      return [
        on.activations ? "float32 numbers that lie on a grid." : "float32 numbers.",
        on.activations ? `${ab} integers with a scale and a zero-point.` : "float32 numbers.",
      ];
    };

    // --- The picture ---
    const box = (name, cx, cy, bw, bh, lines) => {
      const bare = name === "x" || name === "y";
      attr(nodes.get(name), { transform: `translate(${cx} ${cy})`, display: null });
      nodes
        .get(name)
        .replaceChildren(
          svg("rect", { class: "sim-reach", x: -Math.max(bw, 40) / 2, y: -22, width: Math.max(bw, 40), height: 44 }),
          name === "add"
            ? svg("circle", { class: "sim-shape", r: bw / 2 })
            : svg("rect", {
                class: `sim-shape ${bare ? "sim-bare" : ""}`,
                x: -bw / 2,
                y: -bh / 2,
                width: bw,
                height: bh,
                rx: 6,
              }),
          ...lines.map((t, i) =>
            svg(
              "text",
              {
                class: name === "add" ? "sim-plus" : bare ? "mq-strong" : "",
                "text-anchor": "middle",
                y: (name === "add" ? 6 : 4) + 14 * (i - (lines.length - 1) / 2),
              },
              t,
            ),
          ),
        );
    };
    const dot = (name, cx, cy) => {
      attr(nodes.get(name), { transform: `translate(${cx} ${cy})`, display: null });
      nodes.get(name).replaceChildren(
        svg("rect", { class: "sim-reach", x: -17, y: -20, width: 34, height: 40 }),
        svg("circle", { class: "sim-shape", r: 11 }), svg("path", { class: "mq-stroke mq-blue", d: STAIRS }));
    };
    const LINES = {
      x: ["x"],
      y: ["y"],
      bn1: ["BN"],
      bn2: ["BN"],
      relu1: ["ReLU6"],
      relu2: ["ReLU"],
      add: ["+"],
      pool: ["max", "pool"],
      weight1: [tsub("W", 1)],
      weight2: [tsub("W", 2)],
    };
    const TONE = { float: "sim-float", acc: "sim-acc", int: "sim-int" };

    return w.start(() => {
      const on = state(), S = block(on), high = tall(p.width), device = w.get("view") === "device";
      for (const k of ["add", "fuse", "pool"]) boxes[k].limit({ disabled: !on.activations });
      let chosen = w.get("selected");
      const alive = name =>
        S.parts.includes(name) || name.startsWith("weight") || (name.startsWith("q-") && S.q[name.slice(2)]);
      if (!alive(chosen)) { // it went away: look at what took its place
        const stem = chosen.replace("q-", "");
        chosen = stem.startsWith("bn")
          ? S.parts.includes(stem)
            ? stem
            : stem.replace("bn", "conv")
          : alive(stem)
            ? stem
            : "conv1";
      }

      // Along the main axis: boxes share what is left between them.
      const length = high ? p.height - 14 : p.width - 10,
        extents = S.parts.map(k =>
          high
            ? k === "x" || k === "y"
              ? 20
              : k === "add"
                ? 28
                : 36
            : on.fold && k.startsWith("conv")
              ? 52
              : sizeOf(k),
        );
      const gap = (length - extents.reduce((a, b) => a + b, 0)) / (S.parts.length - 1);
      const main = high ? Math.round(p.width * 0.52) : 112, spot = {}; // spot: [from, to] along the axis
      let at = high ? 7 : 5;
      S.parts.forEach((k, i) => { spot[k] = [at, at + extents[i]]; at += extents[i] + gap; });
      const xy = (m, c) => (high ? [c, m] : [m, c]);
      const center = k => (spot[k][0] + spot[k][1]) / 2;
      const words = kind =>
        ({ float: high ? "float32" : "f32", acc: "32", int: String(w.get("activation_bits")) })[kind];
      const unit = kind => (high && kind !== "float" ? " bits" : "");

      for (const node of nodes.values()) attr(node, { display: "none" });
      const lines = [], texts = [], line = (points, kind, tip) => {
        lines.push(
          svg("path", {
            class: `sim-wire ${TONE[kind]}`,
            d: points.map(([x, y], i) => `${i ? "L" : "M"}${x} ${y}`).join(""),
          }),
        );
        if (!tip) return;
        const [x, y] = points.at(-1), [u, v] = points.at(-2), [dx, dy] = [Math.sign(x - u), Math.sign(y - v)];
        lines.push(
          svg("path", {
            class: `sim-tip ${TONE[kind]}`,
            d: `M${x} ${y}L${x - 7 * dx - 4 * dy} ${y - 7 * dy - 4 * dx}L${x - 7 * dx + 4 * dy} ` +
              `${y - 7 * dy + 4 * dx}Z`,
          }),
        );
      };
      const text = (x, y, t, anchor = "middle") =>
        texts.push(svg("text", { class: "mq-tick mq-halo", x, y, "text-anchor": anchor }, t));
      const note = (a, b, before, after, q) => { // numbers on a wire, in the view of the device
        if (!device) return;
        const mid = (a + b) / 2, same = before === after && !q;
        const t = same ? `${words(after)}${unit(after)}` : `${words(before)}→${words(after)}${unit(after)}`;
        if (high) text(main + 18, mid + 4, t, "start");
        else text(mid, a < 30 ? main + 26 : main - (q ? 17 : 8), t); // the first one is below: the skip leaves above
      };
      for (const e of S.wires) {
        const [a, b] = [spot[e.from][1], spot[e.to][0]], mid = (a + b) / 2;
        if (e.q) {
          line([xy(a, main), xy(mid, main)], e.before);
          line([xy(mid, main), xy(b, main)], e.after, true);
          dot(`q-${e.tensor}`, ...xy(mid, main));
        } else line([xy(a, main), xy(b, main)], e.after, true);
        note(a, b, e.before, e.after, e.q);
      }
      // The way around: x to the add.
      const aside = high ? p.width - 26 : 30,
        first = spot[S.parts[1]][0] - 5,
        target = center("add"),
        rim = high ? main + 14 : main - 14;
      line([xy(first, main), xy(first, aside)], S.skip.before);
      line([xy(first, aside), xy(target, aside), xy(target, rim)], S.skip.after, true);
      if (S.skip.q) dot("q-skip", ...xy((spot.conv2[0] + spot.conv2[1]) / 2, aside));
      text(...xy(center("relu1"), high ? aside + 4 : aside - 8), high ? "" : "skip");
      if (device) {
        const t = S.skip.q
          ? `${words("int")}→${words("int")}${unit("int")}`
          : `${words(S.skip.after)}${unit(S.skip.after)}`;
        if (high) text(aside - 6, center("relu1"), t, "end");
        else text(center("conv2"), aside - (S.skip.q ? 17 : 8), t);
      }
      // Weights come from the side.
      const far = high ? 30 : 208;
      for (const n of [1, 2]) {
        const c = center(`conv${n}`),
          edge = high ? main - 56 : main + 22,
          near = high ? far + 20 : far - 15,
          mid = (edge + near) / 2;
        line([xy(c, near), xy(c, mid)], "float");
        line([xy(c, mid), xy(c, edge)], on.weights ? "int" : "float", true);
        box(`weight${n}`, ...xy(c, far), 36, 28, LINES[`weight${n}`]);
        if (on.weights) dot(`q-weight${n}`, ...xy(c, mid));
        const t = on.weights ? `${w.get("weight_bits")}` : high ? "float32" : "f32";
        if (device) {
          if (high) text(mid, c - 17, `${t}${on.weights ? " bits" : ""}`);
          else text(c + 17, mid + 4, t, "start");
        }
      }
      S.parts.forEach((k, i) => {
        const conv = k.startsWith("conv"),
          lines = conv ? (high ? [on.fold ? "conv + BN" : "conv"] : on.fold ? ["conv", "+ BN"] : ["conv"]) : LINES[k];
        const [bw, bh] = high
          ? [k === "add" ? 28 : k === "x" || k === "y" ? 28 : 108, extents[i]]
          : [extents[i], k === "x" || k === "y" ? 26 : 44];
        box(
          k,
          ...xy(center(k), main),
          bw,
          bh,
          high && k === "pool" ? ["max-pool"] : high && k.startsWith("bn") ? ["batch norm"] : lines,
        );
      });
      // Frames around what the device runs in one go.
      p.layer("groups").replaceChildren(...S.groups.map(g => {
        const a = spot[g[0]][0] - 5, b = spot[g.at(-1)][1] + 5, half = high ? 61 : 29;
        const [x, y] = xy(a, main - half), [u, v] = xy(b, main + half);
        return svg("rect", {
          class: "sim-group",
          x: Math.min(x, u),
          y: Math.min(y, v),
          width: Math.abs(u - x),
          height: Math.abs(v - y),
          rx: 10,
        });
      }));
      p.layer("wires").replaceChildren(...lines);
      p.layer("notes").replaceChildren(...texts);

      const rounds = Object.entries(S.q).filter(([k, yes]) => yes && !k.startsWith("weight")).length;
      for (const [name, node] of nodes) {
        node.classList.toggle("sim-chosen", name === chosen);
        attr(node, { "aria-pressed": String(name === chosen), "aria-label": label(name, on) });
      }
      const [simulated, integers] = explain(chosen, on, S);
      heading.textContent = label(chosen, on);
      inFloat.textContent = simulated;
      inInteger.textContent = integers;

      const key = keyOf(on), result = w.get("measured")[key];
      out.set({
        rounds: `${rounds} ${rounds === 1 ? "time" : "times"}`,
        weights: on.weights ? "2 tensors" : "none",
        ...Object.fromEntries(
          metrics.map(m => [
            `m-${m.key}`,
            result?.[m.key] === undefined
              ? key && key !== "fold"
                ? "not measured"
                : "nothing lost"
              : show(m, result[m.key]),
          ]),
        ),
      });
      const names = {
        fold: "Fold batch norm",
        fuse: "Fuse activations",
        pool: "Max-pool passes through",
        weights: "Round weights",
        activations: "Round activations",
        add: "Round at the add",
      };
      const m = metrics[0],
        old = last && last.to === key ? w.get("measured")[last.from]?.[m.key] : undefined,
        now = result?.[m.key];
      const moved =
        old === undefined || now === undefined
          ? ""
          : ` ${names[last.trait]} ${on[last.trait] ? "on" : "off"}: ` +
            `${now - old < 0 ? "−" : "+"}${show(m, Math.abs(now - old))} ${m.label}.`;
      const many = S.groups.length;
      const framed = many === 1 ? "one group of boxes that" : `${many} groups of boxes, each of which`;
      const merged = many ? ` Dashed frames: ${framed} the device runs in one go.` : "";
      const sum =
        rounds || on.weights
          ? `Between input and output activations are rounded ${rounds} ` +
            `${rounds === 1 ? "time" : "times"}${on.weights ? ", and two weight tensors once" : ""}.`
          : "Nothing is rounded: this is the float32 network.";
      const told =
        now === undefined
          ? key && key !== "fold"
            ? " This combination was not measured."
            : ""
          : ` Measured: ${m.label} ${show(m, now)}.`;
      caption.set(`${sum}${told}${moved}${merged}`);
      const named = S.parts.map(k => label(k, on)).join(", ");
      const quantizers = Object.keys(S.q).filter(k => S.q[k]).map(k => TENSOR[k]).join(", ");
      p.describe(
        `Residual block: ${named}; the input also goes to the add. Quantizers: ${quantizers || "none"}. ${sum}`,
      );
    });
  },
};
