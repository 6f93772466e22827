"""The C code on this machine beside ONNX Runtime with one thread: small networks, one picture.

python tests/bench/bench_c.py [network ...]: microseconds of each, by turns, medians of 50.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import minq
from minqbook import zoo
from minqbook.chip import toolchain

ROUNDS = 50
FLAGS = ("-O3", "-march=native")


def compare(name: str) -> tuple[float, float]:
    """Microseconds of the program in C and of ONNX Runtime."""
    x = zoo.test_set(name, 1)[0]
    q = minq.ptq(zoo.load(name), zoo.calibration_set(name, 8), rounding="nearest", progress=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = minq.to_c(minq.to_integer(q), folder)
        program = toolchain.build(files, folder / "made", flags=FLAGS)
        engine = minq.deploy.load(minq.to_onnx(q, folder / "network.onnx"), threads=1)
        given, times = files.inputs[0].quantize(x), []
        engine(x)
        for _ in range(5):  # by turns, so that a busy machine slows down both
            found = toolchain.run(files, program, [given] * (ROUNDS // 5)).ticks
            ours = [t / 1e3 for t in found]
            for our in ours:
                start = time.perf_counter()
                engine(x)
                times.append((our, 1e6 * (time.perf_counter() - start)))
    ours, theirs = zip(*times, strict=True)
    return median(ours), median(theirs)


if __name__ == "__main__":
    for name in sys.argv[1:] or zoo.NAMES:
        c, onnx = compare(name)
        print(f"{name:18} C {c:8.0f} us   ONNX Runtime {onnx:8.0f} us   {c / onnx:5.1f} times")
