"""The C functions of operators, as templates: see ``minq.deploy.c.kernels``.

Each writes its results one after another; STORE is what becomes of a sum in a channel.
"""

FUNCTIONS = {
    "store": """\
/* Sums of n channels from "first" on become results. */
static void store_S(const $a *sum, $y *restrict y, int32_t n, int32_t first, const rescaling *r)
{
    for (int32_t k = 0; k < n; k++)
        y[k] = STORE(sum[k], first + k);
}
""",
    "filters": """\
/* Rows of w, from "first" to "end" - 1, times a patch, four at a time: each number of the patch is
   loaded once for four products */
static void filters_S(const $p *patch, $y *restrict y, const $w *w, const $a *bias,
                      int32_t inputs, int32_t first, int32_t end, const rescaling *r)
{
    for (int32_t o = first; o < end; o += 4) {
        const int32_t left = end - o, n = left < 4 ? left : 4;
        $a sum[4];
        if (n == 4)
            four_X_W(patch, w + o * $row, $row, inputs, bias + o, sum);
        else
            for (int32_t k = 0; k < n; k++)
                sum[k] = dot_X_W(patch, w + (o + k) * $row, inputs, bias[o + k]);
        store_S(sum, y + (o - first), n, o, r);
    }
}
""",
    "linear": """\
/* y = W x + b for each row, also for each pixel: a convolution with a kernel of 1 x 1 */
static void linear_S(const $x *x, $y *restrict y, $p *restrict patch, const $w *w, const $a *bias,
                     int32_t rows, int32_t inputs, int32_t outputs, const rescaling *r)
{
    for (int32_t i = 0; i < rows; i++, x += inputs, y += outputs) {
        for (int32_t k = 0; k < inputs; k++)
            patch[k] = x[k];
        filters_S(patch, y, w, bias, inputs, 0, outputs, r);
    }
}
""",
    "conv2d": """\
/* A convolution: each window is gathered into a patch, whose product with each filter is a sum. */
static void conv2d_S(const $x *x, $y *restrict y, $p *restrict patch, const $w *w, const $a *bias,
                     const window *s, const rescaling *r)
{
    const int32_t depth = s->channels / s->groups, filters = s->out_channels / s->groups;
    const int32_t inputs = s->kernel_height * s->kernel_width * depth;
    for (int32_t oy = 0; oy < s->out_height; oy++)
        for (int32_t ox = 0; ox < s->out_width; ox++)
            for (int32_t g = 0; g < s->groups; g++, y += filters) {
                $p *p = patch;
                for (int32_t ky = 0; ky < s->kernel_height; ky++) {
                    const int32_t iy = oy * s->stride_y - s->top + ky * s->dilation_y;
                    for (int32_t kx = 0; kx < s->kernel_width; kx++) {
                        const int32_t ix = ox * s->stride_x - s->left + kx * s->dilation_x;
                        if (iy < 0 || iy >= s->height || ix < 0 || ix >= s->width) {
                            for (int32_t c = 0; c < depth; c++)
                                *p++ = ($p)s->zero;
                            continue;
                        }
                        const $x *pixel = x + (iy * s->width + ix) * s->channels + g * depth;
                        for (int32_t c = 0; c < depth; c++)
                            *p++ = pixel[c];
                    }
                }
                filters_S(patch, y, w, bias, inputs, g * filters, (g + 1) * filters, r);
            }
}
""",
    "depthwise": """\
/* A convolution of each channel with a filter of its own, LANES channels at a time; the taps of
   these filters are gathered once, a row of LANES numbers for each place of the window. */
static void depthwise_S(const $x *x, $y *restrict y, $p *restrict taps, const $w *w, const $a *bias,
                        const window *s, const rescaling *r)
{
    enum { LANES = 16 };
    const int32_t inputs = s->channels, places = s->kernel_height * s->kernel_width;
    for (int32_t first = 0; first < inputs; first += LANES) {
        const int32_t left = inputs - first, n = left < LANES ? left : LANES;
        for (int32_t t = 0; t < places; t++)
            for (int32_t c = 0; c < n; c++)
                taps[t * LANES + c] = ($p)WEIGHT(w + t * $row, first + c);
        $y *out = y + first;
        for (int32_t oy = 0; oy < s->out_height; oy++)
            for (int32_t ox = 0; ox < s->out_width; ox++, out += inputs) {
                $a sum[LANES];
                const $p *tap = taps;
                for (int32_t c = 0; c < n; c++)
                    sum[c] = bias[first + c];
                for (int32_t ky = 0; ky < s->kernel_height; ky++) {
                    const int32_t iy = oy * s->stride_y - s->top + ky * s->dilation_y;
                    for (int32_t kx = 0; kx < s->kernel_width; kx++, tap += LANES) {
                        const int32_t ix = ox * s->stride_x - s->left + kx * s->dilation_x;
                        if (iy < 0 || iy >= s->height || ix < 0 || ix >= s->width) {
                            for (int32_t c = 0; c < n; c++)
                                sum[c] += ($a)s->zero * tap[c];
                            continue;
                        }
                        const $x *pixel = x + (iy * s->width + ix) * inputs + first;
                        for (int32_t c = 0; c < n; c++)
                            sum[c] += pixel[c] * tap[c];
                    }
                }
                store_S(sum, out, n, first, r);
            }
    }
}
""",
    "matmul": """\
/* y = A B for each of a stack of matrices; the columns of B lie one after another */
static void matmul_S(const $x *a, const $z *b, $y *y, int32_t stack, int32_t rows, int32_t columns,
                     int32_t inner, int32_t zero_a, int32_t zero_b, const rescaling *r)
{
    for (int32_t m = 0; m < stack; m++, a += rows * inner, b += columns * inner)
        for (int32_t i = 0; i < rows; i++)
            for (int32_t j = 0; j < columns; j++) {
                $a sum = 0;
                for (int32_t k = 0; k < inner; k++)
                    sum += (a[i * inner + k] - zero_a) * (b[j * inner + k] - zero_b);
                *y++ = STORE(sum, j);
            }
}
""",
    "resample": """\
/* Means, average pooling, interpolation: y = R x C with whole numbers in R and C, for each channel.
   Each row of R has "taps" numbers, from column "start" on; the rows of C' likewise. */
static void resample_S(const $x *x, $y *y, const window *s, int32_t zero,
                       const int16_t *start_y, const int32_t *factor_y, int32_t taps_y,
                       const int16_t *start_x, const int32_t *factor_x, int32_t taps_x,
                       const rescaling *r)
{
    for (int32_t oy = 0; oy < s->out_height; oy++)
        for (int32_t ox = 0; ox < s->out_width; ox++)
            for (int32_t c = 0; c < s->channels; c++) {
                $a sum = 0;
                for (int32_t i = 0; i < taps_y; i++)
                    for (int32_t j = 0; j < taps_x; j++) {
                        const int32_t pixel = (start_y[oy] + i) * s->width + start_x[ox] + j;
                        sum += factor_y[oy * taps_y + i] * factor_x[ox * taps_x + j] *
                               (x[pixel * s->channels + c] - zero);
                    }
                *y++ = STORE(sum, c);
            }
}
""",
    "rescale": """\
/* From one grid to another, number by number */
static void rescale_S(const $x *x, $y *y, int32_t n, int32_t channels, const rescaling *r)
{
    for (int32_t i = 0; i < n; i += channels)
        for (int32_t c = 0; c < channels; c++) {
            const int64_t product = (int64_t)x[i + c] * r->multiplier[r->each ? c : 0];
            y[i + c] = ($y)requantize(product, r, c);
        }
}
""",
    "add": """\
/* The sum of two tensors on grids of their own: one rounding */
static void add_S(const $x *a, const $z *b, $y *y, int32_t n, int32_t channels, const rescaling *r)
{
    for (int32_t i = 0; i < n; i += channels)
        for (int32_t c = 0; c < channels; c++) {
            const int32_t k = r->each ? c : 0;
            const int64_t total = (int64_t)a[i + c] * r->multiplier[k] +
                                  (int64_t)b[i + c] * r->multiplier2[k];
            y[i + c] = ($y)requantize(total, r, c);
        }
}
""",
    "table": """\
/* A function of one number: looked up */
static void table_S(const $x *x, $y *y, int32_t n, const $y *values, int32_t low)
{
    for (int32_t i = 0; i < n; i++)
        y[i] = values[x[i] - low];
}
""",
    "lookup": """\
/* Rows of a table: an embedding; an index must be below the number of rows */
static void lookup_S(const $x *index, $y *y, int32_t n, int32_t width, const $y *rows)
{
    for (int32_t i = 0; i < n; i++)
        for (int32_t c = 0; c < width; c++)
            *y++ = rows[index[i] * width + c];
}
""",
    "max_pool": """\
/* The largest of each window; beyond the border is nothing */
static void max_pool_S(const $x *x, $y *y, const window *s)
{
    for (int32_t oy = 0; oy < s->out_height; oy++)
        for (int32_t ox = 0; ox < s->out_width; ox++)
            for (int32_t c = 0; c < s->channels; c++) {
                $a most = $least;
                for (int32_t ky = 0; ky < s->kernel_height; ky++)
                    for (int32_t kx = 0; kx < s->kernel_width; kx++) {
                        const int32_t iy = oy * s->stride_y - s->top + ky * s->dilation_y;
                        const int32_t ix = ox * s->stride_x - s->left + kx * s->dilation_x;
                        if (iy < 0 || iy >= s->height || ix < 0 || ix >= s->width)
                            continue;
                        const $a value = x[(iy * s->width + ix) * s->channels + c];
                        if (value > most)
                            most = value;
                    }
                *y++ = ($y)most;
            }
}
""",
    "move": """\
/* Numbers from one place to another: nested loops, with a step in each tensor */
static void move_S(const $x *x, $y *y, const copying *m)
{
    const int32_t *n = m->count, *f = m->from, *t = m->to;
    for (int32_t a = 0; a < n[0]; a++)
        for (int32_t b = 0; b < n[1]; b++)
            for (int32_t c = 0; c < n[2]; c++)
                for (int32_t d = 0; d < n[3]; d++)
                    for (int32_t e = 0; e < n[4]; e++)
                        y[a * t[0] + b * t[1] + c * t[2] + d * t[3] + e * t[4]] =
                            x[a * f[0] + b * f[1] + c * f[2] + d * f[3] + e * f[4]];
}
""",
    "fill": """\
static void fill_S($y *y, int32_t n, int32_t value)
{
    for (int32_t i = 0; i < n; i++)
        y[i] = ($y)value;
}
""",
    "softmax": """\
/* exp(s x_i) / sum exp(s x_j) of each row: a table of exponentials, one division a number */
static void softmax_S(const $x *x, $y *y, int32_t rows, int32_t width, const int32_t *exponential,
                      int32_t last, int32_t multiplier, int32_t shift, const rescaling *r)
{
    for (int32_t row = 0; row < rows; row++, x += width) {
        int32_t most = x[0];
        int64_t total = 0;
        for (int32_t i = 1; i < width; i++)
            if (x[i] > most)
                most = x[i];
        for (int32_t i = 0; i < width; i++)
            total += exponential[most - x[i] < last ? most - x[i] : last];
        total *= (int64_t)1 << shift;
        for (int32_t i = 0; i < width; i++) {
            const int64_t e = exponential[most - x[i] < last ? most - x[i] : last];
            *y++ = ($y)requantize(divide_half_even(e * multiplier, total), r, 0);
        }
    }
}
""",
    "layer_norm": """\
/* (x - mean) / sqrt(variance + eps) of each row, then a factor and a constant for each column */
static void layer_norm_S(const $x *x, $y *y, int32_t rows, int32_t width, int32_t zero,
                         int32_t center, int32_t up, int64_t epsilon, const rescaling *r)
{
    const int64_t one = 1;
    for (int32_t row = 0; row < rows; row++, x += width) {
        int64_t sum = 0, squares = 0;
        for (int32_t i = 0; i < width; i++) {
            const int64_t v = x[i] - zero;
            sum += v;
            squares += v * v;
        }
        sum *= center;
        const int64_t w = (width * squares - sum * sum) * (one << (2 * up)) + epsilon;
        int32_t bits = 0, k = 0;
        while (bits < 52 && w >> bits)
            bits++;
        k = (52 - bits) / 2;
        int64_t root = integer_sqrt(w * (one << (2 * k)));
        root = root < 1 ? 1 : root;
        for (int32_t i = 0; i < width; i++) {
            const int64_t u = width * (int64_t)(x[i] - zero) - sum;
            const int64_t normal = divide_half_even(u * (one << (k + up + 24)), root);
            *y++ = ($y)requantize(normal * r->multiplier[r->each ? i : 0], r, i);
        }
    }
}
""",
}
