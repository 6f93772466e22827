"""Cross-layer equalization and bias absorption: equations 20 to 24 of the paper.

Two layers with a positively homogeneous function between them, f(s x) = s f(x) for s > 0 (the
identity, ReLU, leaky ReLU), compute the same for every positive diagonal S:

    W2 f(W1 x + b1) + b2  =  (W2 S) f(S^-1 W1 x + S^-1 b1) + b2          eq. (21)

so S is free, and is chosen to make the weights easy to quantize with one scale for all channels.

``smoothing_scales`` balances an activation with the weights that read it, in the same way.

Weights are (outputs, inputs / groups, *kernel), as in torch; a linear layer is (outputs, inputs).
With groups, input channel i is read only by the outputs of its own group.
"""

from __future__ import annotations

import math

from minq._checks import (
    Array,
    as_float,
    check_axis,
    check_vector,
    check_weight,
    clamp,
    like,
    namespace,
    split_groups,
)


def output_ranges(weight: Array) -> Array:
    """What output channel k needs from a symmetric grid: r_k = max |W_k|.

    Args:
        weight: (outputs, inputs / groups, *kernel).

    Returns:
        (outputs,).

    >>> output_ranges([[1.0, -3.0], [0.5, 0.25]])
    array([3. , 0.5])
    """
    weight = check_weight(weight)
    xp = namespace(weight)
    return xp.max(xp.abs(xp.reshape(weight, (weight.shape[0], -1))), axis=1)


def input_ranges(weight: Array, groups: int = 1) -> Array:
    """The same for input channel i: r_i = max |W| over all that reads it.

    Args:
        weight: (outputs, inputs / groups, *kernel).
        groups: of the convolution.

    Returns:
        (inputs,).

    >>> input_ranges([[1.0, -3.0], [0.5, 0.25]])
    array([1., 3.])
    """
    weight = check_weight(weight, groups)
    xp = namespace(weight)
    by_group = xp.abs(split_groups(weight, groups))  # (groups, outputs, inputs, kernel)
    return xp.reshape(xp.max(xp.max(by_group, axis=3), axis=1), (-1,))


def equalization_scales(range1: Array, range2: Array) -> Array:
    """The scales that make both ranges equal: s_i = sqrt(r1_i r2_i) / r2_i, eq. (22).

    A dead channel, with range 0 on either side, keeps s = 1.

    Args:
        range1: the output ranges of the first layer, (channels,).
        range2: the input ranges of the second, (channels,).

    Returns:
        s, (channels,).

    Raises:
        ValueError: for negative ranges, or shapes that differ.

    >>> equalization_scales([8.0, 1.0, 0.0], [2.0, 4.0, 5.0])
    array([2. , 0.5, 1. ])
    """
    range1 = as_float(range1, "range1")
    xp = namespace(range1)
    range2 = as_float(like(range2, range1, range1.dtype, "range2"), "range2")
    if range1.ndim != 1 or range1.shape != range2.shape:
        raise ValueError(
            f"the first layer has ranges of shape {tuple(range1.shape)}, the second "
            f"{tuple(range2.shape)}; the outputs of one must be the inputs of the other"
        )
    if bool(xp.any((range1 < 0) | (range2 < 0))):
        raise ValueError("a range is negative; use output_ranges and input_ranges")
    one = xp.ones_like(range1)
    alive = (range1 > 0) & (range2 > 0)
    # Two roots, because the quotient itself could overflow.
    s = xp.sqrt(xp.where(alive, range1, one)) / xp.sqrt(xp.where(alive, range2, one))  # eq. (22)
    return s


def smoothing_scales(activations: Array, weights: Array, alpha: float = 0.5) -> Array:
    """Scales between an activation and the weights that read it: s_i = a_i^alpha / r_i^(1 - alpha).

    a_i is the largest value of channel i on data, r_i the range of the weights that read it (see
    ``input_ranges``). The activation becomes x / s, the weights W S: with alpha = 1 all channels of
    the activation are equal, with 0 all columns of the weights, with 1/2 both are sqrt(a_i r_i).
    The scales are then divided by their geometric mean, which changes no grid but keeps numbers
    small. A dead channel keeps s = 1. Xiao et al. 2023, "SmoothQuant".

    Args:
        activations: a, (channels,).
        weights: r, (channels,).
        alpha: 0 evens out the weights, 1 the activations, 1/2 both alike.

    Returns:
        s, (channels,).

    Raises:
        ValueError: for alpha outside of [0, 1], negative ranges, or shapes that differ.

    >>> smoothing_scales([16.0, 1.0], [1.0, 1.0])
    array([2. , 0.5])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 (weights) to 1 (activations), not {alpha}")
    equalization_scales(activations, weights)  # checks them
    a = as_float(activations, "activations")
    xp = namespace(a)
    r = as_float(like(weights, a, a.dtype, "weights"), "weights")
    alive = (a > 0) & (r > 0)
    one = xp.ones_like(a)
    log_s = alpha * xp.log(xp.where(alive, a, one)) - (1 - alpha) * xp.log(xp.where(alive, r, one))
    if bool(xp.any(alive)):
        log_s = log_s - xp.mean(log_s[alive])
    return xp.where(alive, xp.exp(log_s), one)


def scale_outputs(weight: Array, bias: Array | None, s: Array) -> tuple[Array, Array | None]:
    """The first layer of a pair: W~1 = S^-1 W1, b~1 = S^-1 b1, eq. (21)."""
    weight = check_weight(weight)
    s = check_vector(s, weight, weight.shape[0], "s")
    _check_positive(s)
    if bias is not None:
        bias = check_vector(bias, weight, weight.shape[0], "bias") / s
    shape = (-1,) + (1,) * (weight.ndim - 1)
    return weight / namespace(s).reshape(s, shape), bias  # eq. (21)


def scale_inputs(weight: Array, s: Array, groups: int = 1) -> Array:
    """The second layer of a pair: W~2 = W2 S, eq. (21)."""
    weight = check_weight(weight, groups)
    s = check_vector(s, weight, weight.shape[1] * groups, "s")
    _check_positive(s)
    scaled = split_groups(weight, groups) * namespace(s).reshape(s, (groups, 1, -1, 1))  # eq. (21)
    return namespace(s).reshape(scaled, tuple(weight.shape))


def equalize(
    weight1: Array, bias1: Array | None, weight2: Array, groups: int = 1
) -> tuple[Array, Array | None, Array, Array]:
    """Equalize two layers, eq. (20) to (22): both ranges of channel i become sqrt(r1_i r2_i).

    Exact only if what lies between the layers is positively homogeneous, and nothing else reads it.

    Args:
        weight1: of the first layer, (outputs, ...).
        bias1: its bias, (outputs,), or None.
        weight2: of the second, (outputs, inputs / groups, *kernel).
        groups: of the second.

    Returns:
        weight1, bias1, weight2, and s.

    >>> equalize([[8.0], [1.0]], [4.0, 3.0], [[2.0, 4.0]])[:3]
    (array([[4.],
           [2.]]), array([2., 6.]), array([[4., 2.]]))
    """
    s = equalization_scales(output_ranges(weight1), input_ranges(weight2, groups))
    weight1, bias1 = scale_outputs(weight1, bias1, s)
    return weight1, bias1, scale_inputs(weight2, s, groups), s


def absorbable(beta: Array, gamma: Array, sigmas: float = 3.0) -> Array:
    """What the next layer can take of a high bias: c_i = max(0, beta_i - 3 |gamma_i|).

    It needs no data, and stands in for eq. (24), ``absorbable_on``; it has no number in the paper.
    beta and |gamma| are mean and standard deviation of the pre-activations, as batch norm made
    them. If they are Gaussian, 99.87 % of them lie above c, where ReLU(x - c) = ReLU(x) - c.

    Args:
        beta: (channels,).
        gamma: (channels,).
        sigmas: how many standard deviations below the mean the bias may cut; the paper takes 3.

    Returns:
        c, (channels,).

    Raises:
        ValueError: for shapes that differ, and sigmas below 0.

    >>> absorbable([5.0, 1.0], [-1.0, 1.0])
    array([2., 0.])
    """
    beta = as_float(beta, "beta")
    gamma = check_vector(gamma, beta, math.prod(beta.shape), "gamma")
    if not (sigmas >= 0 and math.isfinite(sigmas)):
        raise ValueError(f"sigmas must be 0 or more and finite, not {sigmas}; the paper takes 3")
    return clamp(beta - sigmas * abs(gamma), low=0.0)


def absorbable_on(y: Array, axis: int = 1) -> Array:
    """The same from data: c_i = max(0, min over x of (W1 x + b1)_i), eq. (24).

    On these data no output lies below its c, so that absorbing it changes nothing there.

    Args:
        y: W1 x + b1 on a few data, what the first layer gives before its activation function.
        axis: of the channels.

    Returns:
        c, (channels,).

    Raises:
        ValueError: for an axis that is not there, and numbers that are not finite.

    >>> absorbable_on([[5.0, 1.0], [3.0, -1.0]])
    array([3., 0.])
    """
    y = as_float(y, "y")
    axis = check_axis(axis, y.ndim)
    others = tuple(k for k in range(y.ndim) if k != axis)
    lowest = namespace(y).min(y, axis=others) if others else y
    return clamp(lowest, low=0.0)  # eq. (24)


def absorb_bias(
    bias1: Array | None, weight2: Array, bias2: Array | None, c: Array, groups: int = 1
) -> tuple[Array, Array]:
    """Move c from the first layer's bias into the second's, eq. (23):

        W2 h + b2 = W2 (h - c) + (W2 c + b2),    b~1 = b1 - c,    b~2 = b2 + W2 c

    A channel's value is the same at every place of the kernel, so that the kernel is summed. Exact
    where W1 x + b1 >= c, and the second layer sees no zero padding.

    Args:
        bias1: of the first layer, (inputs,), or None.
        weight2: of the second, (outputs, inputs / groups, *kernel).
        bias2: its bias, (outputs,), or None.
        c: what moves, (inputs,); see ``absorbable`` and ``absorbable_on``.
        groups: of the second.

    Returns:
        Both biases.

    >>> absorb_bias([5.0, 0.0], [[2.0, 1.0]], [1.0], [3.0, 0.0])
    (array([2., 0.]), array([7.]))
    """
    weight2 = check_weight(weight2, groups)
    xp, outputs = namespace(weight2), weight2.shape[0]
    c = check_vector(c, weight2, weight2.shape[1] * groups, "c")
    b1 = xp.zeros_like(c) if bias1 is None else check_vector(bias1, c, c.shape[0], "bias1")
    by_group = xp.sum(split_groups(weight2, groups), axis=3)  # (groups, outputs, inputs)
    moved = xp.reshape(by_group @ xp.reshape(c, (groups, -1, 1)), (outputs,))
    b2 = 0.0 if bias2 is None else check_vector(bias2, weight2, outputs, "bias2")
    return b1 - c, b2 + moved  # eq. (23)


# --- Checks ---------------------------------------------------------------------------------------


def _check_positive(s: Array) -> None:
    if not bool(namespace(s).all(s > 0)):
        raise ValueError("s must be positive; a negative factor does not pass through ReLU")
