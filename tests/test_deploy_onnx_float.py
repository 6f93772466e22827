"""What a file says is what is computed, at each level of an engine's optimizer; other answers."""

import shutil
import warnings
from collections import OrderedDict, namedtuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import Lambda, captured, noise
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_structure

import minq
from minq.deploy.onnx import compare, engine, fused, load, outputs, sealed, to_onnx
from minq.quantizer import Quantizer
from minq.simulate import activation_quantizers, quantizers, weight_quantizers

LEVELS = onnxruntime.GraphOptimizationLevel.__members__


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def quantized(model, x, **settings):
    settings = {"rounding": "nearest", "equalize": False, "progress": False} | settings
    q = minq.ptq(model.eval(), x, **settings)
    return q, x


def outlier(weight):
    """One weight of 100: why one leaves a layer in float; 8 bits for all would spoil it."""
    with torch.no_grad():
        weight.view(-1)[0] = 100.0


def layers(kind, middle, last, shape, place=2, **settings):
    def make():
        model = nn.Sequential(kind(), nn.ReLU(), middle(), nn.ReLU(), last())
        outlier(model[place].weight)
        return quantized(model, noise(64, *shape), **settings)

    return make


def linear(n, m, **settings):
    return lambda: nn.Linear(n, m, **settings)


def conv(n, m, k):
    return lambda: nn.Conv2d(n, m, k)


def product(**settings):
    model = Lambda(lambda m, x: (m.a(x) @ m.w).relu(), a=nn.Linear(6, 16),
                   w=nn.Parameter(torch.randn(16, 32)))  # fmt: skip
    return quantized(model, noise(64, 6), **settings)


FLOAT = {
    "skip=": (layers(linear(6, 8), linear(8, 8), linear(8, 3), (6,), skip=["2"]), {"Gemm": 1}),
    "weights=None": (
        layers(linear(6, 8), linear(8, 8), linear(8, 3), (6,), weights=None),
        {"Gemm": 3},
    ),
    "one layer's weights, no bias, 3d": (
        layers(linear(6, 8), linear(8, 8, bias=False), linear(8, 3), (5, 6),
               layers={"2": {"weights": None}}),
        {"Gemm": 1},
    ),
    "a convolution": (
        layers(conv(3, 4, 3), conv(4, 4, 3), conv(4, 2, 1), (3, 8, 8), skip=["2"]),
        {"Conv": 1},
    ),
    "a transposed one": (
        layers(conv(3, 4, 3), lambda: nn.ConvTranspose2d(4, 4, 3), conv(4, 2, 1), (3, 8, 8),
               skip=["2"]),
        {"ConvTranspose": 1},
    ),
    "16 bits": (
        layers(linear(6, 8), linear(8, 8), linear(8, 3), (6,), skip=["2"], activations=16),
        {"Gemm": 3},
    ),
    "first and last": (
        layers(linear(6, 8), linear(8, 8), linear(8, 3), (6,), place=0, skip=["0", "4"]),
        {"Gemm": 2},
    ),
    "a product alone": (lambda: product(activations=None), {"Gemm": 1, "FusedGemm": 1}),
}  # fmt: skip
"""Name: how to make a network of which something stays in float; the kernels that compute it."""


def answers_of(path, x, level):
    """The first answer of a session that nobody has told anything."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(str(path), options)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@torch.no_grad()
@pytest.mark.parametrize("name", FLOAT)
def test_what_stays_in_float_is_computed_in_float_at_every_level(name, tmp_path):
    make, expected = FLOAT[name]
    q, x = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the file's own check is content
        path = to_onnx(q, tmp_path / "q.onnx")
    found = fused(path)
    assert {op: found[op] for op in ("Gemm", "FusedGemm", "Conv", "ConvTranspose") if found[op]} \
        == expected  # fmt: skip
    want = compare.in_double(q)(x.double()).float()
    for quantizer in quantizers(q).values():
        quantizer.off()
    # An engine that rounds on its own costs as much as quantization; ties that fall the other way
    # cost next to nothing.
    least = minq.sqnr(q(x), want) + 6
    for level in LEVELS.values():
        assert minq.sqnr(want, answers_of(path, x, level)) > least


@torch.no_grad()
@pytest.mark.parametrize("weights", [8, 4])
@pytest.mark.parametrize("per_channel, trained", [(True, False), (False, False), (True, True)])
def test_a_bias_beyond_32_bits_widens_the_steps_of_weights_next_to_nothing(
    per_channel, trained, weights, tmp_path
):
    """50 is more than 2^31 steps of s_w s_x where the weights are 1e-9: they may be zero as well,
    and the layer computes with integers."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight[0 if per_channel else slice(None)] = 1e-9
    model[2].bias[0] = 50.0
    rounding = minq.ptq.Nearest(correct_bias=False)
    settings = {"per_channel": per_channel, "rounding": rounding, "weights": weights}
    q, x = quantized(model, noise(64, 6), **settings)
    if trained:
        for quantizer in weight_quantizers(q).values():
            quantizer.learn()
    before = [p.clone() for p in q.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = to_onnx(q, tmp_path / "q.onnx")
    assert all(map(torch.equal, before, q.parameters())), "the network stays as it was"
    assert fused(path)["QGemm"] == 2 and not fused(path)["Gemm"]
    biases = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    assert max(np.abs(b.astype(int)).max() for b in biases if b.dtype == np.int32) <= 2**30 + 2**8
    want, *_, last = compare.in_double(q)(x.double()).float(), *activation_quantizers(q).values()
    step = float(last.scale_zero_point()[0])
    for level in LEVELS.values():
        assert (answers_of(path, x, level) - want).abs().max() <= 1.01 * step


@torch.no_grad()
def test_layers_that_share_a_weight_share_its_wider_steps(tmp_path):
    """Only the second bias is beyond 32 bits: the first is one of the same steps all the same."""
    weight = torch.randn(6, 6)
    weight[0] = 1e-9
    model = Lambda(
        lambda m, x: F.linear(F.linear(x, m.w, m.a).relu(), m.w, m.b),
        w=nn.Parameter(weight), a=nn.Parameter(torch.tensor([1e-3, *[0.5] * 5])),
        b=nn.Parameter(torch.tensor([50.0, *[0.5] * 5])),
    )  # fmt: skip
    rounding = minq.ptq.Nearest(correct_bias=False)
    q, x = quantized(model, noise(64, 6), per_channel=True, rounding=rounding)
    path = to_onnx(q, tmp_path / "q.onnx")
    assert fused(path)["QGemm"] == 2
    want, *_, last = compare.in_double(q)(x.double()).float(), *activation_quantizers(q).values()
    step = float(last.scale_zero_point()[0])
    for level in LEVELS.values():
        assert (answers_of(path, x, level) - want).abs().max() <= 1.01 * step


def rows_and_kernels():
    return Lambda(
        lambda m, x: m.b(m.a(x).relu()).flatten(1) @ m.w,
        a=nn.Conv2d(3, 8, 3), b=nn.ConvTranspose2d(8, 4, 3, groups=2),
        w=nn.Parameter(torch.randn(64, 5)),
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("activations", [8, None])
def test_groups_of_weights_are_blocks(activations, tmp_path):
    """27 weights of a channel in groups of 5, kernels whose outputs are not first, a product."""
    settings = {"weights": 4, "per_channel": True, "group_size": 5, "activations": activations}
    q, x = quantized(rows_and_kernels(), noise(32, 3, 4, 4), skip=["b"], **settings)
    path = to_onnx(q, tmp_path / "q.onnx")
    blocks = [
        a.i for node in onnx.load(path).graph.node for a in node.attribute if a.name == "block_size"
    ]
    assert blocks == [5, 5]
    want = compare.in_double(q)(x.double()).float()
    for level in LEVELS.values():
        if activations is None:  # nothing is rounded, and nothing can fall the other way
            torch.testing.assert_close(answers_of(path, x, level), want, rtol=1e-4, atol=1e-4)
        ties = minq.sqnr(want, q(x)) - 6  # as many fall the other way as in single precision
        assert minq.sqnr(want, answers_of(path, x, level)) > min(ties, 60)


@torch.no_grad()
@pytest.mark.parametrize("name, function, warning", [
    ("largest", lambda m, x: m.b(m.a(x).amax(1)), None),
    ("complex numbers", lambda m, x: m.b(torch.fft.rfft(m.a(x), n=10).abs()), "fft_rfft is not"),
])  # fmt: skip
def test_layers_behind_other_operators_get_integer_kernels(name, function, warning, tmp_path):
    model = Lambda(function, a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        q, x = quantized(model, noise(32, 5, 6))
    assert (warning is None) or any(warning in str(w.message) for w in said)
    path = to_onnx(q, tmp_path / "q.onnx")
    assert fused(path)["QGemm"] == 2
    want = compare.in_double(q)(x.double()).float()
    assert minq.sqnr(want, load(path)(x)) > minq.sqnr(model(x), want) + 6


def test_two_grids_in_a_row_are_both_used(tmp_path):
    """ONNX Runtime would make one of them."""
    q, x = quantized(nn.Sequential(nn.Linear(6, 5)), noise(64, 6))
    q.add_submodule("again", Quantizer(8).set_range(-1.9, 2.4).freeze())
    first = next(n for n in q.graph.nodes if n.target == "input.quantizer")
    with q.graph.inserting_after(first):
        second = q.graph.call_module("again", (first,))
    second.meta.update(first.meta)
    first.replace_all_uses_with(second, delete_user_cb=lambda user: user is not second)
    q.recompile()
    path = to_onnx(q, tmp_path / "q.onnx")
    assert fused(path)["QuantizeLinear"] == 2
    with torch.no_grad():
        step = float(q.get_submodule("0.quantizer").scale_zero_point()[0])
        for level in LEVELS.values():
            off = (answers_of(path, x, level) - q(x)).abs()
            assert (off > step / 2).float().mean() < 0.02  # ties of three roundings


def test_the_file_is_compared_with_the_simulation(tmp_path, monkeypatch):
    class Wrong(onnxruntime.InferenceSession):
        def run(self, *arguments):
            return [1.5 * v for v in super().run(*arguments)]

    q, x = FLOAT["skip="][0]()
    monkeypatch.setattr(engine.onnxruntime, "InferenceSession", Wrong)
    with pytest.warns(UserWarning, match="does not compute what the simulation does: its output"):
        to_onnx(q, tmp_path / "q.onnx", x)
    monkeypatch.setattr(engine, "onnxruntime", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = to_onnx(q, tmp_path / "q.onnx", x)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        load(path)


# --- Answers that are no tensors ------------------------------------------------------------------

Pair = namedtuple("Pair", "score rest")  # noqa: PYI024


@torch.no_grad()
def test_answers_keep_their_structure(tmp_path):
    def answer(m, x):
        y = m.a(x)
        named = Pair(y, 2)
        return {"a": [y, (None, x)], "named": named, "e": OrderedDict(m=y.relu(), n=0.5), "w": "w"}

    q, x = quantized(Lambda(answer, a=nn.Linear(6, 3)), noise(64, 6))
    path = to_onnx(q, tmp_path / "q.onnx")
    net = load(path)
    assert [v.name for v in net.session.get_outputs()] == [
        "output_a_0",
        "output_a_1_1",
        "output_e_m",
    ]
    mine, expected = net(x), q(x)
    assert tree_structure(mine) == tree_structure(expected)
    for a, b in zip(tree_leaves(mine), tree_leaves(expected), strict=True):
        if isinstance(b, torch.Tensor):
            assert minq.sqnr(b, a) > 35
        else:
            assert a == b and type(a) is type(b)


@pytest.mark.parametrize("answer, match", [
    (lambda m, x: (m.a(x), x.shape[0]), "output_1 is a number that depends on the inputs' shapes"),
    (lambda m, x: (None, 3), "returns no tensor"),
])  # fmt: skip
def test_answers_that_no_file_can_hold_are_named(answer, match, tmp_path):
    q = minq.capture(Lambda(answer, a=nn.Linear(6, 3)).eval(), noise(4, 6))
    with pytest.raises(ValueError, match=match):
        to_onnx(q, tmp_path / "q.onnx")


def test_classes_that_are_not_known_become_plain_ones():
    text = outputs.write(Pair(outputs.Place(0), OrderedDict(k=None)))
    assert outputs.read(text, [7]) == Pair(7, OrderedDict(k=None))
    unknown = outputs.read(text.replace(__name__, "nowhere").replace("OrderedDict", "No"), [7])
    assert unknown == Pair(7, {"k": None}) and unknown._fields == Pair._fields
    with pytest.raises(ValueError, match="output_1_b is a complex, which a file cannot hold"):
        outputs.write((None, {"b": 1j}))


@torch.no_grad()
def test_a_file_says_which_sizes_it_was_captured_for(tmp_path):
    model = Lambda(lambda m, x: m.a(x).relu() if x.shape[0] > 4 else m.a(x), a=nn.Linear(6, 3))
    q, x = quantized(model, noise(64, 6))
    with pytest.raises(ValueError, match=r"where args_0.shape\[0\] > 4"):
        q(x[:3])
    session = onnxruntime.InferenceSession(str(to_onnx(q, tmp_path / "q.onnx")))
    assert session.get_modelmeta().custom_metadata_map["minq.sizes"] == "args_0.shape[0] > 4"
    assert minq.sqnr(q(x), torch.from_numpy(session.run(None, {"args_0": x.numpy()})[0])) > 35


# --- Files of two parts ---------------------------------------------------------------------------


@torch.no_grad()
def test_large_constants_lie_beside_the_model(tmp_path, monkeypatch):
    _, gm, shape = captured("linear2d")
    q, x = quantized(gm, noise(64, *shape))
    small = load(to_onnx(q, tmp_path / "small.onnx"))
    monkeypatch.setattr(sealed, "LARGEST", 0)
    folder = tmp_path / "one"
    path = to_onnx(q, folder / "q.onnx")
    names = sorted(p.name for p in folder.iterdir())
    assert (
        len(names) == 2
        and names[1].startswith("q.onnx")
        and str(tmp_path) not in repr(path.read_bytes())
    )
    folder = folder.rename(tmp_path / "moved")
    path = folder / "q.onnx"
    assert fused(path) == fused(tmp_path / "small.onnx")
    large = load(path)
    assert torch.equal(large(x), small(x)) and large.size > path.stat().st_size
    a, b = large.trace(x), small.trace(x)
    assert all(torch.equal(a[k], b[k]) for k in b)

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with monkeypatch.context() as patch:  # a failure leaves both
        patch.setattr(sealed, "seal", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            to_onnx(gm, path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    to_onnx(gm, path)  # another network: the old constants go
    torch.testing.assert_close(load(path)(x), gm(x), rtol=1e-5, atol=1e-5)
    assert len(list(folder.glob("*"))) == 2

    (data,) = folder.glob("*.data")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(ValueError, match="data is damaged or cut short"):
        load(path)
    shutil.move(data, tmp_path)
    with pytest.raises(FileNotFoundError, match="no file q.onnx.* beside q.onnx"):
        load(path)
