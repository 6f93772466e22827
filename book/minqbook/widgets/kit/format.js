// Numbers for readers.

const SUPER = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
/** A whole number as an exponent: 10⁻⁷. */
export const raised = k => [...String(k)].map(c => SUPER[c]).join("");
const dressed = t => t.replace("-", "−");

/** A number for readers, to some significant digits: 0.0333, 12,345, 1.2×10⁻⁷, −∞; never "NaN". */
export function fmt(v, digits = 3) {
  if (typeof v !== "number" || Number.isNaN(v)) return "–";
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size >= 1e7 || size < 1e-4) {
    const [m, e] = v.toExponential(digits - 1).split("e");
    return `${dressed(String(Number(m)))}×10${raised(Number(e))}`;
  }
  const round = size >= 10 ** (digits - 1) ? Math.round(v) : Number(v.toPrecision(digits));
  return dressed(size >= 1e4 ? round.toLocaleString("en-US", { maximumFractionDigits: 9 }) : String(round));
}

/** A number with a fixed count of decimals, for columns that must not jump. */
export const fixed = (v, decimals) => (Number.isFinite(v) && Math.abs(v) < 1e7 ? dressed(v.toFixed(decimals)) : fmt(v));
export const percent = share => {
  const v = 100 * share;
  return v > 0 && v < 0.1 ? "< 0.1 %" : `${fmt(v, v < 99.5 ? 2 : 3)} %`;
};

