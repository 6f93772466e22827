"""quantize.js gives the same bits as minq.affine, also for ties, signed zeros and extremes.

Numbers travel as JSON into JavaScript (exact for doubles) and as raw doubles back, because JSON
would drop the sign of zero. Rule for that sign: rounding keeps it, as NumPy does; integers and
x_hat have none. Runs in Node where there is one, else in an installed Chromium.
"""

import base64
import json
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import minqbook.widgets
from minq import affine, integer_grid

FOLDER = Path(minqbook.widgets.__file__).parent
# In JavaScript: call f on each case, and flatten all the results into one list of doubles.
FLATTEN = "cases => Float64Array.from(cases.flatMap(c => f(...c)))"
NODE = """
import * as m from "./MODULE";
import { readFileSync, writeSync } from "node:fs";
const f = FUNCTION, out = (FLATTEN)(JSON.parse(readFileSync(0, "utf8")));
process.stdout.write(Buffer.from(out.buffer));
"""
PAGE = """async ([source, cases]) => {
    const m = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    const f = FUNCTION, raw = new Uint8Array((FLATTEN)(JSON.parse(cases)).buffer);
    return btoa(Array.from(raw, b => String.fromCharCode(b)).join(""));
}"""


def as_json(cases):
    """The cases as text, with options by their names in JavaScript."""
    return json.dumps(cases).replace("narrow_range", "narrowRange")


def in_node(function, cases, folder):
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(FOLDER / "quantize.js", folder)
    script = NODE.replace("FLATTEN", FLATTEN).replace("FUNCTION", function)
    (folder / "run.js").write_text(script.replace("MODULE", "quantize.js"))
    done = subprocess.run(
        ["node", folder / "run.js"], input=as_json(cases).encode(), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout)


def in_browser(function, cases):
    sync_api = pytest.importorskip("playwright.sync_api")
    chrome = pytest.importorskip("chrome")
    executable = chrome.find_browser()
    if executable is None:
        pytest.skip(f"neither Node nor a browser: {chrome.ADVICE}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        source = (FOLDER / "quantize.js").read_text("utf-8")
        script = PAGE.replace("FLATTEN", FLATTEN).replace("FUNCTION", function)
        raw = browser.new_page().evaluate(script, [source, as_json(cases)])
        browser.close()
    return np.frombuffer(base64.b64decode(raw))


ENGINES = ["node", "browser"] if shutil.which("node") else ["browser"]


@pytest.fixture
def run(request, tmp_path):
    """run(function, cases, engine): the results of a JavaScript function on all cases."""

    def run(function, cases, engine=ENGINES[0]):
        if engine == "node":
            return in_node(function, cases, tmp_path)
        return in_browser(function, cases)

    return run


def assert_same_bits(javascript, python, cases):
    python = np.asarray(python, dtype=np.float64)
    assert javascript.shape == python.shape
    bad = np.flatnonzero(javascript.view(np.int64) != python.view(np.int64))
    assert bad.size == 0, [
        (cases[i * len(cases) // len(python)], javascript[i], python[i]) for i in bad[:5]
    ]


# --- The cases ------------------------------------------------------------------------------------

TINY, HUGE = np.finfo(float).smallest_subnormal, np.finfo(float).max
EXTREMES = [
    0.0,
    -0.0,
    TINY,
    -TINY,
    2.0**-1022,
    0.49999999999999994,
    -0.49999999999999994,
    HUGE,
    -HUGE,
]
EXTREMES += [
    0.5,
    -0.5,
    1.5,
    -1.5,
    2.5,
    -2.5,
    4503599627370495.5,
    -4503599627370495.5,
    2.0**53,
    1e300,
]

KINDS = [dict(), dict(signed=True), dict(signed=True, narrow_range=True)]
GRIDS = [(b, k) for b in range(1, 17) for k in KINDS if not (b == 1 and k)]


def values(rng, scale, zero_point, n, p):
    """Random values around the grid, every kind of tie, and the extremes."""
    span = scale * (p - n)
    ties = scale * (rng.integers(-4, p - n + 4, 30) - zero_point + 0.5)
    edges = scale * (np.array([n, p, n - 0.5, p + 0.5, n - 1, p + 1, zero_point]) - zero_point)
    x = np.concatenate(
        [rng.normal(scale=span, size=40), rng.uniform(-scale, scale, 10), ties, edges]
    )
    return [*x.tolist(), *EXTREMES]


def quantize_cases():
    rng = np.random.default_rng(0)
    cases = []
    for (bits, kind), scale in product(
        GRIDS, [0.1, 0.25, 1.0, 3e-7, 2.0**-30, float(rng.lognormal())]
    ):
        n, p = integer_grid(bits, **kind)
        zero_point = int(rng.integers(n, p + 1))
        cases += [(x, scale, zero_point, bits, kind) for x in values(rng, scale, zero_point, n, p)]
    return cases


def range_cases():
    """Ranges on both sides of zero, one-sided, empty, tiny and huge, for every kind of grid."""
    rng = np.random.default_rng(1)
    pairs = [tuple(sorted(rng.normal(size=2) * 10.0 ** rng.integers(-6, 7))) for _ in range(40)]
    pairs += [
        (0.0, 0.0),
        (-0.0, 0.0),
        (0.0, 5.0),
        (-5.0, 0.0),
        (2.0, 3.0),
        (-3.0, -2.0),
        (-1.0, 1.0),
    ]
    pairs += [(0.0, 255.0), (0.0, 0.5), (-8.0, 7.0), (0.0, TINY), (-TINY, 0.0), (-1e300, 1e300)]
    pairs += [(-0.75 * 2.0**k, 2.0**k) for k in (-40, -3, 0, 8)]
    pairs += [(0.0, np.nextafter(2.0**k, up)) for k in (-900, -40, 3, 900) for up in (0, np.inf)]
    cases = []
    for (bits, kind), (low, high), symmetric, power in product(
        GRIDS, pairs, [False, True], [False, True]
    ):
        if symmetric and not kind and low < 0:
            continue  # an error in both, tested below
        options = {**kind, "symmetric": symmetric, "powerOfTwo": power}
        cases.append((float(low), float(high), bits, options))
    return cases


def python_options(options):
    return {"power_of_two" if k == "powerOfTwo" else k: v for k, v in options.items()}


# --- The tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_rounding(run, engine):
    rng = np.random.default_rng(2)
    ties = np.arange(-300, 300) + 0.5
    x = np.concatenate(
        [EXTREMES, ties, np.nextafter(ties, 0), np.nextafter(ties, 1e9), rng.normal(size=2000) * 50]
    )
    x = np.concatenate([x, [np.inf, -np.inf]])
    cases = [[float(v)] for v in x if np.isfinite(v)]
    got = run("v => m.roundHalfEven(v)", cases, engine)
    assert_same_bits(got, np.rint([c[0] for c in cases]), cases)
    assert np.signbit(got).any() and (got == 0).any(), "the cases hold negative zeros"
    ends = run("s => m.roundHalfEven(s * Infinity)", [[1], [-1]], engine)
    assert ends.tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("engine", ENGINES)
def test_quantize_and_back(run, engine):
    cases = quantize_cases()
    assert len(cases) > 10_000
    got = run("(...c) => [m.quantize(...c), m.fakeQuantize(...c)]", cases, engine)
    integers, x_hat = got[0::2], got[1::2]
    grids = {}
    for i, (_, scale, zero_point, bits, kind) in enumerate(cases):
        grids.setdefault((scale, zero_point, bits, tuple(kind.items())), []).append(i)
    for (scale, zero_point, bits, kind), rows in grids.items():
        x, grid = [cases[i][0] for i in rows], (scale, zero_point, bits)
        these = [cases[i] for i in rows]
        assert_same_bits(integers[rows], affine.quantize(x, *grid, **dict(kind)), these)
        assert_same_bits(x_hat[rows], affine.fake_quantize(x, *grid, **dict(kind)), these)
    assert not np.signbit(got[got == 0]).any()


def test_scale_and_zero_point(run):
    cases = range_cases()
    assert len(cases) > 5_000
    got = run("(...c) => m.scaleZeroPoint(...c)", cases)
    python = [
        affine.scale_zero_point(low, high, bits, **python_options(options))
        for low, high, bits, options in cases
    ]
    assert_same_bits(got, np.array(python, dtype=np.float64).ravel(), cases)


def test_grids_and_limits(run):
    cases = [(0.3, z, bits, kind) for bits, kind in GRIDS for z in integer_grid(bits, **kind)]
    got = run("(s, z, b, k) => [...m.integerGrid(b, k), ...m.gridLimits(s, z, b, k)]", cases)
    python = [[*integer_grid(b, **k), *affine.grid_limits(s, z, b, **k)] for s, z, b, k in cases]
    assert (got == np.ravel(python)).all()


def test_errors_of_a_whole_tensor(run):
    """Sums may round differently: NumPy adds in pairs, the page in order. n terms: n eps apart."""
    rng = np.random.default_rng(3)
    cases = []
    for bits, kind in [(1, {}), (2, {}), (4, {}), (8, dict(signed=True)), (4, dict(signed=True))]:
        x = rng.standard_t(4, size=500)
        scale, zero_point = affine.scale_zero_point(-2.0, 1.5, bits, **kind)
        cases.append((x.tolist(), float(scale), int(zero_point), bits, kind))
    function = """(x, s, z, b, k) => { const e = m.errorParts(x, s, z, b, k);
        const hat = x.map(v => m.fakeQuantize(v, s, z, b, k));
        return [e.rounding, e.clipping, e.clipped,
            e.mse, e.sqnr, m.mse(x, hat), m.sqnr(x, hat)]; }"""
    got = run(function, cases).reshape(len(cases), 7)
    for (x, scale, zero_point, bits, kind), row in zip(cases, got, strict=True):
        x, (n, p) = np.array(x), integer_grid(bits, **kind)
        x_hat = affine.fake_quantize(x, scale, zero_point, bits, **kind)
        wide = np.rint(x / scale) + zero_point
        clipped, squares = (wide < n) | (wide > p), (x - x_hat) ** 2
        mean, dB = squares.mean(), affine.sqnr(x, x_hat)
        expected = [
            squares[~clipped].sum() / x.size,
            squares[clipped].sum() / x.size,
            clipped.mean(),
        ]
        np.testing.assert_allclose(row, [*expected, mean, dB, mean, dB], rtol=x.size * 2.3e-16)
        assert squares[~clipped].max() <= (scale / 2) ** 2 * (1 + 1e-12)
    lossless = run("x => [m.sqnr(x, x), m.sqnr([0], [1]), m.mse([], [])]", [[[1.0, 2.0]]])
    assert lossless.tolist() == [np.inf, -np.inf, 0]


@pytest.mark.parametrize(
    "call",
    [
        "m.integerGrid(0)",
        "m.integerGrid(17)",
        "m.integerGrid(2.5)",
        "m.integerGrid(NaN)",
        "m.integerGrid(1, { signed: true })",
        "m.integerGrid(4, { narrowRange: true })",
        "m.scaleZeroPoint(1, -1, 8)",
        "m.scaleZeroPoint(NaN, 1, 8)",
        "m.scaleZeroPoint(-1, 1, 8, { symmetric: true })",
        "m.scaleZeroPoint(-1.7e308, 1.7e308, 1)",
    ],
)
def test_bad_arguments_throw(run, call):
    caught = f"() => {{ try {{ {call} }} catch (e) {{ return e instanceof RangeError }} return 0 }}"
    assert run(caught, [[]]).tolist() == [1]
