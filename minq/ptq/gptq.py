"""GPTQ: weights rounded column by column, each error made good by the columns still to come.

The output of a layer changes by (W - W~) x, so what rounding costs on data is

    ||W x - W~ x||^2 = sum over rows of e^T H e,    e = w - w~,    H = x^T x

GPTQ (Frantar et al. 2022) rounds the first column to nearest, and moves all later ones to where the
cost is smallest again; then the second, and so on. With the upper triangular Cholesky factor U of
the inverse, H^-1 = U^T U, both are one line:

    w~_j = q(w_j),    w_k <- w_k - (w_j - w~_j) U_jk / U_jj    for all k > j
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from minq._checks import as_float, compute_dtype, like
from minq.estimators import SHARES, shrunk
from minq.granularity import Granularity
from minq.grid import INT4, Grid, operands

_BLOCK = 64
"""Columns that are finished before the later ones are updated: fewer passes over the rest."""


@torch.no_grad()
def gptq(
    weight: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int = 0,
    grid: Grid = INT4,
    *,
    group: int | None = None,
    damping: float = 0.01,
) -> Tensor:
    """Round ``weight`` to its grid so that W x changes little on the rows ``x``.

    It draws no random numbers.

    Args:
        weight: (outputs, ...), seen as (groups, outputs / groups, K).
        x: (groups, rows, K); a single group may leave out its axis.
        scale: one number, one for each output, or with ``group`` (outputs, ceil(K / group)), as in
            ``minq.affine``.
        zero_point: of the same shape.
        grid: the integers.
        group: so many weights of an output share a scale.
        damping: this share of H's mean diagonal is added to its diagonal, so that H can be
            inverted.

    Returns:
        Weights on the grid, in the shape and dtype of ``weight``.

    Raises:
        ValueError: shapes do not fit, or damping is not above 0.

    >>> w, x = torch.tensor([[0.4, 0.4]]), torch.ones(1, 2)  # used together, to be rounded apart
    >>> gptq(w, x, torch.tensor(1.0))
    tensor([[0., 1.]])
    """
    if not damping > 0:
        raise ValueError(f"damping must be above 0, not {damping}; H may have no inverse without")
    flat = weight.detach().flatten(1)
    x = as_float(like(x, flat, flat.dtype, "x"), "x")
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] != flat.shape[1] or len(flat) % len(x):
        raise ValueError(
            f"x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}; "
            f"expected (groups, rows, {flat.shape[1]})"
        )
    return round_columns(
        weight, inverse_factor(hessian([x]), damping), scale, zero_point, grid, group=group
    )


def hessian(batches: Iterable[Tensor]) -> Tensor:
    """H = x^T x over all rows, (groups, K, K) in double precision, from x (groups, rows, K) each.

    >>> hessian([torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 1.0]]])])
    tensor([[[1., 2.],
             [2., 5.]]], dtype=torch.float64)
    """
    total: Any = 0.0
    for x in batches:
        total = total + (x.transpose(1, 2) @ x).double()
    return total


def inverse_factor(H: Tensor, damping: float) -> Tensor:
    """The upper triangular U with H^-1 = U^T U, H with its diagonal raised a little.

    >>> inverse_factor(torch.tensor([[[4.0, 0.0], [0.0, 16.0]]]), damping=1e-12)[0].diagonal()
    tensor([0.5000, 0.2500])
    """
    H, mean = H.clone(), H.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    H.diagonal(dim1=1, dim2=2).add_(damping * torch.where(mean > 0, mean, 1.0))  # no input but 0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(inverse, upper=True)


@torch.no_grad()
def round_columns(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    grid: Grid,
    *,
    group: int | None = None,
) -> Tensor:
    """``gptq`` from the factor U of what several layers may read.

    Columns are rows in here, so that each lies in one piece of memory; an error is taken off a
    column when its turn comes, from all of its block at once.

    Args:
        weight, scale, zero_point, grid, group: as for ``gptq``.
        factor: from ``inverse_factor``.

    Returns:
        As ``gptq``.

    >>> w = torch.tensor([[0.4, 0.6]])
    >>> round_columns(w, torch.eye(2)[None], torch.tensor(1.0), 0, INT4)
    tensor([[0., 1.]])
    """
    flat = weight.detach().flatten(1)
    flat, s, z = operands(flat, scale, zero_point, grid, Granularity(0, group), "weight")
    groups, width = len(factor), flat.shape[1]
    one_of = group or width
    s, z = (_columns(t.expand(len(flat), -1)[:, ::one_of], groups) if t.ndim else t for t in (s, z))
    w, factor = _columns(flat, groups), factor.to(flat.dtype)
    for first in range(0, width, _BLOCK):
        part = slice(first, min(first + _BLOCK, width))
        of = [[t[:, j // one_of] if t.ndim else t for t in (s, z)] for j in range(width)[part]]
        errors = _round_block(w[:, part], factor[:, part, part], of, grid)
        w[:, part.stop :] -= factor[:, part, part.stop :].transpose(1, 2) @ errors
    return w.transpose(1, 2).reshape(weight.shape).contiguous().to(weight.dtype)


@torch.no_grad()
def round_in_ranges(
    weight: Tensor,
    factor: Tensor,
    grid: Grid,
    *,
    symmetric: bool,
    group: int | None = None,
    shares: Sequence[float] = SHARES,
) -> tuple[Tensor, Tensor, Tensor]:
    """``round_columns`` where each group's range is chosen when its turn comes.

    By then its cost is known, whatever becomes of the columns behind it, which will still make good
    for it: with the errors e_j = w_j - w~_j it is the sum of (e_j / U_jj)^2 over the group. So the
    group is rounded once in each of some ranges, and the cheapest stays.

    Args:
        weight, factor, grid, group: as for ``round_columns``.
        symmetric: whether the grid has no zero-point.
        shares: the ranges, as shares of that of the weights, which have moved by then.

    Returns:
        As ``gptq``, and low and high of each group, in the shape of its scale.

    >>> w, U = torch.tensor([[0.5, 0.5, 0.6]]), torch.eye(3)[None]
    >>> round_in_ranges(w, U, Grid(-2, 1), symmetric=True, shares=(1.0, 5 / 6))[0]
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    flat = weight.detach().flatten(1)
    w = _columns(flat.to(compute_dtype(flat)), len(factor))
    factor, width, ends = factor.to(w.dtype), w.shape[1], []
    for first in range(0, width, group or width):
        part = slice(first, min(first + (group or width), width))
        block = w[:, part]
        given = block.amin(1), block.amax(1)  # (groups, outputs)
        low, high = (
            torch.cat(v, 1) for v in zip(*(shrunk(*given, k, grid) for k in shares), strict=True)
        )
        scale, zero_point = grid.cover(low, high, symmetric=symmetric)
        each = block.repeat(1, 1, len(shares))
        of = [(scale, zero_point.to(scale.dtype))] * block.shape[1]
        errors = _round_block(each, factor[:, part, part], of, grid)
        outputs = block.shape[2]
        best = errors.square().sum(1).unflatten(1, (-1, outputs)).argmin(1)
        best = best * outputs + torch.arange(outputs, device=w.device)  # its place in ``each``
        w[:, part] = torch.take_along_dim(each, best[:, None], 2)
        errors = torch.take_along_dim(errors, best[:, None], 2)
        w[:, part.stop :] -= factor[:, part, part.stop :].transpose(1, 2) @ errors
        ends.append(torch.stack([t.gather(1, best).flatten() for t in (low, high)]))
    low, high = torch.stack(ends, -1) if group else ends[0]  # (2, outputs, groups) or (2, outputs)
    return w.transpose(1, 2).reshape(weight.shape).contiguous().to(weight.dtype), low, high


def _columns(t: Tensor, groups: int) -> Tensor:
    """(outputs, K), or 1 in place of K, as (groups, K, outputs / groups): a copy."""
    turned = t.reshape(groups, -1, t.shape[1]).transpose(1, 2)
    return turned.clone(memory_format=torch.contiguous_format)


def _round_block(w: Tensor, factor: Tensor, of: Sequence[Sequence[Tensor]], grid: Grid) -> Tensor:
    """Round the columns w (groups, n, outputs) in place, and give their errors over U_jj.

    factor: these columns' square of U. of: scale and zero-point of each column.
    """
    errors = torch.zeros_like(w)
    for j, parts in enumerate(of):
        w_j = w[:, j] - (factor[:, None, :j, j] @ errors[:, :j])[:, 0]
        rounded = grid.fake_quantize(w_j, *parts)
        errors[:, j] = (w_j - rounded) / factor[:, j, j, None]
        w[:, j] = rounded
    return errors
