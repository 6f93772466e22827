"""Floats of few bits: another grid for the same formula, with steps that grow with the number.

A code of 1 + E + M bits holds a sign, an exponent field e and a mantissa field m:

    x = (-1)^sign 2^(e - bias) (1 + m / 2^M)       e > 0: normal
    x = (-1)^sign 2^(1 - bias) (m / 2^M)           e = 0: subnormal, evenly spaced around 0

Between two powers of two the grid is uniform, and from one power to the next its step doubles.
Rounding is half to even, what lies beyond the largest number becomes the largest number, and a
scale s places the grid as in ``minq.affine``:

    x_hat = s step round(x / (s step)),    step = 2^(max(floor(log2 |x / s|), e_min) - M)

``axis`` and ``group`` mean what they mean there. In the microscaling formats (MX) of the Open
Compute Project, 32 numbers share a scale that is a power of two, stored in 8 bits (E8M0).

NF4 of QLoRA (Dettmers et al. 2023) goes further: 16 levels where a normal distribution has as many
values between any two, for weights only, in blocks of 64 whose largest is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from array_api_compat import is_array_api_obj, is_torch_array

from minq import ranges
from minq._checks import (
    Array,
    as_float,
    check_bits,
    clamp,
    compute_dtype,
    like,
    namespace,
    saturating_cast,
)
from minq.granularity import Granularity
from minq.grid import Grid, Rounding, check_scale, round_half_even

BLOCK = 32
"""Numbers that share a scale in the MX formats."""


@dataclass(frozen=True)
class FloatFormat:
    """How the bits of a float are meant; float32 and float16 are such formats too.

    special: what the largest codes stand for. "ieee": the largest exponent is for infinity and NaN.
    "nan": only the code of all ones is NaN. "none": every code is a finite number.
    signed: False for scales, which have no sign, no zero and no subnormals.

    >>> E4M3.bits, E4M3.bias, E4M3.largest, E4M3.smallest
    (8, 7, 448.0, 0.001953125)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    special: str = "none"
    signed: bool = True

    def __post_init__(self) -> None:
        if self.special not in ("ieee", "nan", "none"):
            raise ValueError(f"special must be ieee, nan or none, not {self.special!r}")
        if not (1 <= self.exponent_bits <= 8 and 0 <= self.mantissa_bits <= 23):
            raise ValueError(
                f"a float here has 1 to 8 exponent bits and 0 to 23 mantissa bits, "
                f"not {self.exponent_bits} and {self.mantissa_bits}"
            )

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is taken off the exponent field: half of its range."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def largest(self) -> float:
        """The largest finite number: the code below those of infinity and NaN."""
        codes = 2 ** (self.exponent_bits + self.mantissa_bits)
        special = {"ieee": 2**self.mantissa_bits, "nan": 1, "none": 0}[self.special]
        return float(decode(np.array(codes - special - 1), self))

    @property
    def smallest(self) -> float:
        """The smallest number above 0; a float's neighbours of 0 are subnormal."""
        return float(decode(np.array(int(self.signed)), self))


E4M3 = FloatFormat("FP8 E4M3", 4, 3, "nan")
E5M2 = FloatFormat("FP8 E5M2", 5, 2, "ieee")
E2M1 = FloatFormat("FP4 E2M1", 2, 1)
E8M0 = FloatFormat("E8M0", 8, 0, "nan", signed=False)
FORMATS = (E4M3, E5M2, E2M1, E8M0)


def decode(codes: Array, format: FloatFormat) -> np.ndarray:
    """The numbers that codes stand for, float64; NaN and infinities included.

    >>> decode([0b0_01_0, 0b1_11_1], E2M1)  # sign, exponent, mantissa
    array([ 1., -6.])
    """
    codes = np.asarray(codes)
    if not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0 or codes.max() >> format.bits:
        raise ValueError(f"codes of {format.name} are whole numbers from 0 to {2**format.bits - 1}")
    m = (codes & (2**format.mantissa_bits - 1)) / 2**format.mantissa_bits
    e = (codes >> format.mantissa_bits) & (2**format.exponent_bits - 1)
    normal = (e > 0) | (not format.signed)
    size = np.where(normal, np.ldexp(1 + m, e - format.bias), np.ldexp(m, 1 - format.bias))
    if format.special == "ieee":
        top = e == 2**format.exponent_bits - 1
        size = np.where(top, np.where(m == 0, np.inf, np.nan), size)
    elif format.special == "nan":
        without_sign = codes & (2 ** (format.exponent_bits + format.mantissa_bits) - 1)
        all_ones = 2 ** (format.exponent_bits + format.mantissa_bits) - 1
        size = np.where(without_sign == all_ones, np.nan, size)
    negative = codes >> (format.exponent_bits + format.mantissa_bits)
    return np.where(negative == 1, -size, size)


def float_grid(format: FloatFormat) -> np.ndarray:
    """All finite numbers of a format of up to 16 bits, ascending, float64; 0 once.

    Raises ValueError for more bits: the grid of float32 has four billion numbers.

    >>> float_grid(E2M1)
    array([-6. , -4. , -3. , -2. , -1.5, -1. , -0.5,  0. ,  0.5,  1. ,  1.5,
            2. ,  3. ,  4. ,  6. ])
    """
    if format.bits > 16:
        raise ValueError(f"{format.name} has 2^{format.bits} codes; only up to 16 bits are listed")
    values = decode(np.arange(2**format.bits), format)
    return np.unique(values[np.isfinite(values)] + 0.0)


# --- Scales ---------------------------------------------------------------------------------------


def float_scale(
    x: Array, format: FloatFormat, *, axis: int | None = None, group: int | None = None
) -> Array:
    """The scale that puts the largest |x| on the largest number: s = max |x| / largest.

    What is all zero gets scale 1. Shape as ``Granularity.scale_shape``.

    >>> float(float_scale([-3.0, 1.0], E2M1))
    0.5
    """
    _check_signed(format)
    most = _largest(x, axis, group)
    xp = namespace(most)
    return xp.where(most > 0, most / format.largest, xp.ones_like(most))


def mx_scale(
    x: Array, format: FloatFormat = E2M1, *, axis: int | None = None, block: int = BLOCK
) -> Array:
    """The shared scale of each MX block, a power of two from 2^-127 to 2^127:

        s = 2^(floor(log2 max |x|) - e_max),    e_max the exponent of the format's largest number

    The largest |x / s| of a block lies in [2^e_max, 2^(e_max + 1)), so it may lie above the largest
    number, and is then clamped to it. A block that is all zero gets scale 1.

    >>> mx_scale([6.5, 1.0, 0.2, 0.1], E2M1, block=2)
    array([1.     , 0.03125])
    """
    _check_signed(format)
    most = _largest(x, axis, block)
    xp = namespace(most)
    e_max = math.floor(math.log2(format.largest))
    scale = power_below(most) * 2.0**-e_max
    return xp.where(most > 0, clamp(scale, 2.0**-127, 2.0**127), xp.ones_like(most))


def _largest(x: Array, axis: int | None, group: int | None) -> Array:
    low, high = ranges.min_max(x, axis=axis, group=group)
    return namespace(low).maximum(abs(low), abs(high))


def power_below(x: Array) -> Array:
    """2^floor(log2 |x|), exactly, since x = mantissa 2^exponent, |mantissa| in [1/2, 1). 0: NaN."""
    mantissa = x.frexp()[0] if is_torch_array(x) else np.frexp(x)[0]
    with np.errstate(invalid="ignore"):
        return x / (2 * mantissa)


# --- Quantize and back ----------------------------------------------------------------------------


def fake_quantize_float(
    x: Array,
    format: FloatFormat,
    scale: Array = 1.0,
    *,
    axis: int | None = None,
    group: int | None = None,
    rounding: Rounding = round_half_even,
) -> Array:
    """Each x to the nearest number of a float format times ``scale``, ties to the even mantissa.

    What lies beyond the largest number is clamped to it: no infinity, no NaN comes out.

    Args:
        x: float, any shape.
        format: of the numbers.
        scale: positive, of the shape that ``minq.granularity`` names.
        axis: of the channels, where they have scales of their own.
        group: so many values of a channel share a scale.
        rounding: of ties; others for training.

    Returns:
        The dtype and shape of x.

    Raises:
        TypeError, ValueError: for NaN, infinite, empty or integer input, a scale that is not
            positive or does not fit in shape, and for E8M0, which holds scales only.

    >>> fake_quantize_float([0.2, 0.25, 0.75, 2.6, 100.0], E2M1)
    array([0., 0., 1., 3., 6.])
    """
    _check_signed(format)
    given = x.dtype if is_array_api_obj(x) else np.float64
    x = as_float(x)
    xp, dtype = namespace(x), compute_dtype(x)
    scale = check_scale(like(scale, x, dtype, "scale"))
    scale = Granularity(axis, group).align(scale, x.shape)
    with np.errstate(over="ignore"):
        u = xp.astype(x, dtype, copy=False) / scale
    u = clamp(u, -format.largest, format.largest)
    step = _step(u.detach() if is_torch_array(u) else u, format)
    return saturating_cast(scale * (step * rounding(u / step)), given)


def _step(u: Array, format: FloatFormat) -> Array:
    """The distance between the neighbours of u: 2^(max(floor(log2 |u|), e_min) - M)."""
    power, least = power_below(u), 2.0 ** (1 - format.bias)
    return namespace(u).where(power > least, power, least) * 2.0**-format.mantissa_bits


def mx_fake_quantize(
    x: Array, format: FloatFormat = E2M1, *, axis: int | None = None, block: int = BLOCK
) -> Array:
    """An MX format and back, MXFP4 by default: each block on the grid of its ``mx_scale``.

    >>> mx_fake_quantize([6.5, 1.0, 0.2, 0.1], E2M1, block=2)
    array([6.     , 1.     , 0.1875 , 0.09375])
    """
    scale = mx_scale(x, format, axis=axis, block=block)
    return fake_quantize_float(x, format, scale, axis=axis, group=block)


# --- Levels where a normal distribution is dense --------------------------------------------------


def normal_levels(bits: int = 4) -> np.ndarray:
    """The 2^b levels of NormalFloat, ascending from -1 to 1, 0 among them, float64.

    They are quantiles Q of the standard normal distribution, at probabilities p that are evenly
    spaced on each side. With N = 2^(b-1), there are N positive levels, N - 1 negative ones, and 0:

        Q(p) / Q(delta)     at the first N of N + 1 values of p, evenly from delta to 1/2
        -Q(p) / Q(delta)    at the first N - 1 of N
        delta = 1 - (1 / (4N - 2) + 1 / (4N)) / 2, between the middles of the last bins

    Args:
        bits: b, from 2 to 8.

    Returns:
        (2^b,).

    >>> normal_levels(2).round(3)
    array([-1.   ,  0.   ,  0.436,  1.   ])
    """
    if not 2 <= check_bits(bits) <= 8:
        raise ValueError(f"bits must be from 2 to 8, not {bits}")
    half = 2 ** (bits - 1)
    delta = 1 - (1 / (4 * half - 2) + 1 / (4 * half)) / 2
    below, above = (
        [NormalDist().inv_cdf(p) for p in np.linspace(delta, 0.5, n)[:-1]] for n in (half, half + 1)
    )
    levels = np.array([*(-v for v in below), 0.0, *reversed(above)])
    return levels / levels[-1]


class NF4Grid(Grid):
    """The 16 levels of NF4 in place of integers from -1 to 1; the scale is the largest |x|.

    Given where bits are, ``weights=minq.floats.NF4``. Its levels are no integers, so that a network
    on them stays a simulation.
    """

    __slots__ = ()

    @property
    def bits(self) -> int:
        return 4

    @property
    def real(self) -> str:
        return "levels that are no integers"

    def quantize(
        self, x: Array, scale: Array, zero_point: Array, rounding: Rounding = round_half_even
    ) -> Array:
        """The level next to x / s. Halfway between two it goes to the lower one.

        Nothing is searched: bins of 1/16 are narrower than the levels are apart, so that in each at
        most one next level begins.
        """
        u = self.clamp(x / scale)
        xp = namespace(u)
        begins, levels = (like(t, u, u.dtype, "levels") for t in _NF4_BINS)
        flat = xp.reshape(u.detach() if is_torch_array(u) else u, (-1,))
        bins = clamp(xp.astype((flat + 1) * 16, xp.int32), 0, 32)
        above = xp.astype(flat > xp.take(begins, bins, axis=0), xp.int32)
        level = xp.reshape(xp.take(levels, 2 * bins + above, axis=0), u.shape)
        return u + (level - u).detach() if getattr(u, "requires_grad", False) else level


def _in_bins(levels: np.ndarray) -> tuple[list[float], list[float]]:
    """Of each bin of 1/16 from -1 to 1 where the next level begins, and the two levels in it."""
    middles = (levels[1:] + levels[:-1]) / 2
    first = np.searchsorted(middles, np.arange(33) / 16 - 1)
    both = np.append(levels, 1.0)[np.stack([first, first + 1], 1)]
    return np.append(middles, np.inf)[first].tolist(), both.ravel().tolist()


_NF4_BINS = _in_bins(normal_levels(4))

NF4 = NF4Grid(-1, 1)
"""The grid of QLoRA's weights."""


def nf4_fake_quantize(x: Array, *, axis: int | None = None, block: int = 64) -> Array:
    """NF4 and back: each block to the levels of NF4 times its largest |x|.

    Args:
        x: float, any shape.
        axis: of the channels, whose values are cut into blocks; by default all are one row.
        block: so many values share a scale.

    Returns:
        The dtype and shape of x.

    Raises:
        TypeError, ValueError: as ``fake_quantize_float``.

    >>> nf4_fake_quantize([4.0, -1.0, 0.3]).round(3)
    array([ 4.   , -1.138,  0.318])
    """
    given = x.dtype if is_array_api_obj(x) else np.float64
    most = _largest(x := as_float(x), axis, block)
    xp, dtype = namespace(x), compute_dtype(x)
    scale = xp.where(most > 0, most, xp.ones_like(most))
    scale = Granularity(axis, block).align(scale, x.shape)
    return saturating_cast(NF4.fake_quantize(xp.astype(x, dtype), scale, 0.0), given)


def _check_signed(format: FloatFormat) -> None:
    if not isinstance(format, FloatFormat):
        raise TypeError(f"format must be a FloatFormat such as minq.floats.E4M3, not {format!r}")
    if not format.signed:
        raise ValueError(f"{format.name} holds scales only; take E4M3, E5M2 or E2M1")
