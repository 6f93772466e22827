"""Ranges of activations, judged by what the next operators make of them.

The range with the smallest squared error, eq. (16), takes all values for equally important. To a
layer they are, on average: it is linear. To layer norm they are not: it divides each token by its
own size, so a token of small values needs a small step. Where a norm or softmax reads a tensor x, a
few ranges are compared by the error behind its readers f, on data:

    argmin over (low, high) of the mean over f of  ||f(q(x)) - f(x)||^2 / ||f(x)||^2

Operators that only move values, and sums with a constant, are passed on the way to the norm. For
all other readers f is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph, ranges
from minq.ptq.walk import Walk, is_constant
from minq.quantizer import Quantizer
from minq.simulate import is_quantizer

Reader = Callable[[Tensor], Tensor]

SHRUNK = (0.85, 0.7, 0.5)
"""Narrower ranges that are tried, as shares of the estimator's."""

GAIN = 0.1
"""The estimator's range stays unless another one makes the error smaller by this share."""

FEW = 25.0
"""dB that 8 bits should leave each token with behind a norm; a Gaussian tensor leaves it 40."""

_MOST, _BATCHES = 2**19, 4
"""Values that each reader is tried on, and from how many batches they come."""


@torch.no_grad()
def choose_range(
    quantizer: Quantizer, sample: Tensor, readers: Sequence[tuple[Reader, Tensor]]
) -> float:
    """Give the quantizer the range that its readers like best.

    quantizer: with the range of its estimator, which stays unless another is clearly better.
    sample: values of the tensor, for min-max. readers: each with data to try it on.

    Returns the SQNR in dB of the token, (samples, token, channels), that fares worst behind a
    reader, or of all of them together where the data have no tokens.

    >>> q, x = Quantizer(8).set_range(0, 16), torch.rand(100)
    >>> _ = choose_range(q.freeze(), x, [(lambda t: t.clamp(max=1), x)])
    >>> bool(q.high == x.max())
    True
    """
    low, high = quantizer.low.clone(), quantizer.high.clone()
    candidates = [(low, high), ranges.min_max(sample), *((low * a, high * a) for a in SHRUNK)]
    targets = [(f, x, f(x)) for f, x in readers]

    def error(low: Tensor, high: Tensor) -> float:
        quantizer.set_range(low, high)
        parts = []
        for f, x, y in targets:
            size = float(y.square().sum(dtype=torch.float64))
            if size > 0 and math.isfinite(size):
                parts.append(float((f(quantizer(x)) - y).square().sum(dtype=torch.float64)) / size)
        return sum(parts) / len(parts) if parts else 0.0

    if not targets:
        return math.inf
    errors = [error(*c) for c in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    if not errors[best] < (1 - GAIN) * errors[0]:
        best = 0
    worst = error(*candidates[best])
    for f, x, y in targets:
        if y.ndim == 3 and y is not x:
            noise, signal = (v.double().square().sum((0, 2)) for v in (f(quantizer(x)) - y, y))
            worst = max(worst, float(torch.where(signal > 0, noise / signal, 0).max()))
    return -10 * math.log10(worst) if worst > 0 else math.inf


def readers_of(gm: fx.GraphModule, node: fx.Node, walk: Walk) -> list[tuple[Reader, Tensor]]:
    """What reads a quantizer's result, each with a part of the data as it is without it.

    Empty where no norm does.
    """
    if not _meets_norm(node):
        return []
    values = walk.quantized[node.args[0]]
    picked = range(0, len(values), -(-len(values) // _BATCHES))
    return [
        (f, x[:: math.ceil(x.numel() * len(picked) / _MOST)])
        for k in picked
        for f, x in _behind(gm, node, values[k].detach(), walk, k)
        if x.ndim and x.numel()
    ]


def _behind(
    gm: fx.GraphModule, node: fx.Node, x: Any, walk: Walk, k: int, before: tuple[Reader, ...] = ()
) -> Iterator[tuple[Reader, Tensor]]:
    """The readers behind a node that gives ``before`` of x on batch k, and one f(x) = x for all
    that is left."""
    plain = False
    for user in node.users:
        kind, given = graph.op(user), [a for a in user.all_input_nodes if a is not node]
        moves = graph.traits(user).role == "move"
        if is_quantizer(user):
            yield from _behind(gm, user, x, walk, k, before)
        elif moves and not before and all(a in walk.quantized for a in given):
            known = {node: x} | {a: walk.quantized[a][k] for a in given}
            args, kwargs = fx.map_arg((user.args, user.kwargs), known.__getitem__)
            yield from _behind(gm, user, user.target(*args, **kwargs), walk, k)
        elif graph.traits(user).passes and not given:
            yield from _behind(gm, user, x, walk, k, (*before, _step(gm, node, user)))
        elif kind in ("add", "sub") and given and all(_spreads(a, user) for a in given):
            yield from _behind(gm, user, x, walk, k, (*before, _step(gm, node, user)))
        elif _is_norm(user) and all(map(is_constant, given)):
            yield partial(_one_after_another, (*before, _step(gm, node, user))), x
        else:
            plain = True
    if plain and not before and isinstance(x, Tensor):
        yield partial(_one_after_another, ()), x


def _meets_norm(node: fx.Node) -> bool:
    """Whether ``_behind`` would find a norm."""
    for user in node.users:
        kind, given = graph.op(user), [a for a in user.all_input_nodes if a is not node]
        passed = is_quantizer(user) or graph.traits(user).passes
        passed = passed or (kind in ("add", "sub") and all(_spreads(a, user) for a in given))
        if _is_norm(user) or (passed and _meets_norm(user)):
            return True
    return False


def _is_norm(node: fx.Node) -> bool:
    return bool(graph.traits(node).normalizes) and graph.op(node) != "log_softmax"


def _one_after_another(steps: tuple[Reader, ...], x: Tensor) -> Tensor:
    for f in steps:
        x = f(x)
    return x


def _spreads(a: fx.Node, user: fx.Node) -> bool:
    """Whether a is a constant and the same for all samples, as a positional embedding."""
    shape, whole = graph.shape_of(a), len(graph.shape_of(user))
    return is_constant(a) and (len(shape) < whole or shape[:1] == (1,))


def _step(gm: fx.GraphModule, node: fx.Node, user: fx.Node) -> Reader:
    """The operator ``user`` as a function of ``node`` alone; all else it reads is constant."""

    def parameter(a: fx.Node) -> Tensor:
        return graph.get(gm, (a.args[0] if a.op == "call_module" else a).target).detach()

    def f(x: Tensor) -> Tensor:
        known = {a: x if a is node else parameter(a) for a in user.all_input_nodes}
        args, kwargs = fx.map_arg((user.args, user.kwargs), known.__getitem__)
        return user.target(*args, **kwargs)

    return f
