"""FoldOrKeep in Python: its integers, scales and biases are those of minq.qat; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

from minqbook.widgets import FoldOrKeep
from minqbook.widgets.fold_or_keep import WAYS

RNG = np.random.default_rng(0)
C, B = 6, 3
GIVEN = {
    "weight": RNG.normal(size=(C, 2, 3)),
    "gamma": RNG.uniform(0.5, 2, C),
    "beta": RNG.normal(size=C),
    "mean": RNG.normal(size=C),
    "variance": RNG.uniform(0.5, 2, C),
    "batch_means": RNG.normal(size=(B, C)),
    "batch_variances": RNG.uniform(0.5, 2, (B, C)),
}


@pytest.mark.parametrize(
    "way, per_channel",
    [("fold", False), ("fold", True), ("dynamic", False), ("dynamic", True), ("keep", True)],
)
def test_it_is_what_minq_trains(way, per_channel):
    """A layer and its batch norm, prepared and shown one batch."""
    torch = pytest.importorskip("torch")
    from torch import nn

    from minq.qat import finish, prepare
    from minq.simulate import weight_quantizers

    draw = torch.manual_seed(0)
    layer = linear, norm = nn.Sequential(nn.Linear(7, C, bias=False), nn.BatchNorm1d(C))
    for name, target in (("gamma", norm.weight), ("beta", norm.bias), ("mean", norm.running_mean)):
        target.data = torch.tensor(GIVEN[name]).float()
    norm.running_var.data = torch.tensor(GIVEN["variance"]).float()
    x = torch.randn(40, 7, generator=draw) * 1.5 + 0.5
    y = x @ linear.weight.detach().T
    w = FoldOrKeep(
        linear.weight.detach(), norm.weight.detach(), norm.bias.detach(), norm.running_mean.clone(),
        norm.running_var.clone(), y.mean(0)[None], y.var(0)[None], eps=norm.eps,
        per_channel=per_channel, way="fold once" if way == "fold" else way,
    )  # fmt: skip
    order = np.argsort(np.abs(GIVEN["gamma"]) / np.sqrt(GIVEN["variance"] + norm.eps))

    net = prepare(
        layer.eval(), x, weights=4, activations=None, per_channel=per_channel, batch_norm=way,
        weight_range="min_max", equalize=False, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        shown = net.train()(x).numpy()[:, order]
    finish(net)
    (quantizer,) = weight_quantizers(net).values()
    integers, want = quantizer.quantize(net.get_parameter("0.weight")), w.result()
    np.testing.assert_array_equal(want["integers"], integers.detach().numpy()[order])
    scale = quantizer.scale_zero_point()[0].detach().expand(C).numpy()[order]
    near = 0.02 if way == "keep" else 1e-3  # a kept batch norm sees the outputs of rounded weights
    np.testing.assert_allclose(want["scale"], scale, rtol=near)
    bias = net.get_parameter("0.bias").detach().numpy()[order]
    np.testing.assert_allclose(want["bias"], bias, rtol=near, atol=near)
    # Rounding moves the outputs a little; their mean and deviation are those that were told.
    np.testing.assert_allclose(shown.mean(0), want["mean"], atol=0.25)
    np.testing.assert_allclose(shown.std(0, ddof=1), want["deviation"], rtol=0.25)


def test_means_flip_nothing_and_variances_only_what_is_folded():
    for way in WAYS:
        w = FoldOrKeep(**GIVEN, way=way, batch=0, shift=1.5)
        assert (w.result()["integers"] == w.result()["before"]).all()
        w.spread = 3.0
        flipped = (w.result()["integers"] != w.result()["before"]).any()
        assert flipped == (way in ("by the batch", "dynamic")), way


def test_one_batch_folded_by_hand():
    w = FoldOrKeep(**GIVEN, per_channel=True, batch=2)
    order = np.argsort(GIVEN["gamma"] / np.sqrt(GIVEN["variance"] + w.eps))
    now = GIVEN["gamma"] / np.sqrt(GIVEN["batch_variances"][1] + w.eps)
    first = GIVEN["weight"].reshape(C, -1) * (GIVEN["gamma"] / np.sqrt(GIVEN["variance"]))[:, None]
    scale = np.maximum(first.max(1) / 7, first.min(1) / -8)
    want = np.clip(np.rint(GIVEN["weight"].reshape(C, -1) * now[:, None] / scale[:, None]), -8, 7)
    np.testing.assert_array_equal(w.result()["integers"], want[order])
    np.testing.assert_allclose(w.result()["deviation"], GIVEN["gamma"][order], rtol=1e-4)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"gamma": np.ones(5)}, "gamma must have the shape"),
        ({"batch_means": np.ones((2, 5))}, "batch_means must have the shape"),
        ({"variance": -np.ones(C)}, "variance must be above 0"),
        ({"gamma": np.zeros(C)}, "gamma must not be 0"),
        ({"weight": np.ones((C, 1000))}, "at most 4,000"),
        ({"batch": 4}, "from 0 to 3"),
        ({"channel": C}, "from 0 to 5"),
        ({"spread": 5.0}, "0.25 to 4"),
        ({"shift": 3.0}, "-2 to 2"),
        ({"way": "never"}, "never"),
    ],
)
def test_it_refuses(change, words):
    with pytest.raises((ValueError, traitlets.TraitError), match=words):
        FoldOrKeep(**GIVEN | change)
