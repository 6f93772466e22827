"""The book's answers to the lab: made by book/_tools/lab.py from the notebooks, see there."""

import math
from dataclasses import replace

import numpy as np

from minqbook import lab
from minqbook.lab import conv

__all__ = [
    "make_grid",
    "quantize",
    "dequantize",
    "fake_quantize",
    "simulate",
    "min_max",
    "mse_range",
    "calibrate",
    "fold",
    "equalize",
    "best_h",
    "adaround",
    "round_ste",
    "fake_quantize_ste",
    "fixed_point",
    "requantize",
    "integer_network",
]


def make_grid(low, high, bits, symmetric=False):
    """The grid of a range: (scale, zero_point, n, p)."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        n, p = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scale = max(low / n, high / p)
    else:
        n, p = 0, 2**bits - 1
        scale = (high - low) / (p - n)
    if scale == 0:
        return 1.0, 0, n, p
    zero_point = 0 if symmetric else int(np.clip(np.rint(n - low / scale), n, p))
    return float(scale), zero_point, n, p


def quantize(x, scale, zero_point, n, p):
    """Real numbers to integers on the grid."""
    return np.clip(np.rint(x / scale) + zero_point, n, p).astype(np.int64)


def dequantize(x_int, scale, zero_point, n, p):
    """Integers to the real numbers that they stand for."""
    return scale * (x_int - zero_point)


def fake_quantize(x, grid):
    """The levels of a grid next to x; grid is (scale, zero_point, n, p)."""
    return dequantize(quantize(x, *grid), *grid)


def simulate(x, layers, grids):
    """The scores of a network whose tensors lie on grids, {name: grid}."""

    def on_grid(name, t):
        return fake_quantize(t, grids[name]) if name in grids else t

    x = on_grid("input", x)
    for k, layer in enumerate(layers):
        w = on_grid(f"weight {k}", layer.weight)
        y = conv(x, w, layer.bias, layer.stride, layer.padding)
        x = on_grid(f"output {k}", layer.finish(y))
    return x


def min_max(x, bits=8, symmetric=False):
    """The smallest and the largest value."""
    return float(x.min()), float(x.max())


def mse_range(x, bits, symmetric=False):
    """The shrunken min-max range with the least squared error."""
    low, high = min_max(x)
    best, least = (low, high), np.inf
    for share in np.arange(100, 0, -1) / 100:
        grid = make_grid(share * low, share * high, bits, symmetric)
        error = ((fake_quantize(x, grid) - x) ** 2).sum()
        if error < least:
            best, least = (share * low, share * high), error
    return best


def calibrate(x, layers, weight_bits, activation_bits, weight_rule, activation_rule):
    """The grids of all tensors, {name: grid}, from some pictures."""
    grids = {}
    for name, t in lab.tensors(x, layers).items():
        symmetric = name.startswith("weight")
        bits, rule = (weight_bits, weight_rule) if symmetric else (activation_bits, activation_rule)
        grids[name] = make_grid(*rule(t, bits, symmetric), bits, symmetric)
    return grids


def fold(layer):
    """The layer with its batch norm folded into weight and bias."""
    if layer.norm is None:
        return layer
    gamma, beta, mean, variance = layer.norm
    factor = gamma / np.sqrt(variance + lab.EPSILON)
    weight = layer.weight * factor[:, None, None, None]
    return replace(layer, weight=weight, bias=beta + factor * (layer.bias - mean), norm=None)


def equalize(first, second):
    """Two layers with the same function and even channels."""
    written = abs(first.weight).max((1, 2, 3))
    read = abs(second.weight).max((0, 2, 3))
    alive = (written > 0) & (read > 0)
    s = np.sqrt(np.where(alive, written, 1)) / np.sqrt(np.where(alive, read, 1))
    weight = first.weight / s[:, None, None, None]
    first = replace(first, weight=weight, bias=first.bias / s)
    return first, replace(second, weight=second.weight * s[:, None, None])


def best_h(h, r, g, mu):
    """Where one h of every output goes."""
    pull = r / g if g > 0 else 0.0
    return np.clip((h - pull - mu / 2) / (1 - mu), 0, 1)


def adaround(weight, x, y, grid, bias, relu, sweeps=20):
    """The weight on its grid, rounded so that the layer's output changes least."""
    scale, _, n, p = grid
    f = (lambda t: np.maximum(t, 0)) if relu else (lambda t: t)
    u = weight / scale
    below = np.floor(u)
    free = (below >= n) & (below < p)
    base, h = np.clip(below, n, p), np.where(free, u - below, 0.0)
    gram, target = x.T @ x / len(x), f(y)
    for k in range(sweeps):
        mu = min(k / (0.9 * (sweeps - 1)), 1 - 1e-6)
        if k % 3 == 0:
            error = f(x @ (scale * (base + h)).T + bias) - target
            r = error.T @ x / (len(x) * scale)
        for j in range(weight.shape[1]):
            move = best_h(h[:, j], r[:, j], gram[j, j], mu) * free[:, j] - h[:, j]
            h[:, j] += move
            r += np.outer(move, gram[j])
    rounded = scale * (base + np.rint(h))
    nearest = scale * np.clip(np.rint(u), n, p)
    errors = [((f(x @ w.T + bias) - target) ** 2).sum(0) for w in (rounded, nearest)]
    return np.where((errors[0] < errors[1])[:, None], rounded, nearest)


def round_ste(x):
    """x rounded, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def fake_quantize_ste(x, scale, zero_point, n, p):
    """The levels of a grid next to x, with gradients for x and for the scale."""
    u = round_ste(x / scale) + zero_point
    x_int = u.where(u >= n, n).where(u <= p, p)
    return scale * (x_int - zero_point)


def fixed_point(ratio):
    """(m, k) with ratio ~ m 2^-k and m of 31 bits."""
    fraction, exponent = math.frexp(ratio)
    m, k = round(fraction * 2**31), 31 - exponent
    return (m // 2, k - 1) if m == 2**31 else (m, k)


def requantize(acc, m, k, zero_point, low, p):
    """Accumulators to the integers of the next grid."""
    product, half = acc * m, 1 << (k - 1)
    y = (product + half) >> k
    tie = (product & ((1 << k) - 1)) == half
    y = y - (tie & (y % 2 == 1))
    return np.clip(y + zero_point, low, p)


def integer_network(x, layers, grids):
    """The integers of the input and of every output, {name: int64}."""
    grid = grids["input"]
    x = quantize(x, *grid)
    found = {"input": x}
    for k, layer in enumerate(layers):
        (s_x, z_x, _, _), (s_w, *_) = grid, grids[f"weight {k}"]
        w = quantize(layer.weight, *grids[f"weight {k}"])
        bias = np.rint(layer.bias / (s_w * s_x)).astype(np.int64) - z_x * w.sum((1, 2, 3))
        pad = layer.padding
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=z_x)
        acc = conv(x, w, None, layer.stride).astype(np.int64) + bias[:, None, None]
        grid = grids[f"output {k}"]
        s_y, z_y, n, p = grid
        low = max(n, z_y) if layer.relu else n
        x = requantize(acc, *fixed_point(s_w * s_x / s_y), z_y, low, p)
        found[f"output {k}"] = x
    return found
