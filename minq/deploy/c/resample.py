"""Linear functions of pictures that are one matrix for rows and one for columns."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minq.deploy import kernels


class Axis(NamedTuple):
    """A band of a matrix of whole numbers: ``taps`` factors a row, from column ``start`` on."""

    start: list[int]
    factors: list[list[int]]

    @property
    def taps(self) -> int:
        return len(self.factors[0])


def separable(
    module: kernels.Average, args: Any, kwargs: dict, size: tuple[int, int], out: tuple[int, int]
) -> tuple[Axis, Axis] | None:
    """The two matrices of a mean, a pooling or an interpolation of H x W pixels, or None.

    f factor = sum_yx R[oy, y] C[ox, x] x[y, x]: seen from what f makes of each single pixel.
    """
    h, w = size
    one = torch.eye(h * w).double().reshape(h * w, 1, h, w)
    with torch.no_grad():
        y = module.function(one, *args, **kwargs)
    if y.numel() != h * w * math.prod(out):
        return None
    k = torch.round(y.reshape(h, w, *out) * module.factor).long()
    rows, columns = _reduced(k.sum((1, 3))), _reduced(k.sum((0, 2)))
    product = torch.einsum("ya,xb->yxab", rows, columns)
    scale = int(k.sum()) // max(int(product.sum()), 1)
    if not torch.equal(k, scale * product):
        return None
    return _axis((scale * rows).T), _axis(columns.T)


def _reduced(x: Tensor) -> Tensor:
    divisor = math.gcd(*x.flatten().tolist())
    return x // max(divisor, 1)


def _axis(matrix: Tensor) -> Axis:
    """The band of a matrix in which its rows are not zero."""
    used = [r.nonzero().flatten().tolist() or [0] for r in matrix]
    taps = max(u[-1] - u[0] + 1 for u in used)
    start = [min(u[0], matrix.shape[1] - taps) for u in used]
    return Axis(start, [r[s : s + taps].tolist() for r, s in zip(matrix, start, strict=True)])
