"""Recurrent layers as their gates, so that their weights and every value between are quantized.

A layer reads all steps of its input at once, and its own last answer one step at a time:

    LSTM    i, f, g, o = W x_t + b + R h        c <- sigm(f) c + sigm(i) tanh(g)
                                                h <- sigm(o) tanh(c)
    GRU     r, z = sigm(W x_t + b + R h + b')   n = tanh(W_n x_t + b_n + r (R_n h + b'_n))
                                                h <- n + z (h - n)
    RNN     h <- tanh(W x_t + b + R h), or relu

The steps are written out one after the other: the weights W and R are one parameter each, and have
one quantizer; what is computed in a step has its own. So the number of steps must be fixed, and at
most ``STEPS``; a longer layer stays one operator, in float.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

import torch
from torch import fx

from minq import graph
from minq.graph import call, mark_constants, replace

aten = torch.ops.aten

STEPS = 128
"""Sequences up to this length are written out."""

SEQUENCES = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})

State = tuple[fx.Node | None, ...]
"""h, and c of an LSTM; None stands for zeros."""


def write_out(gm: fx.GraphModule) -> fx.GraphModule:
    """Every recurrent layer of fixed length as its gates; ``gm`` is changed and returned."""
    mark_constants(gm)
    for node in list(gm.graph.nodes):
        kind = graph.op(node)
        if kind in CELLS:
            _cell(node, kind.removesuffix("_cell"))
        elif kind in SEQUENCES and isinstance(node.args[3], bool):  # not of packed sequences
            _sequence(node, kind)
    return graph.tidy(gm)


def _sequence(node: fx.Node, kind: str) -> None:
    x, hx, parameters, biases, layers, _, _, both, batch_first = node.args
    along = 1 if batch_first else 0
    steps = graph.shape_of(x)[along]
    if not graph.is_fixed(steps) or int(steps) > STEPS:
        return
    starts = [hx] if isinstance(hx, fx.Node) else list(hx)
    directions = 2 if both else 1
    each = len(parameters) // (layers * directions)
    ends: list[State] = []
    for k in range(layers):
        outputs = []
        for d in range(directions):
            place = k * directions + d
            weights = _Weights(parameters[place * each : (place + 1) * each], biases)
            state = tuple(_start(node, s, place) for s in starts)
            order = range(int(steps))[:: -1 if d else 1]
            hs, state = _run(node, kind, x, along, order, state, weights)
            outputs.append(call(node, aten.stack.default, hs, along))
            ends.append(state)
        x = outputs[0] if len(outputs) == 1 else call(node, aten.cat.default, outputs, -1)
    results = [x, *(call(node, aten.stack.default, list(s), 0) for s in zip(*ends, strict=True))]
    _give(node, results)


class _Weights:
    """The parameters of one layer in one direction: of the input, of the state, of a projection."""

    def __init__(self, given: list[fx.Node], biases: bool) -> None:
        self.x, self.h, *rest = given
        self.bx, self.bh = rest[:2] if biases else (None, None)
        more = rest[2:] if biases else rest
        self.projection = more[0] if more else None


def _start(node: fx.Node, state: fx.Node, place: int) -> fx.Node | None:
    return None if _zero(state) else call(node, aten.select.int, state, 0, place)


def _zero(node: fx.Node) -> bool:
    return graph.traits(node).role == "make" and graph.fill_value(node) == 0


def _run(node, kind, x, along, order, state, w: _Weights) -> tuple[list[fx.Node], State]:
    """One layer in one direction: its outputs in the order of time, and its last state."""
    read = call(node, aten.linear.default, x, w.x, _bias(node, kind, w))
    hs = {}
    for t in order:
        state = _GATES[kind](node, call(node, aten.select.int, read, along, t), state, w)
        hs[t] = state[0]
    return [hs[t] for t in sorted(hs)], state


def _cell(node: fx.Node, kind: str) -> None:
    x, hx, *parameters = node.args
    parameters = [p for p in parameters if p is not None]
    weights = _Weights(parameters, len(parameters) > 2)
    starts = [hx] if isinstance(hx, fx.Node) else list(hx)
    state = tuple(None if _zero(s) else s for s in starts)
    read = call(node, aten.linear.default, x, weights.x, _bias(node, kind, weights))
    state = _GATES[kind](node, read, state, weights)
    if kind == "lstm":
        _give(node, list(state))
    else:
        replace(node, state[0])


def _give(node: fx.Node, results: list[fx.Node]) -> None:
    """Let the readers of each result read the new one."""
    for user in list(node.users):
        if user.target is operator.getitem:
            replace(user, results[user.args[1]])
    node.graph.erase_node(node)


# --- Gates ----------------------------------------------------------------------------------------


def _bias(node: fx.Node, kind: str, w: _Weights) -> fx.Node | None:
    """b, with what the state's part adds where nothing comes between (in a GRU it does)."""
    if w.bx is None or kind == "gru":
        return w.bx
    return call(node, aten.add.Tensor, w.bx, w.bh)


def _part(node: fx.Node, x: fx.Node, first: int, last: int, size: int) -> fx.Node:
    return call(node, aten.slice.Tensor, x, -1, first * size, last * size)


def _lstm(node: fx.Node, z: fx.Node, state: State, w: _Weights) -> State:
    h, c = state
    size = int(graph.shape_of(z)[-1]) // 4
    if h is not None:
        z = call(node, aten.add.Tensor, z, call(node, aten.linear.default, h, w.h))
    gates = call(node, aten.sigmoid.default, _part(node, z, 0, 2, size))
    new = call(node, aten.tanh.default, _part(node, z, 2, 3, size))
    out = call(node, aten.sigmoid.default, _part(node, z, 3, 4, size))
    new = call(node, aten.mul.Tensor, _part(node, gates, 0, 1, size), new)
    if c is not None:
        kept = call(node, aten.mul.Tensor, _part(node, gates, 1, 2, size), c)
        new = call(node, aten.add.Tensor, kept, new)
    h = call(node, aten.mul.Tensor, out, call(node, aten.tanh.default, new))
    if w.projection is not None:
        h = call(node, aten.linear.default, h, w.projection)
    return h, new


def _gru(node: fx.Node, x: fx.Node, state: State, w: _Weights) -> State:
    (h,) = state
    size = int(graph.shape_of(x)[-1]) // 3
    own = w.bh if h is None else call(node, aten.linear.default, h, w.h, w.bh)
    gates, new = _part(node, x, 0, 2, size), _part(node, x, 2, 3, size)
    if own is not None:
        gates = call(node, aten.add.Tensor, gates, _part(node, own, 0, 2, size))
    gates = call(node, aten.sigmoid.default, gates)
    reset, update = _part(node, gates, 0, 1, size), _part(node, gates, 1, 2, size)
    if own is not None:
        reset = call(node, aten.mul.Tensor, reset, _part(node, own, 2, 3, size))
        new = call(node, aten.add.Tensor, new, reset)
    new = call(node, aten.tanh.default, new)
    if h is None:
        return (call(node, aten.sub.Tensor, new, call(node, aten.mul.Tensor, update, new)),)
    apart = call(node, aten.mul.Tensor, update, call(node, aten.sub.Tensor, h, new))
    return (call(node, aten.add.Tensor, new, apart),)


def _rnn(function, node: fx.Node, z: fx.Node, state: State, w: _Weights) -> State:
    (h,) = state
    if h is not None:
        z = call(node, aten.add.Tensor, z, call(node, aten.linear.default, h, w.h))
    return (call(node, function, z),)


_GATES: dict[str, Callable[..., State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": partial(_rnn, aten.tanh.default),
    "rnn_relu": partial(_rnn, aten.relu.default),
}
