"""How to round, judged on samples that the rounding has not seen.

AdaRound fits a layer to the rows it is given. Where they are few, as a classifier's (one row for
each picture, a thousand inputs), it fits them to the last digit, and with them the noise of all
layers before, and is worse on every other picture. So what is free is chosen by the error on other
samples: half of the rows round the weight, the other half judges

- ``shrinkage`` of the objective, see ``minq.ptq.adaround``: how far the rows are to be believed;
- the scale, for outputs of few weights: the range with the least error of the weights, eq. (16),
  is not that of the output, least of all where there is little to choose from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minq.grid import Grid
from minq.ptq.adaround import adaround

SHRINKAGES = (0.0, 0.1, 0.3, 0.6, 0.9)

FACTORS = (1.0, 0.7, 0.8, 0.9, 1.1, 1.25)
"""Scales that are tried, as shares of the one given."""

FEW_WEIGHTS = 32
"""Weights of an output up to which its scale is worth the search; a depthwise kernel has 9 or 25.
"""

MANY_ROWS = 32
"""Rows for each weight of an output from which on there is no noise left to be fitted."""

_SWEEPS = 10  # enough to tell candidates apart


@torch.no_grad()
def held_out_error(
    weight: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    grid: Grid,
    **settings: Any,
) -> Tensor:
    """The squared error of each output on the second half of the rows, rounded on the first.

    Args:
        weight, x, y, scale, zero_point, grid: as for ``adaround``, whose ``settings`` follow. Rows
            of different samples, at least two, should lie in different halves.

    Returns:
        The sum over the rows of the second half, shape (outputs,).

    >>> from minq.grid import INT4
    >>> w, x = torch.tensor([[0.4, 0.4]]), torch.ones(4, 2)
    >>> held_out_error(w, x, x @ w.T, torch.tensor(1.0), 0, INT4)  # 1.0 in place of 0.8, twice
    tensor([0.0800])
    """
    x, y = (t[None] if t.ndim == 2 else t for t in (x, y))
    (x, x_new), (y, y_new) = (t.tensor_split(2, dim=1) for t in (x, y))
    rounded = adaround(weight, x, y, scale, zero_point, grid, sweeps=_SWEEPS, **settings)
    f = settings.get("activation") or (lambda t: t)
    if (bias := settings.get("bias")) is None:
        bias = weight.new_zeros(len(weight))
    w = rounded.reshape(len(x), len(weight) // len(x), -1).to(x)
    y_hat = torch.baddbmm(bias.to(x).reshape(len(x), 1, -1), x_new, w.transpose(1, 2))
    return (f(y_hat) - f(y_new)).square().sum(1).flatten()


@torch.no_grad()
def choose(
    weight: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    grid: Grid,
    **settings: Any,
) -> tuple[Tensor, float]:
    """A factor for the scale, and the shrinkage: of all that are tried, the best on other samples.

    Args:
        weight, x, y, scale, zero_point, grid, **settings: as for ``held_out_error``.

    Returns:
        The factor, in the shape of ``scale``, so one for each output where each has a scale, else
        chosen by all together; and what ``adaround`` takes as its ``shrinkage``. With up to
        ``FEW_WEIGHTS`` weights an output, only the first is looked for, else only the second, and
        nothing with ``MANY_ROWS`` for each weight.

    >>> from minq.grid import INT4
    >>> w, x = torch.tensor([[0.4, 0.4]]), torch.eye(2).repeat(2, 1)
    >>> choose(w, x, x @ w.T, torch.tensor(0.5), 0, INT4)
    (tensor(0.8000), 0.0)
    """
    rows, width = x.shape[-2:]

    def error(factor: float, shrinkage: float) -> Tensor:
        return held_out_error(
            weight, x, y, scale * factor, zero_point, grid, shrinkage=shrinkage, **settings
        )

    one = torch.ones_like(scale)
    if rows < 2:
        return one, 0.0
    if width <= FEW_WEIGHTS:
        errors = torch.stack([error(factor, 0.0) for factor in FACTORS])
        errors = errors if scale.ndim else errors.sum(1)
        return one.new_tensor(FACTORS)[errors.argmin(0)].reshape(scale.shape), 0.0
    if rows >= MANY_ROWS * width:
        return one, 0.0
    return one, min(SHRINKAGES, key=lambda share: float(error(1.0, share).sum()))
