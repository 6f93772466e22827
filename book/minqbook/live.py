"""What the page's Python does with a cell: run it, and say what came of it.

``book/_assets/live-worker.js`` calls ``begin`` once and ``run`` for each cell. Nothing here needs a
browser, so the tests run it too.
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import linecache
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from importlib.util import LazyLoader
from pathlib import Path
from typing import Any

MOST = 1_000_000  # characters that one cell may print
NO_TORCH = (
    "PyTorch does not run in a web page. Open this notebook in Colab or Binder (the rocket at the"
    " top), or on your own machine."
)

WIDGET = "application/vnd.minq.widget+json"  # of live_widgets.py
# array_api_compat asks for every module of NumPy, which most cells do not use.
SELDOM = {
    f"numpy.{name}"
    for name in "char ctypeslib f2py ma matlib polynomial random rec strings testing typing".split()
}
DATA: Path | None = None  # the folder of what the page brings: live-worker.js writes to /data
_emit: Callable[[str, str], None] = lambda kind, text: None  # noqa: E731
_spaces: dict[str, dict[str, Any]] = {}
_printed = 0


def given(name: str) -> Path | None:
    """A file that the page brings, since its Python cannot compute it; elsewhere None."""
    path = DATA / name if DATA else None
    return path if path and path.exists() else None


class OnFirstUse(MetaPathFinder):
    """The modules of SELDOM run when something of them is asked for, not when they are imported."""

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name in SELDOM else None
        if spec and spec.loader:
            spec.loader = LazyLoader(spec.loader)
        return spec


def wait_for_use() -> None:
    """From now on modules of SELDOM wait until they are used."""
    if not any(isinstance(finder, OnFirstUse) for finder in sys.meta_path):
        sys.meta_path.insert(0, OnFirstUse())


def look_again() -> None:
    """New files are there. ``importlib.invalidate_caches`` would import 25 modules to say so."""
    sys.path_importer_cache.clear()


def begin(emit: Callable[[str, str], None], data: str | None = None) -> None:
    """Get ready; from now on what cells show goes to ``emit(kind, text)``.

    kind: ``"stdout"``, ``"stderr"``; ``"figure"``, a PNG picture in base64; ``"text"``, a value as
    it prints; ``"html"``, one that gives a table; ``"widget"``, the values of a widget, as JSON.
    data: the folder that ``given`` looks in.
    """
    global _emit, DATA
    _emit, DATA = emit, Path(data) if data else None
    os.chdir(Path(__file__).parents[1])  # where a notebook of the book runs, beside its results
    os.environ["MPLBACKEND"] = "module://minqbook.live_figures"
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # "this may take a moment"
    builtins.input = _no_input
    wait_for_use()
    look_again()
    if "random" in sys.modules:  # a Python from a snapshot would draw the same on every page
        sys.modules["random"].seed()


def emit(kind: str, text: str) -> None:
    """Show something below the cell that runs."""
    global _printed
    if kind in ("stdout", "stderr"):
        room = MOST - _printed
        _printed += len(text)
        if room <= 0:
            return
        if len(text) > room:
            text = f"{text[:room]}\n... and more: only the first {MOST:,} characters are shown\n"
    _emit(kind, text)


def names_of(space: str) -> dict[str, Any]:
    """What the cells of a space have named so far."""
    return _spaces.setdefault(space, {"__name__": "__main__", "__builtins__": builtins})


def run(source: str, space: str = "page", name: str = "", fresh: bool = False) -> str:
    """Run a cell's code. The value of a last expression is shown, as in a notebook.

    Args:
        source: Python code.
        space: Cells of one space share their names.
        name: What the cell is called in tracebacks.
        fresh: Forget the names of the space first.

    Returns:
        JSON with ``status``, ``"ok"`` or ``"error"``; after an error ``text``, its type and
        message, ``line``, the line of this cell that led to it or None, and ``traceback``.
    """
    global _printed
    _printed = 0
    if fresh:
        _spaces.pop(space, None)
    names = names_of(space)
    file = f"<{name or 'this cell'}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # for tracebacks
    try:
        with redirect_stdout(_Stream("stdout")), redirect_stderr(_Stream("stderr")):
            value = _execute(source, file, names)
            if value is not None:
                names["_"] = value
                show(value)
            _show_figures()
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: they end a cell only
        _forget_figures()
        return json.dumps({"status": "error", **_explain(error, file)})
    return json.dumps({"status": "ok", "text": "", "line": None, "traceback": ""})


def _execute(source: str, file: str, names: dict[str, Any]) -> Any:
    """Run the statements; the answer is the value of a last expression that no ``;`` follows."""
    tree = ast.parse(source, file)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        exec(compile(tree, file, "exec"), names)
        return None
    tree.body.pop()
    exec(compile(tree, file, "exec"), names)
    return eval(compile(ast.Expression(last.value), file, "eval"), names)


def show(value: Any) -> None:
    """A value as a notebook prints it."""
    if hasattr(value, "_repr_mimebundle_"):
        data = value._repr_mimebundle_()
        data = data[0] if isinstance(data, tuple) else data
        emit("text", data["text/plain"])
        if state := data.get(WIDGET):
            emit("widget", state)
    elif hasattr(value, "_repr_html_"):
        emit("html", value._repr_html_())
    else:
        emit("text", repr(value))


def _show_figures() -> None:
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.show()


def _forget_figures() -> None:
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.close("all")


def _explain(error: BaseException, file: str) -> dict[str, Any]:
    """The error as a learner needs it: the line, the message, the rest to unfold."""
    text = "".join(traceback.format_exception_only(error)).strip()
    line = None
    if isinstance(error, SyntaxError) and error.filename == file:
        line, text = error.lineno, f"{type(error).__name__}: {error.msg}"
    steps = error.__traceback__
    while steps and steps.tb_frame.f_code.co_filename != file:
        steps = steps.tb_next  # our own steps before the cell's
    for step in traceback.extract_tb(steps):
        line = step.lineno if step.filename == file else line
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "torch":
        text += f"\n{NO_TORCH}"
    if isinstance(error, MemoryError):
        text += "\nThis page's Python has no more memory: Stop it, and try smaller arrays."
    whole = "".join(traceback.format_exception(type(error), error, steps)).strip()
    return {"text": text, "line": line, "traceback": whole}


def _no_input(prompt: object = "", /) -> str:
    raise RuntimeError("input() cannot ask in the page: give the value in the code")


class _Stream(io.TextIOBase):
    """What a cell prints."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        emit(self.kind, text)
        return len(text)
