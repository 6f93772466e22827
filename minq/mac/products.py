"""Exact integer arithmetic: matrix products, and what zero-points add to them.

Both keep to one principle: say how large a number can become, and only then choose how to
compute it. Arrays are NumPy's or torch's; the answer is of the same kind and on the same device,
while the computing is done on the CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_array_api_obj, is_torch_array

from minq._checks import Array, check_count, namespace

_MIN_BLOCK = 128
"""Below this many terms a block of float32 costs more than one float64 product."""


def as_integers(x: Any, name: str) -> tuple[np.ndarray, Callable[[np.ndarray], Array]]:
    """``x`` as a NumPy integer array, and the function that takes a result back to x's kind."""
    if not is_array_api_obj(x):
        x = np.asarray(x)
    if not namespace(x).isdtype(x.dtype, "integral"):
        raise TypeError(
            f"{name} must be integers, not {x.dtype}; call quantize first, or cast with care"
        )
    if 0 in x.shape:
        raise ValueError(f"{name} is empty (shape {tuple(x.shape)}); at least one value is needed")
    if not is_torch_array(x):
        return np.asarray(x), lambda y: y
    import torch

    return x.detach().cpu().numpy(), lambda y: torch.from_numpy(np.asarray(y)).to(x.device)


def span(x: np.ndarray) -> tuple[int, int]:
    """Smallest and largest value, as Python integers because -(-128) does not fit into int8."""
    return int(x.min()), int(x.max())


def magnitude(x: np.ndarray) -> int:
    """max |x|."""
    low, high = span(x)
    return max(-low, high)


def linear_operands(weight: Array, x: Array, bias: Array | None) -> tuple[Any, Any, Any, Any]:
    """weight (N, M), x (M,) or (B, M), bias (N,) as int64, and the way back to x's kind."""
    (w, _), (x, back) = as_integers(weight, "weight"), as_integers(x, "x")
    if w.ndim != 2 or x.ndim not in (1, 2) or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"weight {w.shape} and x {x.shape} do not fit: weight needs (N, M), x (M,) or (B, M)"
        )
    b = np.zeros(len(w), np.int64) if bias is None else as_integers(bias, "bias")[0]
    if b.shape != (len(w),):
        raise ValueError(f"bias {b.shape} needs one value for each of the {len(w)} outputs")
    if w.shape[1] * magnitude(w) * magnitude(x) + magnitude(b) >= 2**62:
        raise ValueError("weight, x and bias are so large that exact sums could exceed 2^62")
    return w.astype(np.int64), x.astype(np.int64), b.astype(np.int64), back


def layer_sizes(n_outputs: int, n_inputs: int, batch: int) -> tuple[int, int, int]:
    return (
        check_count(n_outputs, "n_outputs"),
        check_count(n_inputs, "n_inputs"),
        check_count(batch, "batch"),
    )


# --- Matrix products ------------------------------------------------------------------------------


def int_matmul(a: Array, b: Array) -> Array:
    """The exact integer product ``a @ b``.

    Floating-point units multiply matrices far faster than integer ones, and they are exact as long
    as nothing needs rounding. Every partial sum of K products, in whatever order and with or
    without fused multiply-add, is an integer of magnitude at most B = K max|a| max|b|, and a float
    with t significant bits holds every integer up to 2^t. Hence the ways, the first that fits:

        torch, both in [-128, 127] or [0, 255]   torch._int_mm (blocks of K if B >= 2^31)
        B <= 2^24                                float32
        2^24 / (max|a| max|b|) >= 128            float32, in blocks of K of that many terms
        the same with 2^53                       float64
        B < 2^63                                 int64, exact but slow
        else                                     ValueError

    Values in [0, 255] reach the signed kernel as a - 128; the rest is eq. (13), with zero-point
    -128. The kernel is asked once whether it is exact here: without VNNI instructions x86 CPUs
    add pairs of 8-bit products in 16 bits, which saturates (oneDNN, "Nuances of int8
    computations").

    Args:
        a: integers, (K,) or (..., K).
        b: integers, (K, P) or (..., K, P); leading axes broadcast as in ``numpy.matmul``.

    Returns:
        (..., P). The dtype depends on dtypes and K alone, never on the values: int32 if
        K max|dtype of a| max|dtype of b| < 2^31 (two int8: K < 2^17), else int64.

    Raises:
        TypeError: for anything but integers, or for NumPy beside torch.
        ValueError: for empty arrays, shapes that do not fit, and products that may not fit into
            int64.

    >>> int_matmul(np.array([[100, 100]], np.int8), np.array([[100], [100]], np.int8))
    array([[20000]], dtype=int32)
    """
    if is_torch_array(a) != is_torch_array(b):
        raise TypeError("a and b must come from one library, NumPy or torch; convert one of them")
    (left, back), (right, _) = as_integers(a, "a"), as_integers(b, "b")
    if left.ndim < 1 or right.ndim < 2 or left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"a {left.shape} and b {right.shape} do not fit: a needs (..., K) and b (..., K, P); "
            "write a vector on the right as b[:, None]"
        )
    spans = span(left), span(right)
    k, term = left.shape[-1], math.prod(max(-low, high) for low, high in spans)
    if k * term >= 2**63:
        raise ValueError(
            f"a sum of {k} products of up to {term} may not fit into int64; use smaller values"
        )
    infos = np.iinfo(left.dtype), np.iinfo(right.dtype)
    fits = k * math.prod(max(-info.min, info.max) for info in infos) < 2**31
    dtype = np.int32 if fits else np.int64

    narrow = all(-128 <= low <= high <= 127 or 0 <= low <= high <= 255 for low, high in spans)
    if is_torch_array(a) and right.ndim == 2 and narrow and int_mm_is_exact():
        # Values in [0, 255] go to the signed kernel as a - 128.
        shifts = [128 if high > 127 else 0 for _, high in spans]
        product = functools.partial(_int8_product, shifts[0], shifts[1])
        return back(_in_blocks(product, left, right, (2**31 - 1) // max(term, 1), dtype))
    for wide, exact_up_to in ((np.float32, 2**24), (np.float64, 2**53)):
        block = exact_up_to // max(term, 1)
        if block >= min(k, _MIN_BLOCK):
            product = functools.partial(_float_product, wide)
            return back(_in_blocks(product, left, right, block, dtype))
    return back(np.matmul(left.astype(np.int64), right.astype(np.int64)).astype(dtype, copy=False))


def _in_blocks(product: Callable, a: np.ndarray, b: np.ndarray, block: int, dtype: Any) -> Any:
    """The sum over pieces of K of ``product``, each exact; added as integers of ``dtype``."""
    total = product(a[..., :block], b[..., :block, :]).astype(dtype, copy=False)
    for k in range(block, a.shape[-1], block):
        total += product(a[..., k : k + block], b[..., k : k + block, :]).astype(dtype, copy=False)
    return total


def _float_product(dtype: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.matmul(a.astype(dtype), b.astype(dtype))


def _int8_product(z_a: int, z_b: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` in int32 by the signed 8-bit kernel, which sees a8 = a - z_a and b8 = b - z_b."""
    a8, b8 = ((x - x.dtype.type(z) if z else x).astype(np.int8, copy=False)
              for x, z in ((a, z_a), (b, z_b)))  # fmt: skip
    y = _int_mm(a8.reshape(-1, a.shape[-1]), b8).reshape(*a.shape[:-1], b.shape[-1])
    if z_a:  # eq. (13): (a8 + z_a) b8 = a8 b8 + z_a sum(b8)
        y += z_a * b8.sum(0, dtype=np.int32)
    if z_b:  # a (b8 + z_b) = a b8 + z_b sum(a)
        y += z_b * a.sum(-1, dtype=np.int32, keepdims=True)
    return y


def _int_mm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import torch

    return torch._int_mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


@functools.cache
def int_mm_is_exact() -> bool:
    """Whether this CPU's 8-bit kernel survives the products that overflow 16 bits in pairs."""
    try:
        for shape in ((1, 64, 1), (32, 64, 32)):
            for p, q in ((127, 127), (127, -128), (-128, 127), (-128, -128)):
                a, b = np.full(shape[:2], p, np.int8), np.full(shape[1:], q, np.int8)
                if not (_int_mm(a, b) == 64 * p * q).all():
                    return False
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


# --- What zero-points cost ------------------------------------------------------------------------


class ZeroPointTerms(NamedTuple):
    """The four terms of eq. (13) without their common factor s_w s_x."""

    product: Array  # W_int x_int,    (B, N): what the array computes
    weight_zero: Array  # -z_w sum x_int, (B, 1) or (B, N): depends on the data
    input_zero: Array  # -z_x sum W_int, (N,): known beforehand
    constant: Array  # M z_w z_x,      () or (N,): known beforehand

    @property
    def total(self) -> Array:
        """(W_int - z_w)(x_int - z_x), (B, N)."""
        return self.product + self.weight_zero + self.input_zero + self.constant


def zero_point_terms(
    weight: Array, x: Array, weight_zero_point: Array = 0, input_zero_point: int = 0
) -> ZeroPointTerms:
    """Eq. (13): (W_int - z_w)(x_int - z_x) = W_int x_int - z_w sum x - z_x sum W + M z_w z_x.

    Args:
        weight: integers, (N, M).
        x: integers, (M,) or (B, M).
        weight_zero_point: one integer, or one for each output, (N,).
        input_zero_point: one integer.

    Returns:
        The four terms, int64, and exact.

    Raises:
        TypeError, ValueError: as ``int_matmul``, and for terms that could exceed 2^62.

    >>> terms = zero_point_terms([[1, 2]], [[3, 4]], weight_zero_point=1, input_zero_point=2)
    >>> [term.tolist() for term in terms], terms.total.tolist()
    ([[[11]], [[-7]], [-6], 4], [[2]])
    """
    w, x, _, back = linear_operands(weight, x, None)
    z_w, z_x = _zero_points(weight_zero_point, input_zero_point, w, x)
    terms = (
        int_matmul(x, w.T),
        -z_w * x.sum(-1, keepdims=True),
        -z_x * w.sum(1),
        np.asarray(w.shape[1] * z_w * z_x),
    )
    return ZeroPointTerms(*map(back, terms))  # eq. (13)


def fold_zero_points(
    weight: Array, bias: Array | None, weight_zero_point: Array = 0, input_zero_point: int = 0
) -> Array:
    """The bias with the third and fourth term of eq. (13) in it: b - z_x sum W + M z_w z_x, (N,).

    Neither depends on the data, so an input zero-point is free at run time.

    Args:
        weight: integers, (N, M).
        bias: integers, (N,), or None for 0.
        weight_zero_point: one integer, or one for each output, (N,).
        input_zero_point: one integer.

    Returns:
        The new bias, int64, (N,).

    Raises:
        TypeError, ValueError: as ``zero_point_terms``.

    >>> fold_zero_points([[1, 2]], [10], weight_zero_point=1, input_zero_point=2)
    array([8])
    """
    back = as_integers(weight, "weight")[1]
    w, one, b, _ = linear_operands(weight, np.ones(np.shape(weight)[-1:], int), bias)
    z_w, z_x = _zero_points(weight_zero_point, input_zero_point, w, one)
    return back(b - z_x * w.sum(1) + w.shape[1] * z_w * z_x)


def _zero_points(weight: Array, x: Array, w: np.ndarray, x_int: Any) -> tuple[Any, Any]:
    """Both zero-points as int64, checked to fit the operands, and no term to exceed 2^62."""
    z_w, z_x = as_integers(weight, "weight_zero_point")[0], as_integers(x, "input_zero_point")[0]
    if z_w.shape not in ((), (len(w),)) or z_x.shape != ():
        raise ValueError(
            f"weight_zero_point {z_w.shape} must be one integer or one for each of {len(w)} "
            f"outputs, input_zero_point {z_x.shape} one integer"
        )
    largest = (magnitude(w) + magnitude(z_w)) * (magnitude(x_int) + magnitude(z_x))
    if w.shape[1] * largest >= 2**62:
        raise ValueError("operands and zero-points are so large that terms could exceed 2^62")
    return z_w.astype(np.int64), z_x.astype(np.int64)


def zero_point_operations(
    n_outputs: int, n_inputs: int, batch: int = 1, *, per_channel: bool = False
) -> dict[str, int]:
    """Operations at run time that a weight zero-point costs: the second term of eq. (13).

    For each input vector: M - 1 additions for sum x, one multiplication by z_w (one for each output
    if z_w is per channel), N subtractions. Symmetric weights (z_w = 0) cost none of it.

    Args:
        n_outputs: N.
        n_inputs: M.
        batch: number of input vectors.
        per_channel: whether each output has a zero-point of its own.

    Returns:
        The number of "additions" and of "multiplications".

    >>> zero_point_operations(64, 576)
    {'additions': 639, 'multiplications': 1}
    """
    n, m, batch = layer_sizes(n_outputs, n_inputs, batch)
    return {
        "additions": batch * (m - 1 + n),
        "multiplications": batch * (n if per_channel else 1),
    }
