"""How fast ``minq.affine.fake_quantize`` is beside torch's own kernels and the memory itself.

    python tests/bench/bench_fake_quantize.py [--repeat 15]

16M float32 values (64 MiB, more than the caches hold) and a (256, 256, 3, 3) weight. A copy of the
array is the limit: no operation that reads and writes it once can be faster. One thread; the
processor's time, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from bench_ranges import interleaved

from minq.affine import fake_quantize, scale_zero_point
from minq.ranges import min_max


def bench(label: str, shape: tuple[int, ...], repeat: int) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tensor = torch.from_numpy(x)
    target, torch_target = np.empty_like(x), torch.empty_like(tensor)
    cases = {
        "per tensor": {},
        "per channel": {"axis": 0},
        "per group of 128": {"axis": 0, "group": 128},
    }
    for name, granularity in cases.items():
        scale, zero_point = scale_zero_point(*min_max(x, **granularity))
        t_scale, t_zero_point = torch.as_tensor(scale), torch.as_tensor(zero_point)
        calls = {
            "copy, numpy": partial(np.copyto, target, x),
            "copy, torch": partial(torch_target.copy_, tensor),
            "minq, numpy": partial(fake_quantize, x, scale, zero_point, **granularity),
            "minq, torch": partial(fake_quantize, tensor, t_scale, t_zero_point, **granularity),
        }
        if name == "per tensor":
            kernel = torch.fake_quantize_per_tensor_affine
            kernel = partial(kernel, tensor, t_scale, t_zero_point, 0, 255)
        elif name == "per channel":
            kernel = torch.fake_quantize_per_channel_affine
            kernel = partial(kernel, tensor, t_scale, t_zero_point, 0, 0, 255)
        else:  # torch has none for groups: the groups as channels of a matrix
            kernel = torch.fake_quantize_per_channel_affine
            pieces = tensor.reshape(-1, 128)
            kernel = partial(
                kernel, pieces, t_scale.reshape(-1), t_zero_point.reshape(-1), 0, 0, 255
            )
        calls["torch kernel"] = kernel
        times = interleaved(calls, repeat)
        for call, seconds in times.items():
            copy = times["copy, numpy" if "numpy" in call else "copy, torch"]
            print(
                f"{label:16}{name:18}{call:14}{seconds * 1e3:9.2f}{seconds / copy:10.1f}"
                f"{seconds / times['torch kernel']:16.2f}"
            )
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repeat", type=int, default=15, help="timings of which to take the median"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'data':16}{'granularity':18}{'call':14}{'ms':>9}{'/ copy':>10}{'/ torch kernel':>16}\n"
    )
    bench("16M values", (1024, 16384), options.repeat)
    bench("(256,256,3,3)", (256, 256, 3, 3), options.repeat)
