// The data of a widget: from bytes, their extent, their histogram.

/** The floats of a binary trait (float32, little endian). */
export function floats(view) {
  if (!view || !view.buffer) return new Float32Array();
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}
/** The bytes of a binary trait. */
export const bytes = view =>
  view && view.buffer ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array();

export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low <= high ? [low, high] : [0, 0];
}

/** How many values fall into each of `bins` equal bins over [low, high]; the last one is closed. */
export function histogram(values, low, high, bins) {
  const counts = new Array(bins).fill(0), k = bins / (high - low || 1);
  for (const v of values) {
    if (v >= low && v <= high) counts[Math.min(bins - 1, Math.floor((v - low) * k))] += 1;
  }
  return counts;
}

