"""The words of other libraries against those libraries, where they are installed.

`python tests/test_translator.py` runs them and writes `book/results/translator.json`: which
libraries were there, in which versions, and how many cases agreed. For all of them, install
`requirements-bench.txt`.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minq import translate
from minq.affine import dequantize
from minq.grid import integer_grid
from minq.mac import fixed_point_multiplier, requantize
from minq.translate import Grid

RNG = np.random.default_rng(0)


@st.composite
def grids(draw, widths=tuple(range(2, 17))):
    bits, signed = draw(st.sampled_from(widths)), draw(st.booleans())
    scale = draw(st.floats(1e-6, 1e6))
    return Grid(scale, draw(st.integers(*integer_grid(bits, signed=signed))), bits, signed)


def values(grid, ties):
    """float32 values around and beyond the grid: halves of a step, or none within 1e-3 of one."""
    n, p = integer_grid(grid.bits, signed=grid.signed)
    k = RNG.integers(n - grid.zero_point - 5, p - grid.zero_point + 6, 500)
    part = 0.5 if ties else RNG.uniform(-0.499, 0.499, 500)
    return ((k + part) * grid.scale).astype(np.float32)


# 8 bits, which all libraries have. Where the scale is no power of two, "ties" are only close to
# one, and the way a library divides decides.
CASES = [
    (Grid(scale, z, 8, signed), ties)
    for scale, ties in ((0.25, True), (3.7, True), (0.0173, False))
    for signed, zs in ((False, (0, 3, 128, 255)), (True, (-128, -7, 0, 100)))
    for z in zs
]
each_case = pytest.mark.parametrize(("grid", "ties"), CASES)


# --- Words ----------------------------------------------------------------------------------------


@given(grid=grids())
def test_there_and_back(grid):
    signed = {"signed": grid.signed}
    assert translate.from_aimet(**translate.to_aimet(*grid)) == grid
    assert translate.from_aimet_file(**translate.to_aimet_file(*grid), **signed) == grid
    assert translate.from_brevitas(**translate.to_brevitas(*grid)) == grid
    assert translate.from_torch(**translate.to_torch(*grid)) == grid
    assert translate.from_tflite(**translate.to_tflite(*grid), **signed) == grid


@given(grid=grids((2, 4, 8, 16)))
def test_onnx_there_and_back(grid):
    assert translate.from_onnx(**translate.to_onnx(*grid)) == grid


@given(grid=grids((8,)), x=st.floats(-1e3, 1e3, width=32))
def test_shifted_integers_stand_for_the_same_numbers(grid, x):
    x = np.float32(x) * np.float32(grid.scale)
    own = translate.to_tflite(*grid)
    x_int = translate.quantize_as("TFLite", x, grid)
    assert -128 <= x_int <= 127
    x_hat = dequantize(x_int, own["scale"], own["zero_point"])
    n, p = ((k - grid.zero_point) * grid.scale for k in integer_grid(8, signed=grid.signed))
    assert abs(x_hat - np.clip(x, n, p)) <= 0.5001 * grid.scale


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: translate.to_tflite(0.0, 0), "scale must be positive"),
        (lambda: translate.to_aimet(1.0, 256), "zero_point must be an integer from 0 to 255"),
        (lambda: translate.from_aimet(1.0, 3), "from 0 to 255, not -3"),
        (lambda: translate.to_onnx(1.0, 0, bits=5), "2, 4, 8 and 16"),
        (lambda: translate.from_torch(1.0, 0, -127, 127), "no full grid"),
        (lambda: translate.quantize_as("NumPy", 1.0, Grid(1.0, 0)), "one of minq, AIMET"),
        (lambda: translate.requantize_tflite([2**30], 4.0), "would overflow"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- Integers, against the libraries --------------------------------------------------------------


@each_case
def test_torch(grid, ties):
    x, own = torch.from_numpy(values(grid, ties)), translate.to_torch(*grid)
    simulated = torch.fake_quantize_per_tensor_affine(x, *own.values())
    stored = torch.clamp(torch.round(simulated / grid.scale) + own["zero_point"], -128, 255)
    np.testing.assert_array_equal(translate.quantize_as("torch.ao", x.numpy(), grid), stored)


@each_case
def test_torchao(grid, ties):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    x, own = torch.from_numpy(values(grid, ties)), translate.to_torch(*grid)
    scale, zero = torch.tensor([own["scale"]]), torch.tensor([own["zero_point"]])
    kind = torch.int8 if grid.signed else torch.uint8
    stored = primitives.quantize_affine(
        x, x.shape, scale, zero, kind, own["quant_min"], own["quant_max"]
    )
    np.testing.assert_array_equal(translate.quantize_as("torch.ao", x.numpy(), grid), stored)


@each_case
def test_onnx_runtime(grid, ties):
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    x, own = values(grid, ties), translate.to_onnx(*grid)
    kind = getattr(TensorProto, own["type"].upper())
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", kind, x.shape)],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [own["y_scale"]]),
            helper.make_tensor("z", kind, [], [own["y_zero_point"]]),
        ],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    (stored,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(translate.quantize_as("ONNX", x, grid), stored)


@each_case
def test_aimet(grid, ties):
    affine = pytest.importorskip("aimet_torch.quantization.affine")
    x, own = torch.from_numpy(values(grid, ties)), translate.to_aimet(*grid)
    delta, offset = torch.tensor(own["delta"]), torch.tensor(float(own["offset"]))
    n, p = integer_grid(grid.bits, signed=grid.signed)
    stored = affine.quantize(x, delta, offset, qmin=n, qmax=p)
    np.testing.assert_array_equal(translate.quantize_as("AIMET", x.numpy(), grid), stored)

    encoding = affine.AffineEncoding(delta, offset, n, p)
    assert float(encoding.min) == pytest.approx(own["min"])
    assert float(encoding.max) == pytest.approx(own["max"])
    (file,) = encoding.to_qnn_encoding_dict("0.6.1")
    assert file["offset"] == translate.to_aimet_file(*grid)["offset"]


@each_case
def test_brevitas(grid, ties):
    quant = pytest.importorskip("brevitas.core.quant")
    x, own = torch.from_numpy(values(grid, ties)), translate.to_brevitas(*grid)
    layer = quant.IntQuant(
        narrow_range=False, signed=own["signed"], input_view_impl=torch.nn.Identity()
    )
    fields = (torch.tensor(float(own[k])) for k in ("scale", "zero_point", "bit_width"))
    stored = layer.to_int(*fields, x)
    np.testing.assert_array_equal(translate.quantize_as("Brevitas", x.numpy(), grid), stored)


def litert(x, low_type, high_type, given, wanted):
    """What TFLite's QUANTIZE makes of x; ``given`` and ``wanted`` are (scale, zero_point)."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(kind, quantization, name):
        t = schema.TensorT()
        t.type, t.shape, t.name, t.buffer = kind, [len(x)], name, 0
        if quantization is not None:
            t.quantization = schema.QuantizationParametersT()
            t.quantization.scale, t.quantization.zeroPoint = ([v] for v in quantization)
        return t

    graph, model, code = schema.SubGraphT(), schema.ModelT(), schema.OperatorCodeT()
    operator = schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    kinds = schema.TensorType
    graph.tensors = [
        tensor(getattr(kinds, low_type), given, b"x"),
        tensor(getattr(kinds, high_type), wanted, b"y"),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    reference = interpreter.OpResolverType.BUILTIN_REF
    run = interpreter.Interpreter(
        model_content=bytes(builder.Output()), experimental_op_resolver_type=reference
    )
    run.allocate_tensors()
    run.set_tensor(run.get_input_details()[0]["index"], x)
    run.invoke()
    return run.get_tensor(run.get_output_details()[0]["index"])


@each_case
def test_tflite(grid, ties):
    x, own = values(grid, ties), translate.to_tflite(*grid)
    stored = litert(x, "FLOAT32", "INT8", None, (own["scale"], own["zero_point"]))
    np.testing.assert_array_equal(translate.quantize_as("TFLite", x, grid), stored)


@pytest.mark.parametrize("ratio", [0.25, 0.125, 0.037, 0.6])
def test_tflite_requantization(ratio):
    """It rounds twice: off by one step from a single rounding, at most, only near ties."""
    acc = np.concatenate([np.arange(-400, 401), RNG.integers(-3000, 3000, 500)]).astype(np.int32)
    stored = litert(acc, "INT32", "INT8", (ratio, 0), (1.0, 0))
    expected = np.clip(translate.requantize_tflite(acc, float(np.float32(ratio))), -128, 127)
    np.testing.assert_array_equal(expected, stored)
    once = requantize(acc, float(np.float32(ratio)), signed=True)
    off = once != stored
    _, shift = fixed_point_multiplier(float(np.float32(ratio)))
    exact = acc * float(np.float32(ratio))
    assert (abs(once - stored) <= 1).all() and off.any() == (ratio != 0.6)
    assert (abs(exact - np.floor(exact) - 0.5)[off] <= 2.0 ** (30 - shift)).all()


# --- What was run, for the book -------------------------------------------------------------------

PACKAGES = {
    "test_torch": "torch",
    "test_torchao": "torchao",
    "test_onnx_runtime": "onnxruntime",
    "test_aimet": "aimet-torch",
    "test_brevitas": "brevitas",
    "test_tflite": "ai-edge-litert",
    "test_tflite_requantization": "ai-edge-litert",
}


class Recorder:
    def __init__(self):
        self.agreed = {}

    def pytest_runtest_logreport(self, report):
        package = PACKAGES.get(report.nodeid.split("::")[1].split("[")[0])
        if package and report.when == "call" and report.passed:
            entry = self.agreed.setdefault(package, {"version": version(package), "cases": 0})
            entry["cases"] += 1


if __name__ == "__main__":
    recorder = Recorder()
    if code := pytest.main([__file__, "-q"], plugins=[recorder]):
        raise SystemExit(code)
    path = Path(__file__).resolve().parents[1] / "book/results/translator.json"
    path.write_text(json.dumps(recorder.agreed, indent=1) + "\n", "utf-8")
