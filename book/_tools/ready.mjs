// Makes the page's Python quick to start: node ready.mjs PYODIDE IN OUT
//
// PYODIDE is the folder of Pyodide's release. Every archive of IN goes to OUT with its modules compiled to bytecode, by
// the very Python that will read it, and OUT/snapshot.bin becomes the memory of a Python that has started and has
// imported what every first run needs. Called by ready.py, which keeps what was made.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const [pyodide, from, to] = process.argv.slice(2).map((path) => resolve(path));
const { loadPyodide } = createRequire(import.meta.url)(join(pyodide, "pyodide.js"));

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

// The caches of the archive are emptied, since the page has another one; freed memory is filled with zeros, since it
// travels too.
const WARM = `
import sys
for name in """ast argparse base64 bisect codeop collections.abc contextlib copy csv ctypes dataclasses datetime decimal
        difflib encodings.ascii encodings.cp437 encodings.idna encodings.latin_1 enum fractions glob hashlib
        importlib.util inspect itertools json linecache logging math numbers pathlib pickle platform secrets shutil
        statistics struct tempfile textwrap traceback unicodedata warnings zipfile""".split():
    __import__(name)
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

const library = join(to, "python_stdlib.zip"); // from bytecode it starts with less behind it: a smaller snapshot
writeFileSync(library, compiled(join(pyodide, "python_stdlib.zip")));
const started = await loadPyodide({ indexURL: pyodide, stdLibURL: library, _makeSnapshot: true });
started.runPython(WARM);
writeFileSync(join(to, "snapshot.bin"), started.makeMemorySnapshot());
