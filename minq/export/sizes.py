"""What a model's own code asks of the sizes of its inputs: other sizes take another path."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import keystr, tree_flatten_with_path
from torch.utils._sympy.printers import PythonPrinter

from minq import graph
from minq.graph import Network


def conditions(model: nn.Module, gm: Network, args: tuple, kwargs: dict) -> list[str]:
    """What the model's own code asked of sizes, "x.shape[0] > 4"; other sizes go another way.

    What torch asks inside of operators is no choice of a path: the operator stands in the graph,
    and decides again.
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
        if _by_the_model(guard) and guard.expr.free_symbols <= letters.keys():
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
