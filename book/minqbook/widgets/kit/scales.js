// Scales between data and pixels, their ticks, and paths through pixel points.

/** About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten. */
export function niceTicks(low, high, count = 5) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0) || !Number.isFinite(raw)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * (raw / power < 1.5 ? 1 : raw / power < 3.2 ? 2 : raw / power < 7.1 ? 5 : 10);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k++)
    ticks.push(Number((k * step).toPrecision(12)) + 0);
  return ticks;
}

function scale(domain, range, to, from, ticks) {
  let [a, b] = domain.map(to);
  if (!(b > a)) [a, b] = [a - 0.5, a + 0.5]; // a domain of one point still draws
  const k = (range[1] - range[0]) / (b - a);
  return Object.assign(v => range[0] + (to(v) - a) * k, {
    domain: [from(a), from(b)], range, ticks, invert: px => from(a + (px - range[0]) / k),
  });
}
/** x = linear([0, 1], [left, right]); x(0.5), x.invert(px), x.ticks(5). */
export const linear = (domain, range) => scale(domain, range, v => v, v => v, count => niceTicks(...domain, count));
/** The same for positive values over orders of magnitude; ticks at powers of ten (or two: base 2). */
export const logarithmic = (domain, range, base = 10) => {
  const to = v => Math.log(v) / Math.log(base), from = u => base ** u;
  return scale(domain, range, to, from, count => {
    const [a, b] = [Math.ceil(to(domain[0]) - 1e-9), Math.floor(to(domain[1]) + 1e-9)];
    const every = Math.max(1, Math.ceil((b - a) / Math.max(1, count))), ticks = [];
    for (let k = a; k <= b; k += every) ticks.push(base ** k);
    return ticks;
  });
};

/** A pixel coordinate fit for an attribute: finite, to a hundredth. */
export const px = v => (Number.isFinite(v) ? Math.round(Math.max(-1e5, Math.min(1e5, v)) * 100) / 100 : 0);
/** Paths through pixel points [[x, y], ...]. */
export const linePath = points => points.map(([x, y], i) => `${i ? "L" : "M"}${px(x)} ${px(y)}`).join("");
export const areaPath = (points, base) =>
  points.length ? `${linePath(points)}L${px(points.at(-1)[0])} ${px(base)}L${px(points[0][0])} ${px(base)}Z` : "";
/** Each point holds its y until the next one comes; the last until `end`. */
export const stepPath = (points, end) =>
  points.map(([x, y], i) => (i ? `H${px(x)}V${px(y)}` : `M${px(x)} ${px(y)}`)).join("") +
  (end === undefined ? "" : `H${px(end)}`);
/** The outline of a histogram; x and y are scales, bins as in histogram(). */
export function histogramPath(counts, low, high, x, y) {
  const width = (high - low) / counts.length, base = px(y(0));
  return `M${px(x(low))} ` +
    `${base}${counts.map((c, i) => `V${px(y(c))}H${px(x(low + (i + 1) * width))}`).join("")}V${base}Z`;
}

