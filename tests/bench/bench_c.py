"""The C code on this machine beside ONNX Runtime: the same INT8 networks, one picture, one thread.

python tests/bench/bench_c.py [network ...]: microseconds of each, medians of runs by turns, in time
of the processor, so that what else a machine does counts for neither. The loops in C are plain:
``-O3 -march=native`` lets the compiler use vector instructions, ``-O2`` hardly does. On an AMD EPYC
with AVX2 that was busy with other work, C by GCC 12 took 1.8 and 3.9 times as long as ONNX Runtime.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import geometric_mean, median

import minq
from minqbook import zoo
from minqbook.chip import measure, toolchain

TURNS, RUNS = 7, 10
FLAGS = {"-O3 -march=native": ("-O3", "-march=native"), "-O2": ("-O2",)}


def compare(name: str) -> dict[str, float]:
    """Microseconds of ONNX Runtime, and of the program in C for each kind of flags."""
    q, net = measure.networks(name, "INT8")
    x = zoo.test_set(name, 1)[0]
    times: dict[str, list[float]] = {"ONNX Runtime": [], **{f: [] for f in FLAGS}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = minq.to_c(net, folder)
        programs = {f: toolchain.build(files, folder / f"made{f}", flags=FLAGS[f]) for f in FLAGS}
        engine = minq.deploy.load(minq.to_onnx(q, folder / "network.onnx"), threads=1)
        given = [files.inputs[0].quantize(x)] * (RUNS + 1)
        engine(x)
        for _ in range(TURNS):
            for flags, program in programs.items():  # the first run finds cold caches
                times[flags] += [t / 1e3 for t in toolchain.run(files, program, given).ticks[1:]]
            for _ in range(RUNS):
                start = time.process_time_ns()
                engine(x)
                times["ONNX Runtime"].append((time.process_time_ns() - start) / 1e3)
    return {engine: median(t) for engine, t in times.items()}


if __name__ == "__main__":
    found = {}
    for name in sys.argv[1:] or zoo.NAMES:
        found[name] = compare(name)
        theirs = found[name]["ONNX Runtime"]
        ours = "   ".join(f"C {f} {found[name][f]:6.0f} us, {found[name][f] / theirs:4.1f} times"
                          for f in FLAGS)  # fmt: skip
        print(f"{name:18} ONNX Runtime {theirs:6.0f} us   {ours}", flush=True)
    for flags in FLAGS:
        ratio = geometric_mean(t[flags] / t["ONNX Runtime"] for t in found.values())
        print(f"C {flags}: {ratio:.1f} times as long as ONNX Runtime, geometric mean")
