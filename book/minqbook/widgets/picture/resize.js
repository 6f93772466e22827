// A picture as a network takes it: the middle square, resized as Pillow does it, and normalised.
//
// The resizing is Pillow's bicubic one to the last bit: weights in 22 bits of fraction, first along the rows, then
// along the columns, each result rounded to a byte.
const BITS = 22, ONE = 2 ** BITS, HALF = ONE / 2;
const A = -0.5; // of the cubic
const SUPPORT = 2;

function cubic(x) {
  const d = Math.abs(x);
  if (d < 1) return ((A + 2) * d - (A + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * A : 0;
}
const byte = v => (v < 0 ? 0 : v > 255 ? 255 : v);
const wholeNumber = v => (v < 0 ? Math.ceil(v - 0.5) : Math.floor(v + 0.5)); // ties go away from zero

/** For each of `to` pixels, the first of the `from` pixels that it is made of, and their weights, times 2^22. */
function weights(from, to) {
  const ratio = from / to, stretch = Math.max(1, ratio), reach = SUPPORT * stretch;
  return Array.from({ length: to }, (_, i) => {
    const middle = (i + 0.5) * ratio;
    const first = Math.max(0, Math.trunc(middle - reach + 0.5));
    const end = Math.min(from, Math.trunc(middle + reach + 0.5));
    const raw = Array.from({ length: end - first }, (_, k) => cubic((k + first - middle + 0.5) * (1 / stretch)));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, weights: raw.map(v => wholeNumber((v / sum) * ONE)) };
  });
}

/** A square of interleaved bytes, `channels` of each pixel, from side `from` to side `to`; three channels are kept. */
export function resized(pixels, channels, from, to) {
  if (from === to && channels === 3) return Uint8Array.from(pixels);
  const table = weights(from, to);
  const across = new Uint8Array(from * to * 3), result = new Uint8Array(to * to * 3);
  const pass = (source, target, start, step, at, next) => { // one line of pixels, into one of another length
    for (const { first, weights: w } of table) {
      let r = HALF, g = HALF, b = HALF;
      for (let k = 0, s = start + first * step; k < w.length; k++, s += step) {
        r += source[s] * w[k];
        g += source[s + 1] * w[k];
        b += source[s + 2] * w[k];
      }
      target[at] = byte(r >> BITS);
      target[at + 1] = byte(g >> BITS);
      target[at + 2] = byte(b >> BITS);
      at += next;
    }
  };
  for (let row = 0; row < from; row++) pass(pixels, across, row * from * channels, channels, row * to * 3, 3);
  for (let column = 0; column < to; column++) pass(across, result, column * 3, to * 3, column * 3, to * 3);
  return result;
}

/** The middle square of a picture: its corner, and its side, `middle` times the shorter one. */
export function middleSquare(width, height, middle) {
  const exact = middle * Math.min(width, height), low = Math.floor(exact);
  const even = low % 2 ? low + 1 : low; // a half goes to the even one, as in Python
  const side = exact - low === 0.5 ? even : Math.round(exact);
  return { x: Math.floor((width - side) / 2), y: Math.floor((height - side) / 2), side };
}

/** (pixel - mean) / std in single precision, a plane for each colour. */
export function normalised(pixels, mean, std) {
  const count = pixels.length / 3, planes = new Float32Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) planes[(i % 3) * count + Math.floor(i / 3)] = (pixels[i] - mean) / std;
  return planes;
}

/** Three bytes a pixel as four, opaque, for a canvas. */
export function opaque(pixels) {
  const rgba = new Uint8ClampedArray((pixels.length / 3) * 4).fill(255);
  for (let i = 0, o = 0; i < pixels.length; i += 3, o += 4) rgba.set(pixels.subarray(i, i + 3), o);
  return rgba;
}
