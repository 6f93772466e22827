"""Rounding judged on samples that it has not seen."""

from itertools import product

import pytest
import torch
from torch import nn

import minq
from minq.grid import INT4
from minq.ptq.adaround import adaround
from minq.ptq.heldout import FACTORS, SHRINKAGES, choose, held_out_error
from minq.ptq.rounding import AdaRound


def _task(rows=40, width=6, outputs=3, groups=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, rows, width, generator=g) @ torch.randn(width, width, generator=g)
    w = torch.randn(groups * outputs, width, generator=g)
    y = torch.baddbmm(torch.zeros(1), x, w.reshape(groups, outputs, width).transpose(1, 2))
    return w, x, y, torch.full((groups * outputs,), 0.6)


def test_shrunk_all_the_way_it_is_rounding_to_nearest():
    w, x, y, s = _task()
    assert torch.equal(adaround(w, x, y, s, shrinkage=1.0), 0.6 * (w / 0.6).round().clamp(-8, 7))


@pytest.mark.parametrize("shrinkage", [0.1, 0.3, 0.6])
def test_close_to_the_best_of_the_shrunk_objective(shrinkage):
    w, x, y, s = _task()

    def objective(v):
        spread = (x[0] @ (v - w).T).square().mean(0)
        return (1 - shrinkage) * spread + shrinkage * (v - w).square() @ x[0].square().mean(0)

    down = 0.6 * (w / 0.6).floor()
    ways = [objective(down + 0.6 * torch.tensor(up)) for up in product((0.0, 1.0), repeat=6)]
    best, found = torch.stack(ways).amin(0), objective(adaround(w, x, y, s, shrinkage=shrinkage))
    assert (found >= best * (1 - 1e-5)).all() and found.sum() < 1.5 * best.sum()


def test_few_rows_are_believed_less_and_other_samples_gain():
    w, x, y, s = _task(rows=3000, width=96, outputs=16)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    y_noisy = y + noise * y.std()  # what the layers before have done
    few = x[:, :80], y_noisy[:, :80]
    factor, shrinkage = choose(w, *few, s, 0, INT4)
    assert factor.eq(1).all() and shrinkage > 0

    def error(share):
        rounded = adaround(w, *few, s, 0, INT4, shrinkage=share)
        return float((x[0, 1000:] @ rounded.T - y[0, 1000:]).square().mean())

    assert error(shrinkage) < 0.8 * error(0.0)


def test_many_rows_are_believed():
    w, x, y, s = _task(rows=64 * 40, width=40)
    assert choose(w, x, y, s, 0, INT4)[1] == 0.0


@pytest.mark.parametrize("groups", [1, 4])
def test_each_output_gets_the_factor_with_the_least_held_out_error(groups):
    w, x, y, s = _task(groups=groups)
    factor, shrinkage = choose(w, x, y, s, 0, INT4)
    errors = []
    for f in FACTORS:  # by hand
        rounded = adaround(w, x[:, :20], y[:, :20], s * f, 0, INT4, sweeps=10)
        y_hat = torch.einsum("grk,gok->gro", x[:, 20:], rounded.reshape(groups, -1, 6))
        errors.append((y_hat - y[:, 20:]).square().sum(1).flatten())
    errors = torch.stack(errors)
    chosen = torch.stack([held_out_error(w, x, y, s * factor, 0, INT4)])
    torch.testing.assert_close(chosen[0], errors.amin(0), rtol=1e-4, atol=1e-5)
    assert shrinkage == 0.0 and factor.shape == s.shape
    assert choose(w, x, y, torch.tensor(0.6), 0, INT4)[0].shape == ()


def test_one_row_leaves_nothing_to_judge_by():
    w, x, y, s = _task(rows=1)
    factor, shrinkage = choose(w, x, y, s, 0, INT4)
    assert factor.eq(1).all() and shrinkage == 0


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(shrinkage):
    w, x, y, s = _task()
    with pytest.raises(ValueError, match="shrinkage must be from 0 to 1"):
        adaround(w, x, y, s, shrinkage=shrinkage)
    assert SHRINKAGES[0] == 0


def test_a_run_goes_on_with_the_scales_it_has_found(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)).eval()
    with torch.no_grad():
        net[0].weight[:, 0, 0, 0] = 1.5  # a range that holds it is too wide for the others
    x = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    settings = {"weights": 4, "per_channel": True, "progress": False}
    settings["rounding"] = AdaRound(held_out=True)
    settings["checkpoint"] = tmp_path / "layers.pt"
    first, again = (minq.ptq(net, x, **settings) for _ in range(2))
    plain = minq.ptq(net, x, **settings | {"rounding": "adaround", "checkpoint": None})
    key = "0.weight_quantizer.scale"
    for name, value in first.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.state_dict()[key], plain.state_dict()[key])
