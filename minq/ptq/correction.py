"""Bias correction on data, where it helps: equations 26 and 27 of the paper on a walk.

The mean of y_hat - y, a layer's output behind quantization and before it, is taken off the layer's
bias. Not always: the activation function cuts off most of some errors, so that what is left has
another mean; and a mean that belongs to few samples, or to few tokens, is noise for all others. So
the data are halved, and a channel is corrected if the mean of each half lowers the squared error
of the other one behind the activation function.

What attends to others does not weigh them alike. Decoders have a first token that all others look
at, with a giant in it, so that behind a norm little else is left and its own error is small. There
the others' mean does the damage, and attention carries it to every token, while each layer's error
on average falls. So no place of a sequence may get much worse; and linear layers of sequences that
have no bias, as in most decoders, are not given one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.ptq import bias as bias_math
from minq.ptq.before import set_corrected_bias
from minq.ptq.storage import Batches
from minq.ptq.walk import Walk, activation_of

AT_ONCE = 2**17
"""Numbers that are compared at once: few enough to stay in a processor's cache."""

_MUCH_WORSE = 2.0
"""What a place's squared error may become, as a multiple of what it was. Of SmolLM2's layers those
before the giant comes stay below this at every place, those behind it reach 60 at the first."""

_FEW_OUTPUTS = 2**22
"""Outputs of a batch that are enough to judge its places by."""


def correct_bias(gm: fx.GraphModule, node: fx.Node, walk: Walk) -> None:
    """b - (E[y_hat] - E[y]), eq. (26), (27), in the channels where that helps; ``gm`` is changed.

    Nothing happens unless more places get closer to what they were than get further away, nor where
    a place of a sequence gets much worse.
    """
    axis = -1 if graph.op(node) == "linear" else 1
    if (activation := activation_of(gm, node, 1)) is None and axis == -1:
        shift = shift_of_linear(gm, node, walk)
    else:
        walk.advance(node)
        rows = lambda v: v.movedim(axis, -1)[None]  # noqa: E731
        function = activation and (lambda v: activation(rows(v))[0].movedim(-1, axis))
        exact, quantized = walk.exact[node], walk.quantized[node]
        shift = helpful_shift(lambda: halves_of(walk, exact, quantized, axis), function, axis)
    if shift is None or (_of_sequence(node) and _spoils_a_place(node, walk, shift, activation)):
        return
    set_corrected_bias(gm, node, bias_math.correct_bias(graph.bias_of(gm, node), shift))
    column = shift.reshape([-1] + [1] * (len(graph.shape_of(node)) - 2) if axis == 1 else [-1])
    walk.renew(node, lambda y_hat: y_hat - column)


def may_have_bias(node: fx.Node) -> bool:
    """Whether a correction has a place: not in an embedding, nor in a decoder without biases."""
    has_none = _of_sequence(node) and graph.bias_node(node) is None
    return graph.op(node) != "embedding" and not has_none


def _of_sequence(node: fx.Node) -> bool:
    """Whether it is a linear layer that reads places in a row: (..., places, channels)."""
    return graph.op(node) == "linear" and len(graph.shape_of(node)) > 2


def _spoils_a_place(
    node: fx.Node, walk: Walk, shift: Tensor, activation: Callable[[Tensor], Tensor] | None
) -> bool:
    """Whether at some place of a sequence the squared error, over samples and channels, gets twice
    as large as it was."""
    f = activation or (lambda v: v)
    before: Any = 0.0
    after: Any = 0.0
    walk.advance(node)
    for y, y_hat in zip(walk.exact[node], walk.quantized[node], strict=True):
        few = max(1, _FEW_OUTPUTS // y[0].numel())  # of many samples, an even selection
        y, y_hat = (v[:: -(-len(v) // few)].flatten(0, -3) for v in (y, y_hat))
        if isinstance(before, Tensor) and len(before) != y.shape[1]:
            continue  # a batch of another length
        exact = f(y)
        before = before + (f(y_hat) - exact).square().sum((0, 2))
        after = after + (f(y_hat - shift) - exact).square().sum((0, 2))
    return bool((after > _MUCH_WORSE * before).any())


def shift_of_linear(gm: fx.GraphModule, node: fx.Node, walk: Walk) -> Tensor | None:
    """``helpful_shift`` of a linear layer from its inputs alone: its outputs may be very many.

    sum of (y_hat - y) = W_hat sum x_hat - W sum x, and the same of one row's product with a shift.
    """
    source, W_hat = graph.input_of(node), graph.rounded_weight_of(gm, node)
    W = walk.exact.parameter(graph.weight_node(node))
    halves = lambda: halves_of(walk, walk.exact[source], walk.quantized[source], -1)  # noqa: E731
    totals: list[list[Any]] = [[0.0, 0.0], [0.0, 0.0]]  # of x and x_hat in each half
    counts = [0, 0]
    for half, *pair in halves():
        totals[half] = [t + _total(v, -1) for t, v in zip(totals[half], pair, strict=True)]
        counts[half] += _places(pair[0], -1)
    if not all(counts):
        return None
    sums = [W_hat.double() @ x_hat - W.double() @ x for x, x_hat in totals]
    if (shift := _where_it_helps(sums, counts)) is None:
        return None
    v_hat, v = (w.double().T @ shift for w in (W_hat, W))
    here = (
        shift.square().sum() - 2 * (x_hat.double() @ v_hat - x.double() @ v)
        for _, x, x_hat in halves()
    )
    return _if_more_get_closer(here, shift.to(W))


def helpful_shift(
    halves: Callable[[], Iterator[tuple[int, Tensor, Tensor]]],
    activation: Callable[[Tensor], Tensor] | None = None,
    axis: int = -1,
) -> Tensor | None:
    """E[y_hat] - E[y] of the channels that it helps, 0 of the others.

    None if it brings no more places closer to what they were than it takes away.

    Without an activation function, what a correction by c does to a squared error follows from the
    sum S of n differences, n c^2 - 2 c S. With one the data are read once more.

    Args:
        halves: gives (half, y, y_hat) anew, with half 0 or 1.
        activation: the function behind the layer.
        axis: of the channels in y and y_hat.
    """
    sums: list[Any] = [0.0, 0.0]
    counts = [0, 0]
    for half, y, y_hat in halves():
        sums[half] = sums[half] + _total(y_hat - y, axis)
        counts[half] += _places(y, axis)
    change: list[Any] | None = None
    if activation is not None and all(counts):
        change = [torch.zeros_like(total) for total in sums]
        for half, y, y_hat in halves():
            shift = (sums[1 - half] / counts[1 - half]).to(y)
            here = bias_math.change_of_error(y, y_hat, shift, activation, axis)
            change[half] += _total(here, axis)
    if (shift := _where_it_helps(sums, counts, change)) is None:
        return None
    changes = (
        bias_math.change_of_error(y, y_hat, shift.to(y), activation, axis).sum(axis)
        for _, y, y_hat in halves()
    )
    return _if_more_get_closer(changes, shift.to(y))


def _total(v: Tensor, axis: int) -> Tensor:
    """The sum over all places, in double precision."""
    return v.double().sum([k for k in range(v.ndim) if k != axis % v.ndim])


def _places(v: Tensor, axis: int) -> int:
    return v.numel() // v.shape[axis]


def _where_it_helps(
    sums: list[Any], counts: list[int], change: list[Any] | None = None
) -> Tensor | None:
    """E[y_hat] - E[y] of the channels whose error each half's mean lowers on the other half.

    sums, change: of each half, over its places, y_hat - y and what the other half's mean does to
    squared errors; the latter by default as without an activation function.
    """
    if not all(counts):
        return None  # one place alone: nothing is held out to judge by
    if change is None:
        others = [sums[1] / counts[1], sums[0] / counts[0]]
        change = [counts[k] * others[k] ** 2 - 2 * others[k] * sums[k] for k in (0, 1)]
    helps = (change[0] < 0) & (change[1] < 0)
    if not helps.any():
        return None
    return torch.where(helps, (sums[0] + sums[1]) / sum(counts), 0)  # eq. (27)


def _if_more_get_closer(changes: Iterator[Tensor], shift: Tensor) -> Tensor | None:
    """The shift, unless it takes more places away from what they were than it brings closer."""
    closer = sum(int((c < 0).sum()) - int((c > 0).sum()) for c in changes)
    return shift if closer > 0 else None


def halves_of(
    walk: Walk, exact: Batches, quantized: Batches, axis: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(half, y, y_hat), part by part: even samples and odd ones; of one sample alone, places.

    axis: of the channels, 1 or -1; places come as rows (places, channels).
    """
    alone, start = sum(walk.lengths) == 1, 0
    for both in zip(exact, quantized, strict=True):
        pair = [v[None] if v.ndim == 1 else v for v in both]  # a layer of one vector: one place
        if alone:
            pair = [v.movedim(axis, -1).flatten(0, -2) for v in pair]
        for half in (0, 1):
            parts = [v[(start + half) % 2 :: 2] for v in pair]
            if len(parts[0]):
                size = max(1, AT_ONCE // parts[0][0].numel())
                for y, y_hat in zip(*(v.split(size) for v in parts), strict=True):
                    yield half, y, y_hat
        start += len(pair[0])
