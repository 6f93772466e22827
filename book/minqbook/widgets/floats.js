// Floats of few bits in the page: the twin of minq/floats.py.
//
// A format is [exponent bits, mantissa bits, what its largest codes stand for: "ieee", "nan" or "none"], an integer
// grid is [bits]. A code is a whole number below 2^32, so fields are cut out by division: >> would give it a sign.
import { clamp, roundHalfEven } from "./quantize.js";

export const isFloat = format => format.length > 1;
const biasOf = E => 2 ** (E - 1) - 1;
export const bitsOf = format => (isFloat(format) ? 1 + format[0] + format[1] : format[0]);

/** Sign, exponent and mantissa of a code, as whole numbers. */
export function fields(code, [E, M]) {
  const high = Math.floor(code / 2 ** M);
  return { sign: Math.floor(high / 2 ** E), exponent: high % 2 ** E, mantissa: code % 2 ** M };
}

/** The number that a code stands for; minq.floats.decode, or a two's complement. */
export function decode(code, format) {
  if (!isFloat(format)) return code - (code >= 2 ** (format[0] - 1) ? 2 ** format[0] : 0);
  const [E, M, special] = format,
    { sign, exponent: e, mantissa } = fields(code, format),
    m = mantissa / 2 ** M;
  let size = e ? 2 ** (e - biasOf(E)) * (1 + m) : 2 ** (1 - biasOf(E)) * m;
  if (e === 2 ** E - 1 && special === "ieee") size = mantissa ? NaN : Infinity;
  if (e === 2 ** E - 1 && special === "nan" && mantissa === 2 ** M - 1) size = NaN;
  return sign ? -size : size;
}

/** How many codes without a sign stand for finite numbers: 0 to the largest, ascending. */
export const finiteCodes = ([E, M, special]) =>
  2 ** (E + M) - (special === "ieee" ? 2 ** M : special === "nan" ? 1 : 0);

/** All numbers of a grid that are not negative, ascending, at scale 1; minq.floats.float_grid. */
export function positives(format) {
  const codes = isFloat(format) ? finiteCodes(format) : 2 ** (format[0] - 1);
  return Array.from({ length: codes }, (_, code) => decode(code, format));
}

const view = new DataView(new ArrayBuffer(8));
/** 2^floor(log2 |x|), read off the bits, since log2 rounds. */
export function power(x) {
  view.setFloat64(0, x);
  return 2 ** (((view.getUint16(0) >> 4) & 2047) - 1023);
}

/** The distance between neighbours where u lies: 2^(max(floor(log2 |u|), e_min) - M). */
export const stepAt = (u, [E, M]) => Math.max(power(u), 2 ** (1 - biasOf(E))) * 2 ** -M;

/** The nearest number of a grid at scale 1; minq.floats.fake_quantize_float and eq. (4). */
export function nearest(u, format, largest) {
  if (!isFloat(format)) return clamp(roundHalfEven(u), -largest - 1, largest) + 0;
  u = clamp(u, -largest, largest);
  const step = stepAt(u, format);
  return step * roundHalfEven(u / step);
}

/** The code of the number next to x: what is too large becomes the largest, infinity stays where there is one. */
export function encode(x, format) {
  const bits = bitsOf(format);
  if (!isFloat(format)) {
    const k = nearest(Number.isNaN(x) ? 0 : x, format, 2 ** (bits - 1) - 1);
    return k < 0 ? k + 2 ** bits : k;
  }
  const [E, M, special] = format,
    sign = x < 0 || Object.is(x, -0) ? 2 ** (E + M) : 0,
    finite = finiteCodes(format);
  if (Number.isNaN(x)) return special === "none" ? 0 : 2 ** (E + M) - 1;
  if (!Number.isFinite(x)) return sign + (special === "ieee" ? finite : finite - 1);
  const u = Math.abs(nearest(x, format, decode(finite - 1, format))),
    step = stepAt(u, format);
  const e = Math.max(Math.log2(step) + M + biasOf(E), 1); // of a power of two Math.log2 is exact
  return sign + (e - 1) * 2 ** M + u / step;
}

const FLOAT16 = [5, 10, "ieee"];
/** A float16 from its 16 bits. */
export const half = bits => decode(bits, FLOAT16);
