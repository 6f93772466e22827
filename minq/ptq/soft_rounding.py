"""AdaRound as the paper solves it: equations 32 to 35.

Whether each weight goes down or up is relaxed to a number h between 0 and 1, a rectified sigmoid of
V, with a penalty that drives it to an end, and Adam moves V:

    W~ = s [clamp(floor(W / s) + h(V) + z; n, p) - z],    penalty * sum (1 - |2 h - 1|^beta)

``minq.ptq.adaround`` reaches the same goal without a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minq._checks import as_float, check_count, like
from minq.granularity import Granularity
from minq.grid import INT4, Grid, check_scale, operands
from minq.ptq.rounding_task import Activation, RoundingTask

ZETA, GAMMA = 1.1, -0.1  # h(V) reaches 0 and 1 at a finite V, where its gradient ends


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clamp(sigmoid(V) (zeta - gamma) + gamma; 0, 1): how far up each weight goes.

    Args:
        v: V, any shape.

    Returns:
        h, of the same shape.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)  # eq. (33): its h(V)


def initial_v(weight: Tensor, scale: Tensor, *, axis: int | None = None) -> Tensor:
    """The V that starts at the weights themselves: h(V) = W / s - floor(W / s).

    Args:
        weight: W, any shape.
        scale: s, one number, or one for each index of ``axis``.
        axis: of the channels.

    Returns:
        V, in the shape of ``weight``.

    >>> rectified_sigmoid(initial_v(torch.tensor([1.25, -0.25]), torch.tensor(0.5)))
    tensor([0.5000, 0.5000])
    """
    weight = as_float(weight, "weight")
    scale = check_scale(like(scale, weight, weight.dtype, "scale"))
    u = weight / Granularity(axis).align(scale, weight.shape)
    return _v_of(u - u.floor())


def _v_of(h: Tensor) -> Tensor:
    """The V with h(V) = h."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def soft_quantize(
    weight: Tensor,
    v: Tensor,
    scale: Tensor,
    zero_point: Tensor | int = 0,
    grid: Grid = INT4,
    *,
    axis: int | None = None,
) -> Tensor:
    """W~ = s [clamp(floor(W / s) + h(V) + z; n, p) - z], eq. (33); differentiable in V.

    Args:
        weight: W, any shape.
        v: V, in the shape of ``weight``.
        scale: s, one number, or one for each index of ``axis``.
        zero_point: z, of the shape of ``scale``.
        grid: the integers n to p.
        axis: of the channels.

    Returns:
        W~, in the shape of ``weight``.

    >>> soft_quantize(torch.tensor([0.6, 0.6]), torch.tensor([-9.0, 0.0]), torch.tensor(0.5))
    tensor([0.5000, 0.7500])
    """
    weight, s, z = operands(weight, scale, zero_point, grid, Granularity(axis), "weight")
    h = rectified_sigmoid(v)
    return grid.fake_quantize(weight, s, z, lambda u: torch.floor(u) + h)  # eq. (33)


def regularizer(v: Tensor, beta: float) -> Tensor:
    """f_reg = sum 1 - |2 h(V) - 1|^beta: 0 where every h is 0 or 1, eq. (34).

    Args:
        v: V, any shape.
        beta: the exponent.

    Returns:
        One number, a tensor of shape ().

    >>> regularizer(torch.tensor([-9.0, 0.0, 9.0]), beta=2.0)
    tensor(1.)
    """
    return (1 - (2 * rectified_sigmoid(v) - 1).abs() ** beta).sum()  # eq. (34)


def annealed_beta(
    step: int, steps: int, warm_start: float = 0.2, start: float = 20.0, end: float = 2.0
) -> float:
    """The exponent of the regularizer: half a cosine from ``start`` to ``end`` after warm-up.

    A large beta only touches weights that have nearly decided; a small one pushes all of them.

    Args:
        step: from 0 to ``steps`` - 1.
        steps: how many there are.
        warm_start: the share of steps before beta falls.
        start: beta until then.
        end: beta in the last step.

    Returns:
        beta.

    >>> [annealed_beta(step, 101) for step in (0, 20, 60, 100)]
    [20.0, 20.0, 11.0, 2.0]
    """
    first, last = warm_start * (steps - 1), steps - 1
    share = 1.0 if first >= last else min(max((step - first) / (last - first), 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


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
    """The same task as the paper solves it, eq. (32) to (35): Adam on V, with a falling beta.

    Args:
        weight: as in ``adaround``, as is all that is not named here.
        steps: of Adam.
        batch: rows in a step.
        lr: Adam's learning rate.
        penalty: the factor of the regularizer.
        seed: of the generator that draws the rows.
        progress: gets each step and its loss.

    Returns:
        Weights on the grid, in the shape of ``weight``.
    """
    task = RoundingTask(weight, x, y, scale, zero_point, grid, bias, activation)
    rows = task.x.shape[1]
    batch = min(check_count(batch, "batch"), rows)
    generator = torch.Generator().manual_seed(seed)
    v = _v_of(task.fraction).requires_grad_()
    adam = torch.optim.Adam([v], lr=lr)
    for step in range(check_count(steps, "steps")):
        some = torch.randint(rows, (batch,), generator=generator).to(v.device)
        with torch.enable_grad():
            w = task.s * (task.base + task.free * rectified_sigmoid(v))
            y_hat = torch.baddbmm(task.bias, task.x[:, some], w.transpose(1, 2))
            loss = (task.f(y_hat) - task.target[:, some]).square().sum() / batch  # eq. (35)
            if step >= 0.2 * steps:
                loss = loss + penalty * regularizer(v, annealed_beta(step, steps))  # eq. (32)
            adam.zero_grad()
            loss.backward()
        adam.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    up = task.free * (rectified_sigmoid(v.detach()) > 0.5)
    return task.better(task.s * (task.base + up))
