"""Files for an inference engine: every integer is the simulation's, on integer kernels; no damage.

ONNX Runtime is the judge. Each quantizer is fed what the engine itself computed before it, in
double precision, so that one tie that fell the other way upstream does not hide what comes after;
what else single precision may change is derived in ``single_precision``.
"""

import copy
from fractions import Fraction
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Attention, Keywords, Lambda, captured, noise, zoo_graph
from single_precision import Forced, U
from torch import nn
from torch.utils._pytree import tree_leaves, tree_structure

import minq
from minq import affine, graph, integer_grid
from minq.deploy.onnx import fused, load, sealed, to_onnx
from minq.graph.batches import flatten_outputs
from minq.ptq.pipeline import ptq
from minq.quantizer import Quantizer
from minq.simulate import activation_quantizers, quantizers, weight_quantizers
from minqbook import zoo


@pytest.fixture(autouse=True, scope="module")
def one_table_of_translations():
    """torch makes it anew for every file: a second each time."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # it is nobody's business where torch keeps it
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib))
        )
        yield


@torch.no_grad()
def check(q, path, *args, tables=0.0, **settings):
    """Every integer behind every quantizer is the one next to the real number; so are answers.

    tables: by how many steps an engine's own table of a function may be off.
    """
    net = load(path, threads=1, **settings)
    integers = net.trace(*args)
    constants = {node.target for node in q.graph.nodes if graph.parameter_of(node)}
    assert integers.keys() == activation_quantizers(q).keys() - constants
    forced = Forced(q, integers)
    answers = forced.run(*(x.double() if x.is_floating_point() else x for x in args))
    assert max(forced.far.values()) <= tables, forced.far
    assert max(forced.explained.values()) < 0.5  # or a whole step could go unseen
    mine = net(*args)
    assert tree_structure(mine) == tree_structure(q(*args))
    for a, b in zip(tree_leaves(mine), tree_leaves(answers), strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, rtol=U, atol=forced.answers)
    return integers


def quantized(name, **settings):
    _, gm, shape = captured(name)
    return ptq(gm, noise(64, *shape), rounding="nearest", progress=False, **settings), shape


def kernels(path):
    """The operators of the optimized graph that compute with weights."""
    layers = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return {op: n for op, n in fused(path).items() if op.endswith(layers) or "Integer" in op}


# --- The same integers, on integer kernels --------------------------------------------------------

QGEMM, QCONV = "QGemm", "QLinearConv"
TINY = {
    "conv1d": {QCONV: 1},
    "conv3d": {QCONV: 1},
    "grouped": {QCONV: 1},
    "dilated": {QCONV: 1},
    "reflected": {QCONV: 1},
    "transposed": {"ConvTranspose": 2},  # there is no integer kernel
    "linear2d": {QGEMM: 2},
    "linear3d": {QGEMM: 2},
    "activations": {QCONV: 3},
    "plain batch norm": {"FusedConv": 1},  # a leaky ReLU lies between the sums and the rounding
    "pooling": {QCONV: 1, QGEMM: 1},
    "concatenation": {QCONV: 2},
    "split": {QGEMM: 2},
    "matmul": {QGEMM: 2, "QLinearMatMul": 1},  # a product with a parameter is a layer
    "encoder": {QGEMM: 4, "QLinearMatMul": 2},
    "residual": {QCONV: 4},
    "mobile": {QCONV: 3, QGEMM: 1},
    "shared convolution": {QCONV: 2},
    "a view overwritten": {QGEMM: 1},
    "two results": {QGEMM: 2},
}
"""Network: the kernels that its layers become."""


@pytest.mark.parametrize("name", TINY)
def test_every_integer_is_that_of_the_simulation(name, tmp_path):
    q, shape = quantized(name)
    path = to_onnx(q, tmp_path / "q.onnx")
    assert kernels(path) == TINY[name]
    # Softmax on integers, QLinearSoftmax, uses a table of exponentials that is itself rounded.
    tables = float("QLinearSoftmax" in fused(path))
    for batch in (3, 1):
        check(q, path, noise(batch, *shape, seed=5), tables=tables)
    check(q, path, noise(3, *shape, seed=5), fuse=False)


@cache
def small(name, per_channel):
    data = zoo.calibration_set(name, 64)
    q = ptq(zoo_graph(name), data, rounding="nearest", per_channel=per_channel, progress=False)
    return q, data


@pytest.mark.parametrize("name, per_channel", [
    ("mobilenet_v2", False), ("segmenter", True), ("detector", False), ("text_encoder", True),
])  # fmt: skip
def test_small_networks_run_on_integer_kernels_alone(name, per_channel, tmp_path):
    """One of each task; chapter 18 has two more."""
    q, data = small(name, per_channel)
    path = to_onnx(q, tmp_path / "q.onnx")
    layers = [graph.op(node) for node in graph.layers(q).values()]
    found = kernels(path)
    assert found.pop(QCONV, 0) == layers.count("conv2d")
    assert found.pop(QGEMM, 0) == layers.count("linear")
    assert set(found) <= {"QLinearMatMul"}  # attention
    check(q, path, data[:3])
    weights = sum(q.get_parameter(k).numel() for k in _weights(q))
    assert path.stat().st_size < 1.6 * weights + 2**16  # one byte each; grids, graph
    # A tie upstream moves what comes after it by a step, here and there. Rounding moves everything,
    # by a twelfth of a squared step on average: what it costs is more than what the ties do.
    with torch.no_grad():
        before, after = zoo_graph(name)(data[:32]), q(data[:32])
        ties = minq.sqnr(flatten_outputs(after), flatten_outputs(load(path)(data[:32])))
        assert ties > minq.sqnr(flatten_outputs(before), flatten_outputs(after))


def _weights(q):
    rounding = weight_quantizers(q)
    return [n.args[0].target for n in q.graph.nodes if n.target in rounding]


SETTINGS = {
    "W4A8": {"weights": 4},
    "W2A6, per channel": {"weights": 2, "activations": 6, "per_channel": True},
    "symmetric": {"symmetric": True},
    "W8A16": {"activations": 16},
    "W12A5": {"weights": 12, "activations": 5},
    "W16A9, symmetric": {"weights": 16, "activations": 9, "symmetric": True},
}


@pytest.fixture(scope="module")
def toy():
    """Two convolutions with clamps, whose bounds differ by channel after equalization; a layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(),
            nn.Flatten(), nn.Linear(96, 5),
        )  # fmt: skip
        for layer in model[::2][:2]:
            layer.weight.data *= 4 * torch.rand(6, 1, 1, 1) + 4
    return minq.capture(model, noise(2, 3, 8, 8))


@pytest.mark.parametrize("name", SETTINGS)
def test_grids_of_all_widths(name, toy, tmp_path):
    q = ptq(toy, noise(64, 3, 8, 8), rounding="nearest", progress=False, **SETTINGS[name])
    path = to_onnx(q, tmp_path / "q.onnx")
    integers = check(q, path, noise(3, 3, 8, 8, seed=5))
    for key, quantizer in activation_quantizers(q).items():
        n, p = quantizer.grid
        assert n <= integers[key].min() and integers[key].max() <= p
    setting = {"weights": 8, "activations": 8} | SETTINGS[name]
    if max(setting["weights"], setting["activations"]) <= 8:
        assert kernels(path) == {QCONV: 2, QGEMM: 1}
    stored = {v.name: v for v in onnx.load(path).graph.initializer}["0.weight_quantizer.integers"]
    width = 4 if setting["weights"] <= 4 else 8 if setting["weights"] <= 8 else 16
    kind = {4: "INT4", 8: "UINT8", 16: "INT16"}[width]
    assert stored.data_type == getattr(onnx.TensorProto, kind)


@pytest.mark.parametrize("change", ["power of two", "narrow range"])
def test_other_grids(change, toy, tmp_path):
    q = ptq(toy, noise(64, 3, 8, 8), rounding="nearest", progress=False)
    for quantizer in quantizers(q).values():
        quantizer.power_of_two = change == "power of two"
        if change == "narrow range" and quantizer.grid.signed:
            quantizer.grid = integer_grid(quantizer.bits, signed=True, narrow_range=True)
        quantizer.set_range(quantizer.low, quantizer.high)
    check(q, to_onnx(q, tmp_path / "q.onnx"), noise(3, 3, 8, 8, seed=5))


def tampered(path, name, change):
    """The file with other content of one constant, sealed again."""
    model = onnx.load(path)
    (tensor,) = (v for v in model.graph.initializer if v.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), name))
    model.metadata_props.pop()
    content = sealed.seal(model.SerializeToString())
    return path.with_name("tampered.onnx"), path.with_name("tampered.onnx").write_bytes(content)


@pytest.mark.parametrize("steps", [1 / 8, -1 / 8])
def test_the_bound_finds_a_sum_that_is_an_eighth_of_a_step_off(steps, toy, tmp_path):
    q = ptq(toy, noise(64, 3, 8, 8), rounding="nearest", progress=False)
    path, x = to_onnx(q, tmp_path / "q.onnx"), noise(9, 3, 8, 8, seed=5)
    check(q, path, x)
    s_x, s_w, s_y = (
        float(q.get_submodule(f"{k}quantizer").scale_zero_point()[0])
        for k in ("3.", "5.weight_", "5.")
    )
    (name,) = (
        v.name for v in onnx.load(path).graph.initializer
        if v.data_type == onnx.TensorProto.INT32 and list(v.dims) == [5]
    )  # fmt: skip
    path, _ = tampered(path, name, lambda b: b + np.int32(round(steps * s_y / (s_w * s_x))))
    with pytest.raises(AssertionError, match="5.quantizer"):
        check(q, path, x)


def test_a_bias_is_the_nearest_integer(toy, tmp_path):
    """Also where a product of scales, rounded to single precision, would lead to another one."""
    q = ptq(toy, noise(64, 3, 8, 8), rounding="nearest", progress=False)
    s_x, s_w = (q.get_submodule(f"{k}quantizer").scale_zero_point()[0] for k in ("3.", "5.weight_"))
    exact = Fraction(float(s_x)) * Fraction(float(s_w))
    ties = np.float32((np.arange(2**20, 2**20 + 5000) + 0.5) * float(exact))
    nearest = np.array([round(Fraction(float(b)) / exact) for b in ties])
    differ = np.round(ties.astype(float) / float(s_x * s_w)) != nearest
    assert differ.sum() >= 5
    q.get_parameter("5.bias").data = torch.from_numpy(ties[differ][:5])
    path = to_onnx(q, tmp_path / "q.onnx")
    stored = [
        onnx.numpy_helper.to_array(v).tolist() for v in onnx.load(path).graph.initializer
        if v.data_type == onnx.TensorProto.INT32
    ]  # fmt: skip
    assert nearest[differ][:5].tolist() in stored


def test_layers_may_differ_or_stay_in_float(toy, tmp_path):
    q = ptq(
        toy, noise(64, 3, 8, 8), rounding="nearest", progress=False,
        layers={"0": {"weights": 4}, "2": {"weights": 8, "per_channel": True}}, skip=["5"],
    )  # fmt: skip
    path = to_onnx(q, tmp_path / "q.onnx")
    assert kernels(path) == {QCONV: 2, "Gemm": 1}
    x = noise(3, 3, 8, 8, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(load(path)(x), q(x), rtol=1e-2, atol=1e-2)


def test_words_and_named_inputs_and_results(tmp_path):
    model, tokens = Attention().eval(), torch.randint(1, 11, (40, 6))
    q = ptq(model, tokens, rounding="nearest", progress=False)
    path = to_onnx(q, tmp_path / "words.onnx")
    check(q, path, tokens[:3])
    example = {"u": noise(20, 4), "v": noise(20, 3)}
    q = ptq(Keywords().eval(), example, rounding="nearest", progress=False)
    net = load(to_onnx(q, tmp_path / "names.onnx"))
    assert list(net.inputs) == ["u", "v"]
    with torch.no_grad():
        expected = q(**example)
    for answers in (net(**example), net(example["u"], v=example["v"])):
        assert answers.keys() == {"sum", "first"}
        torch.testing.assert_close(answers, expected, atol=0.1, rtol=0)


def test_filling_up_with_zero_leaves_layers_on_integers(tmp_path):
    """Padding that is set to zero, by a mask of whole numbers as tokenizers give it."""

    def forward(m, x, seen):
        return m.b(m.a(x).masked_fill((1.0 - seen).bool(), 0.0))

    torch.manual_seed(0)
    data = noise(20, 4), torch.arange(20)[:, None] % 3
    data[1].clamp_(max=1)
    model = Lambda(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3)).eval()
    q = ptq(model, [data], rounding="nearest", progress=False)
    path = to_onnx(q, tmp_path / "filled.onnx", example=data)
    assert kernels(path)[QGEMM] == 2
    check(q, path, *data)


# --- The facts that the rewritings rest on --------------------------------------------------------


@given(
    x=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=9),
    a=st.floats(-9, 9, width=32),
    b=st.floats(-9, 9, width=32),
    low=st.floats(-5, -0.125, width=32),
    bits=st.integers(1, 8),
)
def test_clamping_and_rounding_commute(x, a, b, low, bits):
    a, b = min(a, b), max(a, b)
    x = np.array(x, np.float32)
    grid = affine.scale_zero_point(np.float32(low), np.float32(3), bits)

    def rounded(v):
        return affine.quantize(np.asarray(v, np.float32), *grid, bits)

    np.testing.assert_array_equal(
        rounded(np.clip(x, a, b)), np.clip(rounded(x), rounded(a), rounded(b))
    )
    # What is on the grid stays where it is.
    again = affine.dequantize(rounded(x), *grid).astype(np.float32)
    np.testing.assert_array_equal(rounded(again), rounded(x))


# --- The file -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    q, _ = quantized("linear2d")
    return to_onnx(q, tmp_path_factory.mktemp("file") / "q.onnx")


def test_the_file_is_standard_onnx_and_tells_nothing_of_this_machine(file):
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert model.producer_name == "minq" and model.producer_version == minq.__version__
    assert [d.dim_param or d.dim_value for d in _shape(model.graph.input[0])] == ["batch", 6]
    assert [d.dim_param or d.dim_value for d in _shape(model.graph.output[0])] == ["batch", 3]
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # numbers, among them those of letters
    content = model.SerializeToString()
    for trace in (b".py", b"site-packages", b"Traceback", b"/"):
        assert trace not in content


def _shape(value):
    return value.type.tensor_type.shape.dim


@given(data=st.data())
def test_no_damage_goes_unnoticed(file, data):
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        content = content[:place]
    damaged = file.with_name("damaged.onnx")
    damaged.write_bytes(content)
    for use in (load, fused):
        with pytest.raises(ValueError, match="damaged, cut short, or was not written by minq"):
            use(damaged)


def test_foreign_and_missing_files_are_refused(tmp_path):
    identity = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([identity], "g", [x], [y])),
        tmp_path / "foreign.onnx",
    )
    with pytest.raises(ValueError, match="was not written by minq"):
        load(tmp_path / "foreign.onnx")
    with pytest.raises(FileNotFoundError, match="write it with minq.to_onnx"):
        load(tmp_path / "none.onnx")


def test_a_failure_leaves_the_old_file(file, tmp_path, monkeypatch):
    _, gm, _ = captured("linear2d")
    path = to_onnx(gm, tmp_path / "new folder" / "float.onnx")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "seal", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            to_onnx(gm, path)
    assert path.read_bytes() == before


def test_without_quantizers_the_file_is_the_float_network(tmp_path):
    model, gm, shape = captured("linear2d")
    x = noise(3, *shape)
    for source, example in ((gm, None), (model, x)):
        path = to_onnx(source, tmp_path / "float.onnx", example)
        assert "QuantizeLinear" not in fused(path)
        with torch.no_grad():
            torch.testing.assert_close(load(path)(x), model(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="pass example="):
        to_onnx(model, path)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["off", "observe"])
def test_every_quantizer_must_be_frozen(stage, tmp_path):
    q, _ = quantized("linear2d")
    getattr(q.get_submodule("0.weight_quantizer"), stage)()
    with pytest.raises(ValueError, match=f"0.weight_quantizer is not frozen but at stage '{stage}"):
        to_onnx(q, tmp_path / "q.onnx")
    assert not list(tmp_path.iterdir())


def test_groups_and_other_dtypes_and_operators_are_refused(tmp_path):
    q, _ = quantized("linear2d")
    with pytest.raises(ValueError, match=r"call q.float\(\) first"):
        to_onnx(copy.deepcopy(q).double(), tmp_path / "q.onnx")
    grouped = Quantizer(4, axis=0, group=2)
    grouped(noise(4, 6))
    q.set_submodule("input.quantizer", grouped.freeze())
    with pytest.raises(ValueError, match="one scale for each group of 2 values"):
        to_onnx(q, tmp_path / "q.onnx")
    with pytest.raises(ValueError, match="has quantizers but was not captured"):
        to_onnx(Lambda(lambda m, x: m.a(x), a=Quantizer(4)), tmp_path / "q.onnx", noise(4, 6))
    for dtype in (torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=rf"{dtype} values; call q.float\(\) first"):
            to_onnx(nn.Linear(6, 2).to(dtype), tmp_path / "q.onnx", noise(4, 6).to(dtype))
    gm = minq.capture(Lambda(lambda m, x: torch.linalg.svdvals(x)), noise(2, 3, 3))
    with pytest.raises(ValueError, match="torch.onnx could not translate this network.*svd"):
        to_onnx(gm, tmp_path / "q.onnx")
    with pytest.raises(TypeError, match="must be a torch.nn.Module, not str"):
        to_onnx("q", tmp_path / "q.onnx")


def test_inputs_that_do_not_fit_are_named(file):
    net = load(file, threads=2)
    assert "q.onnx" in repr(net)
    with pytest.raises(ValueError, match=r"shape \(2, 5\); the network takes \(batch, 6\)"):
        net(noise(2, 5))
    with pytest.raises(ValueError, match="shape"):
        net(noise(6))
    with pytest.raises(TypeError, match="float32, not float64"):
        net(noise(2, 6).double())
    with pytest.raises(TypeError, match="must be a tensor, not float"):
        net(0.5)
    with pytest.raises(TypeError, match="given 2"):
        net(noise(2, 6), noise(2, 6))
    with pytest.raises(TypeError, match="does not know"):
        net(noise(2, 6), mask=None)
    with pytest.raises(ValueError, match="threads"):
        load(file, threads=0)
