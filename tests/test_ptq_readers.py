"""Ranges judged by what the next operators make of them, against brute force."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import minq
from minq.ptq import Nearest, readers
from minq.ptq.walk import Walk
from minq.quantizer import Quantizer
from minq.simulate import activation_quantizers, is_quantizer, quantizers


class Tokens(nn.Module):
    """A small token beside large ones, as a class token is; only it is answered with."""

    def __init__(self, size, position):
        super().__init__()
        self.first = nn.Parameter(size * torch.randn(1, 1, 16))
        self.embed, self.norm, self.head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        self.position = nn.Parameter(position * torch.randn(1, 13, 16))
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        x = self.drop(x + self.position)
        x = self.norm(x)
        return self.head(x[:, 0] + 0.1 * x.mean(1))


def tokens(size, position=0.02):
    torch.manual_seed(0)
    return Tokens(size, position).eval(), 3 * torch.randn(33, 12, 8)


def sqnr(model, q, x):
    with torch.no_grad():
        return minq.sqnr(model(x), q(x))


PLAIN = dict(rounding=Nearest(correct_bias=False), equalize=False, per_channel=True)


@pytest.mark.parametrize("size", [0.0, 0.02], ids=["in the position", "in the token"])
def test_a_small_token_is_named_and_the_advice_helps(size):
    """Zero before its position is added, as in torchvision, it is only lost in the sum."""
    model, x = tokens(size)
    with pytest.warns(UserWarning, match=r"too coarse for .*add \(\d+ dB\)") as seen:
        q = minq.ptq(model, x, **PLAIN)
    (text,) = [str(w.message) for w in seen if "too coarse" in str(w.message)]
    assert ("cat (" in text) == (size > 0)
    advice = eval(text[text.index("layers=") + len("layers=") :])  # what the message says, verbatim
    assert set(map(str, advice.values())) == {str({"activations": 16})}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "one range")
        better = minq.ptq(model, x, layers=advice, **PLAIN)
    assert sqnr(model, better, x) > sqnr(model, q, x) + 10


def test_tokens_of_one_size_are_not_named():
    model, x = tokens(3.0, 1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "one range")
        q = minq.ptq(model, x, **PLAIN)
    assert sqnr(model, q, x) > 25


def test_the_output_decides_and_the_old_rules_stay():
    torch.manual_seed(0)
    x = torch.randn(200, 32) * torch.logspace(-2, 0.5, 200)[torch.randperm(200), None]
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = minq.ptq(model, x, **PLAIN)
        made = {
            rule: minq.ptq(model, x, activation_range=rule, **PLAIN)
            for rule in ("output", "mse", "min_max", "percentile")
        }
    got = {rule: sqnr(model, q, x) for rule, q in made.items()}
    assert sqnr(model, default, x) == got["output"]
    assert got["output"] > got["mse"] + 1 and got["output"] > got["min_max"] + 1
    input_range = activation_quantizers(made["min_max"])["input.quantizer"]
    assert (input_range.low, input_range.high) == minq.ranges.min_max(x)


def test_choice_against_brute_force():
    """Layer norm of rows of very different size: of all candidates, the one with least error."""
    torch.manual_seed(1)
    x = torch.randn(64, 32) * torch.logspace(-2, 0.5, 64)[:, None]
    norm = lambda t: F.layer_norm(t, (32,))  # noqa: E731
    q = Quantizer(8, estimator="output")
    q(x)
    q.freeze()
    low, high = q.low.clone(), q.high.clone()
    db = readers.choose_range(q, x, [(norm, x)])
    tried = {}
    for a, b in [(low, high), (x.min(), x.max()), *((low * s, high * s) for s in readers.SHRUNK)]:
        step = (b - a) / 255  # eq. (4) to (7) by hand
        zero = torch.round(-a / step)
        y = step * (torch.clamp(torch.round(x / step) + zero, 0, 255) - zero)
        tried[float(a), float(b)] = minq.sqnr(norm(x), norm(y))
    assert db == pytest.approx(max(tried.values()), abs=0.05)
    assert tried[float(q.low), float(q.high)] == pytest.approx(db, abs=0.05)


def test_the_range_of_the_estimator_stays_unless_another_is_clearly_better():
    x = torch.randn(5000)
    q = Quantizer(4, estimator="output")
    q(x)
    low, high = q.freeze().low.clone(), q.high.clone()
    readers.choose_range(q, x, [(lambda t: t, x)])  # the squared error itself: mse has solved it
    assert torch.equal(q.low, low) and torch.equal(q.high, high)


def test_readers_without_signal_or_data_decide_nothing():
    q = Quantizer(8).set_range(-1, 1).freeze()
    x = torch.randn(8)
    for none in ([], [(lambda t: 0 * t, x)], [(lambda t: t * torch.inf, x)]):
        assert readers.choose_range(q, x, none) == torch.inf
        assert float(q.low) == -1 and float(q.high) == 1


class Paths(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)
        self.linear, self.second = nn.Linear(4, 5), nn.LayerNorm(4)
        self.shift = nn.Parameter(torch.randn(1, 16, 4))

    def forward(self, x):
        y = F.relu(self.conv(x))  # the quantizer behind it is read by four
        z = y.permute(0, 2, 3, 1).flatten(1, 2)
        return self.linear(z[:, :2]), y + self.norm(y), self.second(z + self.shift)


def test_what_reads_a_tensor():
    """The norms, through views and sums with constants; for the rest one identity."""
    torch.manual_seed(0)
    model, x = Paths().eval(), torch.randn(6, 3, 6, 6)
    gm = minq.capture(model, x)
    minq.insert_quantizers(gm)
    found = {}
    walk = Walk(gm, [[x[:3]], [x[3:]]])
    for node in walk:
        if is_quantizer(node) and node.args[0].op != "get_attr":
            found[node.target] = [f(v) for f, v in readers.readers_of(gm, node, walk)]
    assert found["x.quantizer"] == []  # a convolution is linear
    with torch.no_grad():
        y = F.relu(model.conv(x))
        z = y.permute(0, 2, 3, 1).flatten(1, 2)
        behind = found["relu.quantizer"]
        for part in (slice(3), slice(3, 6)):
            for v in (model.norm(y[part]), model.second(z[part] + model.shift), y[part]):
                assert any(v.shape == b.shape and torch.allclose(v, b, atol=1e-5) for b in behind)


def test_weights_have_no_output_rule():
    with pytest.raises(ValueError, match='weight_range .*"mse"'):
        minq.ptq(nn.Linear(3, 2), torch.randn(4, 3), weight_range="output")


def test_groups_of_channels_keep_their_own_ranges():
    model, x = tokens(0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = minq.ptq(model, x, layers={"add*": {"groups": 4}}, **PLAIN)
    assert any(v.granularity.axis is not None and v.low.numel() > 1 for v in quantizers(q).values())
