"""One form for what is written in many ways: layers, products, and weights that are computed."""

import warnings

import pytest
import torch
from networks import Lambda, noise
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import minq
from minq import graph
from minq.fold import fold
from minq.simulate import weight_quantizers

X = noise(6, 9, 16)


def p(*shape):
    return nn.Parameter(noise(*shape, seed=len(shape)))


def linear(function, **parts):
    return lambda: (Lambda(function, **parts).eval(), (X,))


LAYERS = {
    "x W + b": linear(lambda m, x: x @ m.w + m.b, w=p(16, 8), b=p(8)),
    "b + x W": linear(lambda m, x: m.b + x @ m.w, w=p(16, 8), b=p(8)),
    "addmm": linear(lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w), w=p(16, 8), b=p(8)),
    "addmm scaled": linear(
        lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w, beta=0.5, alpha=2.0), w=p(16, 8), b=p(8)
    ),
    "W x": linear(lambda m, x: m.w @ x, w=p(5, 9)),
    "einsum": linear(lambda m, x: torch.einsum("bnd,dk->bnk", x, m.w), w=p(16, 8)),
    "heads": linear(lambda m, x: torch.einsum("bnd,dhk->bhnk", x, m.w), w=p(16, 4, 3)),
    "heads summed": linear(
        lambda m, x: torch.einsum("bhqd,hdk->bqk", x.unflatten(2, (4, 4)).transpose(1, 2), m.w),
        w=p(4, 4, 5),
    ),
    "weight first": linear(lambda m, x: torch.einsum("oc,bcn->bon", m.w, x), w=p(8, 9)),
    "no arrow": linear(lambda m, x: torch.einsum("bnd,dk", x, m.w), w=p(16, 8)),
    "inner": linear(lambda m, x: torch.inner(x, m.w), w=p(8, 16)),
    "tensordot": linear(lambda m, x: torch.tensordot(x, m.w, ([2], [1])), w=p(8, 16)),
    "dots": linear(lambda m, x: torch.einsum("...d,kd->...k", x, m.w), w=p(8, 16)),
    "slice": linear(lambda m, x: F.linear(x, m.w[8:24], m.b[8:24]), w=p(32, 16), b=p(32)),
    "turned": linear(lambda m, x: x @ m.w.t(), w=p(8, 16)),
    "a convolution's": linear(lambda m, x: F.linear(x, m.w[:, :, 0]), w=p(8, 16, 1)),
    "standardized": linear(lambda m, x: F.conv1d(x, m.w - m.w.mean(1, keepdim=True)), w=p(8, 9, 3)),
    "low rank": linear(
        lambda m, x: F.linear(x, m.w + m.a @ m.b), w=p(8, 16), a=p(8, 2), b=p(2, 16)
    ),
    "masked": linear(lambda m, x: F.linear(x, m.w * (m.w > 0)), w=p(8, 16)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_whatever_is_linear_is_a_layer(name):
    model, args = LAYERS[name]()
    gm = minq.capture(model, args)
    (node,) = [n for n in gm.graph.nodes if graph.traits(n).multiplies]
    assert graph.is_layer(node)
    with torch.no_grad():
        assert minq.sqnr(model(*args), gm(*args)) > 120
        x = torch.cat([X, X[:3]])
        assert minq.sqnr(model(x), gm(x)) > 120
    q = minq.ptq(model, [args], weights=8, per_channel=True, rounding="nearest")
    (one,) = weight_quantizers(q).values()
    outputs = graph.shape_of(next(n for n in q.graph.nodes if graph.is_layer(n)))
    channel = 1 if name == "standardized" else -1
    assert one.scale.numel() == outputs[channel]
    with torch.no_grad():
        assert minq.sqnr(model(*args), q(*args)) > 34


@pytest.mark.parametrize("name", ["nbd,dhk->nbhk", "nbd,dhk->bhnk"])
def test_the_batch_may_be_any_dimension_of_a_sum_over_indices(name):
    def forward(m, x):
        return torch.einsum(name, x.transpose(0, 1), m.w)

    model = Lambda(forward, w=p(16, 4, 3))
    gm = minq.capture(model, X)
    assert len(graph.layers(gm)) == 1 and "einsum" not in map(graph.op, gm.graph.nodes)
    x = torch.cat([X, X[:3]])
    with torch.no_grad():
        assert minq.sqnr(model(x), gm(x)) > 120


@pytest.mark.parametrize("more", [False, True])
def test_what_is_empty_adds_nothing_to_what_it_is_put_together_with(more):
    """As keys and the cache of those before them, which begins empty."""

    def forward(m, x):
        keys = torch.cat([torch.tensor([]), m.a(x), *[m.a(x) + 1] * more], dim=-2)
        return torch.cat([x[:, :0], keys], 1)

    model = Lambda(forward, a=nn.Linear(16, 16)).eval()
    q = minq.ptq(model, X, rounding="nearest")
    assert list(map(graph.op, q.graph.nodes)).count("cat") == more
    with torch.no_grad():
        assert minq.sqnr(model(X), minq.capture(model, X)(X)) > 120
        assert minq.sqnr(model(X), q(X)) > 34


PARTS = {
    "multiply": lambda x: torch.multiply(x, x.sigmoid()),
    "subtract": lambda x: torch.subtract(x, x.sigmoid(), alpha=2),
    "true_divide": lambda x: torch.true_divide(x, 3),
    "negative": torch.negative,
    "absolute": torch.absolute,
    "hstack": lambda x: torch.hstack([x, -x]),
    "swapaxes": lambda x: torch.swapaxes(x, 1, 2),
    "moveaxis": lambda x: torch.moveaxis(x, 1, 2),
    "diff": torch.diff,
    "expit": torch.special.expit,
    "broadcast_to": lambda x: torch.broadcast_to(x[:, :1], x.shape),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_torch_makes_of_known_operators_is_known(name):
    model = Lambda(lambda m, x: PARTS[name](m.a(x)), a=nn.Linear(16, 16)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one that stays in float is told
        q = minq.ptq(model, X, rounding="nearest")
    x = torch.cat([X, X[:3]])
    with torch.no_grad():
        assert minq.sqnr(model(x), minq.capture(model, X)(x)) > 120
        assert minq.sqnr(model(x), q(x)) > 28
    assert not minq.to_integer(q).islands


def _layer_norm(m, x, dim):
    mean = x.mean(dim, keepdim=True)
    y = (x - mean) / torch.sqrt((x - mean).pow(2).mean(dim, keepdim=True) + 1e-5)
    shape = [-1 if k == dim % x.ndim else 1 for k in range(x.ndim)][1:]
    return m.w.reshape(shape) * y + m.b.reshape(shape)


def _by_variance(m, x, dim):
    mean, variance = x.mean(dim, keepdim=True), x.var(dim, unbiased=False, keepdim=True)
    shape = [-1 if k == dim % x.ndim else 1 for k in range(x.ndim)][1:]
    return (x - mean) * torch.rsqrt(variance + 1e-5) * m.w.reshape(shape) + m.b.reshape(shape)


@pytest.mark.parametrize("dim", [1, 2, -1])
@pytest.mark.parametrize("write", [_layer_norm, _by_variance])
def test_layer_norm_spelled_out_over_any_dimension_is_one_operator(write, dim):
    width = X.shape[dim]
    model = Lambda(lambda m, x: write(m, m.a(x), dim), a=nn.Linear(16, 16), w=p(width), b=p(width))
    gm = fold(minq.capture(model, X))
    kinds = [graph.op(node) for node in gm.graph.nodes]
    assert kinds.count("layer_norm") == 1 and not {"mean", "mul", "add", "div"} & set(kinds)
    with torch.no_grad():
        y = model.a(X).transpose(dim, -1)
        oracle = F.layer_norm(y, [width], model.w, model.b).transpose(dim, -1)
        assert minq.sqnr(oracle, gm(X)) > 110
    assert not minq.to_integer(minq.ptq(model, X, rounding="nearest")).islands


@pytest.mark.parametrize("equation", ["bqd,bkd->bqk", "bnd,bnd->bn", "bnd,bne->bde"])
def test_sums_over_indices_of_two_tensors_are_products(equation):
    model = Lambda(lambda m, x: torch.einsum(equation, m.a(x), x), a=nn.Linear(16, 16)).eval()
    gm = minq.capture(model, X)
    assert "einsum" not in map(graph.op, gm.graph.nodes)
    with torch.no_grad():
        assert minq.sqnr(model(X), gm(X)) > 120


def test_a_sum_over_indices_of_three_tensors_is_a_layer_for_each_parameter():
    model = Lambda(lambda m, x: torch.einsum("ck,bnd,dc->bnk", m.w, x, m.v), w=p(3, 8), v=p(16, 3))
    gm = minq.capture(model, X)
    assert len(graph.layers(gm)) == 2
    with torch.no_grad():
        assert minq.sqnr(model(X), gm(X)) > 120


def test_what_is_made_with_fixed_sizes_is_a_weight_whatever_it_takes_its_type_from():
    def forward(m, x):
        return F.conv1d(x, x.new_ones(9, 1, 3) / 3, groups=9)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = minq.ptq(Lambda(forward), X, rounding="nearest")
    assert len(weight_quantizers(q)) == 1


@pytest.mark.parametrize("function, shape, scales", [
    (lambda m, x: m.w @ x, (9,), 1),
    (lambda m, x: x @ m.w, (16,), 1),
    (lambda m, x: x.unflatten(2, (4, 4)).transpose(1, 2) @ m.w, (4, 4, 6), 6),
    (lambda m, x: m.w @ x.unflatten(2, (4, 4)).transpose(1, 2), (4, 5, 9), 5),
], ids=["vector left", "vector right", "matrices right", "matrices left"])  # fmt: skip
def test_the_scales_of_a_product_lie_along_its_outputs(function, shape, scales):
    q = minq.ptq(Lambda(function, w=p(*shape)), X, per_channel=True, rounding="nearest")
    assert minq.quantizers(q)["w_quantizer"].scale.numel() == scales


@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm", "orthogonal"])
def test_a_weight_behind_a_parametrization_has_the_layers_name(kind):
    layer = getattr(parametrizations, kind)(nn.Linear(16, 8))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2)).eval()
    q = minq.ptq(model, X, weights=4, rounding="nearest", skip=["2"])
    assert list(weight_quantizers(q)) == ["0.weight_quantizer"]
    assert weight_quantizers(q)["0.weight_quantizer"].bits == 4
    assert "0.weight_quantizer" not in minq.quantizers(minq.ptq(model, X, skip=["0"]))


@pytest.mark.parametrize("apart", [False, True])
def test_every_weight_of_cross_attention_is_quantized(apart):
    model = Lambda(
        lambda m, x, y: m.m(x, y, 2 * y if apart else y, need_weights=False)[0],
        m=nn.MultiheadAttention(16, 4, batch_first=True),
    ).eval()
    data = (X, noise(6, 7, 16))
    q = minq.ptq(model, [data], weights=4, rounding="nearest")
    parts = [n for n in weight_quantizers(q) if n.startswith("m.in_proj_weight")]
    assert len(parts) == 3 if apart else 2
    assert all(one.bits == 4 for one in weight_quantizers(q).values())
    assert not weight_quantizers(minq.ptq(model, [data], rounding="nearest", skip=["m", "m.*"]))


def test_a_weight_from_the_input_is_a_product():
    model = Lambda(lambda m, x: F.linear(x, m.a(x[0]).tanh()), a=nn.Linear(16, 16)).eval()
    q = minq.ptq(model, X, rounding="nearest")
    assert {"transpose", "matmul"} <= set(map(graph.op, q.graph.nodes))


def test_a_tied_head_stays_tied():
    model = Lambda(lambda m, i: m.e(i) @ m.e.weight.t(), e=nn.Embedding(10, 16)).eval()
    q = minq.ptq(model, torch.randint(10, (6, 5)), rounding="nearest")
    assert list(weight_quantizers(q)) == ["e.weight_quantizer"] and len(graph.layers(q)) == 1


def test_a_place_with_several_operators_that_stay_in_float_is_named_once():
    model = Lambda(lambda m, x: m.a(x).erfinv() + (x / 9).erfinv(), a=nn.Linear(16, 16)).eval()
    with pytest.warns(UserWarning, match="stays in float, in erfinv; "):
        minq.ptq(model, X.clamp(-1, 1) / 9, rounding="nearest")
