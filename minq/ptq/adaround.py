"""AdaRound, adaptive rounding, by coordinate descent: equations 29 to 35 of the paper.

To the nearest grid point is the best rounding of each weight, but not of the layer: errors of
weights that are used together may cancel. AdaRound asks for every weight whether to go down or up,
h = 0 or 1, so that the layer's output changes least (``minq.ptq.rounding_task``), and relaxes h to
a number between 0 and 1 with a penalty that drives it to an end. The paper lets Adam do that
(``minq.ptq.soft_rounding``). ``adaround`` here moves one h after the other to where the objective
is smallest, which is a formula, and needs far fewer passes.

With G = x^T x / rows, e = h - (W / s - floor(W / s)) and r = G e, the squared error of one output
is e^T G e, and along one h it is a parabola with its minimum at h - r_j / G_jj. With the penalty
mu G_jj h (1 - h), which is f_reg of eq. (34) for beta = 2, the minimum in [0, 1] is at

    h_j <- clamp((h_j - r_j / G_jj - mu / 2) / (1 - mu); 0, 1)        ``best_h``

``sweep`` does so for all j in turn. ``BlockSweep`` takes the same steps at the speed of matrix
products; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minq._checks import check_count
from minq.grid import INT4, Grid
from minq.ptq.rounding_task import Activation, RoundingTask

BLOCK = 64
"""Columns of G worked on at a time, so that what one h changes stays small."""

_REFRESH = 3
"""Sweeps before the activation function is looked at again: it costs two passes over all rows."""


@torch.no_grad()
def adaround(
    weight: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor | int = 0,
    grid: Grid = INT4,
    *,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    shrinkage: float = 0.0,
    sweeps: int = 20,
    progress: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Round ``weight`` to the grid so that the layer's output, not the weight, changes least.

    ``sweeps`` times over all h, mu grows from 0, plain least squares, to 1, plain rounding. An
    activation function that works element by element, with slopes up to 1, only enters r:
    r = x^T (f_a(y_hat) - f_a(y)) / (rows s), taken anew every few sweeps. No random numbers.

    Few rows say little about which inputs go together: with fewer of them than weights, any output
    can be met on these rows, and is missed on others. ``shrinkage`` draws G towards its diagonal,
    where rounding to nearest is best, so that the objective is

        (1 - shrinkage) * mean (f_a(y_hat) - f_a(y))^2 + shrinkage * sum G_jj (w~_j - w_j)^2

    Args:
        weight: (outputs, ...), seen as (groups, outputs / groups, K).
        x: (groups, rows, K), the inputs in the quantized network, a convolution's unfolded. A
            single group may leave out its axis.
        y: (groups, rows, outputs / groups), the full-precision W x + b.
        scale, zero_point: one number, or one for each output.
        grid: the integers of the weight.
        bias: (outputs,).
        activation: f_a, which follows the layer.
        shrinkage: from 0 to 1; ``minq.ptq.heldout`` finds out how much is right.
        sweeps: how often each h is moved.
        progress: gets the sweep and the share of h that is not yet 0 or 1.

    Returns:
        Weights on the grid, in the shape and dtype of ``weight``: the grid point below or above
        each weight, or the end of the grid where it lies outside. No output is worse on all rows
        than with rounding to nearest.

    Raises:
        TypeError, ValueError: operands that are not finite floats, or do not fit each other;
            shrinkage outside of [0, 1].

    >>> w, x = torch.tensor([[0.4, 0.4]]), torch.ones(1, 2)  # used together, to be rounded apart
    >>> adaround(w, x, x @ w.T, torch.tensor(1.0)).sum()
    tensor(1.)
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be from 0 to 1, not {shrinkage}")
    task = RoundingTask(weight, x, y, scale, zero_point, grid, bias, activation)
    x, rows = task.x, task.x.shape[1]
    # By columns from here on: (groups, K, outputs).
    h, top = (t.transpose(1, 2).contiguous() for t in (task.fraction, task.free.to(x)))
    gram = x.transpose(1, 2) @ x / rows  # eq. (31): (groups, K, K)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    gram = gram.lerp(torch.diag_embed(diagonal), shrinkage) if shrinkage else gram
    step = BlockSweep(gram, top)
    for k in range(check_count(sweeps, "sweeps")):
        if k == 0 or (activation is not None and k % _REFRESH == 0):
            rounded = task.s * (task.base + h.transpose(1, 2))
            r = x.transpose(1, 2) @ (task.output(rounded) - task.target)
            r /= rows * task.s.transpose(1, 2)
            if shrinkage:
                moved = (task.base - task.u).transpose(1, 2) + h
                r.lerp_(diagonal[..., None] * moved, shrinkage)
        step(h, r, mu=min(k / (0.9 * (sweeps - 1) or 1), 1 - 1e-6))
        if progress is not None:
            progress(k, float(((h > 0) & (h < 1)).to(x).mean()))
    return task.better(task.s * (task.base + h.round().transpose(1, 2)))


def best_h(h: Tensor, r: Tensor, diagonal: Tensor, mu: float, top: Tensor) -> Tensor:
    """Where one h goes: clamp((h - r_j / G_jj - mu / 2) / (1 - mu); 0, top).

    An input that is always 0, with G_jj = 0, decides nothing.

    >>> one = torch.tensor(1.0)
    >>> best_h(torch.tensor(0.5), torch.tensor(-0.25), one, 0.0, one)
    tensor(0.7500)
    """
    pull = torch.where(diagonal > 0, r / diagonal, 0)
    return ((h - pull - mu / 2) / (1 - mu)).clamp(min=0).minimum(top)


def sweep(h: Tensor, r: Tensor, gram: Tensor, top: Tensor, mu: float) -> None:
    """Move every h in turn, and r with it: as the formulas have it, and slow.

    Args:
        h, r: (groups, K, outputs), changed in place.
        gram: G, (groups, K, K).
        top: (groups, K, outputs), the largest h of each weight: 1, or 0 where the grid has ended.
        mu: the penalty, from 0 to below 1.
    """
    for j in range(h.shape[1]):
        move = best_h(h[:, j], r[:, j], gram[:, j, j, None], mu, top[:, j]) - h[:, j]
        h[:, j] += move
        r += gram[:, :, j, None] * move[:, None]  # r = G e


class BlockSweep:
    """``sweep``, fast: columns in blocks, on memory and views that are made once.

    While a block is worked on, its moves only pull the later columns of the block; r hears of all
    of them in one product at the end. Making a view costs as much as a step of one column.
    """

    def __init__(self, gram: Tensor, top: Tensor) -> None:
        groups, width, outputs = top.shape
        diagonal = gram.diagonal(dim1=1, dim2=2)[..., None]
        self.gram, self.top = gram, top
        self.inverse = torch.where(diagonal > 0, 1 / diagonal, 0)
        size = min(BLOCK, width)
        room = (top.new_empty(groups, size, outputs) for _ in range(4))
        self.old, self.best, self.most, self.move = room
        self.pull = top.new_empty(groups, size, size)
        by_column = (t.split(1, 1) for t in (self.best, self.old, self.most, self.move))
        earlier = ((self.pull[:, j : j + 1, :j], self.move[:, :j]) for j in range(size))
        self.columns = list(zip(*by_column, earlier, strict=True))
        self.bottom = top.new_zeros(groups, 1, outputs)

    def __call__(self, h: Tensor, r: Tensor, mu: float) -> None:
        """Change h and r, (groups, K, outputs), as ``sweep`` does."""
        width, size = h.shape[1], self.old.shape[1]
        for first in range(0, width, size):
            block, n = slice(first, first + size), min(size, width - first)
            self.old[:, :n], self.most[:, :n] = h[:, block], self.top[:, block]
            scaled = self.inverse[:, block] / (1 - mu)
            torch.mul(self.gram[:, block, block], scaled, out=self.pull[:, :n, :n])
            # Where each h would go, were it the only one; those moved before it pull it away.
            self.best[:, :n] = (self.old[:, :n] - mu / 2) / (1 - mu) - r[:, block] * scaled
            for best_j, old_j, most_j, move_j, (pull_j, moved) in self.columns[:n]:
                best_j.baddbmm_(pull_j, moved, alpha=-1)  # r = G e, inside the block
                torch.clamp(best_j, self.bottom, most_j, out=best_j)
                torch.sub(best_j, old_j, out=move_j)
            h[:, block] = self.best[:, :n]
            r.baddbmm_(self.gram[:, :, block], self.move[:, :n])  # r = G e, everywhere
