// What networks answer, and where they part.
import { fmt, percent } from "../kit/format.js";

export const FORMS = [["fp32", "FP32"], ["int8", "INT8"], ["int4", "INT4"]];
const LABEL = Object.fromEntries(FORMS);

/** Logits to probabilities. */
export function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity), e = Array.from(logits, v => Math.exp(v - most));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map(v => v / sum);
}

/** The likeliest classes first: [[class, probability], ...]. */
export function likeliest(logits, count) {
  const p = softmax(logits);
  return p.map((_, i) => i).sort((a, b) => p[b] - p[a] || a - b).slice(0, count).map(i => [i, p[i]]);
}

const list = words => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

/** In a sentence: who says what. tops: {form: [[class, probability], ...]}. */
export function parting(tops, name) {
  const said = new Map();
  for (const [form] of FORMS) {
    if (!tops[form]) continue;
    const first = tops[form][0][0];
    said.set(first, [...(said.get(first) ?? []), LABEL[form]]);
  }
  const groups = [...said];
  if (groups.length === 1) {
    const [[first, forms]] = groups;
    return `${forms.length === 3 ? "All three say" : `${list(forms)} ${forms.length > 1 ? "say" : "says"}`} ` +
      `“${name(first)}”.`;
  }
  const parts = groups.map(([first, forms]) => `${list(forms)} ${forms.length > 1 ? "say" : "says"} “${name(first)}”`);
  return `Here they part: ${parts.join("; ")}.`;
}

/** Where the reader's picture was hardest to keep: the weakest layer of each form. */
export function weakest(sqnr, sites) {
  const parts = ["int8", "int4"].filter(form => sqnr[form]?.length).map(form => {
    const finite = sqnr[form].map((v, i) => [v, i]).filter(([v]) => Number.isFinite(v));
    const [least, at] = finite.reduce((a, b) => (b[0] < a[0] ? b : a));
    return `${LABEL[form]} at least ${fmt(least)} dB (${sites[at]})`;
  });
  return parts.length ? `Signal over error between the layers: ${parts.join(", ")}.` : "";
}

/** In a sentence: who is faster, by the reader's own clock. */
export function race(times) {
  const { fp32, int8 } = times;
  if (!fp32 || !int8) return "";
  const ratio = fp32 / int8;
  if (ratio > 1.05) return `INT8 is ${fmt(ratio)} times as fast as FP32, here, on your machine`;
  if (ratio < 1 / 1.05) return `INT8 is ${fmt(1 / ratio)} times slower than FP32, here, on your machine`;
  return "INT8 and FP32 take the same time, here, on your machine";
}

export const size = bytes => (bytes >= 1e6 ? `${fmt(bytes / 1e6)} MB` : `${fmt(bytes / 1e3)} kB`);
export const chance = p => percent(p);
