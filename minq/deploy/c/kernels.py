"""The C functions, one for each kind of operator: templates that types are filled into.

$x, $y: the types of input and output, uint8_t and its like; X, Y: the same in a function's name.
$w, $W: the type that weights are stored in, and i8, i4 or i16.
"""

from __future__ import annotations

import re

from minq.deploy.c.functions import FUNCTIONS

BASE = """\
/* Constants of a requantization: one number, or one for each channel where "each" is 1. */
typedef struct {
    const int32_t *multiplier, *multiplier2; /* the second one of a sum of two tensors */
    const uint8_t *shift;
    const int64_t *offset;
    const int32_t *low, *high; /* the ends of the grid, and of a ReLU */
    int32_t zero;              /* zero-point of the results */
    uint8_t each, each_offset, each_bound;
} rescaling;

/* Shifts of negative numbers must keep the sign, as they do in every compiler known to us. */
typedef char shifts_keep_the_sign[(-5 >> 1) == -3 ? 1 : -1];

/* value / 2^shift, rounded to nearest, ties $ties */
static int64_t rounded_shift(int64_t value, uint8_t shift)
{
    if (shift == 0)
        return value;
    const int64_t one = 1, half = one << (shift - 1);
    const int64_t below = value >> shift, rest = value & (2 * (half - 1) + 1);
    return below + ($up);
}

/* An accumulator times its multiplier becomes an integer of the next grid. */
static int32_t requantize(int64_t product, const rescaling *r, int32_t channel)
{
    const int32_t c = r->each ? channel : 0, b = r->each_bound ? channel : 0;
    const int64_t total = product + r->offset[r->each_offset ? channel : 0];
    const int64_t y = rounded_shift(total, r->shift[c]) + r->zero;
    return (int32_t)(y < r->low[b] ? r->low[b] : y > r->high[b] ? r->high[b] : y);
}
"""

TIES = {
    "half_even": ("to even", "rest > half || (rest == half && (below & 1))"),
    "half_up": ("up", "rest >= half"),
}

WEIGHT = {
    "i4": """\
/* Number i of a row of 4-bit weights, two to a byte, the first in the lower half */
static int32_t weight_i4(const uint8_t *row, int32_t i)
{
    return (((row[i / 2] >> (4 * (i & 1))) & 15) ^ 8) - 8;
}
""",
    "i8": """\
static int32_t weight_i8(const int8_t *row, int32_t i)
{
    return row[i];
}
""",
}
WEIGHT["i16"] = WEIGHT["i8"].replace("i8", "i16").replace("int8", "int16")
WEIGHT["f"] = (
    WEIGHT["i8"].replace("i8", "f").replace("int8_t", "float").replace("int32_t w", "float w")
)

DOT = """\
/* sum + x . w, the inner loop of every layer */
static $a dot_X_W(const $x *x, const $w *w, int32_t n, $a sum)
{
    for (int32_t i = 0; i < n; i++)
        sum += x[i] * w[i];
    return sum;
}
"""

DOT_I4 = """\
/* sum + x . w, the inner loop of every layer; a byte holds two weights */
static int32_t dot_X_i4(const $x *x, const uint8_t *w, int32_t n, int32_t sum)
{
    for (int32_t i = 0; i < n / 2; i++)
        sum += x[2 * i] * (((w[i] & 15) ^ 8) - 8) + x[2 * i + 1] * (((w[i] >> 4) ^ 8) - 8);
    if (n & 1)
        sum += x[n - 1] * weight_i4(w, n - 1);
    return sum;
}
"""

WINDOW = """\
/* A window that moves over a picture; numbers of a pixel lie side by side. */
typedef struct {
    int32_t height, width, channels;             /* of the input */
    int32_t out_height, out_width, out_channels; /* of the output */
    int32_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x;
    int32_t top, left; /* padding */
    int32_t groups, zero; /* zero-point of the input: what padding is */
} window;
"""

DIVIDE = """\
/* a / b, b > 0, rounded to nearest, ties to even */
static int64_t divide_half_even(int64_t a, int64_t b)
{
    int64_t quotient = a / b, rest = a % b;
    if (rest < 0) {
        quotient--;
        rest += b;
    }
    return quotient + (2 * rest > b || (2 * rest == b && (quotient & 1)));
}
"""

SQRT = """\
/* floor(sqrt(x)), bit by bit */
static int64_t integer_sqrt(int64_t x)
{
    int64_t root = 0;
    for (int64_t bit = (int64_t)1 << 26; bit; bit >>= 1)
        if ((root + bit) * (root + bit) <= x)
            root += bit;
    return root;
}
"""

COPYING = """\
typedef struct {
    int32_t count[5], from[5], to[5];
} copying;
"""

STORES = {
    True: r"($y)requantize((int64_t)\1 * r->multiplier[r->each ? \2 : 0], r, \2)",
    False: r"\1",
}

ROW = {"i4": "((inputs + 1) / 2)", "i8": "inputs", "i16": "inputs", "f": "inputs"}


def code(kind: str, types: dict[str, str], suffix: str, store: str) -> str:
    """A function for these types, {placeholder: type}, of that name's end.

    store: what becomes of an accumulator, of \\1, and its channel, \\2.
    """
    text = re.sub(r"STORE\(([^,]+), ([^)]+)\)", store, FUNCTIONS[kind])
    if store == STORES[False]:
        text = re.sub(r",\s+const rescaling \*r\)", ")", text)
    return fill(text.replace(f"{kind}_S(", f"{kind}_{suffix}("), types)


def fill(text: str, types: dict[str, str]) -> str:
    """$x and its like by C types; X and W in names by their short forms."""
    x, w = (re.sub("int|_t|loat", "", types.get(k, "")) for k in ("x", "W"))
    x = x if x[:1] in ("u", "f", "") else f"i{x}"
    text = text.replace("dot_X_", f"dot_{x}_").replace("weight_W", f"weight_{types.get('W', '')}")
    text = text.replace("_W(", f"_{types.get('W', '')}(")
    text = text.replace("$row", ROW.get(types.get("W", ""), ""))
    types = {"least": "INT32_MIN", "a": "int32_t"} | types
    for key in sorted(types, key=len, reverse=True):
        text = text.replace(f"${key}", types[key])
    return text
