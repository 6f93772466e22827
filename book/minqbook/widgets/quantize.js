// Uniform affine quantization in the page: the twin of minq/affine.py, equations 4 to 8 of the paper.
//
// Python's float64 and JavaScript's numbers are the same IEEE doubles, and every line below does the
// same operations in the same order, so both give the same bits (tests/test_js_parity.py).
// Signed zero: rounding keeps it, as NumPy does (-0.3 -> -0); integers and x_hat never carry it.

/** The nearest integer, ties to the even one, like NumPy's rint. Math.round is not: it takes 2.5 to
 *  3, and 0.49999999999999994 is lost by the floor(x + 0.5) that is often written instead. */
export function roundHalfEven(x) {
  const below = Math.floor(x), rest = x - below; // exact, but in (-1/2, 0), where it still is >= 1/2
  if (rest === 0 || !Number.isFinite(x)) return x;
  const up = rest > 0.5 || (rest === 0.5 && below % 2 !== 0);
  const r = up ? below + 1 : below;
  return r === 0 && x < 0 ? -0 : r;
}

export const clamp = (x, low, high) => (x < low ? low : x > high ? high : x); // eq. (5)

/** The smallest and largest integer [n, p] of the grid, eq. (4) and (8). */
export function integerGrid(bits, { signed = false, narrowRange = false } = {}) {
  if (!Number.isInteger(bits) || bits < 1 || bits > 16)
    throw new RangeError(`bits must be a whole number from 1 to 16, not ${bits}`);
  if (!signed && narrowRange) throw new RangeError("only a signed grid can have a narrow range");
  if (signed && bits === 1) throw new RangeError("a signed grid of 1 bit has no positive level");
  if (!signed) return [0, 2 ** bits - 1];
  const p = 2 ** (bits - 1) - 1;
  return [narrowRange ? -p : -p - 1, p];
}

const SMALLEST_NORMAL = 2 ** -1022;

/** The grid that covers [low, high] and holds 0 exactly: [scale, zeroPoint]. */
export function scaleZeroPoint(
  low,
  high,
  bits,
  { signed = false, narrowRange = false, symmetric = false, powerOfTwo = false } = {},
) {
  const [n, p] = integerGrid(bits, { signed, narrowRange });
  if (!(low <= high)) throw new RangeError(`low ${low} is above high ${high}`);
  low = Math.min(low, 0);
  high = Math.max(high, 0);
  if (symmetric && n === 0 && low < 0) throw new RangeError("the unsigned symmetric grid holds no negative numbers");
  let scale = 1; // every grid holds 0
  if (low !== high) {
    if (!symmetric) scale = (high - low) / (p - n);
    else scale = n === 0 ? high / p : Math.max(low / n, high / p);
    if (!Number.isFinite(scale)) throw new RangeError("the range is too wide for 64 bits");
    scale = Math.max(scale, SMALLEST_NORMAL);
  }
  if (powerOfTwo) scale = roundUpToPowerOfTwo(scale);
  const zeroPoint = symmetric ? 0 : clamp(roundHalfEven(n - low / scale), n, p) + 0;
  return [scale, zeroPoint];
}

/** The smallest 2^k that is at least x > 0; read off the bits, since log2 rounds. */
function roundUpToPowerOfTwo(x) {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, x);
  const exponent = (view.getUint16(0) >> 4) - 1023;
  return 2 ** exponent === x ? x : 2 ** (exponent + 1);
}

/** The real numbers at the two ends of the grid: [s (n - z), s (p - z)]. */
export function gridLimits(scale, zeroPoint, bits, options) {
  const [n, p] = integerGrid(bits, options);
  return [scale * (n - zeroPoint), scale * (p - zeroPoint)];
}

/** x_int = clamp(round(x / s) + z; n, p), eq. (4). */
export function quantize(x, scale, zeroPoint, bits, options) {
  const [n, p] = integerGrid(bits, options);
  return clamp(roundHalfEven(x / scale) + zeroPoint, n, p); // adding z = 0 turns -0 into 0
}

/** x_hat = s (x_int - z), eq. (6). */
export const dequantize = (xInt, scale, zeroPoint) => scale * (xInt - zeroPoint);

/** x_hat = s [clamp(round(x / s) + z; n, p) - z], eq. (7). */
export function fakeQuantize(x, scale, zeroPoint, bits, options) {
  return dequantize(quantize(x, scale, zeroPoint, bits, options), scale, zeroPoint);
}

/** The mean squared difference of two lists; 0 for empty ones. */
export function mse(x, xHat) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += (x[i] - xHat[i]) ** 2;
  return x.length ? sum / x.length : 0;
}

/** 10 log10(sum x^2 / sum (x - x_hat)^2) in decibels; Infinity where nothing was lost. */
export function sqnr(x, xHat) {
  let signal = 0, noise = 0;
  for (let i = 0; i < x.length; i++) {
    signal += x[i] ** 2;
    noise += (x[i] - xHat[i]) ** 2;
  }
  if (noise === 0) return Infinity;
  return signal ? 10 * Math.log10(signal / noise) : -Infinity;
}

/** Where the error comes from. A value is clipped where round(x / s) + z lies outside the grid; its
 *  squared error counts as clipping, that of all others as rounding (each at most (s / 2)^2).
 *  Returns {rounding, clipping, mse, clipped, sqnr}: mean squared errors, the clipped share, dB. */
export function errorParts(x, scale, zeroPoint, bits, options) {
  const [n, p] = integerGrid(bits, options);
  let rounding = 0, clipping = 0, clipped = 0, signal = 0;
  for (let i = 0; i < x.length; i++) {
    const k = roundHalfEven(x[i] / scale) + zeroPoint;
    const square = (x[i] - scale * (clamp(k, n, p) - zeroPoint)) ** 2;
    signal += x[i] ** 2;
    if (k < n || k > p) {
      clipping += square;
      clipped += 1;
    } else rounding += square;
  }
  const N = x.length || 1, noise = rounding + clipping;
  const dB = noise === 0 ? Infinity : signal ? 10 * Math.log10(signal / noise) : -Infinity;
  return { rounding: rounding / N, clipping: clipping / N, mse: noise / N, clipped: clipped / N, sqnr: dB };
}
