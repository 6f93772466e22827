// Makes the page's Python quick to start: node ready.mjs PYODIDE IN OUT FIRST
//
// PYODIDE is the folder of Pyodide's release. Every archive of IN goes to OUT with its modules compiled to bytecode, by
// the very Python that will read it. OUT/snapshot.bin becomes the memory of a Python that has started and has imported
// what a first run needs from the archives FIRST, parted by commas; OUT/libraries.json says which shared libraries
// it has opened (live-libraries.js). Called by ready.py, which keeps what was made.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const [pyodide, from, to] = process.argv.slice(2, 5).map((path) => resolve(path)), first = process.argv[5];
const require = createRequire(import.meta.url), { loadPyodide } = require(join(pyodide, "pyodide.js"));
require(join(pyodide, "pyodide.asm.js"));
require("../_assets/live-libraries.js");

// Of minq and the book the sources stay, for whoever wants to read them in a cell or a traceback; a module that imports
// torch cannot run here and is left alone.
const COMPILE = `
import importlib._bootstrap_external as external, importlib.util as util, re, zipfile

def compiled(source, target):
    ours = re.compile("minq(book)?/")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        def put(name, data):
            new.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        for name in old.namelist():
            data = old.read(name)
            is_code = name.endswith(".py") and not re.search(rb"^(import|from) torch", data, re.M)
            if ours.match(name) or not is_code:
                put(name, data)
            if is_code:
                made = external._code_to_hash_pyc(compile(data, name, "exec"), util.source_hash(data), False)
                put(util.cache_from_source(name) if ours.match(name) else name + "c", made)
`;

// What first cells import; the sum at the end brings what NumPy and minq load only when they are used.
const WARM = `
import sys
for name in """ast argparse base64 bisect codeop collections.abc contextlib copy csv ctypes dataclasses datetime decimal
        difflib encodings.ascii encodings.cp437 encodings.idna encodings.latin_1 enum fractions glob hashlib
        importlib.util inspect itertools json linecache logging math numbers pathlib pickle platform secrets shutil
        statistics struct tempfile textwrap traceback unicodedata warnings zipfile""".split():
    __import__(name)
from minqbook import live
live.wait_for_use()
for name in "minq.affine minq.floats minq.granularity minq.mac minq.ranges minqbook.widgets".split():
    __import__(name)
sys.modules["minq"].quantize([0.3], 0.1, bits=4)
`;

// The caches of the archive are emptied, since the page has another one; freed memory is filled with zeros, since it
// travels too.
const TIDY = `
import gc, zipimport
sys.path_importer_cache.clear()
zipimport._zip_directory_cache.clear()
gc.collect()
name = [bytearray(2**k) for k in range(19, 11, -1) for _ in range(23 - k)]
del name
`;

const compiler = await loadPyodide({ indexURL: pyodide });
compiler.runPython(COMPILE);
function compiled(path) {
  compiler.FS.writeFile("/in.zip", readFileSync(path));
  compiler.runPython('compiled("/in.zip", "/out.zip")');
  return compiler.FS.readFile("/out.zip");
}
for (const name of readdirSync(from)) writeFileSync(join(to, name), compiled(join(from, name)));

// A Python that has imported what cells import. From bytecode it starts with less behind it: a smaller snapshot.
const stdLibURL = join(to, "python_stdlib.zip");
writeFileSync(stdLibURL, compiled(join(pyodide, "python_stdlib.zip")));
async function warm(options) {
  const python = await loadPyodide({ indexURL: pyodide, stdLibURL, ...options });
  for (const name of first.split(",")) {
    python.FS.writeFile("/in.zip", readFileSync(join(to, name)));
    python.runPython(`import zipfile; zipfile.ZipFile("/in.zip").extractall("${minqLibraries.site}")`);
  }
  python.FS.unlink("/in.zip");
  python.runPython(WARM);
  return python;
}

// Once to see which shared libraries that takes, and once with these in their places.
const scout = await warm(), compile = (path) => WebAssembly.compile(scout.FS.readFile(`${minqLibraries.site}/${path}`));
minqLibraries.before(Object.keys(minqLibraries.opened(scout)).map((path) => [path, compile(path)]));
const started = await warm({ _makeSnapshot: true });
started.runPython(TIDY);
writeFileSync(join(to, "libraries.json"), JSON.stringify(minqLibraries.opened(started)));
writeFileSync(join(to, "snapshot.bin"), started.makeMemorySnapshot());
