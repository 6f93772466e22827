"""The networks that pages run on the reader's own picture: made, packed, put beside the pages.

Only where parts.py finds onnxruntime-web; without it the pages show stored answers. What was made
is kept in `_build/networks` until a source of it changes.
"""

from __future__ import annotations

import hashlib
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


def networks() -> dict[str, bytes]:
    """The files of the networks, made once."""
    folder = CACHE / digest(ROOT / "minq", ZOO, PICTURE / "networks.py", PICTURE / "__main__.py")
    files = folder / "files"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        files.mkdir(parents=True)
        make_files(files)
        (folder / "whole").touch()
    for old in set(CACHE.iterdir()) - {folder}:
        shutil.rmtree(old)
    return {path.name: path.read_bytes() for path in sorted(files.iterdir())}


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
    if app.builder.format != "html":
        return
    engine = parts.fetch(PART)
    if engine is None:
        logger.info(f"no {PART}: the reader's own picture shows stored answers only")
        return
    scripts = [path for path in engine.rglob("*") if path.suffix in (".js", ".mjs", ".wasm")]
    contents = {path.name: path.read_bytes() for path in (WORKER, *sorted(scripts))}
    app.packs.add("picture", contents | dict(samples_of()) | networks())


def setup(app):
    app.connect("builder-inited", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
