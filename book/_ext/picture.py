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
ZOO, PICTURE = BOOK / "minqbook" / "zoo", BOOK / "minqbook" / "picture"
WORKER = BOOK / "minqbook" / "widgets" / "picture" / "worker.js"
KINDS = (".py", ".safetensors")
sys.path.insert(0, str(BOOK / "_tools"))

import parts  # noqa: E402

logger = logging.getLogger(__name__)
PART = "onnxruntime-web"
HOME = "live/picture/"  # in _static, where the scripts of the widgets are
WIDGET = "minqbook.widgets.own_picture.OwnPicture"
MAKERS = ("torch", "onnx", "onnxscript", "onnxruntime", "scikit-image", "scikit-learn", "pillow")


def digest(*places: Path) -> str:
    """One for each state of these files and folders, and of the packages that compute."""
    found = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in MAKERS).encode())
    for place in places:
        inside = sorted(p for p in place.rglob("*") if p.suffix in KINDS)
        for path in inside or [place]:
            found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def made(engine: Path) -> tuple[Path, dict[str, list[int]]]:
    """The folder of scripts, and for each part its scripts, its bytes and those of its gzip."""
    from minqbook.picture.pack import pack

    folder = CACHE / digest(ROOT / "minq", ZOO, PICTURE / "networks.py", PICTURE / "__main__.py")
    files, scripts, table = folder / "files", folder / "scripts", folder / "parts.json"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        files.mkdir(parents=True)
        make_files(files)
        (folder / "whole").touch()
    of = digest(PICTURE, WORKER, *(path for path in engine.rglob("*") if path.is_file()))
    known = json.loads(table.read_text("utf-8")) if table.is_file() else {}
    if known.get("of") != of:
        shutil.rmtree(scripts, ignore_errors=True)
        scripts.mkdir()
        contents = dict(samples_of()) | {p.name: p.read_bytes() for p in sorted(files.iterdir())}
        for path in (WORKER, *sorted(engine.rglob("*"))):
            if path.suffix in (".js", ".mjs", ".wasm"):
                contents[path.name] = path.read_bytes()
        packed = {name: pack(name, content, scripts) for name, content in contents.items()}
        known = {"of": of, "parts": packed}
        table.write_text(json.dumps(known), "utf-8")
    for old in set(CACHE.iterdir()) - {folder}:
        shutil.rmtree(old)
    return scripts, known["parts"]


def make_files(folder: Path) -> None:
    """The networks' files, each network in a process of its own."""
    from minqbook.picture.networks import NETWORKS

    logger.info("Making the networks that pages run ...")

    def one(name: str) -> None:
        command = [sys.executable, "-m", "minqbook.picture", str(folder), name]
        subprocess.run(command, cwd=BOOK, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, NETWORKS))


def samples_of() -> Iterator[tuple[str, bytes]]:
    """The pixels of the pictures that stand ready."""
    from minqbook.picture.samples import samples

    for kind in ("digit", "photo"):
        yield f"samples.{kind}", b"".join(sample.pixels.tobytes() for sample in samples(kind))


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
