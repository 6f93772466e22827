// The question before a figure, which stays shut until the reader answers or skips.
import { attr, h, unique } from "./elements.js";
import { fmt } from "./format.js";

/** What this browser keeps of a question, or nothing: a page on a disk may have no storage. */
const kept = {
  key: q => `minq-question ${location.pathname} ${q.text}`,
  read(q) {
    try {
      return JSON.parse(localStorage.getItem(kept.key(q)));
    } catch {
      return null;
    }
  },
  write(q, answer) {
    try {
      localStorage.setItem(kept.key(q), JSON.stringify(answer));
    } catch {
      // not kept, then
    }
  },
  forget(q) {
    try {
      localStorage.removeItem(kept.key(q));
    } catch {
      // nothing was kept
    }
  },
};

const withUnit = (q, v) => `${fmt(v, 4)}${q.unit && ` ${q.unit}`}`;
const quoted = (q, v) => (q.choices ? `“${v}”` : withUnit(q, v));
/** Where a number stands between low and high, in CSS. */
const along = ({ low, high }, v) => `${(100 * (v - low)) / (high - low)}%`;

/** The verdict on a guess, and what was said: two sentences. */
function judged(q, guess) {
  if (q.choices) return [guess === q.choices[q.answer] ? "Right." : "Not so.", `You said ${quoted(q, guess)}.`];
  const off = guess - q.answer;
  if (Math.abs(off) <= (q.step / 2) * (1 + 1e-9)) {
    return ["Right,", `as near as the slider can say. You said ${withUnit(q, guess)}.`];
  }
  const direction = off < 0 ? "Too low" : "Too high";
  return [direction, `by ${withUnit(q, Math.abs(off))}. You said ${withUnit(q, guess)}.`];
}

// A form to guess in: { nodes, value, focus(), holds(v) }.

/** One of a few choices. */
function choiceForm({ choices, answer }, name) {
  const radios = choices.map(value =>
    h("input", { type: "radio", name, value, required: true, "data-lm-suppress-shortcuts": true }),
  );
  const checked = () => radios.find(r => r.checked);
  return {
    nodes: radios.map(radio => h("label", { class: "mq-check" }, radio, h("span", {}, radio.value))),
    example: choices.find((_, i) => i !== answer),
    holds: v => choices.includes(v),
    focus: () => (checked() ?? radios[0]).focus(),
    get value() {
      return checked().value;
    },
    set value(v) {
      for (const radio of radios) radio.checked = radio.value === v;
    },
  };
}

/** A number from a slider. */
function numberForm(q, name) {
  const { low, high, step } = q;
  const number = h("output", { class: "mq-value", for: name });
  const follow = () => {
    number.textContent = withUnit(q, Number(slider.value));
    attr(slider, { "aria-valuetext": number.textContent });
    slider.style.setProperty("--fill", along(q, slider.value));
  };
  const slider = h("input", {
    ...{ type: "range", id: name, min: low, max: high, step },
    "data-lm-suppress-shortcuts": true,
    input: follow,
  });
  const ends = [low, high].map(v => h("span", {}, withUnit(q, v)));
  return {
    nodes: h(
      "div",
      { class: "mq-field" },
      h("div", { class: "mq-line" }, h("label", { for: name }, "Your guess"), number),
      slider,
      h("div", { class: "mq-line mq-ends", "aria-hidden": true }, ends),
    ),
    example: low,
    holds: v => typeof v === "number" && v >= low && v <= high,
    focus: () => slider.focus(),
    get value() {
      return Number(slider.value);
    },
    set value(v) {
      slider.value = v ?? low; // the middle would be a hint
      follow();
    },
  };
}

/** The guess and the truth as marks on a line: { node, put(guess) }. */
function numberLine(q) {
  const mark = kind => {
    const text = h("span"), node = h("div", { class: `mq-mark ${kind}` }, text, h("i"));
    const put = (value, words) => {
      node.style.setProperty("--at", along(q, value));
      text.textContent = words;
    };
    return { node, put };
  };
  const yours = mark("mq-blue"), truth = mark("mq-red");
  const node = h("div", { class: "mq-numbers", role: "img" }, yours.node, h("div", { class: "mq-axle" }), truth.node);
  truth.put(q.answer, `truth ${withUnit(q, q.answer)}`);
  return {
    node,
    put(guess) {
      const given = guess !== undefined;
      yours.node.hidden = !given;
      if (given) yours.put(guess, `you ${withUnit(q, guess)}`);
      const [low, high, answer] = [q.low, q.high, q.answer].map(v => withUnit(q, v));
      const said = given ? `your guess ${withUnit(q, guess)}, ` : "";
      attr(node, { "aria-label": `A line from ${low} to ${high}: ${said}truth ${answer}.` });
    },
  };
}

/** The side of the card that tells the answer: { node, put(guess), words() }; a skipped one has no guess. */
function answerSide(q, again) {
  const verdict = h("b"), said = h("span"), guess = h("p", { class: "mq-guess" }, verdict, " ", said);
  const is = `It is ${quoted(q, q.choices ? q.choices[q.answer] : q.answer)}.`;
  const truth = h("p", { class: "mq-truth" }, h("b", {}, is), ` ${q.because}`);
  const line = q.choices ? null : numberLine(q);
  const node = h("div", { class: "mq-tell" }, guess, truth, line?.node, h("div", { class: "mq-buttons" }, again));
  return {
    node,
    put(v) {
      [verdict.textContent, said.textContent] = v === undefined ? ["Skipped.", ""] : judged(q, v);
      line?.put(v);
    },
    words: () => `${guess.textContent} ${truth.textContent}`,
  };
}

const formButton = (text, click) =>
  h("button", { type: click ? "button" : "submit", class: "mq-button", click }, text);

/** Put the question of a model before its figure. An answer is { guess }, the text of a choice or a number, or
 *  { skipped: true }. Returns the clean-up. */
export function ask(model, root) {
  const q = model.get("question");
  if (!q) return () => {};
  const form = (q.choices ? choiceForm : numberForm)(q, unique("guess"));
  const again = formButton("Ask me again", () => {
    kept.forget(q);
    open();
    form.focus();
  });
  const buttons = [formButton("Commit"), formButton("Skip", () => commit({ skipped: true }))];
  const wait = h("p", { class: "mq-wait" }, "The figure opens when you have committed an answer, or skipped.");
  const asking = h("div", { class: "mq-ask" }, form.nodes, h("div", { class: "mq-buttons" }, buttons), wait);
  const telling = answerSide(q, again);
  const sides = h("div", { class: "mq-stack" }, asking, telling.node);
  const live = h("p", { class: "mq-hidden", role: "status" });
  const submit = event => {
    event.preventDefault();
    commit({ guess: form.value });
  };
  const attributes = { class: "minq mq-question", "data-lm-suppress-shortcuts": true, submit };
  const card = h("form", attributes, h("fieldset", {}, h("legend", {}, q.text), sides), live);

  // Both sides of the card are laid out all the time, one of them unseen, so that nothing jumps.
  const show = answered => {
    root.inert = !answered;
    for (const node of [card, root]) node.classList.toggle("mq-shut", !answered);
    asking.inert = answered;
    telling.node.inert = !answered;
  };
  const open = () => {
    telling.put(form.example); // holds the room that an answer will take
    live.textContent = "";
    show(false);
  };
  const close = answer => {
    telling.put(answer.guess);
    show(true);
  };
  const commit = answer => {
    sides.style.minHeight = `${sides.getBoundingClientRect().height}px`; // "Skipped." is short
    addEventListener("resize", () => { sides.style.minHeight = ""; }, { once: true });
    close(answer);
    kept.write(q, answer);
    again.focus({ preventScroll: true });
    live.textContent = `${telling.words()} The figure is open.`;
  };
  const old = kept.read(q), valid = form.holds(old?.guess);
  form.value = valid ? old.guess : undefined;
  if (valid || old?.skipped === true) close(old);
  else open();
  root.before(card);
  return () => card.remove();
}
