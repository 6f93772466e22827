"""How fast exact integer products are: ``python tests/bench/bench_mac.py``.

Prints the median processor time of each way to multiply 8-bit matrices, and its ratio to a float32
product of the same size, which is as fast as the floating-point units go. The ways take turns, so
that a slow moment of the machine hits all of them. One thread, and processor time instead of the
clock on the wall: other programs then hardly change the ratios, and NumPy's and torch's idle
threads cannot take time from each other.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from minq.mac.products import int_matmul, int_mm_is_exact  # noqa: E402

SHAPES = [
    ("square", 1024, 1024, 1024),
    ("3x3 convolution, 56x56 pixels, 64 to 128 channels", 3136, 576, 128),
    ("long sums", 256, 8192, 256),
]
ROUNDS = 21


def median_seconds(ways: dict[str, Callable]) -> dict[str, float]:
    times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            way()  # untimed, to fill the caches again
            start = time.process_time()
            way()
            way()
            times[name].append((time.process_time() - start) / 2)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"torch {torch.__version__}, NumPy {np.__version__}, {torch.get_num_threads()} thread, "
          f"torch._int_mm exact here: {int_mm_is_exact()}, median of {ROUNDS}")  # fmt: skip
    for title, n, k, p in SHAPES:
        a = rng.integers(-128, 128, (n, k), dtype=np.int8)
        b = rng.integers(-128, 128, (k, p), dtype=np.int8)
        u = rng.integers(0, 256, (n, k), dtype=np.uint8)
        ta, tb, tu = map(torch.from_numpy, (a, b, u))
        fa, fb, ga, gb = a.astype(np.float32), b.astype(np.float32), ta.float(), tb.float()
        ways = {
            "NumPy float32 (limit, inexact if long)": lambda fa=fa, fb=fb: fa @ fb,
            "torch float32 (limit, inexact if long)": lambda ga=ga, gb=gb: ga @ gb,
            "torch._int_mm int8": lambda ta=ta, tb=tb: torch._int_mm(ta, tb),
            "int_matmul torch int8": lambda ta=ta, tb=tb: int_matmul(ta, tb),
            "int_matmul torch uint8 x int8": lambda tu=tu, tb=tb: int_matmul(tu, tb),
            "int_matmul NumPy int8": lambda a=a, b=b: int_matmul(a, b),
            "int_matmul NumPy uint8 x int8": lambda u=u, b=b: int_matmul(u, b),
            "NumPy float64, with casts": lambda a=a, b=b: (
                a.astype(np.float64) @ b.astype(np.float64)
            ).astype(np.int32),
        }
        seconds = median_seconds(ways)
        slow_a, slow_b = a.astype(np.int32), b.astype(np.int32)  # no BLAS: once is enough
        for dtype in (np.int32, np.int64):
            x, y = slow_a.astype(dtype), slow_b.astype(dtype)
            start = time.process_time()
            exact = x @ y
            seconds[f"NumPy {dtype.__name__} @ (once)"] = time.process_time() - start
        assert (int_matmul(a, b) == exact).all() and (int_matmul(ta, tb).numpy() == exact).all()
        limit = seconds["NumPy float32 (limit, inexact if long)"]
        print(f"\n{title}: ({n} x {k}) ({k} x {p})\n{'':42}{'ms':>9}{'/ float32':>12}{'Gop/s':>9}")
        for name, value in seconds.items():
            rate = 2e-9 * n * k * p / value
            print(f"{name:42}{1e3 * value:9.2f}{value / limit:12.2f}{rate:9.1f}")


if __name__ == "__main__":
    main()
