"""The C functions, one for each kind of operator: templates that types are filled into.

$x, $y: the types of input and output, uint8_t and its like; X, Y: the same in a function's name.
$p: the type of a patch, what a layer reads at once. It is wider than bytes: vector units multiply
16 bits and add up pairs of products in one instruction, and have none for uint8_t times int8_t.
$w, $W: the type that weights are stored in, and i8, i4 or i16.
"""

from __future__ import annotations

import re

from minq.deploy.c.constants import short
from minq.deploy.c.functions import FUNCTIONS

BASE = """\
/* Constants of a requantization: one number, or one for each channel where "each" is 1. */
typedef struct {
    const int32_t *multiplier, *multiplier2; /* the second one of a sum of two tensors */
    const uint8_t *shift;
    const int64_t *offset; /* may be absent */
    const int32_t *low, *high; /* the ends of the grid, and of a ReLU */
    int32_t zero;              /* zero-point of the results */
    uint8_t each, each_offset, each_bound;
} rescaling;

/* Shifts of negative numbers must keep the sign, as they do in every compiler known to us. */
typedef char shifts_keep_the_sign[(-5 >> 1) == -3 ? 1 : -1];

/* value / 2^shift, rounded to nearest, ties $how; +-2^30 where that is beyond, as no grid is */
static int32_t rounded_shift(int64_t value, int32_t shift)
{
    const int32_t most = (int32_t)1 << 30;
    if (shift > 0) {
        const int64_t half = (int64_t)1 << (shift - 1), odd = $odd;
        value = (value + half - 1 + odd) >> shift;
    }
    return (int32_t)(value < -most ? -most : value > most ? most : value);
}

/* The same where the shift is above 32, as nearly always: the upper 32 bits decide. */
static inline int32_t rounded_upper(int64_t value, int32_t shift)
{
    const int32_t half = (int32_t)1 << (shift - 33), odd = $upper;
    return ((int32_t)((value - 1 + odd) >> 32) + half) >> (shift - 32);
}

/* An accumulator times its multiplier becomes an integer of the next grid. */
static inline int32_t requantize(int64_t product, const rescaling *r, int32_t channel)
{
    const int32_t k = r->shift[r->each ? channel : 0], b = r->each_bound ? channel : 0;
    if (r->offset)
        product += r->offset[r->each_offset ? channel : 0];
    const int32_t y = (k > 32 ? rounded_upper(product, k) : rounded_shift(product, k)) + r->zero;
    return y < r->low[b] ? r->low[b] : y > r->high[b] ? r->high[b] : y;
}
"""

TIES = {
    "half_even": ("to even", "(value >> shift) & 1", "(int32_t)(value >> 32) >> (shift - 32) & 1"),
    "half_up": ("up", "1", "1"),
}
"""Of a rounding: its name; "odd", 1 where a tie goes up, of a number and of its upper half."""

WEIGHT_I4 = """\
/* A byte of a row of 4-bit weights has two, half a row apart: the first in its lower four bits. */
static inline int32_t lower(int8_t pair)
{
    return ((pair & 15) ^ 8) - 8; /* with its sign */
}

static inline int32_t upper(int8_t pair)
{
    return pair >> 4;
}

/* Weight i of a row of n */
static int32_t weight_i4(const int8_t *row, int32_t i, int32_t n)
{
    const int32_t half = (n + 1) / 2;
    return i < half ? lower(row[i]) : upper(row[i - half]);
}
"""

DOT = """\
/* sum + x . w, the inner loop of every layer */
static $a dot_X_W(const $p *x, const $w *w, int32_t n, $a sum)
{
    for (int32_t i = 0; i < n; i++)
        sum += x[i] * w[i];
    return sum;
}

/* The same for four rows of weights */
static void four_X_W(const $p *x, const $w *w, int32_t row, int32_t n, const $a *bias, $a *sum)
{
    const $w *w1 = w + row, *w2 = w1 + row, *w3 = w2 + row;
    $a a = bias[0], b = bias[1], c = bias[2], d = bias[3];
    for (int32_t i = 0; i < n; i++) {
        a += x[i] * w[i];
        b += x[i] * w1[i];
        c += x[i] * w2[i];
        d += x[i] * w3[i];
    }
    sum[0] = a, sum[1] = b, sum[2] = c, sum[3] = d;
}
"""

DOT_I4 = """\
/* sum + x . w, the inner loop of every layer; a byte of w holds two weights */
static int32_t dot_X_i4(const $p *x, const int8_t *w, int32_t n, int32_t sum)
{
    for (int32_t i = 0; i < n; i++)
        sum += x[i] * weight_i4(w, i, n);
    return sum;
}

/* The same for four rows of weights */
static void four_X_i4(const $p *x, const int8_t *w, int32_t row, int32_t n, const int32_t *bias,
                      int32_t *sum)
{
    const int32_t half = (n + 1) / 2, both = n - half;
    const int8_t *w1 = w + row, *w2 = w1 + row, *w3 = w2 + row;
    const $p *y = x + half;
    int32_t a = bias[0], b = bias[1], c = bias[2], d = bias[3];
    for (int32_t i = 0; i < both; i++) {
        const int32_t first = x[i], second = y[i];
        a += first * lower(w[i]); /* a product a line: one instruction multiplies and adds */
        a += second * upper(w[i]);
        b += first * lower(w1[i]);
        b += second * upper(w1[i]);
        c += first * lower(w2[i]);
        c += second * upper(w2[i]);
        d += first * lower(w3[i]);
        d += second * upper(w3[i]);
    }
    if (both < half) {
        a += x[both] * lower(w[both]);
        b += x[both] * lower(w1[both]);
        c += x[both] * lower(w2[both]);
        d += x[both] * lower(w3[both]);
    }
    sum[0] = a, sum[1] = b, sum[2] = c, sum[3] = d;
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
        text = re.sub(r",\s+const rescaling \*r\)", ")", text).replace(", r);", ");")
    for part in ("store", "filters"):
        text = text.replace(f"{part}_S(", f"{types.get(part)}(")
    return fill(text.replace(f"{kind}_S(", f"{kind}_{suffix}("), types)


def fill(text: str, types: dict[str, str]) -> str:
    """$x and its like by C types; X and W in names by their short forms."""
    w, patch = types.get("W", ""), short(types.get("p", ""))
    text = re.sub(r"\b(dot|four)_X", rf"\1_{patch}", text).replace("_W(", f"_{w}(")
    one = r"weight_i4(\1, \2, inputs)" if w == "i4" else r"(\1)[\2]"
    text = re.sub(r"WEIGHT\((.*?), (.*?)\)", one, text)
    text = text.replace("$row", ROW.get(types.get("W", ""), ""))
    types = {"least": "INT32_MIN", "a": "int32_t"} | types
    for key in sorted(types, key=len, reverse=True):
        text = text.replace(f"${key}", types[key])
    return text
