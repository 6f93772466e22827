"""The task of rounding a layer's weight so that its output changes least, eq. (31) and (35).

    argmin over h in {0, 1} of || f_a(W x + b) - f_a(W~ x_hat + b) ||^2          eq. (31), (35)
    W~ = s [clamp(floor(W / s) + h + z; n, p) - z]

x_hat is the input that the layer has in the quantized network, while W x + b comes from the
full-precision one. This file holds the task, its checks, and its error; ``minq.ptq.adaround`` and
``minq.ptq.soft_rounding`` solve it.

A weight is seen as (groups, outputs, K), outputs of one group and K inputs of each; the rows of
data are (groups, rows, K).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minq._checks import as_float, check_vector, compute_dtype, like, saturating_cast
from minq.granularity import Granularity
from minq.grid import INT4, Grid, operands

Activation = Callable[[Tensor], Tensor]


class RoundingTask:
    """The arguments of ``adaround``, checked and by groups; all but x (groups, outputs, K) or 1.

    x: (groups, rows, K). target: f_a(y), (groups, rows, outputs). bias: (groups, 1, outputs).
    s: (groups, outputs, 1).
    u: W / s. base: floor(u + z) on the grid, without z. fraction: u + z - floor(u + z), the h of
        the weight itself. free: whether h may be 1; elsewhere the grid has ended.
    nearest: the weight rounded to nearest.
    """

    def __init__(
        self,
        weight: Tensor,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        zero_point: Tensor | int,
        grid: Grid,
        bias: Tensor | None,
        activation: Activation | None,
    ) -> None:
        flat = weight.detach().flatten(1)
        flat, s, z = operands(flat, scale, zero_point, grid, Granularity(0), "weight")
        self.given = weight
        self.f = activation or (lambda y: y)
        w, self.x, y, self.bias = by_groups(flat, x, y, bias)
        self.target = self.f(y)
        self.s, z = (t.expand(len(flat), 1).reshape(*w.shape[:2], 1) for t in (s, z))
        self.u = u = w / self.s
        below = (u + z).floor()  # the level below each weight, on the grid or not
        self.free = (below >= grid.quant_min) & (below < grid.quant_max)
        self.base = grid.clamp(below) - z
        self.fraction = torch.where(self.free, u + z - below, 0)
        self.nearest = grid.fake_quantize(w, self.s, z)

    def output(self, weight: Tensor) -> Tensor:
        """f_a(W~ x + b), (groups, rows, outputs)."""
        return self.f(torch.baddbmm(self.bias, self.x, weight.transpose(1, 2)))

    def errors(self, weight: Tensor) -> Tensor:
        """The squared error of each output over all rows, eq. (35), (groups, outputs, 1)."""
        return (self.output(weight) - self.target).square().sum(1)[..., None]

    def better(self, weight: Tensor) -> Tensor:
        """For each output the better of ``weight`` and rounding to nearest, in the given shape."""
        weight = torch.where(self.errors(weight) < self.errors(self.nearest), weight, self.nearest)
        return weight.reshape(self.given.shape).to(self.given.dtype)


def by_groups(
    weight: Tensor, x: Tensor, y: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight, x, y and bias of a layer in one dtype, checked, by groups.

    Returns:
        weight (groups, outputs, K), x (groups, rows, K), y (groups, rows, outputs) and
        bias (groups, 1, outputs).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    weight = as_float(weight.detach(), "weight")
    weight = weight.to(compute_dtype(weight))
    x, y = (as_float(like(t.detach(), weight, weight.dtype, k), k) for t, k in ((x, "x"), (y, "y")))
    x, y = (t[None] if t.ndim == 2 else t for t in (x, y))
    outputs, groups = len(weight), len(x)
    width = weight[0].numel()
    fits = x.ndim == y.ndim == 3 and not outputs % groups
    if not fits or x.shape[2] != width or y.shape != (*x.shape[:2], outputs // groups):
        raise ValueError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)} do not fit weight {tuple(weight.shape)}; "
            f"expected x (groups, rows, {width}) and y (groups, rows, {outputs} / groups)"
        )
    if bias is None:
        bias = weight.new_zeros(outputs)
    bias = check_vector(bias.detach(), weight, outputs, "bias")
    return weight.reshape(groups, outputs // groups, width), x, y, bias.reshape(groups, 1, -1)


def reconstruction_error(
    weight: Tensor,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None = None,
    activation: Activation | None = None,
) -> float:
    """Mean of (f_a(y) - f_a(W x + b))^2 over rows and outputs.

    Args:
        weight: as in ``adaround``, as are all others.
        x: what the layer reads.
        y: what it should give.
        bias: b, by default 0.
        activation: f_a, by default none.

    Returns:
        The error.

    >>> reconstruction_error(torch.eye(2), torch.eye(2), torch.zeros(2, 2))
    0.5
    """
    weight, x, y, b = by_groups(weight, x, y, bias)
    f = activation or (lambda t: t)
    return float((f(torch.baddbmm(b, x, weight.transpose(1, 2))) - f(y)).square().mean())


def stochastic_rounding(
    weight: Tensor,
    scale: Tensor,
    zero_point: Tensor | int = 0,
    grid: Grid = INT4,
    *,
    axis: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Round up with the probability W / s - floor(W / s), else down: right on average.

    Args:
        weight: float, any shape.
        scale: as in ``minq.affine.quantize``, as are the next three.
        zero_point: of the same shape.
        grid: the integers.
        axis: of the channels, where they have scales of their own.
        seed: of the random numbers.

    Returns:
        Weights on the grid, in the shape and dtype of ``weight``.

    >>> stochastic_rounding(torch.full((4,), 0.6), torch.tensor(0.5), seed=1).mean() >= 0.5
    tensor(True)
    """
    generator = torch.Generator().manual_seed(seed)

    def up_or_down(u: Tensor) -> Tensor:
        return torch.floor(u + torch.rand(u.shape, generator=generator).to(u))

    w, s, z = operands(weight, scale, zero_point, grid, Granularity(axis), "weight")
    return saturating_cast(grid.fake_quantize(w, s, z, up_or_down), weight.dtype)
