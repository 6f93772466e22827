"""Where a quantizer stands around layers that are skipped, unsupported or share a weight."""

import warnings

import pytest
import torch
from integers import assert_same
from networks import Lambda, noise
from torch import nn
from torch.nn import functional as F

import minq
from minq.ptq import AdaRound, Nearest
from minq.simulate import activation_quantizers, weight_quantizers


@pytest.mark.parametrize("skip", [("2",), ("0", "2"), ("0", "2", "4")])
def test_a_skipped_layer_is_rounded_once_behind_its_relu(skip):
    layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    gm = minq.insert_quantizers(minq.capture(nn.Sequential(*layers), noise(4, 6)), skip=skip)
    names = [n.partition(".quantizer")[0] for n in activation_quantizers(gm)]
    assert names == ["input", "1", "3", "4"][: 3 if "4" in skip else 4]


def test_what_reads_one_of_several_results_in_float_gets_a_quantizer():
    def forward(m, x):
        values, _ = torch.cummax(m.a(x), 1)
        return m.b(values)

    model = Lambda(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 2)).eval()
    with pytest.warns(UserWarning, match="cummax is not among"):
        gm = minq.insert_quantizers(minq.capture(model, noise(4, 6)))
    assert "b.input.quantizer" in activation_quantizers(gm)


def test_a_weight_from_the_input_is_named():
    model = Lambda(
        lambda m, x: F.conv2d(x, m.a(x[0, 0, :, 0]).reshape(4, 3, 1, 1)), a=nn.Linear(5, 12)
    ).eval()
    with pytest.warns(UserWarning, match="the weight of conv2d is computed from the network's"):
        minq.insert_quantizers(minq.capture(model, noise(4, 3, 5, 5)))


def test_a_head_is_parted_from_its_embedding_when_it_is_rounded():
    """AdaRound is at least as good as rounding to nearest; with nearest they stay one."""
    torch.manual_seed(0)
    model = Lambda(
        lambda m, i: m.o(torch.relu(m.a(m.e(i)))),
        e=nn.Embedding(40, 16), a=nn.Linear(16, 16), o=nn.Linear(16, 40, bias=False),
    ).eval()  # fmt: skip
    model.o.weight = model.e.weight
    ids, found = torch.randint(0, 40, (128, 9)), {}
    for rounding in (Nearest(), AdaRound(sweeps=3)):
        q = minq.ptq(model, ids, weights=4, per_channel=True, rounding=rounding)
        found[type(rounding)] = minq.sqnr(model(ids).detach(), q(ids).detach())
        assert len(weight_quantizers(q)) == (2 if rounding == Nearest() else 3)
    assert "o.weight_quantizer" in weight_quantizers(q)
    assert found[AdaRound] > found[Nearest] + 1


def test_a_weight_that_layers_share_is_rounded_to_nearest():
    torch.manual_seed(0)
    model, x = Lambda(lambda m, x: m.a(m.a(x).relu()), a=nn.Linear(8, 8)).eval(), noise(64, 8)
    kept = {}
    for rounding in (Nearest(correct_bias=False), AdaRound()):
        q = minq.ptq(model, x, weights=4, rounding=rounding)
        weight = minq.graph.get(q, "a.weight")
        kept[type(rounding)] = minq.quantizers(q)["a.weight_quantizer"](weight)
    assert torch.equal(kept[Nearest], kept[AdaRound])


def squash(s):
    n = s.square().sum(-1, keepdim=True)
    return n / (1 + n) * s / torch.sqrt(n + 1e-8)


@pytest.mark.parametrize(
    "divide",
    [
        squash,
        lambda y: y / y.square().sum(-1, keepdim=True).add(1e-12).sqrt(),
        lambda y: (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 1e-5) ** 0.5,
        lambda y: y / torch.tensor([1.0, 1e-4, 1e4, 1.0]),
        F.normalize,
    ],
)
def test_nothing_that_is_divided_by_is_rounded_to_zero(divide):
    """Rows of zeros, which all of these bear: x / 0 has no grid."""
    x = noise(32, 5, 6)
    x[:, 3:] = 0
    model = Lambda(lambda m, x: m.b(divide(m.a(x))), a=nn.Linear(6, 4, False), b=nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = minq.ptq(model.eval(), x, rounding="nearest", equalize=False)
    y = q(x).detach()
    assert y.isfinite().all() and minq.sqnr(model(x).detach(), y) > 20
    net = assert_same(q, x)
    assert net(x).isfinite().all()
