"""How long ``minq.ranges.mse`` takes beside a plain 100-point grid, and how close it comes.

    python tests/bench/bench_ranges.py [--repeat 5] [--full]

Time: 1M values per tensor and a (256, 256, 3, 3) weight per channel, as NumPy and as torch arrays.
The rival shrinks the min-max range in 100 steps, in place, in the same library. What is counted is
the processor's time in one thread, which other programs on the machine disturb least. Quality:
decibels lost to an exhaustive search over all zero-points and a dense grid of steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from minq.affine import scale_zero_point
from minq.grid import integer_grid
from minq.ranges import mse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from exhaustive import Exact, exhaustive  # noqa: E402

DATA = {
    "Gaussian": lambda rng, shape: rng.standard_normal(shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "Student-t(3)": lambda rng, shape: rng.standard_t(3, shape),
}


def interleaved(functions: dict, repeat: int) -> dict[str, float]:
    """Median seconds of each function, run in turns so that all meet the same other load."""
    times = {name: [] for name in functions}
    for _ in range(repeat + 1):
        for name, function in functions.items():
            start = time.thread_time()
            function()
            times[name].append(time.thread_time() - start)
    return {name: statistics.median(t[1:]) for name, t in times.items()}  # the first warms up


def numpy_grid(x: np.ndarray, n: int, p: int, grid: dict) -> np.ndarray:
    """The best of 100 shrunken min-max ranges, per row: no copy, every operation in place."""
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    best, best_share = np.full(low.shape, np.inf), np.ones(low.shape)
    work = np.empty_like(x)
    for share in np.linspace(0.01, 1, 100).tolist():
        scale, zero_point = scale_zero_point(low * share, high * share, **grid)
        np.multiply(x, 1 / scale, out=work)
        np.rint(work, out=work)
        if not grid["symmetric"]:
            work += zero_point.astype(x.dtype)
        np.clip(work, n, p, out=work)
        if not grid["symmetric"]:
            work -= zero_point.astype(x.dtype)
        work *= scale
        work -= x
        error = np.vecdot(work, work)[:, None]
        best_share = np.where(error < best, share, best_share)
        best = np.minimum(error, best)
    return best_share


def torch_grid(x: torch.Tensor, n: int, p: int, grid: dict) -> torch.Tensor:
    """The same in torch."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    best, best_share = torch.full_like(low, torch.inf), torch.ones_like(low)
    work = torch.empty_like(x)
    for share in np.linspace(0.01, 1, 100).tolist():
        scale, zero_point = scale_zero_point(low * share, high * share, **grid)
        torch.mul(x, 1 / scale, out=work).round_()
        if not grid["symmetric"]:
            work += zero_point
        work.clamp_(n, p)
        if not grid["symmetric"]:
            work -= zero_point
        work.mul_(scale).sub_(x)
        error = torch.linalg.vecdot(work, work)[:, None]
        best_share = torch.where(error < best, share, best_share)
        best = torch.minimum(error, best)
    return best_share


def bench_time(repeat: int) -> None:
    torch.set_num_threads(1)
    print("milliseconds of one thread\n")
    print(
        f"{'data':14}{'granularity':16}{'bits':>4}  {'grid':12}{'library':8}"
        f"{'100 points':>11}{'mse':>8}{'ratio':>8}"
    )
    worst = np.inf
    for label, shape, axis in (("1M values", 2**20, None), ("(256,256,3,3)", (256, 256, 3, 3), 0)):
        for name, draw in DATA.items():
            x = draw(np.random.default_rng(0), shape).astype(np.float32)
            rows = x.reshape(1 if axis is None else 256, -1)
            for bits in (4, 8):
                for symmetric in (True, False):
                    grid = {"bits": bits, "signed": symmetric, "symmetric": symmetric}
                    call = (*integer_grid(bits, signed=symmetric), grid)
                    tensor, tensor_rows = torch.from_numpy(x), torch.from_numpy(rows)
                    times = interleaved(
                        {
                            "numpy grid": partial(numpy_grid, rows, *call),
                            "numpy mse": partial(mse, x, axis=axis, **grid),
                            "torch grid": partial(torch_grid, tensor_rows, *call),
                            "torch mse": partial(mse, tensor, axis=axis, **grid),
                        },
                        repeat,
                    )
                    for library in ("numpy", "torch"):
                        plain, ours = times[f"{library} grid"], times[f"{library} mse"]
                        worst = min(worst, plain / ours)
                        print(
                            f"{name:14}{label:16}{bits:4}  {kind(symmetric):12}{library:8}"
                            f"{plain * 1e3:11.1f}{ours * 1e3:8.1f}{plain / ours:7.1f}x"
                        )
    print(f"\nsmallest ratio: {worst:.1f}x\n")


def kind(symmetric: bool) -> str:
    return "symmetric" if symmetric else "asymmetric"


def bench_quality(values: int, channels: int) -> None:
    print("quality: decibels of SQNR below an exhaustive search (the plain grid beside it)\n")
    print(f"{'data':14}{'size':16}{'bits':>4}  {'grid':12}{'mse':>8}{'100 points':>12}")
    worst = -np.inf
    for rows, length in ((1, values), (channels, 2304)):
        for name, draw in DATA.items():
            x = draw(np.random.default_rng(1), (rows, length)).astype(np.float32)
            for bits in (4, 8):
                for symmetric in (True, False):
                    grid = {"bits": bits, "signed": symmetric, "symmetric": symmetric}
                    n, p = integer_grid(bits, signed=symmetric)
                    exact = [Exact(row) for row in x]
                    least = sum(exhaustive(e, n, p, symmetric)[0] for e in exact)
                    share = numpy_grid(x, n, p, grid)
                    gaps = []
                    for low, high in (
                        mse(x, axis=0, **grid),
                        (x.min(1) * share[:, 0], x.max(1) * share[:, 0]),
                    ):
                        steps = zip(*scale_zero_point(low, high, **grid), strict=True)
                        error = sum(
                            float(e(s, z, n, p)[0]) for e, (s, z) in zip(exact, steps, strict=True)
                        )
                        gaps.append(10 * np.log10(error / least))
                    worst = max(worst, gaps[0])
                    print(
                        f"{name:14}{f'{rows} x {length}':16}{bits:4}  {kind(symmetric):12}"
                        f"{gaps[0]:8.4f}{gaps[1]:12.4f}"
                    )
    print(f"\nlargest gap: {worst:.4f} dB (below 0: finer than the exhaustive grid)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="timings of which to take the median")
    parser.add_argument("--full", action="store_true", help="quality on more values and channels")
    options = parser.parse_args()
    bench_time(options.repeat)
    bench_quality(*((2**20, 32) if options.full else (2**17, 8)))
