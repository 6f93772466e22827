"""Groups of channels against every possible cut, smoothing against the function it must keep."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import minq
from minq import ranges
from minq.affine import fake_quantize, scale_zero_point, sqnr
from minq.deploy.integer import simulation
from minq.graph import layers, notes_of, weight_of
from minq.ptq import Nearest, equalize
from minq.ptq.smooth import smooth
from minq.quantizer import Quantizer
from minqbook import zoo

# --- Groups of channels ---------------------------------------------------------------------------


def noise(widths, labels):
    """sum_g N_g r_g^2, by its definition."""
    members = [np.asarray(widths)[np.asarray(labels) == g] for g in set(labels)]
    return sum(len(m) * m.max() ** 2 for m in members)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=7), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_no_partition_has_less_noise(widths, groups):
    groups = min(groups, len(widths))
    labels = ranges.channel_groups(widths, groups)
    assert sorted(set(labels.tolist())) == list(range(groups))
    every = itertools.product(range(groups), repeat=len(widths))  # sorted or not
    least = min(noise(widths, p) for p in every if len(set(p)) == groups)
    assert noise(widths, labels.tolist()) == pytest.approx(least, rel=1e-9)


def test_wider_channels_are_in_later_groups():
    widths = np.random.default_rng(0).pareto(1, 300)
    labels = ranges.channel_groups(widths, 5)
    for g in range(4):
        assert widths[labels == g].max() <= widths[labels == g + 1].min()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_one_group_is_the_tensor_and_as_many_as_channels_are_channels(kind):
    x = kind(np.random.default_rng(1).normal(size=(4, 5, 8)).astype(np.float32))
    for axis in (-1, 1, 0):
        one = ranges.grouped(x, 1, axis=axis)
        for end, whole in zip(one, ranges.min_max(x), strict=True):
            assert type(end) is type(x) and (end == whole).all() and len(end) == x.shape[axis]
        many = ranges.grouped(x, x.shape[axis], axis=axis)
        for end, own in zip(many, ranges.min_max(x, axis=axis), strict=True):
            assert (end == own).all()


def test_each_group_has_the_range_that_the_estimator_gives_its_channels():
    rng = np.random.default_rng(2)
    x = rng.standard_t(3, (50, 12)) * rng.pareto(1, 12)
    low, high = ranges.grouped(x, 3, lambda v: ranges.mse(v, 4))
    labels = ranges.channel_groups(x.max(0) - x.min(0), 3)
    for g in range(3):
        expected = ranges.mse(x[:, labels == g], 4)
        assert set(low[labels == g]) == {float(expected[0])}
        assert set(high[labels == g]) == {float(expected[1])}


def test_groups_save_the_ordinary_channels_from_an_outlier():
    x = np.random.default_rng(3).normal(size=(200, 64))
    x[0, 7] = 200
    ordinary = np.arange(64) != 7
    result = []
    for groups in (1, 2):
        scale, zero_point = scale_zero_point(*ranges.grouped(x, groups), 8)
        x_hat = fake_quantize(x, scale, zero_point, 8, axis=-1)
        result.append(sqnr(x[:, ordinary], x_hat[:, ordinary]))
    assert result[1] > result[0] + 20


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ranges.channel_groups([1.0, 2.0], 3), "at most as many groups as channels"),
        (lambda: ranges.channel_groups([[1.0]], 1), "one width a channel"),
        (lambda: ranges.channel_groups([1.0], 0), "groups must be"),
        (lambda: ranges.grouped(np.ones((2, 2)), 1, group=2), "leave group=None"),
    ],
)
def test_it_refuses_groups(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- Groups in a network --------------------------------------------------------------------------


class Encoder(nn.Module):
    """One of BERT's layers with outliers, behind a layer norm and in a row of an MLP."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 4)
        self.mlp[2].weight.data[5] *= 100
        self.norm1.weight.data[3] = 20

    def forward(self, x):
        x = self.norm1(x)
        return self.head(self.norm2(x + self.mlp(x)))


@pytest.fixture(scope="module")
def data():
    return torch.randn(32, 6, 16, generator=torch.Generator().manual_seed(1))


def plain(**more):
    off = {"rounding": Nearest(correct_bias=False), "equalize": False, "progress": False}
    return off | {"weight_range": "min_max", "activation_range": "min_max"} | more


def test_settings_give_an_activation_its_groups(data):
    q = minq.ptq(Encoder(), data, layers={"add": {"groups": 3}, "mlp.2": {"groups": 2}}, **plain())
    found = minq.quantizers(q)
    assert len(found["add.quantizer"].scale.unique()) == 3
    assert len(found["mlp.2.quantizer"].scale.unique()) == 2
    assert found["mlp.2.quantizer"].scale.shape == (16,)
    others = [x for k, x in found.items() if k.split(".q")[0] not in ("add", "mlp.2")]
    assert all(x.granularity.axis is None for x in others)


@pytest.mark.parametrize("estimator", ["min_max", "mse"])
def test_ranges_are_those_of_all_data_whatever_the_batches(data, estimator):
    settings = plain(activation_range=estimator, weights=None, layers={"add": {"groups": 2}})
    data = data.double()  # the order of sums, which differs with the batch, must tip no value
    one = minq.ptq(Encoder().double(), data, **settings)
    many = minq.ptq(Encoder().double(), list(data.split(8)), **settings)
    for a, b in zip(minq.quantizers(one).values(), minq.quantizers(many).values(), strict=True):
        torch.testing.assert_close(
            a.scale, b.scale, rtol=0.05 if estimator == "mse" else 1e-6, atol=0
        )


def test_groups_help_where_an_outlier_is(data):
    model, x = Encoder(), data[:16]
    model.norm1.weight.data[3] = 1
    before = sqnr(model(x).detach(), minq.ptq(model, data, **plain(weights=None))(x).detach())
    two = {"add": {"groups": 2}, "mlp.2": {"groups": 2}}
    q = minq.ptq(model, data, layers=two, **plain(weights=None))
    assert sqnr(model(x).detach(), q(x).detach()) > before + 6


def test_groups_are_saved_and_loaded(data):
    q = minq.ptq(Encoder(), data, layers={"add": {"groups": 2}}, **plain())
    fresh = minq.capture(Encoder(), data)
    minq.insert_quantizers(fresh, layers={"add": {"groups": 2}})
    fresh.load_state_dict(q.state_dict())
    assert torch.equal(fresh(data), q(data))


def test_a_checkpoint_knows_the_groups(data, tmp_path):
    file = {"checkpoint": tmp_path / "half"}
    minq.ptq(Encoder(), data, layers={"add": {"groups": 2}}, **plain(rounding="adaround"), **file)
    with pytest.raises(ValueError, match="was made with"):
        other = {"add": {"groups": 3}}
        minq.ptq(Encoder(), data, layers=other, **plain(rounding="adaround"), **file)


def test_integers_refuse_groups(data):
    q = minq.ptq(Encoder(), data, layers={"add": {"groups": 2}}, **plain())
    with pytest.raises(ValueError, match="add.quantizer has 16 scales"):
        minq.to_integer(q)


# --- Smoothing ------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.floats(0, 1), st.data())
def test_scales_have_their_closed_form(a, alpha, draw):
    r = draw.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(a), max_size=len(a)))
    s = equalize.smoothing_scales(a, r, alpha)
    expected = np.array(a) ** alpha / np.array(r) ** (1 - alpha)
    np.testing.assert_allclose(s / s[0], expected / expected[0], rtol=1e-9)
    assert np.prod(s) == pytest.approx(1, rel=1e-6)


def test_alpha_says_who_becomes_even():
    a, r = np.array([30.0, 1.0, 0.2]), np.array([0.5, 2.0, 1.0])
    both = [(np.ptp(a / s), np.ptp(r * s)) for s in
            (equalize.smoothing_scales(a, r, alpha) for alpha in (0.0, 0.5, 1.0))]  # fmt: skip
    assert both[2][0] < 1e-12 and both[0][1] < 1e-12
    s = equalize.smoothing_scales(a, r)
    np.testing.assert_allclose(np.diff(np.log((a / s) / (r * s))), 0, atol=1e-12)


def test_dead_channels_keep_their_scale():
    s = equalize.smoothing_scales([0.0, 4.0, 9.0], [1.0, 0.0, 1.0])
    assert s.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_lies_between_0_and_1(alpha):
    with pytest.raises(ValueError, match="alpha must be"):
        equalize.smoothing_scales([1.0], [1.0], alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_function_stays_and_the_activation_gets_even(data, alpha):
    gm = minq.capture(Encoder().double(), data.double())
    smoothed = smooth(minq.capture(Encoder().double(), data.double()), data.double(), alpha=alpha)
    torch.testing.assert_close(smoothed(data.double()), gm(data.double()), rtol=1e-12, atol=1e-12)
    changed = weight_of(smoothed, layers(smoothed)["mlp.0"]) / weight_of(gm, layers(gm)["mlp.0"])
    torch.testing.assert_close(changed, changed[:1].expand_as(changed))  # one factor a column
    if alpha:
        assert changed[0, 3] == changed[0].max() > 2
    gamma = smoothed.get_parameter("norm1.weight") / gm.get_parameter("norm1.weight")
    torch.testing.assert_close(gamma, 1 / changed[0])


def test_smoothing_helps_a_network_whose_layer_norm_has_an_outlier(data):
    model = Encoder()
    model.mlp[2].weight.data[5] /= 100
    exact = model(data).detach()
    settings = plain(per_channel=True)
    before = sqnr(exact, minq.ptq(model, data, **settings)(data).detach())
    after = minq.ptq(smooth(minq.capture(model, data), data), data, **settings)
    assert sqnr(exact, after(data).detach()) > before + 1


def test_the_factors_left_in_the_residual_branch_are_no_quantized_operators(data):
    q = minq.ptq(smooth(minq.capture(Encoder(), data), data), data, **plain())
    assert set(minq.quantizers(q)) == set(minq.quantizers(minq.ptq(Encoder(), data, **plain())))
    constants = [n for n in q.graph.nodes if notes_of(n).smoothing and n.op == "get_attr"]
    assert len(constants) == 1 and len(minq.quantizers(q)) > 5


def test_a_weight_that_two_layers_share_is_parted(data):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.LayerNorm(16), nn.LayerNorm(16)
            self.linear = nn.Linear(16, 16)
            self.a.weight.data[2] = 30

        def forward(self, x):
            return self.linear(self.b(self.linear(self.a(x))))

    gm = smooth(minq.capture(Tied(), data), data)
    torch.testing.assert_close(gm(data), Tied()(data), rtol=1e-4, atol=1e-5)
    assert not [n for n in gm.graph.nodes if notes_of(n).smoothing]


def test_integers_of_a_smoothed_network_are_those_of_the_simulation():
    calibration, x = zoo.calibration_set("text_encoder", 32), zoo.test_set("text_encoder", 20)[0]
    gm = smooth(minq.capture(zoo.load("text_encoder"), calibration), calibration)
    q = minq.ptq(gm, calibration, **plain(per_channel=True))
    integers = minq.to_integer(q, multipliers="float")
    with torch.no_grad():
        torch.testing.assert_close(integers(x).double(), simulation(q)(x), atol=1e-5, rtol=0)


def test_a_quantizer_with_an_axis_learns():
    quantizer = Quantizer(8, axis=-1)
    quantizer(torch.randn(5, 4))
    quantizer.learn()
    quantizer(torch.randn(5, 4)).sum().backward()
    assert quantizer.scale.grad.shape == (4,)
