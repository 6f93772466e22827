"""Python in the pages: the files that it takes, packed into scripts that also load from a disk.

The bundles `python`, `numpy` and `book` are for the first run, `matplotlib`, `weights` and `editor`
for what needs them. Where parts.py finds nothing, the book is built without, and says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ASSETS = HERE.parent / "_assets"
sys.path.insert(0, str(HERE.parent / "_tools"))

import live_cells  # noqa: E402
import parts  # noqa: E402
from ready import MEMORY, ready  # noqa: E402

logger = logging.getLogger(__name__)
DATA = ROOT / "_build" / "live"
EXERCISE = {"solution", "check"}  # cells that the page shows in another way
# A lock file without packages: what lies beside Pyodide is unpacked by live-worker.js.
PYODIDE = ("pyodide.js", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip")
# What only compilers, type checkers and tests read; of Matplotlib fonts for PDF, icons, examples,
# and other backends.
UNUSED = re.compile(
    r"\.(pyi|h|pxd|pyx|a)$|/tests/.|matplotlib/testing/.|_qt\w*\.py"
    r"|mpl-data/(fonts/(afm|pdfcorefonts)|images|sample_data)/."
    r"|backends/(backend_(gtk|qt|wx|tk|webagg|nbagg|macosx|cairo|pgf|ps)|web_backend)"
)
# What CommonJS modules need to find each other.
REQUIRE = """const makers = {}, made = {};
function define(name, make) { makers[name] = make; }
function require(name) {
  if (!made[name]) {
    made[name] = { exports: {} };
    makers[name](require, made[name].exports, made[name]);
  }
  return made[name].exports;
}
"""
ARCHIVES = (".whl", "book.zip")
PURE = ("array_api_compat", "traitlets")  # packages that minq imports, from this environment


def archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip file, the same for the same files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as whole:
        for name, content in sorted(files):
            whole.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def without(content: bytes, unused: re.Pattern[str]) -> bytes:
    """A wheel without files that nothing in the book reads: less to load, and to unpack."""
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        names = [name for name in wheel.namelist() if not unused.search(name)]
        return archive((name, wheel.read(name)) for name in names)


def flat(content: bytes) -> bytes:
    """A zip file's files behind each other: the page unpacks gzip faster than Python a zip file.

    A line of JSON comes first, ``[[path, size], ...]``; live-worker.js reads it.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        files = [(name, whole.read(name)) for name in whole.namelist() if not name.endswith("/")]
    sizes = json.dumps([[name, len(data)] for name, data in files])
    return sizes.encode() + b"\n" + b"".join(data for _, data in files)


def library() -> bytes:
    """minq, the book's own package without networks, and what both import; as one archive."""
    found = [(f"minq/{p.relative_to(ROOT / 'minq')}", p) for p in (ROOT / "minq").rglob("*.py")]
    book = ROOT / "book" / "minqbook"
    found += [
        (f"minqbook/{p.relative_to(book)}", p)
        for p in book.rglob("*")
        if p.suffix in (".py", ".js", ".css", ".json")
    ]
    found.append(("anywidget.py", book / "live_widgets.py"))
    found += [(f"IPython/{name}.py", book / "live_display.py") for name in ("__init__", "display")]
    found += [(f"results/{p.name}", p) for p in (ROOT / "book" / "results").glob("*.json")]
    found += [(f"hardware/{p.name}", p) for p in (ROOT / "book" / "hardware").glob("*.v")]
    for name in PURE:
        folder = Path(next(iter(find_spec(name).submodule_search_locations)))
        found += [(f"{name}/{p.relative_to(folder)}", p) for p in folder.rglob("*.py")]
    return archive((name, path.read_bytes()) for name, path in found)


def weights() -> Path:
    """A file with EfficientNet-Lite0's folded weights, for chapters that compute with them."""
    from minqbook.zoo import pretrained

    key = hashlib.sha256(Path(pretrained.__file__).read_bytes()).hexdigest()[:12]
    path = DATA / key / "efficientnet_lite0.npz"
    if not path.exists():
        import numpy as np

        file = io.BytesIO()
        np.savez_compressed(file, **pretrained.efficientnet_lite0_weights())
        parts.keep(path, file.getvalue())
    return path


def module(name: str, source: str) -> str:
    return f"define({json.dumps(name)}, function (require, exports, module) {{\n{source}\n}});\n"


def editor(folder: Path) -> str:
    """CodeMirror's modules, each as a function, and our editor behind them, as one plain script."""
    modules = {path.parent.relative_to(folder).as_posix(): path for path in folder.rglob("*.cjs")}
    text = "".join(module(name, path.read_text("utf-8")) for name, path in sorted(modules.items()))
    ours = (ASSETS / "live-editor.js").read_text("utf-8")
    return f"(() => {{\n{REQUIRE}{text}{module('editor', ours)}require('editor');\n}})();\n"


def from_part(part: str, sources: parts.Sources) -> dict[str, bytes] | None:
    folder = parts.fetch(part, sources)
    return folder and {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def wheels(part: str, sources: parts.Sources) -> dict[str, bytes]:
    """The wheels of a part, without what no page needs."""
    found = from_part(part, sources) or {}
    return {name: without(wheel, UNUSED) for name, wheel in found.items()}


def bundles(sources: parts.Sources) -> dict[str, dict[str, bytes]]:
    """All that can be had: {bundle: its files}; nothing, if that does not suffice to run a cell."""
    pyodide, numpy = from_part("pyodide", sources), wheels("numpy", sources)
    if not (pyodide and numpy):
        return {}
    lock = json.loads(pyodide["pyodide-lock.json"])
    core = {name: pyodide[name] for name in PYODIDE}
    core["pyodide-lock.json"] = json.dumps({"info": lock["info"], "packages": {}}).encode()
    found = {"python": core, "numpy": numpy, "book": {"book.zip": library()}}
    if matplotlib := wheels("matplotlib", sources):
        found["matplotlib"] = matplotlib
    archives = {n: v for of in found.values() for n, v in of.items() if n.endswith(ARCHIVES)}
    quick = ready(archives, [*numpy, "book.zip"], parts.cache() / "pyodide", DATA)
    if quick:
        core.update((name, quick[name]) for name in MEMORY)
    else:
        logger.info("The cells of the book start slowly: node is needed to compile for them.")
    for bundle, of in found.items():
        packed = {name: (quick or of)[name] for name in of if name.endswith(ARCHIVES)}
        rest = {name: content for name, content in of.items() if name not in packed}
        found[bundle] = rest | {f"{Path(n).stem}.files": flat(zip_) for n, zip_ in packed.items()}
    for script in ("live-libraries.js", "live-worker.js"):
        found["book"][script] = (ASSETS / script).read_bytes()
    found["weights"] = {weights().name: weights().read_bytes()}
    if folder := parts.fetch("codemirror", sources):
        found["editor"] = {"editor.js": editor(folder).encode()}
    return found


def notices() -> str:
    """Whose work lies in `_static/live`, under which licence, and where its source is."""
    text = ["What runs in the pages of this book, beside minq (Apache-2.0):\n"]
    for part, facts in parts.TABLE.items():
        versions = [s.get("npm") or f"wheels of {s['cdn']}" for s in facts["sources"]]
        lines = (facts["what"], ", ".join(versions), f"Licence: {facts['licence']}", facts["home"])
        text.append("\n".join(lines) + "\n")
        licences = {p.read_text("utf-8") for p in (parts.cache() / part).rglob("LICENSE")}
        text += sorted(licences)
    text.append("The licences of the wheels lie in them, in *.dist-info. Of the packages\n")
    text.append(f"{', '.join(PURE)} (MIT and BSD-3-Clause) the page has the Python files.\n")
    return "\n".join(text)


def prepare(app):
    """Before any page: what they will load, and which cells are live."""
    app.live_cells = {}
    if app.builder.format != "html":
        return
    sources = parts.Sources()
    for name, files in bundles(sources).items():
        app.packs.add(name, files)
    if "python" not in app.packs.bundles:
        logger.info("The cells of the book are not live: %s", parts.why_not(sources))
        return
    parts.keep(app.packs.folder / "NOTICES.txt", notices().encode())
    notebooks = sorted((ROOT / "book").glob("*.ipynb"))
    app.live_cells = live_cells.live_cells(notebooks, library(), weights().parent)


def mark(app, doctree, docname):
    """Say of each code cell whether it is live: live-cells.js gives it its buttons."""
    if not app.live_cells:
        return
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        tags = set(cell.get("cell_metadata", {}).get("tags", []))
        if not tags & (EXERCISE | live_cells.SKIPPED):
            runs = cell["cell_index"] in app.live_cells.get(docname, [])
            cell["classes"].append("mq-live" if runs else "mq-torch")
            cell["ids"].append(f"cell-{cell['cell_index']}")


def page(app, pagename, templatename, context, doctree):
    """The scripts of a page that has code."""
    if doctree is not None and app.live_cells:
        app.add_js_file("live.js", defer="defer", priority=941)
        app.add_js_file("live-cells.js", defer="defer", priority=942)


def setup(app):
    app.connect("builder-inited", prepare)
    app.connect("doctree-resolved", mark)
    app.connect("html-page-context", page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
