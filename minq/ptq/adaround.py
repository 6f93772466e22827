"""AdaRound, adaptive rounding: equations 32 to 35 of the paper.

To the nearest grid point is the best rounding of each weight, but not of the layer: errors of
weights that are used together may cancel. AdaRound asks for every weight whether to go down or up,

    argmin over h in {0, 1} of || f_a(W x + b) - f_a(W~ x_hat + b) ||^2          eq. (33), (35)

and relaxes h to a number between 0 and 1, with a penalty that drives it to an end (eq. 34):

    W~ = s [clamp(floor(W / s) + h + z; n, p) - z],    penalty * sum (1 - |2 h - 1|^beta)

x_hat is the input the layer has in the quantized network, while W x + b comes from the
full-precision one. Two ways to the same goal: ``adaround_gradient``, the paper's, writes h as a
rectified sigmoid of V and lets Adam move V; ``adaround`` moves one h after the other to where
the objective is smallest, which is a formula, and needs far fewer passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minq._checks import (
    as_float,
    check_count,
    check_vector,
    compute_dtype,
    like,
    saturating_cast,
)
from minq.granularity import Granularity
from minq.grid import INT4, Grid, check_scale, operands

Activation = Callable[[Tensor], Tensor]

_BLOCK = 64
"""Columns of G worked on at a time, so that what one h changes stays small."""

_REFRESH = 3
"""Sweeps before the activation function is looked at again: it costs two passes over all rows."""

ZETA, GAMMA = 1.1, -0.1  # h(V) reaches 0 and 1 at a finite V, where its gradient ends


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clamp(sigmoid(V) (zeta - gamma) + gamma; 0, 1): how far up each weight goes.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)  # eq. (34)


def initial_v(weight: Tensor, scale: Tensor, *, axis: int | None = None) -> Tensor:
    """The V that starts at the weights themselves: h(V) = W / s - floor(W / s).

    >>> rectified_sigmoid(initial_v(torch.tensor([1.25, -0.25]), torch.tensor(0.5)))
    tensor([0.5000, 0.5000])
    """
    weight = as_float(weight, "weight")
    scale = check_scale(like(scale, weight, weight.dtype, "scale"))
    u = weight / Granularity(axis).align(scale, weight.shape)
    return torch.logit((u - u.floor() - GAMMA) / (ZETA - GAMMA))


def soft_quantize(
    weight: Tensor,
    v: Tensor,
    scale: Tensor,
    zero_point: Tensor | int = 0,
    grid: Grid = INT4,
    *,
    axis: int | None = None,
) -> Tensor:
    """W~ = s [clamp(floor(W / s) + h(V) + z; n, p) - z], eq. (34); differentiable in V.

    >>> soft_quantize(torch.tensor([0.6, 0.6]), torch.tensor([-9.0, 0.0]), torch.tensor(0.5))
    tensor([0.5000, 0.7500])
    """
    weight, s, z = operands(weight, scale, zero_point, grid, Granularity(axis), "weight")
    h = rectified_sigmoid(v)
    return grid.fake_quantize(weight, s, z, lambda u: torch.floor(u) + h)  # eq. (34)


def regularizer(v: Tensor, beta: float) -> Tensor:
    """f_reg = sum 1 - |2 h(V) - 1|^beta: 0 where every h is 0 or 1, eq. (34).

    >>> regularizer(torch.tensor([-9.0, 0.0, 9.0]), beta=2.0)
    tensor(1.)
    """
    return (1 - (2 * rectified_sigmoid(v) - 1).abs() ** beta).sum()  # eq. (34)


def annealed_beta(
    step: int, steps: int, warm_start: float = 0.2, start: float = 20.0, end: float = 2.0
) -> float:
    """The exponent of the regularizer: half a cosine from ``start`` to ``end`` after warm-up.

    A large beta only touches weights that have nearly decided; a small one pushes all of them.

    >>> [annealed_beta(step, 101) for step in (0, 20, 60, 100)]
    [20.0, 20.0, 11.0, 2.0]
    """
    first, last = warm_start * (steps - 1), steps - 1
    share = 1.0 if first >= last else min(max((step - first) / (last - first), 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


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
    sweeps: int = 20,
    progress: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Round ``weight`` to the grid so that the layer's output, not the weight, changes least.

    With G = x^T x / rows, e = h - (W / s - floor(W / s)) and r = G e, the squared error of one
    output is e^T G e, and along one h it is a parabola with its minimum at h - r_j / G_jj. With
    the penalty mu G_jj h (1 - h), which is eq. (34) for beta = 2, the minimum in [0, 1] is at

        h_j <- clamp((h_j - r_j / G_jj - mu / 2) / (1 - mu); 0, 1)

    ``sweeps`` times over all j, mu grows from 0, plain least squares, to 1, plain rounding. An
    activation function that works element by element, with slopes up to 1, only enters r:
    r = x^T (f_a(y_hat) - f_a(y)) / (rows s), taken anew every few sweeps.

    weight: (outputs, ...), seen as (groups, outputs / groups, K). x: (groups, rows, K), the inputs
    in the quantized network, a convolution's unfolded; y: (groups, rows, outputs / groups), the
    full-precision W x + b. A single group may leave out its axis. bias: (outputs,). scale,
    zero_point: one number, or one for each output.

    Returns weights on the grid, in the shape and dtype of ``weight``: the grid point below or above
    each weight, or the end of the grid where it lies outside. No output is worse on all rows than
    with rounding to nearest. No random numbers. ``progress`` gets the sweep and the share of h that
    is not yet 0 or 1.

    >>> w, x = torch.tensor([[0.4, 0.4]]), torch.ones(1, 2)  # used together, to be rounded apart
    >>> adaround(w, x, x @ w.T, torch.tensor(1.0)).sum()
    tensor(1.)
    """
    task = _Task(weight, x, y, scale, zero_point, grid, bias, activation)
    x, s, base = task.x, task.s.transpose(1, 2), task.base.transpose(1, 2)  # (groups, K, outputs)
    h, top = (t.transpose(1, 2).contiguous() for t in (task.fraction, task.free.to(x)))
    rows, width = x.shape[1:]
    gram = x.transpose(1, 2) @ x / rows  # eq. (33)
    diagonal = gram.diagonal(dim1=1, dim2=2)[..., None]
    # An input that is always 0 decides nothing.
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0)

    # Room for one block, and views of it by column, made once: making them costs like a step.
    size = min(_BLOCK, width)
    old, best, most, move = (h.new_empty(len(h), size, h.shape[2]) for _ in range(4))
    pull = h.new_empty(len(h), size, size)
    columns = list(zip(*(t.split(1, 1) for t in (best, old, most, move)), strict=True))
    earlier = [(pull[:, j : j + 1, :j], move[:, :j]) for j in range(size)]
    bottom = torch.zeros_like(columns[0][0])

    def residual() -> Tensor:
        y_hat = torch.baddbmm(task.bias, x, s * (base + h))
        return x.transpose(1, 2) @ (task.f(y_hat) - task.target) / (rows * s)

    for sweep in range(check_count(sweeps, "sweeps")):
        if sweep == 0 or (activation is not None and sweep % _REFRESH == 0):
            r = residual()
        mu = min(sweep / (0.9 * (sweeps - 1) or 1), 1 - 1e-6)
        for first in range(0, width, _BLOCK):
            block = slice(first, first + _BLOCK)
            n = min(_BLOCK, width - first)
            old[:, :n], most[:, :n] = h[:, block], top[:, block]
            scaled = inverse[:, block] / (1 - mu)
            torch.mul(gram[:, block, block], scaled, out=pull[:, :n, :n])
            # Where each h would go, were it the only one; those moved before it pull it away.
            best[:, :n] = (old[:, :n] - mu / 2) / (1 - mu) - r[:, block] * scaled
            for (best_j, old_j, most_j, move_j), (pull_j, moved) in zip(
                columns[:n], earlier[:n], strict=True
            ):
                best_j.baddbmm_(pull_j, moved, alpha=-1)  # r = G e, inside the block
                torch.clamp(best_j, bottom, most_j, out=best_j)
                torch.sub(best_j, old_j, out=move_j)
            h[:, block] = best[:, :n]
            r.baddbmm_(gram[:, :, block], move[:, :n])  # r = G e, everywhere
        if progress is not None:
            progress(sweep, float(((h > 0) & (h < 1)).to(x).mean()))
    return task.better((s * (base + h.round())).transpose(1, 2))


@torch.no_grad()
def adaround_gradient(
    weight: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor | int = 0,
    grid: Grid = INT4,
    *,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    steps: int = 1000,
    batch: int = 256,
    lr: float = 0.01,
    penalty: float = 0.01,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Tensor:
    """The same task as the paper solves it, eq. (34), (35): Adam on V, with a falling beta.

    Each step sees ``batch`` rows, drawn by a generator of its own from ``seed``; ``progress`` gets
    the step and its loss. Everything else is as in ``adaround``.
    """
    task = _Task(weight, x, y, scale, zero_point, grid, bias, activation)
    rows = task.x.shape[1]
    batch = min(check_count(batch, "batch"), rows)
    generator = torch.Generator().manual_seed(seed)
    v = torch.logit((task.fraction - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    adam = torch.optim.Adam([v], lr=lr)
    for step in range(check_count(steps, "steps")):
        some = torch.randint(rows, (batch,), generator=generator).to(v.device)
        with torch.enable_grad():
            w = task.s * (task.base + task.free * rectified_sigmoid(v))
            y_hat = torch.baddbmm(task.bias, task.x[:, some], w.transpose(1, 2))
            loss = (task.f(y_hat) - task.target[:, some]).square().sum() / batch  # eq. (35)
            if step >= 0.2 * steps:
                loss = loss + penalty * regularizer(v, annealed_beta(step, steps))
            adam.zero_grad()
            loss.backward()
        adam.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    up = task.free * (rectified_sigmoid(v.detach()) > 0.5)
    return task.better(task.s * (task.base + up))


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

    >>> stochastic_rounding(torch.full((4,), 0.6), torch.tensor(0.5), seed=1).mean() >= 0.5
    tensor(True)
    """
    generator = torch.Generator().manual_seed(seed)

    def up_or_down(u: Tensor) -> Tensor:
        return torch.floor(u + torch.rand(u.shape, generator=generator).to(u))

    given = weight.dtype
    weight, s, z = operands(weight, scale, zero_point, grid, Granularity(axis), "weight")
    return saturating_cast(grid.fake_quantize(weight, s, z, up_or_down), given)


def reconstruction_error(
    weight: Tensor,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None = None,
    activation: Activation | None = None,
) -> float:
    """Mean of (f_a(y) - f_a(W x + b))^2 over rows and outputs; shapes as in ``adaround``.

    >>> reconstruction_error(torch.eye(2), torch.eye(2), torch.zeros(2, 2))
    0.5
    """
    weight, x, y, b = _rows(weight, x, y, bias)
    f = activation or (lambda t: t)
    return float((f(torch.baddbmm(b, x, weight.transpose(1, 2))) - f(y)).square().mean())


class _Task:
    """The checked arguments of ``adaround``, by groups, and what rounding to nearest achieves."""

    def __init__(self, weight, x, y, scale, zero_point, grid, bias, activation) -> None:
        flat = weight.detach().flatten(1)
        flat, s, z = operands(flat, scale, zero_point, grid, Granularity(0), "weight")
        self.given = weight
        self.f = activation or (lambda y: y)
        weight, self.x, y, self.bias = _rows(flat, x, y, bias)
        self.target = self.f(y)
        # One scale and zero-point for each output; all below is (groups, outputs, K).
        self.s, z = (t.expand(len(flat), 1).reshape(*weight.shape[:2], 1) for t in (s, z))
        u = weight / self.s
        down = u.floor()
        n, p = grid
        self.free = (down + z >= n) & (down + z < p)  # elsewhere the grid has ended
        self.base = grid.quantize(weight, self.s, z, torch.floor) - z
        self.fraction = torch.where(self.free, u - down, 0)
        self.nearest = grid.fake_quantize(weight, self.s, z)

    def errors(self, weight: Tensor) -> Tensor:
        y_hat = torch.baddbmm(self.bias, self.x, weight.transpose(1, 2))
        return (self.f(y_hat) - self.target).square().sum(1)[..., None]

    def better(self, weight: Tensor) -> Tensor:
        """For each output the better of ``weight`` and rounding to nearest, in the given shape."""
        weight = torch.where(self.errors(weight) < self.errors(self.nearest), weight, self.nearest)
        return weight.reshape(self.given.shape).to(self.given.dtype)


def _rows(weight, x, y, bias) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight, x, y and bias as (groups, outputs, K), (groups, rows, K), (groups, rows, outputs)
    and (groups, 1, outputs), in one dtype."""
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
    bias = (
        weight.new_zeros(outputs)
        if bias is None
        else check_vector(bias.detach(), weight, outputs, "bias")
    )
    weight = weight.reshape(groups, outputs // groups, width)
    return weight, x, y, bias.reshape(groups, 1, -1)
