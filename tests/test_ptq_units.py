"""Features of very different units on one grid are told, and nothing else is."""

import warnings

import pytest
import torch
from networks import noise
from torch import nn

import minq
from minq.ptq.debug import only
from minq.ptq.units import FEW

UNITS = torch.tensor([1e-3, 1.0, 1e3, 10.0, 0.1, 100.0])


class Divided(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("units", UNITS)
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x / self.units)


def weighed():
    layer = nn.Linear(6, 4)
    layer.weight.data /= UNITS
    return layer


def normed():
    norm = nn.BatchNorm1d(6, momentum=1.0)
    norm.train()(noise(256, 6) * UNITS)
    return nn.Sequential(norm, nn.Linear(6, 4))


def convolved():
    layer = nn.Conv1d(6, 6, 1, groups=2)
    layer.weight.data /= UNITS.reshape(2, 1, 3, 1).expand(2, 3, 3, 1).flatten(0, 1)
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (6, 1)), layer)


@pytest.mark.parametrize("make", [weighed, normed, Divided, convolved])
def test_features_of_different_units_are_told(make):
    torch.manual_seed(0)
    model, x = make().eval(), noise(64, 6) * UNITS
    with pytest.warns(UserWarning, match="one step for all features is too coarse for"):
        q = minq.ptq(model, x, rounding="nearest")
    # It costs what is said, with the weights exact.
    weights = [n for n in minq.quantizers(q) if n.endswith("weight_quantizer")]
    with only(q, set(minq.quantizers(q)) - set(weights)), torch.no_grad():
        y, z = model(x), q(x)
    assert minq.sqnr(y - y.mean(0), z - z.mean(0)) < FEW + 3


@pytest.mark.parametrize("make", [
    lambda: (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), noise(64, 6)),
    lambda: (nn.Linear(6, 4), noise(1, 6).expand(64, 6) + 1e-6 * noise(64, 6)),  # all but constant
    lambda: (nn.Linear(6, 4), noise(64, 6) * UNITS),  # small channels that count as little
    lambda: (nn.Sequential(nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(4, 4, 3, groups=2)),
             noise(4, 6, 8, 8)),
])  # fmt: skip
def test_others_are_not(make):
    torch.manual_seed(0)
    model, x = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minq.ptq(model, x, rounding="nearest")
