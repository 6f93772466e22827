"""What a plain `import minq` needs."""

import subprocess
import sys


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_numpy_alone_is_enough_for_the_first_chapters():
    run(
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'torch': raise ImportError('this test has no torch')\n"
        "sys.meta_path.insert(0, NoTorch)\n"
        "import minq, minqbook.widgets, numpy as np\n"
        "x = np.linspace(-1, 2, 50)\n"
        "low, high = minq.ranges.mse(x, 4)\n"
        "scale, zero_point = minq.scale_zero_point(low, high, 4)\n"
        "assert minq.sqnr(x, minq.fake_quantize(x, scale, zero_point, 4)) > 20\n"
        "assert minq.mac.MacArray(2, 2).run([[1, 2]], [3, 4]).accumulators == [11]\n"
        "minqbook.widgets.AffinePlayground(x)\n"
    )


def test_importing_minq_loads_nothing_heavy():
    loaded = run("import sys, minq; print(*sys.modules)").stdout.split()
    assert not {"torch", "anywidget", "matplotlib", "sklearn"} & set(loaded)


def test_every_public_name_exists_and_a_wrong_one_is_named():
    run(
        "import minq\n"
        "for name in minq.__all__: getattr(minq, name)\n"
        "try: minq.quantise\n"
        "except AttributeError as e: assert 'quantize' in str(e)\n"
        "else: raise SystemExit(1)\n"
    )
