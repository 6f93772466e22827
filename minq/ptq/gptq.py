"""GPTQ: weights rounded column by column, each error made good by the columns still to come.

The output of a layer changes by (W - W~) x, so what rounding costs on data is

    ||W x - W~ x||^2 = sum over rows of e^T H e,    e = w - w~,    H = x^T x

GPTQ (Frantar et al. 2022) rounds the first column to nearest, and moves all later ones to where the
cost is smallest again; then the second, and so on. With the upper triangular Cholesky factor U of
the inverse, H^-1 = U^T U, both are one line:

    w~_j = q(w_j),    w_k <- w_k - (w_j - w~_j) U_jk / U_jj    for all k > j
"""

from __future__ import annotations

import torch
from torch import Tensor

from minq._checks import as_float, like
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
    flat, s, z = operands(flat, scale, zero_point, grid, Granularity(0, group), "weight")
    x = as_float(like(x, flat, flat.dtype, "x"), "x")
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] != flat.shape[1] or len(flat) % len(x):
        raise ValueError(
            f"x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}; "
            f"expected (groups, rows, {flat.shape[1]})"
        )
    w, s, z = (  # each (groups, outputs, K)
        t.expand_as(flat).reshape(len(x), -1, flat.shape[1]) for t in (flat.clone(), s, z)
    )
    factor = _inverse_factor(x, damping)

    for first in range(0, w.shape[2], _BLOCK):
        last = min(first + _BLOCK, w.shape[2])
        errors = torch.zeros_like(w[:, :, first:last])
        for j in range(first, last):
            rounded = grid.fake_quantize(w[:, :, j], s[:, :, j], z[:, :, j])
            error = (w[:, :, j] - rounded) / factor[:, None, j, j]
            w[:, :, j] = rounded
            w[:, :, j + 1 : last] -= error[:, :, None] * factor[:, None, j, j + 1 : last]
            errors[:, :, j - first] = error
        w[:, :, last:] -= errors @ factor[:, first:last, last:]
    return w.reshape(weight.shape).to(weight.dtype)


def _inverse_factor(x: Tensor, damping: float) -> Tensor:
    """The upper triangular U with H^-1 = U^T U, for H = x^T x with its diagonal raised a little."""
    H = (x.transpose(1, 2) @ x).double()
    diagonal = H.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal += damping * torch.where(mean > 0, mean, 1.0)  # 1 where every input is 0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(inverse, upper=True).to(x.dtype)
