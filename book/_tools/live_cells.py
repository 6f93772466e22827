"""Which cells of a notebook can run in the page: those that run without torch, as it turns out.

python book/_tools/live_cells.py NOTEBOOK...   prints {notebook: [indices of live cells]}

Each notebook runs here as it would in the page, by minqbook.live, in a Python that can import only
what the page has. A cell that fails, for want of torch or of what a failed cell should have made,
is not live. What was found is kept in _build/live until the notebook's code or the library changes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "_build" / "live"
THERE = {  # packages that the page has beside Python's own: parts.yml, and PURE of _ext/live.py
    *("numpy", "matplotlib", "mpl_toolkits", "contourpy", "cycler", "kiwisolver", "packaging"),
    "fontTools",  # this matplotlib, if it is newer than the page's, imports it for every picture
    *("PIL", "pyparsing", "dateutil", "six", "array_api_compat", "traitlets", "minq", "minqbook"),
}
SKIPPED = {"remove-cell", "drawing"}  # a drawing has nothing to try in the page
SECONDS = 900  # for all notebooks


class OnlyThese(MetaPathFinder):
    """Nothing but these packages, and Python's own modules, can be imported."""

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in THERE or top in sys.stdlib_module_names
        if not known and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def code_cells(notebook: Path) -> dict[int, str]:
    """{index of the cell: its code}, without what only prepares Colab."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return {
        index: "".join(cell["source"])
        for index, cell in enumerate(cells)
        if cell["cell_type"] == "code" and not SKIPPED & set(cell["metadata"].get("tags", []))
    }


def try_cells(notebooks: Iterable[Path], data: Path) -> dict[str, list[int]]:
    """Run every cell of each notebook, in order; which ended without an error."""
    sys.meta_path.insert(0, OnlyThese())
    from minqbook import live, live_display, live_widgets

    sys.modules["anywidget"] = live_widgets  # as in the page
    sys.modules["IPython"] = sys.modules["IPython.display"] = live_display
    live.begin(lambda kind, text: None, str(data))

    def runs(source: str, space: str) -> bool:
        """Whether a cell runs; of one that does not, the page will have no name either."""
        names = live.names_of(space)
        before = dict(names)
        if json.loads(live.run(source, space))["status"] == "ok":
            return True
        names.clear()
        names.update(before)
        return False

    return {
        path.stem: [i for i, source in code_cells(path).items() if runs(source, path.stem)]
        for path in notebooks
    }


def key(notebook: Path, library: bytes) -> str:
    code = json.dumps(code_cells(notebook)).encode()
    return hashlib.sha256(code + library + Path(__file__).read_bytes()).hexdigest()[:16]


def live_cells(notebooks: Iterable[Path], library: bytes, data: Path) -> dict[str, list[int]]:
    """{notebook: indices of its cells that run in the page}.

    Args:
        notebooks: Their files.
        library: What the page's Python imports, as bytes: a change of it makes all run again.
        data: The folder of the files that the page brings.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    files = {path: KEPT / f"{path.stem}-{key(path, library)}.json" for path in notebooks}
    new = [str(path.resolve()) for path, file in files.items() if not file.exists()]
    if new:
        command = [sys.executable, __file__, f"--data={data}", *new]
        options = {"capture_output": True, "text": True, "timeout": SECONDS, "cwd": ROOT}
        done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **options)
        for name, cells in json.loads(done.stdout).items():
            for old in KEPT.glob(f"{name}-*.json"):
                old.unlink()
            file = next(file for path, file in files.items() if path.stem == name)
            file.write_text(json.dumps(cells), "utf-8")
    return {path.stem: json.loads(file.read_text("utf-8")) for path, file in files.items()}


if __name__ == "__main__":
    print(json.dumps(try_cells(map(Path, sys.argv[2:]), Path(sys.argv[1].partition("=")[2]))))
