"""Training through the quantizer: equations 36 to 39 of the paper.

Rounding is flat, so its true derivative is 0 almost everywhere and nothing would learn. The
straight-through estimator takes the derivative of round(y) to be 1, eq. (36). With it, and with
u = x / s, the quantizer x_hat = s [clamp(round(u) + z; n, p) - z] of eq. (7) has

    ==================  ===================  ==========  ==========
    derivative by       inside the grid      below it    above it
    ==================  ===================  ==========  ==========
    x          (37)     1                    0           0
    s          (38)     round(u) - u         n - z       p - z
    z          (39)     0                    -s          -s
    ==================  ===================  ==========  ==========

"inside" means n <= round(u) + z <= p. Autograd finds the same from ``fake_quantize`` with
``round_straight_through``; the functions here say it in closed form, and ``fake_quantize_trained``
computes it in a few passes over memory. torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minq.grid import Grid

# --- The derivatives, element by element ----------------------------------------------------------


def derivative_by_input(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """d x_hat / d x: 1 where x is rounded to a level of the grid, 0 where it is clipped, eq. (37).

    Args:
        x: float, any shape.
        scale: s, of a shape that broadcasts against x.
        zero_point: z, of the shape of ``scale``.
        grid: the integers.

    Returns:
        0.0 and 1.0, in the shape and dtype of x.

    >>> x, grid = torch.tensor([-2.0, 0.3, 9.0]), Grid(0, 3)
    >>> derivative_by_input(x, torch.tensor(0.5), torch.tensor(1.0), grid)
    tensor([0., 1., 0.])
    """
    u = torch.round(x / scale) + zero_point
    return (u == grid.clamp(u)).to(x.dtype)  # eq. (37)


def derivative_by_scale(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """d x_hat / d s = round(u) - u inside, n - z below, p - z above, u = x / s: eq. (38).

    Args:
        x: as in ``derivative_by_input``, as are all others.
        scale: s.
        zero_point: z.
        grid: the integers n to p.

    Returns:
        One number for each element of x.

    >>> x = torch.tensor([-2.0, 0.2, 9.0])
    >>> derivative_by_scale(x, torch.tensor(0.5), torch.tensor(1.0), Grid(0, 3))
    tensor([-1.0000, -0.4000,  2.0000])
    """
    levels = grid.quantize(x, scale, zero_point) - zero_point
    inside = derivative_by_input(x, scale, zero_point, grid)
    return levels - x / scale * inside  # eq. (38)


def derivative_by_zero_point(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """d x_hat / d z = 0 inside, -s where x is clipped: eq. (39).

    Args:
        x: as in ``derivative_by_input``, as are all others.
        scale: s.
        zero_point: z.
        grid: the integers.

    Returns:
        One number for each element of x.

    >>> x = torch.tensor([-2.0, 0.2, 9.0])
    >>> derivative_by_zero_point(x, torch.tensor(0.5), torch.tensor(1.0), Grid(0, 3))
    tensor([-0.5000, -0.0000, -0.5000])
    """
    return -scale * (1 - derivative_by_input(x, scale, zero_point, grid))  # eq. (39)


# --- All of it in a few passes --------------------------------------------------------------------


class _FakeQuantize(torch.autograd.Function):
    """Eq. (7) forward, eq. (37) to (39) backward.

    Every pass is a float kernel that the processor vectorizes; masks of booleans are ten times
    slower there, so "inside" is a tensor of 0.0 and 1.0.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, grid):
        u = torch.div(x, scale)
        if grid.whole:
            u.round_()  # before the zero-point is added: it decides no tie
        if zero_point is not None:
            u.add_(zero_point)
        if not grid.whole:
            u.round_()
        x_hat = u.clamp(*grid)  # eq. (4)
        inside = torch.eq(u, x_hat, out=u) if any(ctx.needs_input_grad) else None
        if not grid.even:
            x_hat = grid.quantize(x, scale, 0.0 if zero_point is None else zero_point)
        if zero_point is not None:
            x_hat.sub_(zero_point)
        x_hat.mul_(scale)  # eq. (6)
        if inside is not None:
            ctx.save_for_backward(x, scale, x_hat, inside)
        return x_hat

    @staticmethod
    def backward(ctx, g):
        x, scale, x_hat, inside = ctx.saved_tensors
        by_x, by_scale, by_zero_point = ctx.needs_input_grad[:3]
        g_x, g_scale, g_zero_point = g * inside, None, None  # eq. (37)
        if by_scale:  # eq. (38): inside (x_hat - x) / s, outside x_hat / s
            error = torch.addcmul(x_hat, x, inside, value=-1)
            g_scale = _sum_of_products(g, error, scale).div_(scale)
        if by_zero_point:  # eq. (39): what does not go through to x
            g_zero_point = (_sum(g_x, scale) - _sum(g, scale)) * scale
        return g_x if by_x else None, g_scale, g_zero_point, None


def _sum(x: Tensor, like: Tensor) -> Tensor:
    """The sum over all that shares one scale."""
    return x.sum_to_size(like.shape) if like.ndim else x.sum()


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """The sum of a b over all that shares one scale; a dot product where that is everything."""
    if like.ndim:
        return (a * b).sum_to_size(like.shape)
    if a.stride() == b.stride() and _is_dense(a):
        size = (a.numel(),), (1,)
        return torch.dot(a.as_strided(*size), b.as_strided(*size))
    return (a * b).sum()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def fake_quantize_trained(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid
) -> Tensor:
    """``fake_quantize`` with the straight-through gradients of eq. (37) to (39), and no checks.

    Args:
        x: float, any shape.
        scale: the dtype of x, of a shape that broadcasts against it.
        zero_point: of the same dtype and shape, whole numbers on the grid, or None for 0.
        grid: the integers.

    Returns:
        The value of ``fake_quantize``, bit for bit (without a zero-point, a zero keeps the sign of
        x).

    >>> s = torch.tensor(0.5, requires_grad=True)
    >>> fake_quantize_trained(torch.tensor([0.2, 9.0]), s, None, Grid(0, 3)).sum().backward()
    >>> s.grad  # (0 - 0.4) + 3
    tensor(2.6000)
    """
    return _FakeQuantize.apply(x, scale, zero_point, grid)


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high):
        y = torch.clamp(x, low, high)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.eq(x, y, out=torch.empty_like(x)))
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None, None


def clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``torch.clamp`` between constant tensors, with a quicker way back: ReLU6 by channels.

    >>> clamp(torch.tensor([-1.0, 0.5, 9.0]), torch.tensor(0.0), torch.tensor([6.0, 6.0, 3.0]))
    tensor([0.0000, 0.5000, 3.0000])
    """
    return _Clamp.apply(x, low, high)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, with a gradient ``factor`` times as large.

    A scale's gradient is a sum over all elements that share it, so it grows with their number N and
    with the levels p. Learned step size quantization divides by sqrt(N p), to make a step of plain
    gradient descent move scales about as far, relative to their size, as weights. Adam divides by
    the gradient's own size and needs no such factor.

    Args:
        x: any tensor.
        factor: of its gradient.

    Returns:
        x.

    >>> x = torch.tensor(2.0, requires_grad=True)
    >>> scale_gradient(x, 0.25).backward(); x.grad
    tensor(0.2500)
    """
    return x.detach() + (x - x.detach()) * factor
