"""AWQ against a search written from its formula, and its places against the function they keep."""

from __future__ import annotations

import copy
import itertools
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import minq
from minq import Scheme, fake_quantize, graph, ranges, scale_zero_point
from minq.ptq import AWQ, GPTQ, Nearest, Smooth
from minq.ptq.awq import SHARES, awq, awq_scales, search_shares
from minq.ptq.places import places, scale_place
from minq.quantizer import Quantizer
from minq.simulate import weight_quantizers

HEADS, SHARED, SIZE = 4, 2, 4


class Norm(nn.Module):
    """RMS norm as Llama writes it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return self.weight * y.to(x.dtype)


class Block(nn.Module):
    """A decoder's block: attention whose heads share keys and values, an MLP with a gate."""

    def __init__(self, norm=Norm, bias=False):
        super().__init__()
        width, kept = HEADS * SIZE, SHARED * SIZE
        self.norm1, self.norm2 = norm(width), norm(width)
        self.q, self.o = nn.Linear(width, width, bias=bias), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, kept, bias=bias) for _ in range(2))
        self.gate, self.up = nn.Linear(width, 24, bias=bias), nn.Linear(width, 24, bias=bias)
        self.down = nn.Linear(24, width)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (-1, SIZE)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(HEADS // SHARED, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(24, 10, HEADS * SIZE, generator=g)
    x[..., 3] *= 12  # a channel that stands out, as in language models
    return x


def seeded(kind=Block, **settings):
    torch.manual_seed(0)
    return kind(**settings).eval()


def read(gm, found):
    """{maker: {reader: channels}} by name."""
    return {
        graph.place(p.maker).removesuffix(".rms_norm").removesuffix(".mul"): {
            graph.layer_name(r): index.tolist() for r, index in p.readers.items()
        }
        for p in found
    }


# --- Places ---------------------------------------------------------------------------------------


@cache
def captured(norm):
    x = torch.randn(4, 10, HEADS * SIZE, generator=torch.Generator().manual_seed(2)).double()
    return minq.capture(seeded(norm=norm, bias=norm is not Norm).double(), x), x


@pytest.mark.parametrize("norm", [Norm, nn.RMSNorm, nn.LayerNorm])
def test_the_places_of_a_decoder(norm):
    gm, x = captured(norm)
    found = read(gm, places(gm, [x]))
    head = [[k + SIZE * h for k in range(SIZE)] for h in range(SHARED)]
    of_heads = [k for h in range(HEADS) for k in head[h // (HEADS // SHARED)]]
    every = list(range(HEADS * SIZE))
    assert found == {
        "norm1": {"q": every, "k": every, "v": every},
        "v": {"o": of_heads},
        "norm2": {"gate": every, "up": every},
        "up": {"down": list(range(24))},
    }


@given(seed=st.integers(0, 1000), norm=st.sampled_from([Norm, nn.RMSNorm, nn.LayerNorm]))
@settings(max_examples=6, deadline=None)
def test_any_scales_keep_the_function(seed, norm):
    gm, x = copy.deepcopy(captured(norm)[0]), captured(norm)[1]
    before, g = gm(x), torch.Generator().manual_seed(seed)
    for place in places(gm, [x]):
        width = int(graph.shape_of(place.maker)[-1])
        scale_place(gm, place, 10 ** (torch.rand(width, generator=g).double() * 4 - 2))
    graph.tidy(gm)
    torch.testing.assert_close(gm(x), before, rtol=1e-9, atol=1e-9)
    changed = graph.get(gm, "gate.weight") / graph.get(captured(norm)[0], "gate.weight")
    assert changed.max() / changed.min() > 10


class Others(nn.Module):
    """Channels that are read in ways which no scale passes, and some that it does."""

    def __init__(self):
        super().__init__()
        for name in "abcdefgh":
            setattr(self, name, nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        y = self.norm(x)
        a = self.b(F.relu(self.a(y)))  # passes
        c = self.d(F.gelu(self.c(y)))  # does not
        e = self.e(y)
        return a + c + self.f(e * e) + self.g(e) + self.h(self.norm(a)[:, 1:].sum(1, keepdim=True))


def test_where_no_scale_passes(data):
    x = torch.randn(6, 5, 8)
    gm = minq.capture(seeded(Others), x)
    found = places(gm, [x])
    assert read(gm, found).keys() == {"a"}  # the norm is used twice, so its factor is not free


def test_a_residual_branch_behind_a_norm_is_given_its_factor_back(data):
    class After(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a = nn.RMSNorm(16), nn.Linear(16, 16)

        def forward(self, x):
            y = self.norm(x)
            return y + self.a(y)

    gm = minq.capture(seeded(After), data)
    (place,) = places(gm, [data])
    before = gm(data)
    scale_place(gm, place, torch.linspace(0.1, 10, 16))
    torch.testing.assert_close(graph.tidy(gm)(data), before, rtol=1e-4, atol=1e-5)


# --- The search -----------------------------------------------------------------------------------


def nearest(w, bits=3, group=8):
    low, high = ranges.min_max(w, axis=0, group=group)
    scale, _ = scale_zero_point(low, high, bits, signed=True, symmetric=True)
    return fake_quantize(w, scale, bits=bits, signed=True, axis=0, group=group)


def from_the_formula(w, x, alphas):
    """AWQ's loop in NumPy: a weight of its own for each alpha, the outputs of every row."""
    w, x = w.double().numpy(), x.double().numpy()
    losses = []
    for alpha in alphas:
        s = np.abs(x).mean(0) ** alpha
        s = s / np.exp(np.log(s).mean())
        losses.append((((nearest(w * s) @ np.diag(1 / s) - w) @ x.T) ** 2).sum() / len(x))
    return losses


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_search_of_the_formula(seed):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(6, 20, generator=g).double()
    x = torch.randn(200, 20, generator=g).double() * torch.rand(20, generator=g) ** 4 * 10
    found = awq(w, x, nearest)
    want = from_the_formula(w, x, found.errors)
    assert list(found.errors) == pytest.approx(np.linspace(0, 1, 20))
    np.testing.assert_allclose(list(found.errors.values()), want, rtol=1e-9)
    assert found.errors[found.alpha] == min(found.errors.values()) < 0.8 * found.errors[0.0]
    torch.testing.assert_close(found.scales, awq_scales(x.abs().mean(0), found.alpha))


@given(
    st.lists(st.floats(0.015625, 64, width=32), min_size=1, max_size=8),
    st.floats(0, 1),
)
@settings(deadline=None)
def test_scales_are_a_power_of_the_activations(a, alpha):
    s = awq_scales(torch.tensor(a + [0.0]).double(), alpha)
    assert s[-1] == 1 and float(s[:-1].log().mean()) == pytest.approx(0, abs=1e-9)
    ratio = s[:-1] / torch.tensor(a).double() ** alpha
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-9, atol=0)


def test_even_inputs_need_no_scales():
    w = torch.randn(4, 16)
    found = awq(w, torch.eye(16).repeat(4, 1), nearest)
    assert found.alpha == 0 and (found.scales == 1).all()


@pytest.mark.parametrize("kind", [None, "integer", "real"])
@pytest.mark.parametrize("group", [None, 6])
def test_the_range_of_each_group_is_the_best_of_those_tried(kind, group):
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(3, 16, generator=g), torch.randn(50, 16, generator=g) @ torch.randn(16, 16)
    scheme = Scheme(weights=3, per_channel=True, group_size=group, weight_zero_point=kind)
    shares = search_shares(w, x.T @ x, scheme.weight_quantizer(0))
    size = group or 16
    assert shares.shape == ((3,) if group is None else (3, 3)) and (shares < 1).any()
    for o, k in itertools.product(range(3), range(-(-16 // size))):
        part = slice(k * size, (k + 1) * size)
        losses = []
        for share in SHARES:
            row = w[o, part]
            center = (row.min() + row.max()) / 2 if kind == "real" else 0.0
            ends = [center + share * (v - center) for v in (row.min(), row.max())]
            quantizer = Quantizer(scheme.weight_grid(), symmetric=kind is None).set_range(*ends)
            change = quantizer.freeze()(row).detach() - row
            losses.append(float((x[:, part] @ change).square().sum()))
        best = SHARES[int(np.argmin(losses))]
        assert float(shares.reshape(3, -1)[o, k]) == pytest.approx(best)


# --- In the pipeline ------------------------------------------------------------------------------


def plain(**more):
    given = {"weights": 3, "activations": None, "per_channel": True, "group_size": 8}
    off = {"rounding": Nearest(correct_bias=False), "weight_range": "min_max", "progress": False}
    return given | off | more


def loss(q, model, x):
    with torch.no_grad():
        return float((q(x) - model(x)).square().mean())


def test_it_helps_and_gptq_comes_on_top(data):
    model, found = seeded(), {}
    for equalize in (False, AWQ(), AWQ(clip=True)):
        for rounding in (Nearest(correct_bias=False), GPTQ()):
            q = minq.ptq(model, data, **plain(equalize=equalize, rounding=rounding))
            found[equalize, type(rounding)] = loss(q, model, data)
    assert found[AWQ(), Nearest] < 0.9 * found[False, Nearest]
    assert found[AWQ(clip=True), Nearest] < found[AWQ(), Nearest]
    for equalize in (False, AWQ(), AWQ(clip=True)):
        assert found[equalize, GPTQ] < found[equalize, Nearest]


def test_each_layer_is_no_worse_than_with_nearest(data):
    """The error of the layers that read one tensor, on the data it was chosen on."""
    model, inputs = seeded(), {}
    gm = minq.capture(model, data)
    for name in ("q", "k", "o", "gate", "down"):
        hook = lambda m, x, y, name=name: inputs.__setitem__(name, x[0].flatten(0, -2))  # noqa: E731
        getattr(model, name).register_forward_hook(hook)
    with torch.no_grad():
        model(data)
    fields = {k: plain()[k] for k in ("weights", "per_channel", "group_size", "weight_range")}
    AWQ(rows=10**6).apply(gm, [[data]], Scheme(**fields))
    gained = []
    for names in (("q", "k"), ("o",), ("gate",), ("down",)):
        before, after = 0.0, 0.0
        for name in names:
            w, x = getattr(model, name).weight.detach(), inputs[name]
            scaled = graph.get(gm, f"{name}.weight").detach()
            s = (scaled / w).median(0).values
            before += float((x @ (nearest(w) - w).T).square().sum())
            after += float((x @ ((nearest(scaled) - scaled) / s).T).square().sum())
        gained.append(after / before)
    assert max(gained) < 1.02 and min(gained) < 0.9  # of q, k, v and of gate, up without v and up


def test_clipping_is_kept_with_the_network(data, tmp_path):
    settings = plain(equalize=AWQ(clip=True))
    q = minq.ptq(seeded(), data, **settings)
    shares = [w.estimator.shares for w in weight_quantizers(q).values()]
    assert len(shares) == 7 and all((s <= 1).all() for s in shares)
    assert sum(int((s < 1).sum()) for s in shares) > 20
    fresh = minq.insert_quantizers(minq.capture(seeded(), data), weights=3, activations=None,
                                   per_channel=True, group_size=8)  # fmt: skip
    fresh.load_state_dict(q.state_dict())
    torch.save(q, tmp_path / "q.pt")
    again = torch.load(tmp_path / "q.pt", weights_only=False)
    assert torch.equal(fresh(data), q(data)) and torch.equal(again(data), q(data))
    assert minq.debug(q, seeded(), data, each=False).exact > 60


def test_the_line_one_writes_first_is_as_good_as_any(data):
    """Its default range is not asked where AWQ clips, and a decoder without biases gets none."""
    model = seeded()
    model.o.bias = model.down.bias = None
    first = plain(equalize=AWQ(clip=True))
    best = minq.ptq(model, data, **first)
    plainly = {k: first[k] for k in ("weights", "activations", "per_channel", "group_size")}
    q = minq.ptq(
        model, data, rounding="nearest", equalize=AWQ(clip=True), progress=False, **plainly
    )
    assert torch.equal(q(data), best(data))


def test_layers_that_stay_in_float_ask_for_nothing(data):
    model = seeded()
    q = minq.ptq(model, data, **plain(equalize=AWQ(), skip=["q", "k", "v", "gate", "up", "down"]))
    for name in ("norm1", "norm2"):
        assert torch.equal(q.get_parameter(f"{name}.weight"), getattr(model, name).weight)
    assert not torch.equal(q.get_parameter("o.weight"), model.o.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minq.ptq(model, data, **plain(equalize=AWQ(), weights=None))


def test_tied_weights_stay_tied(data):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Embedding(40, 16), nn.RMSNorm(16)
            self.block = Block()

        def forward(self, ids):
            return F.linear(self.norm(self.block(self.embed(ids))), self.embed.weight)

    ids = torch.randint(0, 40, (6, 9), generator=torch.Generator().manual_seed(0))
    q = minq.ptq(seeded(Tied), ids, **plain(equalize=AWQ()))
    assert len(weight_quantizers(q)) == 8


def test_smoothing_reads_rms_norms_too(data):
    model = seeded()
    model.norm1.weight.data[3] = 30
    given = {"weights": 8, "per_channel": True, "rounding": "nearest", "progress": False}
    before = minq.ptq(model, data, equalize=False, **given)
    after = minq.ptq(model, data, equalize=Smooth(), **given)
    steps = [q.get_submodule("norm1.rms_norm.quantizer").scale for q in (before, after)]
    assert steps[1] < steps[0] / 2  # the channel that stood out sets the range no more
    gamma = after.get_parameter("norm1.weight") / model.norm1.weight
    assert gamma[3] == gamma.min() < 0.5


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: awq(torch.ones(2, 3), torch.ones(4, 2), nearest), "does not fit weight"),
        (lambda: AWQ(points=0), "points must be at least 1"),
        (lambda: AWQ(rows=-1), "rows must be at least 1"),
        (lambda: awq_scales(torch.ones(3), 1.5), "alpha must be"),
        (lambda: Smooth(-1.0), "alpha must be"),
    ],
)
def test_it_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_class_is_no_object(data):
    with pytest.raises(TypeError, match="an object such as"):
        minq.ptq(seeded(), data, equalize=AWQ)
