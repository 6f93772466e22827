// The large parts of a page, loaded when the reader asks for them: the engine, the files of networks.
//
// A page on a disk may fetch nothing, but it may load scripts. So a part is a few scripts, each of which calls
// `minqPart` with a piece of the part: gzip in base64. Which parts there are stands in the page's head.

/** What the page has: {base, parts: {name: [count of scripts, bytes, bytes in gzip]}}; null without any. The base is
 *  seen from the book's own scripts, so that it is right for a deck of slides too. */
export function available() {
  try {
    return JSON.parse(document.querySelector('meta[name="minq-parts"]')?.content ?? "null");
  } catch {
    return null;
  }
}

const waiting = new Map(); // "name 0" -> what takes the piece
const loadings = new Map(); // name -> promise of its bytes

/** How many bytes these parts have on their way, without those that are here. */
export const toLoad = names => names.filter(name => !loadings.has(name))
  .reduce((sum, name) => sum + (available()?.parts[name]?.[2] ?? 0) * (4 / 3), 0);

/** The bytes of a part, an ArrayBuffer. onPiece(bytes) is told of each piece that came. */
export function load(name, onPiece = () => {}) {
  if (!loadings.has(name)) {
    const coming = unpacked(name, onPiece);
    loadings.set(name, coming);
    coming.catch(() => loadings.delete(name)); // another try may have more luck
  }
  return loadings.get(name);
}
export const text = async (name, onPiece) => new TextDecoder().decode(await load(name, onPiece));

async function unpacked(name, onPiece) {
  const { base, parts } = available(), [count, bytes] = parts[name];
  const pieces = [];
  for (let k = 0; k < count; k++) pieces.push(await piece(base, name, k, onPiece)); // in turn: one line, one bar
  let whole;
  try {
    const stream = new Blob(pieces).stream().pipeThrough(new DecompressionStream("gzip"));
    whole = await new Response(stream).arrayBuffer();
  } catch {
    throw new Error(`the file ${name} is damaged; load the page again, or build the book again`);
  }
  if (whole.byteLength !== bytes)
    throw new Error(`the file ${name} has ${whole.byteLength} bytes instead of ${bytes}; build the book again`);
  return whole;
}

function piece(base, name, k, onPiece) {
  const key = `${name} ${k}`;
  return new Promise((done, failed) => {
    window.minqPart = (from, number, data) => {
      waiting.get(`${from} ${number}`)?.(data);
      waiting.delete(`${from} ${number}`);
    };
    waiting.set(key, data => {
      onPiece(data.length);
      try {
        done(Uint8Array.from(atob(data), c => c.charCodeAt(0)));
      } catch {
        failed(new Error(`the file ${name} is damaged; load the page again, or build the book again`));
      }
    });
    const script = document.createElement("script");
    const home = document.querySelector('script[src*="widgets-static"]')?.src ?? document.baseURI;
    script.src = new URL(`${base}${name}.${k}.js`, home).href;
    script.onload = () => {
      script.remove();
      if (waiting.delete(key)) failed(new Error(`the file ${name} is damaged; build the book again`));
    };
    script.onerror = () => {
      script.remove();
      waiting.delete(key);
      failed(new Error(`the file ${name} could not be loaded; are you offline?`));
    };
    document.head.append(script);
  });
}
