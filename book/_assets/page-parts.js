// The large files of a page, loaded when the reader asks for them: Python, networks, what runs both.
//
//   minqParts.bundles      { name: [files] }, what belongs together
//   minqParts.has(files)   whether this book was built with them
//   minqParts.toLoad(files)      bytes on their way, without those that are here
//   minqParts.load(file, onPiece)   a promise of the file's Blob; onPiece(bytes) is told of each piece that came
//   minqParts.packed(file)          a promise of a Blob with the file as it came, gzip: a worker unpacks it itself
//
// A page on a disk may fetch nothing, but it may load scripts. So a file is a few scripts (book/_tools/pack.py), each
// of which calls `minqPart` with a piece of it: gzip in base64. Which there are stands in the page's head:
// { files: { name: [hash, scripts, bytes, bytes of the scripts] }, bundles }.
window.minqParts = (() => {
  "use strict";
  const home = new URL("live/", document.currentScript.src); // seen from here, so that it is right in a deck of slides
  const table = JSON.parse(document.querySelector('meta[name="minq-parts"]')?.content ?? "{}");
  const { files = {}, bundles = {} } = table;
  const waiting = new Map(); // "file.hash 0" -> what takes the piece
  const loadings = new Map(), asItCame = new Map(); // file -> promise of its Blob
  const damaged = (file) => new Error(`the file ${file} is damaged; load the page again, or build the book again`);

  window.minqPart = (stem, number, data) => {
    waiting.get(`${stem} ${number}`)?.(data);
    waiting.delete(`${stem} ${number}`);
  };
  function bytes(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  }

  function piece(file, stem, number, onPiece) {
    const key = `${stem} ${number}`, script = document.createElement("script");
    return new Promise((done, fail) => {
      waiting.set(key, (data) => {
        onPiece(data.length);
        try { done(bytes(data)); } catch { fail(damaged(file)); }
      });
      script.src = new URL(`${stem}.${number}.js`, home).href;
      script.onload = () => { if (waiting.delete(key)) fail(damaged(file)); };
      script.onerror = () => {
        waiting.delete(key);
        fail(new Error(`the file ${file} could not be loaded; are you offline?`));
      };
      document.head.append(script);
    }).finally(() => script.remove());
  }

  async function packed(file, onPiece) {
    if (!files[file]) throw new Error(`this book was built without the file ${file}`);
    const [hash, count] = files[file];
    const numbers = Array.from({ length: count }, (_, k) => k);
    return new Blob(await Promise.all(numbers.map((k) => piece(file, `${file}.${hash}`, k, onPiece))));
  }
  async function unpacked(file, blob) {
    const size = files[file][2];
    let whole;
    try {
      whole = await new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).blob();
    } catch {
      throw damaged(file);
    }
    if (whole.size !== size)
      throw new Error(`the file ${file} has ${whole.size} bytes instead of ${size}; build the book again`);
    return whole;
  }

  function once(loaded, file, begin) { // another try, after a failure, may have more luck
    if (!loaded.has(file)) {
      const coming = begin();
      loaded.set(file, coming);
      coming.catch(() => loaded.delete(file));
    }
    return loaded.get(file);
  }
  return {
    bundles,
    has: (names) => names.every((name) => name in files),
    toLoad: (names) => names.filter((name) => !loadings.has(name) && !asItCame.has(name))
      .reduce((sum, name) => sum + (files[name]?.[3] ?? 0), 0),
    packed: (file) => once(asItCame, file, () => packed(file, () => {})),
    load: (file, onPiece = () => {}) => once(loadings, file, async () => unpacked(file, await packed(file, onPiece))),
  };
})();
