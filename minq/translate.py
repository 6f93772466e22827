"""The same quantizer in the words of other libraries, and what each of them makes of a number.

A grid is (scale, zero_point, bits, signed) here. Elsewhere the zero-point changes its sign or is
shifted, and ties fall differently:

    AIMET       clamp(round(x / delta) - offset)      offset = -z; old files shift it to unsigned
    Brevitas    clamp(round(x / scale + z))           adds first, so that ties depend on z
    torch.ao    clamp(round(x (1 / scale)) + z)       multiplies by the rounded inverse
    ONNX        clamp(round(x / scale) + z)           as eq. (4)
    TFLite      clamp(round(x / scale) + z)           int8 only; ties away from zero

Each ``to_...`` gives the fields of one library by their names there, and ``from_...`` takes them
back. ``quantize_as`` computes the integers that a library would store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .affine import quantize
from .grid import integer_grid, round_half_even
from .mac import fixed_point_multiplier


class Grid(NamedTuple):
    """An affine grid in the words of this book."""

    scale: float
    zero_point: int
    bits: int = 8
    signed: bool = False


def _checked(scale: float, zero_point: int, bits: int, signed: bool) -> Grid:
    n, p = integer_grid(bits, signed=signed)
    if not (0 < scale < float("inf")):
        raise ValueError(f"scale must be positive and finite, not {scale}")
    if int(zero_point) != zero_point or not n <= zero_point <= p:
        raise ValueError(f"zero_point must be an integer from {n} to {p}, not {zero_point}")
    return Grid(float(scale), int(zero_point), bits, signed)


def to_aimet(scale: float, zero_point: int, bits: int = 8, signed: bool = False) -> dict[str, Any]:
    """delta and offset = -z, and the ends of the range: min = delta (n + offset), eq. (7).

    >>> to_aimet(0.5, 3, bits=4)
    {'delta': 0.5, 'offset': -3, 'bitwidth': 4, 'signed': False, 'min': -1.5, 'max': 6.0}
    """
    scale, z, *_ = _checked(scale, zero_point, bits, signed)
    n, p = integer_grid(bits, signed=signed)
    ends = {"min": scale * (n - z), "max": scale * (p - z)}
    return {"delta": scale, "offset": -z, "bitwidth": bits, "signed": signed} | ends


def from_aimet(
    delta: float, offset: int, bitwidth: int = 8, signed: bool = False, **_: Any
) -> Grid:
    """The grid of an AIMET quantizer; min and max follow from the rest.

    >>> from_aimet(0.5, -3, 4)
    Grid(scale=0.5, zero_point=3, bits=4, signed=False)
    """
    return _checked(delta, -offset, bitwidth, signed)


def to_aimet_file(
    scale: float, zero_point: int, bits: int = 8, signed: bool = False
) -> dict[str, Any]:
    """The encoding in AIMET's files up to version 0.6.1, whose integers are always unsigned.

    >>> to_aimet_file(0.5, 0, signed=True)
    {'scale': 0.5, 'offset': -128, 'bitwidth': 8}
    """
    scale, z, *_ = _checked(scale, zero_point, bits, signed)
    n, _ = integer_grid(bits, signed=signed)
    return {"scale": scale, "offset": n - z, "bitwidth": bits}


def from_aimet_file(scale: float, offset: int, bitwidth: int = 8, signed: bool = False) -> Grid:
    """The grid of such an encoding, as unsigned integers or, where asked, as signed ones.

    >>> from_aimet_file(0.5, -128, signed=True)
    Grid(scale=0.5, zero_point=0, bits=8, signed=True)
    """
    return _checked(scale, integer_grid(bitwidth, signed=signed)[0] - offset, bitwidth, signed)


def to_brevitas(
    scale: float, zero_point: int, bits: int = 8, signed: bool = False
) -> dict[str, Any]:
    """scale, zero_point and bit_width of a Brevitas ``IntQuantTensor``; they mean the same.

    >>> to_brevitas(0.5, 3, bits=4)
    {'scale': 0.5, 'zero_point': 3, 'bit_width': 4, 'signed': False}
    """
    scale, z, *_ = _checked(scale, zero_point, bits, signed)
    return {"scale": scale, "zero_point": z, "bit_width": bits, "signed": signed}


def from_brevitas(scale: float, zero_point: int, bit_width: int = 8, signed: bool = False) -> Grid:
    """The grid of a Brevitas tensor.

    >>> from_brevitas(0.5, 3, 4)
    Grid(scale=0.5, zero_point=3, bits=4, signed=False)
    """
    return _checked(scale, zero_point, bit_width, signed)


def to_torch(scale: float, zero_point: int, bits: int = 8, signed: bool = False) -> dict[str, Any]:
    """The arguments of ``torch.fake_quantize_per_tensor_affine``, and of torchao's primitives.

    >>> to_torch(0.5, 3, bits=4)
    {'scale': 0.5, 'zero_point': 3, 'quant_min': 0, 'quant_max': 15}
    """
    scale, z, *_ = _checked(scale, zero_point, bits, signed)
    n, p = integer_grid(bits, signed=signed)
    return {"scale": scale, "zero_point": z, "quant_min": n, "quant_max": p}


def from_torch(scale: float, zero_point: int, quant_min: int, quant_max: int) -> Grid:
    """The grid with these ends; a range that is no full grid of some bits is refused.

    >>> from_torch(0.5, 3, 0, 15)
    Grid(scale=0.5, zero_point=3, bits=4, signed=False)
    """
    bits, signed = (quant_max - quant_min).bit_length(), quant_min < 0
    if integer_grid(bits, signed=signed) != (quant_min, quant_max):
        raise ValueError(
            f"{quant_min} to {quant_max} is no full grid; a narrow range has to be kept apart"
        )
    return _checked(scale, zero_point, bits, signed)


def to_onnx(scale: float, zero_point: int, bits: int = 8, signed: bool = False) -> dict[str, Any]:
    """The inputs of ``QuantizeLinear``; the type of the zero-point carries bits and sign.

    >>> to_onnx(0.5, 3)
    {'y_scale': 0.5, 'y_zero_point': 3, 'type': 'uint8'}

    Raises ValueError where ONNX has no integer of ``bits`` bits: it has 2, 4, 8 and 16.
    """
    scale, z, *_ = _checked(scale, zero_point, bits, signed)
    if bits not in (2, 4, 8, 16):
        raise ValueError(f"ONNX has integers of 2, 4, 8 and 16 bits, not {bits}; take the next")
    return {"y_scale": scale, "y_zero_point": z, "type": f"{'' if signed else 'u'}int{bits}"}


def from_onnx(y_scale: float, y_zero_point: int, type: str) -> Grid:
    """The grid of a ``QuantizeLinear``.

    >>> from_onnx(0.5, 3, "uint8")
    Grid(scale=0.5, zero_point=3, bits=8, signed=False)
    """
    return _checked(y_scale, y_zero_point, int(type.lstrip("uint")), not type.startswith("u"))


def to_tflite(scale: float, zero_point: int, bits: int = 8, signed: bool = False) -> dict[str, Any]:
    """scale and zero_point of a TFLite tensor, which is signed: unsigned grids move down.

    All integers move by 2^(b-1), the zero-point with them, so that the real numbers stay.

    >>> to_tflite(0.5, 3)
    {'scale': 0.5, 'zero_point': -125, 'bits': 8}
    """
    scale, z, *_ = _checked(scale, zero_point, bits, signed)
    return {"scale": scale, "zero_point": z - (0 if signed else 2 ** (bits - 1)), "bits": bits}


def from_tflite(scale: float, zero_point: int, bits: int = 8, signed: bool = True) -> Grid:
    """The grid of a TFLite tensor; with ``signed=False``, moved up to unsigned integers.

    >>> from_tflite(0.5, -125, signed=False)
    Grid(scale=0.5, zero_point=3, bits=8, signed=False)
    """
    return _checked(scale, zero_point + (0 if signed else 2 ** (bits - 1)), bits, signed)


# --- The integers that each stores ----------------------------------------------------------------

LIBRARIES = ("minq", "AIMET", "Brevitas", "torch.ao", "ONNX", "TFLite")


def round_half_away(x: Any) -> Any:
    """The nearest integer, ties away from zero, as C's ``round`` does.

    >>> round_half_away(np.array([0.5, 2.5, -0.5]))
    array([ 1.,  3., -1.])
    """
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def quantize_as(library: str, x: Any, grid: Grid) -> Any:
    """The integers that ``library`` stores for x: its order of rounding and adding, and its ties.

    x: float32, any shape. Returns int32 of the same shape. TFLite's are signed, see ``to_tflite``;
    the others' are those of ``grid``. AIMET and ONNX agree with ``quantize``.

    >>> grid = Grid(1.0, 3, bits=4)
    >>> [int(quantize_as(name, 0.5, grid)) for name in ("minq", "Brevitas", "TFLite")]
    [3, 4, -4]

    Raises ValueError for an unknown library.
    """
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, not {library!r}")
    scale, z, bits, signed = _checked(*grid)
    rounding: Callable = round_half_even
    if library == "Brevitas":
        rounding = lambda u: round_half_even(u + z) - z  # noqa: E731  add, then round
    elif library == "TFLite":
        rounding = round_half_away
    elif library == "torch.ao":
        x, scale = np.float32(x) * (1 / np.float32(scale)), 1.0
    x_int = quantize(x, scale, z, bits, signed=signed, rounding=rounding)
    return x_int - (2 ** (bits - 1) if library == "TFLite" and not signed else 0)


def requantize_tflite(acc: Any, scale_ratio: float) -> Any:
    """round(acc ratio) as TFLite's kernels do it by default: they round twice.

        SaturatingRoundingDoublingHighMul:   y = round(2^left acc multiplier / 2^31)    ties go up
        RoundingDivideByPOT:                 round(y / 2^right)                 ties away from zero

    acc: int32, any shape; scale_ratio below 2^31. Returns int64, neither clamped nor shifted. It is
    off by 1 from a single rounding at some numbers within 2^-(right + 1) of a tie: 1 / 4 becomes
    1 / 2, and that becomes 1. A ratio of 1/2 or more has right = 0, and is rounded once.

    >>> requantize_tflite([-2, -1, 0, 1, 2, 3], 0.25), requantize_tflite([-3, -1, 1, 3], 0.5)
    (array([-1,  0,  0,  1,  1,  1]), array([-1,  0,  1,  2]))
    """
    acc = np.asarray(acc, np.int64)
    multiplier, shift = fixed_point_multiplier(scale_ratio)
    left, right = max(31 - shift, 0), max(shift - 31, 0)
    if np.any(abs(acc) << left >= 2**31):
        raise ValueError("acc and scale_ratio are so large that TFLite's 32 bits would overflow")
    y = (acc * 2**left * multiplier + 2**30) >> 31
    if right > 31:
        return y * 0
    return np.sign(y) * ((abs(y) + ((1 << right) >> 1)) >> right)
