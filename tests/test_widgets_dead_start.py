"""DeadStart in Python: its training is minq's and torch's; what becomes of each start; refusals."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

from minqbook.widgets import DeadStart
from minqbook.widgets.dead_start import STARTS, scale_of, train
from minqbook.zoo import digit_chain
from minqbook.zoo.chain import loss_and_gradients


@pytest.mark.parametrize("start", ["MSE", "min-max", "too narrow"])
def test_it_trains_as_minq_and_torch_do(start):
    """Ten steps of SGD through learned quantizers, in double precision, on data without ties."""
    torch = pytest.importorskip("torch")
    from minq import Quantizer

    rng, sizes, rate = np.random.default_rng(3), (7, 6, 5, 4), 0.3
    weights = [rng.normal(size=(o, i)) for i, o in zip(sizes, sizes[1:], strict=False)]
    x, digits = np.abs(rng.normal(size=(30, 7))), rng.integers(0, 4, 30)
    scales = [scale_of(w, start) for w in weights]
    latent = [torch.tensor(w, requires_grad=True) for w in weights]
    quantizers = []
    for s in scales:
        q = Quantizer(2, signed=True, symmetric=True).double().set_range(-2 * s, s)
        q.learn(normalize=True).scale.data = torch.tensor(s, dtype=torch.float64)
        quantizers.append(q)
    descent = torch.optim.SGD([*latent, *(q.scale for q in quantizers)], lr=rate)
    for seen in train(weights, scales, x, digits, rate, 10):
        h = torch.tensor(x)
        for k, (w, q) in enumerate(zip(latent, quantizers, strict=True)):
            h = h @ q(w).T
            h = h.relu() if k < 2 else h
        loss = torch.nn.functional.cross_entropy(h, torch.tensor(digits))
        descent.zero_grad()
        loss.backward()
        assert seen["loss"] == pytest.approx(loss.item(), rel=1e-9)
        by_weight = [w.grad.square().mean().sqrt().item() for w in latent]
        by_scale = [q.scale.grad.item() for q in quantizers]
        np.testing.assert_allclose(seen["weight_gradients"], by_weight, rtol=1e-8, atol=1e-14)
        np.testing.assert_allclose(seen["scale_gradients"], by_scale, rtol=1e-8, atol=1e-14)
        descent.step()
    assert seen["scales"] != scales or start == "too narrow"


def test_the_network_reads_digits():
    weights, pictures, digits = digit_chain()
    assert loss_and_gradients(weights, pictures / 16, digits)[1] > 0.95


def test_what_becomes_of_each_start():
    first, last = {}, {}
    for start in STARTS:
        w = DeadStart(*digit_chain(), start=start)
        seen = train(w.weights, w.scales[start], w.pictures / 16, w.digits, w.rate, 60)
        first[start], last[start] = seen[0], seen[-1]
        w.step = 60
        assert w.result() == seen[-1]
    guess = np.log(10)
    assert last["MSE"]["loss"] < 1 and last["MSE"]["right"] > 0.6
    for start in ("too wide", "min-max"):
        assert last[start]["loss"] == pytest.approx(guess, abs=0.1)
        assert not any(last[start]["weight_gradients"] + last[start]["scale_gradients"])
    assert first["too wide"]["zeros"] == [1.0] * 5 and min(first["min-max"]["zeros"]) > 0.8
    assert not any(first["too wide"]["weight_gradients"])
    assert any(first["min-max"]["weight_gradients"])
    # Few weights at 0, and dead all the same: most are clipped.
    assert max(first["too narrow"]["zeros"]) < 0.5 < np.mean(first["too narrow"]["clipped"])
    assert last["too narrow"]["loss"] == pytest.approx(guess, abs=0.01)


@pytest.mark.parametrize(
    "change, settings, words",
    [
        (lambda w, p, d: ([*w[:2], w[4].T], p, d), {}, "read what comes before"),
        (lambda w, p, d: (w, p[:, :9], d), {}, "read what comes before"),
        (lambda w, p, d: (w, p, d[:3]), {}, "0 to 9 for each picture"),
        (lambda w, p, d: (w, p, d + 5), {}, "0 to 9"),
        (lambda w, p, d: (w, 2 * p, d), {}, "0 to 16"),
        (lambda w, p, d: (w, np.tile(p, (11, 1)), np.tile(d, 11)), {}, "64000 pixels"),
        (lambda *a: a, {"rate": 2.0}, "0.003 to 1"),
        (lambda *a: a, {"step": 61}, "0 to 60"),
        (lambda *a: a, {"start": "best"}, "best"),
    ],
)
def test_it_refuses(change, settings, words):
    with pytest.raises((ValueError, traitlets.TraitError), match=words):
        DeadStart(*change(*digit_chain()), **settings)
