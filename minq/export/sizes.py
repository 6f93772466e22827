"""What a model's own code asks of the sizes of its inputs: other sizes take another path."""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten_with_path
from torch.utils._sympy.printers import PythonPrinter

from minq import graph
from minq.graph import Network


class Caught(TorchFunctionMode):
    """The errors of operators while a model is exported: it goes on after them where it says
    ``except``, so what torch asked of sizes there is the model's own choice of a path.

    guards: what was asked. places: where nothing was, so that nobody knows what decides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guards: list[Any] = []
        self.places: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling():  # the branches of torch.cond
            return func(*args, **(kwargs or {}))
        mode = detect_fake_mode()
        asked = [] if mode is None or mode.shape_env is None else mode.shape_env.guards
        before = len(asked)
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            if asked[before:]:
                self.guards += asked[before:]
            elif where := _own_line():
                said = str(error).strip().split("\n")[0][:100]
                self.places.setdefault(where, f"{type(error).__name__}: {said}")
            raise

    def warn(self) -> None:
        for where, error in self.places.items():
            warnings.warn(
                f"the model goes on after an error ({where}: {error}); the network always takes "
                "the way behind it, and the model may take another one for other inputs, or when "
                "it is not captured. Let forward ask for what decides instead of trying",
                stacklevel=2,
            )


def _own_line() -> str:
    """The line of the model's own code that calls the operator."""
    frame: FrameType | None = sys._getframe(2)
    here = (str(Path(torch.__file__).parent), "<")
    while frame is not None and frame.f_code.co_filename.startswith(here):
        frame = frame.f_back
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"


def conditions(
    model: nn.Module, gm: Network, args: tuple, kwargs: dict, caught: Caught
) -> list[str]:
    """What the model's own code asked of sizes, "x.shape[0] > 4"; other sizes go another way.

    What torch asks inside of operators is no choice of a path: the operator stands in the graph,
    and decides again. Where it was ``caught`` failing, it does not.
    """
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    modes = [getattr(n.meta.get("val"), "fake_mode", None) for n in inputs]
    env = next((m.shape_env for m in modes if m is not None), None)
    if env is None:
        return []
    named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    paths = [keystr(path) for path, _ in tree_flatten_with_path(named)[0]]
    sizes = {
        f"L{path}.size()[{d}]": f"{node.name}.shape[{d}]"
        for path, node in zip(paths, inputs, strict=False)
        for d in range(getattr(node.meta.get("val"), "ndim", 0))
    }
    letters: dict[Any, str] = {}
    for symbol, sources in env.var_to_sources.items():
        names = [s.name() if callable(s.name) else s.name for s in sources]
        if known := [sizes[n] for n in names if n in sizes]:
            letters[symbol] = known[0]
    found = []
    for guard in env.guards:
        own = _by_the_model(guard) or any(guard is g for g in caught.guards)
        if own and guard.expr.free_symbols <= letters.keys():
            found.append(_words(guard.expr, letters))
    return list(dict.fromkeys(found + _counts(gm, letters)))


def _counts(gm: Network, letters: dict[Any, str]) -> list[str]:
    """How many parts a batch is split into: so many, and no others, are read afterwards."""
    found = []
    for node in gm.graph.nodes:
        if graph.op(node) not in ("split", "chunk", "unbind"):
            continue
        given, parts = graph.shape_of(node.args[0]), len(node.meta["val"])
        size = given[graph.argument(node, 1 if graph.op(node) == "unbind" else 2, "dim", 0)]
        if graph.is_fixed(size) or not size.node.expr.free_symbols <= letters.keys():
            continue
        text = _words(size.node.expr, letters)
        if graph.op(node) == "unbind":
            found.append(f"{text} == {parts}")
            continue
        per = node.args[1]
        per = per if graph.op(node) == "split" else f"math.ceil({text} / {per})"
        found.append(f"math.ceil({text} / {per}) == {parts}")
    return found


def _by_the_model(guard: Any) -> bool:
    where = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    path = str(getattr(where, "filename", where))
    torch_itself = Path(torch.__file__).parent
    return not path.startswith(str(torch_itself)) or path.startswith(str(torch_itself / "nn"))


def _words(expression: Any, letters: dict[Any, str]) -> str:
    """The condition as Python writes it."""
    import sympy

    named = expression.xreplace({k: sympy.Symbol(v, integer=True) for k, v in letters.items()})
    return PythonPrinter().doprint(named)
