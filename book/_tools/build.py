"""Build the book, if a source is newer than the last good build, and say where to open it.

python book/_tools/build.py            build
python book/_tools/build.py --serve    build, then serve it at http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
CACHE = ROOT / "_build" / ".jupyter_cache"
IPYTHON = ROOT / "_build" / ".ipython"
STAMP = ROOT / "_build" / ".built"
SKIPPED = ("__pycache__", ".ipynb_checkpoints")


def changed(*folders: str) -> float:
    """When a file in one of the folders, or what all depend on, last changed."""
    found = [ROOT / "_config.yml", ROOT / "requirements.txt"]
    for folder in folders:
        found += [p for p in (ROOT / folder).rglob("*") if not set(SKIPPED) & set(p.parts)]
    return max(p.stat().st_mtime for p in found if p.is_file())  # a folder changes with its caches


def is_stale() -> bool:
    """Whether a source changed since the last build without warnings."""
    return not STAMP.exists() or changed("book", "minq") > STAMP.stat().st_mtime


def open_cache():
    """The notebooks as they ran with the code and the results as they are now."""
    from jupyter_cache import get_cache  # seconds, which a book that stands need not wait for

    made = CACHE / "__version__.txt"  # written once, with the cache
    if made.exists() and made.stat().st_mtime < changed("minq", "book/minqbook", "book/results"):
        shutil.rmtree(CACHE)
    return get_cache(CACHE)


def quiet_kernels() -> None:
    """Kernels say only what went wrong, not how they are connected."""
    profile = IPYTHON / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    settings = 'get_config().IPKernelApp.log_level = "ERROR"\n'
    (profile / "ipython_kernel_config.py").write_text(settings, "utf-8")
    os.environ["IPYTHONDIR"] = str(IPYTHON)


def missing_package(nb) -> str | None:
    """The package that a notebook's metadata name under "needs", where it is not installed."""
    name = nb.metadata.get("needs")
    return name if name and importlib.util.find_spec(name) is None else None


def keep_stored(cache, path: Path) -> None:
    """A notebook that needs what is not here is shown as it is stored, and its page says so."""
    import nbformat
    from jupyter_cache.base import CacheBundleIn

    nb = nbformat.read(path, as_version=4)
    if (missing := missing_package(nb)) is None:
        return
    told = f"This page was built without the package {missing}: its outputs are stored ones.\n"
    code = [c for c in nb.cells if c.cell_type == "code"]
    shown = next(c for c in code if "remove-cell" not in c.metadata.get("tags", []))
    shown.outputs.insert(0, nbformat.v4.new_output("stream", name="stdout", text=told))
    print(f"{path.name}: {told}", end="")
    cache.cache_notebook_bundle(CacheBundleIn(nb, str(path)), check_validity=False, overwrite=True)


def run_notebooks() -> None:
    """Run the notebooks side by side, into the cache that the pages are made from.

    What ran already, here or in a test, is kept. A notebook that fails runs once more while its
    page is made, and is reported there.
    """
    from jupyter_cache.executors import load_executor

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # with two each they take three times as long
    quiet_kernels()
    cache = open_cache()
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        cache.add_nb_to_project(path)
        keep_stored(cache, path)
    if waiting := cache.list_unexecuted():
        print(f"Running {len(waiting)} notebooks, which takes some minutes ...", flush=True)
    timeout = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["execute"]["timeout"]
    load_executor("local-parallel", cache).run_and_cache(timeout=timeout)


def build() -> None:
    """Run every notebook and write every page; a warning is an error, and little else is said."""
    STAMP.unlink(missing_ok=True)
    run_notebooks()
    print("Writing the pages ...", flush=True)
    command = "from jupyter_book.cli.main import main; main()"  # there is no `python -m`
    arguments = ["build", str(ROOT / "book"), "-W", "-n", "--keep-going", "--all", "-q"]
    subprocess.run([sys.executable, "-c", command, *arguments], cwd=ROOT, check=True)
    STAMP.touch()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="serve the pages over http")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if is_stale():
        try:
            build()
        except subprocess.CalledProcessError:
            print("\nThe book did not build cleanly: the warnings above say why.", file=sys.stderr)
            return 1
    print(f"\nThe book is built. Open it:  {(HTML / 'index.html').as_uri()}")
    if options.serve:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=HTML)
        with http.server.ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
            print(f"or:  http://127.0.0.1:{server.server_port}/   (Ctrl-C ends)", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
