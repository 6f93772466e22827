"""The networks that pages run on the reader's own picture: made, packed, put beside the pages.

Only where parts.py finds onnxruntime-web; without it the pages show stored answers. What was made
is kept in `_build/networks` until a source of it changes.
"""

from __future__ import annotations

import hashlib
import html
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CACHE = ROOT / "_build" / "networks"
WIDGETS = BOOK / "minqbook" / "widgets"
sys.path.insert(0, str(BOOK / "_tools"))

import parts  # noqa: E402

logger = logging.getLogger(__name__)
PART = "onnxruntime-web"
HOME = "live/picture/"  # in _static, where the scripts of the widgets are
WIDGET = "minqbook.widgets.own_picture.OwnPicture"
MAKERS = ("torch", "onnx", "onnxscript", "onnxruntime", "scikit-image", "scikit-learn", "pillow")


def sources() -> Iterator[Path]:
    """The files that the networks' files are made of."""
    for folder, kinds in (
        (ROOT / "minq", (".py",)),
        (BOOK / "minqbook" / "zoo", (".py", ".safetensors")),
        (BOOK / "minqbook" / "picture", (".py",)),
    ):
        yield from sorted(p for p in folder.rglob("*") if p.suffix in kinds)
    yield WIDGETS / "picture" / "worker.js"


def digest() -> str:
    """One for each state of the sources."""
    found = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in MAKERS).encode())
    for path in sources():
        found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def made(engine: Path) -> tuple[Path, dict[str, list[int]]]:
    """The folder of scripts, and for each part its scripts, its bytes and those of its gzip."""
    folder = CACHE / digest()
    table = folder / "parts.json"
    if not table.is_file():
        files, scripts = folder / "files", folder / "scripts"
        shutil.rmtree(folder, ignore_errors=True)
        files.mkdir(parents=True)
        scripts.mkdir()
        make_files(files)
        for path in engine.rglob("*.*js*"):
            shutil.copy(path, files / path.name)
        for path in engine.rglob("*.wasm"):
            shutil.copy(path, files / path.name)
        shutil.copy(WIDGETS / "picture" / "worker.js", files / "worker.js")
        from minqbook.picture.pack import pack

        packed = {p.name: pack(p.name, p.read_bytes(), scripts) for p in sorted(files.iterdir())}
        table.write_text(json.dumps(packed), "utf-8")
        for old in set(CACHE.iterdir()) - {folder}:
            shutil.rmtree(old)
    return folder / "scripts", json.loads(table.read_text("utf-8"))


def make_files(folder: Path) -> None:
    """The networks' files and the samples' pixels, each network in a process of its own."""
    from minqbook.picture.networks import NETWORKS
    from minqbook.picture.samples import samples

    def one(name: str) -> None:
        command = [sys.executable, "-m", "minqbook.picture", str(folder), name]
        subprocess.run(command, cwd=BOOK, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, NETWORKS))
    for kind in ("digit", "photo"):
        pixels = b"".join(sample.pixels.tobytes() for sample in samples(kind))
        (folder / f"samples.{kind}").write_bytes(pixels)


def prepare(app) -> None:
    app.minq_picture = None
    if app.builder.format != "html":
        return
    engine = parts.fetch(PART)
    if engine is None:
        logger.info(f"no {PART}: the reader's own picture shows stored answers only")
        return
    app.minq_picture = made(engine)


def name_parts(app, pagename, templatename, context, doctree) -> None:
    """In the head of a page with the widget: which parts there are."""
    files = app.env.nb_metadata.get(pagename, {}).get("js_files", {})
    _, state = files.get("ipywidgets_state", (None, {"body": ""}))
    if app.minq_picture and WIDGET in state["body"]:
        content = json.dumps({"base": HOME, "parts": app.minq_picture[1]})
        tag = f'<meta name="minq-parts" content="{html.escape(content)}">'
        context["metatags"] = context.get("metatags", "") + tag


def copy(app, exception) -> None:
    if exception is None and getattr(app, "minq_picture", None):
        target = Path(app.outdir) / "_static" / HOME
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(app.minq_picture[0], target)


def setup(app):
    app.connect("builder-inited", prepare)
    app.connect("html-page-context", name_parts)
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
