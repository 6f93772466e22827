"""Argument checks shared by every module: an error names what was wrong, what fits, and what to do.

Arrays are NumPy's or torch's, through the array API. torch is never imported here: whoever passes a
tensor has imported it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import (
    array_namespace,
    device,
    is_array_api_obj,
    is_numpy_array,
    is_torch_array,
)

Array = Any
"""A NumPy array or a torch tensor."""


def namespace(x: Array) -> Any:
    """The array-API functions that belong to ``x``."""
    return array_namespace(x)


def clamp(x: Array, low: Any = None, high: Any = None, out: Array | None = None) -> Array:
    """clamp(x; low, high). NumPy's own is several times as fast as its array-API form."""
    if is_numpy_array(x):
        return np.clip(x, low, high, out=out)
    return namespace(x).clip(x, min=low, max=high, out=out)


def as_float(x: Any, name: str = "x") -> Array:
    """``x`` as a floating-point array that is not empty and holds no NaN and no infinity.

    Python numbers and lists become float64; integer arrays are refused, since an integer here most
    often means that a value was quantized twice.

    >>> as_float([1, 2.5])
    array([1. , 2.5])
    >>> as_float([1.0, float("nan")], "weights")
    Traceback (most recent call last):
    ...
    ValueError: weights has 1 NaN or infinite value among 2; clean it first, e.g. with nan_to_num
    """
    if not is_array_api_obj(x):
        try:
            x = np.asarray(x, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} must be a number, a list of numbers, a NumPy array or a torch tensor, "
                f"not {type(x).__name__}"
            ) from None
    xp = namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(f"{name} must be floating point, not {x.dtype}; convert it to float32")
    if math.prod(x.shape) == 0:
        raise ValueError(f"{name} is empty (shape {tuple(x.shape)}); at least one value is needed")
    if not all_finite(x):
        bad = int(xp.sum(xp.astype(~xp.isfinite(x), xp.int64)))
        raise ValueError(
            f"{name} has {bad} NaN or infinite value{'s' * (bad != 1)} among {math.prod(x.shape)}; "
            "clean it first, e.g. with nan_to_num"
        )
    return x


def all_finite(x: Array) -> bool:
    """Whether ``x`` holds no NaN and no infinity.

    A sum keeps every NaN and infinity and needs no second array; only a sum that overflows on
    finite values is looked at again, element by element.
    """
    xp = namespace(x)
    if is_torch_array(x):
        x = x.detach()
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(xp.isfinite(xp.sum(x))) or bool(xp.all(xp.isfinite(x)))


def compute_dtype(x: Array) -> Any:
    """The dtype to calculate in: float32 for half floats, whose integers end at 256 or 2048."""
    xp = namespace(x)
    return x.dtype if x.dtype in (xp.float32, xp.float64) else xp.float32


def saturating_cast(x: Array, dtype: Any) -> Array:
    """``x`` in the dtype that was asked for, no further than that reaches; its gradient is kept.

    The end of a grid can lie half a step beyond the last finite half float.

    >>> saturating_cast(np.array([65536.0, -1e6, 2.5]), np.float16)
    array([ 6.55e+04, -6.55e+04,  2.50e+00], dtype=float16)
    """
    xp = namespace(x)
    most = float(xp.finfo(dtype).max)
    if most < float(xp.finfo(x.dtype).max):
        if getattr(x, "requires_grad", False):
            x = x + (clamp(x, -most, most) - x).detach()
        else:
            x = clamp(x, -most, most)
    return xp.astype(x, dtype, copy=False)


def like(value: Any, x: Array, dtype: Any, name: str) -> Array:
    """``value`` as an array of ``x``'s library, device and the given dtype."""
    xp = namespace(x)
    if is_array_api_obj(value):
        if is_torch_array(value) != is_torch_array(x) and math.prod(value.shape) != 1:
            raise TypeError(
                f"{name} and x must come from one library, not {type(value).__name__} beside "
                f"{type(x).__name__}; convert one of them"
            )
        if is_torch_array(value) and is_torch_array(x):
            return value.to(device=x.device, dtype=dtype)
        if is_torch_array(value):
            value = value.detach().cpu().numpy()
    return xp.asarray(value, dtype=dtype, device=device(x))


def check_bits(bits: Any) -> int:
    """``bits`` as an int from 1 to 16."""
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)):
        raise TypeError(f"bits must be a whole number from 1 to 16, not {bits!r}")
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must be from 1 to 16, not {bits}; above 16 use floating point")
    return int(bits)


def check_axis(axis: Any, ndim: int, name: str = "axis") -> int:
    """``axis`` as a non-negative index into ``ndim`` axes."""
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number or None, not {axis!r}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name} {axis} is out of range for an array with {ndim} axes")
    return int(axis) % ndim


def check_count(value: Any, name: str) -> int:
    """``value`` as a positive int."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a positive whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return int(value)


# --- Weights and vectors of channels --------------------------------------------------------------


def check_weight(weight: Any, groups: int = 1) -> Array:
    """``weight`` as (outputs, inputs / groups, *kernel), float, its outputs in whole groups."""
    weight = as_float(weight, "weight")
    if weight.ndim < 2:
        raise ValueError(
            f"weight must be (outputs, inputs / groups, *kernel), not {tuple(weight.shape)}"
        )
    if weight.shape[0] % check_count(groups, "groups"):
        raise ValueError(f"{weight.shape[0]} outputs cannot be split into {groups} groups")
    return weight


def split_groups(weight: Array, groups: int) -> Array:
    """``weight`` seen as (groups, outputs / groups, inputs / groups, kernel)."""
    return namespace(weight).reshape(
        weight, (groups, weight.shape[0] // groups, weight.shape[1], -1)
    )


def check_vector(v: Any, x: Array, length: int, name: str) -> Array:
    """``v`` as (length,), in the library, device and dtype of ``x``."""
    v = as_float(like(v, x, x.dtype, name), name)
    if tuple(v.shape) != (length,):
        raise ValueError(
            f"{name} has shape {tuple(v.shape)}, expected one value for each of {length} channels"
        )
    return v


def by_name(
    value: Any, kind: type, names: Mapping[str, Any], argument: str, example: str
) -> Any:
    """A ``kind`` of object, or the one that a short form stands for.

    Raises:
        ValueError: there is no such short form.
        TypeError: ``value`` is neither.

    >>> by_name("two", int, {"one": 1, "two": 2}, "count", example="3")
    2
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"{argument} must be an object such as {example}, or one of {', '.join(names)}, "
            f"not {value!r}"
        )
    if value not in names:
        raise ValueError(f"{argument} must be one of {', '.join(names)}, not {value!r}")
    return names[value]
