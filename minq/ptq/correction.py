"""Bias correction on data, where it helps: equations 26 and 27 of the paper on a walk.

The mean of y_hat - y, a layer's output behind quantization and before it, is taken off the layer's
bias. Not always: the activation function cuts off most of some errors, so that what is left has
another mean; and a mean that belongs to few samples, or to few tokens, is noise for all others. So
the data are halved, and a channel is corrected if the mean of each half lowers the squared error
of the other one behind the activation function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from minq import graph
from minq.ptq import bias as bias_math
from minq.ptq.before import set_corrected_bias
from minq.ptq.walk import Walk, activation_of


def correct_bias(gm: fx.GraphModule, node: fx.Node, walk: Walk) -> None:
    """b - (E[y_hat] - E[y]), eq. (26), (27), in the channels where that helps; ``gm`` is changed.

    Nothing happens unless more places get closer to what they were than get further away, nor to an
    embedding, which has no bias.
    """
    if graph.op(node) == "embedding":
        return
    axis = -1 if graph.op(node) == "linear" else 1
    walk.advance(node)
    halves = lambda: _halves(walk, node, axis)  # noqa: E731
    activation = activation_of(gm, node, 1)
    function = activation and (lambda rows: activation(rows[None])[0])
    if (shift := helpful_shift(halves, function)) is None:
        return
    set_corrected_bias(gm, node, bias_math.correct_bias(graph.bias_of(gm, node), shift))
    column = shift.reshape([-1] + [1] * (len(graph.shape_of(node)) - 2) if axis == 1 else [-1])
    walk.renew(node, lambda y_hat: y_hat - column)


def helpful_shift(
    halves: Callable[[], Iterator[tuple[int, Tensor, Tensor]]],
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | None:
    """E[y_hat] - E[y] of the channels that it helps, 0 of the others.

    None if it brings no more places closer to what they were than it takes away.

    Without an activation function, what a correction by c does to a squared error follows from the
    sum S of n differences, n c^2 - 2 c S. With one the data are read once more.

    Args:
        halves: gives (half, y, y_hat) anew, with half 0 or 1 and rows (places, channels).
        activation: the function behind the layer.
    """
    sums: list[Any] = [0.0, 0.0]
    counts = [0, 0]
    for half, y, y_hat in halves():
        sums[half] = sums[half] + (y_hat - y).double().sum(0)
        counts[half] += len(y)
    if not all(counts):
        return None  # one place alone: nothing is held out to judge by
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    others = means[::-1]
    if activation is None:
        change = [counts[k] * others[k] ** 2 - 2 * others[k] * sums[k] for k in (0, 1)]
    else:
        change = [torch.zeros_like(mean) for mean in means]
        for half, y, y_hat in halves():
            shift = others[half].to(y)
            change[half] += bias_math.change_of_error(y, y_hat, shift, activation).double().sum(0)
    helps = (change[0] < 0) & (change[1] < 0)
    if not helps.any():
        return None
    shift = torch.where(helps, (sums[0] + sums[1]) / sum(counts), 0)  # eq. (27)
    closer = 0
    for _, y, y_hat in halves():
        here = bias_math.change_of_error(y, y_hat, shift.to(y), activation).sum(1)
        closer += int((here < 0).sum()) - int((here > 0).sum())
    return shift.to(y) if closer > 0 else None


def _halves(walk: Walk, node: fx.Node, axis: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(half, y, y_hat) with rows (places, channels): even samples and odd ones; of one, places."""
    alone, start = sum(walk.lengths) == 1, 0
    for pair in map(list, zip(walk.exact[node], walk.quantized[node], strict=True)):
        if alone:
            pair = [v.movedim(axis, -1).flatten(0, -2) for v in pair]
        for half in (0, 1):
            parts = [v[(start + half) % 2 :: 2] for v in pair]
            if len(parts[0]):
                y, y_hat = parts if alone else (v.movedim(axis, -1).flatten(0, -2) for v in parts)
                yield half, y, y_hat
        start += len(pair[0])
