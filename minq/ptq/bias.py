"""Bias correction: equations 25 to 28 of the paper.

Rounding the weights by Delta W = W_hat - W moves the mean of a layer's output, not only its spread:

    E[W_hat x] = E[W x] + E[Delta W x] = E[W x] + Delta W E[x]                eq. (25)

What it moved by is known before the network runs, and is taken off the bias. E[x] comes from data,
or from the batch norm and activation function in front of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from minq._checks import (
    Array,
    as_float,
    check_axis,
    check_vector,
    check_weight,
    like,
    namespace,
    split_groups,
)

_FAR = 40.0
"""Standard deviations after which the normal density is 0 in float64."""


def clipped_normal(
    mean: Array, std: Array, low: float = 0.0, high: float = math.inf
) -> tuple[Array, Array]:
    """Mean and variance of clip(X; low, high), X ~ N(mean, std^2), without data, eq. (28).

    ReLU is low = 0, ReLU6 also has high = 6. With only a ReLU the mean is

        std N(-mean / std) + mean [1 - Phi(-mean / std)]

    where N and Phi are density and distribution of the standard normal. With batch norm in front,
    ``mean`` is its beta and ``std`` its |gamma|.

    Computed in float64 around the nearest possible value, so that it holds for any ratio of mean to
    std; std = 0 gives the clip of the mean, and variance 0.

    Args:
        mean: float, any shape.
        std: float, of the same shape.
        low: the lower bound; -inf for none.
        high: the upper bound; inf for none.

    Returns:
        Mean and variance, of that shape.

    Raises:
        ValueError: for a negative std, shapes that differ, and low > high.

    >>> m, v = clipped_normal([0.0, 5.0], [1.0, 0.0])
    >>> [round(float(a), 4) for a in m], [round(float(a), 4) for a in v]
    ([0.3989, 5.0], [0.3408, 0.0])
    """
    given = as_float(mean, "mean")
    std = as_float(like(std, given, given.dtype, "std"), "std")
    if given.shape != std.shape:
        raise ValueError(f"mean {tuple(given.shape)} and std {tuple(std.shape)} differ in shape")
    if bool(namespace(std).any(std < 0)):
        raise ValueError("std is negative; give |gamma|, not gamma")
    if not low <= high:
        raise ValueError(f"low {low} is above high {high}; swap them")
    m, s = (torch.as_tensor(v, dtype=torch.float64) for v in (given, std))
    near = m.clamp(low, high)
    a, b = (((end - m) / s).nan_to_num(nan=0.0).clamp(-_FAR, _FAR) for end in (low, high))
    # The mean inside the range: both tails are folded onto the ends.
    first = _excess(-a) - _excess(b)
    second = 1 - sum(_excess_square(t) + 2 * t * _excess(t) for t in (-a, b))
    # The mean outside: only the tail that reaches into the range counts, up to the other end.
    t, far = torch.where(m < low, a, -b), torch.where(m < low, b, -a)
    tail = _excess(t) - _excess(far)
    tail_square = _excess_square(t) - _excess_square(far) - 2 * (far - t) * _excess(far)
    outside = (m < low) | (m > high)
    first = torch.where(outside, torch.where(m < low, tail, -tail), first)
    second = torch.where(outside, tail_square, second)
    results = near + s * first, s**2 * (second - first**2).clamp(min=0)  # eq. (28)
    if isinstance(given, torch.Tensor):
        return tuple(v.to(given.dtype) for v in results)
    return tuple(v.numpy().astype(given.dtype) for v in results)


def _excess(t: torch.Tensor) -> torch.Tensor:
    """E[max(Z - t, 0)] of a standard normal Z."""
    return _density(t) - t * _above(t)


def _excess_square(t: torch.Tensor) -> torch.Tensor:
    """E[max(Z - t, 0)^2] of a standard normal Z."""
    return (1 + t**2) * _above(t) - t * _density(t)


def _density(t: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)


def _above(t: torch.Tensor) -> torch.Tensor:
    """P(Z > t)."""
    return torch.special.erfc(t / math.sqrt(2)) / 2


def output_shift(weight_error: Array, input_mean: Array, groups: int = 1) -> Array:
    """How far rounding moved the mean output: E[Delta W x] = Delta W E[x], eq. (25).

    A channel has one mean for all places of the kernel, so that the kernel is summed; zero padding,
    which lowers the mean near the border, is not seen.

    Args:
        weight_error: W_hat - W, (outputs, inputs / groups, *kernel).
        input_mean: E[x], (inputs,).
        groups: of the convolution.

    Returns:
        (outputs,).

    >>> output_shift([[0.5, 0.25]], [2.0, 4.0])
    array([2.])
    """
    weight_error = check_weight(weight_error, groups)
    xp = namespace(weight_error)
    x = check_vector(input_mean, weight_error, weight_error.shape[1] * groups, "input_mean")
    by_group = xp.sum(split_groups(weight_error, groups), axis=3)  # (groups, outputs, inputs)
    return xp.reshape(by_group @ xp.reshape(x, (groups, -1, 1)), (-1,))  # eq. (25)


def conv_moments(
    weight: Array, bias: Array | None, mean: Array, variance: Array, groups: int = 1
) -> tuple[Array, Array]:
    """Mean and variance of W x + b, where the inputs are independent: W E[x] + b and W^2 Var[x].

    Args:
        weight: (outputs, inputs / groups, *kernel).
        bias: (outputs,), or None for 0.
        mean: of the inputs, (inputs,).
        variance: of the inputs, (inputs,).
        groups: of the convolution.

    Returns:
        Mean and variance of the outputs, (outputs,) each.

    >>> conv_moments([[2.0, -1.0]], [1.0], [3.0, 1.0], [1.0, 4.0])
    (array([6.]), array([8.]))
    """
    weight = check_weight(weight, groups)
    out = output_shift(weight, mean, groups)
    if bias is not None:
        out = out + check_vector(bias, weight, weight.shape[0], "bias")
    return out, output_shift(weight**2, variance, groups)


def correct_bias(bias: Array | None, shift: Array) -> Array:
    """The bias that puts the mean output back: b - Delta W E[x], eq. (26).

    Args:
        bias: (outputs,), or None for 0.
        shift: what ``output_shift`` or ``empirical_shift`` found, (outputs,).

    Returns:
        The new bias, (outputs,).

    >>> correct_bias([1.0], [2.0]), correct_bias(None, [2.0])
    (array([-1.]), array([-2.]))
    """
    shift = as_float(shift, "shift")
    if bias is None:
        return -shift
    return check_vector(bias, shift, shift.shape[0], "bias") - shift  # eq. (26)


def empirical_shift(y: Array, y_hat: Array, axis: int = 1) -> Array:
    """The same shift measured on data: E[y_hat] - E[y] of each channel of ``axis``, eq. (27).

    Summed in float64. Unlike ``output_shift``, it also sees padding and the error of the layer's
    input.

    Args:
        y: the layer's output before quantization, float, any shape.
        y_hat: the same after it.
        axis: of the channels.

    Returns:
        (channels,).

    Raises:
        ValueError: for shapes that differ, and an axis that is not there.

    >>> empirical_shift([[1.0, 2.0], [3.0, 4.0]], [[1.5, 2.0], [3.5, 5.0]])
    array([0.5, 0.5])
    """
    y = as_float(y, "y")
    y_hat = as_float(like(y_hat, y, y.dtype, "y_hat"), "y_hat")
    if y.shape != y_hat.shape:
        raise ValueError(f"y {tuple(y.shape)} and y_hat {tuple(y_hat.shape)} differ in shape")
    xp, axis = namespace(y), check_axis(axis, y.ndim)
    others = tuple(k for k in range(y.ndim) if k != axis)
    shift = y_hat - y  # eq. (27)
    if others:
        shift = xp.mean(xp.astype(shift, xp.float64), axis=others)
    return xp.astype(shift, y.dtype)


def change_of_error(
    y: Array,
    y_hat: Array,
    shift: Array,
    activation: Callable[[Array], Array] | None = None,
    axis: int = 1,
) -> Array:
    """What a correction by c does to squared errors: [f(y_hat - c) - f(y)]^2 - [f(y_hat) - f(y)]^2.

    Below 0 where it helps. The mean of y_hat - y lowers the error of y_hat, but f, the activation
    function, cuts most of it off: what is left may have another mean.

    Args:
        y: outputs before quantization, float, any shape.
        y_hat: the same after it.
        shift: c, (channels,).
        activation: f, by default none.
        axis: of the channels.

    Returns:
        Of the shape of y.

    >>> change_of_error([[1.0, 2.0]], [[1.5, 2.0]], [0.5, 0.5])
    array([[-0.25,  0.25]])
    """
    y = as_float(y, "y")
    y_hat = as_float(like(y_hat, y, y.dtype, "y_hat"), "y_hat")
    axis = check_axis(axis, y.ndim)
    shift = check_vector(shift, y, y.shape[axis], "shift")
    shift = namespace(y).reshape(shift, (-1, *[1] * (y.ndim - axis - 1)))
    f = activation or (lambda v: v)
    exact = f(y)
    return (f(y_hat - shift) - exact) ** 2 - (f(y_hat) - exact) ** 2
